"""Multinomial logistic regression: the optimum for every penalty at once, with a proven gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    refine: Callable[[SoftmaxPath], ArrayLike] | None = None,
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
        refine: Weak penalties take most of the time and are seldom the best. ``refine`` is shown the path so
            far (at first nothing is solved and every gap infinite) and returns the (P,) gaps wanted next,
            infinite for fits not wanted; it is asked again until it wants nothing new. ``gap`` is then not
            used. A fit begins at the nearest stronger penalty solved before it.

    Returns:
        The fits, in the order of ``penalties``; with ``refine``, those it wanted.

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
    solver = Solver(x, weight, FitSettings(most, device, len(penalty) * n_classes))
    fits = CertifiedFits.at(_start(labellings, weight, n_classes, len(penalty)), x.shape[1])
    tried = np.full(len(penalty), np.inf)
    while True:
        path = _as_path(penalty, fits.take(np.arange(len(penalty))), tried)
        wanted = gaps if refine is None else np.broadcast_to(np.asarray(refine(path)), len(penalty))
        new = np.flatnonzero(wanted < tried)
        if not len(new):
            return path.at(np.flatnonzero(np.isfinite(tried)))
        if len(labellings) == 1:
            _begin_at_neighbours(fits, new, penalty, tried)
        own = labellings if len(labellings) == 1 else labellings[new]
        fits.put(new, _fit_by_classes(solver, own, fits.take(new), penalty[new], wanted[new]))
        tried[new] = wanted[new]


def _as_path(penalties: FloatArray, fits: CertifiedFits, gaps: FloatArray) -> SoftmaxPath:
    return SoftmaxPath(
        penalties,
        fits.weights,
        fits.intercepts,
        fits.objective,
        fits.gap,
        fits.iterations,
        fits.gap <= gaps,
    )


def _start(labellings: IntArray, weight: FloatArray, n_classes: int, count: int) -> FloatArray:
    """Return (P, C) intercepts that are optimal without features: the log shares of the classes."""
    shares = np.stack([np.bincount(one, weight, minlength=n_classes) for one in labellings])
    seen = shares > 0
    start = np.where(seen, np.log(np.where(seen, shares, 1)), ABSENT_LOGIT)
    return np.broadcast_to(start, (count, n_classes))


def _begin_at_neighbours(
    fits: CertifiedFits, new: NDArray[np.intp], penalties: FloatArray, tried: FloatArray
) -> None:
    """Start fits never tried where the nearest stronger penalty, if any was tried, has come to."""
    for place in new[np.isinf(tried[new])]:
        stronger = np.flatnonzero(np.isfinite(tried) & (penalties >= penalties[place]))
        if len(stronger):
            nearest = stronger[penalties[stronger].argmin()]
            fits.weights[place], fits.intercepts[place] = fits.weights[nearest], fits.intercepts[nearest]


def _check_labellings(labels: ArrayLike, count: int, n_classes: int, penalties: int) -> IntArray:
    """Return (L, N) labels, L being 1 or P, of a type no wider than they need."""
    y = np.asarray(labels)
    if y.ndim > 2 or (y.ndim == 2 and len(y) != penalties):
        raise InputError(
            f"labels of shape (N,), or ({penalties}, N) for {penalties} penalties", f"shape {y.shape}",
            "Repeat the penalty for every labelling",
        )  # fmt: skip
    narrow = np.int16 if n_classes <= np.iinfo(np.int16).max else np.int64
    return np.stack([check_labels(one, count, n_classes).astype(narrow) for one in np.atleast_2d(y)])


def _fit_by_classes(
    solver: Solver, labellings: IntArray, start: CertifiedFits, penalties: FloatArray, gaps: FloatArray
) -> CertifiedFits:
    """Fit together what sees the same classes, without the classes it does not see."""
    count, width, n_classes = start.weights.shape
    seen = np.stack([np.bincount(one, minlength=n_classes) > 0 for one in labellings])
    if seen.sum(axis=1).min() < 2:
        raise InputError(
            "labels of at least two classes", "a single class among the rows of positive weight",
            "Add images of another class",
        )  # fmt: skip
    whole, columns = start.take(np.arange(count)), np.arange(width)
    patterns, group = np.unique(seen, axis=0, return_inverse=True)
    group = np.broadcast_to(group.ravel(), count)
    for number, pattern in enumerate(patterns):
        places, classes = np.flatnonzero(group == number), np.flatnonzero(pattern)
        part = start.take(places)
        part = replace(part, weights=part.weights[:, :, classes], intercepts=part.intercepts[:, classes])
        own = labellings if len(labellings) == 1 else labellings[places]
        if len(classes) < n_classes:
            own = np.searchsorted(classes, own)
        part = _fit_seen(solver, own, part, penalties[places], gaps[places])
        whole.weights[np.ix_(places, columns, classes)] = part.weights
        whole.intercepts[np.ix_(places, classes)] = part.intercepts
        for name in ("objective", "gap", "iterations"):
            getattr(whole, name)[places] = getattr(part, name)
    return whole


def _fit_seen(
    solver: Solver, labellings: IntArray, start: CertifiedFits, penalties: FloatArray, gaps: FloatArray
) -> CertifiedFits:
    """Fit (L, N) labellings, one or one a penalty, in which every class has a row."""
    fits = solver.solve(
        lambda device: _CrossEntropy(torch.from_numpy(labellings).to(device)), start, penalties, gaps
    )
    fits.intercepts[:] -= fits.intercepts.mean(axis=1, keepdims=True)
    return fits


@dataclass(frozen=True)
class _CrossEntropy:
    """Cross-entropy of a softmax over the K outputs of a fit.

    Attributes:
        labels: (L, N), one labelling for all fits or one for each; any type of integers.
    """

    labels: torch.Tensor

    def _truth(self, fits: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return (Q, 1, B) labels."""
        if len(self.labels) == 1:
            return self.labels[:, rows].long().expand(len(fits), -1)[:, None]
        return self.labels[:, rows][fits].long()[:, None]

    def __call__(
        self, logits: torch.Tensor, fits: torch.Tensor, rows: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        truth = self._truth(fits, rows)
        log_p = torch.log_softmax(logits, 1)
        of_truth = log_p.gather(1, truth)
        # expm1 keeps the digits of p − 1 where p is near 1, as most are under a weak penalty.
        residual = log_p.exp_().scatter_(1, truth, torch.expm1(of_truth))
        return -of_truth[:, 0], residual

    def hessian(
        self, residual: torch.Tensor, fits: torch.Tensor, rows: slice, weight: torch.Tensor
    ) -> torch.Tensor:
        truth = self._truth(fits, rows)
        p = residual.scatter(1, truth, residual.gather(1, truth) + 1)
        weighted = p * weight
        # Σ ω (diag p − p pᵀ), singular along (1, …, 1): a constant added to all logits changes nothing.
        hessian = torch.diag_embed(weighted.sum(2)) - weighted @ p.transpose(1, 2)
        return hessian + weight.sum() / residual.shape[1]
