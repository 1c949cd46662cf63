"""The trainings of one model: which they are, in which order, where they are kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from probekit.backbones.architectures import classifier_paths
from probekit.backbones.backbone import Backbone
from probekit.backbones.loading import load_backbone
from probekit.backbones.past import earlier, is_past
from probekit.backbones.reset import random_control
from probekit.backbones.spec import ModelSpec
from probekit.compute import choose_device
from probekit.data.images import ImageSet
from probekit.errors import CheckpointError, InputError, TrainingDiverged
from probekit.files import digest_json, finish_folder, making_folder, read_json, write_json
from probekit.finetuning.cell import Data, Finetuning, Trained, check_modes, finetune, new_head
from probekit.finetuning.changes import measure_changes
from probekit.finetuning.curves import (
    OTHER_DRAW,
    REWIND,
    SCRATCH,
    SELFFER,
    Group,
    Point,
    group_blocks,
    list_points,
    put_in_state,
)
from probekit.finetuning.means import Values
from probekit.finetuning.network import Tuned, is_depthwise, read_for
from probekit.finetuning.rewind import kept_steps, load_kept, rewind
from probekit.functional.intervals import bootstrap_means
from probekit.grid import run_cells
from probekit.seeds import random_stream
from probekit.tasks.choosing import find_task
from probekit.training.loop import METRICS, SNAPSHOT
from probekit.training.optimisers import Optimisation
from probekit.version import __version__

log = logging.getLogger(__name__)

# Changes whenever a stored training would no longer be what the code computes.
CELL_FORMAT = 3
DRAWS = 2000
RESULT, ANSWERS, KEPT_WEIGHTS = "result.json", "answers.npz", "weights-*.pt"
# The same as the first of the answers that some tasks keep: other tasks' trainings stay as they are.
ANSWERS_FORMAT = 1


# Marks a training that failed, but not by its learning rate: the next call tries it again.
FAILED = "failed"


@dataclass(frozen=True)
class Cell:
    """One training: a state of the backbone, a trial, a learning rate."""

    point: Point
    trial: int
    lr: float


@dataclass(eq=False)
class Grid:
    """All trainings of one model on one task: of one backbone, or of those that differ in pretraining seed.

    Attributes:
        name: Of the model in tables.
        backbones: One for all trials, or one for each; left as they are.
        data: At their input size.
        groups: Of the blocks.
        points: States that are trained.
        pasts: Mode → the backbones as they were at that step of their pretraining, for modes that say one.
        absent: Mode → why there are no such states of this model.
        settings: Of the call.
        folder: The store.
        fold: Which fold of a cross-validation the data is; None where it is none.
        finished: Key → what the training came to, on another machine.
        found: Cell → what its training came to.
        chosen: Point → learning rate.
        rewound: Trial → scores with blocks put back; see ``rewind``.
    """

    name: str
    backbones: tuple[Backbone, ...]
    data: Data
    groups: list[Group]
    points: list[Point]
    pasts: Mapping[str, tuple[Backbone, ...]]
    absent: Mapping[str, str]
    settings: Mapping[str, Any]
    folder: Path
    fold: int | None = None
    finished: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    found: dict[Cell, Mapping[str, Any]] = field(default_factory=dict)
    chosen: dict[Point, float] = field(default_factory=dict)
    rewound: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        name: str | None,
        models: Sequence[ModelSpec | Backbone],
        images: ImageSet,
        settings: Mapping[str, Any],
        folder: Path,
        device: str | None,
        opened: dict[Any, Data],
        finished: Mapping[str, Mapping[str, Any]],
        fold: int | None = None,
    ) -> Grid:
        """Open backbones and data, and refuse what cannot be trained.

        Args:
            name: Of an arm; None takes the backbone's.
            models: The backbone, or an arm's, one a pretraining seed.
            images: The data set.
            settings: Of the call.
            folder: The store.
            device: Where it runs.
            opened: Data by preprocessing and fold; what is missing is added, so that backbones that see the
                same pixels share them.
            finished: What other machines trained.
            fold: Which fold of a cross-validation the images are divided for.

        Raises:
            InputError: If a backbone cannot be read for the task, those of an arm differ in more than their
                weights, or a setting is none.
        """
        place = choose_device(device)
        backbones = tuple(
            (one if isinstance(one, Backbone) else load_backbone(one)).to(place) for one in models
        )
        first = backbones[0]
        _check_alike(name or first.name, backbones)
        task = find_task(settings["task"], images, settings["target"])
        readings = [read_for(one, task) for one in backbones]
        groups = group_blocks(first, settings["by"])
        pasts, absent = _find_pasts(backbones, settings["modes"])
        points = [
            one
            for one in list_points(groups, settings["curves"], settings["modes"])
            if one.mode not in absent
        ]
        seen = first.preprocessing, fold
        if seen not in opened:
            opened[seen] = Data.open(images, task, first.preprocessing, settings["fraction"])
        data = opened[seen]
        task.check(data.train.truth, data.val.truth, data.test.truth, tuned=settings["tuned"])
        new_head(data, readings[0], settings["seed"])
        grid = cls(
            name or first.name,
            backbones,
            data,
            groups,
            points,
            pasts,
            absent,
            settings,
            folder,
            fold,
            finished,
        )
        for rate in settings["lr"]:
            grid.finetuning(Cell(points[0], 0, rate))
        if settings["tuned"] and settings["batch_norm"] == "train":
            for one in backbones:
                check_modes(one, data)
        return grid

    @property
    def is_arm(self) -> bool:
        """Whether trials differ in the seed of pretraining."""
        return len(self.backbones) > 1

    @property
    def trials(self) -> range:
        """Trials of every state."""
        return range(len(self.backbones) if self.is_arm else self.settings["trials"])

    @property
    def trains(self) -> bool:
        """Whether anything is trained: steps and learning rates matter."""
        return bool(self.settings["tuned"]) or self.data.task.head_learns

    @property
    def rates(self) -> list[float]:
        """Learning rates to choose from, ascending; one where nothing is trained."""
        rates = sorted(float(one) for one in self.settings["lr"])
        return rates if self.trains else rates[:1]

    def of(self, trial: int) -> Backbone:
        """Return the backbone of a trial."""
        return self.backbones[trial if self.is_arm else 0]

    def past(self, cell: Cell) -> Backbone:
        """Return the backbone of a cell as it was at the step that its mode says."""
        return self.pasts[cell.point.mode][cell.trial if self.is_arm else 0]

    def finetuning(self, cell: Cell) -> Finetuning:
        """Return how a cell is trained."""
        s = self.settings
        warmup = round(s["warmup"] * s["steps"])
        optimisation = Optimisation(s["steps"], cell.lr, s["optimiser"], s["weight_decay"], warmup)
        return Finetuning(
            optimisation, s["tuned"], s["batch_norm"], s["batch_size"], s["seed"] + cell.trial,
            s["precision"], self._members(cell.point.kept) if cell.point.mode == SELFFER else (),
        )  # fmt: skip

    def kept_steps(self, point: Point) -> list[int]:
        """Return the steps of a state whose weights are needed afterwards."""
        curves, steps = self.settings["curves"], self.settings["steps"]
        if REWIND in curves and not point.mode:
            return kept_steps(steps)
        return [steps] if SELFFER in curves and point == Point((), SCRATCH) else []

    def key(self, cell: Cell) -> str:
        """Return what stands for all that a training depends on."""
        replaced = [list(one.members) for one in self.groups if one.name not in cell.point.kept]
        state: list[Any] = [replaced, cell.point.mode, self.settings["norms"]] if replaced else []
        backbone = self.of(cell.trial)
        # A draw of everything is the same for all backbones of an architecture, and trained once.
        drawn = cell.point == Point((), SCRATCH) and self._is_replaced_whole(backbone)
        if cell.point.mode in self.pasts:
            state.append(self.past(cell).weights)
        if cell.point.mode == SELFFER:
            state.append(self.key(self.chosen_cell(Point((), SCRATCH), cell.trial)))
        parts = [
            CELL_FORMAT, __version__, "" if drawn else backbone.weights, backbone.arch, self.data.facts(),
            self.finetuning(cell).facts(), state, self.kept_steps(cell.point),
            *([ANSWERS_FORMAT] if self.data.task.keeps else []),
            *(["channels last"] if self.settings["tuned"] and is_depthwise(backbone) else []),
        ]  # fmt: skip
        return digest_json(parts)[:32]

    def run(self, jobs: int) -> None:
        """Train what is not finished: every rate in the first trial, then the chosen rates in the others."""
        selffers = [point for point in self.points if point.mode == SELFFER]
        for points in ([point for point in self.points if point.mode != SELFFER], selffers):
            self._train([Cell(point, 0, rate) for point in points for rate in self.rates], jobs)
            for point in points:
                self.chosen[point] = self._best(point)
            self._train(
                [self.chosen_cell(point, trial) for point in points for trial in self.trials[1:]], jobs
            )
        if REWIND in self.settings["curves"]:
            self._rewind(jobs)

    def chosen_cell(self, point: Point, trial: int) -> Cell:
        """Return the training that counts for a state and trial."""
        return Cell(point, trial, self.chosen[point])

    @property
    def whole(self) -> Point:
        """The state in which nothing is replaced."""
        return self.points[0]

    @property
    def baseline(self) -> Mapping[str, float]:
        """The task's metrics of an answer that looks at no image."""
        return self.data.task.baseline(self.data.train.truth, self.data.test.truth)

    def counted(self) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
        """Yield the trainings that count, and what they came to: every state and trial."""
        for point in self.points:
            for trial in self.trials:
                cell = self.chosen_cell(point, trial)
                yield cell, self.found[cell]

    def values(self, point: Point, metric: str) -> Values:
        """Return (T,) a metric on test of all trials of a state; NaN where the training failed."""
        trials = [self.found[self.chosen_cell(point, trial)] for trial in self.trials]
        return np.array([one["test"][metric] if "test" in one else np.nan for one in trials], np.float64)

    def _is_replaced_whole(self, backbone: Backbone) -> bool:
        """Whether the groups hold every weight but the classifier's, and the words tell the architecture."""
        parts = (*self._members([one.name for one in self.groups]), *classifier_paths(backbone.module))
        return backbone.spec is not None and all(
            any(f"{name}.".startswith(f"{part}.") for part in parts) for name in backbone.module.state_dict()
        )

    def _members(self, kept: Sequence[str]) -> tuple[str, ...]:
        return tuple(member for one in self.groups if one.name in kept for member in one.members)

    def _train(self, cells: Sequence[Cell], jobs: int) -> None:
        keys = {cell: self.key(cell) for cell in cells}
        store = self.folder / "finetuning"
        for cell, key in keys.items():
            # A table has no weights and no answers.
            needs_more = self.data.task.keeps or self.kept_steps(cell.point)
            if key in self.finished and not (store / key).exists() and not needs_more:
                _write(self.finished[key], store / key)
        done = run_cells(
            {keys[cell]: partial(self._train_one, cell) for cell in cells},
            folder=store,
            save=_save,
            load=_load,
            jobs=jobs,
            label=f"{self.name}, {self.data.task.name}",
        )
        self.found |= {cell: done[key] for cell, key in keys.items()}

    def _train_one(self, cell: Cell) -> dict[str, Any]:
        """Train one cell; what fails is recorded, and the rest go on."""
        unfinished = self.folder / "finetuning" / f".{self.key(cell)}.unfinished"
        one = self.finetuning(cell)
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            state = self._state(cell)
            trained = finetune(state, self.data, one, unfinished, self.kept_steps(cell.point))
            told = _told(trained, self.data, one.seed)
            if trained.answers is not None:
                told |= {"answers": trained.answers, "ids": self.data.images.ids[self.data.test.rows]}
            ends = (self.whole, Point((), SCRATCH))
            if cell.point in ends and isinstance(trained.learner, Tuned):
                told["changes"] = measure_changes(state, trained.learner.network(), self.groups, self.data)
        except TrainingDiverged as error:
            return {"status": str(error), "folder": str(unfinished)}
        except InputError:
            # About the settings: the others would fail alike.
            raise
        except (RuntimeError, MemoryError, OSError, ValueError) as error:
            log.exception("A training of %s failed, and the others go on", self.name)
            return {"status": f"{type(error).__name__}: {error}", FAILED: True}
        journal = unfinished / METRICS
        lines = journal.read_text(encoding="utf-8").splitlines() if self.trains else []
        return {**told, "curve": [json.loads(line) for line in lines], "folder": str(unfinished)}

    def _state(self, cell: Cell) -> Backbone:
        """Return the backbone that a training starts from."""
        backbone, point, norms = self.of(cell.trial), cell.point, self.settings["norms"]
        seed, source = self.settings["seed"] + cell.trial, None
        if point.mode in self.pasts:
            source = self.past(cell)
        if point.mode == SELFFER:
            source = random_control(backbone, "fresh draw", seed + OTHER_DRAW)
            scratch = self.chosen_cell(Point((), SCRATCH), cell.trial)
            folder, one = self.folder / "finetuning" / self.key(scratch), self.finetuning(scratch)
            learner = load_kept(backbone, self.data, one, folder, one.optimisation.steps)
            assert isinstance(learner, Tuned)
            backbone = backbone.edited(learner.network(), "trained from scratch")
        return put_in_state(backbone, self.groups, point, seed, norms, self.data, source)

    def _rewind(self, jobs: int) -> None:
        """Score every trial of the whole backbone with blocks put back."""
        cells = {trial: self.chosen_cell(self.whole, trial) for trial in self.trials}
        names = [[group.name, list(group.members)] for group in self.groups]
        keys = {
            trial: digest_json([self.key(cell), names])[:32]
            for trial, cell in cells.items()
            if "status" not in self.found[cell]
        }
        done = run_cells(
            {
                key: partial(
                    rewind, self.of(trial), self.data, self.groups, self.finetuning(cells[trial]),
                    self.folder / "finetuning" / self.key(cells[trial]),
                )
                for trial, key in keys.items()
            },
            folder=self.folder / "rewinds",
            save=lambda rows, place: _write({"rows": rows}, place),
            load=lambda place: read_json(place / RESULT)["rows"],
            jobs=jobs,
            label=f"{self.name}, blocks put back",
        )  # fmt: skip
        self.rewound = {trial: done[key] for trial, key in keys.items()}

    def _best(self, point: Point) -> float:
        """Return the rate that is best on val in the first trial; the lowest of equals."""
        task = self.data.task
        tried = {rate: self.found[Cell(point, 0, rate)] for rate in self.rates}
        finished = {rate: one["val"] for rate, one in tried.items() if "val" in one}
        if not finished:
            return self.rates[0]
        best = (max if task.higher_is_better else min)(finished.values())
        return next(rate for rate, value in finished.items() if value == best)


def _check_alike(name: str, backbones: Sequence[Backbone]) -> None:
    """Refuse an arm whose backbones differ in more than their weights."""
    first = backbones[0]
    for one in backbones[1:]:
        for what, own, other in (
            ("architecture", first.arch, one.arch),
            ("preprocessing", first.preprocessing, one.preprocessing),
        ):
            if own != other:
                raise InputError(f"one {what} in arm {name}", f"{own} and {other}", "Give them apart")
    if len({one.weights for one in backbones}) < len(backbones):
        raise InputError(f"different weights in arm {name}", "the same twice", "Give each seed once")


def _find_pasts(
    backbones: Sequence[Backbone], modes: Sequence[str]
) -> tuple[dict[str, tuple[Backbone, ...]], dict[str, str]]:
    """Return mode → the backbones at that step of their pretraining, and mode → why there are none."""
    pasts, absent = {}, {}
    for mode in filter(is_past, modes):
        try:
            pasts[mode] = tuple(earlier(one, mode) for one in backbones)
        except CheckpointError as error:
            absent[mode] = str(error)
    return pasts, absent


def _write(told: Mapping[str, Any], place: Path) -> None:
    """Write a result into a folder that is there whole or not at all."""
    with making_folder(place) as folder:
        write_json(folder / RESULT, dict(told))


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
    """Give a finished training its name: result, curve, answers and kept weights stay."""
    if result.get(FAILED):
        return
    unfinished = Path(result["folder"])
    told = {key: value for key, value in result.items() if key not in ("folder", "answers", "ids")}
    if "answers" in result:
        np.savez_compressed(unfinished / ANSWERS, answers=result["answers"], ids=result["ids"])
    write_json(unfinished / RESULT, told)
    # The snapshot goes first: it would be refused without its metrics; without it the training begins anew.
    (unfinished / SNAPSHOT).unlink(missing_ok=True)
    for path in unfinished.iterdir():
        if path.name not in (ANSWERS, RESULT) and not path.match(KEPT_WEIGHTS):
            path.unlink()
    finish_folder(unfinished, place)


def _load(place: Path) -> dict[str, Any]:
    """Read a finished training back."""
    found: dict[str, Any] = read_json(place / RESULT)
    if (place / ANSWERS).exists():
        with np.load(place / ANSWERS) as kept:
            found |= {"answers": kept["answers"], "ids": kept["ids"]}
    return found
