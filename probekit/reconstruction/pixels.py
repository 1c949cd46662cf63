"""What is read back: images at low resolution, their frequencies, and which part is foreground."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn, idctn

from probekit.data.images import ImageSet
from probekit.data.regions import each_image, region
from probekit.data.transforms import Preprocessing

SIDE = 8
# Band → radii of the two-dimensional cosine transform, from the first to below the second.
BANDS = {"mean": (0.0, 0.5), "coarse": (0.5, 2.0), "middle": (2.0, 4.0), "fine": (4.0, np.inf)}

Array = NDArray[np.float32]


def low_resolution(images: ImageSet, preprocessing: Preprocessing, side: int = SIDE) -> Array:
    """Return images as backbones take them, as means over side × side cells: (N, side, side, 3) in [0, 1].

    Raises:
        ImageUnreadable: If an image cannot be decoded.
    """

    def read(index: int) -> Array:
        return cell_means(images.pixels(index, preprocessing), side)

    return np.asarray(each_image(images, read, "Reading pixels of") / 255, np.float32)


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


def foreground(images: ImageSet, preprocessing: Preprocessing, target: str, side: int = SIDE) -> Array:
    """Return the share of each cell that lies in a mask or box: (N, side, side) in [0, 1].

    Masks and boxes are resized and cropped as the images are. Every class of a mask but one called
    ``background`` is foreground; pixels without a class are not.

    Raises:
        DataError: If a mask is not of the size of its image.
        ImageUnreadable: If an image or mask cannot be decoded.
    """

    def read(index: int) -> Array:
        inside = region(images, index, target, preprocessing)
        return cell_means(np.repeat(inside[..., None], 3, axis=2), side)[..., 0]

    return np.asarray(each_image(images, read, "Reading masks of") / 255, np.float32)
