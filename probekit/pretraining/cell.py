"""One training of one arm: from step 0 to its checkpoint, resumable."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from probekit.backbones.backbone import Backbone
from probekit.compute import rank
from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.features.streaming import stream
from probekit.functional.neighbours import vote_neighbours
from probekit.functional.softmax_regression import fit_softmax
from probekit.functional.standardise import standardisation
from probekit.pretraining.arms import Arm, Pretraining, Setup, Views, build_learner
from probekit.pretraining.batches import TwoViews
from probekit.pretraining.checkpoints import write_checkpoint
from probekit.taps.layers import resolve_taps
from probekit.training.loop import METRICS, SNAPSHOT_S, Journal, train
from probekit.training.optimisers import Optimisation

# Shares of all steps at which weights are kept, and at which neighbours are asked.
KEPT = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
WATCHED = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
# Neighbours that vote in the monitor.
NEIGHBOURS = 20
# Of the linear probe that learning rates are chosen by.
PENALTIES = (0.1, 0.01, 1e-3, 1e-4)
# Steps behind a measured time of a step.
TIMED = 12
FINAL = "final.pth"

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Held:
    """Images of the pretraining set that a monitor looks at, without augmentation.

    Attributes:
        bank: Training images whose neighbours vote.
        queries: Images held out.
        target: Name of their class target.
    """

    bank: ImageSet
    queries: ImageSet
    target: str


@dataclass(frozen=True)
class Training:
    """All that one training depends on, beside its images.

    Attributes:
        arm: What is asked of a batch.
        setup: What all arms share.
        optimisation: Steps and learning rate.
        seed: Of weights, order and augmentation.
        precision: Of the forward passes.
    """

    arm: Arm
    setup: Setup
    optimisation: Optimisation
    seed: int
    precision: str = "float32"

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "arm": asdict(self.arm),
            "setup": asdict(self.setup),
            "optimisation": self.optimisation.facts(),
            "seed": self.seed,
            "precision": self.precision,
        }

    @property
    def kept_steps(self) -> list[int]:
        """Steps whose weights are kept."""
        return sorted({round(one * self.optimisation.steps) for one in KEPT})


def train_arm(
    training: Training,
    views: TwoViews,
    held: Held | None,
    folder: Path,
    *,
    snapshot_s: float = SNAPSHOT_S,
) -> dict[str, Any]:
    """Train one arm, or go on with it, and leave its checkpoints, metrics and facts in a folder.

    Returns:
        ``wall_s``, the metrics of the last step, and ``val_accuracy`` of a linear probe where there are
        classes.

    Raises:
        TrainingDiverged: If the loss is no number.
        OSError: If the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    learner = _learner(training, views.device)
    steps = training.optimisation.steps
    journal = Journal[Any](
        folder,
        keep=training.kept_steps,
        kept=lambda step: write_checkpoint(folder / f"step-{step:06d}.pth", learner, step, half=True),
        watch=[round(one * steps) for one in WATCHED],
        monitor=None if held is None else lambda: ask_neighbours(learner, held, views.preprocessing),
        snapshot_s=snapshot_s,
        seed=training.seed,
        # Two views of every image, of all processes.
        unit=2 * views.batch_size,
        label=f"{training.arm.name}, seed {training.seed}",
    )
    began = time.monotonic()
    train(learner, views, training.optimisation, journal, precision=training.precision)
    if rank()[0] == 0:
        write_checkpoint(folder / FINAL, learner, steps, half=True)
    lines = read_metrics(folder)
    last = lines.iloc[-1].dropna().to_dict()
    facts = {"wall_s": time.monotonic() - began, **{str(name): float(one) for name, one in last.items()}}
    if held is not None:
        facts["val_accuracy"] = ask_linear(learner, held, views.preprocessing)
    return facts


def read_metrics(folder: Path) -> pd.DataFrame:
    """Return the metrics of a training: a row a line, ``step`` first."""
    text = (folder / METRICS).read_text(encoding="utf-8")
    return pd.DataFrame([json.loads(line) for line in text.splitlines()])


def seconds_a_step(training: Training, views: TwoViews) -> float:
    """Return the median seconds of a step, views and all, of an arm that runs alone.

    As many steps as count go before them.
    """
    began: list[float] = []

    def timed(step: int) -> Views:
        began.append(time.perf_counter())
        return views(step % views.steps_an_epoch)

    optimisation = replace(training.optimisation, steps=2 * TIMED + 1, warmup=0)
    train(_learner(training, views.device), timed, optimisation, Journal(), precision=training.precision)
    return float(np.median(np.diff(began)[TIMED:]))


def ask_neighbours(learner: Pretraining, held: Held, preprocessing: Preprocessing) -> dict[str, float]:
    """Return the share of held-out images whose nearest training images name their class."""
    bank, labels, queries, truth = _read(learner, held, preprocessing)
    k = min(NEIGHBOURS, len(bank))
    scores = vote_neighbours(bank, labels, queries, k=k, n_classes=learner.setup.classes)
    return {"knn_accuracy": float((scores.argmax(axis=1) == truth).mean())}


def ask_linear(learner: Pretraining, held: Held, preprocessing: Preprocessing) -> float:
    """Return the accuracy of a linear probe on the images held out: a number to choose learning rates by.

    The probe is fitted to the bank, at the best of a few penalties.
    """
    bank, labels, queries, truth = _read(learner, held, preprocessing)
    mean, scale, _ = standardisation(bank)
    path = fit_softmax((bank - mean) / scale, labels, PENALTIES, n_classes=learner.setup.classes, gap=1e-3)
    named = path.logits((queries - mean) / scale).argmax(axis=2)
    return float((named == truth).mean(axis=1).max())


def _learner(training: Training, device: torch.device) -> Pretraining:
    learner = build_learner(training.arm, training.setup, training.seed)
    learner.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return learner


def _read(
    learner: Pretraining, held: Held, preprocessing: Preprocessing
) -> tuple[Array, NDArray[np.int64], Array, NDArray[np.int64]]:
    """Return what comes into the head, and the classes, of the bank and of the queries."""
    backbone = Backbone.from_module(
        learner.net, preprocessing=preprocessing, classifier=learner.classifier
    ).to(next(learner.parameters()).device)
    (tap,) = resolve_taps(backbone, "penultimate")
    found: list[Any] = []
    for images in (held.bank, held.queries):
        rows = [values[tap] for _, values in stream(backbone, images, [tap])]
        found += [np.concatenate(rows), np.asarray(images.targets[held.target].values, np.int64)]
    return found[0], found[1], found[2], found[3]
