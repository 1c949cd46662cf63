"""Trainings of detectors, diagnosed: rows of every one, means over them, frames of every detection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probekit.files import digest_json, making_folder, read_json, write_json
from probekit.finetuning.cells import Cell, Grid
from probekit.finetuning.means import OVER_FOLDS, mean_row, over_trials
from probekit.finetuning.rows import frame_place, grid_attachments, kind_of, params, shared, training_facts
from probekit.functional.detection import IntArray
from probekit.grid import run_cells
from probekit.tasks.detection import as_detections, as_truth
from probekit.tasks.diagnosis import METRICS, Detected, measure_errors
from probekit.version import __version__

# What stays of a row where a training is one of several.
_SUMMARY = ("metric", "value", "ci_low", "ci_high", "ci_kind", "null", "null_low", "null_high", "null_kind",
            "n", "status")  # fmt: skip
Row = dict[str, Any]
# Rows of a training, and kind → frame.
Diagnosed = tuple[list[Row], dict[str, Any]]
# Changes whenever a stored diagnosis would no longer be what the code computes.
DIAGNOSIS_FORMAT = 1
ROWS = "rows.json"


def diagnosed(
    grids: Sequence[Grid], groups: IntArray | None, settings: Mapping[str, Any], jobs: int
) -> tuple[list[Row], dict[str, Any]]:
    """Return rows and frames of the finished trainings of one model: means first.

    Args:
        grids: A single one, or a fold each.
        groups: (C,) groups of similar classes.
        settings: ``permutations`` and ``seed`` among them.
        jobs: Parallel workers.
    """
    found = [_diagnosed(grid, groups, settings, jobs) for grid in grids]
    # What stands for a state comes first: pages begin with a model's first row.
    rows = [*_summaries(grids, [trainings for trainings, _ in found])]
    rows += [row for trainings, _ in found for own in trainings.values() for row in own]
    frames: dict[str, Any] = {}
    for grid, (_, own_frames) in zip(grids, found, strict=True):
        frames |= own_frames | grid_attachments(grid)
    return rows, frames


def _diagnosed(
    grid: Grid, groups: IntArray | None, settings: Mapping[str, Any], jobs: int
) -> tuple[dict[Cell, list[Row]], dict[str, Any]]:
    """Return the rows of every training that counts, and the frames that hang on the table."""
    truth = as_truth(grid.data.test.truth)
    ids = grid.data.images.ids[grid.data.test.rows]
    measure = partial(measure_errors, permutations=settings["permutations"], seed=settings["seed"])
    cases = {
        cell: Detected(as_detections(one["answers"]), truth, ids, grid.data.task.classes, groups)
        for cell, one in grid.counted()
        if "answers" in one
    }
    asked = [DIAGNOSIS_FORMAT, __version__, None if groups is None else groups.tolist()]
    asked += [settings["permutations"], settings["seed"]]
    # A training may count for several arms, and scratch does: it is diagnosed once.
    keys = {cell: digest_json([*asked, grid.key(cell)])[:32] for cell in cases}
    found = run_cells(
        {keys[cell]: partial(measure, one) for cell, one in cases.items()},
        folder=grid.folder / "diagnoses",
        save=_save,
        load=_load,
        jobs=jobs,
        label=f"{grid.name}, errors",
    )
    measured = {cell: found[key] for cell, key in keys.items()}
    rows: dict[Cell, list[Row]] = {}
    frames: dict[str, Any] = {}
    same = shared(grid)
    for cell, one in grid.counted():
        told = same | training_facts(grid, cell)
        if cell not in cases:
            failed = [{"metric": metric, "value": None, "status": one["status"]} for metric in METRICS]
            rows[cell] = [told | row for row in failed]
            continue
        own, kinds = measured[cell]
        rows[cell] = [told | row for row in own]
        frames |= {frame_place(grid, kind, cell): frame for kind, frame in kinds.items()}
    return rows, frames


def _save(found: Diagnosed, place: Path) -> None:
    """Write a finished diagnosis under its name only once it is whole."""
    rows, frames = found
    with making_folder(place) as folder:
        write_json(folder / ROWS, rows)
        for kind, frame in frames.items():
            frame.to_parquet(folder / f"{kind}.parquet")


def _load(place: Path) -> Diagnosed:
    """Read a finished diagnosis back."""
    frames = {one.stem: pd.read_parquet(one) for one in sorted(place.glob("*.parquet"))}
    return read_json(place / ROWS), frames


def _summaries(grids: Sequence[Grid], found: Sequence[Mapping[Cell, list[Row]]]) -> Iterator[Row]:
    """Yield the mean of every metric and state over folds or trials; of a single training its own rows."""
    first = grids[0]
    same = shared(first)
    for point in first.points:
        own = [[rows for cell, rows in one.items() if cell.point == point] for one in found]
        told = same | {"params": params(first, point.kept, point.mode)}
        for place, metric in enumerate(METRICS):
            rows = [[trial[place] for trial in fold] for fold in own]
            yield told | {"metric": metric} | _summary(rows, kind_of(first))


def _summary(rows: Sequence[Sequence[Row]], kind: str) -> Row:
    """Return the mean of one metric from its rows by fold and trial."""
    every = [row for fold in rows for row in fold]
    if len(every) == 1:
        return {key: value for key, value in every[0].items() if key in _SUMMARY}
    values = [np.array([_number(row["value"]) for row in fold]) for fold in rows]
    nulls = [row["null"] for row in every if "null" in row]
    why = next((row["status"] for row in every if "status" in row), "")
    several = len(rows) > 1
    row = mean_row(over_trials(values) if several else values[0], OVER_FOLDS if several else kind, why)
    if nulls:
        row |= {"null": float(np.mean(nulls)), "null_low": min(nulls), "null_high": max(nulls)}
        row["null_kind"] = next(one["null_kind"] for one in every if "null_kind" in one)
    return row


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
