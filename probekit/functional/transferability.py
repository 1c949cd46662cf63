"""Scores that foretell how well a class target can be read, and whether classes have collapsed to points.

All follow from one pass (`Moments` with products). Covariances are shrunk where they are inverted: with
fewer than ten times as many images as features an unshrunk inverse finds classes in noise.

Letters: N images, D features, C classes, μ_c class means, μ their mean, Σ_T covariance of all images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from probekit.errors import InputError
from probekit.functional.arguments import FloatArray, IntArray
from probekit.functional.moments import Moments

_LOGME_STEPS = 100
_LOGME_CLOSE = 1e-5


@dataclass(frozen=True, eq=False)
class Whitening:
    """A shrunk covariance, ready to be inverted; it does not depend on the labels.

    Attributes:
        axes: (D, D) eigenvectors of Σ_T.
        variances: (D,) eigenvalues after shrinking.
        shrinkage: ρ, the share of the mean variance that took the place of every eigenvalue.
        spectrum: (D,) eigenvalues of Σ_T as they were, the largest first.
    """

    axes: FloatArray
    variances: FloatArray
    shrinkage: float
    spectrum: FloatArray

    @classmethod
    def of(cls, moments: Moments) -> Whitening:
        """Shrink towards the mean variance: (1 − ρ)·Σ_T + ρ·(tr Σ_T/D)·I.

        ρ by the oracle approximating formula, which needs traces alone. Source: Chen, Wiesel, Eldar and
        Hero, Shrinkage Algorithms for MMSE Covariance Estimation, IEEE Trans. Signal Processing 58 (2010),
        equation 23.

        Raises:
            InputError: If the statistics hold no products, or every feature is constant.
        """
        covariance = moments.total_scatter / moments.count
        values, axes = np.linalg.eigh(covariance)
        values = np.maximum(values, 0)
        d, n, trace, square = len(values), moments.count, values.sum(), np.square(values).sum()
        if trace <= 0:
            raise InputError("features that vary", "constant ones", "Leave out this tap")
        # ρ = ((1 − 2/D) tr S² + tr² S) / ((N + 1 − 2/D)(tr S² − tr² S/D))
        above, below = (1 - 2 / d) * square + trace**2, (n + 1 - 2 / d) * (square - trace**2 / d)
        rho = 1.0 if below <= 0 else min(1.0, above / below)
        return cls(axes, (1 - rho) * values + rho * trace / d, float(rho), values[::-1])

    def whiten(self, centred: ArrayLike) -> FloatArray:
        """Return S^(−1/2)·x, in the axes of the covariance, of (N, D) rows less their mean."""
        return np.asarray(np.asarray(centred) @ self.axes / np.sqrt(self.variances))

    def between(self, moments: Moments) -> float:
        """Return tr(Σ_T⁻¹ Σ_B) with Σ_B = Σ_c n_c/N (μ_c − μ)(μ_c − μ)ᵀ; the labels may be permuted."""
        centred = (moments.means - moments.mean) @ self.axes
        return float((moments.counts / moments.count) @ np.square(centred) @ (1 / self.variances))


def h_score(moments: Moments, whitening: Whitening) -> float:
    """Return the regularised H-score (1 − ρ)·tr(Σ_T⁻¹ Σ_B), 0 … C − 1; higher: classes are told apart better.

    Source: Ibrahim, Ponomareva and Mazumder, Newer is Not Always Better (ECML 2022), equation 3, with ρ of
    `Whitening` in place of Ledoit and Wolf's, whose formula needs fourth moments.
    """
    return (1 - whitening.shrinkage) * whitening.between(moments)


def variability_collapse(moments: Moments, whitening: Whitening) -> float:
    """Return the variability collapse index 1 − tr(Σ_T⁻¹ Σ_B)/rank(Σ_B), 0 (classes are points) … 1.

    With the shrunk Σ_T and (1 − ρ)·Σ_B, as in the H-score, which keeps it from falling below 0. Unlike NC1 it
    does not change under invertible linear maps, but for the shrinkage. Source: Xu and Liu, Quantifying the
    Variability Collapse of Neural Networks (ICML 2023), equation 4.
    """
    seen = int((moments.counts > 0).sum())
    return 1 - h_score(moments, whitening) / min(seen - 1, len(moments.shift))


def neural_collapse(moments: Moments) -> dict[str, float]:
    """Return how far class means and scatters are from a collapsed simplex.

    ``nc1``: tr(Σ_W Σ_B⁺)/C with the C − 1 modes that class means can span; 0 where classes are points. It is
    not comparable between taps: without class signal it is about (n − 1)(C − 1)/D. ``nc2_norms``: coefficient
    of variation of ‖μ_c − μ‖. ``nc2_angles``: mean |cos + 1/(C − 1)| of the angles between them; NaN where no
    simplex fits (D < C − 1). Means of noise in many dimensions look like a simplex as well. Source: Papyan,
    Han and Donoho, Prevalence of Neural Collapse, PNAS 117 (2020).

    Raises:
        InputError: If the statistics hold no products.
    """
    seen = moments.counts > 0
    means = moments.means[seen]
    centred, count, width = means - means.mean(axis=0), int(seen.sum()), len(moments.shift)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    modes = min(count - 1, width)
    sizes, axes = sizes[:modes], axes[:modes]
    within = moments.within_scatter / moments.count
    # Σ_B = M̃ᵀM̃/C, so that tr(Σ_W Σ_B⁺)/C = Σ_k v_kᵀ Σ_W v_k / s_k²
    along = np.einsum("kd,kd->k", axes @ within, axes)
    norms = np.linalg.norm(centred, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        nc1 = float((along / np.square(sizes)).sum())
        unit = centred / norms[:, None]
        cosines = (unit @ unit.T)[~np.eye(count, dtype=bool)]
        angles = float(np.abs(cosines + 1 / (count - 1)).mean()) if width >= count - 1 else float("nan")
        return {
            "nc1": nc1 if np.isfinite(nc1) else float("nan"),
            "nc2_norms": float(norms.std() / norms.mean()),
            "nc2_angles": angles,
        }


def self_duality(weights: FloatArray, moments: Moments) -> float:
    """Return NC3: ‖W/‖W‖ − M̃/‖M̃‖‖_F of probe weights and centred class means, 0 (same) … 2 (opposite).

    Args:
        weights: (D, C) in the space of the features, not the standardised one.
        moments: Of the same classes, each with an image.
    """
    own = (weights - weights.mean(axis=1, keepdims=True)).T
    centred = moments.means - moments.means.mean(axis=0)
    return float(np.linalg.norm(own / np.linalg.norm(own) - centred / np.linalg.norm(centred)))


def nearest_means(features: FloatArray, moments: Moments) -> IntArray:
    """Return (M,) the class whose mean is nearest to each of (M, D) rows; classes without an image never."""
    means = moments.means - moments.mean
    x = features - moments.mean
    # ‖x − μ‖² without ‖x‖², which is the same for all classes
    distances = np.square(means).sum(axis=1) - 2 * (x @ means.T)
    distances[:, moments.counts == 0] = np.inf
    return np.asarray(distances.argmin(axis=1))


def logme(moments: Moments, eigen: tuple[FloatArray, FloatArray] | None = None) -> float:
    """Return LogME: the log evidence per image of Bayesian linear regression on each class, averaged.

    Weight and noise precision of every class are those of largest evidence; features are taken as they are,
    as by its authors. Only XᵀX and class sums are needed: ‖Xm − y‖² = yᵀy − 2mᵀXᵀy + mᵀXᵀXm. Source: You,
    Liu, Wang and Long, LogME (ICML 2021), algorithm 1.

    Args:
        moments: With products.
        eigen: Eigenvalues and eigenvectors of XᵀX, where they are known: labels do not change them.

    Raises:
        InputError: If the statistics hold no products.
    """
    about_zero = moments.moved_to(np.zeros_like(moments.shift))
    if about_zero.products is None:
        raise InputError("statistics with products", "those of class sums alone", "Ask for `products=True`")
    values, axes = np.linalg.eigh(about_zero.products) if eigen is None else eigen
    s, n = np.maximum(values, 0), moments.count
    seen = moments.counts > 0
    z, yy = (about_zero.sums @ axes)[seen], moments.counts[seen].astype(np.float64)
    alpha, beta = np.ones(len(yy)), np.ones(len(yy))
    for _ in range(_LOGME_STEPS):
        t = alpha / beta
        m = z / (t[:, None] + s)
        gamma = (s / (t[:, None] + s)).sum(axis=1)
        size = np.square(m).sum(axis=1)
        left = np.maximum(yy - 2 * (m * z).sum(axis=1) + (np.square(m) * s).sum(axis=1), 1e-12 * yy)
        alpha, beta = gamma / np.maximum(size, 1e-300), (n - gamma) / left
        if np.abs(alpha / beta / t - 1).max() <= _LOGME_CLOSE:
            break
    evidence = (
        len(s) / 2 * np.log(alpha)
        + n / 2 * np.log(beta)
        - 0.5 * np.log(alpha[:, None] + beta[:, None] * s).sum(axis=1)
        - beta / 2 * left
        - alpha / 2 * size
        - n / 2 * np.log(2 * np.pi)
    )
    return float(evidence.mean() / n)
