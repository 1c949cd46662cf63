"""ResNets that timm lacks: what they are, and that each fills from the other's weights."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from probekit.backbones.architectures import CIFAR, OURS, VARIANTS, WIDE, build, is_named, timm_settings
from probekit.backbones.resnets import STAGES, WideResNet, build_small_stem


def trunk_parameters(module):
    return sum(one.numel() for name, one in module.named_parameters() if not name.startswith("fc."))


# Caron et al. (NeurIPS 2020), table 3 and Chen et al. (ICML 2020), figure 1: 24, 94 and 375 million.
@pytest.mark.parametrize(("factor", "millions"), [(1, 23.5), (2, 94), (4, 375)])
def test_wide_resnets_have_the_papers_sizes(factor, millions):
    with torch.device("meta"):
        module = WideResNet(50, factor)
    assert trunk_parameters(module) / 1e6 == pytest.approx(millions, rel=0.005)
    names = set(module.state_dict())
    assert names == set(torchvision.models.resnet50().state_dict())


def test_a_width_of_one_is_torchvisions_resnet():
    with torch.device("meta"):
        ours, theirs = WideResNet(101, 1), torchvision.models.resnet101()
    assert {name: one.shape for name, one in ours.state_dict().items()} == {
        name: one.shape for name, one in theirs.state_dict().items()
    }


def test_a_wide_resnet_runs():
    module = build("resnet50x2", 3).eval()
    with torch.no_grad():
        assert module(torch.rand(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(("padding", "side"), [(1, 4), (2, 5)])
def test_the_small_stem_keeps_the_resolution(padding, side):
    module = build_small_stem(18, padding, 10).eval()
    seen = {}
    module.layer4.register_forward_hook(lambda _module, _inputs, out: seen.update(shape=out.shape))
    with torch.no_grad():
        assert module(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    # 32 px, or 34 with a padding of 2, halved three times, rounded up.
    assert seen["shape"][-1] == side


def test_the_two_paddings_have_equal_names_and_shapes_but_differ_near_the_border():
    one, two = build("resnet18_cifar", 10).eval(), build("resnet18_cifar_pad2", 10).eval()
    two.load_state_dict(one.state_dict())
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(one.conv1(images), two.conv1(images)[:, :, 1:-1, 1:-1])
        assert not torch.equal(one(images), two(images))


def test_every_name_builds_and_is_none_of_timms():
    for name in OURS:
        assert not timm.is_model(name)
        assert is_named(name)
        with torch.device("meta"):
            module = build(name, 7)
        last = module.linear if hasattr(module, "linear") else module.fc
        assert isinstance(last, nn.Linear)
        assert last.out_features == 7
    assert not set(CIFAR) & set(WIDE)
    assert {10, 18, 34, 50, 101, 152, 200} == set(STAGES)


@pytest.mark.parametrize(
    ("name", "size", "strides"), [("resnet10_w16", 48, 16), ("resnet18_w16_cifar", 32, 8)]
)
def test_narrow_ones_are_as_wide_and_deep_as_they_say(name: str, size: int, strides: int):
    module = build(name, 5).eval()
    maps = []
    module.layer4.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    assert module(torch.zeros(2, 3, size, size)).shape == (2, 5)
    assert maps[0].shape == (2, 128, size // strides, size // strides)
    assert module.conv1.out_channels == 16
    blocks = sum(len(getattr(module, f"layer{place}")) for place in (1, 2, 3, 4))
    assert 2 * blocks + 2 == int(name.partition("_")[0].removeprefix("resnet"))


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_timms_with_one_thing_changed(name):
    base, changes = VARIANTS[name]
    assert not timm.is_model(name)
    assert timm_settings(name) == timm_settings(base)
    with torch.device("meta"):
        module, plain = build(name, 5), timm.create_model(base, num_classes=5)
    assert list(module.state_dict()) == list(plain.state_dict())
    assert len(changes) == 1


def test_moco_v3s_small_vit_has_twelve_heads():
    with torch.device("meta"):
        assert {block.attn.num_heads for block in build("vit_small_patch16_224_heads12").blocks} == {12}
        assert build("vit_small_patch16_224_heads12", size=96).pos_embed.shape[1] == 37


def test_tensorflows_padding_is_at_the_end():
    module = build("mobilenetv2_100_same").eval()
    module.conv_stem.weight.data.fill_(1.0)
    image = torch.zeros(1, 3, 8, 8)
    image[..., 1, 1] = 1.0
    with torch.no_grad():
        # Windows begin at 0, 2, 4, 6: one holds position 1, where two would if they began at -1.
        assert module.conv_stem(image)[0, 0].nonzero().tolist() == [[0, 0]]
        assert build("mobilenetv2_100").conv_stem.padding == (1, 1)
