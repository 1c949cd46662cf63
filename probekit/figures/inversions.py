"""Made images beside the true ones, where they differ, and how their residuals fell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from probekit.errors import InputError
from probekit.figures import style
from probekit.figures.places import bare
from probekit.files import safe_name
from probekit.results.presentation import fixed
from probekit.results.schema import OK, read_params
from probekit.results.table import ResultTable

METRIC, SCORE = "feature_residual", "psnr"
_TILE = 1.0
# Squared error, mean over colours, at which the colour scale of error maps ends.
_MOST_ERROR = 0.1
_ERRORS = "magma"


def plot_inversions(table: ResultTable, *, data: str | None = None, number: int = 0) -> Figure:
    """Draw one true image and what is made of it from each tap (columns) of each model (rows).

    Under a picture stand the residual of the features and, where all images came to the target residual, the
    peak signal to noise over all images; without it the picture may not be compared.

    Args:
        table: That of ``reconstruct`` by inversion.
        data: One data set; by default the only one.
        number: Which of the images.

    Raises:
        InputError: If the table has no made images, or several data sets, or not so many images.
    """
    return _grid(table, data, number, errors=False)


def plot_error_maps(table: ResultTable, *, data: str | None = None, number: int = 0) -> Figure:
    """Draw where what is made of one image differs from it: squared error, mean over colours and draws.

    Args:
        table: That of ``reconstruct`` by inversion.
        data: One data set; by default the only one.
        number: Which of the images.

    Raises:
        InputError: If the table has no made images, or several data sets, or not so many images.
    """
    return _grid(table, data, number, errors=True)


def plot_residuals(table: ResultTable, *, data: str | None = None) -> Figure:
    """Draw the residual of every image and draw against the step: a panel a tap, a model a colour.

    Args:
        table: That of ``reconstruct`` by inversion.
        data: One data set; by default the only one.

    Raises:
        InputError: If the table has no curves, or several data sets.
    """
    rows = _rows(table, data)
    models = [name for name in table.models if name in set(rows["model"])]
    looks = style.looks(models)
    columns = int(rows.groupby("model")["tap"].nunique().max())
    with style.styled():
        figure = style.new_figure(min(style.FULL_WIDTH, 0.6 + 2.1 * columns), 0.9 + style.PANEL_HEIGHT)
        panels = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
        for model in models:
            own = rows[rows["model"] == model].sort_values("depth", kind="stable")
            for axes, (_, row) in zip(panels, own.iterrows(), strict=False):
                curves = _attached(table, row, "curves", "residual.parquet")
                for first, (_, curve) in enumerate(curves.groupby(["id", "draw"], sort=False)):
                    axes.plot(
                        curve["step"], curve["residual"], color=looks[model].colour, linewidth=0.8, alpha=0.6,
                        linestyle=looks[model].dashes, label=None if first else style.plain(model, 18),
                    )  # fmt: skip
        target = read_params(rows)[0]["target_residual"]
        for place, axes in enumerate(panels):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.axhline(target, color="0.4", linewidth=0.8, linestyle=":")
            axes.set_xlabel("Step")
            axes.set_title(f"tap {place + 1} of {columns}, by depth", fontsize=8)
        panels[0].set_ylabel("Relative residual of the features")
        panels[0].legend(fontsize=7, frameon=False)
        style.add_footer(figure, ["A line an image and draw of the prior", f"dotted: target {target:g}"])
    return style.finish(figure, "Residual of features of made images against the step, tap by tap.")


def _grid(table: ResultTable, data: str | None, number: int, *, errors: bool) -> Figure:
    rows = _rows(table, data)
    models = [name for name in table.models if name in set(rows["model"])]
    columns = 1 + int(rows.groupby("model")["tap"].nunique().max())
    true = np.asarray(_attached(table, rows.iloc[0], "pictures", "true.npy"))
    if not 0 <= number < len(true):
        raise InputError(f"an image from 0 to {len(true) - 1}", str(number), "Count from 0")
    scores = _scores(table, rows)
    with style.styled():
        height = 0.9 + len(models) * (_TILE + 0.5)
        figure = style.new_figure(min(style.FULL_WIDTH, 1.2 + _TILE * 1.15 * columns), height)
        grid = figure.subplots(len(models), columns, squeeze=False)
        for line, model in zip(grid, models, strict=True):
            own = rows[rows["model"] == model].sort_values("depth", kind="stable")
            first = np.asarray(_attached(table, own.iloc[0], "pictures", "true.npy"))[number]
            line[0].imshow(first)
            line[0].set_title("image", fontsize=7)
            line[0].set_ylabel(style.plain(model, 18), fontsize=8)
            for spare in line[1 + len(own) :]:
                spare.remove()
            for axes, (_, row) in zip(line[1:], own.iterrows(), strict=False):
                _show(axes, table, row, number, errors=errors)
                axes.set_title(style.plain(row["block"], 14), fontsize=7)
                axes.set_xlabel(_caption(row, scores.get((model, row["tap"]))), fontsize=6.5)
            for axes in line[: 1 + len(own)]:
                bare(axes)
        unranked = "not ranked: some image ended above the target residual"
        notes = [f"image {number + 1} of {len(true)}", "r residual of the features"]
        if errors:
            notes.append(f"squared error from 0 (dark) to {_MOST_ERROR:g} and above (bright)")
        style.add_footer(figure, [*notes, *([unranked] if (rows["status"] != OK).any() else [])])
    what = "Where made images differ from the true one" if errors else "Images made from features"
    return style.finish(figure, f"{what}, model by tap.")


def _show(axes: Any, table: ResultTable, row: pd.Series[Any], number: int, *, errors: bool) -> None:  # noqa: ANN401 - matplotlib's Axes
    if errors:
        error: NDArray[Any] = np.asarray(_attached(table, row, "maps", "error.npy"))[number]
        axes.imshow(error, cmap=colormaps[_ERRORS], vmin=0, vmax=_MOST_ERROR)
    else:
        axes.imshow(np.asarray(_attached(table, row, "pictures", "made.npy"))[0, number])


def _caption(row: pd.Series[Any], score: float | None) -> str:
    told = "not ranked" if score is None else f"{fixed(score, 1)} dB"
    return f"r {fixed(row['value'], 3)}\n{told}"


def _scores(table: ResultTable, rows: pd.DataFrame) -> dict[tuple[str, str], float]:
    frame = table.frame
    own = frame[(frame["metric"] == SCORE) & frame["value"].notna() & (frame["data"] == rows["data"].iloc[0])]
    return {(row["model"], row["tap"]): float(row["value"]) for _, row in own.iterrows()}


def _rows(table: ResultTable, data: str | None) -> pd.DataFrame:
    frame = table.frame
    rows = frame[(frame["metric"] == METRIC) & frame["value"].notna()]
    if data is not None:
        rows = rows[rows["data"] == data]
    if not len(rows) or rows["data"].nunique() > 1:
        found = ", ".join(sorted(set(rows["data"]))) or "none"
        raise InputError(
            "made images of one data set", found, "Name it with `data=`, of an inversion's table"
        )
    return rows


def _attached(table: ResultTable, row: pd.Series[Any], kind: str, name: str) -> Any:  # noqa: ANN401 - by suffix
    place = "/".join(safe_name(str(row[part])) for part in ("data", "model", "tap"))
    return table.attachments[f"{kind}/{place}/{name}"]
