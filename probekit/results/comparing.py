"""Paired comparisons of probes on the same test images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probekit.errors import InputError, near_names
from probekit.functional.intervals import PairedDifference, adjust_holm, paired_difference
from probekit.results.choosing import choose_taps
from probekit.results.presentation import primary_metrics
from probekit.seeds import random_stream

if TYPE_CHECKING:
    from probekit.results.table import ResultTable

_NOT_SCORES = ("id", "target", "prediction")


@dataclass(frozen=True)
class Side:
    """One of the two probes of a comparison."""

    data: str
    target: str
    model: str
    tap: str

    def __str__(self) -> str:
        return f"{self.model} at {self.tap}"


def compare_table(
    table: ResultTable,
    metric: str | None,
    target: str | None,
    *,
    by: str,
    baseline: str | None,
    at: str,
    draws: int,
    level: float,
) -> ResultTable:
    """Do what ``ResultTable.compare`` says.

    Raises:
        InputError: If names are unknown, per-image scores are missing, or images differ.
    """
    for name, value, known in (("by", by, ("model", "tap")), ("at", at, ("tap", "best"))):
        if value not in known:
            raise InputError(f"{name} among {', '.join(known)}", repr(value), "Choose one")
    metric = metric or primary_metrics(table.frame)[0]
    frame = _frame_of(table, metric, target)
    pairs = list(
        _model_pairs(table, frame, metric, baseline, at) if by == "model" else _tap_pairs(frame, baseline)
    )
    if not pairs:
        raise InputError(
            f"two {by}s to compare", "fewer", "Add some, or choose `at='best'` where models share no tap"
        )
    scores = _Scores(table, metric)
    stream_keys = ("compare", str(table.provenance.get("run_id", "")), metric)
    results = []
    for one, other in pairs:
        stream = random_stream(*stream_keys, one.data, one.target, str(one), str(other))
        results.append(
            paired_difference(*scores.aligned(one, other), draws=draws, stream=stream, level=level)
        )
    adjusted = adjust_holm([result.p_value for result in results])
    rows = [
        _row(table, frame, metric, pair, scores, result, float(p_holm), (by, draws, level, len(pairs)))
        for pair, result, p_holm in zip(pairs, results, adjusted, strict=True)
    ]
    provenance = {
        **table.provenance,
        "comparison": {
            "metric": metric,
            "by": by,
            "baseline": baseline,
            "at": at,
            "draws": draws,
            "level": level,
        },
    }
    return type(table).from_rows(rows, provenance)


class _Scores:
    """Per-image scores of the sides, each read once."""

    def __init__(self, table: ResultTable, metric: str) -> None:
        self._table, self._metric = table, metric
        self._held: dict[Side, pd.Series[Any]] = {}

    def of(self, side: Side) -> pd.Series[Any]:
        """Return one side's scores, indexed by image id."""
        if side not in self._held:
            self._held[side] = self._read(side)
        return self._held[side]

    def aligned(self, one: Side, other: Side) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return both sides' scores, (N,) each, on the same images in the same order."""
        a, b = self.of(one), self.of(other)
        if len(a) != len(b) or not a.index.sort_values().equals(b.index.sort_values()):
            alone = a.index.symmetric_difference(b.index)
            raise InputError(
                f"the same test images behind {one} and {other}",
                f"{len(a)} and {len(b)}, {len(alone)} of them on one side only, such as {alone[0]!r}",
                "Probe both on the same data, split and targets",
            )
        return a.to_numpy(), b.reindex(a.index).to_numpy()

    def _read(self, side: Side) -> pd.Series[Any]:
        scores = self._table.scores(side.model, side.tap, side.target, data=side.data or None)
        if self._metric not in scores.columns:
            known = [str(name) for name in scores.columns if name not in _NOT_SCORES]
            raise InputError(
                f"per-image scores of {self._metric!r} for {side}",
                f"only {', '.join(known) or 'none'}",
                f"Nearest: {near_names(self._metric, known) or 'none'}",
            )
        held = pd.Series(scores[self._metric].to_numpy(np.float64), index=scores["id"].astype(str))
        if held.index.has_duplicates:
            twice = held.index[held.index.duplicated()][0]
            raise InputError(f"every image once for {side}", f"{twice!r} twice", "Give images unique ids")
        return held


def _frame_of(table: ResultTable, metric: str, target: str | None) -> pd.DataFrame:
    """Return the rows whose sides are compared: one per data set, target, model and tap."""
    frame = table.frame[~table.frame["split"].isin(("train", "val"))]
    known = [str(name) for name in frame["metric"].unique()]
    if metric not in known:
        raise InputError("a metric of the table", repr(metric), f"Nearest: {near_names(metric, known)}")
    frame = frame[(frame["metric"] == metric) & (frame["status"] == "ok")]
    targets = [str(name) for name in frame["target"].unique()]
    if target is None and len(targets) > 1:
        raise InputError("one target", ", ".join(targets), "Name it with `target=`")
    if target is not None and target not in targets:
        raise InputError("a target of the metric", repr(target), f"Nearest: {near_names(target, targets)}")
    frame = frame if target is None else frame[frame["target"] == target]
    return frame.drop_duplicates(["data", "target", "model", "tap"])


def _model_pairs(
    table: ResultTable, frame: pd.DataFrame, metric: str, baseline: str | None, at: str
) -> Iterator[tuple[Side, Side]]:
    models = [str(name) for name in frame["model"].unique()]
    named = _named_pairs("model", models, [name for name in models if name in set(table.trained)], baseline)
    choices = choose_taps(table.frame, metric)
    for (data, target), rows in frame.groupby(["data", "target"], sort=False):
        taps = {name: list(rows.loc[rows["model"] == name, "tap"]) for name in models}
        for one, other in named:
            if at == "best":
                picked = [choices.get((str(data), name, str(target))) for name in (one, other)]
                if picked[0] is not None and picked[1] is not None:
                    yield (
                        Side(str(data), str(target), one, picked[0].tap),
                        Side(str(data), str(target), other, picked[1].tap),
                    )
                continue
            for tap in taps[one]:
                if tap in taps[other]:
                    yield Side(str(data), str(target), one, tap), Side(str(data), str(target), other, tap)


def _tap_pairs(frame: pd.DataFrame, baseline: str | None) -> Iterator[tuple[Side, Side]]:
    known = [str(name) for name in frame["tap"].unique()]
    if baseline is not None and baseline not in known:
        raise InputError("a tap of the table", repr(baseline), f"Nearest: {near_names(baseline, known)}")
    for (data, target, model), rows in frame.groupby(["data", "target", "model"], sort=False):
        taps = [str(tap) for tap in rows["tap"]]
        if baseline is not None and baseline not in taps:
            continue
        for one, other in _named_pairs("tap", taps, taps, baseline):
            yield (
                Side(str(data), str(target), str(model), one),
                Side(str(data), str(target), str(model), other),
            )


def _named_pairs(
    what: str, known: Sequence[str], free: Sequence[str], baseline: str | None
) -> list[tuple[str, str]]:
    """Pair every name with the baseline, or the free ones with each other, the later minus the earlier."""
    if baseline is None:
        return [(later, earlier) for earlier, later in combinations(free, 2)]
    if baseline not in known:
        raise InputError(f"a {what} of the table", repr(baseline), f"Nearest: {near_names(baseline, known)}")
    # Controls are compared with a trained baseline only by naming one of them as the baseline.
    return [(name, baseline) for name in free if name != baseline]


def _row(
    table: ResultTable,
    frame: pd.DataFrame,
    metric: str,
    pair: tuple[Side, Side],
    scores: _Scores,
    result: PairedDifference,
    p_holm: float,
    settings: tuple[str, int, float, int],
) -> dict[str, Any]:
    """Return the row of one comparison: what the two sides share, and the difference."""
    one, other = pair
    by, draws, level, count = settings
    same = (frame["model"] == one.model) & (frame["tap"] == one.tap)
    base = frame[same & (frame["data"] == one.data) & (frame["target"] == one.target)].iloc[0]
    kept = (
        "run_id",
        "analysis",
        "arch",
        "weights",
        "split",
        "block",
        "level",
        "depth",
        "readout",
        "d",
        "n_classes",
    )
    row = {column: None if pd.isna(base[column]) else base[column] for column in kept}
    sides = {"model": one.model, "tap": one.tap, "data": one.data, "target": one.target}
    params = {
        "versus": other.model if by == "model" else other.tap,
        "versus_tap": other.tap,
        "first": float(scores.of(one).mean()),
        "second": float(scores.of(other).mean()),
        "p": float(result.p_value),
        "p_holm": p_holm,
        "comparisons": count,
        "draws": draws,
    }
    return {
        **row,
        **sides,
        "metric": f"{metric}_difference",
        "value": float(result.value),
        "ci_low": float(result.low),
        "ci_high": float(result.high),
        "ci_kind": f"paired bootstrap, {level:.0%}",
        "null": 0.0,
        "null_kind": "no difference",
        "n": len(scores.of(one)),
        "params": params,
    }
