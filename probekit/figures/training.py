"""Trainings along their way: loss, neighbours, gradients, throughput."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from probekit.errors import InputError
from probekit.figures import style
from probekit.results.table import ResultTable

# Column of the metrics → what its axis says.
_PANELS = {
    "loss": "Loss (of each arm's own)",
    "knn_accuracy": "k-NN accuracy on held-out images",
    "gradient_norm": "Norm of the gradient",
    "images_per_s": "Views per second",
}
_FOLDER = "curves/"
# More trainings than this are drawn in pixels: as paths they are a megabyte.
MOST_PATHS = 24


def plot_training(table: ResultTable) -> Figure:
    """Draw what was written along each training against its steps: an arm a colour, a seed a line.

    These are monitors: they show that a training went well, and decide nothing.

    Args:
        table: That of ``pretrain``.

    Raises:
        InputError: If it has no trainings.
    """
    curves = training_curves(table)
    if not curves:
        raise InputError("a table of trainings", "none in it", "Draw a table of pretrain")
    known = [one for one in _PANELS if any(one in curve for arm in curves.values() for curve in arm)]
    looks, chance = style.looks(list(curves)), _chance(table)
    counts = [len(own) for own in curves.values()]
    with style.styled():
        lines = -(-len(known) // 2)
        figure = style.new_figure(0.6 + 2 * style.PANEL_WIDTH, 0.9 + style.PANEL_HEIGHT * lines)
        grid = figure.subplots(lines, 2, squeeze=False).ravel()
        for spare in grid[len(known) :]:
            spare.remove()
        for axes, column in zip(grid, known, strict=False):
            for arm, own in curves.items():
                for curve in own:
                    if column not in curve:
                        continue
                    points = curve[["step", column]].dropna()
                    few = {"marker": looks[arm].marker, "markersize": 4} if len(points) < 10 else {}
                    axes.plot(
                        points["step"], points[column], color=looks[arm].colour,
                        linestyle=looks[arm].dashes, linewidth=1.0, alpha=0.85,
                        rasterized=sum(counts) > MOST_PATHS, **few,
                    )  # fmt: skip
            if column == "knn_accuracy" and chance is not None:
                axes.axhline(chance, color="0.4", linewidth=0.8, linestyle=":")
            axes.set_ylabel(_PANELS[column])
            axes.set_xlabel("Step")
            if column == "gradient_norm":
                axes.set_yscale("log")
        handles = [Line2D([], [], color=looks[arm].colour, linestyle=looks[arm].dashes) for arm in curves]
        style.add_legend(figure, handles, [style.plain(arm) for arm in curves])
        fewest, most = min(counts), max(counts)
        notes = [
            f"{most if fewest == most else f'{fewest} to {most}'} seed{'s' if most > 1 else ''} an arm",
            "Losses of different objectives have no common scale",
            "Curves are monitors and decide nothing",
        ]
        style.add_footer(figure, [*notes, "Dotted: chance"] if chance is not None else notes)
    return style.finish(figure, "Loss, nearest neighbours, gradients and throughput along each training.")


def _chance(table: ResultTable) -> float | None:
    """Return 1/C; None where the trainings have no classes, or not one number of them."""
    frame = table.frame
    classes = set(frame.loc[frame["metric"] == "accuracy", "n_classes"].dropna())
    return 1 / classes.pop() if len(classes) == 1 else None


def training_curves(table: ResultTable) -> Mapping[str, list[pd.DataFrame]]:
    """Return the metrics of every training, by arm and in the order of the seeds."""
    found: dict[str, list[Any]] = {}
    for key in sorted(one for one in table.attachments if one.startswith(_FOLDER)):
        parts = key.removeprefix(_FOLDER).split("/")
        if len(parts) == 2:
            found.setdefault(parts[0], []).append(table.attachments[key])
    return found
