"""Penalised fits solved until a bound on what is left to gain, measured on the returned weights, is small.

Single precision does the work, double precision the accounts: after the iterations the objective and its
bound are computed anew in float64 from the features as they came. Fits that float32 could not bring below
the gap go on in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from probekit.functional.arguments import AnyFloats, FloatArray, IntArray
from probekit.functional.eigenbasis import Eigenbasis, product_blocks, rotate_features
from probekit.functional.quasi_newton import MEMORY, Loss, Objective, minimise

# Products a pass (N·D·K·Q) below which float64 throughout costs at most a second or two.
_SMALL = 1e8
# Part of the asked gap the iterations aim at: the bound moves when the intercept is settled.
_AIMS = (0.5, 0.2, 0.05)
_HISTORY_BYTES = 2**30
# Scores of all rows are kept while intercepts settle if those of one fit take no more than this; above it
# they are computed again, block by block, whenever they are needed.
_LOGIT_BYTES = 2**26
# Sums of N residuals of mixed sign are known to about this share of the sum of their sizes.
_SETTLED = 1e-10
_NEWTON_STEPS = 50
_LEAST_CURVATURE = 1e-14


@dataclass(frozen=True)
class CertifiedFits:
    """Q fits and what is known of them.

    Attributes:
        weights: (Q, D, K).
        intercepts: (Q, K).
        objective: (Q,) weighted mean loss + ½·penalty·‖W‖².
        gap: (Q,) upper bound on (F − F*)/F*; infinite where none is known.
        iterations: (Q,).
    """

    weights: FloatArray
    intercepts: FloatArray
    objective: FloatArray
    gap: FloatArray
    iterations: IntArray

    @classmethod
    def at(cls, intercepts: FloatArray, width: int) -> CertifiedFits:
        """Start (Q, K) intercepts off with zero weights on ``width`` features."""
        count, outputs = intercepts.shape
        unknown = np.full(count, np.inf)
        return cls(
            np.zeros((count, width, outputs)), intercepts.copy(), unknown.copy(), unknown,
            np.zeros(count, np.int64),
        )  # fmt: skip

    def take(self, places: NDArray[np.intp]) -> CertifiedFits:
        """Return a copy of some fits."""
        return CertifiedFits(**{name: values[places] for name, values in vars(self).items()})

    def put(self, places: NDArray[np.intp], other: CertifiedFits) -> None:
        """Overwrite some fits by others."""
        for name, values in vars(other).items():
            getattr(self, name)[places] = values


@dataclass(frozen=True)
class FitSettings:
    """How long and where to solve.

    Attributes:
        max_iterations: Most iterations of a fit.
        device: Where the float32 passes run; float64 stays on the host.
        outputs: How many outputs all fits have together.
    """

    max_iterations: int
    device: str | torch.device
    outputs: int


class Solver:
    """Solves fits over one feature matrix, whose eigenbasis is found once in each precision.

    Args:
        features: (N, D); may be memory-mapped.
        weight: (N,) row weights that sum to 1.
        settings: How long and where.
    """

    def __init__(self, features: AnyFloats, weight: FloatArray, settings: FitSettings) -> None:
        self.features, self.weight, self.settings = features, weight, settings
        self._bases: dict[torch.dtype, Eigenbasis] = {}

    def solve(
        self,
        make_loss: Callable[[str | torch.device], Loss],
        start: CertifiedFits,
        penalties: FloatArray,
        gaps: FloatArray,
    ) -> CertifiedFits:
        """Solve Q fits, or solve them further.

        Args:
            make_loss: Builds the loss on a device.
            start: Q fits, whose weights and intercepts are where to start, and whose iterations count.
            penalties: (Q,).
            gaps: (Q,) largest relative gap of each fit.
        """
        fits, most = start.take(np.arange(len(penalties))), self.settings.max_iterations
        pending = np.flatnonzero(fits.gap > gaps)
        precisions: list[tuple[torch.dtype, str | torch.device]] = [(torch.float64, "cpu")]
        if self.features.size * self.settings.outputs > _SMALL:
            precisions.insert(0, (torch.float32, self.settings.device))
        outputs = start.intercepts.shape[1]
        for dtype, device in precisions:
            objective = Objective(
                self._basis(dtype, device),
                torch.from_numpy(self.weight).to(dtype).to(device),
                make_loss(device),
                torch.from_numpy(penalties).to(dtype).to(device),
            )
            for aim in _AIMS:
                for chunk in _chunks(pending, _HISTORY_BYTES // _history_bytes(objective, outputs)):
                    reached = _resume(objective, fits, chunk, aim * gaps[chunk], most)
                    loss = make_loss("cpu")
                    known = certify(self.features, self.weight, loss, reached, penalties[chunk], chunk)
                    fits.put(chunk, known)
                wanting = fits.gap[pending] > gaps[pending]
                pending = pending[wanting & (fits.iterations[pending] < most)]
                if not len(pending):
                    return fits
        return fits

    def _basis(self, dtype: torch.dtype, device: str | torch.device) -> Eigenbasis:
        if dtype not in self._bases:
            like = next(iter(self._bases.values()), None)
            self._bases[dtype] = rotate_features(
                self.features, self.weight, dtype=dtype, device=device, like=like
            )
        return self._bases[dtype]


def _history_bytes(objective: Objective, outputs: int) -> int:
    """Return the bytes one fit keeps while it runs."""
    x = objective.basis.coordinates
    return (2 * MEMORY + 10) * outputs * x.shape[1] * x.element_size()


def _resume(
    objective: Objective, fits: CertifiedFits, chunk: NDArray[np.intp], gaps: FloatArray, most: int
) -> CertifiedFits:
    """Take some fits on from where they are to their gaps, or to the end of their iterations."""
    start = objective.basis.express(
        torch.from_numpy(fits.weights[chunk]), torch.from_numpy(fits.intercepts[chunk])
    )
    minimum = minimise(
        objective, start, torch.from_numpy(chunk).to(start.device), gap=torch.from_numpy(gaps),
        budget=torch.from_numpy(most - fits.iterations[chunk]),
    )  # fmt: skip
    weights, intercepts = (one.numpy() for one in objective.basis.restore(minimum.parameters))
    unknown = np.full(len(chunk), np.inf)
    iterations = fits.iterations[chunk] + minimum.iterations.numpy()
    return CertifiedFits(weights, intercepts, unknown, unknown, iterations)


def certify(
    features: AnyFloats,
    weight: FloatArray,
    loss: Loss,
    reached: CertifiedFits,
    penalties: FloatArray,
    fits: NDArray[np.intp],
) -> CertifiedFits:
    """Settle the intercepts for given weights and bound how far the objective is above its minimum.

    The residuals at any logits are a dual point, and a feasible one once the intercepts are optimal, since
    then they sum to zero. The duality gap of that pair is ‖∇_W F‖²/(2·penalty) exactly: Fenchel's
    inequality is tight at the logits, which leaves ⟨W, G⟩ + ½·penalty·‖W‖² + ‖G‖²/(2·penalty) with G the
    gradient of the mean loss, and that is a perfect square.

    Args:
        features: (N, D).
        weight: (N,) row weights that sum to 1.
        loss: On the host.
        reached: Q fits, of which weights and intercepts count.
        penalties: (Q,).
        fits: (Q,) which of the loss's fits these are.

    Returns:
        The fits with settled intercepts, objective, and the bound on (F − F*)/F*: infinite where the
        intercepts would not settle or the bound is no smaller than the objective.
    """
    done = replace(
        reached,
        intercepts=reached.intercepts.copy(),
        objective=np.empty(len(penalties)),
        gap=np.empty(len(penalties)),
    )
    share = torch.from_numpy(weight)
    for chunk in _chunks(np.arange(len(penalties)), _fits_at_once(features, reached.intercepts.shape[1])):
        w, penalty = torch.from_numpy(reached.weights[chunk]), torch.from_numpy(penalties[chunk])
        scores, which = _Scores.of(features, w), torch.from_numpy(fits[chunk])
        b, balanced = _settle(scores, torch.from_numpy(reached.intercepts[chunk]), loss, which, share)
        mean_loss, slope = _slope(scores, b, loss, which, share)
        gradient = slope + penalty[:, None, None] * w
        objective = mean_loss + 0.5 * penalty * w.square().sum((1, 2))
        left = gradient.square().sum((1, 2)) / (2 * penalty)
        known = balanced & (left < objective)
        done.intercepts[chunk], done.objective[chunk] = b.numpy(), objective.numpy()
        done.gap[chunk] = torch.where(known, left / (objective - left), torch.inf).numpy()
    return done


@dataclass(frozen=True, eq=False)
class _Scores:
    """Scores X W of Q fits: kept, or computed anew by blocks of rows where they are too large for that.

    Attributes:
        features: (N, D).
        weights: (Q, D, K).
        kept: (Q, K, N) scores, or None.
    """

    features: AnyFloats
    weights: torch.Tensor
    kept: torch.Tensor | None

    @classmethod
    def of(cls, features: AnyFloats, weights: torch.Tensor) -> _Scores:
        small = 8 * len(features) * weights.shape[2] <= _LOGIT_BYTES
        return cls(features, weights, _project(features, weights) if small else None)

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield rows and their (Q, K, B) scores; kept ones all at once."""
        if self.kept is not None:
            yield slice(0, len(self.features)), self.kept
            return
        for rows in product_blocks(self.features, outputs=self.weights.shape[2]):
            yield rows, _project(self.features[rows], self.weights)


def _fits_at_once(features: AnyFloats, outputs: int) -> int:
    rows = len(features)
    if 8 * rows * outputs > _LOGIT_BYTES:
        rows = product_blocks(features, outputs=outputs)[0].stop
    return _LOGIT_BYTES // (8 * rows * outputs)


def _settle(
    scores: _Scores,
    intercepts: torch.Tensor,
    loss: Loss,
    fits: torch.Tensor,
    weight: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the best intercepts on given scores X W by Newton's method.

    A step is cut to length 1 in the largest intercept, within which the curvature cannot change by more
    than a constant factor (Bach 2010, Self-concordant analysis for logistic regression, section 2).

    Args:
        scores: Of Q fits.
        intercepts: (Q, K) to start from.
        loss: On the host.
        fits: (Q,).
        weight: (N,).

    Returns:
        (Q, K) intercepts, (Q,) whether the residuals sum to zero.
    """
    for left in range(_NEWTON_STEPS, -1, -1):
        slope, size = torch.zeros_like(intercepts), torch.zeros_like(intercepts[:, 0])
        hessian = torch.zeros(1, dtype=intercepts.dtype)
        for rows, block in scores.blocks():
            _, residual = loss(block + intercepts[:, :, None], fits, rows)
            slope += residual @ weight[rows]
            size += residual.abs().sum(1) @ weight[rows]
            hessian = hessian + loss.hessian(residual, fits, rows, weight[rows])
        balanced = slope.abs().sum(1) <= _SETTLED * size
        if balanced.all() or not left:
            break
        # Where all probabilities have run to 0 or 1 there is no curvature left, and the slope shows the way.
        hessian.diagonal(dim1=1, dim2=2).add_(_LEAST_CURVATURE)
        step = torch.linalg.solve(hessian, slope)
        step /= step.abs().amax(1, keepdim=True).clamp_min(1)
        intercepts = torch.where(balanced[:, None], intercepts, intercepts - step)
    return intercepts, balanced


def _slope(
    scores: _Scores, intercepts: torch.Tensor, loss: Loss, fits: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (Q,) mean losses and their (Q, D, K) gradients by the weights."""
    mean_loss, gradient = torch.zeros_like(intercepts[:, 0]), torch.zeros_like(scores.weights)
    for rows, block in scores.blocks():
        losses, residual = loss(block + intercepts[:, :, None], fits, rows)
        mean_loss += losses @ weight[rows]
        gradient += _correlate(scores.features[rows], residual.mul_(weight[rows]))
    return mean_loss, gradient


def _project(features: AnyFloats, weights: torch.Tensor) -> torch.Tensor:
    """Return (Q, K, N) scores X W in float64, reading the features in blocks of rows."""
    count, width, outputs = weights.shape
    flat = weights.transpose(1, 2).reshape(-1, width)
    scores = torch.empty((len(flat), len(features)), dtype=torch.float64)
    for rows in product_blocks(features):
        scores[:, rows] = flat @ torch.from_numpy(features[rows].astype(np.float64)).T
    return scores.view(count, outputs, -1)


def _correlate(features: AnyFloats, residual: torch.Tensor) -> torch.Tensor:
    """Return (Q, D, K) products of the features with (Q, K, N) residuals, in float64."""
    count, outputs, _ = residual.shape
    flat = residual.view(count * outputs, -1)
    total = torch.zeros((len(flat), features.shape[1]), dtype=torch.float64)
    for rows in product_blocks(features):
        total.addmm_(flat[:, rows], torch.from_numpy(features[rows].astype(np.float64)))
    return total.view(count, outputs, -1).transpose(1, 2)


def _chunks(places: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    size = max(1, size)
    return [places[start : start + size] for start in range(0, len(places), size)]
