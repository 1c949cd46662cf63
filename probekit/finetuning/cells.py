"""The trainings of one backbone: which they are, where they are kept, what rows they become."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probekit.backbones.backbone import Backbone
from probekit.backbones.loading import load_backbone
from probekit.backbones.spec import ModelSpec
from probekit.compute import choose_device
from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.errors import TrainingDiverged
from probekit.files import digest_json, read_json, safe_name, write_json
from probekit.finetuning.cell import Data, Finetuning, Trained, check_modes, finetune, new_head
from probekit.finetuning.curves import Group, Point, group_blocks, list_points, put_in_state
from probekit.finetuning.network import read_for
from probekit.finetuning.scores import Gains, score_rows
from probekit.functional.intervals import bootstrap_means
from probekit.grid import run_cells
from probekit.seeds import random_stream
from probekit.taps.facts import list_blocks
from probekit.taps.layers import level_shares
from probekit.tasks.choosing import find_task
from probekit.training.loop import METRICS
from probekit.training.optimisers import Optimisation
from probekit.version import __version__

# Changes whenever a stored training would no longer be what the code computes.
CELL_FORMAT = 1
DRAWS = 2000
RESULT = "result.json"
# What of the settings one training depends on, beside its learning rate and trial.
_SHARED = ("tuned", "batch_norm", "norms", "precision")


@dataclass(frozen=True)
class Cell:
    """One training: a state of the backbone, a trial, a learning rate."""

    point: Point
    trial: int
    lr: float


@dataclass(eq=False)
class Grid:
    """All trainings of one backbone on one task.

    Attributes:
        backbone: Left as it is.
        data: At its input size.
        groups: Of its blocks.
        points: States that are trained.
        settings: Of the call.
        folder: The store.
        found: Cell → what its training came to.
        chosen: Point → learning rate.
    """

    backbone: Backbone
    data: Data
    groups: list[Group]
    points: list[Point]
    settings: Mapping[str, Any]
    folder: Path
    found: dict[Cell, Mapping[str, Any]] = field(default_factory=dict)
    chosen: dict[Point, float] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        model: ModelSpec | Backbone,
        images: ImageSet,
        settings: Mapping[str, Any],
        folder: Path,
        device: str | None,
        opened: dict[Preprocessing, Data],
    ) -> Grid:
        """Open backbone and data, and refuse what cannot be trained.

        Args:
            model: The backbone.
            images: The data set.
            settings: Of the call.
            folder: The store.
            device: Where it runs.
            opened: Data by preprocessing; what is missing is added, so that backbones that see the same
                pixels share them.

        Raises:
            InputError: If the backbone cannot be read for the task, or a setting is none.
        """
        backbone = model if isinstance(model, Backbone) else load_backbone(model)
        backbone = backbone.to(choose_device(device))
        task = find_task(settings["task"], images, settings["target"])
        reading = read_for(backbone, task)
        groups = group_blocks(backbone, settings["by"])
        points = list_points(groups, settings["curves"], settings["modes"])
        seen = backbone.preprocessing
        if seen not in opened:
            opened[seen] = Data.open(images, task, seen, settings["fraction"])
        data = opened[seen]
        task.check(data.train.truth, data.val.truth, data.test.truth, tuned=settings["tuned"])
        new_head(data, reading, settings["seed"])
        grid = cls(backbone, data, groups, points, settings, folder)
        for rate in settings["lr"]:
            grid.finetuning(Cell(points[0], 0, rate))
        if settings["tuned"] and settings["batch_norm"] == "train":
            check_modes(backbone, data)
        return grid

    @property
    def trains(self) -> bool:
        """Whether anything is trained: steps and learning rates matter."""
        return bool(self.settings["tuned"]) or self.data.task.head_learns

    @property
    def rates(self) -> list[float]:
        """Learning rates to choose from, ascending; one where nothing is trained."""
        rates = sorted(float(one) for one in self.settings["lr"])
        return rates if self.trains else rates[:1]

    def finetuning(self, cell: Cell) -> Finetuning:
        """Return how a cell is trained."""
        s = self.settings
        warmup = round(s["warmup"] * s["steps"])
        optimisation = Optimisation(s["steps"], cell.lr, s["optimiser"], s["weight_decay"], warmup)
        seed = s["seed"] + cell.trial
        return Finetuning(optimisation, s["tuned"], s["batch_norm"], s["batch_size"], seed, s["precision"])

    def key(self, cell: Cell) -> str:
        """Return what stands for all that a training depends on."""
        replaced = [list(one.members) for one in self.groups if one.name not in cell.point.kept]
        state = [replaced, cell.point.mode, self.settings["norms"]] if replaced else []
        parts = [
            CELL_FORMAT, __version__, self.backbone.weights, self.backbone.arch, self.data.facts(),
            self.finetuning(cell).facts(), state,
        ]  # fmt: skip
        return digest_json(parts)[:32]

    def run(self, jobs: int) -> None:
        """Train what is not finished: every rate in the first trial, then the chosen rates in the others."""
        self._train([Cell(point, 0, rate) for point in self.points for rate in self.rates], jobs)
        for point in self.points:
            self.chosen[point] = self._best(point)
        others = range(1, self.settings["trials"])
        self._train([self.chosen_cell(point, trial) for point in self.points for trial in others], jobs)

    def chosen_cell(self, point: Point, trial: int) -> Cell:
        """Return the training that counts for a state and trial."""
        return Cell(point, trial, self.chosen[point])

    def _train(self, cells: Sequence[Cell], jobs: int) -> None:
        keys = {cell: self.key(cell) for cell in cells}
        done = run_cells(
            {keys[cell]: partial(self._train_one, cell) for cell in cells},
            folder=self.folder / "finetuning",
            save=_save,
            load=lambda place: read_json(place / RESULT),
            jobs=jobs,
            label=f"{self.backbone.name}, {self.data.task.name}",
        )
        self.found |= {cell: done[key] for cell, key in keys.items()}

    def _train_one(self, cell: Cell) -> dict[str, Any]:
        """Train one cell; a loss that is no number is recorded, and the rest go on."""
        unfinished = self.folder / "finetuning" / f".{self.key(cell)}.unfinished"
        unfinished.mkdir(parents=True, exist_ok=True)
        one = self.finetuning(cell)
        state = put_in_state(
            self.backbone, self.groups, cell.point, one.seed, self.settings["norms"], self.data
        )
        try:
            trained = finetune(state, self.data, one, unfinished)
        except TrainingDiverged as error:
            return {"status": str(error), "folder": str(unfinished)}
        journal = unfinished / METRICS
        lines = journal.read_text(encoding="utf-8").splitlines() if self.trains else []
        told = _told(trained, self.data, one.seed)
        return {**told, "curve": [json.loads(line) for line in lines], "folder": str(unfinished)}

    def _best(self, point: Point) -> float:
        """Return the rate that is best on val in the first trial; the lowest of equals."""
        task = self.data.task
        tried = {rate: self.found[Cell(point, 0, rate)] for rate in self.rates}
        finished = {rate: one["val"] for rate, one in tried.items() if "val" in one}
        if not finished:
            return self.rates[0]
        best = (max if task.higher_is_better else min)(finished.values())
        return next(rate for rate, value in finished.items() if value == best)

    # Rows

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the metrics of every state and trial, then what they say together."""
        shared = self._shared()
        task = self.data.task
        baseline = task.baseline(self.data.train.truth, self.data.test.truth)
        trials = range(self.settings["trials"])
        for point in self.points:
            for trial in trials:
                cell = self.chosen_cell(point, trial)
                for metric in task.metrics:
                    yield shared | self._metric_row(cell, metric) | {"null": baseline[metric]}
        first = task.metrics[0]
        values = {point: np.array([self._value(point, t, first) for t in trials]) for point in self.points}
        levels = tuple(group.level for group in self.groups)
        names = tuple(group.name for group in self.groups)
        gains = Gains(names, levels, values, 1 if task.higher_is_better else -1)
        for row in score_rows(gains, self.settings["curves"], self.settings["modes"]):
            params = self._params(row.pop("kept"), row.pop("mode")) | {"of": first, "curve": row.pop("curve")}
            kind = {"ci_kind": "t,trials"} if "ci_low" in row else {}
            yield shared | row | kind | {"params": params}

    def _value(self, point: Point, trial: int, metric: str) -> float:
        """Return a metric on test; NaN where the training failed."""
        found = self.found[self.chosen_cell(point, trial)]
        return float(found["test"][metric]) if "test" in found else float("nan")

    def _metric_row(self, cell: Cell, metric: str) -> dict[str, Any]:
        found = self.found[cell]
        params = self._params(cell.point.kept, cell.point.mode) | {
            "lr": cell.lr if self.trains else None,
            "lr_at_edge": len(self.rates) > 1 and cell.lr in (self.rates[0], self.rates[-1]),
        }
        row = {"metric": metric, "trial_seed": self.settings["seed"] + cell.trial, "params": params}
        row |= {"null_kind": "no image seen", "n": len(self.data.test)}
        if "status" in found:
            return row | {"value": None, "status": found["status"]}
        row["value"] = found["test"][metric]
        if metric in found["intervals"]:
            low, high = found["intervals"][metric]
            row |= {"ci_low": low, "ci_high": high, "ci_kind": self.data.task.interval_kind}
        return row

    def _params(self, kept: Sequence[str], mode: str) -> dict[str, Any]:
        s = self.settings
        every = [group.name for group in self.groups]
        return {
            "task": self.data.task.name,
            "kept": list(kept),
            "n_kept": len(kept),
            "replaced": [name for name in every if name not in kept],
            "mode": mode,
            "by": s["by"],
            "steps": s["steps"] if self.trains else 0,
            "batch_size": s["batch_size"],
            "n_train": len(self.data.train),
            **{name: s[name] for name in _SHARED},
        }

    def _shared(self) -> dict[str, Any]:
        reading, block = read_for(self.backbone, self.data.task), list_blocks(self.backbone)[-1]
        return {
            "model": self.backbone.name,
            "arch": self.backbone.arch,
            "weights": self.backbone.weights,
            "data": self.data.images.name,
            "split": "test",
            "target": self.data.task.target,
            "tap": f"{reading.path}|{reading.readout}",
            "block": block.path,
            "level": block.level,
            "depth": block.depth,
            "readout": reading.readout,
            "d": int(np.prod(reading.shape)),
            "n_classes": len(self.data.task.classes),
        }

    def facts(self) -> dict[str, Any]:
        """Return what provenance says of the backbone."""
        shares = level_shares(self.backbone) if self.groups and self.groups[0].level else {}
        return {**self.backbone.facts(), "level_shares": shares, "random_init": False, "control_of": None}

    def attachments(self) -> dict[str, pd.DataFrame]:
        """Return the curve of every training that counts: step, loss, value on val."""
        found = {}
        for point in self.points:
            for trial in range(self.settings["trials"]):
                cell = self.chosen_cell(point, trial)
                curve = self.found[cell].get("curve")
                if curve:
                    state = "-".join(point.kept) or "nothing"
                    name = f"{state}_{point.mode or 'whole'}_{trial}"
                    place = f"curves/{safe_name(self.backbone.name)}/{safe_name(name)}.parquet"
                    found[place] = pd.DataFrame(curve)
        return found


def _told(trained: Trained, data: Data, seed: int) -> dict[str, Any]:
    """Return what is kept of a training, as JSON values."""
    told: dict[str, Any] = {"val": trained.val, "test": {}, "intervals": {}, **trained.facts}
    for metric, score in trained.test.items():
        told["test"][metric] = score.value
        if score.interval is not None:
            told["intervals"][metric] = list(score.interval)
        if len(score.units):
            stream = random_stream("bootstrap of finetuning", metric, seed)
            low, high = bootstrap_means(score.units[:, None], draws=DRAWS, stream=stream)
            told["intervals"][metric] = [float(low[0]), float(high[0])]
    return told


def _save(result: Mapping[str, Any], place: Path) -> None:
    """Give a finished training its name: its result and its curve stay, its snapshot does not."""
    unfinished = Path(result["folder"])
    told = {key: value for key, value in result.items() if key != "folder"}
    for path in unfinished.iterdir():
        path.unlink()
    write_json(unfinished / RESULT, told)
    unfinished.rename(place)
