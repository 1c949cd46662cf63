"""Images with boxes whose pixels are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probekit import ImageSet
from probekit.data.annotations import Boxes, stack
from probekit.data.targets import Target

CLASSES = ("a", "b", "c")


def boxes(*corners: Sequence[float], crowd: bool = False, first: int = 0) -> Boxes:
    """Return boxes of classes ``first``, ``first`` + 1, … in turn."""
    count = len(corners)
    classes = (first + np.arange(count)) % len(CLASSES)
    return Boxes(np.array(corners, np.float32).reshape(-1, 4), classes, np.full(count, crowd))


def boxed(annotated: Sequence[Boxes], pixels: np.ndarray | None = None, name: str = "boxed") -> ImageSet:
    """Return one image for each annotation: two thirds train, the rest test."""
    count = len(annotated)
    shown = np.zeros((count, 40, 80, 3), np.uint8) if pixels is None else pixels
    splits = np.where(np.arange(count) < 2 * count / 3, "train", "test")
    target = Target(stack(annotated), "boxes", CLASSES)
    return ImageSet.from_arrays(name, shown, {"boxes": target}, splits)


def scattered(count: int, seed: int = 0, most: int = 3) -> list[Boxes]:
    """Return annotations of images of 80 × 40 with 1 to ``most`` boxes each."""
    random = np.random.default_rng(seed)
    made = []
    for row in range(count):
        some = random.integers(1, most + 1)
        corner = random.uniform(0, [60, 25], (some, 2))
        made.append(boxes(*np.hstack([corner, corner + random.uniform(6, 15, (some, 2))]), first=row))
    return made
