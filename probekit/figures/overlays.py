"""Maps over images: where a probe of each tap looks, and what is marked there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from probekit.errors import InputError
from probekit.figures import series, style
from probekit.files import safe_name
from probekit.results.metrics import metric_facts
from probekit.results.presentation import fixed
from probekit.results.table import ResultTable

METRIC = "energy_inside"
# From dark blue to yellow, told apart with any colour vision and in grey; the mark is white on black.
COLOURMAP = "cividis"
_TILE = 1.05
_OPACITY = 0.6
_LUMA = np.array([0.299, 0.587, 0.114])


def plot_overlays(table: ResultTable, model: str | None = None, *, data: str | None = None) -> Figure:
    """Draw test images with the maps of each tap of a model over them: a row an image, a column a tap.

    Under each map stands the share of its positive part inside what is marked, which is outlined.

    Args:
        table: That of ``attribute``.
        model: By default the first.
        data: One data set; by default the only one.

    Raises:
        InputError: If the table has no such model or maps, or several data sets.
    """
    rows = series.scored_rows(table, METRIC, data=data)
    if rows["data"].nunique() > 1:
        raise InputError("one data set", ", ".join(sorted(set(rows["data"]))), "Name it with `data=`")
    name = model or str(rows["model"].iloc[0])
    own = rows[rows["model"] == name].sort_values("depth", kind="stable")
    if not len(own):
        raise InputError("a model of the table", repr(name), f"Choose among {', '.join(table.models)}")
    shown = [_attached(table, row) for _, row in own.iterrows()]
    count = len(shown[0]["images"])
    with style.styled():
        figure = style.new_figure(0.7 + _TILE * (1 + len(own)), 0.9 + (_TILE + 0.14) * count)
        grid = figure.subplots(count, 1 + len(own), squeeze=False)
        for line, place in zip(grid, range(count), strict=True):
            _draw_image(line[0], shown[0], place)
            for axes, one in zip(line[1:], shown, strict=True):
                _draw_map(axes, one, place)
        for axes, title in zip(grid[0], ["image", *map(_heading, own.to_dict("records"))], strict=True):
            axes.set_title(title, fontsize=7)
        style.add_footer(
            figure,
            [
                "Test images, evenly spaced; outlined: what is marked",
                "Colours: positive part of the map, from none (image in grey) to its highest value (yellow)",
                "Numbers: share of it inside",
            ],
        )
    return style.finish(figure, f"Where probes of {name} look for the class of test images, tap by tap.")


def plot_cascade(table: ResultTable, metric: str = "cascade_spearman", *, data: str | None = None) -> Figure:
    """Draw the likeness of maps before and after blocks were reset, a panel for the last tap of each level.

    To the right more blocks are reset: those from the tap down to the one at that depth.

    Args:
        table: That of ``attribute`` with ``cascade``.
        metric: ``cascade_spearman`` or ``cascade_ssim``.
        data: One data set; by default the only one.

    Raises:
        InputError: If the table has no such rows, or several data sets.
    """
    rows = series.scored_rows(table, metric, data=data)
    if rows["data"].nunique() > 1:
        raise InputError("one data set", ", ".join(sorted(set(rows["data"]))), "Name it with `data=`")
    # One tap a level and model: the last.
    rows = rows[rows["depth"] == rows.groupby(["model", "level"])["depth"].transform("max")]
    looks = style.looks(table.trained)
    levels = list(dict.fromkeys(rows.sort_values("depth")["level"]))
    with style.styled():
        figure = style.new_figure(min(style.FULL_WIDTH, 0.6 + 2.9 * len(levels)), 3.4)
        panels = figure.subplots(1, len(levels), squeeze=False, sharey=True)[0]
        handles: dict[str, Any] = {}
        for axes, level in zip(panels, levels, strict=True):
            for line in series.curves(table, rows[rows["level"] == level], "reset_depth"):
                look = looks[line.model]
                band: dict[str, Any] = {"color": look.colour, "linewidth": 0}
                axes.fill_between(line.x, line.null_low, line.null_high, alpha=0.1, **band)
                axes.plot(line.x, line.null, color=look.colour, linestyle="--", linewidth=1)
                axes.fill_between(line.x, line.low, line.high, alpha=0.2, **band)
                (handle,) = axes.plot(line.x, line.y, color=look.colour, marker=look.marker, markersize=4)
                handles[style.plain(line.model)] = handle
            axes.invert_xaxis()
            axes.set_title(f"tap at the end of {level}" if level else "")
            axes.set_xlabel("Depth down to which blocks are reset")
        panels[0].set_ylabel(metric_facts(metric).label)
        handles["null: maps of other images"] = Line2D([], [], color=style.MUTED, linestyle="--", linewidth=1)
        style.add_legend(figure, list(handles.values()), list(handles))
        style.add_footer(
            figure,
            [
                f"{int(rows['n'].max())} test images",
                "Bands: 95 % intervals over test images",
                "Dashed: maps of other images, mean and range",
            ],
        )
    label = metric_facts(metric).label
    return style.finish(figure, f"{label}, block by block from the tap downwards, the probe kept as it is.")


def _heading(row: Mapping[Any, Any]) -> str:
    level = f"{row['level']}: " if row["level"] else ""
    return f"{level}{style.plain(str(row['block']), 14)}\n{fixed(float(row['value']), 2)}"


def _draw_image(axes: Axes, shown: dict[str, NDArray[Any]], place: int) -> None:
    axes.imshow(shown["images"][place])
    _outline(axes, shown["inside"][place])
    axes.set_xlabel(style.plain(str(shown["classes"][place]), 16), fontsize=6.5)
    _bare(axes)


def _draw_map(axes: Axes, shown: dict[str, NDArray[Any]], place: int) -> None:
    """Lay the positive part of a map over the image in grey; where it is 0 the image alone is seen."""
    image, values = shown["images"][place], shown["maps"][place]
    size = len(image)
    axes.imshow(image @ _LUMA, cmap="gray", vmin=0, vmax=255, extent=(0, size, size, 0))
    positive = np.maximum(values, 0)
    top = float(positive.max())
    if top > 0:
        share = positive / top
        colours = colormaps[COLOURMAP](share)
        colours[..., 3] = _OPACITY * np.minimum(1.0, 2 * share)
        axes.imshow(colours, extent=(0, size, size, 0), interpolation="bilinear")
    _outline(axes, shown["inside"][place])
    score = float(shown["scores"][place][list(shown["metrics"]).index(METRIC)])
    axes.set_xlabel("–" if np.isnan(score) else fixed(score, 2), fontsize=6.5)
    _bare(axes)


def _outline(axes: Axes, inside: NDArray[np.uint8]) -> None:
    places = np.arange(len(inside)) + 0.5
    for colour, width in (("black", 1.8), ("white", 0.8)):
        axes.contour(places, places, inside, levels=[127.5], colors=colour, linewidths=width)


def _attached(table: ResultTable, row: pd.Series[Any]) -> dict[str, NDArray[Any]]:
    place = "/".join(safe_name(str(row[part])) for part in ("data", "model", "tap"))
    return dict(table.attachments[f"maps/{place}/{safe_name(str(row['target']))}.npz"])


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
