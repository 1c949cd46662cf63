"""Distances in a further network's features: closed form, LPIPS, order, refusals."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torchvision.models import alexnet

from probekit import Backbone, Preprocessing, load_backbone
from probekit.errors import CheckpointCoverage, CheckpointError, InputError, NonFiniteFeatures
from probekit.functional.arguments import FloatArray
from probekit.reconstruction.perceptual import lpips_distance, perceptual_distance
from tests.features.conftest import small_backbone

needs_lpips = pytest.mark.skipif(
    importlib.util.find_spec("lpips") is None, reason="the package lpips is not installed (extra [lpips])"
)
TAPS = ["2", "4"]
# What the trunk of LPIPS is read at: its five ReLUs.
RELUS = [f"features.{place}" for place in (1, 4, 7, 9, 11)]


def pictures(count: int = 4, side: int = 12, seed: int = 0) -> FloatArray:
    random = np.random.default_rng(seed)
    images = gaussian_filter(random.uniform(size=(count, side, side, 3)), (0, 1, 1, 0))
    return (images - images.min()) / (images.max() - images.min())


def worse(images: FloatArray, kind: str) -> list[FloatArray]:
    """Return images changed more and more."""
    noise = np.random.default_rng(1).normal(size=images.shape)
    if kind == "noise":
        return [np.clip(images + size * noise, 0, 1) for size in (0.02, 0.05, 0.15, 0.4)]
    return [gaussian_filter(images, (0, size, size, 0)) for size in (0.3, 0.6, 1.2, 4)]


def test_it_is_the_formula_on_a_net_small_enough_to_compute_by_hand():
    weights = torch.tensor([[1.0, 0, 0], [0, 2, 0]])
    first = nn.Conv2d(3, 2, 1, bias=False)
    first.weight.data = weights[:, :, None, None]
    second = nn.Conv2d(2, 2, 2, stride=2, bias=False)
    second.weight.data = torch.eye(2)[:, :, None, None].expand(-1, -1, 2, 2).clone()
    plain = Preprocessing(2, 2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    net = Backbone.from_module(nn.Sequential(first, second), preprocessing=plain)
    x, y = np.random.default_rng(0).uniform(size=(2, 3, 2, 2, 3))

    def unit(values: FloatArray) -> FloatArray:
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    low = [one @ weights.numpy().T for one in (x, y)]
    high = [one.sum(axis=(1, 2), keepdims=True) for one in low]
    expected = np.mean(
        [np.square(unit(a) - unit(b)).sum(axis=-1).mean(axis=(1, 2)) for a, b in (low, high)], axis=0
    )
    found = perceptual_distance(x, y, net, scored=[], taps=["0", "1"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["noise", "blur"])
def test_more_change_is_further_and_order_does_not_matter(kind: str):
    x, net = pictures(), small_backbone()
    changed = worse(x, kind)
    found = np.stack([perceptual_distance(x, one, net, scored=[], taps=TAPS) for one in [x, *changed]])
    assert (found[0] == 0).all()
    assert (np.diff(found, axis=0) > 0).all()
    other = perceptual_distance(changed[2], x, net, scored=[], taps=TAPS)
    np.testing.assert_allclose(other, found[3], rtol=1e-6)
    by_twos = perceptual_distance(x, changed[2], net, scored=[], taps=TAPS, batch_size=3)
    np.testing.assert_allclose(by_twos, found[3], rtol=1e-5)


def test_images_of_another_size_are_resized_whole():
    x, net = pictures(side=24), small_backbone()
    y = x.copy()
    y[:, 0] = 1 - y[:, 0]
    # A changed border would be lost to a crop.
    assert (perceptual_distance(x, y, net, scored=[], taps=TAPS) > 0).all()
    smooth = gaussian_filter(x, (0, 3, 3, 0))
    small = smooth.reshape(4, 12, 2, 12, 2, 3).mean(axis=(2, 4))
    assert (perceptual_distance(small, small, net, scored=[], taps=TAPS) == 0).all()


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@pytest.mark.slow
def test_tokens_and_maps_with_channels_last_are_read_by_place(arch: str):
    net = load_backbone(f"{arch}:random@0")
    x = pictures(2, 32)
    near, far = (
        perceptual_distance(x, one, net, scored=[]) for one in (worse(x, "noise")[0], worse(x, "noise")[3])
    )
    assert (near > 0).all()
    assert (far > near).all()
    assert (far < 4).all()


def test_the_network_under_study_is_refused_by_weights_and_by_checkpoint():
    net, x = small_backbone(), pictures()
    with pytest.raises(InputError, match="none of those under study"):
        perceptual_distance(x, x, net, scored=[net])
    with pytest.raises(InputError, match="whose weights are those of other"):
        perceptual_distance(x, x, net, scored=[small_backbone(1), replace(small_backbone(), name="other")])
    perceptual_distance(x, x, net, scored=[small_backbone(1)], taps=TAPS)
    drawn = load_backbone("cifar_resnet20:random@0")
    changed = copy.deepcopy(drawn.module)
    changed.bn1.running_mean += 1
    # Other statistics of batch norm make other weights, of the same draw.
    edited = drawn.edited(changed, "edited")
    assert edited.weights != drawn.weights
    with pytest.raises(InputError, match="none of those under study"):
        perceptual_distance(x, x, drawn, scored=[edited])
    perceptual_distance(x, x, drawn, scored=[load_backbone("cifar_resnet20:random@1")])


def test_what_cannot_be_compared_is_refused():
    x, net = pictures(), small_backbone()
    with pytest.raises(InputError, match="one shape"):
        perceptual_distance(x, x[:2], net, scored=[])
    with pytest.raises(InputError, match="0, 1"):
        perceptual_distance(x, x + 1, net, scored=[])
    with pytest.raises(NonFiniteFeatures):
        perceptual_distance(x, x * np.nan, net, scored=[])
    with pytest.raises(InputError, match="alex, vgg, squeeze"):
        lpips_distance(x, x, trunk="nowhere", net="resnet")
    with pytest.raises(InputError, match="at least 32"):
        lpips_distance(x, x, trunk="nowhere")


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    original = importlib.import_module

    def absent(name: str, *rest: str):
        if name == "lpips":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    x = pictures(side=32)
    with pytest.raises(InputError, match=r"pip install 'probekit-vision\[lpips\]'"):
        lpips_distance(x, x, trunk="nowhere")


@needs_lpips
def test_lpips_is_that_of_the_package_with_the_trunk_of_a_file(tmp_path: Path):
    import lpips

    x = pictures(3, 64)
    y = worse(x, "noise")[2]
    trunk = trunk_of(0)
    torch.save(trunk.state_dict(), tmp_path / "alexnet.pth")
    found = lpips_distance(x, y, trunk=tmp_path / "alexnet.pth", batch_size=2)
    own = package(lpips, learnt=True, trunk=trunk)
    with torch.inference_mode():
        expected = own(tensor(x), tensor(y), normalize=True).flatten().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    other = tmp_path / "other.pth"
    torch.save(trunk_of(1).state_dict(), other)
    assert not np.allclose(lpips_distance(x, y, trunk=other), found, rtol=1e-2)
    with pytest.raises(CheckpointCoverage, match="the trunk of vgg"):
        lpips_distance(x, y, trunk=other, net="vgg")
    with pytest.raises(CheckpointError):
        lpips_distance(x, y, trunk=tmp_path / "absent.pth")


@needs_lpips
def test_without_learnt_weights_lpips_is_the_same_distance():
    import lpips

    trunk = trunk_of(0)
    net = Backbone.from_module(trunk, preprocessing=Preprocessing(64, 64))
    x = pictures(3, 64)
    own = package(lpips, learnt=False, trunk=trunk)
    for kind in ("noise", "blur"):
        for y in worse(x, kind):
            with torch.inference_mode():
                expected = own(tensor(x), tensor(y), normalize=True).flatten().numpy()
            found = perceptual_distance(x, y, net, scored=[], taps=RELUS)
            # LPIPS adds its layers up.
            np.testing.assert_allclose(found * len(RELUS), expected, rtol=1e-3)


def trunk_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return alexnet().eval()


def package(lpips, *, learnt: bool, trunk: nn.Module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = lpips.LPIPS(net="alex", pnet_rand=True, lpips=learnt, verbose=False)
    for part in (f"slice{place}" for place in range(1, 6)):
        for place, layer in getattr(model.net, part).named_children():
            layer.load_state_dict(trunk.features[int(place)].state_dict())
    return model


def tensor(images: FloatArray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2)).float()
