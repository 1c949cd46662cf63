"""What the trainings of one model say: metrics of every state, gains, what changed, what can be put back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probekit.files import safe_name
from probekit.finetuning.cells import Cell, Grid
from probekit.finetuning.changes import last_tap
from probekit.finetuning.curves import SCRATCH, SELFFER, Point
from probekit.finetuning.means import OVER_FOLDS, OVER_SEEDS, OVER_TRIALS, Values, mean_row, over_trials
from probekit.finetuning.network import read_for
from probekit.finetuning.scores import Gains, score_rows, steps_to
from probekit.taps.facts import list_blocks
from probekit.taps.layers import level_shares

# What of the settings one training depends on, beside its learning rate and trial.
_SHARED = ("tuned", "batch_norm", "norms", "precision")
Row = dict[str, Any]


def state_rows(grids: Sequence[Grid]) -> Iterator[Row]:
    """Yield the metrics of every training of a model, then what they say together.

    With several folds that is the mean of the folds' metrics: answers of different trainings are never
    pooled, because their scores have no common scale.

    Args:
        grids: Those of one model, finished: a single one, or a fold each.
    """
    first = grids[0]
    task = first.data.task
    for grid in grids:
        yield from training_rows(grid)
    if first.fold is None:
        yield from gain_rows(
            first, {point: first.values(point, task.metrics[0]) for point in first.points}, kind_of(first)
        )
        yield from (*_steps_rows(first), *_change_rows(first), *_rewind_rows(first))
    else:
        yield from _fold_rows(grids)
    for mode, reason in first.absent.items():
        told = params(first, (), mode) | {"of": task.metrics[0], "curve": ""}
        yield shared(first) | {"metric": "gain", "value": None, "status": reason, "params": told}


def kind_of(grid: Grid) -> str:
    """Return what intervals over the trainings of a state are over."""
    return OVER_SEEDS if grid.is_arm else OVER_TRIALS


def training_rows(grid: Grid) -> Iterator[Row]:
    """Yield the metrics of every state and trial."""
    told, baseline = shared(grid), grid.baseline
    for cell, _ in grid.counted():
        for metric in grid.data.task.metrics:
            yield told | _metric_row(grid, cell, metric) | {"null": baseline[metric]}


def _fold_rows(grids: Sequence[Grid]) -> Iterator[Row]:
    """Yield means over folds, and what they say together."""
    first = grids[0]
    task = first.data.task
    found = {
        (point, metric): over_trials([one.values(point, metric) for one in grids])
        for point in first.points
        for metric in task.metrics
    }
    baselines, same = [one.baseline for one in grids], shared(first)
    for (point, metric), values in found.items():
        told = same | {"metric": metric, "params": params(first, point.kept, point.mode)}
        null = {"null": float(np.mean([one[metric] for one in baselines])), "null_kind": "no image seen"}
        yield told | null | mean_row(values, OVER_FOLDS)
    yield from gain_rows(first, {point: found[point, task.metrics[0]] for point in first.points}, OVER_FOLDS)


def gain_rows(grid: Grid, values: Mapping[Point, Values], kind: str) -> Iterator[Row]:
    """Yield gains and shares; beside the high-level share what that level holds of the network.

    Args:
        grid: Finished.
        values: State → the first metric of every trial, or of every fold.
        kind: Of intervals over them.
    """
    task, settings = grid.data.task, grid.settings
    names, levels = (tuple(getattr(one, what) for one in grid.groups) for what in ("name", "level"))
    gains = Gains(names, levels, values, 1 if task.higher_is_better else -1)
    modes = [mode for mode in settings["modes"] if mode not in grid.absent]
    held = level_shares(grid.of(0)).get("high", {}) if levels and levels[0] else {}
    same = shared(grid)
    for row in score_rows(gains, settings["curves"], modes, kind):
        told = params(grid, row.pop("kept"), row.pop("mode")) | {"of": task.metrics[0]}
        told["curve"] = row.pop("curve")
        if row["metric"] == "high_level_share":
            told |= {f"level_{what}": round(share, 4) for what, share in held.items()}
        yield same | row | {"params": told}


def _metric_row(grid: Grid, cell: Cell, metric: str) -> Row:
    found = grid.found[cell]
    row: Row = {"metric": metric, **training_facts(grid, cell)}
    row |= {"null_kind": "no image seen", "n": len(grid.data.test)}
    if "status" in found:
        return row | {"value": None, "status": found["status"]}
    row["value"] = found["test"][metric]
    if metric in found["intervals"]:
        low, high = found["intervals"][metric]
        row |= {"ci_low": low, "ci_high": high, "ci_kind": grid.data.task.interval_kind}
    return row


def training_facts(grid: Grid, cell: Cell) -> Row:
    """Return what tells the rows of one training from those of others."""
    told = params(grid, cell.point.kept, cell.point.mode) | {
        "lr": cell.lr if grid.trains else None,
        "lr_at_edge": len(grid.rates) > 1 and cell.lr in (grid.rates[0], grid.rates[-1]),
        **({} if grid.fold is None else {"fold": grid.fold}),
    }
    row: Row = {"trial_seed": grid.settings["seed"] + cell.trial, "params": told}
    row["weights"] = grid.of(cell.trial).weights
    return row | ({"pretrain_seed": cell.trial} if grid.is_arm else {})


def _steps_rows(grid: Grid) -> Iterator[Row]:
    """Yield the steps after which each state has come 90 % of the whole backbone's way from the null."""
    metric = grid.data.task.metrics[0]
    null = grid.baseline[metric]
    ends = [_curve(grid, grid.whole, trial)[1] for trial in grid.trials]
    last = [values[-1] for values in ends if len(values)]
    if not last:
        return
    aim, same = null + 0.9 * (float(np.mean(last)) - null), shared(grid)
    for point in grid.points:
        found = [steps_to(*_curve(grid, point, trial), aim, aim >= null) for trial in grid.trials]
        reached = np.array([one for one in found if one is not None])
        row: Row = same | {"metric": "steps_to_90"}
        row["params"] = params(grid, point.kept, point.mode) | {"of": metric}
        if len(reached) < len(found):
            missed = len(found) - len(reached)
            yield row | {"value": None, "status": f"not reached in {missed} of {len(found)} trainings"}
        else:
            yield row | mean_row(reached, kind_of(grid))


def _curve(grid: Grid, point: Point, trial: int) -> tuple[list[int], list[float]]:
    """Return steps and values on val along a training."""
    name = f"val_{grid.data.task.metrics[0]}"
    lines = [one for one in grid.found[grid.chosen_cell(point, trial)].get("curve", []) if name in one]
    return [int(one["step"]) for one in lines], [float(one[name]) for one in lines]


def _change_rows(grid: Grid) -> Iterator[Row]:
    """Yield how far weights moved and how alike outputs stayed, by group, of the whole and of scratch."""
    same = shared(grid)
    for point in (grid.whole, Point((), SCRATCH)):
        changes = [grid.found[grid.chosen_cell(point, trial)].get("changes") for trial in grid.trials]
        known = [one for one in changes if one]
        for group in grid.groups if known else ():
            for metric in ("distance_moved", "cka_kept"):
                values = [one[group.name][metric] for one in known if one[group.name][metric] is not None]
                told = params(grid, point.kept, point.mode) | {"group": group.name}
                why = "undefined: weights of length 0, or a constant output"
                row = {"metric": metric, "params": told} | mean_row(np.array(values), kind_of(grid), why)
                yield same | _place(grid, group.name) | row


def _rewind_rows(grid: Grid) -> Iterator[Row]:
    """Yield what the finetuned backbone loses when one of its groups is put back: mean over trials."""
    task, same = grid.data.task, shared(grid)
    lost: dict[tuple[str, str, str], list[float]] = {}
    for rows in grid.rewound.values():
        whole, *others = rows
        for one in others:
            drop = (whole["value"] - one["value"]) * (1 if task.higher_is_better else -1)
            lost.setdefault((one["group"], one["to"], one["batch_norm"]), []).append(drop)
    for (group, to, batch_norm), drops in lost.items():
        told = params(grid, grid.whole.kept, "") | {
            "group": group, "to": to, "rewound_batch_norm": batch_norm, "of": task.metrics[0],
        }  # fmt: skip
        row = {"metric": "rewind_drop", "params": told} | mean_row(np.array(drops), kind_of(grid))
        yield same | _place(grid, group) | row


def _place(grid: Grid, name: str) -> Row:
    """Return where a group ends."""
    (group,) = (one for one in grid.groups if one.name == name)
    backbone = grid.of(0)
    tap = last_tap(backbone, group)
    (block,) = (one for one in list_blocks(backbone) if one.tap == tap)
    return {
        "tap": str(tap),
        "block": block.path,
        "level": block.level,
        "depth": block.depth,
        "readout": tap.readout,
    }


def params(grid: Grid, kept: Sequence[str], mode: str) -> Row:
    """Return what the rows of a state say of how it was trained."""
    s = grid.settings
    every = [group.name for group in grid.groups]
    return {
        "task": grid.data.task.name,
        "kept": list(kept),
        "n_kept": len(kept),
        "replaced": [name for name in every if name not in kept],
        "mode": mode,
        "by": s["by"],
        "steps": s["steps"] if grid.trains else 0,
        "batch_size": s["batch_size"],
        "n_train": len(grid.data.train),
        **{name: s[name] for name in _SHARED},
        **({"folds": s["folds"]} if s["folds"] else {}),
    }


def shared(grid: Grid) -> Row:
    """Return what all rows of a model say."""
    backbone = grid.of(0)
    reading, block = read_for(backbone, grid.data.task), list_blocks(backbone)[-1]
    return {
        "model": grid.name,
        "arch": backbone.arch,
        "weights": None if grid.is_arm else backbone.weights,
        "data": grid.data.images.name,
        "split": "test",
        "target": grid.data.task.target,
        "tap": f"{reading.path}|{reading.readout}",
        "block": block.path,
        "level": block.level,
        "depth": block.depth,
        "readout": reading.readout,
        "d": int(np.prod(reading.shape)),
        "n_classes": len(grid.data.task.classes),
    }


def grid_facts(grid: Grid) -> Row:
    """Return what provenance says of the model."""
    first = grid.of(0)
    shares = level_shares(first) if grid.groups and grid.groups[0].level else {}
    told: Row = {**first.facts(), "level_shares": shares, "random_init": False, "control_of": None}
    if grid.is_arm:
        told |= {"spec": None, "pretraining_seeds": [one.facts() for one in grid.backbones]}
    return told


def grid_attachments(grid: Grid) -> dict[str, pd.DataFrame]:
    """Return the curve of every training that counts, and all trainings as another machine takes them."""
    found = {
        frame_place(grid, "curves", cell): pd.DataFrame(one["curve"])
        for cell, one in grid.counted()
        if one.get("curve")
    }
    rows = [
        {
            "key": grid.key(cell), "kept": " ".join(cell.point.kept), "mode": cell.point.mode,
            "trial": cell.trial, "lr": cell.lr, "result": json.dumps(_plain(told), sort_keys=True),
        }
        for cell, told in grid.found.items()
        if "test" in told and cell.point.mode != SELFFER
    ]  # fmt: skip
    fold = "" if grid.fold is None else f"-fold{grid.fold}"
    found[f"cells/{safe_name(grid.name)}{fold}.parquet"] = pd.DataFrame(rows)
    return found


def _plain(told: Mapping[str, Any]) -> Row:
    """Return a result without what a line of text cannot hold, or another machine does not need."""
    return {key: value for key, value in told.items() if key not in ("answers", "ids", "folder")}


def frame_place(grid: Grid, kind: str, cell: Cell) -> str:
    """Return where a frame of one training hangs on the table."""
    state = "-".join(cell.point.kept) or "nothing"
    number = cell.trial if grid.fold is None else f"{cell.trial}-fold{grid.fold}"
    name = f"{state}_{cell.point.mode or 'whole'}_{number}"
    return f"{kind}/{safe_name(grid.name)}/{safe_name(name)}.parquet"
