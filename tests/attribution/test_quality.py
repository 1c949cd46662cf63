"""Infidelity and sensitivity: closed forms of linear networks, relations, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from probekit import Attributions, Backbone, Preprocessing, attribute_images
from probekit.attribution.attributions import METHODS
from probekit.attribution.quality import measure_infidelity, measure_sensitivity
from probekit.errors import InputError
from tests.attribution.test_linear import fitted
from tests.features.conftest import images, small_backbone


def linear_backbone() -> Backbone:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
    return Backbone.from_module(net, name="linear", preprocessing=Preprocessing(12, 12))


def test_integrated_gradients_of_a_linear_network_foretell_all(tmp_path: Path):
    """What a square adds to a linear score is the map's sum over it."""
    backbone, data = linear_backbone(), images(2)
    probe, _ = fitted(backbone, "1|gap", tmp_path)
    found = attribute_images(backbone, data, probe, method="integrated_gradients", steps=2)
    assert measure_infidelity(backbone, data, probe, found).max() < 1e-6
    # A factor plays no part, and a map of something else does not foretell.
    twice = replace(found, maps=2 * found.maps)
    assert measure_infidelity(backbone, data, probe, twice).max() < 1e-6
    turned = replace(found, maps=found.maps[:, ::-1, ::-1].copy())
    assert measure_infidelity(backbone, data, probe, turned).min() > 0.2
    nothing = replace(found, maps=0 * found.maps)
    np.testing.assert_allclose(measure_infidelity(backbone, data, probe, nothing), 1, atol=1e-6)


def test_gradients_of_a_linear_network_hold_still(tmp_path: Path):
    backbone, data = linear_backbone(), images(4)
    probe, _ = fitted(backbone, "1|gap", tmp_path)
    still = attribute_images(backbone, data, probe, method="saliency")
    assert measure_sensitivity(backbone, data, probe, still).max() < 1e-5
    moves = attribute_images(backbone, data, probe, method="integrated_gradients", steps=2)
    assert measure_sensitivity(backbone, data, probe, moves).min() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_measured_alike_in_any_batches(method: str, tmp_path: Path):
    backbone, data = small_backbone(), images(2)
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    found = attribute_images(backbone, data, probe, method=method, steps=4, outputs=1, against=0, window=6)
    for measure, many in ((measure_infidelity, {"squares": 7}), (measure_sensitivity, {"copies": 3})):
        one, other = (measure(backbone, data, probe, found, batch_size=size, **many) for size in (2, 16))
        np.testing.assert_allclose(one, other, rtol=1e-3)
        assert np.isfinite(one).all()
    wider = measure_sensitivity(backbone, data, probe, found, radius=0.2, copies=3)
    assert (wider >= measure_sensitivity(backbone, data, probe, found, radius=0.002, copies=3)).all()


def test_other_images_are_refused(tmp_path: Path):
    backbone = small_backbone()
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    found: Attributions = attribute_images(backbone, images(4), probe)
    for measure in (measure_infidelity, measure_sensitivity):
        with pytest.raises(InputError, match="the 4 images of the maps; got 5 of small"):
            measure(backbone, images(5), probe, found)
    with pytest.raises(InputError, match="at least one of squares"):
        measure_infidelity(backbone, images(4), probe, found, squares=0)
