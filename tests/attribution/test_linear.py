"""Maps of fitted probes: exact on maps, grids and tokens; refused where there are no places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm

import probekit
from probekit import Backbone, ImageSet, Preprocessing
from probekit.data.targets import Target
from probekit.errors import TapError
from probekit.results.fitted import Probe
from tests.features.conftest import images, small_backbone

QUICK = {
    "random": 0, "permutations": 0, "bootstrap_draws": 10, "neighbours": 0, "shots": (), "equal_d": False,
    "penalties": (0.1,),
}  # fmt: skip


def fitted(
    backbone: Backbone, tap: str, store: Path, data: ImageSet | None = None
) -> tuple[Probe, np.ndarray]:
    """Return the probe of a tap, and the features it was fitted to."""
    given = images() if data is None else data
    table = probekit.probe(backbone, given, taps=[tap], store=store, **QUICK)
    features = probekit.extract(backbone, given, [tap], store=store)
    return table.probe(backbone.name, tap, "class"), features[tap].matrix()


@pytest.mark.parametrize("tap", ["3|gap", "5|gap", "3|grid(2)", "5|grid(3)"])
def test_the_mean_of_the_map_plus_the_intercept_is_the_logit(tap: str, tmp_path: Path):
    backbone = small_backbone()
    probe, features = fitted(backbone, tap, tmp_path)
    maps = probekit.probe_cam(backbone, images(), probe, batch_size=16)
    assert maps.ndim == 4
    assert maps.shape[:2] == (50, 2)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)) + probe.intercept, probe.scores(features), atol=1e-6)


@pytest.mark.parametrize("readout", ["patch_mean", "grid(2)"])
def test_tokens_have_places_too(readout: str, tmp_path: Path):
    module = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, depth=2)
    backbone = Backbone.from_module(module, name="vit", preprocessing=Preprocessing(64, 64))
    probe, features = fitted(backbone, f"blocks.1|{readout}", tmp_path)
    maps = probekit.probe_cam(backbone, images(), probe)
    assert maps.shape == (50, 2, 4, 4)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)) + probe.intercept, probe.scores(features), atol=1e-6)


def test_the_map_is_high_where_the_class_is(tmp_path: Path):
    """Bright spots in a corner of their own make one class; the map points at them."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 40, (120, 12, 12, 3), dtype=np.uint8)
    labels = np.arange(120) % 2
    corners = random.integers(0, 2, (120, 2)) * 8
    for i in np.flatnonzero(labels):
        pixels[i, corners[i, 0] : corners[i, 0] + 4, corners[i, 1] : corners[i, 1] + 4] = 255
    data = ImageSet.from_arrays("spots", pixels, {"class": Target(labels, "class", ("none", "spot"))})
    backbone = small_backbone()
    probe, _ = fitted(backbone, "2|gap", tmp_path, data)
    maps = probekit.probe_cam(backbone, data, probe)[:, 1]
    hits = 0
    for i in np.flatnonzero(labels):
        row, column = np.unravel_index(maps[i].argmax(), maps[i].shape)
        hits += bool((row >= 5) == (corners[i, 0] > 0) and (column >= 5) == (corners[i, 1] > 0))
    assert hits >= 55


def test_probes_without_places_are_refused(tmp_path: Path):
    backbone = small_backbone()
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    with pytest.raises(TapError, match="means over places"):
        probekit.probe_cam(backbone, images(), replace(probe, tap="3|max"))
