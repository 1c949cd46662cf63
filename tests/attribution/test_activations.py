"""Steps without a rule: captum's silence shown, rewritten with equal outputs, or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torchvision
from captum.attr import DeepLift, GuidedBackprop, Saliency
from torch import Tensor, nn

import probekit
from probekit import Backbone, ImageSet, Preprocessing, Probe, attribute_images
from probekit.attribution.activations import PairwiseMax, nonlinear_steps, with_rules
from probekit.attribution.composed import compose
from probekit.data.targets import Target
from probekit.errors import InputError
from probekit.features.streaming import prepared
from probekit.taps.layers import resolve_taps

SIZE = 32


def blobs(count: int = 6, size: int = SIZE) -> ImageSet:
    """Return images of large spots, so that networks see structure."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, size // 8, size // 8, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((1, 8, 8, 1), np.uint8))
    return ImageSet.from_arrays("blobs", pixels, {"class": Target(np.arange(count) % 2, "class", ("a", "b"))})


def settled(net: nn.Module, size: int = SIZE) -> Backbone:
    """Return a network whose batch-norm statistics fit its weights, so that signals live."""
    torch.manual_seed(0)
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(16, 3, size, size))
    return Backbone.from_module(net, name="net", preprocessing=Preprocessing(size, size))


def batch_of(backbone: Backbone, data: ImageSet) -> Tensor:
    return prepared(backbone, np.stack([data.pixels(i, backbone.preprocessing) for i in range(len(data))]))


def drawn_probe(backbone: Backbone, tap: str, data: ImageSet) -> Probe:
    """Return a probe with random weights on standardised features."""
    with torch.no_grad(), probekit.record(backbone, tap) as run:
        ((found, features),) = run(batch_of(backbone, data)).items()
    values = features.double().numpy()
    width = values.shape[1]
    weights = np.random.default_rng(1).normal(size=(width, 3)) / np.sqrt(width)
    return Probe(
        weights=weights, intercept=np.zeros(3), mean=values.mean(0), scale=values.std(0) + values.std() / 100,
        kept=np.ones(width, bool), classes=("a", "b", "c"), kind="class", tap=str(found), penalty=0.1,
        target="class",
    )  # fmt: skip


def lite() -> nn.Module:
    return timm.create_model("tf_efficientnet_lite0", num_classes=0)


def test_captum_passes_over_relu6_and_a_copy_does_not():
    """The trap: with ReLU6 guided backpropagation is the plain gradient, bit for bit."""
    data, backbone = blobs(), settled(lite())
    probe = drawn_probe(backbone, "blocks.2|gap", data)
    module, given = compose(backbone, probe), batch_of(backbone, data).requires_grad_()
    gradient = Saliency(module).attribute(given, target=0, abs=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trapped = GuidedBackprop(module).attribute(given, target=0)
    assert torch.equal(trapped, gradient)
    found = attribute_images(backbone, data, probe, method="guided_backprop", outputs=0)
    plain = gradient.sum(1).numpy()
    assert np.abs(found.maps - plain).max() > 0.1 * np.abs(plain).max()


def test_guided_backpropagation_of_a_cap_by_hand():
    """Through one ReLU6: gradients pass where 0 < x < 6 and they are positive."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU6())
    torch.manual_seed(0)
    nn.init.normal_(net[0].weight, std=8.0)
    data = blobs()
    backbone = Backbone.from_module(net, preprocessing=Preprocessing(SIZE, SIZE))
    probe = drawn_probe(backbone, "1|gap", data)
    found = attribute_images(backbone, data, probe, method="guided_backprop", outputs=1)
    before = backbone.module[0](batch_of(backbone, data))
    passes = ((before > 0) & (before < 6)).numpy()
    assert 0.1 < passes.mean() < 0.9
    back = np.maximum((probe.weights / probe.scale[:, None])[:, 1], 0) / SIZE**2
    weights = backbone.module[0].weight[:, :, 0, 0].numpy()
    expected = np.einsum("ndhw,d,dc->nhw", passes, back, weights)
    np.testing.assert_allclose(found.maps, expected, rtol=1e-4, atol=1e-9)


NETS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lite": (lite, "blocks.3|gap"),
    "mobilenetv2": (lambda: timm.create_model("mobilenetv2_050", num_classes=0), "blocks.3|grid(2)"),
    "resnet": (lambda: timm.create_model("resnet10t", num_classes=0), "layer2|gap"),
    "reused": (lambda: torchvision.models.resnet18(), "layer2|gap"),
    "second call": (lambda: torchvision.models.resnet18(), "layer1.1.relu#1|gap"),
    "torchvision": (lambda: torchvision.models.mobilenet_v2(), "features.4|gap"),
    "vgg": (lambda: torchvision.models.vgg11_bn(), "features.21|gap"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NETS))
def test_deep_lift_adds_up(name: str):
    """Completeness within 1 % of the largest difference: the test that every step has a rule."""
    make, tap = NETS[name]
    data, backbone = blobs(), settled(make())
    probe = drawn_probe(backbone, tap, data)
    found = attribute_images(backbone, data, probe, method="deep_lift", outputs=0)
    largest = np.abs(found.values["difference"]).max()
    assert np.abs(found.values["delta"]).max() < 1e-3 * largest
    np.testing.assert_allclose(found.maps.sum((1, 2)), found.values["difference"], atol=0.01 * largest)


@pytest.mark.parametrize("name", ["lite", "resnet", "reused"])
@pytest.mark.parametrize("method", ["deep_lift", "guided_backprop"])
def test_the_copy_computes_the_same(name: str, method: str):
    make, tap = NETS[name]
    data, backbone = blobs(), settled(make())
    weights = backbone.weights
    probe = drawn_probe(backbone, tap, data)
    copy = with_rules(backbone, resolve_taps(backbone, tap)[0], method)
    given = batch_of(backbone, data)
    with torch.no_grad():
        was, now = (compose(one, probe)(given) for one in (backbone, copy))
    np.testing.assert_allclose(now.numpy(), was.numpy(), atol=1e-4)
    del backbone.__dict__["weights"]
    assert backbone.weights == weights
    assert not any(isinstance(part, PairwiseMax) for part in backbone.module.modules())


def test_captum_loses_what_overlapping_windows_share():
    """Why max pooling is rewritten: captum's own rule does not add up with windows of 3 moved by 2."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 4, 3))
    data, backbone = blobs(), settled(net)
    probe = drawn_probe(backbone, "3|gap", data)
    module, given = compose(backbone, probe), batch_of(backbone, data).requires_grad_()
    base = given.detach().mean(0, keepdim=True).expand_as(given).contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = DeepLift(module).attribute(given, base, target=0)
    with torch.no_grad():
        difference = (module(given) - module(base))[:, 0]
    largest = difference.abs().max()
    assert (raw.sum((1, 2, 3)) - difference).abs().max() > 0.05 * largest
    found = attribute_images(backbone, data, probe, method="deep_lift", outputs=0)
    assert np.abs(found.values["delta"]).max() < 1e-4 * float(largest)


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.MaxPool2d((3, 2), (2, 1), (1, 0)), nn.MaxPool2d(2, 2, 1)],
)
def test_pairwise_maxima_are_max_pooling(pool: nn.MaxPool2d):
    maps = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0)) - 2
    torch.testing.assert_close(PairwiseMax(pool)(maps), pool(maps))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.relu(self.conv(images)))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        values = self.conv(images)
        return values * values.mean((2, 3), keepdim=True)


def stack(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Conv2d(4, 4, 3))


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values * values.sigmoid()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        gate = values.sigmoid()
        return gradient * (gate + values * gate * (1 - gate))


class OwnGradient(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return Swish.apply(values)


REFUSED = [
    ("guided_backprop", stack(OwnGradient()), "2|gap", "OwnGradient at 1"),
    ("deep_lift", stack(OwnGradient()), "2|gap", "OwnGradient at 1"),
    ("guided_backprop", stack(nn.SiLU()), "2|gap", "SiLU at 1"),
    ("guided_backprop", stack(nn.GELU()), "2|gap", "GELU at 1"),
    ("guided_backprop", stack(nn.LeakyReLU()), "2|gap", "LeakyReLU at 1"),
    ("guided_backprop", stack(nn.Hardswish()), "2|gap", "Hardswish at 1"),
    ("guided_backprop", stack(nn.Hardtanh(-1, 1)), "2|gap", "Hardtanh at 1"),
    ("guided_backprop", Functional(), "last|gap", "relu as a function in the network itself"),
    ("deep_lift", Functional(), "last|gap", "relu as a function in the network itself"),
    ("deep_lift", stack(nn.SiLU()), "2|gap", "SiLU at 1"),
    ("deep_lift", nn.Sequential(Gated()), "0|gap", "a product of two activations in 0"),
    ("deep_lift", stack(nn.ReLU()), "2|gem", "the readout gem"),
    ("deep_lift", stack(nn.ReLU()), "2|max", "the readout max"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "net", "tap", "message"), REFUSED)
def test_steps_without_a_rule_are_named(method: str, net: nn.Module, tap: str, message: str):
    data = blobs(3)
    backbone = Backbone.from_module(net, preprocessing=Preprocessing(SIZE, SIZE))
    probe = drawn_probe(backbone, tap, data)
    with pytest.raises(InputError, match=message):
        attribute_images(backbone, data, probe, method=method)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in backbone.module.modules())


def test_what_lies_behind_the_tap_plays_no_part():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU())
    backbone = Backbone.from_module(net, preprocessing=Preprocessing(SIZE, SIZE))
    assert [str(step) for step in nonlinear_steps(backbone, resolve_taps(backbone, "2")[0])] == ["ReLU at 1"]
    attribute_images(backbone, blobs(3), drawn_probe(backbone, "2|gap", blobs(3)), method="deep_lift")


def test_transformers_are_refused_by_name():
    net = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=0, depth=2)
    backbone = Backbone.from_module(net, preprocessing=Preprocessing(SIZE, SIZE))
    probe = drawn_probe(backbone, "blocks.1|cls", blobs(3))
    with pytest.raises(InputError, match="GELU at blocks.0.mlp.act"):
        attribute_images(backbone, blobs(3), probe, method="guided_backprop")
    with pytest.raises(InputError, match="LayerNorm at blocks.0.norm1"):
        attribute_images(backbone, blobs(3), probe, method="deep_lift")
