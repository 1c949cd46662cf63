"""What a task gains from a backbone, whole and in part; how its trainings went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probekit.errors import InputError
from probekit.figures import style
from probekit.functional.intervals import t_interval
from probekit.results.metrics import metric_facts
from probekit.results.table import ResultTable

# Metrics that a task is judged by, each the first of its task.
TASK_METRICS = ("accuracy", "normalised_error", "mean_iou", "ap", "five_shot_accuracy")
# Curve → which of the groups it keeps first.
_KEPT = {"prefix": "first", "suffix": "last"}
# More models than this make panels too small to read.
MOST_MODELS = 6


def plot_reset_curves(table: ResultTable) -> Figure:
    """Draw the task's metric against the number of groups kept: a panel a model, a line a curve and mode.

    Args:
        table: That of ``reset_curves`` or ``transfer``.

    Raises:
        InputError: If it has no states of a backbone.
    """
    states = read_states(table)
    metric = str(states["metric"].iloc[0])
    models = list(dict.fromkeys(states["model"]))[:MOST_MODELS]
    facts = metric_facts(metric)
    lines = _lines(table, states)
    looks = style.looks([words for words, _ in lines])
    with style.styled():
        figure = style.new_figure(_width(len(models)), 0.9 + style.PANEL_HEIGHT)
        panels = figure.subplots(1, len(models), squeeze=False, sharey=True).ravel()
        handles: dict[str, Any] = {}
        for axes, model in zip(panels, models, strict=True):
            own = states[states["model"] == model]
            names = _names(own)
            _draw_ends(axes, own, len(names))
            for words, (curve, mode) in lines:
                points = _along(own, names, curve, mode)
                if len(points) < 2:
                    continue
                x = [place for place, _ in points]
                means = [values.mean() for _, values in points]
                look = looks[words]
                (handles[words],) = axes.plot(
                    x, means, color=look.colour, marker=look.marker, linestyle=look.dashes, markersize=4
                )
                # Beyond the metric's own range an interval of few trials says nothing.
                low, high = np.clip([t_interval(values) for _, values in points], facts.low, facts.high).T
                axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)
            axes.set_xticks(range(len(names) + 1))
            axes.set_xlabel("Groups kept")
            axes.set_title(style.plain(model))
        panels[0].set_ylabel(facts.axis)
        if handles:
            style.add_legend(figure, list(handles.values()), list(handles))
        trials = int(states.groupby(["model", "state"])["trial_seed"].nunique().max())
        notes = [
            f"{trials} trial{'s' if trials > 1 else ''} a state",
            "Bands: 95 % t-interval over trials" if trials > 1 else "",
            f"Groups: {', '.join(_names(states[states['model'] == models[0]]))}",
            "Dotted: the whole backbone, and scratch below or above it",
            "Grey dashes: an answer that looks at no image",
        ]
        style.add_footer(figure, notes)
    return style.finish(figure, "What is learnt with some blocks kept and the others replaced.")


def plot_learning(table: ResultTable) -> Figure:
    """Draw the metric on the images held out along each training: a panel a model, a line a state.

    Args:
        table: That of ``reset_curves`` or ``transfer``.

    Raises:
        InputError: If no curves are attached.
    """
    states = read_states(table)
    metric = str(states["metric"].iloc[0])
    curves = _learning(table, f"val_{metric}")
    if not curves:
        raise InputError("curves of trainings attached", "none", "Draw a table of transfer or reset")
    models = list(curves)[:MOST_MODELS]
    looks = style.looks(list(dict.fromkeys(state for own in curves.values() for state in own)))
    with style.styled():
        figure = style.new_figure(_width(len(models)), 0.9 + style.PANEL_HEIGHT)
        panels = figure.subplots(1, len(models), squeeze=False, sharey=True).ravel()
        handles: dict[str, Any] = {}
        for axes, model in zip(panels, models, strict=True):
            for state, trainings in curves[model].items():
                for one in trainings:
                    (handles[state],) = axes.plot(
                        one["step"], one[f"val_{metric}"], color=looks[state].colour,
                        linestyle=looks[state].dashes, linewidth=1.0, alpha=0.8,
                    )  # fmt: skip
            axes.set_xlabel("Step")
            axes.set_title(style.plain(model))
        panels[0].set_ylabel(metric_facts(metric).axis)
        style.add_legend(figure, list(handles.values()), [style.plain(state) for state in handles])
        style.add_footer(figure, ["On images held out from training", "A line a trial"])
    return style.finish(figure, "How the trainings went.")


def read_states(table: ResultTable) -> pd.DataFrame:
    """Return the task's metric of every model, state and trial, with what is kept in columns of its own.

    Raises:
        InputError: If there is none.
    """
    frame = table.frame
    found = [metric for metric in TASK_METRICS if metric in set(frame["metric"])]
    if not found or table.provenance.get("analysis") not in ("transfer", "reset"):
        raise InputError("a table of transfer or reset", "another", "Draw one of these")
    own = frame[(frame["metric"] == found[0]) & frame["trial_seed"].notna()].copy()
    params = [json.loads(one) for one in own["params"]]
    own["kept"] = [tuple(one["kept"]) for one in params]
    own["mode"] = [one["mode"] for one in params]
    own["replaced"] = [tuple(one["replaced"]) for one in params]
    own["state"] = [_state(*both) for both in zip(own["kept"], own["mode"], strict=True)]
    return own


def _width(panels: int) -> float:
    """Return inches: legends need room even above a single panel."""
    return max(6.4, 0.7 + 0.9 * style.PANEL_WIDTH * panels)


def _state(kept: Sequence[str], mode: str) -> str:
    if not mode:
        return "whole"
    if not kept:
        return "scratch" if mode == "random" else f"nothing kept, {mode}"
    return f"{' + '.join(kept)} kept, {mode}"


def _names(states: pd.DataFrame) -> list[str]:
    """Return the groups of a model in executed order: those of its whole state."""
    whole = states[states["mode"] == ""]
    return list(whole["kept"].iloc[0]) if len(whole) else []


def _lines(table: ResultTable, states: pd.DataFrame) -> list[tuple[str, tuple[str, str]]]:
    settings = table.provenance.get("settings", {})
    modes = [one for one in settings.get("modes", []) if one in set(states["mode"])]
    return [
        (f"{_KEPT[curve]} kept, others {mode}", (curve, mode))
        for curve in settings.get("curves", [])
        if curve in _KEPT
        for mode in modes
    ]


def _along(own: pd.DataFrame, names: Sequence[str], curve: str, mode: str) -> list[tuple[int, Any]]:
    """Return number of groups kept and the values of all trials, along one curve."""
    found = []
    for n in range(len(names) + 1):
        kept = tuple(names[:n] if curve == "prefix" else names[len(names) - n :])
        at = "" if n == len(names) else mode
        values = own.loc[(own["kept"] == kept) & (own["mode"] == at), "value"].dropna().to_numpy(float)
        if len(values):
            found.append((n, values))
    return found


def _draw_ends(axes: Axes, own: pd.DataFrame, count: int) -> None:
    """Draw the whole backbone, scratch, and the answer that looks at no image."""
    for state in ("whole", "scratch"):
        values = own.loc[own["state"] == state, "value"].dropna()
        if len(values):
            axes.axhline(values.mean(), color="0.35", linewidth=0.8, linestyle=":")
            side = "left" if state == "whole" else "right"
            place = 0 if state == "whole" else count
            axes.annotate(state, (place, values.mean()), fontsize=6, ha=side, va="bottom", color="0.35")
    null = own["null"].dropna()
    if len(null):
        axes.axhline(null.iloc[0], color="0.6", linewidth=0.8, linestyle="--")


def _learning(table: ResultTable, column: str) -> Mapping[str, dict[str, list[pd.DataFrame]]]:
    """Return the attached curves by model and state."""
    found: dict[str, dict[str, list[Any]]] = {}
    for key, curve in table.attachments.items():
        parts = key.split("/")
        if parts[0] != "curves" or len(parts) != 3 or column not in curve:
            continue
        state, mode, _ = parts[2].removesuffix(".parquet").rsplit("_", 2)
        words = "whole" if mode == "whole" else "scratch" if (state, mode) == ("nothing", "random") else (
            f"{state.replace('-', ' + ')} kept, {mode}"
        )  # fmt: skip
        points = curve[["step", column]].dropna()
        found.setdefault(parts[1], {}).setdefault(words, []).append(points)
    return found
