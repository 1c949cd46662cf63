"""Deterministic preprocessing from stated facts: image file → pixels at the backbone's input size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from probekit.errors import InputError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of one backbone.

    The short side is resized to ``resize`` pixels, the centre ``size`` × ``size`` is cropped, and
    values in [0, 1] are normalised per channel as ``(value - mean) / std``.

    Attributes:
        size: Side of the square input, in pixels.
        resize: Length of the short side before the crop, in pixels; at least ``size``.
        mean: Three channel means, in units of [0, 1].
        std: Three channel standard deviations, in units of [0, 1].
        interpolation: One of ``nearest``, ``bilinear``, ``bicubic``, ``lanczos`` (antialiased).

    Examples:
        >>> print(Preprocessing(size=32, resize=32))
        resize 32 bicubic, crop 32, mean 0.485/0.456/0.406, std 0.229/0.224/0.225
    """

    size: int
    resize: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1 or self.resize < self.size:
            raise InputError(
                "an input size of at least 1 px and a resize of at least that",
                f"size {self.size}, resize {self.resize}",
                "Give `size=` alone to scale both",
            )
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"an interpolation among {', '.join(INTERPOLATIONS)}", repr(self.interpolation), "Choose one"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(
                "three means and three positive standard deviations",
                f"mean {self.mean}, std {self.std}",
                "Write them as `mean=0.5/0.5/0.5`",
            )

    def __str__(self) -> str:
        """Say it on one line."""
        mean, std = ("/".join(f"{value:g}" for value in triple) for triple in (self.mean, self.std))
        return f"resize {self.resize} {self.interpolation}, crop {self.size}, mean {mean}, std {std}"

    def facts(self) -> dict[str, Any]:
        """Return the facts as JSON values, for keys and provenance."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize and crop one image.

        Args:
            image: An image in mode RGB, of any size.

        Returns:
            (size, size, 3) pixels. Normalisation is left to the device: see ``normalise``.
        """
        return self._prepared(image, INTERPOLATIONS[self.interpolation])

    def places(self, positions: NDArray[np.floating[Any]], width: int, height: int) -> NDArray[np.float32]:
        """Return where positions of an image come to lie in the input.

        Args:
            positions: (K, 2) x and y in pixels of the image, from its upper left corner.
            width: Of the image, in pixels.
            height: Of the image, in pixels.

        Returns:
            (K, 2) shares of the sides of the input; below 0 or above 1 where they are cropped away.

        Examples:
            >>> Preprocessing(50, 100).places(np.array([[100.0, 50.0]]), 200, 100)
            array([[0.5, 0.5]], dtype=float32)
        """
        wanted = self._resized(width, height)
        scaled = np.asarray(positions, np.float64) * np.divide(wanted, (width, height))
        return np.asarray((scaled - self._corner(wanted)) / self.size, np.float32)

    def places_of_classes(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop a map of classes as its image is, each pixel the nearest of the map.

        Args:
            mask: (H, W) one number a pixel.

        Returns:
            (size, size).
        """
        return self._prepared(Image.fromarray(mask), INTERPOLATIONS["nearest"])

    def whole(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize an image so that all of it is in the input, at its upper left; the rest has the mean colour.

        Args:
            image: An image in mode RGB, of any size.

        Returns:
            (size, size, 3) pixels.
        """
        wanted = self._fitted(*image.size)
        filled = np.empty((self.size, self.size, 3), np.uint8)
        filled[:] = np.round(np.array(self.mean) * 255).astype(np.uint8)
        shown = image.resize(wanted, INTERPOLATIONS[self.interpolation]) if image.size != wanted else image
        filled[: wanted[1], : wanted[0]] = np.asarray(shown)
        return filled

    def places_whole(
        self, positions: NDArray[np.floating[Any]], width: int, height: int
    ) -> NDArray[np.float32]:
        """Return where positions of an image come to lie in the input that ``whole`` makes.

        Args:
            positions: (K, 2) x and y in pixels of the image, from its upper left corner.
            width: Of the image, in pixels.
            height: Of the image, in pixels.

        Returns:
            (K, 2) shares of the sides of the input.

        Examples:
            >>> Preprocessing(50, 50).places_whole(np.array([[100.0, 50.0]]), 200, 100)
            array([[0.5 , 0.25]], dtype=float32)
        """
        scale = np.divide(self._fitted(width, height), (width, height)) / self.size
        return np.asarray(np.asarray(positions, np.float64) * scale, np.float32)

    def _fitted(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height once the long side is ``size``."""
        scale = self.size / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _prepared(self, image: Image.Image, interpolation: Image.Resampling) -> NDArray[np.uint8]:
        wanted = self._resized(*image.size)
        if image.size != wanted:
            image = image.resize(wanted, interpolation)
        left, top = self._corner(wanted)
        if wanted != (self.size, self.size):
            image = image.crop((left, top, left + self.size, top + self.size))
        return np.asarray(image)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height once the short side is ``resize``."""
        short = min(width, height)
        if short == self.resize:
            return width, height
        # The long side is truncated, not rounded, as torchvision and timm do.
        long = int(self.resize * max(width, height) / short)
        return (self.resize, long) if width <= height else (long, self.resize)

    def _corner(self, wanted: tuple[int, int]) -> tuple[int, int]:
        """Return left and top of the crop."""
        return round((wanted[0] - self.size) / 2.0), round((wanted[1] - self.size) / 2.0)
