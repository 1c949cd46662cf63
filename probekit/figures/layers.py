"""Layers against layers: a heat-map of one measure of similarity, a panel a data set."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from probekit.figures import series, style
from probekit.figures.matrices import COLOURMAP, MISSING
from probekit.results.metrics import MetricFacts, kind_words, metric_facts
from probekit.results.presentation import fixed
from probekit.results.table import ResultTable

# Numbers are written into the cells of maps no larger than this.
WRITTEN = 13
COLUMNS = 2
_CELL_INCHES, _LABEL_INCHES = 0.3, 0.062


def plot_layers(table: ResultTable, metric: str = "cka_debiased", *, data: str | None = None) -> Figure:
    """Draw a measure of similarity, all layers against all, on the measure's own fixed scale.

    Args:
        table: Rows of ``measure_similarity``.
        metric: Which measure.
        data: One data set; by default all, in panels.

    Raises:
        InputError: If the table has no such rows.
    """
    rows = series.scored_rows(table, metric, data=data)
    rows = rows.assign(layer=rows["model"] + " " + rows["tap"])
    facts = metric_facts(metric)
    names = [str(one) for one in dict.fromkeys(rows["data"])]
    # In the order of the table, also where the first layers of it have no value.
    every = table.frame.assign(layer=table.frame["model"] + " " + table.frame["tap"])
    layers = every[every["layer"].isin(rows["layer"])].drop_duplicates("layer")
    labels, models = _labels(layers), [str(one) for one in layers["model"]]
    order = [str(one) for one in layers["layer"]]
    with style.styled():
        columns = min(len(names), COLUMNS)
        lines = -(-len(names) // columns)
        beside = _LABEL_INCHES * max(len(one) for one in labels[0])
        most = (1.1 * style.FULL_WIDTH - beside - 0.9) / columns
        side = min(max(2.4, _CELL_INCHES * len(order)), most)
        below = _LABEL_INCHES * max(len(one) for one in labels[1])
        figure = style.new_figure(beside + columns * side + 0.9, lines * (side + below + 0.3) + 0.4)
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for spare in grid[len(names) :]:
            spare.remove()
        axes = list(grid[: len(names)])
        for place, (one, name) in enumerate(zip(axes, names, strict=True)):
            own = rows[rows["data"] == name]
            image = _draw_map(one, own, order, metric, facts)
            _name_layers(one, labels, models, first=place % columns == 0)
            n = own["n"].dropna()
            counted = f"{int(n.max())} images" if len(n) else ""
            one.set_title(style.plain(" · ".join(filter(None, (name, counted)))))
        figure.colorbar(image, ax=axes, shrink=0.7, label=facts.axis)
        full = len(rows) == len(names) * len(order) ** 2
        style.add_footer(figure, ["" if full else "White cells are empty: the table says why", *_notes(rows)])
    known = ", ".join(filter(None, names))
    return style.finish(figure, f"{facts.label}, all layers against all{f' ({known})' if known else ''}.")


def _labels(layers: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return labels of rows, the first of each model with its name, and of columns, without names."""
    clear = not layers.duplicated(["model", "block"]).any() and bool((layers["block"] != "").all())
    short = [str(one) for one in layers["block" if clear else "tap"]]
    models, before = [str(one) for one in layers["model"]], ""
    rows = []
    for model, name in zip(models, short, strict=True):
        rows.append(name if model == before else f"{model} · {name}")
        before = model
    return [style.plain(one) for one in rows], [style.plain(one) for one in short]


def _draw_map(axes: Axes, rows: pd.DataFrame, order: list[str], metric: str, facts: MetricFacts) -> AxesImage:
    values = rows.pivot(index="layer", columns="target", values="value").reindex(index=order, columns=order)
    low, high = facts.low if facts.low is not None else 0.0, facts.high if facts.high is not None else 1.0
    # A debiased value a little below 0 is 0; only RSA has a scale on both sides.
    low = 0.0 if metric == "rsa" else low
    colours = colormaps[COLOURMAP].with_extremes(bad=MISSING)
    image = axes.imshow(np.ma.masked_invalid(values.to_numpy(np.float64)), cmap=colours, vmin=low, vmax=high)
    if len(order) <= WRITTEN:
        for (i, j), value in np.ndenumerate(values.to_numpy(np.float64)):
            if np.isfinite(value):
                ink = "white" if value < (low + high) / 2 else style.INK
                axes.text(j, i, fixed(value, 2), ha="center", va="center", fontsize=6, color=ink)
    style.strip_axes(axes)
    return image


def _name_layers(axes: Axes, labels: tuple[list[str], list[str]], models: list[str], *, first: bool) -> None:
    places = range(len(models))
    axes.set_xticks(places, labels[1], rotation=90, fontsize=6.5)
    axes.set_yticks(places, labels[0] if first else [""] * len(models), fontsize=6.5)
    for place in places[1:]:
        if models[place] != models[place - 1]:
            axes.axhline(place - 0.5, color="white", linewidth=1.5)
            axes.axvline(place - 0.5, color="white", linewidth=1.5)


def _notes(rows: pd.DataFrame) -> list[str]:
    notes = ["White lines part models, columns stand in the order of rows"]
    null, kinds = rows["null"].dropna(), [str(one) for one in rows["null_kind"].unique() if one]
    if len(null):
        low, high = (fixed(float(null.agg(end)), 2) for end in ("min", "max"))
        span = low if low == high else f"{low} to {high}, pair by pair in the table"
        notes.append(f"Null: {span} ({'; '.join(kind_words(one) for one in kinds)})")
    if rows["ci_low"].notna().any():
        notes.append("Intervals stand in the table")
    return notes
