"""The trainings of one call, on equal terms: which they are, what each depends on, where it is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from probekit.backbones.loading import load_backbone
from probekit.backbones.spec import ModelSpec
from probekit.compute import choose_device, rank, torch_threads
from probekit.data.images import ImageSet
from probekit.data.readers import open_images
from probekit.data.regions import each_image
from probekit.data.splits import hold_out
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError
from probekit.features.comparison import each, find_class_target
from probekit.files import check_folder, digest_json, finish_folder, read_json, write_json
from probekit.grid import alone_at, run_cells
from probekit.pretraining.arms import Arm, Setup, find_arm
from probekit.pretraining.batches import TwoViews, check_batch, training_pixels
from probekit.pretraining.cell import FINAL, Held, Training, seconds_a_step, train_arm
from probekit.remote import address_of, fetch, send, share_folders, store_folder
from probekit.training.augmentation import parse_augmentation
from probekit.training.loop import PRECISIONS
from probekit.training.optimisers import Optimisation
from probekit.version import __version__

# Changes whenever a stored training would no longer be what the code computes.
CELL_FORMAT = 3
# Most images the monitor's neighbours are looked for among, and most that it asks for.
MOST_BANK, MOST_QUERIES = 2000, 1000
BUDGETS, WEIGHTS = ("images", "time"), ("final", "all")
FACTS = "facts.json"
# What decides which pixels a model is given, and how they are normalised.
_STATED = ("size", "resize", "mean", "std", "interpolation")


@dataclass(frozen=True, eq=False)
class Cell:
    """One training and where it is kept once it is finished."""

    training: Training
    key: str
    folder: Path

    @property
    def name(self) -> str:
        """Of the model in tables."""
        return f"{self.training.arm.name} seed {self.training.seed}"


@dataclass(frozen=True, eq=False)
class Plan:
    """What one call trains.

    Attributes:
        settings: Keywords of ``pretrain``.
        images: The data set.
        target: Name of its class target; None without one.
        arms: Each once.
        seeds: Each once.
        folder: The store.
        device: Where it trains.
        preprocessing: How the architecture takes images.
        train: Rows of the data set that are trained on.
        val: Rows that a monitor asks about.
    """

    settings: Mapping[str, Any]
    images: ImageSet
    target: str | None
    arms: list[Arm]
    seeds: list[int]
    folder: Path
    device: torch.device
    preprocessing: Preprocessing
    train: NDArray[np.int64]
    val: NDArray[np.int64]

    @classmethod
    def open(
        cls, settings: Mapping[str, Any], data: str | ImageSet, store: str | Path | None, device: str | None
    ) -> Plan:
        """Open what can be opened, and refuse what can be refused, before an image is read.

        Raises:
            InputError: If an arm, the data or a setting cannot be used.
        """
        arms = [find_arm(name) for name in dict.fromkeys(each(settings["arms"]))]
        if not arms:
            raise InputError("at least one arm", "none", "Name ce, moco-v2 or another")
        given = settings["seeds"]
        seeds = list(range(given)) if isinstance(given, int) else [int(one) for one in given]
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise InputError("seeds of at least 0, each once", str(given), "Give a count, or a list")
        for name, known in (("budget", BUDGETS), ("weights", WEIGHTS), ("precision", PRECISIONS)):
            if settings[name] not in known:
                raise InputError(f"{name} among {', '.join(known)}", repr(settings[name]), "Choose one")
        folder = store_folder(store)
        _check_machines(folder)
        images = open_images(data) if isinstance(data, str) else data
        plan = cls(
            settings,
            images,
            find_class_target(images, settings["target"]),
            arms,
            seeds,
            folder,
            choose_device(device),
            load_backbone(settings["arch"], "random").preprocessing,
            *_divide(images),
        )
        plan.check()
        return plan

    def check(self) -> None:
        """Refuse what could not be trained.

        Raises:
            InputError: If labels are missing or of one class only, the queue or batch does not fit the
                images, or a setting of the optimiser or augmentation is none.
        """
        supervised = [arm.name for arm in self.arms if arm.labels]
        if supervised and self.target is None:
            raise InputError(
                f"a class target for {', '.join(supervised)}", f"none in {self.images.name}",
                "Choose arms without labels: moco-v1, moco-v2, autoencoder",
            )  # fmt: skip
        if supervised and len(np.unique(self.labels)) < 2:
            raise InputError(
                f"at least two classes for {', '.join(supervised)}", "one class only",
                "Choose arms without labels, or other data",
            )  # fmt: skip
        queue, count = self.settings["queue"], len(self.train)
        if (
            any(arm.kind == "momentum" for arm in self.arms)
            and not self.settings["batch_size"] <= queue <= count
        ):
            raise InputError(
                f"a queue of at least a batch and at most the {count} training images", str(queue),
                "A longer one holds stale copies of the query's own image",
            )  # fmt: skip
        check_batch(self.settings["batch_size"], self.settings["groups"], count)
        self.cells({arm.name: self.steps for arm in self.arms})

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) classes of the training images; −1 throughout where there are none."""
        if self.target is None:
            return np.full(len(self.train), -1)
        return np.asarray(self.images.targets[self.target].values[self.train], np.int64)

    @property
    def steps(self) -> int:
        """Steps of an arm at equal images."""
        return self._steps_of(self.settings["epochs"])

    def _steps_of(self, epochs: float) -> int:
        an_epoch = len(self.train) // int(self.settings["batch_size"])
        return max(1, round(float(epochs) * an_epoch))

    def steps_in_time(self, seconds: Mapping[str, float]) -> dict[str, int]:
        """Return the steps of each arm that fit into the time of cross-entropy."""
        return {arm.name: max(1, round(self.steps * seconds["ce"] / seconds[arm.name])) for arm in self.arms}

    def trainings(self) -> list[Cell]:
        """Return the trainings at the first learning rate."""
        if self.settings["budget"] == "time":
            return self.cells(self.steps_in_time(self.known_seconds()))
        return self.cells({arm.name: self.steps for arm in self.arms})

    def cells(self, steps: Mapping[str, int]) -> list[Cell]:
        """Return every arm and seed at the first learning rate."""
        return [
            self.cell(arm, seed, self.first_rate(arm), steps[arm.name])
            for arm in self.arms
            for seed in self.seeds
        ]

    def first_rate(self, arm: Arm) -> float:
        """Return the rate that is given to the arm, or the first of those to choose from.

        Raises:
            InputError: If rates are given by arm and there is none for this one.
        """
        rates = self.settings["lr"]
        if not isinstance(rates, Mapping):
            return float(each(rates)[0])
        if arm.name not in rates:
            raise InputError(f"a learning rate for {arm.name}", f"rates of {', '.join(rates)}", "Add it")
        return float(rates[arm.name])

    def cell(self, arm: Arm, seed: int, rate: float, steps: int) -> Cell:
        """Return one training under the key of all that it depends on."""
        s = self.settings
        classes = 1 if self.target is None else len(self.images.targets[self.target].classes)
        warmup = round(s["warmup"] * steps)
        training = Training(
            arm,
            Setup(s["arch"], self.preprocessing.size, classes, s["groups"], s["queue"], s["momentum"]),
            Optimisation(steps, rate, s["optimiser"], s["weight_decay"], warmup, ema=s["ema"]),
            seed,
            s["precision"],
        )
        parts = [
            CELL_FORMAT, __version__, training.facts(), self.images.digest, self.target,
            parse_augmentation(s["augmentation"]).facts(), s["batch_size"], self.train.tolist(),
        ]  # fmt: skip
        key = digest_json(parts)[:32]
        return Cell(training, key, self.folder / "pretraining" / key)

    def choose_rates(self, trainings: Sequence[Cell], jobs: int) -> list[Cell]:
        """Return the trainings at the learning rate whose first seed is read best on the images held out.

        What is tried is as long as the training, or of ``rate_epochs`` with a whole schedule of its own.
        """
        rates = [float(one) for one in self.settings["lr"]]
        tried_epochs = self.settings["rate_epochs"]
        first = {one.training.arm.name: one for one in trainings if one.training.seed == self.seeds[0]}
        tried = [
            self.cell(
                one.training.arm, self.seeds[0], rate,
                one.training.optimisation.steps if tried_epochs is None else self._steps_of(tried_epochs),
            )
            for one in first.values()
            for rate in rates
        ]  # fmt: skip
        done = self.run(tried, jobs)
        best: dict[str, tuple[float, float]] = {}
        for one in tried:
            found = done[one.key].get("val_accuracy", -done[one.key]["loss"])
            arm = one.training.arm.name
            if arm not in best or found > best[arm][0]:
                best[arm] = found, one.training.optimisation.lr
        return [
            self.cell(
                one.training.arm, one.training.seed, best[one.training.arm.name][1],
                one.training.optimisation.steps,
            )
            for one in trainings
        ]  # fmt: skip

    def run(self, trainings: Sequence[Cell], jobs: int) -> dict[str, dict[str, float]]:
        """Run the trainings that are not finished; key → facts of each.

        Each trains in a folder beside, which takes its name once all is there.
        """
        # All processes of torchrun must find the same finished.
        if rank()[0] == 0:
            share_folders([one.folder for one in trainings])
        _wait_for_all()
        waiting = [one for one in trainings if not one.folder.is_dir()]
        if not waiting:
            return {one.key: _read_finished(one.folder) for one in trainings}
        size = self.preprocessing.size
        with training_pixels(self.images.select(self.train), size, self.folder) as pixels:
            run_one = partial(_train, plan=self, pixels=pixels, held=self.held(), jobs=jobs)
            return run_cells(
                {one.key: partial(run_one, one) for one in trainings},
                folder=self.folder / "pretraining",
                save=_finish,
                load=_read_facts,
                jobs=jobs,
                label="trainings",
                hold=_alone_at,
            )

    def held(self) -> Held | None:
        """Return what the monitor looks at; None without classes."""
        if self.target is None:
            return None
        target = self.images.targets[self.target]
        found = []
        for rows, most, split in ((self.train, MOST_BANK, "train"), (self.val, MOST_QUERIES, "val")):
            some = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]
            chosen = self.images.select(some)
            pixels = each_image(chosen, partial(chosen.pixels, preprocessing=self.preprocessing), "Reading")
            targets = {self.target: target.select(some)}
            found.append(ImageSet.from_arrays(split, pixels, targets, np.full(len(some), split)))
        return Held(found[0], found[1], self.target)

    def views(self, training: Training, pixels: NDArray[np.uint8]) -> TwoViews:
        """Return the batches of one training."""
        s = self.settings
        return TwoViews(
            pixels, self.labels[: len(pixels)], parse_augmentation(s["augmentation"]), self.preprocessing,
            s["batch_size"], s["groups"], training.seed, self.device,
        )  # fmt: skip

    def known_seconds(self) -> dict[str, float]:
        """Return the seconds a step of cross-entropy and of every arm.

        Measured once for a store: what goes on after an interruption has the steps it began with.
        """
        words = ("arch", "batch_size", "groups", "queue", "precision", "augmentation")
        key = digest_json([CELL_FORMAT, __version__, *(self.settings[word] for word in words)])
        place = self.folder / "pretraining" / f"seconds-{key[:16]}-{self.device.type}.json"
        known: dict[str, float] = read_json(place) if place.exists() or fetch(place) else {}
        missing = [one for one in self.timed_arms() if one.name not in known]
        if missing:
            known |= self.measure_seconds(missing)
            if rank()[0] == 0:
                write_json(place, known)
                send(place)
            _wait_for_all()
        return known

    def timed_arms(self) -> list[Arm]:
        """Return cross-entropy, which sets the time, and the arms."""
        return list({arm.name: arm for arm in (find_arm("ce"), *self.arms)}.values())

    def measure_seconds(self, arms: Sequence[Arm]) -> dict[str, float]:
        """Return the seconds a step of each arm takes by itself."""
        # As many images as a few batches take: what they show does not change the time.
        some = self.images.select(self.train[: 4 * self.settings["batch_size"]])
        with training_pixels(some, self.preprocessing.size, self.folder) as pixels:
            cells = [self.cell(arm, 0, 0.01, self.steps) for arm in arms]
            return {
                one.training.arm.name: seconds_a_step(one.training, self.views(one.training, pixels))
                for one in cells
            }

    def model(self, cell: Cell) -> ModelSpec:
        """Return how the final checkpoint is loaded: with the preprocessing it was trained with."""
        facts = self.preprocessing.facts()
        keys = {key: facts[key] for key in _STATED}
        return ModelSpec(cell.name, self.settings["arch"], str(cell.folder / FINAL), keys)


def join_processes(device: torch.device) -> None:
    """Join the processes that torchrun started, where it did."""
    if rank()[1] > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def _check_machines(folder: Path) -> None:
    """Refuse processes on several machines whose snapshots could not be seen by all of them."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", rank()[1]))
    if address_of(folder) and here < rank()[1]:
        raise InputError(
            "a folder that all machines see as --store, where one training runs on several",
            str(address_of(folder)),
            "Name one, or train on one machine",
        )


def _train(
    cell: Cell, *, plan: Plan, pixels: NDArray[np.uint8], held: Held | None, jobs: int
) -> dict[str, Any]:
    """Train one arm with its share of the cores; its facts name the folder it was trained in."""
    threads = max(1, torch.get_num_threads() // jobs)
    folder = cell.folder.with_name(f".{cell.key}.unfinished")
    with torch_threads(threads):
        facts = train_arm(cell.training, plan.views(cell.training, pixels), held, folder)
    return {**facts, "threads": threads}


def _read_finished(folder: Path) -> dict[str, float]:
    check_folder(folder)
    return _read_facts(folder)


def _read_facts(folder: Path) -> dict[str, float]:
    facts: dict[str, float] = read_json(folder / FACTS)
    return facts


@contextmanager
def _alone_at(place: Path) -> Iterator[None]:
    """Hold a training's place for this run: for one process, or for all that torchrun started together."""
    with alone_at(place) if rank()[0] == 0 else nullcontext():
        _wait_for_all()
        yield


def _finish(facts: Mapping[str, Any], place: Path) -> None:
    """Give a whole training its name; of several processes the first one does."""
    if rank()[0] == 0:
        unfinished = place.with_name(f".{place.name}.unfinished")
        write_json(unfinished / FACTS, dict(facts))
        finish_folder(unfinished, place)
    _wait_for_all()


def _wait_for_all() -> None:
    if rank()[1] > 1:
        dist.barrier()


def _divide(images: ImageSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of train and val; a tenth of train is held out where there is no val."""
    train, val = images.indices("train"), images.indices("val")
    if not len(train):
        raise InputError("a train split", f"none in {images.name}", "Divide the images, or name others")
    if not len(val):
        kept, held = hold_out(train, 0.1, seed=0, stratified=False, use="images to train on")
        train, val = train[kept], train[held]
    return train, val
