"""One data set read back by a map that is fitted to it: features of a grid, regions, cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.data.images import ImageSet
from probekit.data.kept import kept_pixels
from probekit.data.regions import region_target
from probekit.data.splits import TEST_FRACTION, hold_out
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError
from probekit.features.comparison import Comparison, common_grid, common_preprocessing
from probekit.probes.protocol import Roles
from probekit.reconstruction.pixels import SIDE, foreground, low_resolution
from probekit.results.table import ResultTable

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.features.features import Features
    from probekit.reconstruction.decoder import DecoderSettings
    from probekit.reconstruction.linear import DecodingSettings, Regions

Found = dict[str, Mapping[str, "Features"]]

# Changes whenever a stored cell would no longer hold what the code computes.
CELL_FORMAT = 1
# Method → pixels a side of what it reads back.
SIDES = {"linear": SIDE, "decoder": 32}


@dataclass(frozen=True)
class Decoding:
    """What all data sets of one call share.

    Attributes:
        method: A key of ``SIDES``.
        taps: As the caller wrote them.
        regions: Images with masks or boxes; None takes the test images of a data set that has them.
        settings: Of the cells; the narrowest tap may bound their width further.
        read: Keywords of ``Comparison.read``.
        network: That judges made images by its features; None leaves that out.
        jobs: Parallel workers.
    """

    method: str
    taps: str | Sequence[str]
    regions: ImageSet | None
    settings: DecodingSettings | DecoderSettings
    read: Mapping[str, Any]
    network: Backbone | None = None
    jobs: int = 1


def decode_set(comparison: Comparison, images: ImageSet, asked: Decoding) -> tuple[list[ResultTable], Found]:
    """Fit a map from every tap of every model to the pixels of one data set.

    Returns:
        A table for every model and tap, and the features that were read on the way.

    Raises:
        InputError: If no tap has places, or models take different pixels.
    """
    roles = _divide(images, asked.settings.seed)
    found: Found = comparison.read(images, asked.taps, **asked.read)
    preprocessing = common_preprocessing(found)
    side, grids = common_grid(found)
    if not side:
        raise InputError(
            "taps with places, such as maps or patches", ", ".join(next(iter(found.values()))),
            "Choose taps before the pooling, such as stages",
        )  # fmt: skip
    maps = comparison.read(images, grids, **asked.read)
    narrowest = min(one.shape[-1] for own in maps.values() for one in own.values())
    settings = replace(asked.settings, width=min(asked.settings.width, narrowest))
    with kept_pixels(images, comparison.folder / "pixels") as kept:
        pixels = low_resolution(kept, preprocessing, SIDES[asked.method])
    own = images.split("test") if region_target(images) else None
    apart = asked.regions or own
    given: dict[str, Any] = {"pixels": pixels, "roles": roles, "settings": settings}
    regions = None
    if apart is not None:
        found_apart = comparison.read(apart, grids, training=images, **asked.read)
        regions = _regions(found_apart, apart, preprocessing, SIDES[asked.method])
    told = {"grid": side, "ceiling": _ceiling(asked.method, **given)}
    judge = asked.network
    measure = partial(_measure, asked.method, judge, told=told, regions=regions, **given)
    identity = [
        *(CELL_FORMAT, side, asked.method, settings.facts(), "" if apart is None else apart.digest),
        "" if judge is None else [judge.weights, judge.code, judge.preprocessing.facts()],
    ]
    tables = comparison.run_taps(
        images, maps, measure, identity, kind="reconstruct", seed=settings.seed, jobs=asked.jobs
    )
    return tables, found


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


def _regions(
    found: Mapping[str, Mapping[str, Features]], apart: ImageSet, preprocessing: Preprocessing, side: int
) -> Regions:
    """Return images with a foreground; random-init controls keep the statistics they had for the fit."""
    from probekit.reconstruction.linear import Regions

    target = region_target(apart)
    assert target is not None
    return Regions(
        {(one.provenance["weights"], tap): one for own in found.values() for tap, one in own.items()},
        low_resolution(apart, preprocessing, side),
        foreground(apart, preprocessing, target, side),
        apart.name,
    )


# What measures takes seconds to import, and is not needed where every cell is finished.


def _ceiling(method: str, **given: Any) -> float:  # noqa: ANN401 - those of the cell
    from probekit.reconstruction import decoder, linear

    return (decoder.image_ceiling if method == "decoder" else linear.ceiling)(**given)


def _measure(method: str, network: Backbone | None, features: Features, **given: Any) -> ResultTable:  # noqa: ANN401
    from probekit.reconstruction import decoder, linear, perceptual

    if method == "linear":
        return linear.decode_pixels(features, **given)
    judge = None if network is None else perceptual.judge_by(network)
    return decoder.decode_images(features, perceptual=judge, **given)
