"""Multinomial logistic regression: the optimum for every penalty at once, with a proven gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from probekit.errors import InputError
from probekit.functional.arguments import (
    FloatArray,
    IntArray,
    check_features,
    check_gaps,
    check_labels,
    check_penalties,
    check_weight,
)
from probekit.functional.certified_fit import CertifiedFits, FitSettings, Solver

# The logit of a class without a training row. Some other logit is never negative, because weights and
# intercepts of the classes seen sum to zero: such a class gets a probability below e^-100, never 0.
ABSENT_LOGIT = -100.0


@dataclass(frozen=True, eq=False)
class SoftmaxPath:
    """Softmax regressions for P penalties on the same rows.

    Attributes:
        penalties: (P,) on ½‖W‖².
        weights: (P, D, C), summing to 0 over classes.
        intercepts: (P, C), summing to 0 over the classes seen.
        objective: (P,) weighted mean cross-entropy in nats + ½·penalty·‖W‖².
        gap: (P,) proven upper bound on (F − F*)/F*, where F* is the minimum; infinite where none is known.
        iterations: (P,).
        converged: (P,) whether the gap is at most the one asked for.
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

    def at(self, places: ArrayLike) -> SoftmaxPath:
        """Return some of the fits, by their places."""
        chosen = np.asarray(places, np.intp)
        return SoftmaxPath(**{name: values[chosen] for name, values in vars(self).items()})


def fit_softmax(
    features: ArrayLike,
    labels: ArrayLike,
    penalties: ArrayLike,
    *,
    n_classes: int,
    sample_weight: ArrayLike | None = None,
    gap: ArrayLike = 1e-4,
    max_iterations: int = 1000,
    device: str | torch.device = "cpu",
    stop: Callable[[SoftmaxPath], bool] | None = None,
) -> SoftmaxPath:
    """Fit multinomial logistic regression for P penalties at once.

    Minimises F(W, b) = Σᵢ ωᵢ·CE(softmax(xᵢ W + b), yᵢ) + ½·penalty·‖W‖² with ω = ``sample_weight``/Σ and a
    free intercept: scikit-learn's optimum at C = 1/(N·penalty). (For two classes scikit-learn fits one
    sigmoid, whose weights are the difference of the two here: there C = 2/(N·penalty).)

    The optimum is unique up to a constant added to all intercepts, which are centred. A class without a
    row of positive weight gets weights 0 and the intercept ``ABSENT_LOGIT``, the limit of its intercept
    −∞ cut off where its probability is below e⁻¹⁰⁰.

    Args:
        features: (N, D), standardised: one penalty serves all columns. They may be memory-mapped: rows are
            read in blocks, and what does not fit in memory is kept in a temporary file.
        labels: (N,) integers from 0 to C − 1; or (P, N), a labelling for each penalty, as for the permuted
            labels of a null.
        penalties: (P,) positive numbers in any order; may repeat.
        n_classes: C.
        sample_weight: (N,) weights of at least 0, such as 0/1 masks or bootstrap counts; None: all alike.
        gap: Largest relative gap (F − F*)/F* a fit may have; or (P,), one for each.
        max_iterations: Most iterations of a fit; one that needs more is returned with ``converged`` False.
        device: Where to compute; what float32 leaves open is finished on the host.
        stop: Weak penalties take most of the time and are seldom the best. With ``stop``, penalties are
            solved in groups from the strongest on; after each it is shown what is solved, and True leaves out
            the rest, which is then missing in the result. Where all of them take no longer, it is not asked.

    Returns:
        The fits, in the order of ``penalties``.

    Raises:
        InputError: If shapes disagree, a label or penalty is out of range, or only one class has rows.
        NonFiniteFeatures: If a feature is NaN or infinite.

    Examples:
        >>> path = fit_softmax([[-2.0], [-1.0], [1.0], [2.0]], [0, 0, 1, 1], [1.0, 0.1], n_classes=2)
        >>> path.logits([[3.0]]).argmax(axis=2).tolist(), path.converged.tolist()
        ([[1], [1]], [True, True])
    """
    x, penalty = check_features(features), check_penalties(penalties)
    gaps, most = check_gaps(gap, len(penalty), max_iterations)
    weight = check_weight(sample_weight, len(x))
    labellings = _check_labellings(labels, len(x), n_classes, len(penalty))
    used = weight > 0
    if not used.all():
        x, labellings, weight = x[used], labellings[:, used], weight[used]
    solver = Solver(x, weight, FitSettings(most, device))
    fits = CertifiedFits.at(np.full((len(penalty), n_classes), ABSENT_LOGIT), x.shape[1])
    solved = np.zeros(len(penalty), np.bool_)
    large = x.size * n_classes >= _WORTH_STOPPING
    for group in _groups(penalty) if stop is not None and large else [np.arange(len(penalty))]:
        own = labellings if len(labellings) == 1 else labellings[group]
        fits.put(group, _fit_by_classes(solver, own, penalty[group], n_classes, gaps[group]))
        solved[group] = True
        path = SoftmaxPath(
            penalty,
            fits.weights,
            fits.intercepts,
            fits.objective,
            fits.gap,
            fits.iterations,
            fits.gap <= gaps,
        ).at(np.flatnonzero(solved))
        if stop is not None and not solved.all() and stop(path):
            break
    return path


# Products a pass of one fit (N·D·C) below which all penalties together take less time than some in groups.
_WORTH_STOPPING = 5e7


def _groups(penalties: FloatArray) -> list[NDArray[np.intp]]:
    """Return places of penalties in groups, the strongest first: half of them, a quarter, the rest.

    Weak penalties take many iterations each, and two alone leave the products thin: more groups would lose
    more where none is left out than they win where some are.

    Examples:
        >>> [group.tolist() for group in _groups(np.array([1.0, 3.0, 0.1, 10.0, 0.3]))]
        [[3, 1, 0], [4], [2]]
    """
    order = np.argsort(-penalties, kind="stable")
    half = (len(order) + 1) // 2
    parts = np.split(order, [half, half + (len(order) - half) // 2])
    return [part for part in parts if len(part)]


def _check_labellings(labels: ArrayLike, count: int, n_classes: int, penalties: int) -> IntArray:
    """Return (L, N) labels, L being 1 or P."""
    y = check_labels(labels, count, n_classes)
    if y.ndim > 2 or (y.ndim == 2 and len(y) != penalties):
        raise InputError(
            f"labels of shape (N,), or ({penalties}, N) for {penalties} penalties", f"shape {y.shape}",
            "Repeat the penalty for every labelling",
        )  # fmt: skip
    return np.atleast_2d(y)


def _fit_by_classes(
    solver: Solver, labellings: IntArray, penalties: FloatArray, n_classes: int, gaps: FloatArray
) -> CertifiedFits:
    """Fit together what sees the same classes, without the classes it does not see."""
    seen = np.stack([np.bincount(one, minlength=n_classes) > 0 for one in labellings])
    if seen.sum(axis=1).min() < 2:
        raise InputError(
            "labels of at least two classes", "a single class among the rows of positive weight",
            "Add images of another class",
        )  # fmt: skip
    width = solver.features.shape[1]
    count, columns = len(penalties), np.arange(width)
    whole = CertifiedFits.at(np.full((count, n_classes), ABSENT_LOGIT), width)
    patterns, group = np.unique(seen, axis=0, return_inverse=True)
    group = np.broadcast_to(group.ravel(), count)
    for number, pattern in enumerate(patterns):
        places, classes = np.flatnonzero(group == number), np.flatnonzero(pattern)
        own = labellings if len(labellings) == 1 else labellings[places]
        own = np.searchsorted(classes, own)
        part = _fit_seen(solver, own, penalties[places], len(classes), gaps[places])
        whole.weights[np.ix_(places, columns, classes)] = part.weights
        whole.intercepts[np.ix_(places, classes)] = part.intercepts
        for name in ("objective", "gap", "iterations"):
            getattr(whole, name)[places] = getattr(part, name)
    return whole


def _fit_seen(
    solver: Solver, labellings: IntArray, penalties: FloatArray, n_classes: int, gaps: FloatArray
) -> CertifiedFits:
    """Fit (L, N) labellings, one or one a penalty, in which every class has a row."""
    shares = np.stack([np.bincount(one, solver.weight, minlength=n_classes) for one in labellings])
    start = np.broadcast_to(np.log(shares), (len(penalties), n_classes))
    fits = solver.solve(
        lambda device: _CrossEntropy(torch.from_numpy(labellings).to(device)), start, penalties, gaps
    )
    fits.intercepts[:] -= fits.intercepts.mean(axis=1, keepdims=True)
    return fits


@dataclass(frozen=True)
class _CrossEntropy:
    """Cross-entropy of a softmax over the K outputs of a fit.

    Attributes:
        labels: (L, N), one labelling for all fits or one for each.
    """

    labels: torch.Tensor

    def _truth(self, fits: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return (Q, 1, B) labels."""
        if len(self.labels) == 1:
            return self.labels[:, rows].expand(len(fits), -1)[:, None]
        return self.labels[:, rows][fits][:, None]

    def __call__(
        self, logits: torch.Tensor, fits: torch.Tensor, rows: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        truth = self._truth(fits, rows)
        log_p = torch.log_softmax(logits, 1)
        of_truth = log_p.gather(1, truth)
        # expm1 keeps the digits of p − 1 where p is near 1, as most are under a weak penalty.
        residual = log_p.exp_().scatter_(1, truth, torch.expm1(of_truth))
        return -of_truth[:, 0], residual

    def intercept_hessian(
        self, residual: torch.Tensor, fits: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        truth = self._truth(fits, slice(0, residual.shape[2]))
        p = residual.scatter(1, truth, residual.gather(1, truth) + 1)
        weighted = p * weight
        # Σ ω (diag p − p pᵀ), singular along (1, …, 1): a constant added to all logits changes nothing.
        hessian = torch.diag_embed(weighted.sum(2)) - weighted @ p.transpose(1, 2)
        return hessian + 1 / residual.shape[1]
