"""The fused forward pass gives what the hooked one gives, at every tap."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from probekit import Backbone, load_backbone, record
from probekit.errors import FusionImpossible
from probekit.features.fusion import fuse, fuse_with_gradients
from probekit.features.trial import _proven, relative_errors
from probekit.taps.layers import resolve_taps

# There extraction takes the plain pass, as after every fused pass that fails its trial.
packing = pytest.mark.skipif(
    torch.__version__ < "2.7", reason="oneDNN of PyTorch 2.6 refuses some packed convolutions"
)


def both(backbone: Backbone, words, batch: torch.Tensor):
    """Return the errors of the fused pass at each tap."""
    taps = resolve_taps(backbone, words)
    with record(backbone, taps) as run:
        reference = run(batch)
    return relative_errors(fuse(backbone, taps, batch)(batch), reference)


def operations(backbone: Backbone, words, batch: torch.Tensor) -> set[str]:
    """Return the names of what the fused pass calls."""
    fused = fuse(backbone, resolve_taps(backbone, words), batch)
    with torch.profiler.profile() as seen:
        fused(batch)
    return {event.key.removeprefix("aten::") for event in seen.key_averages()}


def settled(module: nn.Module, size: int = 32) -> Backbone:
    """Batch-norm statistics and gains as after training, so that folding has something to fold."""
    stream = torch.Generator().manual_seed(5)
    for one in module.modules():
        if isinstance(one, nn.BatchNorm2d):
            for values, low, high in (
                (one.running_mean, -1, 1), (one.running_var, 0.3, 3), (one.weight, 0.5, 2), (one.bias, -1, 1),
            ):  # fmt: skip
                if values is not None:
                    values.data = torch.rand(len(values), generator=stream) * (high - low) + low
    return Backbone.from_module(module)


def noise(size: int, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


@packing
@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("resnet10t", 32),
        ("tf_efficientnet_lite0", 32),
        pytest.param("mobilenetv3_small_050", 32, marks=pytest.mark.slow),
        pytest.param("regnetx_002", 32, marks=pytest.mark.slow),
        pytest.param("convnext_atto", 32, marks=pytest.mark.slow),
        pytest.param("densenet121", 32, marks=pytest.mark.slow),
        pytest.param("vit_tiny_patch16_224", 224, marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", 224, marks=pytest.mark.slow),
    ],
)
def test_every_block_of_an_architecture(arch: str, size: int):
    backbone = load_backbone(f"{arch}:random@0,size={size}")
    errors = both(settled(backbone.module), "blocks", noise(size))
    assert len(errors) >= 3
    assert max(errors.values()) <= 1e-5


def test_taps_inside_folded_and_fused_regions_keep_their_meaning():
    torchvision = pytest.importorskip("torchvision")
    backbone = settled(torchvision.models.resnet18())
    # conv1 and bn1 before the in-place ReLU, bn2 before the in-place sum, the sum's own ReLU, the inputs.
    words = ["conv1", "bn1", "relu", "layer1.0.bn2", "layer1.0.relu#0", "layer1.0.relu#1"]
    words += ["layer2.0.downsample.1", "layer1.0.conv2:in", "fc:in", "layer3.0|raw"]
    errors = both(backbone, words, noise(48))
    assert len(errors) == len(words)
    assert max(errors.values()) <= 1e-5


@packing
def test_the_backbone_is_left_as_it_was():
    backbone = settled(load_backbone("resnet10t:random@0,size=32").module)
    before = backbone.weights
    layouts = [one.stride() for one in backbone.module.parameters()]
    both(backbone, "stages", noise(32))
    assert Backbone.from_module(backbone.module).weights == before
    assert [one.stride() for one in backbone.module.parameters()] == layouts
    assert not any(one._forward_hooks for one in backbone.module.modules())


@packing
def test_short_batches_are_filled_up():
    backbone = settled(load_backbone("resnet10t:random@0,size=32").module)
    taps, batch = resolve_taps(backbone, "stages"), noise(32, 6)
    fused = fuse(backbone, taps, batch)
    whole, short = fused(batch), fused(batch[:2])
    for tap in taps:
        assert len(short[tap]) == 2
        torch.testing.assert_close(short[tap], whole[tap][:2], rtol=0, atol=0)


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(inplace=True),
        nn.Hardtanh(-0.3, 0.7),
        nn.SiLU(),
        nn.Hardswish(),
        nn.GELU(),
        nn.GELU("tanh"),
        nn.LeakyReLU(0.2),
        nn.Sigmoid(),
        nn.Softplus(),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("groups", [1, 4])
def test_every_activation_behind_a_convolution(activation: nn.Module, groups: int):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        activation,
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups, bias=False),
        nn.BatchNorm2d(8, affine=False),
        copy.deepcopy(activation),
    )
    assert max(both(settled(net), ["2", "5"], noise(16)).values()) <= 1e-5


class Sums(nn.Module):
    """A residual block in the ways people write it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.norm(self.conv(x))
        if self.kind == "out of place":
            return x + y
        if self.kind == "in place":
            y += x
            return y
        if self.kind == "scaled":
            return torch.add(x, y, alpha=0.3)
        if self.kind == "broadcast":
            return y + x.mean((2, 3), keepdim=True)
        if self.kind == "twice":
            return y + y
        if self.kind == "hardtanh after":
            return nn.functional.relu6(x + y)
        return nn.functional.relu_(x + y)


@pytest.mark.parametrize(
    "kind", ["out of place", "in place", "scaled", "broadcast", "twice", "hardtanh after", "relu after"]
)
def test_every_way_to_write_a_residual_sum(kind: str):
    backbone = settled(Sums(kind))
    assert max(both(backbone, ["norm", "conv"], noise(16)).values()) <= 1e-5

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.tail = Sums(kind), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tail(self.body(x))

    assert max(both(settled(Whole()), ["tail|raw"], noise(16)).values()) <= 1e-5


class ReadAgain(nn.Module):
    """What is changed in place is read again: under its old name, or through a view made before."""

    def __init__(self, through_view: bool) -> None:
        super().__init__()
        self.conv, self.relu, self.tail = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Identity()
        self.through_view = through_view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        seen = x.view(x.shape) if self.through_view else x
        return self.tail(self.relu(x) + seen)


def test_what_is_changed_in_place_may_be_read_again():
    assert max(both(Backbone.from_module(ReadAgain(False)), ["tail|raw"], noise(16)).values()) <= 1e-5


def test_what_cannot_be_rewritten_fails_its_proof():
    backbone = Backbone.from_module(ReadAgain(True))
    with pytest.raises(FusionImpossible):
        _proven(backbone, resolve_taps(backbone, "tail|raw"), noise(16))


class Branching(nn.Module):
    """A path that depends on values cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.mean() > 0 else self.conv(-x)


def test_what_cannot_be_traced_is_refused():
    backbone = Backbone.from_module(Branching())
    with pytest.raises(FusionImpossible, match="export"):
        fuse(backbone, resolve_taps(backbone, "conv#0"), noise(16))


@packing
def test_bfloat16_is_close():
    backbone = settled(load_backbone("resnet10t:random@0,size=32").module)
    taps, batch = resolve_taps(backbone, "stages"), noise(32)
    with record(backbone, taps) as run:
        reference = run(batch)
    errors = relative_errors(fuse(backbone, taps, batch, precision=torch.bfloat16)(batch), reference)
    assert all(1e-4 < error < 0.1 for error in errors.values())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
@pytest.mark.parametrize(
    ("amounts", "mode", "groups", "dilation", "absorbed"),
    [
        ((0, 1, 0, 1), "constant", 4, 1, True),
        ((2, 0, 1, 3), "constant", 4, 1, True),
        ((1, 2), "constant", 4, 1, True),
        ((1, 1, 2, 2), "constant", 1, 2, True),
        ((0, 1, 0, 1), "constant", 1, 1, False),
        ((0, 1, 0, 1), "constant", 4, 2, False),
        ((0, -1, 0, 1), "constant", 4, 1, False),
        ((1, 1, 1, 1), "reflect", 4, 1, False),
        ((1, 1, 1, 1, 0, 0), "constant", 4, 1, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stride", [1, 2])
def test_zeros_around_an_image_become_the_padding_of_a_convolution(
    amounts, mode, groups, dilation, absorbed, stride
):
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.conv = nn.Conv2d(4, 4, 3, stride, 1, dilation, groups, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(nn.functional.pad(self.stem(x), amounts, mode)))

    backbone, batch = settled(Padded()), noise(15)
    assert max(both(backbone, ["norm|raw"], batch).values()) <= 1e-5
    assert ("pad" not in operations(backbone, ["norm|raw"], batch)) == absorbed


def test_padding_that_is_no_zero_or_is_read_stays():
    for net, words in (
        (nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), 0.5), nn.Conv2d(3, 3, 3, groups=3)), ["1"]),
        (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 3, 3, groups=3)), ["0", "1"]),
    ):
        backbone = Backbone.from_module(net)
        assert max(both(backbone, words, noise(16)).values()) <= 1e-5
        assert "pad" in operations(backbone, words, noise(16))


class _InPlace(nn.Module):
    """A residual block whose activations work in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        found = self.norm(self.conv(maps))
        found += maps
        return self.act(found)


def test_gradients_of_the_fused_pass_are_those_of_the_hooked_one():
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)]
    backbone = settled(nn.Sequential(*stem, _InPlace(), _InPlace()))
    (tap,) = resolve_taps(backbone, ["3|raw"])
    fused = fuse_with_gradients(backbone, tap, noise(32))
    # The graph takes fewer images than it was traced with.
    for count in (4, 1):
        found = []
        with record(backbone, [tap], gradients=True) as run:
            for forward in (fused, lambda batch: run(batch)[tap]):
                batch = noise(32, count).requires_grad_()
                value = forward(batch)
                (gradient,) = torch.autograd.grad(value.square().sum(), batch)
                found.append((value.detach(), gradient))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not any(one.requires_grad for one in backbone.module.parameters())
