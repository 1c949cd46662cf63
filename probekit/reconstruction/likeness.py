"""How near images made from features come to the true ones: scores, intervals, nulls, what is lost where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from probekit.errors import InputError
from probekit.functional.image_quality import (
    gradient_deviation,
    peak_signal_to_noise,
    structural_similarity,
)
from probekit.functional.intervals import bootstrap_statistic, t_interval
from probekit.seeds import random_stream

# Cyclic orders of the other images behind a null, and resamples of images behind a single draw's interval.
OTHERS, RESAMPLES = 20, 2000
PER_IMAGE = ("psnr", "ssim", "gradient_deviation", "image_r2")
PERCEPTUAL = "perceptual_distance"
REGIONS = ("foreground_error", "background_error", "background_ratio")

Array = NDArray[np.float64]


class Perceptual(NamedTuple):
    """A distance of images by what some network says of them.

    Attributes:
        name: What goes to the params of its rows, such as the network and its layers.
        distance: From two stacks (N, H, W, 3) in [0, 1] to (N,) distances, lower is nearer.
    """

    name: str
    distance: Callable[[NDArray[Any], NDArray[Any]], ArrayLike]


@dataclass(frozen=True, eq=False)
class Likeness:
    """How near made images come to true ones.

    Attributes:
        rows: One a metric: value, interval, null, status, params.
        scores: Column ``id``, and of every metric by image its mean over draws.
        error_maps: (N, H, W) squared error, mean over colours and draws.
        structure_maps: (N, H − 10, W − 10) SSIM, mean over draws; None for images under 11 pixels.
    """

    rows: list[dict[str, Any]]
    scores: pd.DataFrame
    error_maps: Array
    structure_maps: Array | None


def score_images(
    made: NDArray[Any],
    true: NDArray[Any],
    *,
    ids: Sequence[str],
    mean_image: NDArray[Any],
    inside: NDArray[Any] | None = None,
    perceptual: Perceptual | None = None,
    uninformed: NDArray[Any] | None = None,
    unit: str = "seeds",
    seed: int = 0,
) -> Likeness:
    """Score images that were made from features against the true ones.

    A value is the mean over images and draws; of regions it is a share of all images' squared error, as in
    ``decode_pixels``. Its interval is a t-interval over draws, the images fixed; of a single draw it is a
    bootstrap over the images. Its null is the score of the first draw against other images of the set: of up
    to 20 cyclic orders, in each of which every image meets another one, mean and range; or that of images
    made by what was fitted to permuted images. Errors of regions have the analytic null 1, the error of the
    mean image.

    Args:
        made: (S, N, H, W, 3) in [0, 1], S draws of what is random in their making; (N, H, W, 3) for one.
        true: (N, H, W, 3) in [0, 1].
        ids: (N,) of the images.
        mean_image: (H, W, 3) in [0, 1], of the images that were there to learn from.
        inside: (N, h, w) share of each pixel or cell that is foreground; h divides H, and w W.
        perceptual: A further distance.
        uninformed: (B, N, H, W, 3) in [0, 1], made by what was fitted to permuted images; None takes others.
        unit: What a draw is, for the kind of the interval.
        seed: Fixes the other images and the resamples.

    Raises:
        InputError: If shapes do not fit, or values lie outside [0, 1].
        NonFiniteFeatures: If a pixel is NaN or infinite.

    Examples:
        >>> true = np.random.default_rng(0).random((4, 32, 32, 3))
        >>> found = score_images(0.5 + (true - 0.5) / 2, true, ids=list("abcd"), mean_image=true.mean(axis=0))
        >>> [row["metric"] for row in found.rows]
        ['psnr', 'ssim', 'gradient_deviation', 'image_r2']
        >>> round(found.rows[0]["value"]), round(found.rows[0]["null"])
        (17, 10)
    """
    draws = np.asarray(made, np.float64)
    draws = draws[None] if draws.ndim == 4 else draws
    blind = None if uninformed is None else np.asarray(uninformed, np.float64)
    truth, mean = np.asarray(true, np.float64), np.asarray(mean_image, np.float64)
    _check(draws, truth, mean, ids)
    scorers = _scorers(mean, perceptual)
    orders = other_images(len(truth), seed=seed)
    rows, scores = [], {"id": list(ids)}
    for metric, score in scorers.items():
        params = {"network": perceptual.name} if perceptual and metric == PERCEPTUAL else {}
        least = _LEAST.get(metric, 1)
        if min(truth.shape[1:3]) < least:
            rows.append({"metric": metric, "status": f"needs images of {least} pixels a side"})
            continue
        found = np.stack([score(one, truth) for one in draws])
        if blind is None:
            null = [score(draws[0], truth[order]).mean() for order in orders]
            kind = f"other images,{len(null)}"
        else:
            null, kind = [score(one, truth).mean() for one in blind], f"permuted,{len(blind)}"
        row = _row(metric, found, unit, seed)
        if "value" in row and null and np.isfinite(null).all():
            row |= {"null": float(np.mean(null)), "null_low": float(min(null)), "null_high": float(max(null))}
            row["null_kind"] = kind
        rows.append(row | {"params": params})
        scores[metric] = found.mean(axis=0).tolist()
    errors = np.square(draws - truth).mean(axis=4)
    if inside is not None:
        rows += region_rows(errors, np.square(truth - mean).mean(axis=3), inside, unit=unit, seed=seed)
    structure = None
    if min(truth.shape[1:3]) >= _LEAST["ssim"]:
        structure = np.mean([structural_similarity(one, truth)[1] for one in draws], axis=0)
    return Likeness(rows, pd.DataFrame(scores), errors.mean(axis=0), structure)


def image_r2(made: ArrayLike, true: ArrayLike, mean_image: ArrayLike) -> Array:
    """Return 1 − Σ(x − x̂)² / Σ(x − x̄)² of each image, x̄ the mean image: 1 is exact, 0 the mean image.

    Args:
        made: (N, H, W, 3) x̂.
        true: (N, H, W, 3) x.
        mean_image: (H, W, 3) x̄.

    Returns:
        (N,) values; NaN for an image that is the mean image.

    Examples:
        >>> true = np.ones((1, 2, 2, 3))
        >>> image_r2(true / 2, true, np.zeros((2, 2, 3))).tolist()
        [0.75]
    """
    x, found = np.asarray(true, np.float64), np.asarray(made, np.float64)
    error = np.square(x - found).sum(axis=(1, 2, 3))
    spread = np.square(x - np.asarray(mean_image, np.float64)).sum(axis=(1, 2, 3))
    return np.asarray(1 - np.divide(error, spread, out=np.full_like(error, np.nan), where=spread > 0))


def other_images(count: int, *, seed: int, most: int = OTHERS) -> NDArray[np.intp]:
    """Return orders in which every image stands at another one's place, no pair twice.

    Steps along one random circle of all images.

    Args:
        count: N images.
        seed: Fixes the circle.
        most: Orders at most.

    Returns:
        (min(most, N − 1), N) rows.

    Examples:
        >>> orders = other_images(5, seed=0)
        >>> orders.shape, bool((orders == np.arange(5)).any())
        ((4, 5), False)
    """
    circle = random_stream("other images", seed).permutation(count)
    steps = np.unique(np.linspace(1, count - 1, min(most, count - 1)).round().astype(int))
    orders = np.empty((len(steps), count), np.intp)
    for order, step in zip(orders, steps, strict=True):
        order[circle] = np.roll(circle, -step)
    return orders


_LEAST = {"ssim": 11, "gradient_deviation": 17}
_Score = Callable[[Array, Array], Array]


def _scorers(mean: Array, perceptual: Perceptual | None) -> dict[str, _Score]:
    found: dict[str, _Score] = {
        "psnr": peak_signal_to_noise,
        "ssim": lambda made, true: structural_similarity(made, true)[0],
        "gradient_deviation": gradient_deviation,
        "image_r2": lambda made, true: image_r2(made, true, mean),
    }
    if perceptual is not None:
        found[PERCEPTUAL] = lambda made, true: np.asarray(perceptual.distance(made, true), np.float64)
    return found


def _row(metric: str, found: Array, unit: str, seed: int) -> dict[str, Any]:
    """Return the row of a score by image, (S, N) values, without its null."""
    row: dict[str, Any] = {"metric": metric, "n": found.shape[1]}
    if not np.isfinite(found).all():
        same = "an image is equal to the true one" if metric == "psnr" else "undefined for an image"
        return row | {"status": f"{same}: no mean"}
    row["value"] = float(found.mean())
    low, high = _interval(found, seed)
    if np.isfinite(low):
        row |= {"ci_low": low, "ci_high": high, "ci_kind": _kind(len(found), unit)}
    return row


def _interval(found: Array, seed: int) -> tuple[float, float]:
    if len(found) > 1:
        return t_interval(found.mean(axis=1))
    if found.shape[1] < 2:
        return float("nan"), float("nan")
    columns = np.stack([found[0], np.ones(found.shape[1])], axis=1)
    stream = random_stream("made images", seed)
    return bootstrap_statistic(columns, lambda sums: sums[:, 0] / sums[:, 1], draws=RESAMPLES, stream=stream)


def _kind(draws: int, unit: str) -> str:
    return f"t,{unit}" if draws > 1 else "bootstrap,test units"


def region_rows(
    errors: Array, spread: Array, inside: NDArray[Any], *, unit: str = "seeds", seed: int = 0
) -> list[dict[str, Any]]:
    """Return the errors of foreground and background, and their ratio.

    Args:
        errors: (S, N, H, W) squared errors of made images.
        spread: (N, H, W) those of the mean image.
        inside: (N, h, w) share of each pixel or cell that is foreground; h divides H, and w W.
        unit: What a draw is, for the kind of the interval.
        seed: Fixes the resamples.

    Raises:
        InputError: If shapes do not fit.
    """
    shares = np.asarray(inside, np.float64)
    height, width = spread.shape[1] // shares.shape[1], spread.shape[2] // shares.shape[2]
    shares = shares.repeat(height, axis=1).repeat(width, axis=2)
    if shares.shape != spread.shape:
        raise InputError(
            f"shares of foreground of {len(spread)} images, in cells of whole pixels",
            str(np.asarray(inside).shape),
            "Make them with `foreground`, of a side that divides the images' side",
        )
    # (S, N, 4): error and spread of the foreground, then of the background
    columns = np.stack(
        [
            np.broadcast_to((weight * of).sum(axis=(-2, -1)), errors.shape[:2])
            for weight in (shares, 1 - shares)
            for of in (errors, spread)
        ],
        axis=-1,
    )
    rows = []
    for metric, statistic in region_scores().items():
        found = statistic(columns.sum(axis=1))
        params = {"foreground": float(shares.mean())}
        row: dict[str, Any] = {"metric": metric, "n": len(spread), "params": params}
        if not np.isfinite(found).all():
            rows.append(row | {"status": "no image has both a foreground and a background"})
            continue
        low, high = t_interval(found)
        if len(found) == 1 and len(spread) > 1:
            stream = random_stream("made images", seed)
            low, high = bootstrap_statistic(columns[0], statistic, draws=RESAMPLES, stream=stream)
        if np.isfinite(low):
            row |= {"ci_low": low, "ci_high": high, "ci_kind": _kind(len(found), unit)}
        rows.append(row | {"value": float(found.mean()), "null": 1.0, "null_kind": "analytic"})
    return rows


def region_scores() -> Mapping[str, Callable[[Array], Array]]:
    """Return metric → function of (B, 4) sums: error and spread of the foreground, then of the background."""

    def quotient(error: Array, spread: Array) -> Array:
        return np.divide(error, spread, out=np.full_like(error, np.nan), where=spread > 0)

    def foreground(sums: Array) -> Array:
        return quotient(sums[:, 0], sums[:, 1])

    def background(sums: Array) -> Array:
        return quotient(sums[:, 2], sums[:, 3])

    def ratio(sums: Array) -> Array:
        return quotient(background(sums), foreground(sums))

    return dict(zip(REGIONS, (foreground, background, ratio), strict=True))


def _check(draws: Array, truth: Array, mean: Array, ids: Sequence[str]) -> None:
    fits = truth.ndim == 4 and draws.ndim == 5 and len(draws) > 0 and draws.shape[1:] == truth.shape
    if not fits or mean.shape != truth.shape[1:] or len(ids) != len(truth):
        raise InputError(
            "made images (S, N, H, W, 3), true ones (N, H, W, 3), N ids and a mean image (H, W, 3)",
            f"{draws.shape}, {truth.shape}, {len(ids)} ids and {mean.shape}",
            "Give all of them the size of the true images",
        )
