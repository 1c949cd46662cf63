"""Maps of fitted probes towards the class of each pair, by any method, at the size of the input."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probekit.attribution.linear import probe_cam
from probekit.features.streaming import BATCH_SIZE, divide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probekit.attribution.marked import Marked
    from probekit.backbones.backbone import Backbone
    from probekit.results.fitted import Probe

Maps = NDArray[np.float32]


def pair_maps(
    backbone: Backbone,
    marked: Marked,
    probes: Sequence[Probe],
    *,
    method: str = "probe_cam",
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Maps:
    """Return maps of every pair towards its class, one for each probe: (B, P, h, w), as the method has them.

    Args:
        backbone: What the probes were fitted to.
        marked: Images and pairs.
        probes: B probes of one tap, standardised alike: they differ in weights and intercepts alone.
        method: One of those of ``attribute_images``.
        batch_size: Images a forward pass; methods with gradients have their own.
        seed: Fixes what a method draws at random.

    Raises:
        TapError: If the method makes no map of the probes' tap.
    """
    if method == "probe_cam":
        return _decomposed(backbone, marked, probes, batch_size)
    return np.stack([_explained(backbone, marked, probe, method, seed) for probe in probes])


def _decomposed(backbone: Backbone, marked: Marked, probes: Sequence[Probe], batch_size: int) -> Maps:
    """Take apart the scores of all probes at once: one forward pass an image, whatever their number."""
    joined, count = _joined(probes), len(probes[0].classes)
    found = []
    # A chunk of images at a time: the maps of all classes and probes are many.
    for rows in divide(np.arange(len(marked.images)), batch_size):
        maps = probe_cam(backbone, marked.images.select(rows), joined, batch_size=batch_size)
        maps = maps.reshape(len(rows), len(probes), count, *maps.shape[2:])
        here = np.flatnonzero((marked.rows >= rows[0]) & (marked.rows <= rows[-1]))
        found.append(maps[marked.rows[here] - rows[0], :, marked.outputs[here]].astype(np.float32))
    # Pairs stand in the order of their images.
    return np.moveaxis(np.concatenate(found), 1, 0)


def _explained(backbone: Backbone, marked: Marked, probe: Probe, method: str, seed: int) -> Maps:
    """Ask a method for the map of every pair; it gives one an image, so that further classes take turns."""
    from probekit.attribution.methods import attribute_images

    # (P,) how many pairs of the same image stand before.
    turns = np.arange(len(marked.rows)) - np.searchsorted(marked.rows, marked.rows)
    maps: Maps | None = None
    for turn in range(int(turns.max()) + 1):
        here = np.flatnonzero(turns == turn)
        chosen = marked.images.select(marked.rows[here])
        found = attribute_images(
            backbone, chosen, probe, method=method, outputs=marked.outputs[here], seed=seed
        ).maps
        if maps is None:
            maps = np.empty((len(turns), *found.shape[1:]), np.float32)
        maps[here] = found
    assert maps is not None
    return maps


def enlarge(maps: Maps, size: int) -> Maps:
    """Return maps (P, h, w) at the size of the input, (P, size, size): bilinear between centres of places.

    Examples:
        >>> enlarge(np.array([[[0.0, 4.0]]], np.float32), 4)[0, 0].tolist()
        [0.0, 1.0, 3.0, 4.0]
    """
    import torch

    if maps.shape[1:] == (size, size):
        return maps
    given = torch.from_numpy(np.ascontiguousarray(maps))[:, None]
    larger = torch.nn.functional.interpolate(given, (size, size), mode="bilinear", align_corners=False)
    return np.asarray(larger[:, 0].numpy(), np.float32)


def _joined(probes: Sequence[Probe]) -> Probe:
    """Return one probe with the outputs of all."""
    first = probes[0]
    if len(probes) == 1:
        return first
    return replace(
        first,
        weights=np.concatenate([one.weights for one in probes], axis=1),
        intercept=np.concatenate([one.intercept for one in probes]),
        classes=tuple(f"{name}~{place}" for place, one in enumerate(probes) for name in one.classes),
    )
