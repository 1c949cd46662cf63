"""One measure against another: what a layer is like, and what of it can be read or transfers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from probekit.errors import InputError
from probekit.figures import series, style
from probekit.results.metrics import metric_facts
from probekit.results.table import ResultTable

COLUMNS = 3
_KEYS = ["model", "tap"]
_ENDS = ["value", "ci_low", "ci_high"]


def plot_relation(
    x: ResultTable,
    y: ResultTable,
    x_metric: str = "icc",
    y_metric: str = "accuracy",
    *,
    x_data: str | None = None,
    x_target: str | None = None,
    y_target: str | None = None,
) -> Figure:
    """Draw every tap of every model by two measures, a panel a data set; models are lines in order of depth.

    Invariance against transfer is one use: ``icc`` or ``perturbation_variance`` against ``accuracy``. A few
    models of different training are shown, not judged: taps of one network are no independent draws.

    Args:
        x: Table of the measure on the horizontal axis, such as that of ``measure_geometry``.
        y: Table of the other, such as that of ``probe``; both may be the same table.
        x_metric: A metric of ``x``.
        y_metric: A metric of ``y``.
        x_data: Data set that ``x_metric`` is taken from, the same in every panel; by default the panel's own.
        x_target: Target of ``x_metric``, where it has several.
        y_target: Target of ``y_metric``, where it has several.

    Raises:
        InputError: If a table lacks its metric, a tap has several values, or no tap stands in both tables.
    """
    left = _points(series.scored_rows(x, x_metric, data=x_data, target=x_target), x_metric, "x_target")
    right = _points(series.scored_rows(y, y_metric, target=y_target), y_metric, "y_target")
    keys = _KEYS if x_data is not None else ["data", *_KEYS]
    if x_data is not None:
        left = left.drop(columns="data")
    joined = right.merge(left[[*keys, *_ENDS]], on=keys, suffixes=("", "_x"))
    if not len(joined):
        raise InputError(
            "taps of the same models and data in both tables",
            f"none of {x_metric} and {y_metric}",
            "Measure both with the same taps, or name x_data",
        )
    names = list(dict.fromkeys(joined["data"]))
    columns = min(COLUMNS, len(names))
    lines = -(-len(names) // columns)
    with style.styled():
        figure = style.new_figure(0.6 + style.PANEL_WIDTH * columns, 0.9 + style.PANEL_HEIGHT * lines)
        grid = figure.subplots(lines, columns, squeeze=False)
        for spare in grid.ravel()[len(names) :]:
            spare.remove()
        handles: dict[str, Any] = {}
        for place, name in zip(grid.ravel(), names, strict=False):
            handles |= _draw(place, joined[joined["data"] == name], y)
            place.set_title(style.plain(str(name)))
            place.set_xlabel(metric_facts(x_metric).axis + (f", {style.plain(x_data)}" if x_data else ""))
        for row in grid:
            row[0].set_ylabel(metric_facts(y_metric).axis)
        style.add_legend(figure, list(handles.values()), list(handles))
        notes = [
            "Lines join the taps of a model in order of depth; the large marker is the deepest",
            "Bars: 95 % intervals",
            "Grey: random init",
            f"{joined['model'].nunique()} models: shown, not judged",
        ]
        style.add_footer(figure, notes)
    words = f"{metric_facts(y_metric).label} against {metric_facts(x_metric).label}, tap by tap."
    return style.finish(figure, words)


def _points(rows: pd.DataFrame, metric: str, name: str) -> pd.DataFrame:
    twice = rows.duplicated(["data", *_KEYS])
    if twice.any():
        targets = ", ".join(sorted({str(one) for one in rows["target"]}))
        raise InputError(
            f"one value of {metric} a tap", f"several, of the targets {targets}", f"Choose with {name}="
        )
    return rows[["data", *_KEYS, "depth", *_ENDS]]


def _draw(axes: Axes, points: pd.DataFrame, table: ResultTable) -> dict[str, Any]:
    looks, handles = style.looks(table.trained), {}
    for model in dict.fromkeys(points["model"]):
        own = points[points["model"] == model].sort_values("depth", kind="stable")
        look = looks.get(model, style.Look(style.RANDOM_GREY, "o", ":"))
        x, y = own["value_x"].to_numpy(), own["value"].to_numpy()
        bars: dict[str, Any] = {
            "xerr": _bars(own["value_x"], own["ci_low_x"], own["ci_high_x"]),
            "yerr": _bars(own["value"], own["ci_low"], own["ci_high"]),
        }
        axes.errorbar(x, y, **bars, fmt="none", ecolor=look.colour, alpha=0.35, linewidth=0.9, zorder=2)
        axes.plot(x, y, color=look.colour, linestyle=look.dashes, linewidth=1.1, zorder=3)
        sizes = [22.0] * (len(own) - 1) + [80.0]
        axes.scatter(
            x, y, s=sizes, marker=look.marker, color=look.colour, edgecolors="white", linewidths=0.6, zorder=4
        )
        label = style.plain(model) if model in looks else "random init"
        handles[label] = Line2D(
            [], [], color=look.colour, linestyle=look.dashes, marker=look.marker, markersize=5
        )
    return handles


def _bars(value: pd.Series[float], low: pd.Series[float], high: pd.Series[float]) -> NDArray[np.float64]:
    return np.asarray(np.nan_to_num(np.clip(np.stack([value - low, high - value]), 0, None)))
