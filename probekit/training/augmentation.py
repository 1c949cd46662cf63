"""Augmentations as data: words in a row, drawn for a whole batch at once.

All images of a batch are changed together by a few tensor operations. A resized crop is one sampling of the
batch at real-valued places; every change of colour (brightness, contrast, saturation, hue, grey) is an affine
map of red, green and blue, so that all of them together are one 3 × 3 matrix and one offset an image.

Letters: N images of H × W pixels, S the side of what comes out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probekit.errors import InputError, near_names
from probekit.seeds import random_stream

if TYPE_CHECKING:
    from torch import Tensor

# Weights of red, green and blue in grey, as in ITU-R BT.601.
GREY = (0.299, 0.587, 0.114)
# Red, green and blue → luma and the two axes of colour, of the YIQ system.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_WHOLE = (1.0, 1.0)
# How often a crop is drawn.
_TRIES = 10
# Half the window of the blur, in widths of the widest Gaussian; and the side its widths are meant for.
_WIDTHS, _REFERENCE = 2.0, 224


@dataclass(frozen=True)
class Augmentation:
    """What is done to every view of an image, in the paper's order: flip, crop, colour, grey, blur.

    Attributes:
        flip: Probability of a mirror image.
        crop: Least and largest share of the area that a resized crop keeps; (1, 1) keeps all.
        ratio: Least and largest width over height of a crop.
        jitter: Most relative change of brightness, contrast and saturation, and most turn of hue in turns.
        jitter_share: Probability of a change of colour.
        grey: Probability of a grey image.
        blur: Least and largest standard deviation of a Gaussian, in px of a 224 px side; it grows and
            shrinks with the size.
        blur_share: Probability of a blur.

    Raises:
        InputError: If a probability or range is none.
    """

    flip: float = 0.0
    crop: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_share: float = 0.0
    grey: float = 0.0
    blur: tuple[float, float] = (0.1, 2.0)
    blur_share: float = 0.0

    WORDS: ClassVar[tuple[str, ...]] = ("flip", "crop", "jitter", "grey", "blur")

    def __post_init__(self) -> None:
        for name in ("flip", "jitter_share", "grey", "blur_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"a probability for {name}", str(getattr(self, name)), "From 0 to 1")
        for name, least, most in (("crop", 0.0, 1.0), ("ratio", 0.0, math.inf), ("blur", 0.0, math.inf)):
            low, high = getattr(self, name)
            if not least < low <= high <= most:
                raise InputError(f"two rising numbers for {name}", f"{low}, {high}", "Least before largest")
        if min(self.jitter) < 0 or max(self.jitter[:3]) > 1 or self.jitter[3] > 0.5:
            raise InputError(
                "changes of colour of at most 1, of hue of at most 0.5", str(self.jitter), "0.4/0.4/0.4/0.1"
            )

    def facts(self) -> dict[str, Any]:
        """Return what it does as JSON values."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(self)}


# What each word stands for where it has no numbers of its own. Source of the numbers: MoCo v2's code, as the
# paper's ladder has them.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "flip": {"flip": 0.5},
    "crop": {"crop": (0.2, 1.0)},
    "jitter": {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_share": 0.8},
    "grey": {"grey": 0.2},
    "blur": {"blur": (0.1, 2.0), "blur_share": 0.5},
}
# The paper's ladder, each rung one word more; its first and third without the crop, and the crop alone.
LADDER: Mapping[str, tuple[str, ...]] = {
    "f": ("flip",),
    "fr": ("flip", "crop"),
    "frc": ("flip", "crop", "jitter"),
    "frcg": ("flip", "crop", "jitter", "grey"),
    "frcgb": ("flip", "crop", "jitter", "grey", "blur"),
    "crop-only": ("flip", "crop"),
    "colour-only": ("flip", "jitter", "grey", "blur"),
}


def parse_augmentation(words: str | Sequence[str]) -> Augmentation:
    """Read an augmentation from words.

    Args:
        words: A rung of ``LADDER``, ``none``, or words among ``flip``, ``crop``, ``jitter``, ``grey`` and
            ``blur``, each with numbers after ``=`` where the defaults are not wanted: ``flip=0.5``,
            ``crop=0.2/1``, ``jitter=0.4/0.4/0.4/0.1@0.8``, ``grey=0.2``, ``blur=0.1/2@0.5``, the share of
            images behind ``@``. One text may hold several, with ``+`` between.

    Raises:
        InputError: If a word is unknown, comes twice, or has numbers it cannot have.

    Examples:
        >>> parse_augmentation("fr") == parse_augmentation(["flip", "crop=0.2/1"])
        True
        >>> parse_augmentation("flip+grey=0.5").grey
        0.5
    """
    if words == "none":
        return Augmentation()
    if isinstance(words, str):
        words = LADDER.get(words) or words.split("+")
    given: dict[str, Any] = {}
    for word in words:
        name, _, numbers = word.strip().partition("=")
        if name not in DEFAULTS:
            known = [*DEFAULTS, *LADDER, "none"]
            raise InputError(
                "augmentations among " + ", ".join(known),
                repr(name),
                f"Nearest: {near_names(name, known, 1)}",
            )
        if given.keys() & DEFAULTS[name].keys():
            raise InputError("every augmentation once", f"{name!r} twice", "Keep one of the two")
        given |= DEFAULTS[name] if not numbers else _numbers(name, numbers)
    return Augmentation(**given)


def _numbers(name: str, text: str) -> dict[str, Any]:
    values, _, share = text.partition("@")
    known = DEFAULTS[name]
    expected = "=".join([name, _example(name)])
    if not re.fullmatch(r"[\d.]+(/[\d.]+)*", values) or (share and not re.fullmatch(r"[\d.]+", share)):
        raise InputError(f"numbers as in {expected}", repr(text), "Separate them by /")
    read = tuple(float(one) for one in values.split("/"))
    wanted = np.size(known[name])
    if len(read) != wanted or (share and f"{name}_share" not in known):
        raise InputError(f"{wanted} numbers, as in {expected}", repr(text), "Separate them by /")
    given: dict[str, Any] = {**known, name: read if wanted > 1 else read[0]}
    return given | ({f"{name}_share": float(share)} if share else {})


def _example(name: str) -> str:
    values = np.atleast_1d(DEFAULTS[name][name])
    share = DEFAULTS[name].get(f"{name}_share")
    return "/".join(f"{one:g}" for one in values) + (f"@{share:g}" if share else "")


def augment(pixels: Tensor, augmentation: Augmentation, size: int, *keys: int | str) -> Tensor:
    """Return one view of every image.

    Equal keys give equal views, whatever was drawn before: a training that goes on after an interruption, and
    every arm of a comparison, sees the views it would have seen.

    Args:
        pixels: (N, H, W, 3) uint8.
        augmentation: What is done.
        size: S px a side.
        *keys: What sets these draws apart, such as seed, step and view.

    Returns:
        (N, 3, S, S) float32 in [0, 1], on the device of the pixels.
    """
    draws = random_stream("augmentation", *keys)
    images = _cropped(pixels, augmentation, size, draws)
    images = _recoloured(images, augmentation, draws)
    return _blurred(images, augmentation, size, draws)


def _cropped(pixels: Tensor, augmentation: Augmentation, size: int, draws: np.random.Generator) -> Tensor:
    """Return mirrored and cropped images, resized to S × S: (N, 3, S, S) in [0, 1].

    Area and aspect are drawn as by torchvision's RandomResizedCrop: again where they do not fit, at most ten
    times; then what does not fit is shrunk.
    """
    import torch
    from torch.nn import functional as F

    n, height, width, _ = pixels.shape
    images = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
    mirrored = draws.random(n) < augmentation.flip
    area = draws.uniform(*augmentation.crop, (_TRIES, n)) * height * width
    low, high = (math.log(one) for one in augmentation.ratio)
    aspect = np.exp(draws.uniform(low, high, (_TRIES, n)))
    centres = draws.uniform(-1, 1, (2, n))
    if augmentation.crop == _WHOLE:
        half = np.ones((2, n))
        if height == width == size:
            return torch.where(_column(mirrored, images), images.flip(3), images)
    else:
        # (2, tries, N) width and height, as shares of the image's.
        sides = np.stack([np.sqrt(area * aspect) / width, np.sqrt(area / aspect) / height])
        first = (sides <= 1).all(axis=0).argmax(axis=0)
        # Half the sides of an image that reaches from −1 to 1 are shares too.
        half = np.minimum(sides[:, first, np.arange(n)], 1)
    middle = centres * (1 - half)
    half[0] *= np.where(mirrored, -1, 1)
    # (S,) centres of the pixels to be filled
    steps = (2 * np.arange(size) + 1) / size - 1
    across, down = middle[:, :, None] + half[:, :, None] * steps
    grid = torch.empty(n, size, size, 2, device=images.device)
    grid[..., 0] = torch.from_numpy(across).to(grid)[:, None, :]
    grid[..., 1] = torch.from_numpy(down).to(grid)[:, :, None]
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _recoloured(images: Tensor, augmentation: Augmentation, draws: np.random.Generator) -> Tensor:
    """Return images after one affine map of their colours, with values kept in [0, 1].

    Changes follow each other in an order drawn for the batch, greying last.
    """
    import torch

    if not augmentation.jitter_share and not augmentation.grey:
        return images
    n = len(images)
    chosen = draws.random(n) < augmentation.jitter_share
    most = np.array(augmentation.jitter)[:, None]
    factors = 1 + most[:3] * draws.uniform(-1, 1, (3, n))
    turns = most[3] * draws.uniform(-1, 1, n)
    greyed = draws.random(n) < augmentation.grey
    # (N, 3, 1) mean colour, which contrast is about
    mean = images.mean(dim=(2, 3)).cpu().double().numpy()[:, :, None]
    same, grey = np.eye(3), np.tile(GREY, (3, 1))
    matrix, offset = np.tile(same, (n, 1, 1)), np.zeros((n, 3, 1))
    for step in draws.permutation(4):
        if step == 3:
            change = _hue(np.where(chosen, turns, 0.0))
            matrix, offset = change @ matrix, change @ offset
            continue
        f = np.where(chosen, factors[step], 1.0)[:, None, None]
        if step == 0:  # brightness: f·x
            matrix, offset = f * matrix, f * offset
        elif step == 1:  # contrast: f·x + (1 − f)·mean grey
            offset = f * offset + (1 - f) * (grey @ (matrix @ mean + offset))
            matrix = f * matrix
        else:  # saturation: f·x + (1 − f)·grey(x)
            change = f * same + (1 - f) * grey
            matrix, offset = change @ matrix, change @ offset
    change = np.where(greyed[:, None, None], grey, same)
    scale, shift = (torch.from_numpy(one).to(images) for one in (change @ matrix, change @ offset))
    return torch.baddbmm(shift, scale, images.flatten(2)).clamp_(0, 1).view_as(images)


def _hue(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N, 3, 3) turns of colour about the grey axis.

    Luma stays what it is: I and Q of the YIQ system are turned in their plane.
    """
    cosine, sine, zero = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns), np.zeros_like(turns)
    rotation = np.stack([zero + 1, zero, zero, zero, cosine, -sine, zero, sine, cosine], axis=1)
    return np.asarray(np.linalg.inv(_YIQ) @ rotation.reshape(-1, 3, 3) @ _YIQ)


def _blurred(images: Tensor, augmentation: Augmentation, size: int, draws: np.random.Generator) -> Tensor:
    """Return images, some of them blurred by a Gaussian of their own width."""
    import torch

    if not augmentation.blur_share:
        return images
    chosen = np.flatnonzero(draws.random(len(images)) < augmentation.blur_share)
    sigma = draws.uniform(*augmentation.blur, len(images))[chosen] * (size / _REFERENCE)
    radius = max(1, math.ceil(_WIDTHS * augmentation.blur[1] * size / _REFERENCE))
    places = np.arange(-radius, radius + 1)
    weights = np.exp(-(places**2) / (2 * sigma[:, None] ** 2))
    w = torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).to(images)[:, :, None, None, None]
    rows = torch.from_numpy(chosen).to(images.device)
    some = images[rows]
    for axis in (2, 3):
        some = _weighted(some, w, axis)
    return images.index_copy(0, rows, some)


def _weighted(images: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Return Σ_k w_k · images moved by k along one axis; edges are repeated."""
    from torch.nn import functional as F

    radius = weights.shape[1] // 2
    padded = F.pad(images, (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius), mode="replicate")
    length = images.shape[axis]
    total = padded.narrow(axis, 0, length) * weights[:, 0]
    for k in range(1, 2 * radius + 1):
        total.addcmul_(padded.narrow(axis, k, length), weights[:, k])
    return total


def _column(values: NDArray[np.bool_], images: Tensor) -> Tensor:
    import torch

    return torch.from_numpy(values).to(images.device)[:, None, None, None]


def _plain(value: Any) -> Any:  # noqa: ANN401 - a number or several
    return list(value) if isinstance(value, tuple) else value
