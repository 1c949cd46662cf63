"""The verb ``pretrain``: arms trained on equal terms, and what their checkpoints know."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from probekit.compute import rank, software_versions
from probekit.data.images import ImageSet
from probekit.features.comparison import stored_settings
from probekit.files import digest_json, safe_name
from probekit.probes.sweep import probe
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable
from probekit.version import __version__

if TYPE_CHECKING:
    from probekit.pretraining.trainings import Cell, Plan


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
    lr: float | Sequence[float] | Mapping[str, float] = 0.1,
    rate_epochs: float | None = None,
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
            on the images held out; or arm → its rate.
        rate_epochs: Passes over the training images of the trainings that learning rates are chosen by; None
            takes ``epochs``.
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
        store: Folder or URL of finished trainings; None takes the user's cache folder.
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
    from probekit.pretraining.trainings import Plan, join_processes

    plan = Plan.open(settings, data, store, device)
    join_processes(plan.device)
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
    return _table(plan, table, trainings, done, began)


def foresee_pretraining(settings: Mapping[str, Any], device: str | None = None) -> pd.DataFrame:
    """Say what a call of ``pretrain`` would train: arms, seeds, steps, views, seconds; trains nothing.

    A few steps of every arm are timed; nothing is kept.

    Args:
        settings: Keywords of ``pretrain``.
        device: Where it would train.
    """
    from probekit.pretraining.trainings import Plan

    given = inspect.signature(pretrain).parameters
    whole = {name: one.default for name, one in given.items() if name not in ("store", "device", "jobs")}
    whole |= settings
    plan = Plan.open(whole, whole["data"], None, device)
    seconds = plan.measure_seconds(plan.timed_arms())
    in_time = whole["budget"] == "time"
    steps = plan.steps_in_time(seconds) if in_time else {arm.name: plan.steps for arm in plan.arms}
    rows = [
        {
            "arm": one.training.arm.name,
            "seed": one.training.seed,
            "steps": one.training.optimisation.steps,
            "views": 2 * one.training.optimisation.steps * whole["batch_size"],
            "train_s": round(one.training.optimisation.steps * seconds[one.training.arm.name], 1),
        }
        for one in plan.cells(steps)
    ]
    return pd.DataFrame(rows)


def _table(
    plan: Plan,
    probed: ResultTable | None,
    trainings: Sequence[Cell],
    done: Mapping[str, Mapping[str, float]],
    began: float,
) -> ResultTable:
    """Return probes and facts of the trainings in one table, with checkpoints and metrics attached."""
    settings, images = plan.settings, plan.images
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
        shared = {"model": one.name, "data": images.name, "split": "train", "n": len(plan.train)}
        shared |= {"arch": settings["arch"], "pretrain_seed": one.training.seed, "params": params}
        rows += [
            shared | {"metric": metric, "value": facts[fact]}
            for metric, fact in (("pretraining_loss", "loss"), ("images_per_s", "images_per_s"))
        ]
        attachments |= _attached(one, settings["weights"])
    frame = rows_to_frame(rows)
    provenance: dict[str, Any] = {}
    if probed is not None:
        own = probed.frame.copy()
        for one in trainings:
            own.loc[own["model"] == one.name, "pretrain_seed"] = one.training.seed
        frame = pd.concat([own, frame], ignore_index=True)
        provenance, attachments = dict(probed.provenance), {**probed.attachments, **attachments}
        provenance["models"] = _attached_models(provenance["models"], trainings)
    stored = {**provenance.get("settings", {}), **settings, "data": images.spec or images.name}
    # Arms stand for them; the words of the probe say where this machine keeps its files.
    stored.pop("models", None)
    told = {
        **provenance,
        "format": 1,
        "analysis": "pretrain",
        "probekit": __version__,
        "settings": stored,
        "versions": software_versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": round(time.monotonic() - began, 2),
    }
    told["run_id"] = digest_json([stored, [one.key for one in trainings]])[:12]
    return ResultTable(frame.assign(analysis="pretrain", run_id=told["run_id"]), told, attachments)


def _attached(cell: Cell, weights: str) -> dict[str, Any]:
    """Return the checkpoints and metrics of a training by the names under which they are attached."""
    from probekit.pretraining.cell import FINAL, read_metrics

    final = _attachment(cell)
    found: dict[str, Any] = {
        final.replace("checkpoints/", "curves/").replace(".pth", ".parquet"): read_metrics(cell.folder),
        final: (cell.folder / FINAL).read_bytes(),
    }
    if weights == "all":
        for path in sorted(cell.folder.glob("step-*.pth")):
            found[final.replace(".pth", f"-{path.stem}.pth")] = path.read_bytes()
    return found


def _attachment(cell: Cell) -> str:
    return f"checkpoints/{safe_name(cell.training.arm.name)}/seed-{cell.training.seed}.pth"


def _attached_models(models: Mapping[str, Any], trainings: Sequence[Cell]) -> dict[str, Any]:
    """Return the facts of the models, which are found where they are attached, on any machine."""
    places = {one.name: f"{one.training.setup.arch}:{_attachment(one)}" for one in trainings}
    return {
        name: {**facts, "spec": places[name]} if name in places else facts for name, facts in models.items()
    }
