"""Detections against truth: matches, average precision, and why a detection is wrong.

Boxes are (K, 4): x0, y0, x1, y1. Letters: M detections, K true boxes, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Types of error, in the order in which they are looked for; what is right, and what lies in a crowd.
LOC, CLS, DUPE, BKG, BOTH, MISS = ERRORS = ("Loc", "Cls", "Dupe", "Bkg", "Both", "Miss")
RIGHT, IGNORED = "right", "ignored"
# From this IoU on a box counts as found; up to that one it counts as background.
FOUND, BACKGROUND = 0.5, 0.1
# Points of recall at which precision is read, as in COCO's evaluation.
_RECALLS = np.arange(101) / 100
# Detections an image that count, as in COCO's evaluation.
MOST_DETECTIONS = 100


@dataclass(frozen=True, eq=False)
class Marks:
    """Boxes of many images.

    Attributes:
        images: (K,) number of the image of each box.
        classes: (K,) its class.
        boxes: (K, 4) corners; x0 < x1 and y0 < y1.
        scores: (K,) confidence of detections; of true boxes 1 throughout.
        crowd: (K,) bool: a true box around a group, or a difficult one; it neither counts nor is missed.

    Raises:
        InputError: If lengths differ, or a box has no area or is not finite.
    """

    images: IntArray
    classes: IntArray
    boxes: FloatArray
    scores: FloatArray
    crowd: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        images: ArrayLike,
        classes: ArrayLike,
        boxes: ArrayLike,
        scores: ArrayLike | None = None,
        crowd: ArrayLike | None = None,
    ) -> Marks:
        """Take detections, with scores, or true boxes, without."""
        number, label = np.asarray(images, np.int64).ravel(), np.asarray(classes, np.int64).ravel()
        corners = np.asarray(boxes, np.float64).reshape(-1, 4)
        count = len(number)
        score = np.ones(count) if scores is None else np.asarray(scores, np.float64).ravel()
        group = np.zeros(count, np.bool_) if crowd is None else np.asarray(crowd, np.bool_).ravel()
        if {len(label), len(corners), len(score), len(group)} != {count}:
            raise InputError("one image, class, box and score each", f"{count} images", "Align them")
        if not np.isfinite(corners).all() or not (corners[:, 2:] > corners[:, :2]).all():
            raise InputError("finite boxes with x0 < x1 and y0 < y1", "one without", "Leave it out")
        if not np.isfinite(score).all():
            raise InputError("finite scores", "NaN or infinity", "Leave these detections out")
        return cls(number, label, corners, score, group)

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: NDArray[np.bool_] | IntArray) -> Marks:
        """Return some of them, in the order asked for."""
        return Marks(
            self.images[rows], self.classes[rows], self.boxes[rows], self.scores[rows], self.crowd[rows]
        )


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What each detection and each true box came to.

    Attributes:
        kind: (M,) ``right``, ``ignored``, or a type of error.
        iou: (M,) largest IoU with a true box of the same class; with any, for a type that is about others.
        match: (M,) the true box that a detection found, or would have found; −1 for none.
        mends: (M,) bool: put right, a wrong place or class, it would find ``match``: no better one does.
        missed: (K,) bool: true boxes that no detection finds, nor would find if it were put right.
        found: (K,) bool.
    """

    kind: NDArray[np.str_]
    iou: FloatArray
    match: IntArray
    mends: NDArray[np.bool_]
    missed: NDArray[np.bool_]
    found: NDArray[np.bool_]


def box_iou(left: ArrayLike, right: ArrayLike) -> FloatArray:
    """Return (M, K) intersection over union.

    Examples:
        >>> box_iou([[0, 0, 2, 2]], [[1, 0, 3, 2], [5, 5, 6, 6]]).round(3).tolist()
        [[0.333, 0.0]]
    """
    a, b = np.asarray(left, np.float64).reshape(-1, 4), np.asarray(right, np.float64).reshape(-1, 4)
    common = _common(a, b)
    union = _area(a)[:, None] + _area(b)[None, :] - common
    return np.asarray(common / np.where(union > 0, union, 1.0))


def paired_iou(left: ArrayLike, right: ArrayLike) -> FloatArray:
    """Return the intersection over union of boxes one by one: (…, 4) and (…, 4) → (…); 0 without an area.

    Examples:
        >>> paired_iou([[0, 0, 2, 2], [0, 0, 2, 2]], [[1, 0, 3, 2], [5, 5, 6, 6]]).round(3).tolist()
        [0.333, 0.0]
    """
    a, b = np.asarray(left, np.float64), np.asarray(right, np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.maximum(sides, 0).prod(axis=-1)
    union = sum(np.maximum(one[..., 2:] - one[..., :2], 0).prod(axis=-1) for one in (a, b)) - common
    return np.asarray(common / np.where(union > 0, union, 1.0))


def box_offsets(regions: ArrayLike, truth: ArrayLike) -> FloatArray:
    """Return how each region must be moved and scaled to become its true box.

    dx = (Gx − Px)/Pw, dy = (Gy − Py)/Ph, log Gw/Pw, log Gh/Ph, of the centres and sides of true box G and
    region P. Source: Girshick, Donahue, Darrell and Malik, Rich Feature Hierarchies for Accurate Object
    Detection and Semantic Segmentation (CVPR 2014), appendix C, equations 6 to 9.

    Args:
        regions: (K, 4) with an area.
        truth: (K, 4) with an area.

    Returns:
        (K, 4).

    Examples:
        >>> box_offsets([[0, 0, 10, 10]], [[5, 0, 15, 20]]).round(3).tolist()
        [[0.5, 0.5, 0.0, 0.693]]
    """
    p, g = (np.asarray(one, np.float64).reshape(-1, 4) for one in (regions, truth))
    sides, wanted = p[:, 2:] - p[:, :2], g[:, 2:] - g[:, :2]
    moved = (g - p).reshape(-1, 2, 2).mean(axis=1)
    return np.concatenate([moved / sides, np.log(wanted / sides)], axis=1)


def average_precision(scores: ArrayLike, right: ArrayLike, positives: int) -> float:
    """Return the area under precision against recall, at 101 points of recall.

    Precision at a recall is the best at that recall or beyond. Source: Lin et al., Microsoft COCO (ECCV
    2014), and its evaluation code.

    Args:
        scores: (M,) confidence of the detections of one class.
        right: (M,) whether each found a true box of its own.
        positives: True boxes of the class.

    Returns:
        0 … 1; NaN without a true box.

    Examples:
        >>> average_precision([0.9, 0.8, 0.7], [True, False, True], 2).__round__(3)
        0.835
    """
    if positives < 1:
        return float("nan")
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    hits = np.asarray(right, np.bool_)[order]
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(found / positives, _RECALLS, side="left")
    return float(np.append(best, 0.0)[places].mean())


def mean_average_precision(
    scores: FloatArray, classes: IntArray, right: NDArray[np.bool_], positives: Mapping[int, int]
) -> float:
    """Return the mean over the classes given; NaN for none.

    A class of which no box is asked for has precision 0 if it is detected, and does not count if not.

    Args:
        scores: (M,) confidence.
        classes: (M,) classes of the detections.
        right: (M,) whether each found a true box.
        positives: Class → number of true boxes.
    """
    own = []
    for label, count in positives.items():
        mine = classes == label
        if count > 0:
            own.append(average_precision(scores[mine], right[mine], count))
        elif mine.any():
            own.append(0.0)
    return float(np.mean(own)) if own else float("nan")


def diagnose_detections(
    detections: Marks,
    truth: Marks,
    *,
    found: float = FOUND,
    background: float = BACKGROUND,
    most: int = MOST_DETECTIONS,
) -> tuple[Marks, Diagnosis]:
    """Match detections with true boxes, best score first, and say why the others are wrong.

    A detection finds the free box of its class with which it overlaps most, from IoU ``found`` on. Of the
    others the first that holds: ``Bkg``, nothing is in the image; ``Loc``, the largest IoU with its own class
    is from ``background`` to ``found``; ``Cls``, that with another class is at least ``found``; ``Dupe``,
    that with a found box of its class is; ``Bkg``, that with any box is at most ``background``; ``Both``. A
    box nobody finds is ``Miss`` unless a ``Loc`` or ``Cls`` is about it. Source: Bolya, Foley, Hays and
    Hoffman, TIDE: A General Toolbox for Identifying Object Detection Errors (ECCV 2020), section 2.2.

    A detection of which more than ``found`` lies in a crowd of its class is ignored, which TIDE's code
    counts as an error all the same.

    Args:
        detections: M' of them.
        truth: K true boxes.
        found: IoU from which a box counts as found.
        background: IoU up to which it counts as background.
        most: Detections an image that count, best score first.

    Returns:
        The detections that count, by image and falling score; what became of them.

    Raises:
        InputError: If the thresholds are not 0 ≤ background < found ≤ 1.
    """
    if not 0 <= background < found <= 1:
        raise InputError("0 ≤ background < found ≤ 1", f"{background} and {found}", "0.1 and 0.5 are common")
    rows = _counted(detections, most)
    kept = detections.select(rows)
    told = Diagnosis(
        np.full(len(rows), BKG, dtype="<U8"), np.zeros(len(rows)), np.full(len(rows), -1),
        np.zeros(len(rows), np.bool_), np.zeros(len(truth), np.bool_), np.zeros(len(truth), np.bool_),
    )  # fmt: skip
    for own, places in boxes_by_image(kept, truth):
        _diagnose_image(kept, truth, own, places, told, found, background)
    return kept, told


def _diagnose_image(
    kept: Marks,
    truth: Marks,
    own: IntArray,
    places: IntArray,
    told: Diagnosis,
    found: float,
    background: float,
) -> None:
    """Fill in what became of the detections ``own`` and true boxes ``places`` of one image."""
    real, crowds = places[~truth.crowd[places]], places[truth.crowd[places]]
    iou = box_iou(kept.boxes[own], truth.boxes[real])
    same = kept.classes[own][:, None] == truth.classes[real][None, :]
    free = np.ones(len(real), np.bool_)
    right = np.full(len(own), -1)
    for row in range(len(own)):
        open_ = np.where(same[row] & free, iou[row], 0.0)
        if len(real) and open_.max() >= found:
            right[row] = open_.argmax()
            free[right[row]] = False
    told.found[real[~free]] = True
    hidden = _inside_crowd(kept, truth, own, crowds, found)
    best: dict[int, int] = {}
    for row, detection in enumerate(own):
        if right[row] >= 0:
            kind, place = RIGHT, int(right[row])
        elif hidden[row]:
            kind, place = IGNORED, -1
        else:
            kind, place = _why_wrong(iou[row], same[row], ~free, found, background)
        told.kind[detection] = kind
        told.match[detection] = real[place] if place >= 0 else -1
        told.iou[detection] = iou[row, place] if place >= 0 else (iou[row].max() if len(real) else 0.0)
        if kind in (LOC, CLS) and free[place]:
            # Detections come by falling score: the first one to mend a box is the one that counts.
            best.setdefault(place, int(detection))
    told.mends[list(best.values())] = True
    usable = np.zeros(len(real), np.bool_)
    usable[list(best)] = True
    told.missed[real[free & ~usable]] = True


def _why_wrong(
    iou: FloatArray, same: NDArray[np.bool_], taken: NDArray[np.bool_], found: float, background: float
) -> tuple[str, int]:
    """Return the type of error of one detection and the true box it is about, −1 for none."""
    if not len(iou):
        return BKG, -1
    own, others, used = np.where(same, iou, 0.0), np.where(same, 0.0, iou), np.where(same & taken, iou, 0.0)
    if background <= own.max() <= found:
        return LOC, int(own.argmax())
    if others.max() >= found:
        return CLS, int(others.argmax())
    if used.max() >= found:
        return DUPE, int(used.argmax())
    return (BKG if iou.max() <= background else BOTH), -1


def error_weights(kept: Marks, truth: Marks, told: Diagnosis) -> dict[str, float]:
    """Return how much the mean average precision would rise if errors of one type alone were put right.

    ``Loc`` and ``Cls`` become hits of the box they are about, or go where it is found already or a better
    detection would find it; ``Dupe``, ``Bkg`` and ``Both`` go; missed boxes are no longer asked for.
    ``FalsePos`` puts all wrong detections behind the right ones, ``FalseNeg`` asks for no box that is not
    found. They do not add up: what is left after one is put right is worth more. Source: as
    ``diagnose_detections``, section 2.3.

    Args:
        kept: The detections that count.
        truth: True boxes.
        told: What became of them.

    Returns:
        ``AP`` as it is, then each type → rise of AP.
    """
    counts = told.kind != IGNORED
    right = told.kind == RIGHT
    positives = _positives(truth, np.ones(len(truth), np.bool_))

    def precision(
        stay: NDArray[np.bool_], hits: NDArray[np.bool_], classes: IntArray, asked: Mapping[int, int]
    ) -> float:
        return mean_average_precision(kept.scores[stay], classes[stay], hits[stay], asked)

    as_is = precision(counts, right, kept.classes, positives)
    rises = {"AP": as_is}
    for kind in ERRORS[:-1]:
        wrong = told.kind == kind
        mended = wrong & told.mends
        classes = kept.classes.copy()
        if kind == CLS:
            classes[mended] = truth.classes[told.match[mended]]
        rises[kind] = precision(counts & (~wrong | mended), right | mended, classes, positives) - as_is
    rises[MISS] = precision(counts, right, kept.classes, _positives(truth, ~told.missed)) - as_is
    order = mean_average_precision(
        right[counts].astype(float), kept.classes[counts], right[counts], positives
    )
    rises["FalsePos"] = order - as_is
    rises["FalseNeg"] = precision(counts, right, kept.classes, _positives(truth, told.found)) - as_is
    return rises


def _positives(truth: Marks, asked: NDArray[np.bool_]) -> dict[int, int]:
    """Return class → number of true boxes that are asked for, for every class that has one at all."""
    real = ~truth.crowd
    return {
        int(label): int((asked & real & (truth.classes == label)).sum())
        for label in np.unique(truth.classes[real])
    }


def _counted(detections: Marks, most: int) -> IntArray:
    """Return the detections that count: the best of each image, by image and falling score."""
    order = np.lexsort((-detections.scores, detections.images))
    images = detections.images[order]
    starts = np.searchsorted(images, images, side="left")
    return np.asarray(order[np.arange(len(order)) - starts < most])


def boxes_by_image(kept: Marks, truth: Marks) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield the places of the detections and of the true boxes of one image after another."""
    for image in np.union1d(kept.images, truth.images):
        yield np.flatnonzero(kept.images == image), np.flatnonzero(truth.images == image)


def _inside_crowd(
    kept: Marks, truth: Marks, own: IntArray, crowds: IntArray, found: float
) -> NDArray[np.bool_]:
    """Say of each detection whether more than ``found`` of it lies in a crowd of its class."""
    share = _common(kept.boxes[own], truth.boxes[crowds]) / _area(kept.boxes[own])[:, None]
    same = kept.classes[own][:, None] == truth.classes[crowds][None, :]
    return np.asarray(((share > found) & same).any(axis=1))


def _common(a: FloatArray, b: FloatArray) -> FloatArray:
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return np.asarray(np.maximum(sides, 0).prod(axis=2))


def _area(boxes: FloatArray) -> FloatArray:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
