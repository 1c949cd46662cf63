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
from probekit.errors import TrainingDiverged
from probekit.files import digest_json, read_json, safe_name, write_json
from probekit.finetuning.cell import Data, Finetuning, Trained, check_modes, finetune
from probekit.finetuning.curves import Group, Point, group_blocks, list_points, put_in_state
from probekit.finetuning.means import Values
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
RESULT, ANSWERS = "result.json", "answers.npz"
# The same of the answers that some tasks keep: other tasks' trainings stay as they are.
ANSWERS_FORMAT = 1
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
        fold: Which fold of a cross-validation the data is; None where it is none.
        found: Cell → what its training came to.
        chosen: Point → learning rate.
    """

    backbone: Backbone
    data: Data
    groups: list[Group]
    points: list[Point]
    settings: Mapping[str, Any]
    folder: Path
    fold: int | None = None
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
        opened: dict[Any, Data],
        fold: int | None = None,
    ) -> Grid:
        """Open backbone and data, and refuse what cannot be trained.

        Args:
            model: The backbone.
            images: The data set.
            settings: Of the call.
            folder: The store.
            device: Where it runs.
            opened: Data by preprocessing and fold; what is missing is added, so that backbones that see the
                same pixels share them.
            fold: Which fold of a cross-validation the images are divided for.

        Raises:
            InputError: If the backbone cannot be read for the task, or a setting is none.
        """
        backbone = model if isinstance(model, Backbone) else load_backbone(model)
        backbone = backbone.to(choose_device(device))
        task = find_task(settings["task"], images, settings["target"])
        read_for(backbone, task)
        groups = group_blocks(backbone, settings["by"])
        points = list_points(groups, settings["curves"], settings["modes"])
        seen = backbone.preprocessing, fold
        if seen not in opened:
            opened[seen] = Data.open(images, task, backbone.preprocessing, settings["fraction"])
        data = opened[seen]
        grid = cls(backbone, data, groups, points, settings, folder, fold)
        for rate in settings["lr"]:
            grid.finetuning(Cell(points[0], 0, rate))
        if settings["tuned"] and settings["batch_norm"] == "train":
            check_modes(backbone, data)
        return grid

    @property
    def rates(self) -> list[float]:
        """Learning rates to choose from, ascending."""
        return sorted(float(one) for one in self.settings["lr"])

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
            self.finetuning(cell).facts(), state, *([ANSWERS_FORMAT] if self.data.task.keeps else []),
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
            load=_load,
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
        lines = (unfinished / METRICS).read_text(encoding="utf-8").splitlines()
        told = _told(trained, self.data, one.seed)
        if trained.answers is not None:
            told |= {"answers": trained.answers, "ids": self.data.images.ids[self.data.test.rows]}
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

    @property
    def baseline(self) -> Mapping[str, float]:
        """The task's metrics of an answer that looks at no image."""
        return self.data.task.baseline(self.data.train.truth, self.data.test.truth)

    def counted(self) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
        """Yield the trainings that count, and what they came to: every state and trial."""
        for point in self.points:
            for trial in range(self.settings["trials"]):
                cell = self.chosen_cell(point, trial)
                yield cell, self.found[cell]

    def values(self, point: Point, metric: str) -> Values:
        """Return (T,) a metric on test of all trials of a state; NaN where the training failed."""
        trials = [self.found[self.chosen_cell(point, trial)] for trial in range(self.settings["trials"])]
        return np.array([one["test"][metric] if "test" in one else np.nan for one in trials], np.float64)

    def training_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the metrics of every state and trial."""
        shared, baseline = self.shared(), self.baseline
        for cell, _ in self.counted():
            for metric in self.data.task.metrics:
                yield shared | self._metric_row(cell, metric) | {"null": baseline[metric]}

    def gain_rows(self, values: Mapping[Point, Values], kind: str) -> Iterator[dict[str, Any]]:
        """Yield what the first metric says of all states together.

        Args:
            values: State → that metric of every trial, or of every fold.
            kind: Of intervals over them.
        """
        shared, task = self.shared(), self.data.task
        levels = tuple(group.level for group in self.groups)
        names = tuple(group.name for group in self.groups)
        gains = Gains(names, levels, values, 1 if task.higher_is_better else -1)
        for row in score_rows(gains, self.settings["curves"], self.settings["modes"], kind):
            params = self.params(row.pop("kept"), row.pop("mode"))
            params |= {"of": task.metrics[0], "curve": row.pop("curve")}
            yield shared | row | {"params": params}

    def _metric_row(self, cell: Cell, metric: str) -> dict[str, Any]:
        found = self.found[cell]
        params = self.training_params(cell)
        row = {"metric": metric, "trial_seed": self.settings["seed"] + cell.trial, "params": params}
        row |= {"null_kind": "no image seen", "n": len(self.data.test)}
        if "status" in found:
            return row | {"value": None, "status": found["status"]}
        row["value"] = found["test"][metric]
        if metric in found["intervals"]:
            low, high = found["intervals"][metric]
            row |= {"ci_low": low, "ci_high": high, "ci_kind": "bootstrap,test units"}
        return row

    def training_params(self, cell: Cell) -> dict[str, Any]:
        """Return what tells one training from the others."""
        edge = len(self.rates) > 1 and cell.lr in (self.rates[0], self.rates[-1])
        found = self.params(cell.point.kept, cell.point.mode) | {"lr": cell.lr, "lr_at_edge": edge}
        return found if self.fold is None else found | {"fold": self.fold}

    def params(self, kept: Sequence[str], mode: str) -> dict[str, Any]:
        """Return what the rows of a state say of how it was trained."""
        s = self.settings
        every = [group.name for group in self.groups]
        return {
            "task": self.data.task.name,
            "kept": list(kept),
            "n_kept": len(kept),
            "replaced": [name for name in every if name not in kept],
            "mode": mode,
            "by": s["by"],
            "steps": s["steps"],
            "batch_size": s["batch_size"],
            "n_train": len(self.data.train),
            **{name: s[name] for name in _SHARED},
            **({"folds": s["folds"]} if s["folds"] else {}),
        }

    def shared(self) -> dict[str, Any]:
        """Return what all rows of the backbone say."""
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
        return {
            self.place("curves", cell): pd.DataFrame(one["curve"])
            for cell, one in self.counted()
            if one.get("curve")
        }

    def place(self, kind: str, cell: Cell) -> str:
        """Return where a frame of one training hangs on the table."""
        state = "-".join(cell.point.kept) or "nothing"
        number = cell.trial if self.fold is None else f"{cell.trial}-fold{self.fold}"
        name = f"{state}_{cell.point.mode or 'whole'}_{number}"
        return f"{kind}/{safe_name(self.backbone.name)}/{safe_name(name)}.parquet"


def _told(trained: Trained, data: Data, seed: int) -> dict[str, Any]:
    """Return what is kept of a training, as JSON values."""
    told: dict[str, Any] = {"val": trained.val, "test": {}, "intervals": {}, **trained.facts}
    for metric, score in trained.test.items():
        told["test"][metric] = score.value
        if len(score.units):
            stream = random_stream("bootstrap of finetuning", metric, seed)
            low, high = bootstrap_means(score.units[:, None], draws=DRAWS, stream=stream)
            told["intervals"][metric] = [float(low[0]), float(high[0])]
    return told


def _save(result: Mapping[str, Any], place: Path) -> None:
    """Give a finished training its name: result, curve and kept answers stay, its snapshot does not."""
    unfinished = Path(result["folder"])
    told = {key: value for key, value in result.items() if key not in ("folder", "answers", "ids")}
    for path in unfinished.iterdir():
        path.unlink()
    if "answers" in result:
        np.savez_compressed(unfinished / ANSWERS, answers=result["answers"], ids=result["ids"])
    write_json(unfinished / RESULT, told)
    unfinished.rename(place)


def _load(place: Path) -> dict[str, Any]:
    """Read a finished training back."""
    found: dict[str, Any] = read_json(place / RESULT)
    if (place / ANSWERS).exists():
        with np.load(place / ANSWERS) as kept:
            found |= {"answers": kept["answers"], "ids": kept["ids"]}
    return found
