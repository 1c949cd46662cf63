"""Which part of an image is marked, by masks or boxes, in the pixels that a backbone is given."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from probekit.compute import cores
from probekit.data.annotations import IGNORE, Boxes, Mask
from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.errors import DataError
from probekit.progress import progress_bar

# Kinds of target that mark a part of the image, the more exact one first.
REGIONS = ("masks", "boxes")
BACKGROUND = "background"


def region_target(images: ImageSet) -> str | None:
    """Return the name of the masks, or else the boxes, of a data set; None if it has neither."""
    found = [name for kind in REGIONS for name, one in images.targets.items() if one.kind == kind]
    return found[0] if found else None


def region(
    images: ImageSet,
    index: int,
    target: str,
    preprocessing: Preprocessing,
    classes: Collection[int] | None = None,
) -> NDArray[np.uint8]:
    """Return what of one image is marked, resized and cropped as the image is: (size, size), 255 inside.

    Args:
        images: The data set.
        index: Which image.
        target: Its masks or boxes.
        preprocessing: How the backbone takes its images.
        classes: Places in the target's classes that count; None counts all but one called ``background``.
            Pixels without a class never count. A box of a group of objects counts as one of its class.

    Raises:
        DataError: If a mask is not of the size of its image.
        ImageUnreadable: If the image or its mask cannot be decoded.
    """
    marks = images.targets[target]
    counted = set(classes) if classes is not None else set(foreground_classes(marks.classes))
    width, height = images.image(index).size
    inside = _inside(marks.values[index], (height, width), counted)
    return preprocessing.pixels(Image.fromarray(np.repeat(inside[..., None], 3, axis=2)))[..., 0]


def foreground_classes(classes: tuple[str, ...]) -> list[int]:
    """Return the places of all classes but ``background``.

    Examples:
        >>> foreground_classes(("background", "cat"))
        [1]
    """
    return [place for place, name in enumerate(classes) if name != BACKGROUND]


def _inside(one: Boxes | Mask, size: tuple[int, int], counted: set[int]) -> NDArray[np.uint8]:
    """Return (H, W): 255 in the classes that count, 0 elsewhere."""
    if isinstance(one, Mask):
        classes = one.read()
        if classes.shape != size:
            raise DataError(
                f"a mask of the size of its image, {size[1]}×{size[0]}",
                f"{classes.shape[1]}×{classes.shape[0]}",
                "Give masks in the pixels of their images",
            )
        chosen = np.zeros(IGNORE + 1, np.uint8)
        chosen[[place for place in counted if place != IGNORE]] = 255
        return chosen[classes]
    inside = np.zeros(size, np.uint8)
    shown = [place in counted for place in one.classes.tolist()]
    for x0, y0, x1, y1 in one.corners[shown].round().astype(int):
        inside[max(y0, 0) : y1, max(x0, 0) : x1] = 255
    return inside


def each_image(images: ImageSet, read: Callable[[int], NDArray[Any]], label: str) -> NDArray[Any]:
    """Return what is read of every image, stacked in their order; images are decoded by several threads."""
    with (
        progress_bar(len(images), f"{label} {images.name}", "img") as bar,
        ThreadPoolExecutor(max(2, cores()), thread_name_prefix="decode") as decoders,
    ):
        found = []
        for one in decoders.map(read, range(len(images))):
            found.append(one)
            bar.update(1)
    return np.stack(found)
