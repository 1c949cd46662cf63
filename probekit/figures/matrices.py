"""Heat-maps: recall per class, R² per factor, both against taps."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from probekit.errors import InputError
from probekit.figures import series, style
from probekit.figures.foremost import foremost, naming_note
from probekit.results.choosing import choose_taps
from probekit.results.metrics import metric_facts
from probekit.results.presentation import fixed
from probekit.results.table import ResultTable

# Perceptually even, told apart with any colour vision, readable in grey.
COLOURMAP = "viridis"
# More rows than this are broken into blocks beside each other.
ROWS_PER_BLOCK = 40
# Numbers are written into cells of matrices no larger than this.
WRITTEN_ROWS, WRITTEN_COLUMNS = 24, 12
MISSING = "#FFFFFF"


def plot_class_recall(table: ResultTable, target: str | None = None, model: str | None = None) -> Figure:
    """Draw recall, classes against taps, on a fixed scale from 0 to 1.

    Args:
        table: Rows of ``class_recall`` with ``class`` in the params.
        target: By default the only one that has them.
        model: By default the only one that is not a control.

    Raises:
        InputError: If the table has no such rows, or several targets, models or data sets.
    """
    rows = series.scored_rows(table, "class_recall", target=target, model=model)
    if model is None:
        rows = rows[~rows["model"].isin(set(table.controls))]
    for column in ("target", "model", "data"):
        if rows[column].nunique() != 1:
            names = ", ".join(str(name) for name in rows[column].unique()) or "none"
            raise InputError(
                f"one {column} with recalls", names, f"Name it with `{column}=`, or narrow the table"
            )
    rows = rows.assign(label=[str(json.loads(text).get("class", "")) for text in rows["params"]])
    counts = rows.groupby("label", sort=False)["n"].max()
    name, one, data = (str(rows[column].iloc[0]) for column in ("model", "target", "data"))
    choice = choose_taps(table.frame, "accuracy").get((data, name, one))
    values = _matrix(rows)
    labels = [f"{label} ({counts[label]})" if pd.notna(counts[label]) else label for label in values.index]
    with style.styled():
        figure = _blocks(rows, values, labels, choice.tap if choice else None)
        figure.suptitle(style.plain(f"{name} · {one}"), x=0.008, ha="left", fontsize=9.5, fontweight="bold")
        star = (
            "★: tap chosen on val" if choice and choice.on == "val" else "★: tap with the highest test value"
        )
        notes = ["In brackets: test images of the class", star if choice else "", "White lines part levels"]
        smallest = int(counts.min()) if counts.notna().any() else 0
        notes.append(
            f"The smallest class has {smallest}: one image moves its recall by {1 / smallest:.2g}"
            if smallest
            else ""
        )
        style.add_footer(figure, notes)
    return style.finish(figure, f"Recall by class at every tap of {name}: {one}{_of(data)}.")


def plot_targets(table: ResultTable, metric: str = "r2", *, data: str | None = None) -> Figure:
    """Draw an overview of many targets: one matrix per model, targets against taps.

    Args:
        table: Rows of the metric, one per model, tap and target.
        metric: A metric whose useful range is 0 to 1.
        data: One data set; needed only if the table has several.

    Raises:
        InputError: If the table has no such rows, or several data sets.
    """
    rows = series.scored_rows(table, metric, data=data)
    if rows["data"].nunique() != 1:
        raise InputError("one data set", ", ".join(rows["data"].unique()), "Name it with `data=`")
    facts, name = metric_facts(metric), str(rows["data"].iloc[0])
    order = list(dict.fromkeys(rows["target"]))
    there = set(rows["model"])
    models = [model for model in table.trained if model in there]
    named = foremost(table, models)
    parts = [(model, rows[rows["model"] == model]) for model in named]
    drawn = rows[rows["model"].isin(set(table.controls))]
    archs = list(dict.fromkeys(drawn["arch"]))
    for arch in archs:
        own = drawn[drawn["arch"] == arch]
        title = f"random init, {arch}" if len(archs) > 1 else "random init"
        parts.append((f"{title} (mean of {own['model'].nunique()})", own))
    with style.styled():
        figure = _model_panels(parts, order, facts.axis)
        counts = sorted({int(n) for n in rows["n"].dropna()})
        notes = [
            f"n = {counts[0]} test images" if len(counts) == 1 else "",
            "White lines part levels",
            f"Scale fixed from 0 to 1; {facts.label} below 0 is drawn as 0",
        ]
        notes += ["Intervals and nulls stand in the table", naming_note(table, len(named), len(models))]
        style.add_footer(figure, notes)
    return style.finish(
        figure, f"{facts.axis} of {len(order)} targets at every tap, one matrix per model{_of(name)}."
    )


def _of(data: str) -> str:
    return f" ({data})" if data else ""


def _matrix(rows: pd.DataFrame, label: str = "label") -> pd.DataFrame:
    """Return labels × taps in order of depth; several rows of one cell (draws) are averaged."""
    taps = rows.groupby("tap", sort=False)["depth"].first().sort_values(kind="stable").index
    wide = rows.pivot_table(index=label, columns="tap", values="value", aggfunc="mean", sort=False)
    return wide.reindex(index=list(dict.fromkeys(rows[label])), columns=taps)


def _blocks(rows: pd.DataFrame, values: pd.DataFrame, labels: Sequence[str], chosen: str | None) -> Figure:
    taps = _tap_labels(rows, values, chosen)
    count = -(-len(values) // ROWS_PER_BLOCK)
    per_block = -(-len(values) // count)
    longest = min(max(len(label) for label in labels), 28)
    small = per_block > 24
    cell_height = 0.155 if small else 0.24
    cell_width = 0.30 if count > 1 else 0.48
    width = min(style.FULL_WIDTH * 1.2, count * (0.062 * longest + 0.5 + cell_width * len(taps)) + 0.8)
    figure = style.new_figure(max(width, 4.4), per_block * cell_height + 1.7)
    axes = figure.subplots(1, count, squeeze=False)[0]
    image = None
    for i, place in enumerate(axes):
        part = slice(i * per_block, min((i + 1) * per_block, len(values)))
        block = values.to_numpy()[part]
        image = _draw_matrix(place, block, write=len(values) <= WRITTEN_ROWS and count == 1)
        # Blocks of unequal height keep their cells in line.
        place.set_ylim(per_block - 0.5, -0.5)
        names = [style.plain(label, 28) for label in labels[part]]
        place.set_yticks(range(len(names)), names, fontsize=6.2 if small else 7.6)
        _label_taps(place, taps)
        _separate_levels(place, rows, list(values.columns))
    _scale(figure, image, list(axes), "Recall")
    return figure


def _model_panels(parts: Sequence[tuple[str, pd.DataFrame]], order: Sequence[str], title: str) -> Figure:
    columns = min(len(parts), 4)
    lines = -(-len(parts) // columns)
    taps = max(own["tap"].nunique() for _, own in parts)
    longest = min(max(len(name) for name in order), 24)
    cell = 0.21 if len(order) > 24 else 0.25
    width = min(1.3 * style.FULL_WIDTH, 0.07 * longest + 0.9 + columns * max(1.7, 0.24 * taps))
    figure = style.new_figure(max(width, 4.6), lines * (cell * len(order) + 1.25) + 0.7)
    grid = figure.subplots(lines, columns, squeeze=False)
    axes = list(grid.ravel())
    image = None
    for i, (place, (name, own)) in enumerate(zip(axes, parts, strict=False)):
        values = _matrix(own, "target").reindex(index=list(order))
        write = len(order) <= WRITTEN_ROWS and taps * columns <= 4 * WRITTEN_COLUMNS
        image = _draw_matrix(place, values.to_numpy(), write=write, size=5.6)
        # Bold letters of a title's size: about twelve to an inch of the panel.
        room = int(11.5 * (figure.get_figwidth() - 0.07 * longest - 0.9) / columns)
        place.set_title("\n".join(textwrap.wrap(style.plain(name, 3 * room), max(room, 8))))
        names = [style.plain(target, 24) for target in order] if i % columns == 0 else [""] * len(order)
        place.set_yticks(range(len(order)), names, fontsize=7.4)
        _label_taps(place, _tap_labels(own, values, None))
        _separate_levels(place, own, list(values.columns))
    for spare in axes[len(parts) :]:
        spare.remove()
    _scale(figure, image, axes[: len(parts)], title)
    return figure


def _draw_matrix(axes: Axes, values: NDArray[np.float64], *, write: bool, size: float = 6.6) -> AxesImage:
    colours = colormaps[COLOURMAP].with_extremes(bad=MISSING)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=0.0, vmax=1.0, aspect="auto")
    style.strip_axes(axes)
    if write and values.shape[1] <= WRITTEN_COLUMNS:
        for (i, j), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else _short(float(value))
            ink = style.INK if np.isnan(value) else _ink(colours(float(np.clip(value, 0.0, 1.0))))
            axes.text(j, i, text, ha="center", va="center", fontsize=size, color=ink)
    return image


def _short(value: float) -> str:
    """Write a share with two digits and nothing else: .53, 1, −.12."""
    if abs(value) >= 0.995:
        return fixed(value, 0)
    return fixed(value, 2).replace("0.", ".", 1)


def _ink(colour: tuple[float, float, float, float]) -> str:
    """Choose black or white text by the luminance of what is behind it (ITU-R BT.709)."""
    red, green, blue, _ = colour
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.48 else style.INK


def _separate_levels(axes: Axes, rows: pd.DataFrame, taps: Sequence[str]) -> None:
    """Draw a white line where one level ends and the next begins."""
    levels = rows.groupby("tap", sort=False)["level"].first()
    for j in range(1, len(taps)):
        if levels[taps[j]] != levels[taps[j - 1]]:
            axes.axvline(j - 0.5, color="white", linewidth=2.2)


def _tap_labels(rows: pd.DataFrame, values: pd.DataFrame, chosen: str | None) -> list[str]:
    """Return block names where they tell taps apart, else whole taps, the chosen one with a star."""
    blocks = rows.groupby("tap", sort=False)["block"].first()
    clear = blocks.is_unique and (blocks != "").all()
    names = [str(blocks[tap]) if clear else str(tap) for tap in values.columns]
    return [f"★ {name}" if tap == chosen else name for name, tap in zip(names, values.columns, strict=True)]


def _label_taps(axes: Axes, taps: Sequence[str]) -> None:
    # Every label if there is room, else every second, third …
    step = -(-len(taps) // 24)
    places = range(0, len(taps), step)
    names = [style.plain(taps[i], 20) for i in places]
    axes.set_xticks(list(places), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=6.8)


def _scale(figure: Figure, image: AxesImage | None, axes: Sequence[Axes], title: str) -> None:
    if image is not None:
        bar = figure.colorbar(image, ax=list(axes), shrink=0.7, aspect=30, pad=0.012)
        bar.set_label(title)
        bar.outline.set_visible(False)
