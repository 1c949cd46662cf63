"""How a backbone's images are prepared: timm's facts, the user's keys, and what was assumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from probekit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, Preprocessing
from probekit.errors import InputError

# What most ImageNet training ends with; assumed where nothing better is known, and said so.
ASSUMED = Preprocessing(size=224, resize=256)
# The keys of the model grammar that say how images are prepared.
STATED = ("size", "resize", "mean", "std", "interpolation")


def read_settings(settings: Mapping[str, Any]) -> tuple[Preprocessing, tuple[str, ...]]:
    """Turn timm's facts on an input into a Preprocessing.

    timm resizes the short side to ⌊size / crop_pct⌋.

    Args:
        settings: A timm ``pretrained_cfg``: input_size, crop_pct, mean, std, interpolation, crop_mode.

    Returns:
        The preprocessing, and notes on what it does otherwise than timm.

    Raises:
        InputError: If the input has not three channels.

    Examples:
        >>> print(read_settings({"input_size": (3, 160, 160), "crop_pct": 0.8, "mean": (0.5, 0.5, 0.5)})[0])
        resize 200 bicubic, crop 160, mean 0.5/0.5/0.5, std 0.229/0.224/0.225
    """
    channels, *sides = settings.get("input_size") or (3, 224, 224)
    if channels != 3:
        raise InputError(
            "an architecture for images of three channels", f"{channels} channels", "Choose another"
        )
    size = max(sides)
    resize = max(size, math.floor(size / (settings.get("crop_pct") or 0.875)))
    interpolation = settings.get("interpolation") or "bicubic"
    notes = []
    if len(set(sides)) > 1:
        notes.append(f"input made square: {size} instead of {'×'.join(map(str, sides))} px")
    if settings.get("crop_mode", "center") not in {None, "center"}:
        notes.append(f"the centre is cropped, where timm would {settings['crop_mode']}")
    if interpolation not in INTERPOLATIONS:
        notes.append(f"interpolation bicubic instead of {interpolation}")
        interpolation = "bicubic"
    mean, std = settings.get("mean") or IMAGENET_MEAN, settings.get("std") or IMAGENET_STD
    return Preprocessing(size, resize, tuple(mean), tuple(std), interpolation), tuple(notes)


def adjust(base: Preprocessing, keys: Mapping[str, Any]) -> Preprocessing:
    """Apply the keys size, resize, mean, std and interpolation.

    ``size`` alone scales the resize by the same ratio.

    Examples:
        >>> print(adjust(ASSUMED, {"size": 112}))
        resize 128 bicubic, crop 112, mean 0.485/0.456/0.406, std 0.229/0.224/0.225
    """
    given = {key: keys[key] for key in STATED if key in keys}
    if "size" in given and "resize" not in given:
        given["resize"] = max(given["size"], round(base.resize * given["size"] / base.size))
    return replace(base, **given)
