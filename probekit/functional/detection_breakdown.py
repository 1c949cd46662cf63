"""Detections taken apart: what the best of each class are, how boxes overlap, what is wrong with a place.

Boxes are (M, 4): x0, y0, x1, y1. Letters: M detections, K true boxes, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.errors import InputError
from probekit.functional.detection import (
    BACKGROUND,
    IGNORED,
    RIGHT,
    Diagnosis,
    FloatArray,
    IntArray,
    Marks,
    box_iou,
    boxes_by_image,
    paired_iou,
)

# What a detection among the best of its class is; ``none`` stands for those that were not made at all.
PARTS = ("right", "localisation", "similar", "other", "background", "none")
# What of a box can be put right alone.
REPAIRS = ("centre", "scale", "aspect")


@dataclass(frozen=True, eq=False)
class Overlaps:
    """How far each detection overlaps the true boxes of its image; 0 where there is none.

    Attributes:
        own: (M,) largest IoU with a true box of its class.
        match: (M,) that true box; −1 where there is none.
        similar: (M,) largest IoU with a box of another class of its group.
        other: (M,) with a box of a class outside of its group.
    """

    own: FloatArray
    match: IntArray
    similar: FloatArray
    other: FloatArray


@dataclass(frozen=True, eq=False)
class Placement:
    """What sets boxes apart from the true ones.

    Attributes:
        offset: (M,) distance of the centres, in units of the square root of the true box's area.
        scale: (M,) log2 of the ratio of the square roots of the areas; above 0 is too large.
        aspect: (M,) log2 of the ratio of width over height; above 0 is too wide.
        repaired: (M, 3) share of 1 − IoU that is gained when the centre, the scale or the aspect ratio alone
            is put right; below 0 where that makes it worse. 0 for a box that is exact.
    """

    offset: FloatArray
    scale: FloatArray
    aspect: FloatArray
    repaired: FloatArray


def overlaps(kept: Marks, truth: Marks, groups: ArrayLike | None = None) -> Overlaps:
    """Return how far each detection overlaps true boxes of its class, of similar ones and of others.

    Crowds do not count.

    Args:
        kept: M detections.
        truth: K true boxes.
        groups: (C,) group of each class; classes of one group are similar. None: no two classes are.

    Raises:
        InputError: If a class has no group.
    """
    most = max((int(one.classes.max()) for one in (kept, truth) if len(one)), default=-1)
    group = np.arange(most + 1) if groups is None else np.asarray(groups, np.int64).ravel()
    if len(group) <= most:
        raise InputError(f"a group for each of {most + 1} classes", str(len(group)), "Name all of them")
    count = len(kept)
    found = Overlaps(np.zeros(count), np.full(count, -1), np.zeros(count), np.zeros(count))
    for own, places in boxes_by_image(kept, truth):
        real = places[~truth.crowd[places]]
        if not len(own) or not len(real):
            continue
        iou = box_iou(kept.boxes[own], truth.boxes[real])
        said, true = kept.classes[own][:, None], truth.classes[real][None, :]
        same, alike = said == true, group[said] == group[true]
        of_class = np.where(same, iou, -1.0)
        found.own[own] = np.maximum(of_class.max(axis=1), 0)
        found.match[own] = np.where(same.any(axis=1), real[of_class.argmax(axis=1)], -1)
        found.similar[own] = np.where(alike & ~same, iou, 0.0).max(axis=1)
        found.other[own] = np.where(alike, 0.0, iou).max(axis=1)
    return found


def top_of_class(kept: Marks, truth: Marks, told: Diagnosis) -> NDArray[np.bool_]:
    """Return (M,) whether a detection is among the best of its class, as many as the class has true boxes.

    Of equal scores, the one that stands first. Detections in crowds do not count, nor do crowds.
    """
    top = np.zeros(len(kept), np.bool_)
    for label in np.unique(truth.classes[~truth.crowd]):
        own = np.flatnonzero((kept.classes == label) & (told.kind != IGNORED))
        count = int((truth.classes[~truth.crowd] == label).sum())
        top[own[np.argsort(-kept.scores[own], kind="stable")[:count]]] = True
    return top


def hoiem_parts(told: Diagnosis, near: Overlaps, background: float = BACKGROUND) -> NDArray[np.str_]:
    """Say of each detection which part it belongs to.

    ``right``: it found a true box. Otherwise the first that holds: ``localisation``, it overlaps a true box
    of its class by ``background`` or more, be it misplaced or a duplicate; ``similar`` and ``other``, it does
    so with one of such a class; ``background``. Source: Hoiem, Chodpathumwan and Dai, Diagnosing Error in
    Object Detectors (ECCV 2012), section 2.2.

    Args:
        told: What became of the detections.
        near: How far they overlap true boxes.
        background: IoU from which an overlap counts.

    Returns:
        (M,) among ``PARTS``.
    """
    found = np.select(
        [told.kind == RIGHT, near.own >= background, near.similar >= background, near.other >= background],
        ["right", "localisation", "similar", "other"],
        "background",
    )
    return np.asarray(found, np.str_)


def hoiem_fractions(
    kept: Marks, truth: Marks, told: Diagnosis, near: Overlaps, background: float = BACKGROUND
) -> dict[int, dict[str, float]]:
    """Return what the best N detections of each class are, N being its true boxes, as shares of N.

    ``none`` is what is left where fewer than N were made. Source: as ``hoiem_parts``, section 2.2; Zhao, Wu,
    Lau and Lin, What Makes Instance Discrimination Good for Transfer Learning? (ICLR 2021).

    Args:
        kept: M detections.
        truth: K true boxes.
        told: What became of them.
        near: How far they overlap.
        background: IoU from which an overlap counts.

    Returns:
        Class with a true box → part → share; shares add up to 1.

    Examples:
        >>> from probekit.functional import diagnose_detections
        >>> truth = Marks.of([0, 0], [0, 0], [[0, 0, 10, 10], [20, 0, 30, 10]])
        >>> kept, told = diagnose_detections(Marks.of([0], [0], [[0, 0, 10, 9]], [0.8]), truth)
        >>> shares = hoiem_fractions(kept, truth, told, overlaps(kept, truth))[0]
        >>> shares["right"], shares["none"]
        (0.5, 0.5)
    """
    top, parts = top_of_class(kept, truth, told), hoiem_parts(told, near, background)
    labels, counts = np.unique(truth.classes[~truth.crowd], return_counts=True)
    found = {}
    for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
        own = parts[top & (kept.classes == label)]
        shares = {part: float((own == part).sum() / count) for part in PARTS}
        found[label] = shares | {"none": 1 - len(own) / count}
    return found


def mean_fractions(by_class: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of ``hoiem_fractions`` over classes, each counting alike; NaN for none.

    Examples:
        >>> mean_fractions({0: dict.fromkeys(PARTS, 0.0) | {"right": 1.0}})["right"]
        1.0
    """
    if not by_class:
        return dict.fromkeys(PARTS, float("nan"))
    return {part: float(np.mean([one[part] for one in by_class.values()])) for part in PARTS}


def iou_histogram(iou: ArrayLike, bins: int = 20) -> tuple[IntArray, FloatArray]:
    """Count IoUs in bins of equal width from 0 to 1; the last one holds 1.

    Args:
        iou: (M,) values from 0 to 1.
        bins: How many.

    Returns:
        (bins,) counts and (bins + 1,) edges.

    Raises:
        InputError: If a value is no IoU, or there is no bin.

    Examples:
        >>> iou_histogram([0.0, 0.6, 1.0], 2)[0].tolist()
        [1, 2]
    """
    values = np.asarray(iou, np.float64).ravel()
    # Rounding takes the IoU of a box with itself beyond 1.
    if bins < 1 or not ((values >= 0) & (values <= 1 + 1e-9)).all():
        raise InputError("IoUs from 0 to 1, and at least one bin", f"{bins} bins, or others", "Correct them")
    counts, edges = np.histogram(np.minimum(values, 1), bins, (0.0, 1.0))
    return counts.astype(np.int64), edges


def localisation_split(boxes: ArrayLike, true: ArrayLike) -> Placement:
    """Say what is wrong with the place of boxes: centre, scale or aspect ratio.

    A box is its centre, its scale √(w·h) and its aspect ratio w/h. One of the three is taken from the true
    box, the other two stay: share = (IoU after − IoU before) / (1 − IoU before). The three do not add up:
    what one repair is worth depends on the others.

    Args:
        boxes: (M, 4).
        true: (M, 4) the true box of each.

    Raises:
        InputError: If their numbers differ, or a box has no area.

    Examples:
        >>> found = localisation_split([[5, 0, 15, 10]], [[0, 0, 10, 10]])
        >>> found.offset.tolist(), found.repaired.tolist()
        ([0.5], [[1.0, 0.0, 0.0]])
    """
    said, real = (np.asarray(one, np.float64).reshape(-1, 4) for one in (boxes, true))
    if len(said) != len(real) or not all((one[:, 2:] > one[:, :2]).all() for one in (said, real)):
        raise InputError(
            "a true box for each box, all with an area", f"{len(said)} and {len(real)}", "Align them"
        )
    (centre, scale, aspect), (true_centre, true_scale, true_aspect) = _taken_apart(said), _taken_apart(real)
    before = paired_iou(said, real)
    repaired = [
        paired_iou(box, real)
        for box in (
            _put_together(true_centre, scale, aspect),
            _put_together(centre, true_scale, aspect),
            _put_together(centre, scale, true_aspect),
        )
    ]
    lost = 1 - before
    gained = np.stack(repaired, axis=1) - before[:, None]
    shares = np.divide(gained, lost[:, None], out=np.zeros_like(gained), where=lost[:, None] > 1e-9)
    offset = np.linalg.norm(centre - true_centre, axis=1) / true_scale
    return Placement(offset, np.log2(scale / true_scale), np.log2(aspect / true_aspect), shares)


def _taken_apart(boxes: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (M, 2) centres, (M,) scales, (M,) aspect ratios."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return (boxes[:, :2] + boxes[:, 2:]) / 2, np.sqrt(sides.prod(axis=1)), sides[:, 0] / sides[:, 1]


def _put_together(centre: FloatArray, scale: FloatArray, aspect: FloatArray) -> FloatArray:
    half = np.stack([scale * np.sqrt(aspect), scale / np.sqrt(aspect)], axis=1) / 2
    return np.hstack([centre - half, centre + half])
