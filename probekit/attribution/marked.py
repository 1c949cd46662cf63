"""Which test images say where the thing is: pairs of an image and a class, with what is marked of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probekit.data.images import ImageSet
from probekit.data.regions import each_image, foreground_classes, region, region_target
from probekit.data.targets import Target
from probekit.data.transforms import Preprocessing
from probekit.errors import DataError, InputError, near_names
from probekit.functional.localisation import (
    best_threshold_iou,
    centred_gaussian,
    energy_inside,
    pointing_game,
    relevance_rank,
)
from probekit.probes.protocol import Roles
from probekit.seeds import draw_rows

# Kinds of target whose probes have a score for each class.
KINDS = ("class", "multilabel")
# Of fewer images a class is hardly learnt: its map would say more of the images than of the class.
LEAST_IMAGES = 5
METRICS = ("energy_inside", "relevance_rank", "best_iou", "pointing_game")
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Marked:
    """M test images, and P pairs of one of them and a class that is in it.

    Attributes:
        images: The M images.
        rows: (P,) which image.
        outputs: (P,) which class, a place in those of the target.
        inside: (P, size, size) share of each pixel of the input that is marked, 255 for all of it.
        left_out: Pairs without a pixel inside after the crop, or with nothing else.
        any_class: Whether everything marked counts as the image's class, for want of marks with its name.
    """

    images: ImageSet
    rows: NDArray[np.intp]
    outputs: NDArray[np.int64]
    inside: NDArray[np.uint8]
    left_out: int
    any_class: bool

    def baselines(self, tolerance_px: float) -> dict[str, Array]:
        """Return what maps score that know nothing: name → (M, 4), in the order of ``METRICS``."""
        size = self.inside.shape[1]
        known = {"uniform": np.ones((size, size)), "centred Gaussian": centred_gaussian(size, size)}
        return {
            name: image_means(
                score_maps(np.broadcast_to(one, self.inside.shape), self.inside, tolerance_px),
                self.rows,
                len(self.images),
            )
            for name, one in known.items()
        }


def score_maps(maps: NDArray[np.floating], inside: NDArray[np.uint8], tolerance_px: float) -> Array:
    """Return the scores of P maps at the size of the input, in the order of ``METRICS``: (P, 4)."""
    found = np.empty((len(inside), len(METRICS)))
    # A few at a time: masks are kept in 8 bits, and scored in 64.
    for first in range(0, len(inside), 32):
        rows = slice(first, first + 32)
        own, shares = np.asarray(maps[rows], np.float64), inside[rows] / 255
        found[rows] = np.stack(
            [
                energy_inside(own, shares),
                relevance_rank(own, shares),
                best_threshold_iou(own, shares),
                pointing_game(own, shares, tolerance_px=tolerance_px),
            ],
            axis=1,
        )
    return found


def image_means(scores: Array, rows: NDArray[np.intp], count: int) -> Array:
    """Return means over the defined scores of each image's pairs: (P, K) → (M, K), NaN where none is."""
    there = ~np.isnan(scores)
    sums, counts = np.zeros((count, scores.shape[1])), np.zeros((count, scores.shape[1]))
    np.add.at(sums, rows, np.where(there, scores, 0.0))
    np.add.at(counts, rows, there)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def find_targets(images: ImageSet, target: str | None) -> tuple[str, str]:
    """Return the names of the target that is probed, and of the masks or boxes that say where it is.

    Args:
        images: The data set.
        target: A target of kind ``class`` or ``multilabel``; None takes the first.

    Raises:
        InputError: If there is no such target.
        DataError: If nothing is marked in the images.
    """
    known = [name for name, one in images.targets.items() if one.kind in KINDS]
    if not known or (target is not None and target not in known):
        raise InputError(
            f"a target of classes or labels in {images.name}",
            repr(target) if target is not None else ", ".join(images.targets) or "none",
            f"The nearest are {near_names(target, known)}" if known and target else "Open other annotations",
        )
    marks = region_target(images)
    if marks is None:
        raise DataError(
            f"masks or boxes in {images.name}, which say where a class is",
            "neither",
            "Open annotations that have them, such as format=coco, or shapeworld/source,annotations=masks",
        )
    return target or known[0], marks


def find_pairs(
    images: ImageSet, name: str, marks: str, roles: Roles, most: int, seed: int
) -> tuple[NDArray[np.intp], list[tuple[int, int, int | None]]]:
    """Return the test images that are scored, and their pairs, before anything is decoded.

    Args:
        images: The data set.
        name: The target that is probed.
        marks: The masks or boxes.
        roles: Rows of the splits; classes in fewer than five of the fitting images are left out.
        most: Most images.
        seed: Fixes which, where there are more.

    Returns:
        (M,) rows of the images; and for each pair the place among these, the class, and the class of the
        marks, None for all of them.

    Raises:
        DataError: If no class of the target is marked in a test image.
    """
    target, marked = images.targets[name], images.targets[marks]
    places = _mark_of_class(target, marked, name, marks)
    learnt = _counts(target, roles.fitting) >= LEAST_IMAGES
    own = {
        int(row): [place for place in _classes_in(target, int(row)) if learnt[place] and place in places]
        for row in roles.test
    }
    candidates = np.array([row for row, classes in own.items() if classes], np.intp)
    if not len(candidates):
        raise DataError(
            f"test images with a class of {name} that {LEAST_IMAGES} fitting images have and {marks} mark",
            f"none among {len(roles.test)} test images; {int(learnt.sum())} classes have as many",
            "Give more images, or marks of these classes",
        )
    chosen = candidates[draw_rows(len(candidates), most, seed)]
    pairs = [(number, place, places[place]) for number, row in enumerate(chosen) for place in own[int(row)]]
    return chosen, pairs


def mark_pairs(
    images: ImageSet,
    marks: str,
    rows: NDArray[np.intp],
    pairs: list[tuple[int, int, int | None]],
    preprocessing: Preprocessing,
) -> Marked:
    """Read what is marked of each pair, as a backbone is given the image.

    Raises:
        DataError: If a mask is not of the size of its image, or nothing is left to score.
        ImageUnreadable: If an image or mask cannot be decoded.
    """
    chosen = images.select(rows)
    by_image: dict[int, list[int | None]] = {}
    for number, _, mark in pairs:
        by_image.setdefault(number, []).append(mark)

    def read(index: int) -> NDArray[np.object_]:
        found = np.empty(1, object)
        found[0] = [
            region(chosen, index, marks, preprocessing, None if mark is None else [mark])
            for mark in by_image[index]
        ]
        return found

    views = [view for one in each_image(chosen, read, "Reading marks of")[:, 0] for view in one]
    inside = np.stack(views)
    halves = (inside >= 128).mean(axis=(1, 2))
    kept = (halves > 0) & (halves < 1)
    if not kept.any():
        raise DataError(
            f"{marks} of {images.name} that lie in the images and leave something out",
            f"none of {len(pairs)}",
            "Check their coordinates, and what the crop of the backbone leaves",
        )
    numbers, outputs = (np.array([pair[place] for pair in pairs])[kept] for place in (0, 1))
    used, renumbered = np.unique(numbers, return_inverse=True)
    return Marked(
        chosen.select(used),
        renumbered.astype(np.intp),
        outputs.astype(np.int64),
        inside[kept],
        int((~kept).sum()),
        pairs[0][2] is None,
    )


def _mark_of_class(target: Target, marked: Target, name: str, marks: str) -> dict[int, int | None]:
    """Return class → class of the marks; by name, or all marks where they do not tell classes apart."""
    names = {one: place for place, one in enumerate(marked.classes)}
    places: dict[int, int | None] = {
        place: names[one] for place, one in enumerate(target.classes) if one in names
    }
    if places:
        return places
    if target.kind == "class" and len(foreground_classes(marked.classes)) == 1:
        return dict.fromkeys(range(target.n_classes))
    raise DataError(
        f"{marks} with the names of the classes of {name}, such as {target.classes[0]!r}",
        f"names such as {marked.classes[-1]!r}",
        "Name them alike, or mark one class, the object",
    )


def _counts(target: Target, rows: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return how many of some images have each class."""
    values = target.values[rows]
    if target.kind == "class":
        return np.bincount(values, minlength=target.n_classes).astype(np.int64)
    return np.asarray(values.sum(axis=0), np.int64)


def _classes_in(target: Target, row: int) -> Iterator[int]:
    value = target.values[row]
    if target.kind == "class":
        yield int(value)
    else:
        yield from np.flatnonzero(value).tolist()
