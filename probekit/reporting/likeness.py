"""The headline of layers against layers: the most alike layers of different models, level by level."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from probekit.reporting.span import Span
from probekit.results.metrics import kind_words, metric_facts
from probekit.results.schema import LEVELS
from probekit.results.table import ResultTable

METRIC = "cka_debiased"


@dataclass(frozen=True)
class LikenessRow:
    """Two layers of different models, with what chance and the untrained networks give."""

    one: str
    other: str
    value: Span
    null: Span
    random: Span


@dataclass(frozen=True)
class LikenessBlock:
    """The most alike layers of one data set, by level."""

    data: str
    label: str
    n: str
    ci_kind: str
    null_kind: str
    levels: dict[str, list[LikenessRow]]


def is_similarity(table: ResultTable) -> bool:
    """Return whether a table holds layers against layers."""
    return bool(len(table.frame)) and bool((table.frame["analysis"] == "similarity").all())


def likeness_blocks(table: ResultTable) -> list[LikenessBlock]:
    """Return the most alike layers by data set, level and pair of models; a single model has its controls.

    Tables of other analyses have none.
    """
    if not is_similarity(table):
        return []
    frame = table.frame[(table.frame["metric"] == METRIC) & table.frame["value"].notna()]
    frame = frame.assign(layer=frame["model"] + " " + frame["tap"])
    places = frame.drop_duplicates("layer").set_index("layer")
    known = frame[frame["target"].isin(places.index)]
    known = known.assign(
        other=known["target"].map(places["model"]), beside=known["target"].map(places["level"])
    )
    blocks = [_block(table, str(data), own) for data, own in known.groupby("data", sort=False)]
    return [block for block in blocks if block.levels]


def _block(table: ResultTable, data: str, rows: pd.DataFrame) -> LikenessBlock:
    trained = table.trained
    pairs = list(combinations(trained, 2)) or [(one, two) for one in trained for two in table.controls]
    levels: dict[str, list[LikenessRow]] = {}
    for level in [one for one in ("", *LEVELS) if (rows["level"] == one).any()]:
        at = rows[(rows["level"] == level) & (rows["beside"] == level)]
        for one, other in pairs:
            own = at[(at["model"] == one) & (at["other"] == other)]
            if len(own):
                levels.setdefault(level, []).append(
                    _row(own.iloc[int(own["value"].to_numpy().argmax())], rows, table)
                )
    counts = rows["n"].dropna()
    return LikenessBlock(
        data=data,
        label=metric_facts(METRIC).axis,
        n=str(int(counts.max())) if len(counts) else "",
        ci_kind=_kind(rows["ci_kind"]),
        null_kind=_kind(rows["null_kind"]),
        levels=levels,
    )


def _row(row: pd.Series[Any], rows: pd.DataFrame, table: ResultTable) -> LikenessRow:
    sides = rows[rows["layer"].isin((row["layer"], row["target"])) & rows["other"].isin(table.controls)]
    # A network and its untrained self: the same tap, and so the same architecture.
    drawn = sides[
        [target.endswith(f" {tap}") for target, tap in zip(sides["target"], sides["tap"], strict=True)]
    ]
    missing = float("nan")
    ends = (
        (float(drawn["value"].min()), float(drawn["value"].max())) if len(drawn) > 1 else (missing, missing)
    )
    mean = float(drawn["value"].mean()) if len(drawn) else missing
    return LikenessRow(
        one=str(row["layer"]),
        other=str(row["target"]),
        value=Span.of(row["value"], row["ci_low"], row["ci_high"]),
        null=Span.of(row["null"], row["null_low"], row["null_high"]),
        random=Span.of(mean, *ends),
    )


def _kind(values: pd.Series[Any]) -> str:
    kinds = {str(value) for value in values if value}
    return kind_words(kinds.pop()) if len(kinds) == 1 else ""
