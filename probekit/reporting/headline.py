"""The headline: the best tap of every model and target, beside its null and its random-init control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from probekit.reporting.likeness import is_similarity
from probekit.reporting.span import Span, digits
from probekit.results.choosing import TapChoice, choose_taps
from probekit.results.metrics import MetricFacts, kind_words, metric_facts
from probekit.results.presentation import primary_metrics
from probekit.results.schema import read_params
from probekit.results.table import ResultTable

# Size of the drawing beside each value, in pixels.
STRIP_WIDTH, STRIP_HEIGHT = 150.0, 18.0
# More models than this are ranked: nobody finds the best among them in the order of the table.
MOST_IN_ORDER = 32


@dataclass(frozen=True)
class HeadlineRow:
    """One line of the headline."""

    model: str
    tap: str
    level: str
    chosen_on: str
    value: Span
    null: Span
    random: Span
    best: bool
    strip: dict[str, float]


@dataclass(frozen=True)
class HeadlineBlock:
    """All models on all targets of one data set that one metric judges, drawn to one scale.

    Where neither end of the metric is better, ``judged`` is False: the taps are those of the highest value.
    """

    data: str
    label: str
    judged: bool
    n: str
    units: str
    ci_kind: str
    null_kind: str
    targets: dict[str, list[HeadlineRow]]
    scale: tuple[str, str]


@dataclass(frozen=True)
class _Found:
    """What one line of the headline says, before it is drawn."""

    row: pd.Series[Any]
    on: str
    value: Span
    null: Span
    random: Span


def headline_blocks(table: ResultTable) -> list[HeadlineBlock]:
    """Return the headline of a table, one block per metric and data set.

    Differences have none, and neither have layers against layers: see `likeness_blocks`.
    """
    if is_similarity(table):
        return []
    blocks, trained = [], set(table.trained)
    for metric in primary_metrics(table.frame):
        if metric.endswith("_difference"):
            continue
        choices = {
            group: choice for group, choice in choose_taps(table.frame, metric).items() if group[1] in trained
        }
        for data in dict.fromkeys(group[0] for group in choices):
            own = {group[1:]: choice for group, choice in choices.items() if group[0] == data}
            blocks.append(_block(table, metric, data, own))
    return blocks


def comparison_rows(table: ResultTable) -> list[dict[str, Any]]:
    """Return the paired comparisons of a table, smallest adjusted p first."""
    rows = table.frame[table.frame["metric"].str.endswith("_difference")]
    made: list[dict[str, Any]] = []
    for held, params in zip(rows.to_dict("records"), read_params(rows), strict=True):
        if "p_holm" in params:
            row = {str(column): value for column, value in held.items()}
            span = Span.of(row["value"], row["ci_low"], row["ci_high"])
            row |= {"span": span, "versus": params["versus"], "p": params["p"], "p_holm": params["p_holm"]}
            made.append(row | {"label": metric_facts(row["metric"]).label})
    return sorted(made, key=lambda row: float(row["p_holm"]))


def _block(
    table: ResultTable, metric: str, data: str, choices: dict[tuple[str, str], TapChoice]
) -> HeadlineBlock:
    frame = table.frame
    same = (frame["metric"] == metric) & (frame["data"] == data) & frame["value"].notna()
    scored = frame[same & ~frame["split"].isin(("train", "val"))]
    facts = metric_facts(metric)
    targets = [one for one in dict.fromkeys(scored["target"]) if any(one == target for _, target in choices)]
    found = {target: _found(table, scored[scored["target"] == target], choices) for target in targets}
    spans = [span for rows in found.values() for one in rows for span in (one.value, one.null, one.random)]
    low, high = _scale(facts, spans)
    own = scored[scored["model"].isin(set(table.trained))]
    counts = sorted({int(n) for n in own["n"].dropna()})
    return HeadlineBlock(
        data=data,
        label=facts.axis,
        judged=facts.higher_is_better is not None,
        units="test images" if _only(own["split"]) == "test" else "images",
        n=f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "",
        ci_kind=kind_words(_only(own["ci_kind"])),
        null_kind=kind_words(_only(own["null_kind"])),
        targets={target: _rows(rows, facts, low, high) for target, rows in found.items()},
        scale=(digits(low), digits(high)),
    )


def _found(
    table: ResultTable, scored: pd.DataFrame, choices: dict[tuple[str, str], TapChoice]
) -> list[_Found]:
    """Look up each trained model's row at its chosen tap, its null and its controls."""
    controls = scored[scored["model"].isin(set(table.controls))]
    by_model = dict(iter(scored.groupby("model", sort=False)))
    found = []
    for model in [one for one in table.trained if one in by_model]:
        own = by_model[model]
        choice = choices.get((model, str(own["target"].iloc[0])))
        if choice is not None:
            row = own[own["tap"] == choice.tap].iloc[0]
            value = Span.of(row["value"], row["ci_low"], row["ci_high"])
            null = Span.of(row["null"], row["null_low"], row["null_high"])
            found.append(_Found(row, choice.on, value, null, _random_at(controls, row)))
    return found


def _rows(found: list[_Found], facts: MetricFacts, low: float, high: float) -> list[HeadlineRow]:
    if len(found) > MOST_IN_ORDER:
        sign = 1.0 if facts.higher_is_better is False else -1.0
        found = sorted(found, key=lambda one: sign * one.value.value)
    best = _best(found, facts)
    return [
        HeadlineRow(
            model=str(one.row["model"]),
            tap=str(one.row["tap"]),
            level=str(one.row["level"]),
            chosen_on=one.on,
            value=one.value,
            null=one.null,
            random=one.random,
            best=i in best,
            strip=_strip(one.value, one.null, one.random, low, high),
        )
        for i, one in enumerate(found)
    ]


def _random_at(controls: pd.DataFrame, row: pd.Series[Any]) -> Span:
    """Return mean and range of the controls of the row's architecture at the row's tap."""
    drawn = controls[(controls["arch"] == row["arch"]) & (controls["tap"] == row["tap"])]["value"]
    if not len(drawn):
        return Span.of(float("nan"), float("nan"), float("nan"))
    ends = (float(drawn.min()), float(drawn.max())) if len(drawn) > 1 else (float("nan"), float("nan"))
    return Span.of(float(drawn.mean()), *ends)


def _scale(facts: MetricFacts, spans: list[Span]) -> tuple[float, float]:
    """Return the ends of the drawing: what is possible if that is bounded, else what occurs."""
    ends = [end for one in spans for end in (one.low, one.high) if not np.isnan(end)] or [0.0, 1.0]
    low = min(0.0, *ends) if facts.low is None else facts.low
    high = max(ends) if facts.high is None else facts.high
    return low, high if high > low else low + 1.0


def _strip(value: Span, null: Span, drawn: Span, low: float, high: float) -> dict[str, float]:
    strip = {}
    for name, span in (("value", value), ("null", null), ("random", drawn)):
        if not np.isnan(span.value):
            for end in ("low", "value", "high"):
                share = (getattr(span, end) - low) / (high - low)
                strip[f"{name}_{end}"] = round(2.0 + (STRIP_WIDTH - 4.0) * min(max(share, 0.0), 1.0), 1)
    return strip


def _best(found: list[_Found], facts: MetricFacts) -> set[int]:
    """Return the places of the best value, unless it does not even clear its null."""
    if facts.higher_is_better is None or len(found) < 2:
        return set()
    sign = 1.0 if facts.higher_is_better else -1.0
    top = max(sign * one.value.value for one in found)
    return {i for i, one in enumerate(found) if sign * one.value.value == top and _clears(one, facts)}


def _clears(one: _Found, facts: MetricFacts) -> bool:
    if np.isnan(one.null.value):
        return True
    return one.value.low > one.null.high if facts.higher_is_better else one.value.high < one.null.low


def _only(values: pd.Series[Any]) -> str:
    kinds = {str(value) for value in values if value}
    return kinds.pop() if len(kinds) == 1 else ""
