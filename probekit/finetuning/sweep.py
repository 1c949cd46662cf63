"""The verbs ``transfer`` and ``reset_curves``: a task learnt from a backbone, whole and in part."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from probekit.backbones.spec import ModelSpec
from probekit.compute import software_versions
from probekit.data.images import ImageSet
from probekit.data.readers import open_images
from probekit.errors import InputError
from probekit.features.comparison import data_facts, each, list_entries, reference, stored_settings
from probekit.files import digest_json
from probekit.finetuning.folds import fold_images
from probekit.remote import store_folder
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable
from probekit.version import __version__

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.finetuning.cells import Grid

RATES = (3e-4, 1e-3, 3e-3)
# The name of a backbone alone: its module loads torch.
Models: TypeAlias = Union[str, ModelSpec, "Backbone", Sequence[Union[str, ModelSpec, "Backbone"]]]


def transfer(
    models: Models,
    data: str | ImageSet,
    *,
    arms: Mapping[str, Models] | None = None,
    task: str = "classification",
    target: str | None = None,
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
    finished: str | Path | None = None,
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> ResultTable:
    """Learn a task from whole backbones and from scratch: what is pretraining worth for it?

    It is ``reset_curves`` without curves: see there for what is trained, how learning rates are chosen, and
    what the rows say.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded; none
            where ``arms`` are given.
        data: A data set with train and test images, in the grammar of ``open_images`` or opened.
        arms: Name → models that differ in nothing but the seed of their pretraining. Each is trained in one
            trial, of its place; learning rates are chosen on the first, and intervals are over them.
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
        folds: Parts of a cross-validation, for small data sets: see ``reset_curves``.
        steps: Optimiser steps of a training.
        batch_size: Images a step.
        lr: Learning rates to choose from, on val, in the first trial of every state.
        optimiser: ``adamw`` or ``sgd``.
        weight_decay: Of matrices and kernels.
        warmup: Share of the steps over which the learning rate rises.
        fraction: Share of the training images.
        precision: ``float32``, or ``bfloat16`` in automatic mixed precision.
        seed: Of the first trial.
        finished: Folder of a table of this verb: trainings that it holds are not run again. So another
            machine goes on where one stopped. Not of detection, and not those that curves go on from: a table
            holds no detections and no weights.
        device: Where it runs; None takes the best there is.
        store: Folder or URL that keeps finished trainings; None takes the user's cache.
        jobs: Parallel workers.

    Returns:
        A table as ``reset_curves`` returns it.

    Raises:
        InputError: If models, data, task or a setting cannot be used, before anything is trained.
    """
    settings = stored_settings(locals()) | {"curves": [], "modes": [], "by": "level", "norms": "reset"}
    return _run("transfer", settings, models, arms, data, store, device, jobs)


def reset_curves(
    models: Models,
    data: str | ImageSet,
    *,
    arms: Mapping[str, Models] | None = None,
    task: str = "classification",
    target: str | None = None,
    curves: Sequence[str] = ("prefix", "suffix"),
    modes: Sequence[str] = ("random", "stats"),
    by: str = "level",
    norms: str = "reset",
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
    finished: str | Path | None = None,
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> ResultTable:
    """Keep some blocks of a backbone, replace the others, learn a task, compare: which level carries it?

    Every state is trained from its weights with a new head on the deepest block, with the learning rate that
    was best on val in its first trial. Scratch, with which gains are compared, is the state of mode
    ``random`` with nothing kept, in the same trial. Finished trainings are kept: an interrupted call goes on.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded; none
            where ``arms`` are given.
        data: A data set with train and test images, in the grammar of ``open_images`` or opened.
        arms: Name → models that differ in nothing but the seed of their pretraining. Each is trained in one
            trial, of its place; learning rates are chosen on the first, and intervals are over them.
        task: ``classification``; ``episodes``, few-shot recognition with a frozen backbone, or
            ``episodes/novel``, which trains on half of the classes; ``landmarks``; ``segmentation``, also
            with ``/one-layer`` or ``/deeplabv3``; ``detection``, also with ``/c4`` or ``/c4-norm`` (Faster
            R-CNN).
        target: Name of its target; None takes the first of the kind that the task needs.
        curves: Among ``prefix`` (the first n are kept), ``suffix`` (the last n), ``leave-one-out``,
            ``keep-one``; ``selffer``, the first n of the network trained from scratch on this task are kept
            as they are and the others drawn and trained again; ``rewind``, blocks of the finetuned backbone
            are put back to what they were before, or at an earlier step, or drawn, without further training.
        modes: What replaced blocks become: ``random``, ``arch_init``, ``stats``, ``shuffled``, of ``reset``;
            or ``initial`` and ``checkpoint(STEP)``, what they were at step 0 or a later step of the same
            pretraining, where that is known.
        by: What is kept or replaced as a whole: ``level``, ``stage`` or ``block``.
        norms: Of ``reset``: norm layers of replaced blocks are ``reset`` as well, or ``keep``.
        tuned: Whether the backbone is trained with its head; else the head alone, on its features.
        batch_norm: While a backbone is trained, ``train`` takes the statistics of each batch, ``frozen``
            keeps those it has.
        trials: Trainings of every state, which differ in the draw of what is replaced, the head and the order
            of the images.
        folds: Parts of a cross-validation, for small data sets: all images are divided anew, those of the
            test split too, each part is tested by trainings on the others, with a learning rate of its own.
            Rows are then of folds and trials, followed by the mean of the folds' metrics with its t-interval
            over folds, which is rather too narrow: folds share most of their training images. 0 keeps the
            splits; ``split=`` in the words of the data leaves images out of all folds.
        steps: Optimiser steps of a training.
        batch_size: Images a step.
        lr: Learning rates to choose from, on val, in the first trial of every state.
        optimiser: ``adamw`` or ``sgd``.
        weight_decay: Of matrices and kernels.
        warmup: Share of the steps over which the learning rate rises.
        fraction: Share of the training images.
        precision: ``float32``, or ``bfloat16`` in automatic mixed precision.
        seed: Of the first trial.
        finished: Folder of a table of this verb: trainings that it holds are not run again. So another
            machine goes on where one stopped. Not of detection, and not those that curves go on from: a table
            holds no detections and no weights.
        device: Where it runs; None takes the best there is.
        store: Folder or URL that keeps finished trainings; None takes the user's cache.
        jobs: Parallel workers.

    Returns:
        A table with the task's metrics of every state and trial, interval over test images (of episodes: over
        classes), null that of an answer that looks at no image; and, over trials, ``gain``,
        ``recovered_fraction``, ``high_level_share``, ``depth_90``, ``reuse_share``, ``co_adaptation``,
        ``steps_to_90`` (of the whole backbone's way from the null, on val), ``distance_moved`` and
        ``cka_kept`` of each group, and ``rewind_drop``. What is kept, the mode, the learning rate and whether
        it lies at the edge of its grid stand in ``params``. Intervals over trials speak of this checkpoint
        only. Attached are the curves, and all trainings, which ``finished`` takes.

    Raises:
        InputError: If models, data, task or a setting cannot be used, before anything is trained.
    """
    return _run("reset", stored_settings(locals()), models, arms, data, store, device, jobs)


def open_trainings(
    models: Models,
    arms: Mapping[str, Models] | None,
    images: ImageSet,
    settings: Mapping[str, Any],
    folder: Path,
    device: str | None,
    finished: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[list[Grid]]:
    """Return the trainings of every model and arm, one grid a fold, and refuse what cannot be trained.

    Args:
        models: As callers of ``transfer`` give them.
        arms: As of ``transfer``.
        images: The data set.
        settings: As those of ``reset_curves``.
        folder: The store.
        device: As of ``transfer``.
        finished: Key → what a training came to on another machine.

    Raises:
        InputError: If models, data, task or a setting cannot be used.
    """
    from probekit.finetuning.cells import Grid

    members = _members(models, arms or {})
    _check(settings, arms or {})
    divided = fold_images(images, settings["folds"], settings["seed"])
    numbers = range(len(divided)) if settings["folds"] else [None]
    opened: dict[Any, Any] = {}
    return [
        [
            Grid.open(name, own, one, settings, folder, device, opened, finished or {}, fold)
            for fold, one in zip(numbers, divided, strict=True)
        ]
        for name, own in members
    ]


def joined(
    verb: str,
    settings: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    images: ImageSet,
    *,
    given: Mapping[str, Any],
    known: Mapping[str, Mapping[str, Any]],
    attachments: Mapping[str, Any],
    warnings: Sequence[str] = (),
    began: float,
) -> ResultTable:
    """Return the table of a verb, with what made it.

    Args:
        verb: As in the column ``analysis``.
        settings: Of the call.
        rows: Of the table.
        images: The data set.
        given: ``models`` and ``data``, as the caller wrote them.
        known: Model → facts.
        attachments: Of the table.
        warnings: What a reader should know.
        began: When the call began, of ``time.monotonic``.
    """
    made_by = {
        "probekit": __version__,
        "settings": {**settings, **given},
        "models": known,
        "versions": software_versions(),
    }
    run_id = digest_json(made_by)[:12]
    provenance = {
        "format": 1,
        "analysis": verb,
        "run_id": run_id,
        "seed": settings["seed"],
        **made_by,
        "data": {images.name: data_facts(images)},
        "level_shares": {name: one.get("level_shares", {}) for name, one in known.items()},
        "warnings": list(warnings),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": round(time.monotonic() - began, 2),
    }
    frame = rows_to_frame(rows).assign(analysis=verb, run_id=run_id)
    return ResultTable(frame, provenance, dict(attachments))


def fold_warnings(images: ImageSet, folds: int) -> list[str]:
    """Return what a reader should know of folds."""
    if not folds:
        return []
    tested = len(images.indices("test"))
    also = f", the {tested} of its test split too: nothing is held out beside them" if tested else ""
    return [f"{folds} folds over all {len(images)} images of {images.name}{also}."]


def _run(
    verb: str,
    settings: dict[str, Any],
    models: Models,
    arms: Mapping[str, Models] | None,
    data: str | ImageSet,
    store: str | Path | None,
    device: str | None,
    jobs: int,
) -> ResultTable:
    from probekit.finetuning.rows import grid_attachments, grid_facts, state_rows

    began = time.monotonic()
    folder = store_folder(store)
    images = open_images(data) if isinstance(data, str) else data
    known = _finished(settings.pop("finished"))
    grids_of = open_trainings(models, arms, images, settings, folder, device, known)
    for grid in (grid for grids in grids_of for grid in grids):
        grid.run(jobs)
    return joined(
        verb,
        settings,
        [row for grids in grids_of for row in state_rows(grids)],
        images,
        given=given_words(models, arms, data),
        known={grids[0].name: grid_facts(grids[0]) for grids in grids_of},
        attachments={
            key: one for grids in grids_of for grid in grids for key, one in grid_attachments(grid).items()
        },
        warnings=fold_warnings(images, settings["folds"]),
        began=began,
    )


def given_words(models: Models, arms: Mapping[str, Models] | None, data: str | ImageSet) -> dict[str, Any]:
    """Return models, arms and data as the caller wrote them."""
    return {
        "models": [reference(one) for one in each(models)],
        "arms": {name: [reference(one) for one in each(own)] for name, own in (arms or {}).items()},
        "data": reference(data),
    }


def _members(models: Models, arms: Mapping[str, Models]) -> list[tuple[str | None, list[Any]]]:
    """Return each model, and each arm with its models.

    Raises:
        InputError: If there is none, an arm is of fewer than two, or a name is given twice.
    """
    alone = list_entries(models, 0) if each(models) or not arms else []
    found: list[tuple[str | None, list[Any]]] = [(None, [entry.model]) for entry in alone]
    for name, own in arms.items():
        if len(each(own)) < 2:
            raise InputError(f"at least two pretraining seeds in arm {name}", str(len(each(own))), "Add one")
        # Within an arm names do not matter.
        found.append((name, [list_entries(one, 0)[0].model for one in each(own)]))
    names = [entry.name for entry in alone] + list(arms)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError("one name for each model and arm", f"{twice[0]} twice", "Write NAME=ARCH:CHECKPOINT")
    return found


def _check(settings: Mapping[str, Any], arms: Mapping[str, Models]) -> None:
    """Refuse settings that nothing could be trained with."""
    if settings["folds"] and arms:
        raise InputError("folds of single models", f"arm {next(iter(arms))}", "Leave folds or arms out")
    for name, least in (("trials", 1), ("steps", 1), ("batch_size", 2)):
        if settings[name] < least:
            raise InputError(f"{name} of at least {least}", str(settings[name]), "Raise it")
    if not each(settings["lr"]):
        raise InputError("at least one learning rate", "none", "0.001 is common")
    for curve in ("selffer", "rewind"):
        if curve in settings["curves"] and not settings["tuned"]:
            raise InputError(f"a tuned backbone for the curve {curve}", "a frozen one", "Set tuned=True")


def _finished(folder: str | Path | None) -> dict[str, Mapping[str, Any]]:
    """Return key → result of the trainings that a table holds."""
    if folder is None:
        return {}
    table = ResultTable.read(folder)
    cells = [value for key, value in table.attachments.items() if key.startswith("cells/")]
    return {row["key"]: json.loads(row["result"]) for one in cells for _, row in one.iterrows()}
