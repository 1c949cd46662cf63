"""One training of one arm: from step 0 to its checkpoint, resumable."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from probekit.compute import rank
from probekit.data.transforms import Preprocessing
from probekit.functional.neighbours import vote_neighbours
from probekit.functional.softmax_regression import fit_softmax
from probekit.pretraining.arms import Arm, Pretraining, Setup, build_learner
from probekit.pretraining.batches import TwoViews, normalised
from probekit.pretraining.checkpoints import write_checkpoint
from probekit.taps.trace import eval_mode
from probekit.training.loop import METRICS, SNAPSHOT_S, Journal, train
from probekit.training.optimisers import Optimisation

# Shares of all steps at which weights are kept, and at which neighbours are asked.
KEPT = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
WATCHED = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
# Neighbours that vote in the monitor.
NEIGHBOURS = 20
# Of the linear probe that learning rates are chosen by.
PENALTIES = (0.1, 0.01, 1e-3, 1e-4)
FINAL = "final.pth"


@dataclass(frozen=True, eq=False)
class Held:
    """Images of the pretraining set that a monitor looks at, without augmentation.

    Attributes:
        bank: (N, S, S, 3) training images whose neighbours vote.
        bank_labels: (N,) their classes.
        queries: (M, S, S, 3) images held out.
        query_labels: (M,) their classes.
    """

    bank: NDArray[np.uint8]
    bank_labels: NDArray[np.int64]
    queries: NDArray[np.uint8]
    query_labels: NDArray[np.int64]


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
    learner = build_learner(training.arm, training.setup, training.seed)
    learner.to(views.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
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


def ask_neighbours(learner: Pretraining, held: Held, preprocessing: Preprocessing) -> dict[str, float]:
    """Return the share of held-out images whose nearest training images name their class."""
    bank, queries = (features(learner, pixels, preprocessing) for pixels in (held.bank, held.queries))
    classes = int(max(held.bank_labels.max(), held.query_labels.max())) + 1
    k = min(NEIGHBOURS, len(bank))
    scores = vote_neighbours(bank, held.bank_labels, queries, k=k, n_classes=classes)
    return {"knn_accuracy": float((scores.argmax(axis=1) == held.query_labels).mean())}


def ask_linear(learner: Pretraining, held: Held, preprocessing: Preprocessing) -> float:
    """Return the accuracy of a linear probe on the images held out: a number to choose learning rates by.

    The probe is fitted to the bank, at the best of a few penalties.
    """
    bank, queries = (features(learner, pixels, preprocessing) for pixels in (held.bank, held.queries))
    mean, scale = bank.mean(axis=0), np.maximum(bank.std(axis=0), 1e-6)
    path = fit_softmax(
        (bank - mean) / scale, held.bank_labels, PENALTIES, n_classes=learner.setup.classes, gap=1e-3
    )
    named = path.logits((queries - mean) / scale).argmax(axis=2)
    return float((named == held.query_labels).mean(axis=1).max())


def features(
    learner: Pretraining, pixels: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Return (N, D) what comes into the head, in eval mode, of images without augmentation."""
    found: list[Tensor] = []
    head = learner.net.get_submodule(learner.classifier)
    device = next(learner.parameters()).device
    handle = head.register_forward_pre_hook(lambda _m, inputs: found.append(inputs[0].float().cpu()))
    try:
        with torch.no_grad(), eval_mode(learner.net):
            for first in range(0, len(pixels), 256):
                part = torch.from_numpy(pixels[first : first + 256]).to(device)
                learner.net(normalised(part.permute(0, 3, 1, 2).float() / 255, preprocessing))
    finally:
        handle.remove()
    return torch.cat(found).flatten(1).numpy()
