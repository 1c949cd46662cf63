"""The verb ``measure_geometry``: class geometry and spectra of every tap of every model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.data.images import ImageSet
from probekit.data.targets import GROUP, Target
from probekit.errors import FeatureError, InputError
from probekit.features.comparison import SPLITS, Comparison, common_grid, find_class_target, stored_settings
from probekit.features.streaming import BATCH_SIZE, stream
from probekit.functional.moments import Moments
from probekit.probes.protocol import Protocol, Roles, assign_roles
from probekit.results.table import ResultTable

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.backbones.spec import ModelSpec
    from probekit.features.features import Features

# Changes whenever a stored cell would no longer hold what the code computes.
CELL_FORMAT = 1


def measure_geometry(
    models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone],
    data: str | ImageSet | Sequence[str | ImageSet],
    *,
    taps: str | Sequence[str] = "stages",
    target: str | None = None,
    random: int = 3,
    permutations: int = 20,
    pairs: int = 2000,
    subsample: int = 5000,
    probe: bool = True,
    factors: bool = True,
    seed: int = 0,
    dtype: str = "float32",
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> ResultTable:
    """Measure how classes and images lie in the features of every tap: what varies inside a class?

    Variance inside and between classes (ICC, ω², within/between ratio, class-distance normalised variance and
    its part along the line between classes), cosines, neighbours, neural collapse, spectra, scores that
    foretell transfer, and what is known of continuous targets inside classes; raw and, with ``_l2`` behind
    the metric's name, of features of unit length. Values are debiased; intervals leave out one class at a
    time; nulls permute the labels. What is not defined for the data is empty, and its status says why.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded.
        data: One or several data sets, in the grammar of ``open_images`` or opened. All their images count.
        taps: Paths, globs or presets of ``resolve_taps``.
        target: The class target; None takes the first of each data set.
        random: Random draws of each architecture as controls; 0 leaves them out.
        permutations: Permutations of the labels behind each null.
        pairs: Most pairs of classes of directional variance.
        subsample: Most images of measures that compare every image with every other.
        probe: Whether to fit the probe that NC3 and NC4 compare class means with.
        factors: Whether to measure what is known of continuous targets inside classes.
        seed: Fixes permutations, halves, pairs and subsamples.
        dtype: Storage type of features.
        precision: Of the forward passes.
        batch_size: Images a forward pass.
        device: Where backbones run; None chooses.
        store: Folder or URL that keeps features and finished cells; None takes the user's cache folder.
        jobs: Parallel workers for the cells (one model, data set and tap each).

    Returns:
        One table; ``split`` says whether the images are ones the backbone was trained on.

    Raises:
        ProbekitError: If a model, data set, tap or setting cannot be used; before any image is read.
    """
    settings = stored_settings(locals())
    from probekit.geometry.cell import GeometrySettings

    chosen = GeometrySettings(permutations, pairs, subsample, probe, seed)
    comparison = Comparison.open("geometry", models, data, random=random, store=store)
    names = {images.name: class_target(images, target) for images in comparison.sets}
    roles = {images.name: _roles(images, names[images.name], seed) for images in comparison.sets}
    read: dict[str, Any] = {
        "dtype": dtype,
        "precision": precision,
        "batch_size": batch_size,
        "device": device,
    }
    tables, features = [], {}
    for images in comparison.sets:
        found = features[images.name] = comparison.read(images, taps, **read)
        name, split = names[images.name], SPLITS[images.seen_in_pretraining]
        shared: dict[str, Any] = {
            "name": name,
            "target": images.targets[name],
            "split": split,
            "settings": chosen,
        }
        identity = [CELL_FORMAT, name, split, chosen.facts()]
        measure = partial(_measure, "geometry_of_tap", roles=roles[images.name], **shared)
        tables += comparison.run_taps(images, found, measure, identity, kind="geometry", seed=seed, jobs=jobs)
        inside, parts = _factors(images, factors), _splits(images, seed)
        side, grids = common_grid(found)
        if inside and parts is not None:
            maps = comparison.read(images, grids, **read) if side > 1 else {}
            for own, grid in ((found, None), (maps, side)):
                measure = partial(
                    _measure, "factors_of_tap", roles=parts, factors=inside, grid=grid, **shared
                )
                which = [*identity, list(inside), grid]
                tables += comparison.run_taps(
                    images, own, measure, which, kind="factors", seed=seed, jobs=jobs
                )
    return comparison.join(tables, settings, features)


def stream_moments(
    backbone: Backbone,
    images: ImageSet,
    taps: str | Sequence[str] = "stages",
    *,
    target: str | None = None,
    products: bool = True,
    **settings: Any,  # noqa: ANN401 - those of ``stream``
) -> dict[str, Moments]:
    """Sum the features of every tap in one pass, without a store: memory does not grow with the images.

    Args:
        backbone: What to read.
        images: What to read it on.
        taps: Paths, globs or presets of ``resolve_taps``.
        target: The class target; None takes the first.
        products: Whether to keep the (D, D) products as well.
        **settings: Passed to ``stream``.

    Returns:
        Tap → statistics by class, from which `probekit.functional` takes every measure of moments.

    Raises:
        InputError: If the images have no such target.
        FeatureError: If a readout gives no vectors.
    """
    chosen = images.targets[class_target(images, target)]
    found: dict[str, Moments] = {}
    place = int(settings.get("start", 0))
    for ids, activations in stream(backbone, images, taps, **settings):
        labels = chosen.values[place : place + len(ids)]
        place += len(ids)
        for tap, values in activations.items():
            held = found.get(str(tap))
            if values.ndim != 2:
                raise FeatureError(
                    "readouts that give vectors", f"{values.ndim - 1} axes at {tap}", "Read it by gap or cls"
                )
            part = Moments.of(
                values,
                labels,
                n_classes=chosen.n_classes,
                products=products,
                shift=None if held is None else held.shift,
            )
            found[str(tap)] = part if held is None else held + part
    return found


def class_target(images: ImageSet, target: str | None) -> str:
    """Return the name of the class target of a data set, or of its groups where it has no classes.

    Raises:
        InputError: If there is none, or none of that name.
    """
    name = find_class_target(images, target)
    if name is None:
        raise InputError(f"a class target in {images.name}", "none", "Open it with class folders or labels")
    return name


def _factors(images: ImageSet, wanted: bool) -> dict[str, Target]:
    return {name: one for name, one in images.targets.items() if wanted and one.kind == "continuous"}


def _splits(images: ImageSet, seed: int) -> Roles | None:
    """Return the splits, or None where there are no images to hold out."""
    if not len(images.indices("train")) or not len(images.indices("test")):
        return None
    return assign_roles(images, Protocol(seed=seed))


def _roles(images: ImageSet, target: str, seed: int) -> Roles | None:
    """Return the splits, or None where no image of a known class is held out."""
    return None if images.targets[target].kind == GROUP else _splits(images, seed)


def _measure(part: str, features: Features, **given: Any) -> ResultTable:  # noqa: ANN401 - those of the part
    # What measures takes seconds to import, and is not needed where every cell is finished.
    from probekit.geometry import cell

    table: ResultTable = getattr(cell, part)(features, **given)
    return table
