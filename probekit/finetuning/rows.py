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
from probekit.finetuning.network import read_for
from probekit.finetuning.scores import Gains, mean_row, score_rows, steps_to
from probekit.taps.facts import list_blocks
from probekit.taps.layers import level_shares

# What of the settings one training depends on, beside its learning rate and trial.
_SHARED = ("tuned", "batch_norm", "norms", "precision")
Row = dict[str, Any]


def grid_rows(grid: Grid) -> Iterator[Row]:
    """Yield the metrics of every state and trial, then what they say together."""
    shared, task = _shared(grid), grid.data.task
    baseline = task.baseline(grid.data.train.truth, grid.data.test.truth)
    for point in grid.points:
        for trial in grid.trials:
            cell = grid.chosen_cell(point, trial)
            for metric in task.metrics:
                yield shared | _metric_row(grid, cell, metric) | {"null": baseline[metric]}
    for row in _scores(grid):
        params = _params(grid, row.pop("kept"), row.pop("mode")) | {"of": task.metrics[0]}
        params |= {"curve": row.pop("curve"), **row.pop("params", {})}
        yield shared | row | _kind(grid, row) | {"params": params}
    for row in (*_steps_rows(grid, baseline[task.metrics[0]]), *_change_rows(grid), *_rewind_rows(grid)):
        yield shared | row | _kind(grid, row)
    for mode, reason in grid.absent.items():
        params = _params(grid, (), mode) | {"of": task.metrics[0], "curve": ""}
        yield shared | {"metric": "gain", "value": None, "status": reason, "params": params}


def _kind(grid: Grid, row: Mapping[str, Any]) -> Row:
    if "ci_low" not in row:
        return {}
    return {"ci_kind": "t,pretraining seeds" if grid.is_arm else "t,trials"}


def _scores(grid: Grid) -> Iterator[Row]:
    """Yield gains and shares; beside the high-level share what that level holds of the network."""
    task, settings = grid.data.task, grid.settings
    values = {
        point: np.array([_value(grid, point, trial, task.metrics[0]) for trial in grid.trials])
        for point in grid.points
    }
    names, levels = (tuple(getattr(one, what) for one in grid.groups) for what in ("name", "level"))
    gains = Gains(names, levels, values, 1 if task.higher_is_better else -1)
    modes = [mode for mode in settings["modes"] if mode not in grid.absent]
    held = level_shares(grid.of(0)).get("high", {}) if levels and levels[0] else {}
    for row in score_rows(gains, settings["curves"], modes):
        if row["metric"] == "high_level_share":
            row["params"] = {f"level_{kind}": round(share, 4) for kind, share in held.items()}
        yield row


def _value(grid: Grid, point: Point, trial: int, metric: str) -> float:
    """Return a metric on test; NaN where the training failed."""
    found = grid.found[grid.chosen_cell(point, trial)]
    return float(found["test"][metric]) if "test" in found else float("nan")


def _metric_row(grid: Grid, cell: Cell, metric: str) -> Row:
    found = grid.found[cell]
    params = _params(grid, cell.point.kept, cell.point.mode) | {
        "lr": cell.lr,
        "lr_at_edge": len(grid.rates) > 1 and cell.lr in (grid.rates[0], grid.rates[-1]),
    }
    row: Row = {"metric": metric, "trial_seed": grid.settings["seed"] + cell.trial, "params": params}
    row |= {"null_kind": "no image seen", "n": len(grid.data.test)}
    row["weights"] = grid.of(cell.trial).weights
    if grid.is_arm:
        row["pretrain_seed"] = cell.trial
    if "status" in found:
        return row | {"value": None, "status": found["status"]}
    row["value"] = found["test"][metric]
    if metric in found["intervals"]:
        low, high = found["intervals"][metric]
        row |= {"ci_low": low, "ci_high": high, "ci_kind": "bootstrap,test units"}
    return row


def _steps_rows(grid: Grid, null: float) -> Iterator[Row]:
    """Yield the steps after which each state has come 90 % of the whole backbone's way from the null."""
    metric = grid.data.task.metrics[0]
    ends = [_curve(grid, grid.whole(), trial)[1] for trial in grid.trials]
    last = [values[-1] for values in ends if len(values)]
    if not last:
        return
    aim = null + 0.9 * (float(np.mean(last)) - null)
    for point in grid.points:
        found = [steps_to(*_curve(grid, point, trial), aim, aim >= null) for trial in grid.trials]
        reached = np.array([one for one in found if one is not None])
        row = {"metric": "steps_to_90", "params": _params(grid, point.kept, point.mode) | {"of": metric}}
        if len(reached) < len(found):
            missed = len(found) - len(reached)
            yield row | {"value": None, "status": f"not reached in {missed} of {len(found)} trainings"}
        else:
            yield row | mean_row(reached)


def _curve(grid: Grid, point: Point, trial: int) -> tuple[list[int], list[float]]:
    """Return steps and values on val along a training."""
    name = f"val_{grid.data.task.metrics[0]}"
    lines = [one for one in grid.found[grid.chosen_cell(point, trial)].get("curve", []) if name in one]
    return [int(one["step"]) for one in lines], [float(one[name]) for one in lines]


def _change_rows(grid: Grid) -> Iterator[Row]:
    """Yield how far weights moved and how alike outputs stayed, by group, of the whole and of scratch."""
    for point in (grid.whole(), Point((), SCRATCH)):
        told = [grid.found[grid.chosen_cell(point, trial)].get("changes") for trial in grid.trials]
        known = [one for one in told if one]
        for group in grid.groups if known else ():
            for metric in ("distance_moved", "cka_kept"):
                values = [one[group.name][metric] for one in known if one[group.name][metric] is not None]
                params = _params(grid, point.kept, point.mode) | {"group": group.name}
                row = {"metric": metric, "params": params} | _place(grid, group.name)
                constant = {"value": None, "status": "undefined: weights of length 0, or a constant output"}
                yield row | (mean_row(np.array(values)) if values else constant)


def _rewind_rows(grid: Grid) -> Iterator[Row]:
    """Yield what the finetuned backbone loses when one of its groups is put back: mean over trials."""
    task = grid.data.task
    lost: dict[tuple[str, str, str], list[float]] = {}
    for rows in grid.rewound.values():
        whole, *others = rows
        for one in others:
            drop = (whole["value"] - one["value"]) * (1 if task.higher_is_better else -1)
            lost.setdefault((one["group"], one["to"], one["batch_norm"]), []).append(drop)
    for (group, to, batch_norm), drops in lost.items():
        params = _params(grid, grid.whole().kept, "") | {
            "group": group, "to": to, "rewound_batch_norm": batch_norm, "of": task.metrics[0],
        }  # fmt: skip
        yield {"metric": "rewind_drop", "params": params} | _place(grid, group) | mean_row(np.array(drops))


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


def _params(grid: Grid, kept: Sequence[str], mode: str) -> Row:
    s = grid.settings
    every = [group.name for group in grid.groups]
    return {
        "task": grid.data.task.name,
        "kept": list(kept),
        "n_kept": len(kept),
        "replaced": [name for name in every if name not in kept],
        "mode": mode,
        "by": s["by"],
        "steps": s["steps"],
        "batch_size": s["batch_size"],
        "n_train": len(grid.data.train),
        **{name: s[name] for name in _SHARED},
    }


def _shared(grid: Grid) -> Row:
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
    found = {}
    for point in grid.points:
        for trial in grid.trials:
            curve = grid.found[grid.chosen_cell(point, trial)].get("curve")
            if curve:
                state = "-".join(point.kept) or "nothing"
                name = f"{state}_{point.mode or 'whole'}_{trial}"
                found[f"curves/{safe_name(grid.name)}/{safe_name(name)}.parquet"] = pd.DataFrame(curve)
    rows = [
        {
            "key": grid.key(cell), "kept": " ".join(cell.point.kept), "mode": cell.point.mode,
            "trial": cell.trial, "lr": cell.lr, "result": json.dumps(told, sort_keys=True),
        }
        for cell, told in grid.found.items()
        if "test" in told and cell.point.mode != SELFFER
    ]  # fmt: skip
    found[f"cells/{safe_name(grid.name)}.parquet"] = pd.DataFrame(rows)
    return found
