"""One training of one task from one backbone: from step 0 to its scores, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probekit.backbones.architectures import seeded
from probekit.backbones.backbone import Backbone
from probekit.backbones.batch_norm import tracking_layers
from probekit.data.images import ImageSet
from probekit.data.regions import each_image
from probekit.data.splits import hold_out
from probekit.data.transforms import Preprocessing
from probekit.errors import DataError, InputError
from probekit.features.streaming import BATCH_SIZE
from probekit.files import replacing
from probekit.finetuning.network import Headed, Reading, Tuned, read_for
from probekit.functional.moments import CrossMoments
from probekit.functional.similarity import debiased_cka
from probekit.seeds import random_stream
from probekit.training.loop import Journal, train
from probekit.training.optimisers import Optimisation

if TYPE_CHECKING:
    from probekit.tasks.task import Score, Task, Values

# Shares of all steps at which the images held out are asked.
WATCHED = (0.1, 0.25, 0.5, 0.75, 1.0)
# Share of train that is held out where there is no val split.
HELD = 0.15
# Images by which the two modes of batch norm are compared, and fewest that tell; permutations behind chance.
MOST_COMPARED, FEWEST_COMPARED, PERMUTATIONS = 128, 16, 20
# Bytes of features of a frozen backbone that are kept in memory.
MOST_BYTES = 4 << 30

# Split and rows → what a network is given of them.
Given = Callable[[str, NDArray[np.int64]], Tensor]


@dataclass(frozen=True, eq=False)
class Part:
    """The images of one split as a backbone is given them, and what is to be said of them.

    Attributes:
        rows: Places in the data set.
        pixels: (N, S, S, 3) uint8.
        truth: (N, …).
    """

    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    truth: Values

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set for one task at one input size.

    Attributes:
        images: The whole data set.
        task: What is asked of it.
        preprocessing: How images become input.
        train: Trained on.
        val: Chooses learning rates.
        test: Scored once.
    """

    images: ImageSet
    task: Task
    preprocessing: Preprocessing
    train: Part
    val: Part
    test: Part
    # Features of the last frozen backbone, by its weights and how it was read.
    kept: dict[Any, dict[str, NDArray[Any]]] = field(default_factory=dict)

    @classmethod
    def open(cls, images: ImageSet, task: Task, preprocessing: Preprocessing, fraction: float = 1.0) -> Data:
        """Decode all images once.

        Args:
            images: With train and test images; a part of train is held out where there is no val.
            task: What is asked of it.
            preprocessing: How images become input.
            fraction: Share of the training images that is used, by class where there is one.

        Raises:
            DataError: If a split is missing, or the target cannot be used.
            InputError: If the fraction is not in (0, 1].
        """
        if not 0 < fraction <= 1:
            raise InputError("a fraction of the training images in (0, 1]", str(fraction), "1 uses all")
        rows = {role: task.rows(images, role) for role in ("train", "val", "test")}
        for role in ("train", "test"):
            if not len(rows[role]):
                raise DataError(f"{role} images in {images.name}", "none", "Name the splits, or open others")
        labels = _labels(images, task, rows["train"])
        if not len(rows["val"]):
            kept, held = hold_out(labels, HELD, stratified=task.kind == "class", use="finetuning split")
            rows["train"], rows["val"], labels = rows["train"][kept], rows["train"][held], labels[kept]
        if fraction < 1:
            left, _ = hold_out(labels, 1 - fraction, stratified=task.kind == "class", use="data fraction")
            rows["train"] = rows["train"][left]
        train, val, test = (_part(images, task, preprocessing, rows[one]) for one in rows)
        return cls(images, task, preprocessing, train, val, test)

    def facts(self) -> dict[str, Any]:
        """Return what stands for it in keys."""
        return {
            "images": self.images.digest,
            **self.task.facts(),
            "preprocessing": self.preprocessing.facts(),
            "train": self.train.rows.tolist(),
            "val": self.val.rows.tolist(),
        }


def _labels(images: ImageSet, task: Task, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    if task.kind != "class":
        return np.zeros(len(rows), np.int64)
    return np.asarray(images.targets[task.target].values[rows], np.int64)


def _part(images: ImageSet, task: Task, preprocessing: Preprocessing, rows: NDArray[np.int64]) -> Part:
    some = images.select(rows)
    pixels = each_image(some, lambda row: task.pixels(some, row, preprocessing), "Reading")
    return Part(rows, pixels, task.truth(some, preprocessing))


@dataclass(frozen=True)
class Finetuning:
    """All that one training depends on, beside backbone and data.

    Attributes:
        optimisation: Steps and learning rate.
        tuned: Whether the backbone is trained with its head.
        batch_norm: ``train`` or ``frozen``, while a backbone is trained.
        batch_size: Images a step.
        seed: Of head and order.
        precision: Of the forward passes.
        still: Modules and parameters of a tuned backbone that are not trained.
    """

    optimisation: Optimisation
    tuned: bool
    batch_norm: str
    batch_size: int
    seed: int
    precision: str = "float32"
    still: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "optimisation": self.optimisation.facts()}


@dataclass(frozen=True, eq=False)
class Trained:
    """What one training came to.

    Attributes:
        val: First metric on the images held out; None where nothing was trained, and so nothing is chosen.
        test: Metrics on test.
        answers: To the test images, in their order, where the task keeps them; else None.
        facts: ``wall_s``, ``loss``, and what else is told.
        learner: The network itself; None where it was read back.
    """

    val: float | None
    test: Mapping[str, Score]
    answers: Values | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    learner: Headed | None = None


def finetune(
    backbone: Backbone, data: Data, one: Finetuning, folder: Path | None = None, keep: Sequence[int] = ()
) -> Trained:
    """Train a head, and the backbone below it if it is to be tuned, and score it on test.

    Where the backbone is frozen and the task's head learns nothing from its features, nothing is trained.

    Args:
        backbone: Left as it is.
        data: At its input size.
        one: What is trained, and how.
        folder: Holds snapshot, curves and kept weights; None keeps nothing.
        keep: Steps after which all weights are kept, in the file of ``weights_file``.

    Raises:
        InputError: If the backbone cannot be read for the task, or batch norm cannot be trained.
        TrainingDiverged: If the loss is no number.
    """
    began = time.monotonic()
    reading = read_for(backbone, data.task)
    learner, given = build(backbone, data, one)
    truth = torch.tensor(data.train.truth)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        rows = batch_rows(len(data.train), one.batch_size, step, one.seed)
        return given("train", rows), truth[rows].to(backbone.device)

    def keep_weights(step: int) -> None:
        if folder is not None:
            with replacing(weights_file(folder, step)) as temporary:
                torch.save(learner.state_dict(), temporary)

    seen: list[float] = []

    def val() -> float:
        answers = answers_to(learner, given, data, "val", one.batch_size)
        seen.append(data.task.score(answers, data.val.truth)[first].value)
        return seen[-1]

    facts: dict[str, Any] = {"n_train": len(data.train), "readout": reading.readout}
    if not one.tuned and not data.task.head_learns:
        said = answers_to(learner, given, data, "test", one.batch_size)
        facts["wall_s"] = time.monotonic() - began
        return Trained(None, data.task.score(said, data.test.truth), None, facts, learner)
    first = data.task.metrics[0]
    steps = one.optimisation.steps
    journal = Journal[tuple[Tensor, Tensor]](
        folder,
        keep=keep,
        kept=keep_weights,
        watch=[round(share * steps) for share in WATCHED],
        monitor=lambda: {f"val_{first}": val()},
        seed=one.seed,
        unit=one.batch_size,
        label=f"{backbone.name}, {data.task.name}, seed {one.seed}",
    )
    train(learner, batches, one.optimisation, journal, precision=one.precision)
    facts["wall_s"] = time.monotonic() - began
    said = answers_to(learner, given, data, "test", one.batch_size)
    kept = said if data.task.keeps else None
    # The last step is watched; nothing was seen where an interrupted training had only this left to do.
    last = seen[-1] if seen else val()
    return Trained(last, data.task.score(said, data.test.truth), kept, facts, learner)


def weights_file(folder: Path, step: int) -> Path:
    """Return where the weights after a step are kept."""
    return folder / f"weights-{step:06d}.pt"


def build(backbone: Backbone, data: Data, one: Finetuning) -> tuple[Headed, Given]:
    """Return the network of a training before its first step, and what makes its batches.

    Raises:
        InputError: If the backbone cannot be read for the task, or batch norm cannot be trained.
    """
    reading = read_for(backbone, data.task)
    head = new_head(data, reading, one.seed)
    learner, given = (_tuned if one.tuned else _frozen)(backbone, data, head, reading, one)
    return learner.to(backbone.device), given


def answers_to(learner: Headed, given: Given, data: Data, split: str, batch_size: int) -> Values:
    """Return what a network says of the images of a split, in their order."""
    count = len(getattr(data, split))
    parts = np.array_split(np.arange(count), -(-count // batch_size))
    learner.eval()
    with torch.inference_mode():
        return np.concatenate([data.task.answer(learner.outputs(given(split, rows))) for rows in parts])


def new_head(data: Data, reading: Reading, seed: int) -> torch.nn.Module:
    """Return a head of the task for what is read.

    Raises:
        InputError: If what is read is too small for it, or there are too few training images.
    """
    with seeded("finetuning head", data.task.name, *reading.shape, seed):
        return data.task.head(reading.told, data.train.truth, data.preprocessing.size)


def check_modes(backbone: Backbone, data: Data) -> None:
    """Refuse a backbone that says something else with the statistics of a batch than with its own.

    Representations of the same images in both modes are compared by linear CKA; with images permuted, that
    is chance.

    Args:
        backbone: Left as it is.
        data: Whose training images are looked at.

    Raises:
        InputError: If batch norm is folded, or the two modes are as alike as different images are.
    """
    reading = read_for(backbone, data.task)
    learner = Tuned(backbone, data.task, torch.nn.Identity(), reading, "train").to(backbone.device)
    if len(data.train) < FEWEST_COMPARED or not tracking_layers(learner.module):
        return
    images = images_of(backbone, data.train.pixels[:MOST_COMPARED])
    with torch.no_grad():
        own, batch = (
            in_span(learner.train(mode).deepest(images).flatten(1).double().cpu().numpy())
            for mode in (False, True)
        )
    sides = CrossMoments.of(own, own), CrossMoments.of(batch, batch)
    order = random_stream("modes of batch norm", len(images))
    chance = [
        debiased_cka(CrossMoments.of(own, order.permutation(batch)), *sides) for _ in range(PERMUTATIONS)
    ]
    alike = debiased_cka(CrossMoments.of(own, batch), *sides)
    if not alike > max(chance):
        raise InputError(
            f"{backbone.name} to say in training what it says in use (CKA up to {max(chance):.2f} is chance)",
            f"{alike:.2f}",
            "Its batch norm may hold no statistics: run probekit unfold, or set batch_norm=frozen",
        )


def in_span(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N, ≤ N) rows in axes of their own span, with the inner products of (N, D) rows.

    CKA sees nothing else; moments of all D values of a map would be a matrix of D².
    """
    if rows.shape[1] <= len(rows):
        return rows
    return np.asarray(rows @ np.linalg.qr(rows.T)[0])


def images_of(backbone: Backbone, pixels: NDArray[np.uint8]) -> Tensor:
    """Return (n, 3, S, S) images as a backbone takes them, from (n, S, S, 3) pixels."""
    # Workers share pixels that they may not write to, which torch warns of.
    own = torch.from_numpy(np.require(pixels, requirements="W"))
    return backbone.prepare(own.to(backbone.device), channels_last=True)


def batch_rows(count: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Return the images of a step; an epoch visits every image at most once, in an order of its own."""
    size = min(batch_size, count)
    epoch, place = divmod(step, count // size)
    order = random_stream("finetuning order", seed, epoch).permutation(count)
    return order[place * size : (place + 1) * size]


def _tuned(
    backbone: Backbone, data: Data, head: torch.nn.Module, reading: Reading, one: Finetuning
) -> tuple[Headed, Given]:
    """Return backbone and head, and what makes batches of normalised images."""
    learner = Tuned(backbone, data.task, head, reading, one.batch_norm, one.still)

    def given(split: str, rows: NDArray[np.int64]) -> Tensor:
        return images_of(backbone, getattr(data, split).pixels[rows])

    # The backbone alone: in which order a head computes is its own matter.
    learner.module.to(memory_format=torch.channels_last)
    return learner, given


def _frozen(
    backbone: Backbone, data: Data, head: torch.nn.Module, reading: Reading, one: Finetuning
) -> tuple[Headed, Given]:
    """Return a head alone, and what gives it features: each image passes once through the backbone."""
    key = backbone.weights, reading
    if key not in data.kept:
        data.kept.clear()
        data.kept[key] = {}
    kept = data.kept[key]

    def given(split: str, rows: NDArray[np.int64]) -> Tensor:
        if split not in kept:
            kept[split] = _features(backbone, data, reading, split)
        return torch.from_numpy(kept[split][rows]).to(backbone.device)

    if not reading.rest:
        return Headed(data.task, head), given
    # What the head applies of the backbone is no part of the learner: it stays as it is, in use.
    body = Tuned(backbone, data.task, torch.nn.Identity(), reading, "frozen").to(backbone.device)
    return Headed(data.task, head, body.eval().requires_grad_(False).rest), given


def _features(backbone: Backbone, data: Data, reading: Reading, split: str) -> NDArray[Any]:
    """Return what is read of a split."""
    count = len(data.train) + len(data.val) + len(data.test)
    needed = 4 * count * int(np.prod(reading.shape))
    if needed > MOST_BYTES:
        raise InputError(
            f"features of at most {MOST_BYTES / 1e9:.1f} GB of a frozen backbone", f"{needed / 1e9:.1f} GB",
            "Lower the input size, use fewer images, or tune the backbone",
        )  # fmt: skip
    learner = Tuned(backbone, data.task, torch.nn.Identity(), reading, "frozen").to(backbone.device).eval()
    part: Part = getattr(data, split)
    parts = np.array_split(part.pixels, -(-len(part) // BATCH_SIZE))
    with torch.inference_mode():
        return np.concatenate(
            [learner.represent(images_of(backbone, one)).float().cpu().numpy() for one in parts]
        )
