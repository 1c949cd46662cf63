"""Rows of a table to curves: what is drawn, decided before anything is drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probekit.errors import InputError, near_names
from probekit.results.choosing import choose_taps
from probekit.results.metrics import metric_facts
from probekit.results.schema import LEVELS
from probekit.results.table import ResultTable

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One line of a figure: T points in order of x.

    Attributes:
        model: Model it belongs to.
        label: Words for the legend.
        x: (T,) places.
        y: (T,) values.
        low: (T,) lower ends of the interval, NaN where there is none.
        high: (T,) upper ends.
        null: (T,) null values, NaN where there is none.
        null_low: (T,) lower ends of the null's range.
        null_high: (T,) upper ends.
        clear: (T,) whether the interval stays clear of the null's range.
        star: Place of the chosen tap among the T points, or None.
    """

    model: str
    label: str
    x: FloatArray
    y: FloatArray
    low: FloatArray
    high: FloatArray
    null: FloatArray
    null_low: FloatArray
    null_high: FloatArray
    clear: NDArray[np.bool_]
    star: int | None = None


@dataclass(frozen=True)
class Band:
    """Mean and range of several lines at shared places, such as random-init draws or nulls.

    ``model`` is the only model it belongs to, whose colour it then takes; '' if it belongs to several.
    """

    label: str
    x: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray
    model: str = ""


def scored_rows(table: ResultTable, metric: str, **equal: str | None) -> pd.DataFrame:
    """Return the scored rows of a metric that have a value.

    Raises:
        InputError: If the metric, or what it is narrowed to, is not in the table.
    """
    frame = table.frame[~table.frame["split"].isin(("train", "val"))]
    for column, value in {"metric": metric, **equal}.items():
        if value is None:
            continue
        known = [str(name) for name in frame[column].unique()]
        if value not in known:
            raise InputError(
                f"a {column} that the table has",
                repr(value),
                f"Nearest: {near_names(value, known) or 'none'}",
            )
        frame = frame[frame[column] == value]
    rows = frame[frame["value"].notna()]
    if not len(rows):
        raise InputError(
            f"rows of {metric!r} with a value", "; ".join(frame["status"].unique()), "See their status"
        )
    return rows


def panels(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the (data, target) pairs of the rows, in order."""
    return list(dict.fromkeys(zip(rows["data"].tolist(), rows["target"].tolist(), strict=True)))


def curves(table: ResultTable, rows: pd.DataFrame, x: str = "depth") -> list[Curve]:
    """Return one curve per model (per model and opponent for differences), controls left out.

    Args:
        table: The whole table, for the order of models and the choice of taps.
        rows: Rows of one metric, data set and target.
        x: A column of the schema, or a key of the params.

    Raises:
        InputError: If several rows of one line stand at one place and are not repeats over seeds.
    """
    controls = set(table.controls)
    metric = str(rows["metric"].iloc[0])
    # Where neither end is better, no tap is the best.
    judged = metric_facts(metric).higher_is_better is not None
    choices = choose_taps(table.frame, metric) if judged else {}
    keyed = rows.assign(place=_places(rows, x), versus=_params(rows, "versus"), several=_readouts(rows))
    found = []
    for model in table.models:
        if model in controls:
            continue
        own = keyed[keyed["model"] == model]
        for (versus, readout), line in own.groupby(["versus", "several"], sort=False):
            label = f"{model} − {versus}" if versus else f"{model} ({readout})" if readout else model
            choice = choices.get((str(line["data"].iloc[0]), model, str(line["target"].iloc[0])))
            found.append(_curve(line, model, label, choice.tap if choice and x == "depth" else None))
    return found


def random_bands(table: ResultTable, rows: pd.DataFrame, x: str = "depth") -> list[Band]:
    """Return mean and range of the random-init controls, one band per architecture."""
    controls = set(table.controls)
    drawn, trained = rows[rows["model"].isin(controls)], rows[~rows["model"].isin(controls)]
    archs = list(dict.fromkeys(drawn["arch"]))
    bands = []
    for arch in archs:
        own = drawn[drawn["arch"] == arch]
        of = list(trained.loc[trained["arch"] == arch, "model"].unique())
        alone = str(of[0]) if len(archs) > 1 and len(of) == 1 else ""
        label = "random init" if len(archs) == 1 or alone else f"random init, {arch}"
        values = pd.DataFrame({"x": _places(own, x), "y": own["value"].to_numpy()})
        bands.append(_band(label, values, values, values, model=alone))
    return bands


def null_bands(lines: Sequence[Curve]) -> list[Band]:
    """Return the null of the lines: one band if they share their places, else one per line."""
    lines = [line for line in lines if not np.isnan(line.null).all()]
    if not lines:
        return []
    shared = all(np.array_equal(line.x, lines[0].x) for line in lines)
    groups = [list(lines)] if shared else [[line] for line in lines]
    bands = []
    for group in groups:
        x = np.concatenate([line.x for line in group])
        centre = np.concatenate([line.null for line in group])
        low = np.concatenate([np.where(np.isnan(line.null_low), line.null, line.null_low) for line in group])
        high = np.concatenate(
            [np.where(np.isnan(line.null_high), line.null, line.null_high) for line in group]
        )
        parts = (pd.DataFrame({"x": x, "y": values}) for values in (centre, low, high))
        bands.append(_band("null", *parts, model="" if shared else group[0].model))
    return bands


def level_spans(rows: pd.DataFrame) -> list[tuple[str, float, float]]:
    """Return (level, start, end) along depth, or nothing where models disagree or levels are unknown."""
    known = rows[rows["level"].isin(LEVELS)].drop_duplicates(["depth", "level"]).sort_values("depth")
    if not len(known) or known["depth"].duplicated().any() or rows["depth"].isna().any():
        return []
    # Halfway between taps means something only where all models have taps at the same depths.
    if len({frozenset(own["depth"]) for _, own in rows.groupby("model", sort=False)}) > 1:
        return []
    depths, levels = known["depth"].to_numpy(), [str(level) for level in known["level"]]
    spans: list[tuple[str, float, float]] = []
    start = -np.inf
    for i, level in enumerate(levels):
        if i + 1 == len(levels) or levels[i + 1] != level:
            end = np.inf if i + 1 == len(levels) else float(depths[i] + depths[i + 1]) / 2.0
            spans.append((level, start, end))
            start = end
    # A level that comes back after another has no span of its own.
    return spans if len({level for level, _, _ in spans}) == len(spans) else []


def block_ticks(rows: pd.DataFrame, limit: int = 24) -> tuple[list[float], list[str]] | None:
    """Return depths and block names for the axis if all models share few enough of them, else None."""
    sets = {tuple(sorted(set(own["block"]))) for _, own in rows.groupby("model", sort=False)}
    places = rows.drop_duplicates(["depth", "block"]).sort_values("depth")
    if len(sets) != 1 or len(places) > limit or (places["block"] == "").any():
        return None
    if places["depth"].duplicated().any() or places["block"].duplicated().any():
        return None
    return places["depth"].tolist(), [str(name) for name in places["block"]]


def _curve(line: pd.DataFrame, model: str, label: str, chosen: str | None) -> Curve:
    line = line.sort_values("place", kind="stable")
    if line["place"].duplicated().any():
        line = _over_seeds(line, label)
    value = line["value"].to_numpy()
    low, high = line["ci_low"].to_numpy(), line["ci_high"].to_numpy()
    null = line["null"].to_numpy()
    null_low, null_high = line["null_low"].to_numpy(), line["null_high"].to_numpy()
    at = np.flatnonzero((line["tap"] == chosen).to_numpy()) if chosen is not None else np.array([], int)
    return Curve(
        model=model,
        label=label,
        x=line["place"].to_numpy(np.float64),
        y=value,
        low=low,
        high=high,
        null=null,
        null_low=null_low,
        null_high=null_high,
        clear=_clear(str(line["metric"].iloc[0]), (value, low, high), (null, null_low, null_high)),
        star=int(at[0]) if len(at) else None,
    )


def _clear(
    metric: str,
    ends: tuple[FloatArray, FloatArray, FloatArray],
    null: tuple[FloatArray, FloatArray, FloatArray],
) -> NDArray[np.bool_]:
    """Return where the interval lies wholly on the better side of the null's range; True without a null."""
    value, low, high = (np.where(np.isnan(one), ends[0], one) for one in ends)
    centre, null_low, null_high = (np.where(np.isnan(one), null[0], one) for one in null)
    above, below = low > null_high, high < null_low
    if metric.endswith("_difference"):
        clear = above | below
    else:
        better = metric_facts(metric).higher_is_better
        clear = above if better else below if better is False else above | below
    return np.asarray(clear | np.isnan(centre) | np.isnan(value))


def _over_seeds(line: pd.DataFrame, label: str) -> pd.DataFrame:
    """Average repeats over seeds; the interval becomes their range."""
    seeds = line[["place", "pretrain_seed", "trial_seed"]]
    if seeds.duplicated().any():
        raise InputError(
            f"one row at each place of the line {label!r}",
            f"several of {line['metric'].iloc[0]!r} that do not differ in their seed",
            "Narrow the table with `where`",
        )
    groups = line.groupby("place", sort=True)
    first = groups.first()
    first["value"] = groups["value"].mean()
    first["ci_low"], first["ci_high"] = groups["value"].min(), groups["value"].max()
    first["null_low"], first["null_high"] = groups["null_low"].min(), groups["null_high"].max()
    return first.reset_index()


def _band(label: str, *parts: pd.DataFrame, model: str) -> Band:
    centre, low, high = parts
    means = centre.groupby("x")["y"].mean()
    lows, highs = low.groupby("x")["y"].min(), high.groupby("x")["y"].max()
    return Band(
        label, means.index.to_numpy(np.float64), means.to_numpy(), lows.to_numpy(), highs.to_numpy(), model
    )


def _places(rows: pd.DataFrame, x: str) -> list[float]:
    values = rows[x].tolist() if x in rows.columns else [json.loads(text).get(x) for text in rows["params"]]
    places = [float("nan") if value is None or pd.isna(value) else float(value) for value in values]
    if np.isnan(places).any():
        raise InputError(
            f"a number for {x!r} in every row", "rows without one", "Draw another kind of figure"
        )
    return places


def _params(rows: pd.DataFrame, key: str) -> list[str]:
    return [str(json.loads(text).get(key, "")) for text in rows["params"]]


def _readouts(rows: pd.DataFrame) -> list[str]:
    """Name the readout where one model is read in several ways at one place, else ''."""
    twice = rows.groupby(["model", "depth"], dropna=False)["readout"].nunique().max() > 1
    return [str(name) if twice else "" for name in rows["readout"]]
