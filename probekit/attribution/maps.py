"""Maps of fitted probes towards the class of each pair, by any method, at the size of the input."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probekit.attribution.linear import probe_cam
from probekit.errors import InputError
from probekit.features.streaming import BATCH_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probekit.attribution.marked import Marked
    from probekit.backbones.backbone import Backbone
    from probekit.results.fitted import Probe

METHODS = ("probe_cam",)
Maps = NDArray[np.float32]


def pair_maps(
    backbone: Backbone,
    marked: Marked,
    probes: Sequence[Probe],
    *,
    method: str = "probe_cam",
    batch_size: int = BATCH_SIZE,
) -> Maps:
    """Return maps of every pair towards its class, one for each probe: (B, P, h, w), as the method has them.

    Args:
        backbone: What the probes were fitted to.
        marked: Images and pairs.
        probes: B probes of one tap, standardised alike: they differ in weights and intercepts alone.
        method: One of ``METHODS``.
        batch_size: Images a forward pass.

    Raises:
        TapError: If the method makes no map of the probes' tap.
    """
    if method not in METHODS:
        raise InputError(f"a method among {', '.join(METHODS)}", repr(method), "probe_cam is the default")
    joined, count = _joined(probes), len(probes[0].classes)
    found = []
    # A chunk of images at a time: one forward pass gives the maps of all classes and probes.
    for first in range(0, len(marked.images), batch_size):
        rows = np.arange(first, min(first + batch_size, len(marked.images)))
        maps = probe_cam(backbone, marked.images.select(rows), joined, batch_size=batch_size)
        maps = maps.reshape(len(rows), len(probes), count, *maps.shape[2:])
        here = np.flatnonzero((marked.rows >= rows[0]) & (marked.rows <= rows[-1]))
        found.append(maps[marked.rows[here] - first, :, marked.outputs[here]].astype(np.float32))
    # Pairs stand in the order of their images.
    return np.moveaxis(np.concatenate(found), 1, 0)


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
