"""Curves: a metric against depth, accuracy against the number of labelled images."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator, NullLocator

from probekit.errors import InputError
from probekit.figures import series, style
from probekit.figures.foremost import foremost, naming_note
from probekit.results.choosing import best_rows, choose_taps
from probekit.results.metrics import MetricFacts, kind_words, metric_facts
from probekit.results.presentation import primary_metrics
from probekit.results.schema import read_params
from probekit.results.table import ResultTable

# R² has no lower bound: below this it only says "useless".
R2_FLOOR = -0.5
FLOORED = ("r2", "offset_r2")
COLUMNS = 3
_BASELINE_DASHES: tuple[Any, ...] = ((0, (8, 3)), (0, (4, 2, 1, 2)), (0, (1, 3)))


def plot_depth(
    table: ResultTable, metric: str | None = None, target: str | None = None, *, data: str | None = None
) -> Figure:
    """Draw a metric against depth: one line and band per model, the null, the random-init controls.

    Args:
        table: Rows with ``depth``, one per model, tap and target.
        metric: By default the first of accuracy, mean_ap, r2 that the table has.
        target: By default every target that has the metric, in panels.
        data: One data set; by default all, in panels.

    Returns:
        A figure; its caption is ``figure.get_label()``.

    Raises:
        InputError: If the table has no such rows, or several for one point.
    """
    metric = metric or _primary(table)
    rows = series.scored_rows(table, metric, target=target, data=data)
    facts = metric_facts(metric)
    if rows["depth"].isna().any():
        raise InputError(
            "a number in 'depth' in every row", "rows without one", "Draw another kind of figure"
        )
    logarithmic = facts.ratio and bool((rows["value"] > 0).all())
    with style.styled():
        figure, axes, pairs = _panels(rows)
        looks = _looks(table, rows)
        handles: dict[str, Any] = {}
        drawn: list[series.Curve | series.Band] = []
        for i, (place, (name, one)) in enumerate(zip(axes, pairs, strict=True)):
            own = rows[(rows["data"] == name) & (rows["target"] == one)]
            shade_levels(place, own)
            lines = series.curves(table, own)
            handles |= _draw_bands(place, series.null_bands(_named(lines, looks)), looks, "--")
            randoms = _random(table, own, looks, "depth")
            handles |= _draw_bands(place, randoms, looks, ":")
            handles |= _draw_baselines(place, own)
            handles |= _draw_curves(place, lines, looks)
            label_depth(place, own, last_row=i + COLUMNS >= len(pairs))
            place.set_title(_title(pairs, name, one))
            if i % COLUMNS == 0:
                place.set_ylabel(_wrapped(facts.axis + (" (log scale)" if logarithmic else "")))
            drawn += [*lines, *randoms]
        if logarithmic:
            _stretch(axes[0])
        else:
            _limit(axes[0], drawn, metric, facts)
        _finish(figure, handles, _depth_notes(table, rows, metric))
    return style.finish(figure, _depth_caption(facts, rows))


def plot_few_shot(table: ResultTable, target: str | None = None, *, tap: str | None = None) -> Figure:
    """Draw accuracy against the number of labelled images per class, at each model's chosen tap.

    Args:
        table: Rows of ``few_shot_accuracy`` with ``shots`` in the params.
        target: By default every target that has them, in panels.
        tap: Draw this tap for every model instead of the one chosen on val.

    Raises:
        InputError: If the table has no such rows.
    """
    metric = "few_shot_accuracy"
    rows = series.scored_rows(table, metric, target=target, tap=tap)
    if tap is None:
        rows = rows[rows.index.isin(best_rows(table.frame, metric).index)]
    facts = metric_facts(metric)
    with style.styled():
        figure, axes, pairs = _panels(rows)
        looks = _looks(table, rows)
        handles: dict[str, Any] = {}
        drawn: list[series.Curve | series.Band] = []
        for i, (place, (name, one)) in enumerate(zip(axes, pairs, strict=True)):
            own = rows[(rows["data"] == name) & (rows["target"] == one)]
            lines = series.curves(table, own, "shots")
            place.set_xscale("log")
            handles |= _draw_bands(place, series.null_bands(_named(lines, looks)), looks, "--")
            handles |= _draw_bands(place, _random(table, own, looks, "shots"), looks, ":")
            handles |= _draw_curves(place, lines, looks)
            shots = sorted({float(x) for line in lines for x in line.x})
            place.set_xticks(shots, [f"{x:g}" for x in shots])
            place.xaxis.set_minor_locator(NullLocator())
            place.set_xlabel("Labelled images per class (log scale)")
            place.set_title(_title(pairs, name, one))
            if i % COLUMNS == 0:
                place.set_ylabel(_wrapped(facts.axis))
            drawn += lines
        _limit(axes[0], drawn, metric, facts)
        _finish(figure, handles, _few_shot_notes(table, rows, tap))
    return style.finish(
        figure, f"Test accuracy of probes fitted on a few images per class: {_subject(rows)}."
    )


def plot_strengths(
    table: ResultTable,
    metric: str = "whitened_cosine",
    target: str | None = None,
    *,
    tap: str | None = None,
    data: str | None = None,
) -> Figure:
    """Draw what changes of an image do to features against their strength, a panel a perturbation.

    Stronger is to the right. At no strength at all, features are those of the same image.

    Args:
        table: Rows of ``measure_invariance``.
        metric: ``whitened_cosine`` or ``mahalanobis``.
        target: One perturbation; by default all.
        tap: By default the deepest of each model.
        data: One data set; by default the only one.

    Raises:
        InputError: If the table has no such rows, or several data sets.
    """
    rows = series.scored_rows(table, metric, target=target, tap=tap, data=data)
    if rows["data"].nunique() > 1:
        raise InputError("one data set", ", ".join(sorted(set(rows["data"]))), "Name it with `data=`")
    if tap is None:
        rows = rows[rows["depth"] == rows.groupby("model")["depth"].transform("max")]
    facts = metric_facts(metric)
    with style.styled():
        figure, axes, pairs = _panels(rows)
        looks = _looks(table, rows)
        handles: dict[str, Any] = {}
        drawn: list[series.Curve | series.Band] = []
        for i, (place, (_, one)) in enumerate(zip(axes, pairs, strict=True)):
            own = rows[rows["target"] == one]
            lines = series.curves(table, own, "strength")
            random = _random(table, own, looks, "strength")
            handles |= _draw_bands(place, series.null_bands(_named(lines, looks)), looks, "--")
            handles |= _draw_bands(place, random, looks, ":")
            handles |= _draw_curves(place, lines, looks)
            params = read_params(own)
            if params[0]["strength"] > params[-1]["strength"]:
                place.invert_xaxis()
            place.set_xlabel(style.plain(f"{one} ({params[0]['unit']})"))
            if i % COLUMNS == 0:
                place.set_ylabel(_wrapped(facts.axis))
            drawn += [*lines, *random]
        _limit(axes[0], drawn, metric, facts)
        _finish(figure, handles, _strength_notes(table, rows, tap))
    return style.finish(
        figure, f"{facts.label} against the strength of changes of the image: {_subject(rows)}."
    )


def _panels(rows: pd.DataFrame) -> tuple[Figure, list[Axes], list[tuple[str, str]]]:
    """Return a figure with one axes per (data, target), all to one scale."""
    pairs = series.panels(rows)
    columns = min(len(pairs), COLUMNS)
    lines = -(-len(pairs) // columns)
    width = 6.6 if columns == 1 else min(style.FULL_WIDTH, 0.6 + style.PANEL_WIDTH * 1.15 * columns)
    height = (3.3 if lines == 1 else style.PANEL_HEIGHT * lines) + 0.9
    figure = style.new_figure(width, height)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    axes = list(grid.ravel())
    for spare in axes[len(pairs) :]:
        spare.remove()
    return figure, axes[: len(pairs)], pairs


def shade_levels(axes: Axes, rows: pd.DataFrame) -> None:
    """Shade every other level behind depth curves, and name them all."""
    depths = rows["depth"].to_numpy()
    left, right = float(np.min(depths)) - 0.03, float(np.max(depths)) + 0.03
    axes.set_xlim(left, right)
    spans = series.level_spans(rows)
    for i, (level, start, end) in enumerate(spans):
        start, end = max(start, left), min(end, right)
        if i % 2 == 0:
            axes.axvspan(start, end, color=style.FAINT, alpha=0.75, linewidth=0, zorder=0)
        axes.text(
            (start + end) / 2, 1.0, level, transform=axes.get_xaxis_transform(), ha="center", va="top",
            fontsize=7.5, color=style.MUTED, style="italic",
        )  # fmt: skip


def _looks(table: ResultTable, rows: pd.DataFrame) -> dict[str, style.Look]:
    """Return the looks of the models that a figure of these rows names."""
    there = set(rows["model"])
    models = [model for model in table.trained if model in there]
    named = foremost(table, models)
    return style.looks(table.trained if len(named) == len(models) else named)


def _named(lines: Sequence[series.Curve], looks: Mapping[str, style.Look]) -> list[series.Curve]:
    return [line for line in lines if line.model in looks]


def _random(
    table: ResultTable, rows: pd.DataFrame, looks: Mapping[str, style.Look], x: str
) -> list[series.Band]:
    """Return the bands of random init, only for the architectures of named models where some are not."""
    drawn = rows["model"].isin(set(table.controls))
    named = rows["model"].isin(set(looks))
    if not (drawn | named).all():
        rows = rows[named | (drawn & rows["arch"].isin(set(rows.loc[named, "arch"])))]
    return series.random_bands(table, rows, x)


def _draw_bands(
    axes: Axes,
    bands: Sequence[series.Band],
    looks: Mapping[str, style.Look],
    dashes: Literal["--", ":"],
) -> dict[str, Any]:
    grey = style.MUTED if dashes == "--" else style.RANDOM_GREY
    handles: dict[str, Any] = {}
    for band in bands:
        colour = looks[band.model].colour if band.model else grey
        fade = 0.10 if band.model else 0.20
        if len(band.x) == 1:
            # A line of one point cannot be seen.
            axes.axhspan(band.low[0], band.high[0], color=colour, alpha=fade, linewidth=0, zorder=1)
            axes.axhline(band.mean[0], linestyle=dashes, color=colour, linewidth=1.2, zorder=1.5)
        else:
            axes.fill_between(band.x, band.low, band.high, color=colour, alpha=fade, linewidth=0, zorder=1)
            axes.plot(band.x, band.mean, linestyle=dashes, color=colour, linewidth=1.2, zorder=1.5)
        handles[style.plain(band.label)] = Line2D([], [], color=grey, linestyle=dashes, linewidth=1.2)
    return handles


def _draw_baselines(axes: Axes, rows: pd.DataFrame) -> dict[str, Any]:
    """Draw what is reached without a model, as the params say: name → value, the same at every tap."""
    known: dict[str, float] = {}
    for params in read_params(rows):
        known |= params.get("baselines", {})
    handles: dict[str, Any] = {}
    for place, (name, value) in enumerate(sorted(known.items())):
        dashes = _BASELINE_DASHES[place % len(_BASELINE_DASHES)]
        axes.axhline(value, color=style.INK, linestyle=dashes, linewidth=1.0, zorder=1.6)
        handles[style.plain(name)] = Line2D([], [], color=style.INK, linestyle=dashes, linewidth=1.0)
    return handles


def _draw_curves(
    axes: Axes, lines: Sequence[series.Curve], looks: Mapping[str, style.Look]
) -> dict[str, Any]:
    drawn: dict[str, int] = {}
    handles: dict[str, Any] = {}
    others = [line for line in lines if line.model not in looks]
    for line in others:
        axes.plot(line.x, line.y, color=style.OTHER_GREY, linewidth=0.6, alpha=0.6, zorder=1.8)
    if others:
        handles["other models"] = Line2D([], [], color=style.OTHER_GREY, linewidth=0.6)
    for line in _named(lines, looks):
        look = looks[line.model]
        repeat = drawn.setdefault(line.model, 0)
        drawn[line.model] += 1
        dashes = style.DASHES[repeat % len(style.DASHES)] if repeat else look.dashes
        axes.fill_between(line.x, line.low, line.high, color=look.colour, alpha=0.16, linewidth=0, zorder=2)
        axes.plot(line.x, line.y, color=look.colour, linestyle=dashes, zorder=3)
        faces = [look.colour if clear else "white" for clear in line.clear]
        axes.scatter(
            line.x,
            line.y,
            s=24,
            marker=look.marker,
            c=faces,
            edgecolors=look.colour,
            linewidths=1.2,
            zorder=4,
        )
        if line.star is not None:
            axes.scatter(
                line.x[line.star], line.y[line.star], s=150, marker="*", c=look.colour, edgecolors="white",
                linewidths=0.9, zorder=5,
            )  # fmt: skip
        handles[style.plain(line.label)] = Line2D(
            [], [], color=look.colour, linestyle=dashes, marker=look.marker, markersize=5
        )
    return handles


def label_depth(axes: Axes, rows: pd.DataFrame, *, last_row: bool) -> None:
    """Name the blocks along the axis of depth where all models share few enough of them."""
    ticks = series.block_ticks(rows)
    if ticks is None:
        axes.xaxis.set_major_locator(MultipleLocator(0.25))
        axes.set_xlabel("Relative depth (0 = first, 1 = last block)" if last_row else "")
        return
    names = [style.plain(name, 18) for name in ticks[1]]
    axes.set_xticks(ticks[0], names, rotation=40, ha="right", rotation_mode="anchor", fontsize=7.2)
    axes.set_xlabel("Block, at its relative depth" if last_row else "")


def _limit(axes: Axes, drawn: Sequence[series.Curve | series.Band], metric: str, facts: MetricFacts) -> None:
    """Keep the axis that all panels share inside what the metric can be, with room for the level names.

    Once all panels are drawn: limits that are set no longer follow what is drawn later.
    """
    low, high = axes.get_ylim()
    if metric in FLOORED:
        seen = [one.y if isinstance(one, series.Curve) else one.mean for one in drawn]
        low = max(low, min(R2_FLOOR, *(float(np.nanmax(one)) for one in seen)) if seen else R2_FLOOR)
    span = high - low
    bounded = 0.02 * span
    low = low if facts.low is None else max(low, facts.low - bounded)
    top = high + 0.07 * span
    axes.set_ylim(low, top if facts.high is None else min(top, facts.high + 0.08 * span))


def _stretch(axes: Axes) -> None:
    """Draw ratios on a logarithmic axis that all panels share, with room for the level names."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.07)


def _finish(figure: Figure, handles: dict[str, Any], notes: Sequence[str]) -> None:
    # Models first, references last: they have no marker.
    order = sorted(handles, key=lambda name: handles[name].get_marker() in ("", "None", None))
    style.add_legend(figure, [handles[name] for name in order], order)
    style.add_footer(figure, notes)


def _title(pairs: Sequence[tuple[str, str]], data: str, target: str) -> str:
    several = len({name for name, _ in pairs}) > 1
    return style.plain(f"{data} · {target}" if several else target)


def _depth_notes(table: ResultTable, rows: pd.DataFrame, metric: str) -> list[str]:
    trained = rows[~rows["model"].isin(set(table.controls))]
    choices = choose_taps(table.frame, metric)
    models = set(table.trained)
    on = {choice.on for (_, model, _), choice in choices.items() if model in models}
    star = "★: tap chosen on val"
    if on == {"test"}:
        star = "★: best test value, so optimistic (no val scores)"
    notes = [_count(trained), _interval(trained), *_references(table, rows)]
    if trained["null"].notna().any():
        notes.append("Open markers: the interval reaches the null's range")
    if metric in FLOORED and bool((rows["value"] < R2_FLOOR).any()):
        notes.append(f"Values below {R2_FLOOR:g} are cut off")
    starred = metric_facts(metric).higher_is_better is not None and not metric.endswith("_difference")
    notes += [star] if starred else []
    missing = table.frame[(table.frame["metric"] == metric) & (table.frame["status"] != "ok")]
    return [*notes, f"{len(missing)} undefined values left out" if len(missing) else "", _naming(table, rows)]


def _naming(table: ResultTable, rows: pd.DataFrame) -> str:
    there = set(rows["model"])
    models = [model for model in table.trained if model in there]
    return naming_note(table, len(foremost(table, models)), len(models))


def _taps_in_words(rows: pd.DataFrame) -> str:
    taps = rows.drop_duplicates("model")
    return "; ".join(f"{model} at {name}" for model, name in zip(taps["model"], taps["tap"], strict=True))


def _few_shot_notes(table: ResultTable, rows: pd.DataFrame, tap: str | None) -> list[str]:
    trained = rows[~rows["model"].isin(set(table.controls))]
    at = _taps_in_words(trained[trained["model"].isin(set(_looks(table, rows)))])
    choices = choose_taps(table.frame, "few_shot_accuracy").values()
    chosen = (
        "chosen on val" if all(choice.on == "val" for choice in choices) else "chosen on test, so optimistic"
    )
    where = f"At {tap}" if tap is not None else f"Taps {chosen}: {at}"
    return [_count(trained), _interval(trained), *_references(table, rows), where, _naming(table, rows)]


def _strength_notes(table: ResultTable, rows: pd.DataFrame, tap: str | None) -> list[str]:
    trained = rows[~rows["model"].isin(set(table.controls))]
    at = _taps_in_words(trained[trained["model"].isin(set(_looks(table, rows)))])
    counted = f"n = {int(rows['n'].max())} images, each under every change"
    where = f"At {tap}" if tap is not None else f"Deepest taps: {at}"
    notes = [counted, _interval(trained), *_references(table, rows), "Stronger to the right", where]
    return [*notes, _naming(table, rows)]


def _depth_caption(facts: MetricFacts, rows: pd.DataFrame) -> str:
    unit = f" ({facts.unit})" if facts.unit else ""
    return f"{facts.label}{unit} against depth: {_subject(rows)}."


def _names(values: Iterable[Any]) -> str:
    unique = [str(value) for value in dict.fromkeys(values)]
    return ", ".join(unique[:4]) + (f" and {len(unique) - 4} more" if len(unique) > 4 else "")


def _subject(rows: pd.DataFrame) -> str:
    data = _only(rows["data"])
    return _names(rows["target"]) + (f" ({data})" if data else "")


def _count(rows: pd.DataFrame) -> str:
    counts = sorted({int(n) for n in rows["n"].dropna()})
    if not counts:
        return ""
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    data, of_test = _only(rows["data"]), _only(rows["split"]) == "test"
    what = f"n = {span} {'test ' if of_test else ''}images"
    return f"{style.plain(data)}: {what}" if data else what


def _interval(rows: pd.DataFrame) -> str:
    kind = _only(rows["ci_kind"])
    seeds = rows.groupby(["model", "tap", "target", "params"])["pretrain_seed"].nunique().max()
    if seeds > 1:
        return f"Bands: range over {seeds} seeds"
    if rows["ci_low"].isna().all():
        return "No intervals"
    return f"Bands: 95 % intervals ({kind_words(kind)})" if kind else "Bands: 95 % intervals"


def _references(table: ResultTable, rows: pd.DataFrame) -> list[str]:
    """Say what the grey lines are."""
    controls = set(table.controls)
    trained, drawn = rows[~rows["model"].isin(controls)], rows[rows["model"].isin(controls)]
    notes = []
    if trained["null"].notna().any():
        kind = kind_words(_only(trained["null_kind"]))
        notes.append(f"Dashed: null, mean and range{f' ({kind})' if kind else ''}")
    if len(drawn):
        count = int(drawn.groupby("arch")["model"].nunique().max())
        several = f"Dotted: random init, mean and range of {count}"
        notes.append(several if count > 1 else "Dotted: one random init")
    return notes


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(label, 36))


def _only(values: pd.Series[Any]) -> str:
    """Return the one kind all rows have, or '' if there is none or several."""
    kinds = {str(value) for value in values if value}
    return kinds.pop() if len(kinds) == 1 else ""


def _primary(table: ResultTable) -> str:
    found = primary_metrics(table.frame)
    if not found:
        raise InputError("a table with rows", "none", "Check what it was narrowed to")
    return found[0]
