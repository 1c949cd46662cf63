"""Blocks of a finetuned backbone put back to what they were, without training again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from probekit.backbones.backbone import Backbone
from probekit.backbones.batch_norm import is_folded, recalibrate_batch_norm, tracking_layers
from probekit.backbones.reset import random_control, reset
from probekit.finetuning.cell import Data, Finetuning, answers_to, build, weights_file
from probekit.finetuning.curves import Group, training_batches
from probekit.finetuning.network import Headed, Tuned
from probekit.remote import share_folders

# Shares of the steps whose weights blocks are put back to.
REWOUND = (0.1, 0.5)


def kept_steps(steps: int) -> list[int]:
    """Return the steps whose weights a training keeps, so that its blocks can be put back.

    Examples:
        >>> kept_steps(200)
        [20, 100, 200]
    """
    return sorted({max(1, round(share * steps)) for share in REWOUND} | {steps})


def rewind(
    backbone: Backbone, data: Data, groups: Sequence[Group], one: Finetuning, folder: Path
) -> list[dict[str, Any]]:
    """Score a finetuned backbone with each group put back, batch norm as it is and estimated again.

    A group gets its pretrained weights, those of an earlier step of the finetuning, or a fresh draw; the
    rest, the head included, stays finetuned. Source: Zhang, Bengio and Singer, *Are All Layers Created
    Equal?* (JMLR 2022), section 3.

    Args:
        backbone: The pretrained one.
        data: The task's.
        groups: Of its blocks.
        one: How it was trained.
        folder: Where the training kept its weights.

    Returns:
        ``group``, ``to``, ``batch_norm`` and ``value``, the task's first metric on test; the first row is the
        finetuned backbone as it is.
    """
    *before, last = kept_steps(one.optimisation.steps)
    whole, trained = _finetuned(backbone, data, one, folder, last)
    first = data.task.metrics[0]
    given = build(backbone, data, one)[1]

    def score(body: Backbone) -> float:
        learner = Tuned(body, data.task, trained.head, trained.reading, "frozen").to(backbone.device)
        answers = answers_to(learner, given, data, "test", one.batch_size)
        return float(data.task.score(answers, data.test.truth)[first].value)

    rows = [{"group": "", "to": "", "batch_norm": "as it is", "value": score(whole)}]
    sources = {
        "pretrained": backbone,
        **{f"step {step}": _finetuned(backbone, data, one, folder, step)[0] for step in before},
        "fresh draw": random_control(backbone, "fresh draw", one.seed),
    }
    for group in groups:
        for to, source in sources.items():
            edited = reset(whole, list(group.members), mode="copied", source=source)
            for batch_norm, body in _norms(edited, data):
                rows.append({"group": group.name, "to": to, "batch_norm": batch_norm, "value": score(body)})
    return rows


def _norms(edited: Backbone, data: Data) -> Iterator[tuple[str, Backbone]]:
    yield "as it is", edited
    # Folded batch norm has no statistics of its own to estimate.
    if tracking_layers(edited.module) and not is_folded(edited.module):
        batches = training_batches(edited, data)
        yield "estimated again", recalibrate_batch_norm(edited, batches, f"{data.images.name}, train")


def _finetuned(
    backbone: Backbone, data: Data, one: Finetuning, folder: Path, step: int
) -> tuple[Backbone, Tuned]:
    """Return a backbone after a step of its finetuning, and the network with its head."""
    learner = load_kept(backbone, data, one, folder, step)
    assert isinstance(learner, Tuned)
    return backbone.edited(learner.network(), f"finetuned, step {step}"), learner


def load_kept(backbone: Backbone, data: Data, one: Finetuning, folder: Path, step: int) -> Headed:
    """Return the network of a training after a step whose weights were kept."""
    share_folders([folder])  # a worker elsewhere may not have it yet
    learner, _ = build(backbone, data, one)
    learner.load_state_dict(
        torch.load(weights_file(folder, step), map_location=backbone.device, weights_only=True)
    )
    return learner.eval()
