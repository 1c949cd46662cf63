"""What is read back: images at low resolution, their frequencies, and which part is foreground."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn, idctn

from probekit.compute import cores
from probekit.data.annotations import Boxes, Mask
from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.errors import DataError
from probekit.progress import progress_bar

SIDE = 8
# Band → radii of the two-dimensional cosine transform, from the first to below the second.
BANDS = {"mean": (0.0, 0.5), "coarse": (0.5, 2.0), "middle": (2.0, 4.0), "fine": (4.0, np.inf)}
FOREGROUND = ("masks", "boxes")
_IGNORED = 255

Array = NDArray[np.float32]


def low_resolution(images: ImageSet, preprocessing: Preprocessing, side: int = SIDE) -> Array:
    """Return images as backbones take them, as means over side × side cells: (N, side, side, 3) in [0, 1].

    Raises:
        ImageUnreadable: If an image cannot be decoded.
    """

    def read(index: int) -> Array:
        return cell_means(images.pixels(index, preprocessing), side)

    return np.asarray(_each(images, read, "Reading pixels of") / 255, np.float32)


def cell_means(pixels: NDArray[np.uint8], side: int = SIDE) -> Array:
    """Return the means over side × side cells of (H, W, 3) pixels: (side, side, 3), from 0 to 255."""
    # Of single-precision images: 8-bit ones are rounded between rows and columns.
    colours = [Image.fromarray(pixels[..., place].astype(np.float32)) for place in range(3)]
    cells = [np.asarray(one.resize((side, side), Image.Resampling.BOX)) for one in colours]
    return np.stack(cells, axis=-1)


def frequencies(values: NDArray[np.floating[Any]], side: int = SIDE) -> NDArray[np.float64]:
    """Return the coefficients of the orthonormal cosine transform of images; their squares add up alike.

    Args:
        values: (…, side · side · 3) images, rows before columns before colours.
        side: Cells a side.

    Returns:
        (…, side · side · 3) coefficients, by frequency down, frequency across and colour.

    Examples:
        >>> frequencies(np.ones((1, 192)))[0, :4].round(6).tolist()
        [8.0, 8.0, 8.0, 0.0]
    """
    maps = np.asarray(values, np.float64).reshape(*values.shape[:-1], side, side, 3)
    return np.asarray(dctn(maps, axes=(-3, -2), norm="ortho").reshape(values.shape))


def from_frequencies(values: NDArray[np.floating[Any]], side: int = SIDE) -> NDArray[np.float64]:
    """Return the images of coefficients: the inverse of ``frequencies``."""
    maps = np.asarray(values, np.float64).reshape(*values.shape[:-1], side, side, 3)
    return np.asarray(idctn(maps, axes=(-3, -2), norm="ortho").reshape(values.shape))


def band_columns(side: int = SIDE) -> dict[str, NDArray[np.intp]]:
    """Return which coefficients belong to each band of ``BANDS``; together they are all of them.

    Examples:
        >>> {name: len(one) for name, one in band_columns().items()}
        {'mean': 3, 'coarse': 9, 'middle': 33, 'fine': 147}
    """
    radius = np.repeat(np.hypot(*np.mgrid[:side, :side]).ravel(), 3)
    return {name: np.flatnonzero((radius >= low) & (radius < high)) for name, (low, high) in BANDS.items()}


def foreground_target(images: ImageSet) -> str | None:
    """Return the name of the masks, or else the boxes, of a data set; None if it has neither."""
    found = [name for kind in FOREGROUND for name, one in images.targets.items() if one.kind == kind]
    return found[0] if found else None


def foreground(images: ImageSet, preprocessing: Preprocessing, target: str, side: int = SIDE) -> Array:
    """Return the share of each cell that lies in a mask or box: (N, side, side) in [0, 1].

    Masks and boxes are resized and cropped as the images are. Every class of a mask but one called
    ``background`` is foreground; pixels without a class are not.

    Raises:
        DataError: If a mask is not of the size of its image.
        ImageUnreadable: If an image or mask cannot be decoded.
    """
    values, classes = images.targets[target].values, images.targets[target].classes
    background = classes.index("background") if "background" in classes else _IGNORED

    def read(index: int) -> Array:
        width, height = images.image(index).size
        inside = _inside(values[index], (height, width), background)
        view = preprocessing.pixels(Image.fromarray(np.repeat(inside[..., None], 3, axis=2)))
        return cell_means(view, side)[..., 0]

    return np.asarray(_each(images, read, "Reading masks of") / 255, np.float32)


def _inside(one: Boxes | Mask, size: tuple[int, int], background: int) -> NDArray[np.uint8]:
    """Return (H, W): 255 in the foreground, 0 elsewhere."""
    if isinstance(one, Mask):
        classes = one.read()
        if classes.shape != size:
            raise DataError(
                f"a mask of the size of its image, {size[1]}×{size[0]}",
                f"{classes.shape[1]}×{classes.shape[0]}",
                "Give masks in the pixels of their images",
            )
        return np.where((classes != background) & (classes != _IGNORED), 255, 0).astype(np.uint8)
    inside = np.zeros(size, np.uint8)
    for x0, y0, x1, y1 in one.corners.round().astype(int):
        inside[max(y0, 0) : y1, max(x0, 0) : x1] = 255
    return inside


def _each(images: ImageSet, read: Callable[[int], Array], label: str) -> Array:
    with (
        progress_bar(len(images), f"{label} {images.name}", "img") as bar,
        ThreadPoolExecutor(max(2, cores()), thread_name_prefix="decode") as decoders,
    ):
        found = []
        for one in decoders.map(read, range(len(images))):
            found.append(one)
            bar.update(1)
    return np.stack(found)
