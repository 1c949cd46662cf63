"""The verb ``pretrain``: arms trained on equal terms, and what their checkpoints know."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probekit.backbones.spec import ModelSpec
from probekit.compute import choose_device, rank, software_versions, torch_threads
from probekit.data.images import ImageSet
from probekit.data.readers import open_images
from probekit.data.splits import hold_out
from probekit.errors import InputError
from probekit.features.comparison import each, find_class_target, stored_settings
from probekit.files import cache_folder, digest_json, read_json, safe_name, write_json
from probekit.probes.sweep import probe
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable
from probekit.training.augmentation import parse_augmentation
from probekit.version import __version__

if TYPE_CHECKING:
    from probekit.pretraining.arms import Arm
    from probekit.pretraining.batches import TwoViews
    from probekit.pretraining.cell import Held, Training

# Changes whenever a stored training would no longer be what the code computes.
CELL_FORMAT = 1
# Most images the monitor's neighbours are looked for among, and most that it asks for.
MOST_BANK, MOST_QUERIES = 2000, 1000
BUDGETS = ("images", "time")
# Steps behind a measured time of a step, after as many that do not count.
TIMED = 12


def pretrain(
    arms: str | Sequence[str],
    data: str | ImageSet,
    *,
    arch: str = "resnet10_w16",
    seeds: int | Sequence[int] = 1,
    epochs: float = 30,
    budget: str = "images",
    batch_size: int = 256,
    groups: int = 2,
    queue: int = 4096,
    momentum: float = 0.99,
    optimiser: str = "sgd",
    lr: float | Sequence[float] = 0.1,
    weight_decay: float = 1e-4,
    warmup: float = 0.05,
    ema: float = 0.0,
    augmentation: str | Sequence[str] = "frcgb",
    target: str | None = None,
    taps: str | Sequence[str] = "penultimate",
    random: int = 3,
    weights: str = "final",
    precision: str = "float32",
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> ResultTable:
    """Train backbones that differ in nothing but the objective, and probe what they know of their own data.

    Every arm sees the same two augmented views of the same images at every step, starts from the same weights
    of its seed, and has the same schedule. With a budget of time, slower arms have as many steps as fit into
    the time of cross-entropy, with a whole schedule of their own.

    Args:
        arms: Among ``ce``, ``ce-mlp``, ``supcon``, ``moco-v1``, ``moco-v2``, ``exemplar-v1``, ``exemplar-v2``
            and ``autoencoder``.
        data: Images to train on, in the grammar of ``open_images`` or opened; their train split is trained
            on, a tenth of it is held out where there is no val split.
        arch: Architecture of the backbone.
        seeds: How many, from 0, or which.
        epochs: Passes over the training images.
        budget: ``images``, equal steps for all arms, or ``time``.
        batch_size: Images a step, each in two views, over all processes.
        groups: Parts of a batch, each normalised by itself, as on so many devices.
        queue: Entries of the queue of MoCo and Exemplar, at most as many as there are images.
        momentum: How much of their key network stays at each step.
        optimiser: ``sgd`` or ``adamw``.
        lr: Largest learning rate; of several, each arm gets that whose first seed has the best linear probe
            on the images held out.
        weight_decay: Of matrices and kernels.
        warmup: Share of the steps in which the learning rate rises.
        ema: Decay of a running mean of the weights, which is then what is kept; 0 for none.
        augmentation: Words of ``parse_augmentation``.
        target: The class target; None takes the first, if there is one.
        taps: What is probed afterwards.
        random: Random draws of the architecture as controls of the probes.
        weights: ``final`` attaches the checkpoints of the last step, ``all`` also those of 0, 1, 3, 10 and
            30 % of the steps.
        precision: ``float32``, or ``bfloat16`` for forward passes.
        device: Where to train; None chooses.
        store: Folder of snapshots and finished trainings; None takes the user's cache folder.
        jobs: Trainings at a time, each with its share of the processor's cores.

    Returns:
        One table: probes of every arm and seed (``pretrain_seed``) on the pretraining data, beside random
        init, and of every training its last loss, its throughput and its steps. Attached are the checkpoints,
        in half precision, and the metrics along the way.

    Raises:
        InputError: If an arm, the data or a setting cannot be used: before anything is trained.
        TrainingDiverged: If a loss is NaN or infinite; the last snapshot is kept.
    """
    settings = stored_settings(locals())
    began = time.monotonic()
    plan = _Plan.open(settings, data, store, device)
    _join_processes(plan.device)
    trainings = plan.trainings()
    if isinstance(lr, Sequence) and len(lr) > 1:
        trainings = plan.choose_rates(trainings, jobs)
    done = plan.run(trainings, jobs)
    # Probes run in one process: under torchrun only checkpoints and curves are made.
    alone = rank()[1] == 1
    table = (
        probe(
            [plan.model(one) for one in trainings],
            plan.images,
            taps=taps,
            targets=plan.target,
            random=random,
            store=store,
            device=device,
            jobs=jobs,
        )
        if plan.target is not None and alone
        else None
    )
    return plan.table(table, trainings, done, settings, began)


@dataclass(frozen=True, eq=False)
class _Cell:
    """One training and where it is kept."""

    training: Training
    key: str
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.training.arm.name} seed {self.training.seed}"


@dataclass(frozen=True, eq=False)
class _Plan:
    """What one call trains: images, arms, seeds, settings."""

    settings: Mapping[str, Any]
    images: ImageSet
    target: str | None
    arms: list[Arm]
    seeds: list[int]
    folder: Path
    device: Any
    train: NDArray[np.int64]
    val: NDArray[np.int64]

    @classmethod
    def open(
        cls, settings: Mapping[str, Any], data: str | ImageSet, store: str | Path | None, device: str | None
    ) -> _Plan:
        from probekit.pretraining.arms import find_arm

        names = each(settings["arms"])
        found = [find_arm(name) for name in dict.fromkeys(names)]
        if not found:
            raise InputError("at least one arm", "none", "Name ce, moco-v2 or another")
        given = settings["seeds"]
        seeds = list(range(given)) if isinstance(given, int) else [int(one) for one in given]
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise InputError("seeds of at least 0, each once", str(given), "Give a count, or a list")
        for name, known in (("budget", BUDGETS), ("weights", ("final", "all"))):
            if settings[name] not in known:
                raise InputError(f"{name} among {', '.join(known)}", repr(settings[name]), "Choose one")
        parse_augmentation(settings["augmentation"])
        images = open_images(data) if isinstance(data, str) else data
        target = find_class_target(images, settings["target"])
        plan = cls(
            settings, images, target, found, seeds,
            Path(store) if store is not None else cache_folder(), choose_device(device),
            *_divide(images, target),
        )  # fmt: skip
        plan.check()
        return plan

    def check(self) -> None:
        """Refuse what could not be trained, before an image is read.

        Raises:
            InputError: If labels are missing or of one class only, or the queue or batch is too large.
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

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) classes of the training images; −1 throughout where there are none."""
        if self.target is None:
            return np.full(len(self.train), -1)
        return np.asarray(self.images.targets[self.target].values[self.train], np.int64)

    @property
    def steps(self) -> int:
        """Steps of an arm at equal images."""
        an_epoch = len(self.train) // int(self.settings["batch_size"])
        return max(1, round(float(self.settings["epochs"]) * an_epoch))

    def trainings(self) -> list[_Cell]:
        """Return the trainings at the first learning rate."""
        rate = float(each(self.settings["lr"])[0])
        steps = {arm.name: self.steps for arm in self.arms}
        if self.settings["budget"] == "time":
            steps = self._steps_in_time()
        return [self.cell(arm, seed, rate, steps[arm.name]) for arm in self.arms for seed in self.seeds]

    def cell(self, arm: Arm, seed: int, rate: float, steps: int) -> _Cell:
        """Return one training under the key of all that it depends on."""
        from probekit.pretraining.arms import Setup
        from probekit.pretraining.cell import Training
        from probekit.training.optimisers import Optimisation

        s = self.settings
        classes = 1 if self.target is None else len(self.images.targets[self.target].classes)
        preprocessing = _preprocessing(s["arch"])
        training = Training(
            arm,
            Setup(s["arch"], preprocessing.size, classes, s["groups"], s["queue"], s["momentum"]),
            Optimisation(
                steps, rate, s["optimiser"], s["weight_decay"], round(s["warmup"] * steps), ema=s["ema"]
            ),
            seed,
            s["precision"],
        )
        parts = [
            CELL_FORMAT, __version__, training.facts(), self.images.digest, self.target,
            parse_augmentation(s["augmentation"]).facts(), s["batch_size"], self.train.tolist(),
        ]  # fmt: skip
        key = digest_json(parts)[:32]
        return _Cell(training, key, self.folder / "pretraining" / key)

    def choose_rates(self, trainings: Sequence[_Cell], jobs: int) -> list[_Cell]:
        """Return the trainings at the learning rate whose first seed is read best on the images held out."""
        rates = [float(one) for one in self.settings["lr"]]
        first = {one.training.arm.name: one for one in trainings if one.training.seed == self.seeds[0]}
        tried = [
            self.cell(one.training.arm, self.seeds[0], rate, one.training.optimisation.steps)
            for one in first.values()
            for rate in rates
        ]
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

    def run(self, trainings: Sequence[_Cell], jobs: int) -> dict[str, dict[str, float]]:
        """Run the trainings that are not finished; key → facts of each."""
        from joblib import Parallel, delayed

        from probekit.pretraining.batches import training_pixels

        waiting = [one for one in trainings if not (one.folder / "facts.json").exists()]
        if waiting:
            size = waiting[0].training.setup.size
            with training_pixels(self.images.select(self.train), size, self.folder) as pixels:
                held = self._held(size)
                run_one = partial(
                    _run_cell, pixels=pixels, labels=self.labels, held=held, plan=self, jobs=jobs
                )
                Parallel(n_jobs=jobs)(delayed(run_one)(one) for one in waiting)
        return {one.key: read_json(one.folder / "facts.json") for one in trainings}

    def _held(self, size: int) -> Held | None:
        """Return what the monitor looks at; None without classes."""
        from probekit.data.transforms import Preprocessing
        from probekit.pretraining.cell import Held

        if self.target is None:
            return None
        values = self.images.targets[self.target].values
        preprocessing = Preprocessing(size, size)
        bank, queries = (
            rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]
            for rows, most in ((self.train, MOST_BANK), (self.val, MOST_QUERIES))
        )
        pixels = [
            np.stack([self.images.pixels(int(row), preprocessing) for row in rows])
            for rows in (bank, queries)
        ]
        labels = [np.asarray(values[rows], np.int64) for rows in (bank, queries)]
        return Held(pixels[0], labels[0], pixels[1], labels[1])

    def views(self, cell: _Cell, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> TwoViews:
        """Return the batches of one training."""
        from probekit.pretraining.batches import TwoViews

        s = self.settings
        return TwoViews(
            pixels, labels, parse_augmentation(s["augmentation"]), _preprocessing(s["arch"]), s["batch_size"],
            s["groups"], cell.training.seed, self.device,
        )  # fmt: skip

    def _steps_in_time(self) -> dict[str, int]:
        """Return the steps of each arm that fit into the time of cross-entropy."""
        known = self.seconds()
        return {arm.name: max(1, round(self.steps * known["ce"] / known[arm.name])) for arm in self.arms}

    def seconds(self) -> dict[str, float]:
        """Return the seconds a step of cross-entropy and of every arm, each measured by itself.

        Measured once for a store: what goes on after an interruption has the steps it began with.
        """
        from probekit.pretraining.arms import find_arm
        from probekit.pretraining.batches import training_pixels

        s = self.settings
        asked = list(dict.fromkeys(["ce", *(arm.name for arm in self.arms)]))
        words = ("arch", "batch_size", "groups", "queue", "precision", "augmentation")
        key = digest_json([CELL_FORMAT, __version__, *(s[word] for word in words)])
        place = self.folder / "pretraining" / f"seconds-{key[:16]}-{self.device.type}.json"
        known: dict[str, float] = read_json(place) if place.exists() else {}
        missing = [name for name in asked if name not in known]
        if missing:
            some = self.train[: 2 * TIMED * s["batch_size"]]
            with training_pixels(
                self.images.select(some), _preprocessing(s["arch"]).size, self.folder
            ) as pixels:
                for name in missing:
                    cell = self.cell(find_arm(name), 0, 0.01, 2 * TIMED)
                    known[name] = _seconds_a_step(
                        cell.training, self.views(cell, pixels, self.labels[: len(pixels)])
                    )
            if rank()[0] == 0:
                write_json(place, known)
            _wait_for_all()
        return known

    def model(self, cell: _Cell) -> ModelSpec:
        """Return how the final checkpoint is loaded."""
        from probekit.pretraining.cell import FINAL

        return ModelSpec(cell.name, self.settings["arch"], str(cell.folder / FINAL))

    def table(
        self,
        probed: ResultTable | None,
        trainings: Sequence[_Cell],
        done: Mapping[str, Mapping[str, float]],
        settings: Mapping[str, Any],
        began: float,
    ) -> ResultTable:
        """Return probes and facts of the trainings in one table, with checkpoints and metrics attached."""
        rows, attachments = [], dict[str, Any]()
        for one in trainings:
            facts, optimisation = done[one.key], one.training.optimisation
            params = {
                "arm": one.training.arm.name,
                "steps": optimisation.steps,
                "lr": optimisation.lr,
                "images": 2 * optimisation.steps * settings["batch_size"],
                "budget": settings["budget"],
            }
            shared = {"model": one.name, "data": self.images.name, "split": "train", "n": len(self.train)}
            shared |= {"arch": settings["arch"], "pretrain_seed": one.training.seed, "params": params}
            rows += [
                shared | {"metric": metric, "value": facts[fact]}
                for metric, fact in (("pretraining_loss", "loss"), ("images_per_s", "images_per_s"))
            ]
            attachments |= _attached(one, settings["weights"])
        frame = rows_to_frame(rows)
        provenance: dict[str, Any] = {}
        if probed is not None:
            by_name = {one.name: one.training.seed for one in trainings}
            own = probed.frame.copy()
            seeds = own["model"].map(by_name)
            own["pretrain_seed"] = seeds.where(seeds.notna(), own["pretrain_seed"]).astype(
                own["pretrain_seed"].dtype
            )
            frame = pd.concat([own, frame], ignore_index=True)
            provenance, attachments = dict(probed.provenance), {**probed.attachments, **attachments}
        made_by = {**provenance.get("settings", {}), **settings, "data": self.images.spec or self.images.name}
        told = {
            **provenance,
            "format": 1,
            "analysis": "pretrain",
            "probekit": __version__,
            "settings": made_by,
            "versions": software_versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "wall_s": round(time.monotonic() - began, 2),
        }
        told["run_id"] = digest_json([made_by, [one.key for one in trainings]])[:12]
        return ResultTable(frame.assign(analysis="pretrain", run_id=told["run_id"]), told, attachments)


def _run_cell(
    cell: _Cell,
    *,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    held: Held | None,
    plan: _Plan,
    jobs: int,
) -> None:
    """Train one arm with its share of the cores, and say so in its folder once it is whole."""
    import torch

    from probekit.pretraining.cell import train_arm

    threads = max(1, torch.get_num_threads() // jobs)
    with torch_threads(threads):
        views = plan.views(cell, pixels, labels)
        facts = train_arm(cell.training, views, held, cell.folder)
    if rank()[0] == 0:
        write_json(cell.folder / "facts.json", {**facts, "threads": threads})
    _wait_for_all()


def foresee_pretraining(settings: Mapping[str, Any], device: str | None = None) -> pd.DataFrame:
    """Say what a call of ``pretrain`` would train: arms, seeds, steps, views, seconds; trains nothing.

    A few steps of every arm are timed.

    Args:
        settings: Keywords of ``pretrain``.
        device: Where it would train.
    """
    given = inspect.signature(pretrain).parameters
    whole = {name: one.default for name, one in given.items() if name not in ("store", "device", "jobs")}
    whole |= {**settings, "budget": "time"}
    plan = _Plan.open(whole, whole["data"], None, device)
    plan.trainings()
    seconds = plan.seconds()
    rows = []
    for arm in plan.arms:
        timed = plan.steps * seconds["ce"] / seconds[arm.name]
        steps = plan.steps if settings.get("budget", "images") == "images" else max(1, round(timed))
        for seed in plan.seeds:
            views = 2 * steps * whole["batch_size"]
            took = round(steps * seconds[arm.name], 1)
            rows.append({"arm": arm.name, "seed": seed, "steps": steps, "views": views, "train_s": took})
    return pd.DataFrame(rows)


def _join_processes(device: Any) -> None:  # noqa: ANN401 - a torch device
    """Join the processes that torchrun started, where it did."""
    import torch.distributed as dist

    if rank()[1] > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def _wait_for_all() -> None:
    import torch.distributed as dist

    if rank()[1] > 1:
        dist.barrier()


def _seconds_a_step(training: Training, views: TwoViews) -> float:
    """Return the median seconds of a step, views and all, of an arm that runs alone."""
    from probekit.pretraining.arms import build_learner

    learner = build_learner(training.arm, training.setup, 0).to(views.device)
    optimiser = training.optimisation.build(learner)
    learner.train()
    seconds = []
    for step in range(2 * TIMED):
        began = time.perf_counter()
        loss = learner(views(step % views.steps_an_epoch))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        learner.after_step()
        float(loss.detach())
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[TIMED:]))


def _divide(images: ImageSet, target: str | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of train and val; a tenth of train is held out where there is no val."""
    train, val = images.indices("train"), images.indices("val")
    if not len(train):
        raise InputError("a train split", f"none in {images.name}", "Divide the images, or name others")
    if not len(val):
        kept, held = hold_out(train, 0.1, seed=0, stratified=False, use="images to train on")
        train, val = train[kept], train[held]
    return train, val


def _attached(cell: _Cell, weights: str) -> dict[str, Any]:
    """Return the checkpoints and metrics of a training by the names under which they are attached."""
    from probekit.pretraining.cell import FINAL, read_metrics

    arm, seed = cell.training.arm.name, cell.training.seed
    found: dict[str, Any] = {f"curves/{safe_name(arm)}/seed-{seed}.parquet": read_metrics(cell.folder)}
    found[f"checkpoints/{safe_name(arm)}/seed-{seed}.pth"] = (cell.folder / FINAL).read_bytes()
    if weights == "all":
        for path in sorted(cell.folder.glob("step-*.pth")):
            found[f"checkpoints/{safe_name(arm)}/seed-{seed}-{path.stem}.pth"] = path.read_bytes()
    return found


def _preprocessing(arch: str) -> Any:  # noqa: ANN401 - a Preprocessing
    from probekit.backbones.architectures import SMALL_INPUTS, timm_settings
    from probekit.backbones.preprocessing import ASSUMED, read_settings

    if arch in SMALL_INPUTS:
        return SMALL_INPUTS[arch]
    facts = timm_settings(arch)
    return read_settings(facts)[0] if facts and facts.get("input_size") else ASSUMED
