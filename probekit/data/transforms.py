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
        width, height = image.size
        short = min(width, height)
        if short != self.resize:
            # The long side is truncated, not rounded, as torchvision and timm do.
            long = int(self.resize * max(width, height) / short)
            wanted = (self.resize, long) if width <= height else (long, self.resize)
            image = image.resize(wanted, INTERPOLATIONS[self.interpolation])
            width, height = wanted
        left, top = round((width - self.size) / 2.0), round((height - self.size) / 2.0)
        if (width, height) != (self.size, self.size):
            image = image.crop((left, top, left + self.size, top + self.size))
        return np.asarray(image)
