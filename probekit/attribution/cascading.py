"""Does a map change when what was learnt is taken away? Maps before and after blocks are reset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probekit.attribution.cascade import cascade
from probekit.attribution.maps import Maps, enlarge, pair_maps
from probekit.features.statistics import recalibrated
from probekit.functional.image_quality import structural_similarity
from probekit.functional.intervals import bootstrap_means
from probekit.probes.controls import null_columns, permute_rows
from probekit.seeds import draw_rows, random_stream

if TYPE_CHECKING:
    from probekit.attribution.marked import Array, Marked
    from probekit.backbones.backbone import Backbone
    from probekit.data.images import ImageSet
    from probekit.probes.protocol import Protocol
    from probekit.results.fitted import Probe

CI_KIND = "bootstrap,test images"
# Sides of the maps whose structure is compared: SSIM's window of 11 pixels is then a third of the image.
SSIM_SIDE = 32
# Training images behind the statistics of each step: thousands of places each.
STATISTICS_IMAGES = 256


def cascade_rows(
    backbone: Backbone,
    start: str,
    images: ImageSet,
    marked: Marked,
    probe: Probe,
    before: Maps,
    protocol: Protocol,
    made: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield the likeness of maps before and after each step of a cascade, beside that of other images' maps.

    Blocks above the tap change nothing at it, and are left alone. Batch norm inside the blocks that are reset
    has its statistics estimated anew on at most 256 training images, so that activations keep their scale.

    Args:
        backbone: What the probe was fitted to.
        start: Path of the block of the tap.
        images: The data set.
        marked: Images and pairs that maps are of; only the first class of each image counts.
        probe: It stays as it is.
        before: (P, h, w) maps of the pairs.
        protocol: Permutations, resamples and seed.
        made: How maps are made, keywords of ``pair_maps``.
    """
    _, firsts = np.unique(marked.rows, return_index=True)
    original = before[firsts]
    orders = _other_images(len(firsts), protocol)
    train = images.indices("train")
    few = images.select(train[draw_rows(len(train), STATISTICS_IMAGES, protocol.seed)])
    done: list[str] = []
    for block, edited in cascade(backbone, seed=protocol.seed, start=start):
        done += block.members
        settled = recalibrated(edited, few, within=done)
        after = pair_maps(settled, marked, [probe], **made)[0][firsts]
        params = {
            "method": made["method"],
            "reset": block.path,
            "reset_depth": block.depth,
            "reset_level": block.level,
        }
        for metric, compare in (("cascade_spearman", spearman), ("cascade_ssim", likeness)):
            scores = compare(original, after)
            nulls = [compare(original, after[order]) for order in orders]
            yield {"metric": metric, **_columns(scores, nulls, protocol), "params": params}


def spearman(one: Maps, other: Maps) -> Array:
    """Return rank correlations of two maps an image: (N, h, w) twice → (N,), NaN where one is constant.

    Examples:
        >>> one = np.array([[[1.0, 2.0], [3.0, 9.0]]], np.float32)
        >>> spearman(one, one**3).round(6).tolist(), spearman(one, -one).round(6).tolist()
        ([1.0], [-1.0])
    """
    from scipy.stats import rankdata

    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (one, other)]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    norms = np.linalg.norm(centred[0], axis=1) * np.linalg.norm(centred[1], axis=1)
    products = np.einsum("np,np->n", *centred)
    found: Array = np.divide(products, norms, out=np.full(len(one), np.nan), where=norms > 0)
    return found


def likeness(one: Maps, other: Maps) -> Array:
    """Return the structural similarity of two maps of each image, each scaled to [0, 1]: (N,)."""
    grey = [_scaled(enlarge(maps, SSIM_SIDE)) for maps in (one, other)]
    return structural_similarity(*grey)[0]


def _scaled(maps: Maps) -> NDArray[np.float64]:
    """Return (N, H, W, 3) in [0, 1]; a constant map becomes 0."""
    values = maps.astype(np.float64)
    values -= values.min(axis=(1, 2), keepdims=True)
    top = values.max(axis=(1, 2), keepdims=True)
    values /= np.where(top > 0, top, 1)
    return np.repeat(np.minimum(values, 1)[..., None], 3, axis=3)


def _other_images(count: int, protocol: Protocol) -> NDArray[np.intp]:
    """Return (B, N) partners of every image, never itself: each image follows another around a ring."""
    if count < 2:
        return np.empty((0, count), np.intp)
    orders = permute_rows(count, protocol.permutations, seed=protocol.seed, name="pairs of maps")
    partners = np.empty_like(orders)
    for order, partner in zip(orders, partners, strict=True):
        partner[order] = np.roll(order, 1)
    return partners


def _columns(scores: Array, nulls: list[Array], protocol: Protocol) -> dict[str, Any]:
    own = scores[~np.isnan(scores)]
    if not len(own):
        return {"n": 0, "status": "every map is constant after the reset"}
    stream = random_stream("images of maps", protocol.seed)
    low, high = bootstrap_means(own[:, None], draws=protocol.bootstrap_draws, stream=stream)
    means = np.array([np.nanmean(one) for one in nulls if not np.isnan(one).all()])
    columns = {"n": len(own), "value": float(own.mean()), "ci_low": float(low[0]), "ci_high": float(high[0])}
    return columns | {"ci_kind": CI_KIND} | null_columns(means)
