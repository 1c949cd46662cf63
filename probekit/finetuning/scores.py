"""From the metrics of reset backbones to what each level carries: gains, shares, depths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probekit.finetuning.curves import SCRATCH, SELFFER, STATES, Point, curve_of
from probekit.finetuning.means import OVER_TRIALS, Values, mean_row
from probekit.functional.intervals import ratio_interval, t_interval

# Share of the full gain that counts as nearly all of it.
NEARLY = 0.9


@dataclass(frozen=True)
class Gains:
    """The first metric of one model at every point, a trial or a fold a value.

    Attributes:
        names: Groups in executed order.
        levels: Level of each group.
        values: Point → (T,) metric of each trial, in the same order of trials; NaN for one that failed.
        sign: 1 where more is better, −1 where less is.
    """

    names: tuple[str, ...]
    levels: tuple[str, ...]
    values: Mapping[Point, Values]
    sign: int

    def gain(self, kept: tuple[str, ...], mode: str) -> Values:
        """Return (T,) gains over scratch: nothing kept, mode random, same trial."""
        return self.sign * (self.at(kept, mode) - self.values[Point((), SCRATCH)])

    def at(self, kept: tuple[str, ...], mode: str) -> Values:
        """Return (T,) values of a point; one at which nothing is replaced has no mode."""
        return self.values[Point(kept, "" if kept == self.names else mode)]

    @property
    def full(self) -> Values:
        """(T,) gains of the whole backbone over scratch."""
        return self.gain(self.names, "")

    def why_no_share(self) -> str:
        """Return why shares of the full gain mean nothing; empty where they do."""
        full = self.full[np.isfinite(self.full)]
        if len(full) < 2:
            return "one trial: whether the full gain is more than noise is not known"
        low, high = t_interval(full)
        if low <= 0 <= high:
            return f"the full gain is within noise: {full.mean():.3g} [{low:.3g}, {high:.3g}]"
        return "" if full.mean() > 0 else f"the backbone is worse than scratch: {full.mean():.3g}"


def score_rows(
    gains: Gains, curves: Sequence[str], modes: Sequence[str], kind: str = OVER_TRIALS
) -> Iterator[dict[str, Any]]:
    """Yield gains, recovered fractions, the high-level share, the depth of 90 %, the reuse share.

    gain(n) = M(n) − M(scratch); recovered(n) = gain(n) / gain(full), mean gain over mean gain; high-level
    share = 1 − recovered(all but the high level kept), so that 1 says that only the high level carries the
    gain; d90 = least n on the prefix curve with recovered(n) ≥ 0.9; reuse share = (M(full) − M(nothing kept,
    matched statistics)) / (M(full) − M(scratch)); co-adaptation(n) = M(scratch) − M(selffer n), where the
    first n groups of what was trained from scratch stay as they are, and the others are drawn and trained
    again: groups that only work with the rest they were trained with lose. ``kind`` is that of the intervals.
    Source: after Matsoukas et al., What Makes Transfer Learning Work for Medical Images (CVPR 2022), section
    3; Yosinski et al., How Transferable Are Features in Deep Neural Networks (NeurIPS 2014), section 2.
    """
    why = gains.why_no_share()
    yield {"metric": "gain"} | mean_row(gains.full, kind) | _at(gains.names, "", "")
    states = [curve for curve in curves if curve in STATES]
    for mode in modes if states else ():
        for curve in states:
            for kept in curve_of(gains.names, curve):
                if kept == gains.names or Point(kept, mode) not in gains.values:
                    continue
                found = gains.gain(kept, mode)
                share = _share(found, gains.full, why, kind)
                yield {"metric": "gain"} | mean_row(found, kind) | _at(kept, mode, curve)
                yield {"metric": "recovered_fraction"} | share | _at(kept, mode, curve)
        yield from _high_level_share(gains, mode, why, kind)
        if "prefix" in curves:
            yield _depth_90(gains, mode, why)
    if Point((), "stats") in gains.values:
        lost = gains.full - gains.gain((), "stats")
        yield {"metric": "reuse_share"} | _share(lost, gains.full, why, kind) | _at((), "stats", "")
    for point in gains.values:
        if point.mode == SELFFER:
            lost = -gains.gain(point.kept, SELFFER)
            yield {"metric": "co_adaptation"} | mean_row(lost, kind) | _at(point.kept, SELFFER, SELFFER)


def _high_level_share(gains: Gains, mode: str, why: str, kind: str) -> Iterator[dict[str, Any]]:
    kept = tuple(name for name, level in zip(gains.names, gains.levels, strict=True) if level != "high")
    if kept in ((), gains.names) or Point(kept, mode) not in gains.values:
        return
    lost = gains.full - gains.gain(kept, mode)
    yield {"metric": "high_level_share"} | _share(lost, gains.full, why, kind) | _at(kept, mode, "")


def steps_to(steps: Sequence[int], values: Sequence[float], aim: float, rising: bool) -> float | None:
    """Return the step at which a curve first reaches a value, on straight lines between its points.

    Source: after Raghu, Zhang, Kleinberg and Bengio, *Transfusion* (NeurIPS 2019), section 6.

    Args:
        steps: Ascending.
        values: One a step.
        aim: What is to be reached.
        rising: Whether from below.

    Returns:
        None if it is never reached.

    Examples:
        >>> steps_to([0, 10, 20], [0.0, 0.5, 1.0], 0.75, True)
        15.0
    """
    sign = 1 if rising else -1
    before: tuple[int, float] | None = None
    for step, value in zip(steps, values, strict=True):
        if sign * (value - aim) >= 0:
            if before is None or value == before[1]:
                return float(step)
            return float(before[0] + (aim - before[1]) / (value - before[1]) * (step - before[0]))
        before = step, value
    return None


def _depth_90(gains: Gains, mode: str, why: str) -> dict[str, Any]:
    row = {"metric": "depth_90"} | _at((), mode, "prefix")
    if why:
        return row | {"value": None, "status": why}
    for n, kept in enumerate(curve_of(gains.names, "prefix")):
        if np.nanmean(gains.gain(kept, mode)) >= NEARLY * np.nanmean(gains.full):
            return row | {"value": float(n), "kept": list(kept)}
    raise AssertionError("the whole backbone recovers all of its own gain")


def _share(part: Values, full: Values, why: str, kind: str) -> dict[str, Any]:
    """Return a ratio of means with its interval by Fieller's theorem, trials paired; or why there is none."""
    if why:
        return {"value": None, "status": why}
    both = np.isfinite(part) & np.isfinite(full)
    x, y = part[both], full[both]
    row: dict[str, Any] = {"value": float(x.mean() / y.mean()), "n": len(x)}
    low, high = ratio_interval(x, y)
    if np.isfinite(low):
        row |= {"ci_low": low, "ci_high": high, "ci_kind": kind}
    return row


def _at(kept: Sequence[str], mode: str, curve: str) -> dict[str, Any]:
    return {"kept": list(kept), "mode": mode, "curve": curve}
