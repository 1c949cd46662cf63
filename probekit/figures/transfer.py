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
# Cells of matrices with no more rows than this have their value written into them.
MOST_WRITTEN = 24


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
        count = int(states.groupby(["model", "state"]).size().max())
        unit = "fold" if states["fold"].notna().any() else "trial"
        notes = [
            f"{count} {unit}{'s' if count > 1 else ''} a state",
            f"Bands: 95 % t-interval over {unit}s" if count > 1 else "",
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


def plot_rewinds(table: ResultTable) -> Figure:
    """Draw what is lost when a group is put back, or replaced before training: a panel a model, group × mode.

    Args:
        table: That of ``reset_curves`` with the curve ``rewind`` or ``leave-one-out``.

    Raises:
        InputError: If it has neither.
    """
    lost = _losses(table)
    if not len(lost):
        raise InputError("rows of rewind or leave-one-out", "none", "Ask for one of these curves")
    models = list(dict.fromkeys(lost["model"]))[:MOST_MODELS]
    modes = list(dict.fromkeys(lost["column"]))
    matrices = [
        own.pivot(index="group", columns="column", values="value").reindex(
            index=list(dict.fromkeys(own["group"])), columns=modes
        )
        for own in (lost[lost["model"] == model] for model in models)
    ]
    most = float(lost["value"].abs().max()) or 1.0
    with style.styled():
        rows = max(len(one) for one in matrices)
        width = 1.4 + len(models) * (0.4 + 0.62 * len(modes))
        figure = style.new_figure(max(6.4, width), 2.0 + 0.26 * rows)
        panels = figure.subplots(1, len(models), squeeze=False).ravel()
        for axes, model, matrix in zip(panels, models, matrices, strict=True):
            values = matrix.to_numpy(float)
            image = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
            axes.grid(False)
            axes.set_xticks(range(len(modes)), modes, rotation=40, ha="right", fontsize=6)
            axes.set_yticks(range(len(matrix)), [style.plain(one) for one in matrix.index])
            axes.set_title(style.plain(model))
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value) and rows <= MOST_WRITTEN:
                    dark = abs(value) > 0.6 * most
                    axes.text(
                        column, row, f"{value:.2f}".replace("-", "−"), ha="center", va="center", fontsize=6,
                        color="white" if dark else "black",
                    )  # fmt: skip
        figure.colorbar(image, ax=list(panels), label="Lost", aspect=10)
        notes = [
            "Means over trials",
            "Put back: after finetuning, without further training",
            "Above 0: needed",
        ]
        style.add_footer(figure, notes)
    return style.finish(figure, "What is lost when one group is put back, or replaced and trained again.")


def _losses(table: ResultTable) -> pd.DataFrame:
    """Return ``model``, ``group``, ``column`` and ``value`` of rewinds and of leave-one-out."""
    found = []
    frame = table.frame[table.frame["value"].notna()]
    whole = {
        row["model"]: row["value"]
        for _, row in frame[frame["metric"] == "gain"].iterrows()
        if json.loads(row["params"])["mode"] == ""
    }
    for _, row in frame[frame["metric"].isin(["rewind_drop", "gain"])].iterrows():
        told = json.loads(row["params"])
        one = {"model": row["model"], "value": row["value"]}
        if row["metric"] == "rewind_drop":
            again = " (BN)" if told["rewound_batch_norm"] != "as it is" else ""
            found.append(one | {"group": told["group"], "column": f"back: {told['to']}{again}"})
        elif told["curve"] == "leave-one-out":
            lost = whole[row["model"]] - row["value"]
            column = f"replaced: {told['mode']}"
            found.append(one | {"value": lost, "group": " ".join(told["replaced"]), "column": column})
    return pd.DataFrame(found, columns=["model", "group", "column", "value"])


def read_states(table: ResultTable) -> pd.DataFrame:
    """Return the task's metric of every model, state and trial, with what is kept in columns of its own.

    Of a cross-validation, of every model, state and fold: means over the fold's trials.

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
    own["state"] = [state_words(*both) for both in zip(own["kept"], own["mode"], strict=True)]
    own["fold"] = [one.get("fold") for one in params]
    if own["fold"].notna().any():
        folds = own.groupby(["model", "state", "fold"], sort=False)
        own = folds.first().assign(value=folds["value"].mean()).reset_index()
    return own


def _width(panels: int) -> float:
    """Return inches: legends need room even above a single panel."""
    return max(6.4, 0.7 + 0.9 * style.PANEL_WIDTH * panels)


def state_words(kept: Sequence[str], mode: str) -> str:
    """Say what a backbone was before it was trained.

    Examples:
        >>> state_words(["low"], "random"), state_words([], "random"), state_words(["low", "mid"], "")
        ('low kept, random', 'scratch', 'whole')
    """
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
