"""Changes of an image with a strength and a unit: what a layer may or may not be invariant to.

A perturbation acts on the pixels a backbone takes, after resizing and cropping, so that a strength means the
same for every image whatever its file's size; lengths are shares of the image's side. What a strength leaves
open (the direction of a shift, the place of a crop, the grains of noise) is drawn once for every image and
perturbation: along a curve of strengths only the strength changes, and every backbone sees the same pixels.
Borders that come into view are mirrored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from probekit.errors import InputError, near_names
from probekit.seeds import random_stream

if TYPE_CHECKING:
    from probekit.data.images import ImageSet
    from probekit.data.transforms import Preprocessing

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Perturbation:
    """One way to change an image.

    Attributes:
        name: As in tables.
        unit: Of the strength, for axes.
        neutral: The strength that changes nothing.
        strengths: Curve drawn by default, from weak to strong.
        limits: Smallest and largest strength.
        apply: From (H, W, 3) pixels, a strength and a random stream to pixels of the same shape.
    """

    name: str
    unit: str
    neutral: float
    strengths: tuple[float, ...]
    limits: tuple[float, float]
    apply: Callable[[Pixels, float, np.random.Generator], Pixels]


@dataclass(frozen=True)
class Change:
    """A perturbation at one strength.

    Attributes:
        perturbation: One of ``PERTURBATIONS``.
        strength: In its unit.
        seed: Fixes what is drawn for every image.

    Raises:
        InputError: If there is no such perturbation, or the strength is out of range.

    Examples:
        >>> print(Change("rotation", 45))
        rotation@45
    """

    perturbation: str
    strength: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.perturbation not in PERTURBATIONS:
            raise InputError(
                f"a perturbation among {', '.join(PERTURBATIONS)}",
                repr(self.perturbation),
                f"The nearest is {near_names(self.perturbation, PERTURBATIONS, 1)}",
            )
        one = PERTURBATIONS[self.perturbation]
        low, high = one.limits
        if not low <= self.strength <= high:
            raise InputError(
                f"a strength of {one.name} from {low:g} to {high:g} {one.unit}",
                f"{self.strength:g}",
                "Choose a strength in that range",
            )

    def __str__(self) -> str:
        """Say it as it stands in the ids of changed images."""
        return f"{self.perturbation}@{self.strength:g}"

    def apply(self, pixels: Pixels, image_id: str) -> Pixels:
        """Change one image; the neutral strength gives its pixels back.

        Args:
            pixels: (H, W, 3).
            image_id: What is drawn depends on it, and not on the place of the image in its set.
        """
        one = PERTURBATIONS[self.perturbation]
        if self.strength == one.neutral:
            return pixels
        stream = random_stream("perturbation", self.seed, self.perturbation, image_id)
        return one.apply(pixels, self.strength, stream)


@dataclass(frozen=True, eq=False)
class Views:
    """Which image of another set each image is a changed view of.

    Attributes:
        base: The unchanged images.
        rows: (N,) places in ``base``.
        changes: What was done to each of the N images; None: nothing.
    """

    base: ImageSet
    rows: NDArray[np.int64]
    changes: tuple[Change | None, ...]

    def select(self, chosen: NDArray[np.int64]) -> Views:
        """Return the views of some images."""
        return Views(self.base, self.rows[chosen], tuple(self.changes[place] for place in chosen))

    def image(self, index: int) -> Image.Image:
        """Return a changed image at the size of its file."""
        return Image.fromarray(self._changed(index, np.asarray(self.base.image(int(self.rows[index])))))

    def pixels(self, index: int, preprocessing: Preprocessing) -> Pixels:
        """Return (size, size, 3) changed pixels."""
        return self._changed(index, self.base.pixels(int(self.rows[index]), preprocessing))

    def _changed(self, index: int, pixels: Pixels) -> Pixels:
        change = self.changes[index]
        return pixels if change is None else change.apply(pixels, str(self.base.ids[self.rows[index]]))


def parse_perturbations(asked: Sequence[str] | None, seed: int = 0) -> dict[str, list[Change]]:
    """Read names of perturbations, each with strengths of its own if it likes.

    Args:
        asked: ``NAME`` or ``NAME=STRENGTH/STRENGTH…``; None: all, at their default strengths.
        seed: Goes to every change.

    Returns:
        Name → changes, in the order asked for; never the neutral strength.

    Raises:
        InputError: If a name is unknown or stands twice, or a strength is no number, out of range, neutral
            or repeated.

    Examples:
        >>> [str(one) for one in parse_perturbations(["blur=0.01/0.02", "flip"])["blur"]]
        ['blur@0.01', 'blur@0.02']
    """
    found: dict[str, list[Change]] = {}
    for words in PERTURBATIONS if asked is None else asked:
        name, given, numbers = words.partition("=")
        if name in found:
            raise InputError("each perturbation once", f"{name!r} twice", f"Join them: {name}=1/2")
        try:
            strengths = [float(one) for one in numbers.split("/")] if given else None
        except ValueError:
            raise InputError("strengths as numbers", repr(words), "Write NAME=0.1/0.2") from None
        known = PERTURBATIONS.get(name)
        if strengths is None:
            # An unknown name is refused by the change.
            strengths = list(known.strengths) if known else [0.0]
        changes = [Change(name, strength, seed) for strength in strengths]
        if len(set(strengths)) < len(strengths) or (known and known.neutral in strengths):
            raise InputError(
                "different strengths that change something", repr(words), "The unchanged image is always read"
            )
        found[name] = changes
    if not found:
        raise InputError("at least one perturbation", "none", f"Choose among {', '.join(PERTURBATIONS)}")
    return found


def _mirrored(pixels: Pixels, rows: int, columns: int) -> Pixels:
    """Return pixels with mirrored margins of so many rows and columns on each side."""
    return np.pad(pixels, ((rows, rows), (columns, columns), (0, 0)), mode="symmetric")


def _eight_bit(values: NDArray[np.float64]) -> Pixels:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _sign(stream: np.random.Generator) -> int:
    return 1 if stream.random() < 0.5 else -1


def _rotate(pixels: Pixels, angle: float, stream: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    # The corners of the image reach at most half a diagonal from its centre.
    margin = math.ceil((math.hypot(height, width) - min(height, width)) / 2) + 1
    whole = Image.fromarray(_mirrored(pixels, margin, margin))
    turned = whole.rotate(_sign(stream) * angle, Image.Resampling.BILINEAR)
    return np.asarray(turned)[margin : margin + height, margin : margin + width]


def _shift(pixels: Pixels, share: float, stream: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    angle = stream.uniform(0, 2 * math.pi)
    length = share * min(height, width)
    down, right = round(length * math.sin(angle)), round(length * math.cos(angle))
    whole = _mirrored(pixels, abs(down), abs(right))
    top, left = abs(down) + down, abs(right) + right
    return whole[top : top + height, left : left + width]


def _scale(pixels: Pixels, factor: float, _stream: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    rows, columns = math.ceil((height - size[1]) / 2), math.ceil((width - size[0]) / 2)
    whole = _mirrored(small, rows, columns)
    return whole[:height, :width]


def _crop(pixels: Pixels, share: float, stream: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    inner = math.sqrt(share)
    left, top = stream.uniform(0, width * (1 - inner)), stream.uniform(0, height * (1 - inner))
    box = left, top, min(left + width * inner, width), min(top + height * inner, height)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image)


def _brighten(pixels: Pixels, stops: float, stream: np.random.Generator) -> Pixels:
    return _eight_bit(pixels * 2.0 ** (_sign(stream) * stops))


def _contrast(pixels: Pixels, factor: float, _stream: np.random.Generator) -> Pixels:
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(pixels)).enhance(factor))


def _turn_hue(pixels: Pixels, angle: float, stream: np.random.Generator) -> Pixels:
    colour = np.array(Image.fromarray(pixels).convert("HSV"))
    step = round(_sign(stream) * angle * 256 / 360)
    colour[..., 0] = (colour[..., 0].astype(np.int16) + step) % 256
    return np.asarray(Image.fromarray(colour, "HSV").convert("RGB"))


def _blur(pixels: Pixels, share: float, _stream: np.random.Generator) -> Pixels:
    sigma = share * min(pixels.shape[:2])
    return _eight_bit(gaussian_filter(pixels.astype(np.float64), (sigma, sigma, 0)))


def _add_noise(pixels: Pixels, sigma: float, stream: np.random.Generator) -> Pixels:
    return _eight_bit(pixels + 255 * sigma * stream.standard_normal(pixels.shape))


def _desaturate(pixels: Pixels, share: float, _stream: np.random.Generator) -> Pixels:
    return np.asarray(ImageEnhance.Color(Image.fromarray(pixels)).enhance(1 - share))


def _flip(pixels: Pixels, _strength: float, _stream: np.random.Generator) -> Pixels:
    return pixels[:, ::-1]


def _occlude(pixels: Pixels, share: float, stream: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    rows, columns = round(height * math.sqrt(share)), round(width * math.sqrt(share))
    top, left = round(stream.uniform(0, height - rows)), round(stream.uniform(0, width - columns))
    covered = pixels.copy()
    covered[top : top + rows, left : left + columns] = _eight_bit(pixels.mean(axis=(0, 1)))
    return covered


PERTURBATIONS = {
    one.name: one
    for one in (
        Perturbation("rotation", "degrees", 0, (5, 15, 45, 90, 180), (0, 180), _rotate),
        Perturbation("shift", "of the side", 0, (0.02, 0.05, 0.1, 0.2, 0.4), (0, 1), _shift),
        Perturbation("scale", "times the size", 1, (0.9, 0.8, 0.7, 0.6, 0.5), (0.05, 1), _scale),
        Perturbation("crop", "of the area kept", 1, (0.8, 0.6, 0.4, 0.2, 0.1), (0.01, 1), _crop),
        Perturbation("brightness", "stops", 0, (0.25, 0.5, 1, 1.5, 2), (0, 8), _brighten),
        Perturbation("contrast", "times the contrast", 1, (0.8, 0.6, 0.4, 0.2, 0.1), (0, 1), _contrast),
        Perturbation("hue", "degrees", 0, (15, 30, 60, 120, 180), (0, 180), _turn_hue),
        Perturbation("blur", "sigma, of the side", 0, (0.005, 0.01, 0.02, 0.04, 0.08), (0, 1), _blur),
        Perturbation("noise", "sigma, of full scale", 0, (0.02, 0.05, 0.1, 0.2, 0.4), (0, 2), _add_noise),
        Perturbation("grayscale", "of the colour lost", 0, (0.25, 0.5, 0.75, 1), (0, 1), _desaturate),
        Perturbation("flip", "left and right swapped", 0, (1,), (0, 1), _flip),
        Perturbation("occlusion", "of the area covered", 0, (0.05, 0.1, 0.2, 0.4, 0.6), (0, 1), _occlude),
    )
}
