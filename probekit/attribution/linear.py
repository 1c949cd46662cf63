"""Where a linear probe looks: its logit, place by place, without gradients and exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probekit.data.readers import open_images
from probekit.errors import TapError
from probekit.features.streaming import BATCH_SIZE, stream
from probekit.functional.arguments import FloatArray
from probekit.functional.probe_maps import map_scores
from probekit.taps.readout import MAPS, Layout
from probekit.taps.tap import Tap, grid_side, parse_tap

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.data.images import ImageSet
    from probekit.results.fitted import Probe

_MEANS = ("gap", "patch_mean")


def probe_cam(
    backbone: Backbone, images: str | ImageSet, probe: Probe, *, batch_size: int = BATCH_SIZE
) -> FloatArray:
    """Return the maps whose means, plus the probe's intercepts, are its scores.

    A score that is linear in a mean over places is a mean of scores of the places: of a place, Σ_d w_d/σ_d ·
    (f_d(place) − μ_d). For a grid of means each place counts in its cells, by their weights. Source: Zhou,
    Khosla, Lapedriza, Oliva and Torralba, Learning Deep Features for Discriminative Localization (CVPR 2016),
    section 2, with the probe's standardisation folded in.

    Args:
        backbone: What the probe was fitted to.
        images: What to look at, in the grammar of ``open_images`` or opened.
        probe: A fitted probe of a tap that is read by ``gap``, ``grid(k)`` or ``patch_mean``.
        batch_size: Images a forward pass.

    Returns:
        (N, K, H, W) maps at the resolution of the tap, in units of the score; K as in ``probe.classes``.

    Raises:
        TapError: If the probe's tap has no places, or its readout is no mean over them.
    """
    raw, decompose = decomposition(backbone, probe)
    opened = open_images(images) if isinstance(images, str) else images
    found = [decompose(values[raw]) for _, values in stream(backbone, opened, [raw], batch_size=batch_size)]
    return np.concatenate(found)


def decomposition(
    backbone: Backbone, probe: Probe
) -> tuple[Tap, Callable[[NDArray[np.float32]], FloatArray]]:
    """Return the raw tap of a probe, and what makes (n, K, H, W) maps of a raw reading.

    Raises:
        TapError: If the tap has no places, or its readout is no mean over them.
    """
    from probekit.taps.facts import layer_facts
    from probekit.taps.layers import resolve_taps

    tap = parse_tap(probe.tap)
    cells = grid_side(tap.readout) or (1 if tap.readout in _MEANS else None)
    if cells is None:
        raise TapError(
            "a probe of gap, grid(k) or patch_mean, which are means over places",
            f"one of {tap.readout} at {tap.path}",
            "Fit the probe to another readout, or attribute by gradients",
        )
    (raw,) = resolve_taps(backbone, [replace(tap, readout="raw")])
    layout = layer_facts(backbone).layout(raw)

    def decompose(values: NDArray[np.float32]) -> FloatArray:
        weights = probe.weights / probe.scale[:, None]
        return map_scores(_as_maps(values, layout), weights, probe.mean, kept=probe.kept, cells=cells)

    return raw, decompose


def _as_maps(values: NDArray[np.float32], layout: Layout) -> NDArray[np.float32]:
    """Return (N, D, H, W) maps of a raw reading; tokens that are no patches are left out.

    Raises:
        TapError: If there are no places, or not known which.
    """
    if layout.axes in MAPS:
        return values
    if layout.axes != "NLC" or layout.grid is None:
        raise TapError("a map, or patches on a known grid", f"axes {layout.axes}", "Choose another tap")
    patches = values[:, layout.prefix_tokens or 0 :]
    rows, columns = layout.grid
    return np.moveaxis(patches, 2, 1).reshape(len(values), -1, rows, columns)
