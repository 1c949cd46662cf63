"""The verb ``probe_boxes``: what and where, read inside boxes at every tap, without a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.backbones.spec import ModelSpec
from probekit.data.images import ImageSet
from probekit.data.kept import kept_pixels
from probekit.data.proposals import IOU_BINS, draw_proposals
from probekit.data.transforms import Preprocessing
from probekit.data.whole import show_whole, uncropped
from probekit.errors import DataError, InputError, near_names
from probekit.features.comparison import Comparison, each, stored_settings
from probekit.features.streaming import BATCH_SIZE
from probekit.probes.protocol import PENALTIES, Protocol, assign_roles
from probekit.results.table import ResultTable

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.features.features import Features
    from probekit.probes.questions import Regions

# Changes whenever a stored cell would no longer hold what the code computes.
CELL_FORMAT = 1
QUESTIONS = ("what", "where", "offset")


def probe_boxes(
    models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone],
    data: str | ImageSet | Sequence[str | ImageSet],
    *,
    taps: str | Sequence[str] = "stages",
    target: str | None = None,
    questions: str | Sequence[str] = QUESTIONS,
    boxes: int = 2000,
    grid: int = 3,
    random: int = 3,
    penalties: Sequence[float] = PENALTIES,
    val_fraction: float = 0.2,
    permutations: int = 20,
    bootstrap_draws: int = 2000,
    gap: float = 1e-4,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> ResultTable:
    """Ask every tap, inside boxes, what is there and where it is: detection without a detector.

    Images are shown whole. Each true box gives six regions: itself, and one for each of five bins of the IoU
    with it, shifted and scaled at random. RoIAlign reads every tap inside every region; linear probes answer:

    - ``what``: the class of the object, from its true box;
    - ``where``: the bin of the IoU of a region with its box, whatever the class;
    - ``offset``: how a region of IoU 0.5 or more must be moved and scaled to become its box.

    Splits are by image. Penalties are chosen on val, test is scored once, intervals draw whole test images,
    and every model is compared with random draws of its architecture. What is finished is kept.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded.
        data: One or several data sets with boxes, in the grammar of ``open_images`` or opened.
        taps: Paths, globs or presets of ``resolve_taps``, of maps or patches, without readouts.
        target: Name of the boxes; None takes the first of the kind ``boxes``.
        questions: Among ``what``, ``where``, ``offset``.
        boxes: Most boxes of a data set that are read, drawn from all.
        grid: Places a side at which each region is read: D = channels · grid².
        random: Random draws of each architecture as controls (``random@0`` …); 0 leaves them out.
        penalties: Candidates for ½·penalty·‖W‖².
        val_fraction: Share of the training images to choose on where there is no val split.
        permutations: Fits to permuted answers behind each null.
        bootstrap_draws: Resamples of the test images behind each interval.
        gap: Largest relative objective gap of a fitted classifier.
        seed: Fixes boxes, regions, splits, permutations and resamples.
        batch_size: Images a forward pass.
        device: Where backbones run; None chooses.
        store: Folder or URL that keeps features and finished cells; None takes the user's cache folder.
        jobs: Parallel workers for the cells (one model, data set and tap each).

    Returns:
        One table: ``what_accuracy``, ``what_balanced_accuracy``, ``where_accuracy``, ``offset_r2`` (mean of
        the four components) and ``offset_component_r2`` of each. ``n`` counts test images, ``params``
        regions; provenance counts the boxes left out, under ``boxes``. Attached: truth and answer by region.

    Raises:
        DataError: If a split has no box, or boxes are all of one class and ``what`` is asked.
        TapError: If a tap has no positions.
        ProbekitError: If something else cannot be used; all before the first image goes through a backbone.
    """
    settings = stored_settings(locals())
    asked = _check_questions(questions)
    for name, value in (("boxes", boxes), ("grid", grid), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} of at least 1", str(value), "Raise it")
    protocol = Protocol(
        tuple(float(one) for one in penalties),
        val_fraction,
        permutations,
        bootstrap_draws,
        neighbours=0,
        shots=(),
        gap=gap,
        seed=seed,
    )
    comparison = Comparison.open("boxes", models, data, random=random, store=store)
    targets = {images.name: find_boxes(images, target) for images in comparison.sets}
    # Taps are checked, and boxes drawn, before anything is read.
    opened = _open_models(comparison, taps, device)
    drawn = {
        images.name: _draw(images, targets[images.name], boxes, asked, protocol) for images in comparison.sets
    }
    tables, features = [], {}
    for images in comparison.sets:
        few, regions = drawn[images.name]
        found = features[images.name] = _read(
            comparison, opened, few, regions, taps, grid=grid, batch_size=batch_size, device=device
        )
        identity = [CELL_FORMAT, list(asked), protocol.facts(), targets[images.name]]
        tables += comparison.run_taps(
            images,
            found,
            partial(_probe, regions=regions, questions=asked, protocol=protocol),
            identity,
            kind="boxes",
            seed=seed,
            jobs=jobs,
        )
    joined = comparison.join(tables, settings, features)
    known = {name: regions.facts() for name, (_, regions) in drawn.items()}
    return ResultTable(joined.frame, {**joined.provenance, "boxes": known}, joined.attachments)


def find_boxes(images: ImageSet, target: str | None) -> str:
    """Return the name of the boxes of a data set.

    Args:
        images: The data set.
        target: Its name; None takes the first.

    Raises:
        InputError: If there are none, or none of that name.
    """
    known = [name for name, one in images.targets.items() if one.kind == "boxes"]
    if not known:
        raise InputError(
            f"boxes in {images.name}",
            ", ".join(f"{name} ({one.kind})" for name, one in images.targets.items()) or "no target",
            "Open annotations with boxes, such as annotations=boxes",
        )
    if target is not None and target not in known:
        near = near_names(target, known)
        raise InputError(f"boxes of {images.name}", repr(target), f"The nearest are {near}")
    return known[0] if target is None else target


def count_regions(images: ImageSet, target: str | None, most: int) -> int:
    """Return how many regions are read of a data set, before any image is looked at.

    Args:
        images: The data set.
        target: Name of its boxes; None takes the first.
        most: Most boxes that are read.

    Raises:
        InputError: If there are no such boxes.
    """
    values = images.targets[find_boxes(images, target)].values
    return (1 + len(IOU_BINS)) * min(most, int(sum((~one.crowd).sum() for one in values)))


def _check_questions(questions: str | Sequence[str]) -> tuple[str, ...]:
    asked = each(questions)
    for one in asked or [""]:
        if one not in QUESTIONS:
            raise InputError(
                f"questions among {', '.join(QUESTIONS)}", repr(one), "Leave them out to ask all"
            )
    return tuple(dict.fromkeys(asked))


def _draw(
    images: ImageSet, target: str, most: int, questions: Sequence[str], protocol: Protocol
) -> tuple[ImageSet, Regions]:
    """Return the images whose boxes are read, and their regions.

    Raises:
        DataError: If a split has no box, or there is one class where two are needed.
    """
    from probekit.probes.questions import Regions

    few, proposals = draw_proposals(images, target, most, protocol.seed)
    named = images.targets[target].classes
    # Classes without a box would lower what chance is said to be.
    there, places = np.unique(proposals.classes, return_inverse=True)
    classes = tuple(named[place] for place in there)
    if len(classes) < 2 and "what" in questions:
        raise DataError(
            f"boxes of at least two classes in {target} of {images.name}",
            f"{classes[0]} alone",
            "Leave the question `what` out",
        )
    for role in ("train", "test"):
        if not (few.splits == role).any():
            raise DataError(
                f"boxes in the split {role!r} of {images.name}",
                "none among those drawn",
                "Draw more `boxes`, or annotate images of that split",
            )
    # Classes of images, if there are any, have nothing to do with those of boxes.
    roles = assign_roles(replace(few, targets={}), protocol)
    return few, Regions(replace(proposals, classes=places), roles, classes, target)


def _open_models(
    comparison: Comparison, taps: str | Sequence[str], device: str | None
) -> Mapping[str, Backbone]:
    """Open the models asked for; their random draws have the same taps, and are opened when it is their turn.

    Raises:
        TapError: If a tap has no positions.
    """
    from probekit.features.extraction import open_model
    from probekit.features.regions import resolve_places

    asked = [one for one in comparison.entries if one.control_of is None]
    opened = {one.name: open_model(one.model, device) for one in asked}
    for backbone in opened.values():
        resolve_places(backbone, taps)
    return opened


def _read(
    comparison: Comparison,
    opened: Mapping[str, Backbone],
    images: ImageSet,
    regions: Regions,
    taps: str | Sequence[str],
    *,
    grid: int,
    batch_size: int,
    device: str | None,
) -> dict[str, Mapping[str, Features]]:
    """Return the features of every model inside the regions of a data set: model name → tap → features."""
    from probekit.features.extraction import open_model
    from probekit.features.regions import read_regions, resolve_places
    from probekit.features.statistics import recalibrated

    owners = regions.proposals.images
    found: dict[str, Mapping[str, Features]] = {}
    with ExitStack() as stack:
        # Models that take the same pixels share them: they are decoded for the first of them.
        shown: dict[Preprocessing, ImageSet] = {}
        for entry in comparison.entries:
            backbone = opened.get(entry.name) or open_model(entry.model, device)
            seen = uncropped(backbone.preprocessing)
            backbone = replace(backbone, preprocessing=seen)
            if seen not in shown:
                whole = show_whole(images, seen)
                shown[seen] = stack.enter_context(kept_pixels(whole, comparison.folder / "pixels"))
            if entry.control_of is not None:
                backbone = recalibrated(backbone, shown[seen])
            found[entry.name] = read_regions(
                backbone,
                shown[seen],
                resolve_places(backbone, taps),
                regions.proposals,
                splits=images.splits[owners],
                ids=images.ids[owners],
                grid=grid,
                store=comparison.folder,
                batch_size=batch_size,
            )
    return found


def _probe(features: Features, **given: Any) -> ResultTable:  # noqa: ANN401 - those of ``probe_regions``
    # What solves probes takes seconds to import, and is not needed where every cell is finished.
    from probekit.probes.questions import probe_regions

    return probe_regions(features, **given)
