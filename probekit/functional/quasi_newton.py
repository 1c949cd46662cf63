"""L-BFGS for many penalised fits at once.

All fits share their rows, so one matrix product serves them all; a fit that is solved leaves the batch. What
makes the iterations few is the metric the recursion starts from: the Hessian of a generalised linear fit is
close to (mean Hessian by the logits) ⊗ (covariance of the features) + penalty, which is diagonal in the
eigenbases of the two. What makes them cheap is the pass: rows go by in blocks that stay in the cache, and
each block yields its share of value and gradient before the next is read.

Letters: Q fits, K outputs of a fit, N rows, J coordinates (the last is the constant 1), B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol

import torch

from probekit.compute import torch_threads
from probekit.functional.eigenbasis import Eigenbasis

# Pairs (step, change of gradient) the recursion remembers: 5 cost more iterations, 20 save none.
MEMORY = 10
_SUFFICIENT_DECREASE = 1e-4
_BACKTRACKS = 25
# Iterations for which the curvature of the loss is taken to be the same.
_REFRESH = 5
_LEAST_CURVATURE = 1e-10
# Iterations without a lower objective or bound after which a fit has met the rounding of its precision.
_PATIENCE = 30
# Bytes of a block of rows: half of a common second-level cache, or enough to fill an accelerator.
_BLOCK_BYTES = {"cpu": 2**21}
_BLOCK_BYTES_ELSEWHERE = 2**28
_LEAST_ROWS = 256


class Loss(Protocol):
    """A loss that is convex in the logits of a row."""

    def __call__(
        self, logits: torch.Tensor, fits: torch.Tensor, rows: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return losses and residuals of a block of rows.

        Args:
            logits: (Q, K, B), may be overwritten.
            fits: (Q,) which of all fits these are.
            rows: Which of all rows these are.

        Returns:
            (Q, B) losses, and (Q, K, B) derivatives by the logits: probability − truth.
        """

    def hessian(
        self, residual: torch.Tensor, fits: torch.Tensor, rows: slice, weight: torch.Tensor
    ) -> torch.Tensor:
        """Return (Q, K, K) weighted sums over a block of second derivatives by the logits, made regular.

        Along a direction in which the loss does not change, the weights themselves are added up.

        Args:
            residual: (Q, K, B) probability − truth.
            fits: (Q,) which of all fits these are.
            rows: Which of all rows these are.
            weight: (B,) row weights.
        """


@dataclass(frozen=True)
class Evaluation:
    """Objective and gradient of Q fits.

    Attributes:
        value: (Q,) objective, float64 on the host.
        gradient: (Q, K, J).
        curvature: Mean Hessian of the loss by the logits: (Q, K, K), or (Q, K) its diagonal where there are
            more outputs than coordinates; (Q, 0) where it was not asked for.
    """

    value: torch.Tensor
    gradient: torch.Tensor
    curvature: torch.Tensor


@dataclass(frozen=True)
class Objective:
    """Weighted mean loss + ½·penalty·‖W‖² of Q fits over the same rows; intercepts are free.

    Attributes:
        basis: The rows.
        weight: (N,) row weights that sum to 1.
        loss: Of a row.
        penalties: (Q,) one a fit.
        workers: Threads that share the blocks of a pass; None: this one alone.
        hands: How many threads those are.
    """

    basis: Eigenbasis
    weight: torch.Tensor
    loss: Loss
    penalties: torch.Tensor
    workers: ThreadPoolExecutor | None = None
    hands: int = 1

    def decay(self, fits: torch.Tensor) -> torch.Tensor:
        """Return (Q, 1, J) penalties per coordinate: 0 at the intercept."""
        decay = self.penalties[fits][:, None, None].repeat(1, 1, self.basis.coordinates.shape[1])
        decay[..., -1] = 0
        return decay

    def evaluate(self, parameters: torch.Tensor, fits: torch.Tensor, *, curved: bool) -> Evaluation:
        """Evaluate (Q, K, J) parameters of the given fits in one pass over the rows.

        Args:
            parameters: (Q, K, J).
            fits: (Q,) which of all fits these are.
            curved: Whether to find the curvature too.
        """
        blocks = self._blocks(parameters.shape[0] * parameters.shape[1])
        if self.workers is None or len(blocks) == 1:
            parts = [self._sum(parameters, fits, blocks, curved)]
        else:
            shares = [blocks[hand :: self.hands] for hand in range(min(self.hands, len(blocks)))]
            parts = list(self.workers.map(lambda share: self._sum(parameters, fits, share, curved), shares))
        value, gradient, curvature = (reduce(torch.add, part) for part in zip(*parts, strict=True))
        pull = self.decay(fits) * parameters
        value += 0.5 * _inner(pull, parameters).cpu().double()
        return Evaluation(value, gradient + pull, curvature)

    def _sum(
        self, parameters: torch.Tensor, fits: torch.Tensor, blocks: Sequence[slice], curved: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what some blocks of rows add to (Q,) values, (Q, K, J) gradients and the curvature."""
        count, outputs, width = parameters.shape
        flat = parameters.reshape(-1, width)
        gradient = torch.zeros_like(flat)
        value = torch.zeros(count, dtype=torch.float64)
        curvature = flat.new_zeros((count, 0))
        if curved:
            curvature = flat.new_zeros(
                (count, outputs, outputs) if 1 < outputs <= width else (count, outputs)
            )
        for rows in blocks:
            x, weight = self.basis.coordinates[rows], self.weight[rows]
            losses, residual = self.loss((flat @ x.T).view(count, outputs, -1), fits, rows)
            value += (losses @ weight).cpu().double()
            if curvature.dim() == 3:
                curvature += self.loss.hessian(residual, fits, rows, weight)
            elif curved:
                # |residual| is 1 − p for the true class and p for the others, so p(1 − p) = |r|(1 − |r|).
                curvature += (residual.abs() - residual.square()) @ weight
            gradient.addmm_(residual.mul_(weight).view(-1, len(x)), x)
        return value, gradient.view_as(parameters), curvature

    def _blocks(self, columns: int) -> list[slice]:
        x = self.basis.coordinates
        bytes_a_row = x.element_size() * max(x.shape[1], columns)
        size = max(_LEAST_ROWS, _BLOCK_BYTES.get(x.device.type, _BLOCK_BYTES_ELSEWHERE) // bytes_a_row)
        return [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]


@contextmanager
def _sharing(objective: Objective) -> Iterator[Objective]:
    """Let torch's threads take a block each, rather than all of them every operation of one block.

    Small operations that wait for all threads wait for the slowest: on a machine with other work to do that
    costs ten times the arithmetic.
    """
    count = torch.get_num_threads()
    if count == 1 or objective.weight.device.type != "cpu":
        yield objective
        return
    # Threads started in here take over the count of 1.
    with torch_threads(1), ThreadPoolExecutor(count) as workers:
        yield replace(objective, workers=workers, hands=count)


@dataclass(frozen=True)
class Minimum:
    """Where the iterations ended.

    Attributes:
        parameters: (Q, K, J).
        iterations: (Q,) counts, on the host.
    """

    parameters: torch.Tensor
    iterations: torch.Tensor


@dataclass(frozen=True)
class _Metric:
    """The metric the recursion starts from:  A ⊗ Λ + penalty,  A = U diag(a) Uᵀ.

    Attributes:
        curvature: (Q, K) a.
        axes: (Q, K, K) U, or None where A is diagonal.
        diagonal: (Q, K, J) a·Λ + penalty.
    """

    curvature: torch.Tensor
    axes: torch.Tensor | None
    diagonal: torch.Tensor

    @classmethod
    def of(cls, curvature: torch.Tensor, fits: torch.Tensor, objective: Objective) -> _Metric:
        axes = None
        if curvature.dim() == 3:
            # On the host: not every device finds eigenvectors, and these matrices are small.
            values, vectors = torch.linalg.eigh(curvature.cpu())
            curvature, axes = values.to(curvature.device), vectors.to(curvature.device)
        curvature = curvature.clamp_min(_LEAST_CURVATURE)
        diagonal = curvature[..., None] * objective.basis.variances + objective.decay(fits)
        return cls(curvature, axes, diagonal)

    def take(self, places: torch.Tensor) -> _Metric:
        axes = None if self.axes is None else self.axes[places]
        return _Metric(self.curvature[places], axes, self.diagonal[places])

    def turn(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return (Q, K, …) as seen from the axes."""
        return gradient if self.axes is None else self.axes.transpose(1, 2) @ gradient

    def solve(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return (Q, K, J) of the inverse metric times a gradient."""
        step = self.turn(gradient) / self.diagonal
        return step if self.axes is None else self.axes @ step


@dataclass(frozen=True)
class _Pair:
    """One step of a fit and how the gradient changed along it."""

    step: torch.Tensor
    change: torch.Tensor
    inverse: torch.Tensor  # 1 / ⟨step, change⟩, or 0 where the pair is to be ignored

    def take(self, places: torch.Tensor) -> _Pair:
        return _Pair(self.step[places], self.change[places], self.inverse[places])


@dataclass(frozen=True)
class _Progress:
    """The lowest objective and gap bound of each fit so far, and for how many iterations: on the host."""

    value: torch.Tensor
    bound: torch.Tensor
    idle: torch.Tensor

    def take(self, places: torch.Tensor) -> _Progress:
        return _Progress(self.value[places], self.bound[places], self.idle[places])

    def after(self, value: torch.Tensor, bound: torch.Tensor, rounding: float) -> _Progress:
        lower = (value < self.value - 10 * rounding * value.abs()) | (bound < 0.9 * self.bound)
        return _Progress(
            torch.where(lower, torch.minimum(value, self.value), self.value),
            torch.where(lower, torch.minimum(bound, self.bound), self.bound),
            torch.where(lower, 0, self.idle + 1),
        )


@dataclass(frozen=True)
class _Batch:
    """The fits still running."""

    fits: torch.Tensor
    parameters: torch.Tensor
    now: Evaluation
    metric: _Metric
    pairs: Sequence[_Pair]

    def take(self, places: torch.Tensor) -> _Batch:
        return _Batch(
            self.fits[places],
            self.parameters[places],
            _take(self.now, places),
            self.metric.take(places),
            [pair.take(places) for pair in self.pairs],
        )


def minimise(
    objective: Objective, start: torch.Tensor, fits: torch.Tensor, *, gap: torch.Tensor, budget: torch.Tensor
) -> Minimum:
    """Minimise Q convex objectives from (Q, K, J) starting points.

    A fit leaves once its gap bound is below its ``gap`` times its objective, or once rounding hides every
    progress. Nocedal and Wright, Numerical Optimization (2006), algorithm 7.5, with backtracking.

    Args:
        objective: What to minimise.
        start: (Q, K, J).
        fits: (Q,) which of the objective's fits they are.
        gap: (Q,) relative gap to stop at, on the host.
        budget: (Q,) most iterations of each fit, on the host.
    """
    with _sharing(objective) as shared:
        return _iterate(shared, start, fits, gap, budget)


def _iterate(
    objective: Objective, start: torch.Tensor, fits: torch.Tensor, gap: torch.Tensor, budget: torch.Tensor
) -> Minimum:
    parameters, iterations = start.clone(), torch.zeros(len(start), dtype=torch.int64)
    places, rounding = torch.arange(len(start)), torch.finfo(start.dtype).eps
    now = objective.evaluate(start, fits, curved=True)
    batch = _Batch(fits, start, now, _Metric.of(now.curvature, fits, objective), [])
    none = torch.full((len(start),), torch.inf, dtype=torch.float64)
    progress = _Progress(value=none, bound=none, idle=torch.zeros_like(iterations))
    for iteration in range(int(budget.max()) + 1):
        value, bound = batch.now.value, _gap_bound(batch, objective)
        progress = progress.after(value, bound, rounding)
        near = bound <= gap[places] * (value - bound)
        done = near | (progress.idle >= _PATIENCE) | (budget[places] <= iteration)
        if done.any():
            parameters[places[done]] = batch.parameters[done]
            iterations[places[done]] = iteration
            batch, places, progress = batch.take(~done), places[~done], progress.take(~done)
            if not len(places):
                break
        if iteration and iteration % _REFRESH == 0:
            batch = replace(batch, metric=_Metric.of(batch.now.curvature, batch.fits, objective))
        batch = _advance(batch, objective, curved=(iteration + 1) % _REFRESH == 0)
    return Minimum(parameters, iterations)


def _gap_bound(batch: _Batch, objective: Objective) -> torch.Tensor:
    """Return (Q,) bounds on how far the objective is above its minimum, on the host.

    ‖∇F‖²/(2·penalty), by strong convexity; along the intercept, which has no penalty, the curvature of the
    loss stands in where it is the smaller of the two.
    """
    penalties = objective.penalties[batch.fits]
    weights, intercepts = (
        batch.now.gradient[..., :-1],
        batch.metric.turn(batch.now.gradient[..., -1:])[..., 0],
    )
    least = torch.minimum(penalties[:, None], batch.metric.curvature)
    bound = weights.square().sum((1, 2)) / penalties + (intercepts.square() / least).sum(1)
    return 0.5 * bound.cpu().double()


def _direction(batch: _Batch) -> torch.Tensor:
    """Return (Q, K, J) descent directions: the two-loop recursion from the metric."""
    direction, shares = batch.now.gradient.clone(), []
    for pair in reversed(batch.pairs):
        share = pair.inverse * _inner(pair.step, direction)
        direction -= share[:, None, None] * pair.change
        shares.append(share)
    direction = batch.metric.solve(direction) * _metric_scale(batch)
    for pair, share in zip(batch.pairs, reversed(shares), strict=True):
        back = pair.inverse * _inner(pair.change, direction)
        direction += (share - back)[:, None, None] * pair.step
    return direction.neg_()


def _metric_scale(batch: _Batch) -> torch.Tensor:
    """Return (Q, 1, 1) factors that make the metric agree with the latest pair, within reason."""
    if not batch.pairs:
        return torch.ones_like(batch.parameters[:, :1, :1])
    last = batch.pairs[-1]
    # γ = ⟨s, y⟩ / ⟨y, H₀ y⟩
    scale = 1 / (last.inverse * _inner(last.change, batch.metric.solve(last.change)))
    usable = (last.inverse > 0) & scale.isfinite()
    return torch.where(usable, scale.clamp(0.05, 20), 1.0)[:, None, None]


def _advance(batch: _Batch, objective: Objective, *, curved: bool) -> _Batch:
    """Step downhill, shortening steps that do not descend enough."""
    direction = _direction(batch)
    slope = _inner(batch.now.gradient, direction).cpu().double()
    length = torch.ones_like(slope)
    reached = objective.evaluate(batch.parameters + direction, batch.fits, curved=curved)
    # A loss is rounded like the logits it is a difference of, however small it is itself.
    rounding = torch.finfo(direction.dtype).eps * batch.now.value.abs().clamp_min(1)
    for _ in range(_BACKTRACKS):
        enough = batch.now.value + _SUFFICIENT_DECREASE * length * slope + rounding
        short = torch.nonzero(~(reached.value <= enough))[:, 0]
        if not len(short):
            break
        length[short] *= _shortening(batch.now.value, reached.value, length * slope)[short]
        tried = (batch.parameters + _each(length, direction))[short]
        _put(reached, short, objective.evaluate(tried, batch.fits[short], curved=curved))
    else:
        length[short] = 0
        reached.value[short], reached.gradient[short] = batch.now.value[short], batch.now.gradient[short]
    step = _each(length, direction)
    change = reached.gradient - batch.now.gradient
    along = _inner(step, change)
    positive = along > torch.finfo(along.dtype).tiny
    pair = _Pair(step, change, torch.where(positive, 1 / along.clamp_min(torch.finfo(along.dtype).tiny), 0.0))
    pairs = [*batch.pairs, pair][-MEMORY:]
    return _Batch(batch.fits, batch.parameters + step, reached, batch.metric, pairs)


def _shortening(before: torch.Tensor, after: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Return the factor to the lowest point of the parabola through both values and the slope."""
    factor = -slope / (2 * (after - before - slope))
    return factor.nan_to_num(0.1, 0.1, 0.1).clamp(0.1, 0.5)


def _each(length: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    return length.to(direction.device, direction.dtype)[:, None, None] * direction


def _inner(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left * right).sum((1, 2))


def _take(evaluation: Evaluation, places: torch.Tensor) -> Evaluation:
    return Evaluation(evaluation.value[places], evaluation.gradient[places], evaluation.curvature[places])


def _put(evaluation: Evaluation, places: torch.Tensor, other: Evaluation) -> None:
    evaluation.value[places] = other.value
    evaluation.gradient[places] = other.gradient
    evaluation.curvature[places] = other.curvature
