"""Does a map point at the thing? Scores of maps against the part of each image that holds it.

Letters: N images of H × W pixels, a the map of one image, M the pixels that are inside.

A pixel is inside where at least half of it is. Nothing can be scored where no pixel is inside, or all are:
every score of such an image is NaN. What a map leaves open, two pixels of equal value, is scored as the
mean over all ways to order them, so that a constant map scores what pointing at random does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt

from probekit.errors import InputError, NonFiniteFeatures
from probekit.functional.arguments import FloatArray

_INSIDE = 0.5
# Standard deviation of the centred Gaussian, as a share of the side.
_SPREAD = 0.25

Inside = NDArray[np.bool_]


def pointing_game(maps: ArrayLike, masks: ArrayLike, *, tolerance_px: float = 0.0) -> FloatArray:
    """Return whether the highest value of each map lies inside: 1 or 0, between where several are highest.

    Source: Zhang, Bargal, Lin, Brandt, Shen and Sclaroff, Top-down Neural Attention by Excitation Backprop,
    IJCV 126 (2018), section 4.1, where a hit may miss by 15 pixels of images 224 to 500 wide.

    Args:
        maps: (N, H, W).
        masks: (N, H, W) share of each pixel that is inside, in [0, 1].
        tolerance_px: How far from the nearest pixel that is inside still counts, between centres of pixels.

    Returns:
        (N,) in [0, 1]; NaN where no pixel is inside, or all are.

    Raises:
        InputError: If shapes differ, shares lie outside [0, 1], or the tolerance is negative.
        NonFiniteFeatures: If a value is NaN or infinite.

    Examples:
        >>> masks = np.zeros((1, 4, 4)); masks[0, 0, 0] = 1
        >>> peak = np.zeros((1, 4, 4)); peak[0, 0, 2] = 1
        >>> pointing_game(peak, masks).tolist(), pointing_game(peak, masks, tolerance_px=2).tolist()
        ([0.0], [1.0])
        >>> pointing_game(np.zeros((1, 4, 4)), masks).tolist()
        [0.0625]
    """
    a, shares = _checked(maps, masks)
    if not tolerance_px >= 0:
        raise InputError("a tolerance of at least 0 px", str(tolerance_px), "0 is the default")
    inside = shares >= _INSIDE
    wide = inside
    if tolerance_px > 0:
        near = [distance_transform_edt(~one) <= tolerance_px if one.any() else one for one in inside]
        wide = np.stack(near) if near else inside
    highest = a == a.max(axis=(1, 2), keepdims=True, initial=-np.inf)
    hits = (highest & wide).sum(axis=(1, 2)) / highest.sum(axis=(1, 2))
    return _defined(hits, inside)


def energy_inside(maps: ArrayLike, masks: ArrayLike) -> FloatArray:
    """Return which share of the positive values of each map lies inside: Σ_M a⁺ / Σ a⁺.

    Pixels that are partly inside count in part. Source: relevance mass accuracy of Arras, Osman and Samek,
    CLEVR-XAI: A benchmark dataset for the ground truth evaluation of neural network explanations, Information
    Fusion 81 (2022), section 3.3.

    Args:
        maps: (N, H, W).
        masks: (N, H, W) share of each pixel that is inside, in [0, 1].

    Returns:
        (N,) in [0, 1]; NaN where no pixel is inside, or all are, or where no value is positive.

    Raises:
        InputError: If shapes differ, or shares lie outside [0, 1].
        NonFiniteFeatures: If a value is NaN or infinite.

    Examples:
        >>> energy_inside([[[3.0, 1.0], [0.0, -9.0]]], [[[1, 0], [0, 0]]]).tolist()
        [0.75]
    """
    a, shares = _checked(maps, masks)
    # Divided by the largest first: sums of tiny or huge values would leave the range of floats.
    top = a.max(axis=(1, 2), keepdims=True, initial=0.0)
    positive = np.maximum(a, 0.0) / np.where(top > 0, top, 1.0)
    total = positive.sum(axis=(1, 2))
    # Σ_M a⁺ / Σ a⁺
    energy = np.divide(
        (positive * shares).sum(axis=(1, 2)), total, out=np.full(len(a), np.nan), where=total > 0
    )
    return _defined(energy, shares >= _INSIDE)


def relevance_rank(maps: ArrayLike, masks: ArrayLike) -> FloatArray:
    """Return which share of the |M| highest values of each map lies inside.

    Source: relevance rank accuracy of Arras, Osman and Samek (2022), section 3.3; see ``energy_inside``.

    Args:
        maps: (N, H, W).
        masks: (N, H, W) share of each pixel that is inside, in [0, 1].

    Returns:
        (N,) in [0, 1]; NaN where no pixel is inside, or all are.

    Raises:
        InputError: If shapes differ, or shares lie outside [0, 1].
        NonFiniteFeatures: If a value is NaN or infinite.

    Examples:
        >>> relevance_rank([[[4, 3], [2, 1]]], [[[1, 0], [1, 0]]]).tolist()
        [0.5]
    """
    a, shares = _checked(maps, masks)
    inside = shares >= _INSIDE
    found = [_rank(values.ravel(), own.ravel()) for values, own in zip(a, inside, strict=True)]
    return _defined(np.array(found, np.float64), inside)


def best_threshold_iou(maps: ArrayLike, masks: ArrayLike) -> FloatArray:
    """Return the largest intersection over union of M and the pixels above a threshold, over all thresholds.

    The lowest threshold takes the whole image, so that no map scores less than the share of M. Source: the
    best threshold of each image, as MaxBoxAcc and PxAP sweep it; Choe, Oh, Lee, Chun, Akata and Shim,
    Evaluating Weakly Supervised Object Localization Methods Right (CVPR 2020), section 4.

    Args:
        maps: (N, H, W).
        masks: (N, H, W) share of each pixel that is inside, in [0, 1].

    Returns:
        (N,) in (0, 1]; NaN where no pixel is inside, or all are.

    Raises:
        InputError: If shapes differ, or shares lie outside [0, 1].
        NonFiniteFeatures: If a value is NaN or infinite.

    Examples:
        >>> best_threshold_iou([[[4, 3], [2, 1]]], [[[1, 0], [1, 0]]]).round(3).tolist()
        [0.667]
    """
    a, shares = _checked(maps, masks)
    inside = shares >= _INSIDE
    found = [_iou(values.ravel(), own.ravel()) for values, own in zip(a, inside, strict=True)]
    return _defined(np.array(found, np.float64), inside)


def centred_gaussian(height: int, width: int) -> FloatArray:
    """Return the map of somebody who knows only that things stand in the middle; its highest value is 1.

    exp(−½·((y/σ_y)² + (x/σ_x)²)) from the centre, σ a quarter of each side.

    Returns:
        (H, W).

    Raises:
        InputError: If a side is shorter than a pixel.

    Examples:
        >>> centred_gaussian(1, 3).round(3).tolist()
        [[0.411, 1.0, 0.411]]
    """
    if min(height, width) < 1:
        raise InputError("sides of at least 1 px", f"{height} × {width}", "Give the size of the images")
    down, across = (
        np.exp(-0.5 * np.square(_from_centre(side) / (_SPREAD * side))) for side in (height, width)
    )
    return np.asarray(np.outer(down, across))


def _from_centre(side: int) -> FloatArray:
    return np.arange(side, dtype=np.float64) + 0.5 - side / 2


def _rank(values: FloatArray, inside: Inside) -> float:
    """Return the share of the highest values that is inside, ties at the border taken at random."""
    count = int(inside.sum())
    if not 0 < count < len(values):
        return float("nan")
    border = np.partition(values, len(values) - count)[len(values) - count]
    above, level = values > border, values == border
    taken = (above & inside).sum() + (count - above.sum()) * (level & inside).sum() / level.sum()
    return float(taken / count)


def _iou(values: FloatArray, inside: Inside) -> float:
    count = int(inside.sum())
    if not 0 < count < len(values):
        return float("nan")
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    # Equal values pass a threshold together.
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    both = np.cumsum(inside[order])[ends]
    # |A ∩ M| / (|A| + |M| − |A ∩ M|)
    return float((both / (ends + 1 + count - both)).max())


def _defined(scores: FloatArray, inside: Inside) -> FloatArray:
    """Leave out images of which nothing, or everything, is inside."""
    some = inside.any(axis=(1, 2)) & ~inside.all(axis=(1, 2))
    return np.where(some, scores, np.nan)


def _checked(maps: ArrayLike, masks: ArrayLike) -> tuple[FloatArray, FloatArray]:
    a, shares = np.asarray(maps, np.float64), np.asarray(masks, np.float64)
    if a.ndim != 3 or a.shape != shares.shape or 0 in a.shape[1:]:
        raise InputError(
            "maps and masks of one shape (N, H, W)",
            f"{a.shape} and {shares.shape}",
            "Resize maps to the size of the masks first",
        )
    if not np.isfinite(a).all():
        raise NonFiniteFeatures("finite maps", "NaN or infinity", "Look at the features behind the map")
    if not ((shares >= 0) & (shares <= 1)).all():
        raise InputError("shares of pixels in [0, 1]", "others, or NaN", "Divide 8-bit masks by 255")
    return a, shares
