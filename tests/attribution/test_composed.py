"""The composition scores as the probe does, for every readout and kind of network, with gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torchvision
from captum.attr import LayerGradCam
from torch import nn

import probekit
from probekit import Backbone, Preprocessing, attribute_images
from probekit.attribution.composed import ProbedBackbone, compose, resolve_layer
from probekit.errors import TapError
from probekit.taps.layers import resolve_taps
from tests.attribution.test_activations import batch_of, blobs, drawn_probe, lite
from tests.features.conftest import small_backbone

DATA = blobs(4)


def backbone_of(net: nn.Module) -> Backbone:
    torch.manual_seed(0)
    return Backbone.from_module(net, name="net", preprocessing=Preprocessing(32, 32))


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0, depth=2)


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, num_classes=0, depths=(1, 1),
        embed_dim=24, num_heads=(2, 2),
    )  # fmt: skip


CASES = [
    (lambda: timm.create_model("resnet10t", num_classes=5), "layer2.0.bn1|gap"),
    (lambda: timm.create_model("resnet10t", num_classes=5), "layer2|grid(2)"),
    (lambda: timm.create_model("resnet10t", num_classes=5), "layer1|gem"),
    (lambda: timm.create_model("resnet10t", num_classes=5), "layer1|max"),
    (lambda: timm.create_model("resnet10t", num_classes=5), "fc:in"),
    (lite, "blocks.1|gap"),
    (lambda: timm.create_model("mobilenetv2_050", num_classes=0), "blocks.2|gap"),
    (torchvision.models.mobilenet_v2, "features.3|gap"),
    (torchvision.models.resnet18, "layer1.0.relu#1|gap"),
    (vit, "blocks.0|cls"),
    (vit, "blocks.1|patch_mean"),
    (vit, "blocks.1|cls+patch_mean"),
    (vit, "blocks.1|grid(2)"),
    (vit, "blocks.1|gem"),
    (vit, "norm|cls"),
    (swin, "layers.1|gap"),
]


@pytest.mark.parametrize(("make", "tap"), CASES)
def test_scores_are_those_of_the_probe(make, tap: str):
    torch.manual_seed(0)
    backbone = backbone_of(make())
    probe = drawn_probe(backbone, tap, DATA)
    kept = probe.kept.copy()
    kept[::3] = False
    probe = replace(
        probe, kept=kept, weights=probe.weights[kept], mean=probe.mean[kept], scale=probe.scale[kept],
        intercept=np.array([1.0, -2.0, 0.5]),
    )  # fmt: skip
    given = batch_of(backbone, DATA)
    with probekit.record(backbone, tap) as run:
        (features,) = run(given).values()
    leaf = given.clone().requires_grad_()
    scores = compose(backbone, probe)(leaf)
    np.testing.assert_allclose(scores.detach().numpy(), probe.scores(features.numpy()), atol=1e-5)
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), leaf)
    assert all(one.any() for one in gradient)
    assert not any(one.requires_grad for one in backbone.module.parameters())


def test_gradients_are_finite_differences():
    backbone = backbone_of(vit())
    probe = drawn_probe(backbone, "blocks.1|cls", DATA)
    module, given = compose(backbone, probe), batch_of(backbone, DATA)
    leaf = given.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf)[:, 0].sum(), leaf)
    step = torch.randn(given.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    with torch.no_grad():
        rise = (module(given + step) - module(given - step))[:, 0] / 2
    torch.testing.assert_close((gradient * step).sum((1, 2, 3)).double(), rise, rtol=0.01, atol=1e-6)


def test_the_forward_stops_at_the_tap():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    backbone = backbone_of(net)
    module, called = compose(backbone, drawn_probe(backbone, "1|gap", DATA)), []
    handle = module.backbone[2].register_forward_hook(lambda *_: called.append(1))
    module(batch_of(backbone, DATA))
    handle.remove()
    assert not called
    assert module.train().backbone.training is False


def test_the_network_is_whole_after_a_failure():
    backbone = small_backbone()
    probe = drawn_probe(backbone, "3|gap", DATA)
    module = ProbedBackbone(backbone, probe, layer=resolve_taps(backbone, "0|raw")[0])
    with pytest.raises(RuntimeError):
        module(torch.zeros(2, 5, 12, 12))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in backbone.module.modules())


@pytest.mark.parametrize("layer", ["layer1", "layer1.0.bn1", "layer2"])
def test_grad_cam_is_captums_on_maps(layer: str):
    net = timm.create_model("resnet10t", num_classes=0, zero_init_last=False)
    for part in net.modules():
        if hasattr(part, "inplace"):
            part.inplace = False
    backbone = backbone_of(net)
    probe = drawn_probe(backbone, "layer2|gap", DATA)
    found = attribute_images(backbone, DATA, probe, method="grad_cam", outputs=1, layer=layer)
    module = compose(backbone, probe)
    raw = LayerGradCam(module, module.backbone.get_submodule(layer)).attribute(
        batch_of(backbone, DATA).requires_grad_(), target=1
    )
    np.testing.assert_allclose(found.maps, raw[:, 0].detach().numpy(), rtol=1e-4, atol=1e-7)


def test_what_follows_in_place_does_not_change_what_was_seen():
    maps, gradients = [], []
    for inplace in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace), nn.Conv2d(4, 4, 3))
        backbone = backbone_of(net)
        probe = drawn_probe(backbone, "2|gap", DATA)
        maps.append(attribute_images(backbone, DATA, probe, method="grad_cam", outputs=0, layer="0").maps)
        module = ProbedBackbone(backbone, probe, layer=resolve_taps(backbone, "0|raw")[0])
        gradients.append(module.place_gradients(batch_of(backbone, DATA), torch.zeros(4, dtype=torch.int64)))
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-7)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("make", "tap", "layer"), [(vit, "blocks.1|cls", "blocks.0"), (swin, "layers.1|gap", "layers.0")]
)
def test_grad_cam_sees_patches_as_maps(make, tap: str, layer: str):
    torch.manual_seed(0)
    backbone = backbone_of(make())
    probe = drawn_probe(backbone, tap, DATA)
    found = attribute_images(backbone, DATA, probe, method="grad_cam", outputs=1, layer=layer)
    kept = []
    handle = backbone.module.get_submodule(layer).register_forward_hook(lambda _, __, out: kept.append(out))
    scores = compose(backbone, probe)(batch_of(backbone, DATA).requires_grad_())
    handle.remove()
    activation = kept[0]
    (gradient,) = torch.autograd.grad(scores[:, 1].sum(), activation)
    if make is vit:
        activation, gradient = activation[:, 1:], gradient[:, 1:]
    activation, gradient = (
        one.detach().numpy().reshape(4, -1, one.shape[-1]) for one in (activation, gradient)
    )
    side = int(np.sqrt(activation.shape[1]))
    expected = np.einsum("npd,nd->np", activation, gradient.mean(1)).reshape(4, side, side)
    np.testing.assert_allclose(found.maps, expected, rtol=1e-3, atol=1e-7)


def test_layers_that_cannot_matter_are_refused():
    backbone = backbone_of(vit())
    probe = drawn_probe(backbone, "blocks.1|cls", DATA)
    with pytest.raises(TapError, match="only class tokens are read"):
        attribute_images(backbone, DATA, probe, method="grad_cam")
    tap = resolve_taps(backbone, "blocks.1|cls")[0]
    with pytest.raises(TapError, match="norm, which lies behind it"):
        resolve_layer(backbone, "norm", tap)
    # A block is done after what it holds.
    inner = resolve_taps(backbone, "blocks.1.norm1|cls")[0]
    with pytest.raises(TapError, match="blocks.1, which lies behind it"):
        resolve_layer(backbone, "blocks.1", inner)
    resnet = backbone_of(timm.create_model("resnet10t", num_classes=5))
    with pytest.raises(TapError, match="axes NC"):
        resolve_layer(resnet, "global_pool", resolve_taps(resnet, "fc:in")[0])


def test_a_side_branch_is_no_layer_before_the_tap():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side, self.main = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.side(images)
            return self.main(images)

    backbone = backbone_of(Two())
    probe = drawn_probe(backbone, "main|gap", DATA)
    with pytest.raises(TapError, match="It lies aside"):
        attribute_images(backbone, DATA, probe, method="grad_cam", layer="side")


def test_grad_cam_of_one_call_among_several():
    """torchvision's ResNets call one ReLU twice a block; each call is a layer of its own."""
    torch.manual_seed(0)
    backbone = backbone_of(torchvision.models.resnet18())
    probe = drawn_probe(backbone, "layer1.1.conv1|gap", DATA)
    first, second = (
        attribute_images(backbone, DATA, probe, method="grad_cam", outputs=0, layer=layer).maps
        for layer in ("layer1.0.relu#0", "layer1.0.relu#1")
    )
    block = attribute_images(backbone, DATA, probe, method="grad_cam", outputs=0, layer="layer1.0").maps
    np.testing.assert_allclose(second, block, rtol=1e-5, atol=1e-9)
    assert np.abs(first - second).max() > 1e-3 * np.abs(second).max()
