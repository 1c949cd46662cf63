"""Pictures: R² by place, and images beside what a layer lets be read of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from probekit.errors import InputError
from probekit.figures import series, style
from probekit.figures.matrices import COLOURMAP, MISSING
from probekit.files import safe_name
from probekit.results.presentation import fixed
from probekit.results.table import ResultTable

_TILE = 0.95
_ALL = "all"


def plot_places(table: ResultTable, *, data: str | None = None) -> Figure:
    """Draw R² of the pixels by their place in the image: a row a model, a column a tap.

    Args:
        table: That of ``reconstruct``.
        data: One data set; by default the only one.

    Raises:
        InputError: If the table has no such rows or maps, or several data sets.
    """
    rows = _rows(table, data)
    models = [name for name in table.models if name in set(rows["model"])]
    columns = int(rows.groupby("model")["tap"].nunique().max())
    with style.styled():
        figure = style.new_figure(min(style.FULL_WIDTH, 1.6 + 1.25 * columns), 1.0 + 1.35 * len(models))
        grid = figure.subplots(len(models), columns, squeeze=False)
        colours = colormaps[COLOURMAP].with_extremes(bad=MISSING)
        for line, model in zip(grid, models, strict=True):
            own = rows[rows["model"] == model].sort_values("depth", kind="stable")
            for spare in line[len(own) :]:
                spare.remove()
            for place, (_, row) in zip(line, own.iterrows(), strict=False):
                cells = _map(table, row, "pixel_r2")
                image = place.imshow(cells, cmap=colours, vmin=0, vmax=1)
                place.set_title(style.plain(row["block"], 14), fontsize=7)
                place.set_xlabel(f"R² {fixed(row['value'], 2)}", fontsize=7)
                bare(place)
            line[0].set_ylabel(style.plain(model, 18), fontsize=8)
        figure.colorbar(image, ax=grid.ravel().tolist(), shrink=0.6, label="R² of the cell")
        style.add_footer(figure, [f"{int(rows['n'].max())} test images", _size(cells)])
    return style.finish(figure, "R² of pixels by their place in the image, model by tap.")


def plot_examples(table: ResultTable, model: str | None = None, *, data: str | None = None) -> Figure:
    """Draw test images at low resolution, and what is read or made of them from each tap of a model.

    Args:
        table: That of ``reconstruct``.
        model: By default the first.
        data: One data set; by default the only one.

    Raises:
        InputError: If the table has no such model or examples, or several data sets.
    """
    rows = _rows(table, data)
    name = model or str(rows["model"].iloc[0])
    own = rows[rows["model"] == name].sort_values("depth", kind="stable")
    if not len(own):
        raise InputError("a model of the table", repr(name), f"Choose among {', '.join(table.models)}")
    shown = [_map(table, row, "examples") for _, row in own.iterrows()]
    count = shown[0].shape[1]
    with style.styled():
        figure = style.new_figure(1.2 + _TILE * count, 0.9 + _TILE * (1 + len(own)))
        grid = figure.subplots(1 + len(own), count, squeeze=False)
        labels = ["image", *(f"{row['block']}\nR² {fixed(row['value'], 2)}" for _, row in own.iterrows())]
        for line, label, pictures in zip(
            grid, labels, [shown[0][0], *(one[1] for one in shown)], strict=True
        ):
            for place, picture in zip(line, pictures, strict=True):
                place.imshow(picture, vmin=0, vmax=1)
                bare(place)
            line[0].set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")
        style.add_footer(figure, ["Test images, evenly spaced", _size(shown[0][0, 0])])
    return style.finish(figure, f"Test images, and what is read of them from each tap of {name}.")


def _rows(table: ResultTable, data: str | None) -> pd.DataFrame:
    rows = series.scored_rows(table, "pixel_r2", target=_ALL, data=data)
    if rows["data"].nunique() > 1:
        raise InputError("one data set", ", ".join(sorted(set(rows["data"]))), "Name it with `data=`")
    return rows


def _map(table: ResultTable, row: pd.Series[Any], name: str) -> NDArray[np.float64]:
    place = "/".join(safe_name(str(row[part])) for part in ("data", "model", "tap"))
    return np.asarray(table.attachments[f"maps/{place}/{name}.npy"])


def _size(cells: NDArray[np.float64]) -> str:
    return f"{cells.shape[0]} × {cells.shape[1]} cells of mean colour"


def bare(axes: Any) -> None:  # noqa: ANN401 - matplotlib's Axes
    """Take ticks and frame off a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
