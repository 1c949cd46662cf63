"""Layers against layers: a heat-map of one measure of similarity."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from probekit.errors import InputError
from probekit.figures import series, style
from probekit.figures.matrices import COLOURMAP, MISSING
from probekit.results.metrics import metric_facts
from probekit.results.presentation import fixed
from probekit.results.table import ResultTable

# Numbers are written into the cells of maps no larger than this.
WRITTEN = 13
_CELL_INCHES = 0.42


def plot_layers(table: ResultTable, metric: str = "cka_debiased", *, data: str | None = None) -> Figure:
    """Draw a measure of similarity, all layers against all, on the measure's own fixed scale.

    Args:
        table: Rows of ``measure_similarity``.
        metric: Which measure.
        data: One data set; by default the only one.

    Raises:
        InputError: If the table has no such rows, or several data sets.
    """
    rows = series.scored_rows(table, metric, data=data)
    if rows["data"].nunique() > 1:
        raise InputError("one data set", ", ".join(sorted(set(rows["data"]))), "Name it with `data=`")
    rows = rows.assign(layer=rows["model"] + " " + rows["tap"])
    order = list(dict.fromkeys(rows["layer"]))
    values = rows.pivot(index="layer", columns="target", values="value").reindex(order)
    values = values[[one for one in order if one in values.columns]]
    facts = metric_facts(metric)
    low, high = facts.low if facts.low is not None else 0.0, facts.high if facts.high is not None else 1.0
    # A debiased value a little below 0 is 0; only RSA has a scale on both sides.
    low = 0.0 if metric == "rsa" else low
    labels = [style.plain(one) for one in values.index]
    with style.styled():
        side = max(3.2, _CELL_INCHES * len(labels) + 2.2)
        figure = style.new_figure(min(side + 0.8, style.FULL_WIDTH), min(side, style.FULL_WIDTH))
        axes = figure.subplots()
        colours = colormaps[COLOURMAP].with_extremes(bad=MISSING)
        image = axes.imshow(np.ma.masked_invalid(values.to_numpy()), cmap=colours, vmin=low, vmax=high)
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6.5)
        axes.set_yticks(range(len(labels)), labels, fontsize=6.5)
        models = [str(one) for one in rows.drop_duplicates("layer")["model"]]
        for place in range(1, len(models)):
            if models[place] != models[place - 1]:
                axes.axhline(place - 0.5, color="white", linewidth=1.5)
                axes.axvline(place - 0.5, color="white", linewidth=1.5)
        if len(labels) <= WRITTEN:
            middle = (low + high) / 2
            for (i, j), value in np.ndenumerate(values.to_numpy()):
                if np.isfinite(value):
                    colour = "white" if value < middle else style.INK
                    axes.text(j, i, fixed(value, 2), ha="center", va="center", fontsize=6, color=colour)
        style.strip_axes(axes)
        figure.colorbar(image, ax=axes, shrink=0.7, label=facts.axis)
        n = rows["n"].dropna()
        null = rows["null"].dropna()
        notes = [
            f"{int(n.max())} images" if len(n) else "",
            "White lines part models",
            "White cells are empty",
        ]
        if len(null):
            notes.append(f"Null, pair by pair in the table: {fixed(null.min(), 2)} to {fixed(null.max(), 2)}")
        style.add_footer(figure, notes)
    name = str(rows["data"].iloc[0])
    return style.finish(figure, f"{facts.label}, all layers against all{f' ({name})' if name else ''}.")
