"""How many directions features use: measures of the spectrum of their covariance, and of neighbour distances.

Letters: N rows, D features, λ eigenvalues of the covariance by falling size, σ singular values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from probekit.errors import InputError
from probekit.functional.arguments import FloatArray, check_features
from probekit.functional.moments import Moments

# Eigenvalues below this share of the largest are rounding.
_ROUNDING = 1e-12
# RankMe's ε, and the ranks over which the decay of eigenvalues is fitted unless asked otherwise.
_RANKME_EPSILON = 1e-7
WINDOW = (11, 500)
_KEPT_SHARE = 0.9


def covariance_spectrum(moments: Moments) -> FloatArray:
    """Return the (D,) eigenvalues of the covariance (divided by N), the largest first, none below 0.

    Raises:
        InputError: If the statistics hold no products.
    """
    return _falling(moments.total_scatter / moments.count)


def effective_rank(spectrum: ArrayLike) -> float:
    """Return exp of the entropy of λ/Σλ: how many directions carry the variance, 1 … D.

    Source: Roy and Vetterli, The Effective Rank (EUSIPCO 2007), of the covariance.

    Examples:
        >>> round(effective_rank([1.0, 1.0, 1.0, 0.0]), 6)
        3.0
    """
    return float(np.exp(_entropy(_check_spectrum(spectrum))))


def participation_ratio(spectrum: ArrayLike) -> float:
    """Return (Σλ)²/Σλ², 1 … D: like the effective rank, less sensitive to small eigenvalues and to few rows.

    Examples:
        >>> participation_ratio([2.0, 2.0, 0.0])
        2.0
    """
    values = _check_spectrum(spectrum)
    return float(values.sum() ** 2 / np.square(values).sum())


def rankme(moments: Moments, squares: FloatArray | None = None) -> float:
    """Return RankMe: exp of the entropy of p = σ/Σσ + 1e-7, σ the singular values of the uncentred features.

    The convention of its authors, stated because others divide eigenvalues or centre first: an offset common
    to all rows, as after a ReLU, lowers it a lot. Source: Garrido, Balestriero, Najman and LeCun, RankMe
    (ICML 2023), equation 1.

    Args:
        moments: With products.
        squares: (D,) eigenvalues of XᵀX, where they are known.

    Raises:
        InputError: If the statistics hold no products.
    """
    if squares is None:
        around_zero = moments.moved_to(np.zeros_like(moments.shift)).products
        if around_zero is None:
            raise InputError(
                "statistics with products", "those of class sums alone", "Ask for `products=True`"
            )
        squares = _falling(around_zero)
    sigma = np.sqrt(np.maximum(squares, 0))
    if not sigma.any():
        return float("nan")
    p = sigma / sigma.sum() + _RANKME_EPSILON
    return float(np.exp(-(p * np.log(p)).sum()))


@dataclass(frozen=True)
class Decay:
    """A power law fitted to a spectrum.

    Attributes:
        alpha: Exponent of λ_i ∝ i^−α.
        r2: Share of the variance of log λ that the line explains.
        first: First rank of the window, from 1.
        last: Last rank of the window.
    """

    alpha: float
    r2: float
    first: int
    last: int


def spectral_decay(spectrum: ArrayLike, window: tuple[int, int] = WINDOW) -> Decay | None:
    """Fit λ_i ∝ i^−α by least squares of logarithms over a window of ranks (α-ReQ).

    The window is the measure: another one gives another α. It ends at the last eigenvalue above rounding;
    None where fewer than three are left. Source: Agrawal, Mondal, Ghosh and Richards, α-ReQ (NeurIPS 2022),
    with the window of Stringer et al., Nature 571 (2019).

    Examples:
        >>> fit = spectral_decay(np.arange(1, 101.0) ** -1.5)
        >>> round(fit.alpha, 6), fit.first, fit.last
        (1.5, 11, 100)
    """
    values = _check_spectrum(spectrum)
    real = int((values > _ROUNDING * values[0]).sum())
    first, last = window[0], min(window[1], real)
    if last - first < 2:
        return None
    ranks = np.log(np.arange(first, last + 1))
    logs = np.log(values[first - 1 : last])
    slope, offset = np.polyfit(ranks, logs, 1)
    left = logs - slope * ranks - offset
    spread = np.square(logs - logs.mean()).sum()
    r2 = 1 - np.square(left).sum() / spread if spread > 0 else 1.0
    return Decay(float(-slope), float(r2), first, last)


def two_nearest_dimension(features: ArrayLike) -> float:
    """Return the intrinsic dimension from the ratio μ = r₂/r₁ of distances to the two nearest rows (TwoNN).

    Slope through the origin of −ln(1 − F(μ)) over ln μ, without the largest tenth. Rows that stand twice are
    left out. It reads too low for high dimensions and few rows (60 reads 35 with 2,000). Source: Facco,
    d'Errico, Rodriguez and Laio, Scientific Reports 7 (2017).

    Args:
        features: (N, D), N of a few thousand at most: all distances are taken.

    Returns:
        The dimension; NaN with fewer than ten different rows.
    """
    x = np.unique(check_features(features).astype(np.float64), axis=0)
    if len(x) < 10:
        return float("nan")
    norms = np.einsum("nd,nd->n", x, x)
    squares = norms[:, None] + norms - 2 * (x @ x.T)
    np.fill_diagonal(squares, np.inf)
    nearest = np.partition(squares, 1, axis=1)[:, :2]
    nearest = nearest[nearest[:, 0] > _ROUNDING * norms.max()]
    if len(nearest) < 10:
        return float("nan")
    # μ = r₂/r₁, of squares
    logs = np.sort(0.5 * np.log(nearest[:, 1] / nearest[:, 0]))
    kept = int(len(logs) * _KEPT_SHARE)
    heights = -np.log(1 - np.arange(kept) / len(logs))
    return float((logs[:kept] @ heights) / (logs[:kept] @ logs[:kept]))


def _falling(matrix: FloatArray) -> FloatArray:
    return np.asarray(np.maximum(np.linalg.eigvalsh(matrix)[::-1], 0.0))


def _entropy(values: FloatArray) -> float:
    p = values[values > 0] / values.sum()
    return float(-(p * np.log(p)).sum())


def _check_spectrum(spectrum: ArrayLike) -> FloatArray:
    values = np.asarray(spectrum, np.float64)
    if values.ndim != 1 or not len(values) or (values < 0).any() or not values.any():
        raise InputError(
            "eigenvalues of at least 0, one of them positive", str(values)[:60], "Take covariance_spectrum"
        )
    return values
