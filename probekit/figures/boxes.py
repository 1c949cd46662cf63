"""What against where: how much of either each level tells, a panel a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from probekit.errors import InputError
from probekit.figures import style
from probekit.figures.curves import R2_FLOOR, label_depth, shade_levels
from probekit.results.metrics import kind_words
from probekit.results.table import ResultTable

# Metric → its question in the legend.
SKILLS = {
    "what_accuracy": "what: class of the object",
    "where_accuracy": "where: overlap with it",
    "offset_r2": "where: offset from it",
}
# More models than this make panels too small to read.
MOST_MODELS = 6
COLUMNS = 3


def plot_what_where(table: ResultTable, *, data: str | None = None) -> Figure:
    """Draw how far each tap tells what and where on the way from its null to perfect, against depth.

    Each value and end is (score − null) / (1 − null), so that questions with unequal chance share an axis.
    Random init, dotted, is drawn alike, each draw from its own null.

    Args:
        table: That of ``probe_boxes``.
        data: One data set; by default the only one.

    Raises:
        InputError: If the table has no such rows, or several data sets.
    """
    frame = skills(table.frame if data is None else table.where(data=data).frame)
    names = [str(one) for one in frame["data"].unique()]
    if len(names) != 1:
        raise InputError("a table of probe_boxes on one data set", f"{len(names)} of them", "Name one: data=")
    controls = set(table.controls)
    trained = frame[~frame["model"].isin(controls)]
    models = [str(one) for one in dict.fromkeys(trained["model"])][:MOST_MODELS]
    if not models:
        raise InputError("a model that is no random-init control", "none", "Draw another table")
    looks = style.looks(list(SKILLS.values()))
    columns = min(len(models), COLUMNS)
    lines = -(-len(models) // columns)
    with style.styled():
        width = 6.6 if columns == 1 else min(style.FULL_WIDTH, 0.6 + style.PANEL_WIDTH * 1.15 * columns)
        figure = style.new_figure(width, (3.3 if lines == 1 else style.PANEL_HEIGHT * lines) + 0.9)
        panels = list(figure.subplots(lines, columns, squeeze=False, sharey=True).ravel())
        for spare in panels[len(models) :]:
            spare.remove()
        handles: dict[str, Any] = {}
        for place, (axes, model) in enumerate(zip(panels, models, strict=False)):
            own = trained[trained["model"] == model]
            drawn = frame[frame["model"].isin(controls) & (frame["arch"] == own["arch"].iloc[0])]
            shade_levels(axes, own)
            axes.axhline(0, color=style.MUTED, linestyle="--", linewidth=1.0, zorder=1.5)
            for metric, words in SKILLS.items():
                handles |= _draw_curve(axes, own[own["metric"] == metric], words, looks[words])
                handles |= _draw_random(axes, drawn[drawn["metric"] == metric], looks[words].colour)
            label_depth(axes, own, last_row=place + columns >= len(models))
            axes.set_title(style.plain(model))
            if place % columns == 0:
                axes.set_ylabel("From chance (0) to perfect (1)")
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(max(low, R2_FLOOR), high + 0.07 * (high - low))
        order = sorted(handles, key=lambda name: handles[name].get_marker() in ("", "None", None))
        style.add_legend(figure, [handles[name] for name in order], order)
        style.add_footer(figure, _notes(trained, bool(len(frame[frame["model"].isin(controls)]))))
    about = f" ({names[0]})" if names[0] else ""
    return style.finish(figure, f"What and where each level tells inside boxes{about}.")


def skills(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are drawn, with ``skill``, ``skill_low`` and ``skill_high``.

    Raises:
        InputError: If there is none.
    """
    rows = frame[frame["metric"].isin(SKILLS) & frame["value"].notna() & (frame["split"] == "test")]
    if not len(rows):
        raise InputError("rows of probe_boxes with a value", "none", "Draw a table of probe_boxes")
    # Without permutations, a class or bin of equally many is named right once in C; R² is 0.
    chance = (1 / rows["n_classes"].astype("float64")).fillna(0.0)
    null = rows["null"].fillna(chance)
    reach = (1 - null).where(null < 1)
    return rows.assign(
        skill=(rows["value"] - null) / reach,
        skill_low=(rows["ci_low"] - null) / reach,
        skill_high=(rows["ci_high"] - null) / reach,
    )


def _draw_curve(axes: Axes, rows: pd.DataFrame, words: str, look: style.Look) -> dict[str, Any]:
    if not len(rows):
        return {}
    rows = rows.sort_values("depth", kind="stable")
    x, y, low, high = (rows[name].to_numpy(float) for name in ("depth", "skill", "skill_low", "skill_high"))
    axes.fill_between(x, low, high, color=look.colour, alpha=0.16, linewidth=0, zorder=2)
    axes.plot(x, y, color=look.colour, linestyle=look.dashes, zorder=3)
    faces = [look.colour if clear else "white" for clear in _clear(rows)]
    axes.scatter(x, y, s=24, marker=look.marker, c=faces, edgecolors=look.colour, linewidths=1.2, zorder=4)
    return {
        style.plain(words): Line2D(
            [], [], color=look.colour, linestyle=look.dashes, marker=look.marker, markersize=5
        )
    }


def _draw_random(axes: Axes, rows: pd.DataFrame, colour: str) -> dict[str, Any]:
    if not len(rows):
        return {}
    by_depth = rows.groupby("depth")["skill"]
    mean, low, high = by_depth.mean(), by_depth.min(), by_depth.max()
    axes.fill_between(mean.index, low, high, color=colour, alpha=0.08, linewidth=0, zorder=1)
    axes.plot(mean.index, mean, color=colour, linestyle=":", linewidth=1.2, zorder=1.5)
    return {"random init": Line2D([], [], color=style.RANDOM_GREY, linestyle=":", linewidth=1.2)}


def _clear(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Return whether each interval lies above the range of its null; True without one."""
    above = rows["ci_low"] > rows["null_high"]
    return np.asarray(above | rows["null_high"].isna() | rows["ci_low"].isna())


def _notes(trained: pd.DataFrame, random: bool) -> list[str]:
    counts = sorted({int(n) for n in trained["n"].dropna()})
    kinds = [str(kind) for kind in trained["ci_kind"].unique() if kind]
    nulls = [str(kind) for kind in trained["null_kind"].unique() if kind]
    return [
        f"n = {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} test images" if counts else "",
        f"Bands: 95 % intervals ({kind_words(kinds[0])}), the null taken as it is" if kinds else "",
        f"0: null ({kind_words(nulls[0])})" if nulls else "0: chance",
        "Open markers: the interval reaches the null's range",
        "Dotted: random init, mean and range, each draw from its own null" if random else "",
        f"Values below {R2_FLOOR:g} are cut off" if bool((trained["skill"] < R2_FLOOR).any()) else "",
    ]
