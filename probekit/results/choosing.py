"""Which tap is the best: chosen on val wherever the rows let us, never silently on test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from probekit.results.metrics import metric_facts
from probekit.results.schema import OK

# The metric that judges a probe, by kind of target, or stands for an analysis; the first one present counts.
PRIMARY = (
    "accuracy", "mean_ap", "r2", "icc", "perturbation_variance", "energy_inside", "what_accuracy",
    "where_accuracy", "offset_r2",
)  # fmt: skip
# Key in the params under which a row says how its probe scored on val; higher is better.
VAL = "val"

Group = tuple[str, str, str]  # (data, model, target)


@dataclass(frozen=True)
class TapChoice:
    """The tap chosen for one model and target.

    Attributes:
        tap: Its name.
        on: ``val``, or ``test`` where nothing else was there to choose on (then it is optimistic).
    """

    tap: str
    on: str


def choose_taps(frame: pd.DataFrame, metric: str) -> dict[Group, TapChoice]:
    """Choose one tap for every (data, model, target) that has the metric.

    In this order: the val rows of the metric; the ``val`` in the params of its test rows; the ``val`` of
    the primary metric's rows; else the test value itself. Rows with a status other than ``'ok'`` are never
    chosen; among equals the shallower tap is.
    """
    usable = frame[
        (frame["status"] == OK) & frame["value"].notna() & frame["metric"].isin((metric, *PRIMARY))
    ]
    columns = ["data", "model", "target", "metric", "split", "tap", "depth", "value", "params"]
    # Group → (metric, "val" or "scored") → points.
    points: dict[Group, dict[tuple[str, str], list[_Point]]] = {}
    for data, model, target, name, split, tap, depth, value, params in usable[columns].itertuples(
        index=False, name=None
    ):
        if split != "train":
            kind = "val" if split == "val" else "scored"
            held = points.setdefault((data, model, target), {}).setdefault((name, kind), [])
            held.append(_Point(tap, depth, value, json.loads(params).get(VAL)))
    return {group: _choose(held, metric) for group, held in points.items() if held.get((metric, "scored"))}


def best_rows(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the scored rows of a metric at each chosen tap."""
    taps = {(*group, choice.tap) for group, choice in choose_taps(frame, metric).items()}
    rows = frame[(frame["metric"] == metric) & ~frame["split"].isin(("train", "val"))]
    keys = zip(rows["data"], rows["model"], rows["target"], rows["tap"], strict=True)
    return rows[[key in taps for key in keys]]


class _Point(NamedTuple):
    """One row, as far as choosing goes."""

    tap: str
    depth: float
    value: float
    val: Any


def _choose(points: dict[tuple[str, str], list[_Point]], metric: str) -> TapChoice:
    sign = -1.0 if metric_facts(metric).higher_is_better is False else 1.0
    scored = points[metric, "scored"]
    taps = {point.tap for point in scored}
    on_val = [point for point in points.get((metric, "val"), []) if point.tap in taps]
    if on_val:
        return TapChoice(_highest(on_val, [sign * point.value for point in on_val]), "val")
    primary = next((points[one, "scored"] for one in PRIMARY if (one, "scored") in points), [])
    for rows in (scored, [point for point in primary if point.tap in taps]):
        scores = [float(point.val) for point in rows if isinstance(point.val, int | float)]
        if rows and len(scores) == len(rows):
            return TapChoice(_highest(rows, scores), "val")
    return TapChoice(_highest(scored, [sign * point.value for point in scored]), "test")


def _highest(points: Sequence[_Point], scores: Sequence[float]) -> str:
    """Return the tap with the highest mean score: several rows of a tap are draws or seeds."""
    held: dict[str, list[float]] = {}
    depths: dict[str, float] = {}
    for point, score in zip(points, scores, strict=True):
        held.setdefault(point.tap, []).append(score)
        depths.setdefault(point.tap, np.nan_to_num(point.depth, nan=np.inf))
    return max(held, key=lambda tap: (fmean(held[tap]), -depths[tap]))
