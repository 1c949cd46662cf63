"""Independent logistic regressions, one a label: the optimum for every penalty at once, with proven gaps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn.functional import logsigmoid

from probekit.errors import InputError
from probekit.functional.arguments import (
    FloatArray,
    IntArray,
    check_features,
    check_gaps,
    check_penalties,
    check_weight,
)
from probekit.functional.certified_fit import CertifiedFits, FitSettings, Solver

# The logit of a label that holds in no row of positive weight; of one that holds in all, its opposite.
ABSENT_LOGIT = -100.0


@dataclass(frozen=True, eq=False)
class SigmoidPath:
    """Logistic regressions of C labels for P penalties on the same rows.

    Attributes:
        penalties: (P,) on ½‖w‖² of each label.
        weights: (P, D, C).
        intercepts: (P, C).
        objective: (P, C) weighted mean binary cross-entropy in nats + ½·penalty·‖w‖².
        gap: (P, C) proven upper bound on (F − F*)/F*, where F* is the minimum; infinite where none is known.
        iterations: (P, C).
        converged: (P, C) whether the gap is at most the one asked for.
    """

    penalties: FloatArray
    weights: FloatArray
    intercepts: FloatArray
    objective: FloatArray
    gap: FloatArray
    iterations: IntArray
    converged: NDArray[np.bool_]

    def logits(self, features: ArrayLike) -> FloatArray:
        """Return (P, N, C) logits of (N, D) features."""
        rows = np.asarray(features, np.float64)
        return np.asarray(rows @ self.weights + self.intercepts[:, None, :])


def fit_sigmoid(
    features: ArrayLike,
    labels: ArrayLike,
    penalties: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    gap: float = 1e-4,
    max_iterations: int = 1000,
    device: str | torch.device = "cpu",
) -> SigmoidPath:
    """Fit one logistic regression a label, for P penalties at once.

    Minimises Σᵢ ωᵢ·BCE(σ(xᵢ·w + b), yᵢ) + ½·penalty·‖w‖² for each label by itself, with
    ω = ``sample_weight``/Σ and a free intercept: scikit-learn's optimum at C = 1/(N·penalty). A label that
    holds in no row gets weights 0 and the intercept ``ABSENT_LOGIT``; one that holds in all, its opposite.

    Args:
        features: (N, D), standardised: one penalty serves all columns.
        labels: (N, C) of 0 and 1, or of bool; (N,) counts as one label.
        penalties: (P,) positive numbers in any order.
        sample_weight: (N,) weights of at least 0; None: all alike.
        gap: Largest relative gap (F − F*)/F* a fit may have.
        max_iterations: Most iterations of a fit; one that needs more is returned with ``converged`` False.
        device: Where to compute; what float32 leaves open is finished on the host.

    Raises:
        InputError: If shapes disagree, or a label or penalty is out of range.
        NonFiniteFeatures: If a feature is NaN or infinite.

    Examples:
        >>> path = fit_sigmoid([[-2.0], [-1.0], [1.0], [2.0]], [False, False, True, True], [1.0, 0.1])
        >>> (path.logits([[3.0]]) > 0).tolist(), path.converged.tolist()
        ([[[True]], [[True]]], [[True], [True]])
    """
    x, penalty = check_features(features), check_penalties(penalties)
    _, most = check_gaps(gap, 1, max_iterations)
    weight, y = check_weight(sample_weight, len(x)), _check_binary(labels, len(x))
    used = weight > 0
    if not used.all():
        x, y, weight = x[used], y[used], weight[used]
    path = _constant_path(penalty, x.shape[1], y)
    varied = np.flatnonzero((y != y[0]).any(axis=0))
    if len(varied):
        _fill(
            path,
            varied,
            _fit_varied(
                Solver(x, weight, FitSettings(most, device, len(varied) * len(penalty))),
                y[:, varied],
                penalty,
                gap,
            ),
        )
    return replace(path, converged=path.gap <= gap)


def _constant_path(penalties: FloatArray, width: int, truth: FloatArray) -> SigmoidPath:
    """Return the path of labels that never vary, from their first row."""
    shape = (len(penalties), truth.shape[1])
    return SigmoidPath(
        penalties,
        weights=np.zeros((len(penalties), width, truth.shape[1])),
        intercepts=np.where(truth[0] > 0, -ABSENT_LOGIT, ABSENT_LOGIT) * np.ones(shape),
        objective=np.full(shape, np.log1p(np.exp(ABSENT_LOGIT))),
        gap=np.zeros(shape),
        iterations=np.zeros(shape, np.int64),
        converged=np.ones(shape, np.bool_),
    )


def _fit_varied(solver: Solver, truth: FloatArray, penalties: FloatArray, gap: float) -> CertifiedFits:
    """Fit (N, C) labels that vary: P·C fits, in the order (penalty, label)."""
    weight, count = solver.weight, len(penalties) * truth.shape[1]
    start = np.tile(np.log(weight @ truth) - np.log(weight @ (1 - truth)), len(penalties))[:, None]
    held = torch.from_numpy(truth.T.astype(np.float32))
    return solver.solve(
        lambda device: _BinaryCrossEntropy(held.to(device)),
        CertifiedFits.at(start, solver.features.shape[1]),
        np.repeat(penalties, truth.shape[1]),
        np.full(count, gap),
    )


def _fill(path: SigmoidPath, labels: NDArray[np.intp], fits: CertifiedFits) -> None:
    """Write P·C fits to the columns of their labels."""
    shape = (len(path.penalties), len(labels))
    path.weights[:, :, labels] = fits.weights.reshape(*shape, -1).transpose(0, 2, 1)
    for name in ("intercepts", "objective", "gap", "iterations"):
        getattr(path, name)[:, labels] = getattr(fits, name).reshape(shape)


def _check_binary(labels: ArrayLike, count: int) -> FloatArray:
    y = np.asarray(labels)
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2 or len(y) != count or y.shape[1] == 0:
        raise InputError(
            f"labels of shape ({count}, C), one row a row of the features", f"shape {y.shape}", "Align them"
        )
    if not np.isin(y, (0, 1)).all():
        raise InputError("labels of 0 and 1", "other values", "Encode what holds as 1")
    return y.astype(np.float64)


@dataclass(frozen=True)
class _BinaryCrossEntropy:
    """Binary cross-entropy of fits with one output each.

    Attributes:
        truth: (C, N) of 0 and 1, in float32; fit q is of label q mod C.
    """

    truth: torch.Tensor

    def __call__(
        self, logits: torch.Tensor, fits: torch.Tensor, rows: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        truth = self.truth[fits % len(self.truth), rows].to(logits.dtype)
        # With s = ±1 for the truth: BCE = −log σ(s·z) and its derivative is −s·σ(−s·z), exact at both ends.
        sign = 2 * truth - 1
        towards = sign * logits[:, 0]
        return -logsigmoid(towards), (-sign * torch.sigmoid(-towards))[:, None]

    def hessian(
        self, residual: torch.Tensor, fits: torch.Tensor, rows: slice, weight: torch.Tensor
    ) -> torch.Tensor:
        size = residual.abs()
        return ((size * (1 - size)) @ weight)[:, :, None]
