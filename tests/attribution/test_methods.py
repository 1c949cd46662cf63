"""Attribution by gradients and perturbation: sums, hand-rolled loops, refusals in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import probekit
from probekit import Backbone, ImageSet, Preprocessing
from probekit.attribution.attributions import METHODS
from probekit.attribution.composed import compose
from probekit.attribution.explainers import mean_image
from probekit.attribution.methods import attribute_images
from probekit.errors import InputError, ProbekitError, TapError
from probekit.features.streaming import prepared
from tests.attribution.test_linear import fitted
from tests.features.conftest import images, small_backbone


def batch(backbone: Backbone, data: ImageSet) -> torch.Tensor:
    pixels = np.stack([data.pixels(i, backbone.preprocessing) for i in range(len(data))])
    return prepared(backbone, pixels)


def scored(backbone: Backbone, probe: probekit.Probe, data: ImageSet) -> np.ndarray:
    with torch.no_grad():
        return compose(backbone, probe)(batch(backbone, data)).numpy()


def test_integrated_gradients_add_up(tmp_path: Path):
    backbone, data = small_backbone(), images(12)
    probe, _ = fitted(backbone, "5|gap", tmp_path)
    found = attribute_images(backbone, data, probe, method="integrated_gradients", steps=100, batch_size=5)
    scores = scored(backbone, probe, data)
    assert (found.outputs == scores.argmax(1)).all()
    mean = batch(backbone, data).mean(0, keepdim=True)
    with torch.no_grad():
        base = compose(backbone, probe)(mean).numpy()[0]
    every = np.arange(12)
    difference = scores[every, found.outputs] - base[found.outputs]
    np.testing.assert_allclose(found.values["difference"], difference, atol=1e-5)
    np.testing.assert_allclose(found.maps.sum((1, 2)), difference, atol=0.01 * np.abs(difference).max())
    np.testing.assert_allclose(found.values["delta"], found.maps.sum((1, 2)) - difference, atol=1e-5)


def test_what_is_attributed_is_chosen(tmp_path: Path):
    backbone, data = small_backbone(), images(6)
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    true = attribute_images(backbone, data, probe, outputs="true")
    assert true.outputs.tolist() == [0, 1, 0, 1, 0, 1]
    odd = attribute_images(backbone, data, probe, outputs="odd")
    assert odd.outputs.tolist() == [1] * 6
    np.testing.assert_allclose(odd.maps, probekit.probe_cam(backbone, data, probe)[:, 1], atol=1e-6)
    even = attribute_images(backbone, data, probe, outputs=0)
    contrast = attribute_images(backbone, data, probe, outputs="odd", against="even")
    np.testing.assert_allclose(contrast.maps, odd.maps - even.maps, atol=1e-6)
    np.testing.assert_allclose(contrast.values["score"], odd.values["score"] - even.values["score"])


@pytest.mark.parametrize("method", ["grad_cam", "integrated_gradients", "occlusion"])
def test_contrasts_are_differences(method: str, tmp_path: Path):
    """All methods that are linear in the score must be so in what is attributed."""
    backbone, data = small_backbone(), images(4)
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    odd, even, both = (
        attribute_images(backbone, data, probe, method=method, **given).maps
        for given in ({"outputs": 1}, {"outputs": 0}, {"outputs": 1, "against": 0})
    )
    np.testing.assert_allclose(both, odd - even, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_batches_do_not_matter(method: str, tmp_path: Path):
    backbone, data = small_backbone(), images(7)
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    one, other = (attribute_images(backbone, data, probe, method=method, batch_size=n) for n in (3, 7))
    assert one.ids.tolist() == data.ids.tolist()
    np.testing.assert_allclose(one.maps, other.maps, atol=1e-5)


def test_occlusion_is_the_loop_one_would_write(tmp_path: Path):
    backbone, data = small_backbone(), images(3)
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    found = attribute_images(backbone, data, probe, method="occlusion", outputs=1, window=4)
    module, given, base = compose(backbone, probe), batch(backbone, data), mean_image(backbone, data)
    total, times = np.zeros((3, 12, 12)), np.zeros((12, 12))
    with torch.no_grad():
        scores = module(given)[:, 1]
        for row in range(0, 9, 2):
            for column in range(0, 9, 2):
                hidden = given.clone()
                square = np.s_[row : row + 4, column : column + 4]
                hidden[:, :, square[0], square[1]] = base[:, square[0], square[1]]
                total[:, square[0], square[1]] += (scores - module(hidden)[:, 1]).numpy()[:, None, None]
                times[square] += 1
    np.testing.assert_allclose(found.maps, total / times, atol=1e-5)


def test_saliency_is_the_gradient(tmp_path: Path):
    backbone, data = small_backbone(), images(3)
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    found = attribute_images(backbone, data, probe, method="saliency", outputs=1)
    given = batch(backbone, data).requires_grad_()
    (gradient,) = torch.autograd.grad(compose(backbone, probe)(given)[:, 1].sum(), given)
    np.testing.assert_allclose(found.maps, gradient.abs().amax(1).numpy(), atol=1e-6)


def test_noise_is_fixed_by_the_seed(tmp_path: Path):
    backbone, data = small_backbone(), images(5)
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    before = torch.random.get_rng_state()
    one, same, other = (
        attribute_images(backbone, data, probe, method="saliency", smooth=4, seed=seed, batch_size=size).maps
        for seed, size in ((0, 5), (0, 2), (1, 5))
    )
    np.testing.assert_allclose(one, same, atol=1e-6)
    assert np.abs(one - other).max() > 1e-3
    assert torch.equal(before, torch.random.get_rng_state())


def test_grad_cam_of_a_mean_is_probe_cam_up_to_a_factor(tmp_path: Path):
    """The gradient of a mean's score is w/σ over the number of places, everywhere."""
    backbone, data = small_backbone(), images(5)
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    grad = attribute_images(backbone, data, probe, method="grad_cam", outputs=1)
    cam = attribute_images(backbone, data, probe, outputs=1)
    centre = float(probe.mean @ (probe.weights / probe.scale[:, None])[:, 1])
    np.testing.assert_allclose(grad.maps * 64, cam.maps + centre, rtol=1e-4, atol=1e-5)


def test_maps_are_upsampled_between_places(tmp_path: Path):
    backbone, data = small_backbone(), images(2)
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    small = attribute_images(backbone, data, probe)
    large = small.upsampled()
    assert small.maps.shape == (2, 8, 8)
    assert large.maps.shape == (2, 12, 12)
    assert large.maps.min() >= small.maps.min()
    assert large.upsampled() is large


class Stepped(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.floor(values * 4)


class Cut(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.detach()


@pytest.mark.parametrize("kind", [Stepped, Cut])
def test_a_tap_without_gradients_is_said(kind: type[nn.Module], tmp_path: Path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), kind(), nn.ReLU())
    backbone = Backbone.from_module(net, name="cut", preprocessing=Preprocessing(12, 12))
    probe, _ = fitted(backbone, "2|gap", tmp_path)
    for method in ("saliency", "integrated_gradients"):
        with pytest.raises(TapError, match="gradients from 2|gap to the image; got none"):
            attribute_images(backbone, images(4), probe, method=method)
    assert attribute_images(backbone, images(4), probe, method="occlusion").maps.any()


def test_grad_cam_names_a_layer_behind_the_tap(tmp_path: Path):
    backbone = small_backbone()
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    with pytest.raises(TapError, match="done when 3 is read; got 5, which lies behind it"):
        attribute_images(backbone, images(4), probe, method="grad_cam", layer="5")
    earlier = attribute_images(backbone, images(4), probe, method="grad_cam", layer="0")
    assert earlier.maps.shape == (4, 10, 10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "lrp"}, "no relevance rule for Identity"),
        ({"method": "magic"}, "a method among probe_cam"),
        ({"baseline": "black"}, "a baseline among mean, blur"),
        ({"layer": "0"}, "layer= with grad_cam only"),
        ({"method": "occlusion", "smooth": 3}, "smooth= with saliency"),
        ({"method": "occlusion", "window": 13}, "window of at most 12 px"),
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"outputs": [0, 1]}, "outputs as 4 whole numbers"),
        ({"outputs": 2}, "outputs from 0 to 1"),
        ({"outputs": "neither"}, "outputs among even, odd, or true"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict, message: str, tmp_path: Path):
    backbone = small_backbone()
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    with pytest.raises(ProbekitError, match=message):
        attribute_images(backbone, images(4), probe, **given)


def test_no_images_and_other_probes_are_refused(tmp_path: Path):
    backbone = small_backbone()
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    with pytest.raises(InputError, match="at least one image"):
        attribute_images(backbone, images(4).select([]), probe)
    with pytest.raises(InputError, match="a probe of the 5 features at 5|gap"):
        attribute_images(backbone, images(4), replace(probe, tap="5|gap"), method="saliency")


@pytest.mark.parametrize("method", METHODS)
def test_the_backbone_is_left_alone(method: str, tmp_path: Path):
    backbone = small_backbone()
    probe, _ = fitted(backbone, "3|gap", tmp_path)
    weights = backbone.weights
    attribute_images(backbone, images(4), probe, method=method)
    del backbone.__dict__["weights"]
    assert backbone.weights == weights
    assert not any(
        one._forward_hooks or one._forward_pre_hooks or one._backward_hooks
        for one in backbone.module.modules()
    )
    assert not any(hasattr(one, "input") or hasattr(one, "output") for one in backbone.module.modules())
