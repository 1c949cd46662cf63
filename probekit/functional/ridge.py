"""Ridge regression: one decomposition for every penalty and every target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike

from probekit.errors import InputError
from probekit.functional.arguments import FloatArray, check_features, check_penalties, check_weight
from probekit.functional.rows import row_blocks


@dataclass(frozen=True, eq=False)
class RidgePath:
    """Ridge regressions for P penalties on the same rows.

    Attributes:
        penalties: (P,) on ½‖W‖².
        weights: (P, D, K).
        intercepts: (P, K).
    """

    penalties: FloatArray
    weights: FloatArray
    intercepts: FloatArray

    def predict(self, features: ArrayLike) -> FloatArray:
        """Return (P, N, K) predictions for (N, D) features."""
        rows = np.asarray(features, np.float64)
        return np.asarray(rows @ self.weights + self.intercepts[:, None, :])


def fit_ridge(
    features: ArrayLike, targets: ArrayLike, penalties: ArrayLike, sample_weight: ArrayLike | None = None
) -> RidgePath:
    """Fit ridge regression for P penalties and K targets at once, in float64.

    Minimises ½·Σᵢ ωᵢ·‖yᵢ − xᵢ W − b‖² + ½·penalty·‖W‖² with ω = ``sample_weight``/Σ and a free intercept:
    half the mean squared residual, on the scale of the mean cross-entropy of ``fit_softmax``. This is
    scikit-learn's optimum at alpha = N·penalty (alpha = penalty·Σ ``sample_weight`` where rows are weighted).

    One eigendecomposition serves all penalties: of the (D, D) covariance if N ≥ D, else of the (N, N) Gram
    matrix. Both square the condition number, so penalties below about 1e-12 of the leading variance are
    beyond float64.

    Args:
        features: (N, D), standardised: one penalty serves all columns.
        targets: (N, K); (N,) counts as one target. K may be 0.
        penalties: (P,) positive numbers in any order.
        sample_weight: (N,) weights of at least 0; None: all alike.

    Raises:
        InputError: If shapes disagree, or a penalty or weight is out of range.
        NonFiniteFeatures: If a feature or target is NaN or infinite.

    Examples:
        >>> path = fit_ridge([[-1.0], [1.0]], [1.0, 5.0], [1.0, 1e-9])
        >>> path.weights.ravel().round(6).tolist(), path.intercepts.ravel().tolist()
        ([1.0, 2.0], [3.0, 3.0])
    """
    x = check_features(features)
    penalty, weight = check_penalties(penalties), check_weight(sample_weight, len(x))
    y = _check_targets(targets, len(x))
    blocks = row_blocks(len(x), x.shape[1] + y.shape[1])
    x_mean, y_mean = np.asarray(sum(weight[rows] @ x[rows].astype(np.float64) for rows in blocks)), weight @ y
    root = np.sqrt(weight)[:, None]
    # A and B: rows less their means, times √ω
    parts = ((root[rows] * (x[rows] - x_mean), root[rows] * (y[rows] - y_mean)) for rows in blocks)
    if len(x) >= x.shape[1]:
        weights = _solve_primal(parts, penalty)
    else:
        a, b = (np.concatenate(one) for one in zip(*parts, strict=True))
        weights = _solve_dual(a, b, penalty)
    return RidgePath(penalty, weights, y_mean - x_mean @ weights)


def _check_targets(targets: ArrayLike, count: int) -> FloatArray:
    y = np.asarray(targets, np.float64)
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or len(y) != count:
        raise InputError(
            f"targets of shape ({count}, K), one row a row of the features", f"shape {y.shape}", "Align them"
        )
    return y if y.shape[1] == 0 else check_features(y, "targets").astype(np.float64)


def _solve_primal(parts: Iterable[tuple[FloatArray, FloatArray]], penalties: FloatArray) -> FloatArray:
    """Return (P, D, K):  W = V (Λ + penalty)⁻¹ Vᵀ Aᵀ B  with  AᵀA = V Λ Vᵀ, of blocks of rows of A and B."""
    inner, cross = reduce(lambda x, y: (x[0] + y[0], x[1] + y[1]), ((a.T @ a, a.T @ b) for a, b in parts))
    variances, axes = np.linalg.eigh(inner)
    turned = axes.T @ cross
    return np.asarray(axes @ (turned * _shrinkage(variances, penalties)))


def _solve_dual(a: FloatArray, b: FloatArray, penalties: FloatArray) -> FloatArray:
    """Return (P, D, K):  W = Aᵀ U (Λ + penalty)⁻¹ Uᵀ B  with  AAᵀ = U Λ Uᵀ."""
    variances, axes = np.linalg.eigh(a @ a.T)
    return np.asarray(a.T @ (axes @ ((axes.T @ b) * _shrinkage(variances, penalties))))


def _shrinkage(variances: FloatArray, penalties: FloatArray) -> FloatArray:
    """Return (P, R, 1) factors 1/(variance + penalty); rounding may leave variances below 0."""
    return np.asarray(1 / (np.maximum(variances, 0)[:, None] + penalties[:, None, None]))
