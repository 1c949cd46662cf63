"""The preprocessings in common use, one factor at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from probekit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

Triple = tuple[float, float, float]

_CAFFE: Triple = (123.68 / 255, 116.779 / 255, 103.939 / 255)
_BYTE: Triple = (1 / 255, 1 / 255, 1 / 255)
# What values are scaled to, by the name it goes by.
SCALES: dict[str, tuple[Triple, Triple]] = {
    "ImageNet's mean and std": (IMAGENET_MEAN, IMAGENET_STD),
    "-1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "CLIP's mean and std": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "CIFAR-10's mean and std": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "0 to 255, mean taken off": (_CAFFE, _BYTE),
    "0 to 255": ((0.0, 0.0, 0.0), _BYTE),
}
# Input size by short side before the crop.
CROP_FRACTIONS = (0.875, 0.95, 1.0)


@dataclass(frozen=True)
class Candidate:
    """One way to prepare images.

    Attributes:
        preprocessing: Size, resize, scaling and interpolation.
        blue_first: Whether the channels come as blue, green, red, as OpenCV reads files.
    """

    preprocessing: Preprocessing
    blue_first: bool = False

    def __str__(self) -> str:
        """Say it on one line."""
        return f"{self.preprocessing}{', blue first' if self.blue_first else ''}"

    def change(self, stated: Preprocessing) -> str:
        """Say what is other than stated, in words.

        Examples:
            >>> half = (0.5, 0.5, 0.5)
            >>> Candidate(Preprocessing(224, 256, half, half)).change(Preprocessing(224, 256))
            '-1 to 1'
        """
        mine, words = self.preprocessing, []
        if (mine.mean, mine.std) != (stated.mean, stated.std):
            names = [name for name, scale in SCALES.items() if scale == (mine.mean, mine.std)]
            words.append(names[0] if names else "another mean and std")
        words += ["blue first"] if self.blue_first else []
        words += [mine.interpolation] if mine.interpolation != stated.interpolation else []
        words += [f"resize {mine.resize}"] if mine.resize != stated.resize else []
        return ", ".join(words) or "as stated"

    def keys(self, stated: Preprocessing) -> str:
        """Write the keys of the model grammar that turn the stated preprocessing into this one.

        Examples:
            >>> stated = Preprocessing(224, 256)
            >>> Candidate(Preprocessing(224, 224, interpolation="bilinear")).keys(stated)
            'resize=224,interpolation=bilinear'
        """
        words = []
        for key in ("resize", "mean", "std", "interpolation"):
            value = getattr(self.preprocessing, key)
            if value != getattr(stated, key):
                written = "/".join(f"{one:.6g}" for one in value) if isinstance(value, tuple) else value
                words.append(f"{key}={written}")
        return ",".join(words)


def vary_scale(current: Candidate) -> list[Candidate]:
    """Return the candidate with every common scaling and the other order of channels."""
    scaled = [replace(current.preprocessing, mean=mean, std=std) for mean, std in SCALES.values()]
    return _others(current, [Candidate(one, blue) for blue in (False, True) for one in scaled])


def vary_interpolation(current: Candidate) -> list[Candidate]:
    """Return the candidate with the other common interpolation."""
    words = ("bilinear", "bicubic")
    return _others(
        current,
        [
            replace(current, preprocessing=replace(current.preprocessing, interpolation=word))
            for word in words
        ],
    )


def vary_crop(current: Candidate) -> list[Candidate]:
    """Return the candidate with the other common crops, at the same input size."""
    size = current.preprocessing.size
    resizes = [int(size / fraction) for fraction in CROP_FRACTIONS]
    return _others(
        current,
        [replace(current, preprocessing=replace(current.preprocessing, resize=one)) for one in resizes],
    )


# Factor → what varies it; in the order in which they matter.
FACTORS: dict[str, Callable[[Candidate], list[Candidate]]] = {
    "scale": vary_scale,
    "interpolation": vary_interpolation,
    "crop": vary_crop,
}


def _others(current: Candidate, candidates: list[Candidate]) -> list[Candidate]:
    return [one for one in dict.fromkeys(candidates) if one != current]
