"""The verbs ``transfer`` and ``reset_curves``: a task learnt from a backbone, whole and in part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.backbones.spec import ModelSpec
from probekit.compute import software_versions
from probekit.data.images import ImageSet
from probekit.data.readers import open_images
from probekit.errors import InputError
from probekit.features.comparison import data_facts, each, list_entries, reference, stored_settings
from probekit.files import cache_folder, digest_json
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable
from probekit.version import __version__

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone

RATES = (3e-4, 1e-3, 3e-3)


def transfer(
    models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone],
    data: str | ImageSet,
    *,
    task: str = "classification",
    target: str | None = None,
    tuned: bool = True,
    batch_norm: str = "train",
    trials: int = 3,
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
    """Learn a task from whole backbones and from scratch: what is pretraining worth for it?

    It is ``reset_curves`` without curves: see there for what is trained, how learning rates are chosen, and
    what the rows say.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded.
        data: A data set with train and test images, in the grammar of ``open_images`` or opened.
        task: ``classification``; ``episodes``, few-shot recognition with a frozen backbone, or
            ``episodes/novel``, which trains on half of the classes; ``landmarks``; ``segmentation``, also
            with ``/one-layer`` or ``/deeplabv3``; ``detection``, also with ``/c4`` or ``/c4-norm`` (Faster
            R-CNN).
        target: Name of its target; None takes the first of the kind that the task needs.
        tuned: Whether the backbone is trained with its head; else the head alone, on its features.
        batch_norm: While a backbone is trained, ``train`` takes the statistics of each batch, ``frozen``
            keeps those it has.
        trials: Trainings of every state, which differ in the draw of scratch, the head and the order of the
            images.
        steps: Optimiser steps of a training.
        batch_size: Images a step.
        lr: Learning rates to choose from, on val, in the first trial of every state.
        optimiser: ``adamw`` or ``sgd``.
        weight_decay: Of matrices and kernels.
        warmup: Share of the steps over which the learning rate rises.
        fraction: Share of the training images.
        precision: ``float32``, or ``bfloat16`` in automatic mixed precision.
        seed: Of the first trial.
        device: Where it runs; None takes the best there is.
        store: Folder that keeps finished trainings; None takes the user's cache.
        jobs: Parallel workers.

    Returns:
        A table as ``reset_curves`` returns it.

    Raises:
        InputError: If models, data, task or a setting cannot be used, before anything is trained.
    """
    settings = stored_settings(locals()) | {"curves": [], "modes": [], "by": "level", "norms": "reset"}
    return _run("transfer", settings, models, data, store, device, jobs)


def reset_curves(
    models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone],
    data: str | ImageSet,
    *,
    task: str = "classification",
    target: str | None = None,
    curves: Sequence[str] = ("prefix", "suffix"),
    modes: Sequence[str] = ("random", "stats"),
    by: str = "level",
    norms: str = "reset",
    tuned: bool = True,
    batch_norm: str = "train",
    trials: int = 3,
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
    """Keep some blocks of a backbone, replace the others, learn a task, compare: which level carries it?

    Every state is trained from its weights with a new head on the deepest block, with the learning rate that
    was best on val in its first trial. Scratch, with which gains are compared, is the state of mode
    ``random`` with nothing kept, in the same trial. Finished trainings are kept: an interrupted call goes on.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded.
        data: A data set with train and test images, in the grammar of ``open_images`` or opened.
        task: ``classification``; ``episodes``, few-shot recognition with a frozen backbone, or
            ``episodes/novel``, which trains on half of the classes; ``landmarks``; ``segmentation``, also
            with ``/one-layer`` or ``/deeplabv3``; ``detection``, also with ``/c4`` or ``/c4-norm`` (Faster
            R-CNN).
        target: Name of its target; None takes the first of the kind that the task needs.
        curves: Among ``prefix`` (the first n are kept), ``suffix`` (the last n), ``leave-one-out``,
            ``keep-one``.
        modes: What replaced blocks become, of ``reset``: ``random``, ``arch_init``, ``stats``, ``shuffled``.
        by: What is kept or replaced as a whole: ``level``, ``stage`` or ``block``.
        norms: Of ``reset``: norm layers of replaced blocks are ``reset`` as well, or ``keep``.
        tuned: Whether the backbone is trained with its head; else the head alone, on its features.
        batch_norm: While a backbone is trained, ``train`` takes the statistics of each batch, ``frozen``
            keeps those it has.
        trials: Trainings of every state, which differ in the draw of what is replaced, the head and the order
            of the images.
        steps: Optimiser steps of a training.
        batch_size: Images a step.
        lr: Learning rates to choose from, on val, in the first trial of every state.
        optimiser: ``adamw`` or ``sgd``.
        weight_decay: Of matrices and kernels.
        warmup: Share of the steps over which the learning rate rises.
        fraction: Share of the training images.
        precision: ``float32``, or ``bfloat16`` in automatic mixed precision.
        seed: Of the first trial.
        device: Where it runs; None takes the best there is.
        store: Folder that keeps finished trainings; None takes the user's cache.
        jobs: Parallel workers.

    Returns:
        A table with the task's metrics of every state and trial, interval over test images (of episodes: over
        classes), null that of an answer that looks at no image; and, over trials, ``gain``,
        ``recovered_fraction``, ``high_level_share``, ``depth_90`` and ``reuse_share``. What is kept, mode,
        the learning rate and whether it lies at the edge of its grid stand in ``params``.

    Raises:
        InputError: If models, data, task or a setting cannot be used, before anything is trained.
    """
    return _run("reset", stored_settings(locals()), models, data, store, device, jobs)


def _run(
    verb: str,
    settings: dict[str, Any],
    models: Any,  # noqa: ANN401 - as callers give them
    data: str | ImageSet,
    store: str | Path | None,
    device: str | None,
    jobs: int,
) -> ResultTable:
    from probekit.finetuning.cells import Grid

    began = time.monotonic()
    images = open_images(data) if isinstance(data, str) else data
    entries = list_entries(models, 0)
    folder = Path(store) if store is not None else cache_folder()
    for name, least in (("trials", 1), ("steps", 1), ("batch_size", 2)):
        if settings[name] < least:
            raise InputError(f"{name} of at least {least}", str(settings[name]), "Raise it")
    if not each(settings["lr"]):
        raise InputError("at least one learning rate", "none", "0.001 is common")
    opened: dict[Any, Any] = {}
    grids = [Grid.open(entry.model, images, settings, folder, device, opened) for entry in entries]
    for grid in grids:
        grid.run(jobs)
    frame = rows_to_frame([row for grid in grids for row in grid.rows()])
    told = {
        "models": [reference(one) for one in each(models)],
        "data": reference(data),
        **settings,
    }
    known = {grid.backbone.name: grid.facts() for grid in grids}
    made_by = {"probekit": __version__, "settings": told, "models": known, "versions": software_versions()}
    run_id = digest_json(made_by)[:12]
    provenance = {
        "format": 1,
        "analysis": verb,
        "run_id": run_id,
        "seed": settings["seed"],
        **made_by,
        "data": {images.name: data_facts(images)},
        "level_shares": {name: one["level_shares"] for name, one in known.items()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": round(time.monotonic() - began, 2),
    }
    attachments = {key: value for grid in grids for key, value in grid.attachments().items()}
    return ResultTable(frame.assign(analysis=verb, run_id=run_id), provenance, attachments)
