"""Intervals and paired comparisons: bootstrap over test units, t over independent draws, Holm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from probekit.errors import InputError
from probekit.functional.arguments import FloatArray, check_features

LEVEL = 0.95
DRAWS = 2000
# Bytes of one chunk of the count matrix.
_CHUNK_BYTES = 2**26

# (B, M) sums of resamples → (B,) values
Statistic = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class PairedDifference:
    """How far one score is above another on the same units.

    Attributes:
        value: Mean of the differences.
        low: Lower end of its interval.
        high: Upper end.
        p_value: Two-sided, of no difference.
    """

    value: float
    low: float
    high: float
    p_value: float


def resampled_sums(columns: ArrayLike, *, draws: int, stream: np.random.Generator) -> FloatArray:
    """Return column sums of bootstrap resamples: one matrix product of counts and columns.

    Everything that is a function of sums over units (means, ratios, class means, R², binned errors) can be
    resampled this way. The draws of a stream are the same for any columns of as many units.

    Args:
        columns: (N, M), one row a unit.
        draws: B resamples of N units with replacement.
        stream: Random stream.

    Returns:
        (B, M) sums.

    Raises:
        InputError: If there is no unit, or no draw.
        NonFiniteFeatures: If a value is NaN or infinite.
    """
    values = check_features(columns, "columns").astype(np.float64, copy=False)
    if draws < 1:
        raise InputError("at least 1 draw", str(draws), f"{DRAWS} is the default")
    count = len(values)
    chunk = max(1, _CHUNK_BYTES // (8 * count))
    sums = np.empty((draws, values.shape[1]))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        drawn = stream.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        sums[start : start + size] = counts.astype(np.float64) @ values
    return sums


def bootstrap_statistic(
    columns: ArrayLike,
    statistic: Statistic,
    *,
    draws: int = DRAWS,
    stream: np.random.Generator,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic of column sums.

    Balanced accuracy, for one, is a statistic of 2·C sums: hits of every class, and units of every class.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.

    Args:
        columns: (N, M), one row a unit.
        statistic: (B, M) sums → (B,) values; NaN where a resample leaves it undefined.
        draws: B resamples.
        stream: Random stream.
        level: Coverage.

    Returns:
        Lower and upper end; NaN if no resample defines the statistic.

    Raises:
        InputError: If there is no unit or draw, or the level is not between 0 and 1.
        NonFiniteFeatures: If a value is NaN or infinite.

    Examples:
        >>> stream, hit_and_one = np.random.default_rng(0), [[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]
        >>> bootstrap_statistic(hit_and_one, lambda sums: sums[:, 0] / sums[:, 1], stream=stream)
        (0.0, 1.0)
    """
    ends = _ends(level)
    values = np.asarray(statistic(resampled_sums(columns, draws=draws, stream=stream)), np.float64)
    if values.shape != (draws,):
        raise InputError(f"a statistic of {draws} resamples", f"shape {values.shape}", "Reduce each row")
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, ends)
    return float(low), float(high)


def bootstrap_means(
    scores: ArrayLike,
    *,
    draws: int = DRAWS,
    stream: np.random.Generator,
    level: float = LEVEL,
) -> tuple[FloatArray, FloatArray]:
    """Return percentile intervals of the means of columns, whose units are resampled together.

    Args:
        scores: (N, M), one row a unit.
        draws: B resamples.
        stream: Random stream.
        level: Coverage.

    Returns:
        (M,) lower and (M,) upper ends.

    Raises:
        InputError: If there is no unit or draw, or the level is not between 0 and 1.
        NonFiniteFeatures: If a score is NaN or infinite.

    Examples:
        >>> low, high = bootstrap_means(np.ones((10, 1)), draws=100, stream=np.random.default_rng(0))
        >>> low.tolist(), high.tolist()
        ([1.0], [1.0])
    """
    ends = _ends(level)
    low, high = np.quantile(resampled_sums(scores, draws=draws, stream=stream), ends, axis=0)
    return low / len(np.asarray(scores)), high / len(np.asarray(scores))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    draws: int = DRAWS,
    stream: np.random.Generator,
    level: float = LEVEL,
) -> PairedDifference:
    """Compare two scores of the same units by resampling their differences.

    The interval is the percentile bootstrap of the mean difference. The p value is twice the share of
    resamples on the far side of 0, each side counted with one more: it agrees with the interval, and is at
    least 2/(B + 1), so a comparison of many pairs needs more draws (Davison and Hinkley, Bootstrap Methods
    and their Application (1997), section 4.2).

    Args:
        a: (N,) scores.
        b: (N,) scores of the same units.
        draws: B resamples.
        stream: Random stream.
        level: Coverage.

    Raises:
        InputError: If the scores are not aligned, or a setting is out of range.
        NonFiniteFeatures: If a score is NaN or infinite.

    Examples:
        >>> paired_difference([1, 1], [1, 1], draws=10, stream=np.random.default_rng(0))
        PairedDifference(value=0.0, low=0.0, high=0.0, p_value=1.0)
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise InputError(
            "two scores of the same units", f"shapes {first.shape} and {second.shape}", "Align them"
        )
    ends, difference = _ends(level), first - second
    sums = resampled_sums(difference[:, None], draws=draws, stream=stream)[:, 0]
    low, high = np.quantile(sums, ends) / len(difference)
    # A resample at 0 counts on both sides.
    far = min((sums <= 0).sum(), (sums >= 0).sum())
    p = min(1.0, 2 * (far + 1) / (draws + 1))
    return PairedDifference(float(difference.mean()), float(low), float(high), float(p))


def adjust_holm(p_values: ArrayLike) -> FloatArray:
    """Return Holm's adjusted p values, in the order given.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).

    Raises:
        InputError: If a value is not between 0 and 1.

    Examples:
        >>> adjust_holm([0.01, 0.04, 0.03]).round(2).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise InputError("a list of p values from 0 to 1", repr(p_values), "Leave undefined ones out")
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def t_interval(values: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Return the t-interval of the mean of independent draws; NaN ends for a single one.

    Raises:
        InputError: If the level is not between 0 and 1.

    Examples:
        >>> [round(end, 3) for end in t_interval([1.0, 2.0, 3.0])]
        [-0.484, 4.484]
    """
    upper = _ends(level)[1]
    sample = np.asarray(values, np.float64).ravel()
    if len(sample) < 2:
        return float("nan"), float("nan")
    half = stdtrit(len(sample) - 1, upper) * sample.std(ddof=1) / np.sqrt(len(sample))
    return float(sample.mean() - half), float(sample.mean() + half)


def welch_interval(x: ArrayLike, y: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of mean(x) − mean(y) of independent draws with variances of their own.

    Source: Welch, The Generalization of Student's Problem when Several Different Population Variances Are
    Involved (Biometrika, 1947).

    Args:
        x: (n,) draws.
        y: (m,) draws.
        level: Coverage.

    Returns:
        Ends; NaN with fewer than two draws on a side.

    Raises:
        InputError: If the level is not between 0 and 1.

    Examples:
        >>> [round(end, 3) for end in welch_interval([1.0, 2.0, 3.0], [0.0, 0.5])]
        [-0.419, 3.919]
    """
    upper = _ends(level)[1]
    one, other = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
    if min(len(one), len(other)) < 2:
        return float("nan"), float("nan")
    a, b = one.var(ddof=1) / len(one), other.var(ddof=1) / len(other)
    difference = float(one.mean() - other.mean())
    if a + b == 0:
        return difference, difference
    # (a + b)² / (a²/(n − 1) + b²/(m − 1)) degrees of freedom
    freedom = (a + b) ** 2 / (a**2 / (len(one) - 1) + b**2 / (len(other) - 1))
    half = float(stdtrit(freedom, upper) * np.sqrt(a + b))
    return difference - half, difference + half


def ratio_interval(x: ArrayLike, y: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of mean(x) / mean(y) from paired draws, by Fieller's theorem.

    Ends are the ratios r at which the mean of x − r·y lies on the edge of its t-interval around 0. Source:
    Fieller, Some Problems in Interval Estimation (Journal of the Royal Statistical Society B, 1954).

    Args:
        x: (n,) draws.
        y: (n,) draws of the same units.
        level: Coverage.

    Returns:
        Ends; NaN for a single pair, or where the interval of mean(y) holds 0, so that any ratio is possible.

    Raises:
        InputError: If the level is not between 0 and 1, or lengths differ.

    Examples:
        >>> [round(end, 3) for end in ratio_interval([1.0, 1.1, 0.9, 1.0], [2.0, 2.0, 2.1, 1.9])]
        [0.418, 0.59]
    """
    upper = _ends(level)[1]
    over, under = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
    if len(over) != len(under):
        raise InputError("as many values above as below", f"{len(over)} and {len(under)}", "Pair them")
    count = len(over)
    if count < 2:
        return float("nan"), float("nan")
    share = float(stdtrit(count - 1, upper)) ** 2 / count
    spread = np.cov(over, under)
    # (x̄ − r·ȳ)² ≤ t²/n · (s_xx − 2r·s_xy + r²·s_yy): a·r² − 2b·r + c ≤ 0
    a = under.mean() ** 2 - share * spread[1, 1]
    b = over.mean() * under.mean() - share * spread[0, 1]
    c = over.mean() ** 2 - share * spread[0, 0]
    if a <= 0:
        return float("nan"), float("nan")
    half = np.sqrt(max(b**2 - a * c, 0.0))
    return float((b - half) / a), float((b + half) / a)


def jackknife_interval(value: float, without: FloatArray, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of a statistic from its values without each of C units.

    θ ± t(C − 1)·√((C − 1)/C · Σ (θ₍₋c₎ − θ₍·₎)²)

    Source: Efron, The Jackknife, the Bootstrap and Other Resampling Plans (1982), section 3.

    Args:
        value: θ of all units, such as classes or groups of images.
        without: (C,) θ₍₋c₎; NaN where leaving out that unit leaves it undefined.
        level: Coverage.

    Returns:
        Ends; NaN with fewer than three units, or where one of ``without`` is undefined.

    Examples:
        >>> jackknife_interval(2.0, np.array([2.5, 2.0, 1.5]))[0] < 2.0
        True
    """
    count = len(without)
    if count < 3 or not np.isfinite(without).all() or not np.isfinite(value):
        return float("nan"), float("nan")
    error = np.sqrt((count - 1) / count * np.square(without - without.mean()).sum())
    half = float(stdtrit(count - 1, _ends(level)[1]) * error)
    return value - half, value + half


def _ends(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise InputError("a level between 0 and 1", str(level), "0.95 is the default")
    return (1 - level) / 2, (1 + level) / 2
