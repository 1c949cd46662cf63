"""The verb ``reconstruct``: how much of the images can be read back from every tap of every model?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.data.images import ImageSet
from probekit.data.kept import kept_pixels
from probekit.data.readers import open_images
from probekit.data.splits import TEST_FRACTION, hold_out
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError
from probekit.features.comparison import Comparison, common_grid, stored_settings
from probekit.features.streaming import BATCH_SIZE
from probekit.plan import live_reference
from probekit.probes.protocol import PENALTIES, Protocol, Roles
from probekit.reconstruction.pixels import foreground, foreground_target, low_resolution
from probekit.results.table import ResultTable

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.backbones.spec import ModelSpec
    from probekit.features.features import Features
    from probekit.reconstruction.linear import Regions

# Changes whenever a stored cell would no longer hold what the code computes.
CELL_FORMAT = 1
_GEOMETRY = ("size", "resize", "interpolation")


def reconstruct(
    models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone],
    data: str | ImageSet | Sequence[str | ImageSet],
    *,
    taps: str | Sequence[str] = "stages",
    regions: str | ImageSet | None = None,
    width: int = 256,
    random: int = 3,
    penalties: Sequence[float] = PENALTIES,
    permutations: int = 20,
    bootstrap_draws: int = 2000,
    seed: int = 0,
    dtype: str = "float32",
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> ResultTable:
    """Measure how much of the images' pixels a linear map reads from every tap.

    Maps and tokens are read as one grid of means, the same for all, projected at random to equally many
    features, and a ridge regression reads the image's 8 × 8 cells of mean colour: R² of all cells, of each
    band of spatial frequency, and cell by cell. What a linear map cannot read may still be there. Where there
    is no train or no test split, a fifth of all images is held out; classes play no part.

    Source: after Dosovitskiy and Brox, Inverting Visual Representations with Convolutional Networks (CVPR
    2016), with a linear map in place of the network.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded. All
            take images of one size.
        data: One or several data sets, in the grammar of ``open_images`` or opened.
        taps: Paths, globs or presets of ``resolve_taps``, without readouts.
        regions: Images with masks or boxes, whose foreground and background are scored apart with the maps
            fitted on each data set; None takes the test images of a data set that has them.
        width: Features that every tap is projected to; the narrowest tap bounds it.
        random: Random draws of each architecture as controls; 0 leaves them out.
        penalties: Candidates for ½·penalty·‖W‖².
        permutations: Fits to permuted images behind each null.
        bootstrap_draws: Resamples of test images behind each interval.
        seed: Fixes splits, projections, permutations and resamples.
        dtype: Storage type of features.
        precision: Of the forward passes.
        batch_size: Images a forward pass.
        device: Where backbones run; None chooses.
        store: Folder that keeps features and finished cells; None takes the user's cache folder.
        jobs: Parallel workers for the cells (one model, data set and tap each).

    Returns:
        One table: ``pixel_r2`` with ``target`` ``all`` or the band of frequency, ``foreground_error``,
        ``background_error`` and their ratio; attached are R² by cell and by image.

    Raises:
        ProbekitError: If a model, data set, tap or setting cannot be used.
    """
    settings = stored_settings(locals())
    if isinstance(regions, ImageSet):
        settings["regions"] = live_reference("images", regions.name, regions.digest)
    from probekit.reconstruction.linear import DecodingSettings, ceiling

    if width < 1:
        raise InputError("at least one feature to project to", str(width), "256 is the default")
    Protocol(tuple(penalties), permutations=permutations, bootstrap_draws=bootstrap_draws, seed=seed)
    comparison = Comparison.open("reconstruct", models, data, random=random, store=store)
    roles = {images.name: _divide(images, seed) for images in comparison.sets}
    scored = open_images(regions) if isinstance(regions, str) else regions
    if scored is not None and foreground_target(scored) is None:
        raise InputError(f"masks or boxes in {scored.name}", "neither", "Name images that have them")
    read: dict[str, Any] = {
        "dtype": dtype,
        "precision": precision,
        "batch_size": batch_size,
        "device": device,
    }
    tables, features = [], {}
    for images in comparison.sets:
        features[images.name] = found = comparison.read(images, taps, **read)
        preprocessing = _preprocessing(found)
        side, grids = common_grid(found)
        if not side:
            raise InputError(
                "taps with places, such as maps or patches", ", ".join(next(iter(found.values()))),
                "Choose taps before the pooling, such as stages",
            )  # fmt: skip
        maps = comparison.read(images, grids, **read)
        narrowest = min(one.shape[-1] for own in maps.values() for one in own.values())
        chosen = DecodingSettings(
            min(width, narrowest), permutations, bootstrap_draws, tuple(penalties), seed
        )
        with kept_pixels(images, comparison.folder / "pixels") as kept:
            pixels = low_resolution(kept, preprocessing)
        told = {"grid": side, "ceiling": ceiling(pixels, roles[images.name], chosen)}
        apart = images.split("test") if scored is None and foreground_target(images) else scored
        measure = partial(
            _measure,
            pixels=pixels,
            roles=roles[images.name],
            settings=chosen,
            told=told,
            regions=None
            if apart is None
            else _regions(comparison, images, apart, grids, preprocessing, read),
        )
        identity = [CELL_FORMAT, side, chosen.facts(), "" if apart is None else apart.digest]
        tables += comparison.run_taps(
            images, maps, measure, identity, kind="reconstruct", seed=seed, jobs=jobs
        )
    return comparison.join(tables, settings, features)


def _divide(images: ImageSet, seed: int) -> Roles:
    """Return the splits of the data, held out at random where they are missing."""
    train, val, test = (images.indices(role) for role in ("train", "val", "test"))
    if not len(train) or not len(test):
        every = np.arange(len(images))
        train, test = hold_out(every, TEST_FRACTION, seed=seed, stratified=False, use="images to read")
        val = every[:0]
    if not len(val):
        kept, held = hold_out(train, seed=seed, stratified=False)
        train, val = train[kept], train[held]
    return Roles(train, val, test)


def _preprocessing(found: Mapping[str, Mapping[str, Features]]) -> Preprocessing:
    """Return how all models take their images.

    Raises:
        InputError: If they do not take the same pixels.
    """
    facts = {
        model: next(iter(own.values())).provenance["model"]["preprocessing"] for model, own in found.items()
    }
    views = {model: [one[name] for name in _GEOMETRY] for model, one in facts.items()}
    first, *others = views.items()
    for model, view in others:
        if view != first[1]:
            raise InputError(
                "models that take the same pixels",
                f"{first[0]}: {_words(first[1])}; {model}: {_words(view)}",
                "Give all of them one size=, resize= and interpolation=",
            )
    size, resize, interpolation = first[1]
    return Preprocessing(size, resize, interpolation=interpolation)


def _words(view: Sequence[Any]) -> str:
    size, resize, interpolation = view
    return f"resize {resize} {interpolation}, crop {size}"


def _regions(
    comparison: Comparison,
    images: ImageSet,
    apart: ImageSet,
    grids: Mapping[str, Sequence[str]],
    preprocessing: Preprocessing,
    read: Mapping[str, Any],
) -> Regions:
    """Read images with a foreground; random-init controls keep the statistics they had for the fit."""
    from probekit.reconstruction.linear import Regions

    target = foreground_target(apart)
    assert target is not None
    found = comparison.read(apart, grids, training=images, **read)
    return Regions(
        {(one.provenance["weights"], tap): one for own in found.values() for tap, one in own.items()},
        low_resolution(apart, preprocessing),
        foreground(apart, preprocessing, target),
        apart.name,
    )


def _measure(features: Features, **given: Any) -> ResultTable:  # noqa: ANN401 - those of the cell
    # What measures takes seconds to import, and is not needed where every cell is finished.
    from probekit.reconstruction.linear import decode_pixels

    return decode_pixels(features, **given)
