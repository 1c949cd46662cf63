"""Why detections are wrong: costs of errors, what the best boxes are, how far boxes overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probekit.errors import InputError
from probekit.figures import style
from probekit.figures.transfer import state_words
from probekit.files import safe_name
from probekit.results.metrics import metric_facts
from probekit.results.schema import read_params
from probekit.results.table import ResultTable

# Parts of a stack, from the axis outwards, and their colours, alike in both figures for like errors.
_BLUE, _RED, _GREEN, _PINK, _ORANGE, _SKY = style.COLOURS[:6]
COSTS = {
    "error_loc": _RED,
    "error_cls": _GREEN,
    "error_dupe": _ORANGE,
    "error_bkg": _SKY,
    "error_both": _PINK,
    "error_miss": style.RANDOM_GREY,
}
SHARES = {
    "hoiem_right": _BLUE,
    "hoiem_localisation": _RED,
    "hoiem_similar": _PINK,
    "hoiem_other": _GREEN,
    "hoiem_background": _SKY,
    "hoiem_none": style.FAINT,
}
_BAR = 0.34
# More bars than this make a figure too high to read.
MOST_BARS = 24


def plot_costs(table: ResultTable) -> Figure:
    """Draw the rise of AP50 if errors of one type were put right: a bar a model and state, stacked by type.

    Args:
        table: That of ``diagnose``.

    Raises:
        InputError: If it has no such rows.
    """
    notes = ["Costs do not add up: what is left after one is mended is worth more", "Below 0: mending harms"]
    return _stacked(table, COSTS, "Rise of AP50 if errors of a type were put right", notes,
                    "What each type of error costs.")  # fmt: skip


def plot_shares(table: ResultTable) -> Figure:
    """Draw what the best boxes of each class are, as many as it has objects: a bar a model and state.

    Args:
        table: That of ``diagnose``.

    Raises:
        InputError: If it has no such rows.
    """
    notes = ["As many boxes of each class as it has objects; mean over classes"]
    return _stacked(table, SHARES, "Share of the best boxes", notes, "What the best boxes of each class are.")


def plot_ious(table: ResultTable) -> Figure:
    """Draw how far the best boxes of each class overlap an object of it: a line a model and state.

    Args:
        table: That of ``diagnose``.

    Raises:
        InputError: If no histograms are attached.
    """
    bars = _bars(table)
    found = {label: _histograms(table, model, state) for label, model, state in bars}
    found = {label: frames for label, frames in found.items() if frames}
    if not found:
        raise InputError("histograms of IoU attached", "none", "Draw a table of diagnose")
    looks = style.looks(list(found))
    with style.styled():
        figure = style.new_figure(6.4, 0.9 + style.PANEL_HEIGHT)
        axes = figure.subplots()
        handles = {}
        for label, frames in found.items():
            counts = np.sum([frame["top"].to_numpy() for frame in frames], axis=0)
            edges = np.append(frames[0]["low"], 1.0)
            look = looks[label]
            handles[label] = axes.stairs(
                counts / max(counts.sum(), 1), edges, color=look.colour, linestyle=look.dashes, linewidth=1.4
            )
        axes.axvline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, None)
        axes.set_xlabel("Largest IoU with an object of the class")
        axes.set_ylabel("Share of the best boxes")
        style.add_legend(figure, list(handles.values()), [style.plain(label) for label in handles])
        notes = [
            "As many boxes of each class as it has objects",
            "Dotted: from here on a box finds its object",
        ]
        style.add_footer(figure, notes)
    return style.finish(figure, "How far the best boxes overlap an object of their class.")


def _stacked(
    table: ResultTable, parts: Mapping[str, str], axis: str, notes: list[str], caption: str
) -> Figure:
    bars = _bars(table)
    rows = _summaries(table)
    with style.styled():
        figure = style.new_figure(6.4, 1.5 + _BAR * len(bars))
        axes = figure.subplots()
        handles: dict[str, Any] = {}
        for place, (_, model, state) in enumerate(bars):
            own = rows[(rows["model"] == model) & (rows["state"] == state)].set_index("metric")
            values = {one: float(own["value"].get(one, np.nan)) for one in parts}
            _draw_bar(axes, place, values, parts, handles)
        axes.axvline(0, color="0.35", linewidth=0.8)
        axes.set_yticks(range(len(bars)), [style.plain(label, 40) for label, _, _ in bars])
        axes.invert_yaxis()
        axes.set_xlabel(axis)
        labels = [metric_facts(one).label.removeprefix("Cost of ") for one in handles]
        style.add_legend(figure, list(handles.values()), [one[:1].upper() + one[1:] for one in labels])
        means = [one.removeprefix("t,") for one in rows["ci_kind"].unique() if one.startswith("t,")]
        style.add_footer(figure, [*notes, *(f"Means over {one}" for one in means)])
    return style.finish(figure, caption)


def _draw_bar(
    axes: Axes, place: int, values: Mapping[str, float], colours: Mapping[str, str], handles: dict[str, Any]
) -> None:
    """Stack one bar: what is above 0 to the right, what is below to the left."""
    ends = {1: 0.0, -1: 0.0}
    for metric, value in values.items():
        if not np.isfinite(value):
            continue
        side = 1 if value >= 0 else -1
        drawn = axes.barh(place, value, left=ends[side], height=0.7, color=colours[metric], label=metric)
        handles.setdefault(metric, drawn)
        ends[side] += value


def _summaries(table: ResultTable) -> pd.DataFrame:
    """Return the rows that stand for a model and state, with the state in words.

    Raises:
        InputError: If there is none.
    """
    frame = table.frame[table.frame["trial_seed"].isna()]
    if table.provenance.get("analysis") != "diagnose" or not len(frame):
        raise InputError("a table of diagnose", "another", "Draw one of these")
    params = read_params(frame)
    states = [state_words(one["kept"], one["mode"]) if "mode" in one else "" for one in params]
    return frame.assign(state=states)


def _bars(table: ResultTable) -> list[tuple[str, str, str]]:
    """Return label, model and state of every bar that has a value, in the order of the table."""
    rows = _summaries(table)
    rows = rows[rows["value"].notna()]
    pairs = rows[["model", "state"]].drop_duplicates().itertuples(index=False, name=None)
    return [(f"{model}, {state}" if state else model, model, state) for model, state in pairs][:MOST_BARS]


def _histograms(table: ResultTable, model: str, state: str) -> list[pd.DataFrame]:
    """Return the histograms of all trainings of a model and state."""
    prefix = f"ious/{safe_name(model)}/"
    keys = [key for key in table.attachments if key.startswith(prefix)]
    if state:
        mark = {"whole": "_whole_", "scratch": "nothing_random_"}[state]
        keys = [key for key in keys if mark in key.removeprefix(prefix)]
    return [table.attachments[key] for key in keys]
