"""The verb ``diagnose``: why are the detections of a backbone, or of any detector, wrong?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probekit.data.coco_results import read_results
from probekit.data.images import ImageSet
from probekit.data.readers import open_images
from probekit.errors import DataError, InputError
from probekit.features.comparison import each, reference, stored_settings
from probekit.files import digest_file, safe_name
from probekit.finetuning.sweep import RATES, Models, fold_warnings, given_words, joined, open_trainings
from probekit.functional.detection import IntArray, Marks
from probekit.remote import store_folder
from probekit.results.table import ResultTable
from probekit.tasks.choosing import find_task
from probekit.tasks.detection import Detection
from probekit.tasks.diagnosis import Detected, measure_errors, similar_groups

Row = dict[str, Any]


def diagnose(
    models: Models | None = None,
    data: str | ImageSet | None = None,
    *,
    arms: Mapping[str, Models] | None = None,
    detections: str | Path | None = None,
    task: str = Detection.name,
    target: str | None = None,
    similar: Sequence[str] = (),
    permutations: int = 20,
    tuned: bool = True,
    batch_norm: str = "train",
    trials: int = 3,
    folds: int = 0,
    steps: int = 500,
    batch_size: int = 64,
    lr: Sequence[float] = RATES,
    optimiser: str = "adamw",
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    fraction: float = 1.0,
    precision: str = "float32",
    seed: int = 0,
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> ResultTable:
    """Say why detections are wrong: what each type of error costs, and what the best boxes are.

    With ``models``, detectors are trained from whole backbones and from scratch as by ``transfer`` with the
    task, or found again where that was done before. With ``detections``, those of any other
    detector are judged in the pixels of the images, and nothing is trained.

    Costs are TIDE's: the rise of AP50 if errors of one type alone were put right. Shares are Hoiem's: what
    the best N boxes of each class are, N being its true boxes. Repairs say how much of the overlap lost by
    misplaced boxes among these comes back when centre, scale or aspect ratio alone is put right. See
    ``functional.error_weights``, ``hoiem_fractions`` and ``localisation_split``.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded.
        data: A data set with boxes, and train and test images.
        arms: As of ``transfer``.
        detections: In place of models, a JSON file of detections in COCO's results format, judged on the test
            images: see ``data.coco_results.read_results``.
        task: ``detection``, ``detection/c4`` or ``detection/c4-norm``.
        target: Name of its boxes; None takes the first.
        similar: Groups of similar classes, each names joined by ``+``; without, that share is left empty.
        permutations: Ways to give images the boxes of others, for nulls.
        tuned: As of ``transfer``, like all that follow.
        batch_norm: ``train`` or ``frozen``.
        trials: Trainings of every state.
        folds: Parts of a cross-validation, for small data sets; 0 keeps the splits.
        steps: Optimiser steps of a training.
        batch_size: Images a step.
        lr: Learning rates to choose from, on val.
        optimiser: ``adamw`` or ``sgd``.
        weight_decay: Of matrices and kernels.
        warmup: Share of the steps over which the learning rate rises.
        fraction: Share of the training images.
        precision: ``float32`` or ``bfloat16``.
        seed: Of the first trial, of folds, of groups of images and of nulls.
        device: Where it runs.
        store: Folder or URL that keeps finished trainings; None takes the user's cache.
        jobs: Parallel workers.

    Returns:
        A table: of every model and state the mean over trials, or folds, with its t-interval, then every
        training with a jackknife over groups of images. Attached are a row for every detection and missed box
        (``detections/…``), for every class (``classes/…``), and a histogram of IoU (``ious/…``).

    Raises:
        InputError: If not either models or detections are given, or a setting cannot be used.
        DataError: If data or detections cannot be used.
    """
    settings = stored_settings(locals())
    settings["detections"] = str(detections) if detections is not None else None
    if (models is None and not arms) == (detections is None) or data is None:
        raise InputError(
            "data, and either models or detections",
            "both" if models is not None and data is not None else "less",
            "Write probekit diagnose -m NAME=ARCH:CHECKPOINT -d DATA, or --detections results.json -d DATA",
        )
    if permutations < 0:
        raise InputError("permutations of at least 0", str(permutations), "20 is the default")
    began = time.monotonic()
    folder = store_folder(store)
    images = open_images(data) if isinstance(data, str) else data
    learnt = find_task(task, images, target)
    if not isinstance(learnt, Detection):
        raise InputError("detection, detection/c4 or detection/c4-norm", repr(task), "Choose one")
    groups = similar_groups(each(similar), learnt.classes)
    if detections is not None:
        return _of_file(Path(detections), images, learnt.target, groups, settings, reference(data), began)
    settings |= {"curves": [], "modes": [], "by": "level", "norms": "reset"}
    from probekit.finetuning.diagnosed import diagnosed
    from probekit.finetuning.rows import grid_facts

    models = [] if models is None else models
    grids_of = open_trainings(models, arms, images, settings, folder, device)
    for grid in (grid for grids in grids_of for grid in grids):
        grid.run(jobs)
    rows: list[Row] = []
    attachments: dict[str, Any] = {}
    for grids in grids_of:
        own, frames = diagnosed(grids, groups, settings, jobs)
        rows += own
        attachments |= frames
    return joined(
        "diagnose",
        settings,
        rows,
        images,
        given=given_words(models, arms, data),
        known={grids[0].name: grid_facts(grids[0]) for grids in grids_of},
        attachments=attachments,
        warnings=fold_warnings(images, folds),
        began=began,
    )


def _of_file(
    path: Path,
    images: ImageSet,
    target: str,
    groups: IntArray | None,
    settings: Mapping[str, Any],
    data: Any,  # noqa: ANN401 - words, or a live object's reference
    began: float,
) -> ResultTable:
    """Judge the detections of a file on the test images."""
    rows = images.indices("test")
    truth = _true_marks(images, target, rows)
    said, problems = read_results(path, images, target, rows)
    classes = images.targets[target].classes
    found = Detected(said, truth, images.ids[rows], classes, groups)
    own, frames = measure_errors(found, settings["permutations"], settings["seed"])
    name, digest = path.stem, digest_file(path)
    told = {
        "model": name,
        "weights": digest,
        "data": images.name,
        "split": "test",
        "target": target,
        "n_classes": len(classes),
        "params": {"task": Detection.name, "detections": path.name},
    }
    used = ("detections", "target", "similar", "permutations", "seed")
    return joined(
        "diagnose",
        {key: settings[key] for key in used},
        [told | row for row in own],
        images,
        given={"data": data},
        known={name: {"checkpoint": path.name, "weights": digest, "random_init": False, "control_of": None}},
        attachments={f"{kind}/{safe_name(name)}/all.parquet": frame for kind, frame in frames.items()},
        warnings=[f"{path.name}: {one}." for one in problems],
        began=began,
    )


def _true_marks(images: ImageSet, target: str, rows: IntArray) -> Marks:
    """Return the true boxes of some images, in their pixels."""
    boxes = [images.targets[target].values[row] for row in rows]
    numbers = np.repeat(np.arange(len(rows)), [len(one) for one in boxes])
    if not len(numbers) or np.concatenate([one.crowd for one in boxes]).all():
        raise DataError(
            f"boxes in {target} that count, on test images of {images.name}",
            f"none in {len(rows)} images",
            "Open other data, or write split= or role=test after its words",
        )
    labels, corners, crowd = (
        np.concatenate([getattr(one, field) for one in boxes]) for field in ("classes", "corners", "crowd")
    )
    return Marks.of(numbers, labels, corners, crowd=crowd)
