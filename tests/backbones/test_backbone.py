"""The frozen Backbone: its facts, its digests, its copies."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms

from probekit.backbones.backbone import Backbone, token_facts, unwrap
from probekit.backbones.preprocessing import adjust, read_settings
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError
from probekit.files import canonical_json
from probekit.seeds import random_stream

SMALL = Preprocessing(8, 8)


def tiny():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def test_a_module_is_copied_and_frozen_and_the_original_left_alone():
    module = tiny()
    backbone = Backbone.from_module(module, preprocessing=SMALL)
    assert module.training
    assert all(one.requires_grad for one in module.parameters())
    assert not backbone.module.training
    assert not any(one.requires_grad for one in backbone.module.parameters())
    digest = backbone.weights
    with torch.no_grad():
        module[0].weight.zero_()
    assert Backbone.from_module(backbone.module, preprocessing=SMALL).weights == digest


def test_the_digest_tells_values_names_types_and_buffers_apart():
    module = tiny()
    seen = {Backbone.from_module(module, preprocessing=SMALL).weights}
    for change in (
        lambda one: one[0].weight.data.view(-1)[3:4].add_(1e-6),
        lambda one: one[1].running_mean.add_(1),
        lambda one: one.double(),
        lambda one: one.register_buffer("more", torch.zeros(1), persistent=False),
        lambda one: one.append(nn.Linear(1, 1)),
    ):
        other = copy.deepcopy(module)
        change(other)
        seen.add(Backbone.from_module(other, preprocessing=SMALL).weights)
    assert len(seen) == 6
    half = Backbone.from_module(copy.deepcopy(module).bfloat16(), preprocessing=SMALL)
    assert len(half.weights) == 64


def test_equal_weights_in_changed_code_are_told_apart():
    module = tiny()
    other = copy.deepcopy(module)
    other[0].stride = (2, 2)
    one, two = (Backbone.from_module(each, preprocessing=SMALL) for each in (module, other))
    assert one.weights == two.weights
    assert one.code != two.code
    assert one.code == Backbone.from_module(module, preprocessing=SMALL).code


def test_bits_do_not_change_when_it_is_used():
    backbone = Backbone.from_module(tiny(), preprocessing=SMALL)
    before = backbone.weights
    backbone.module(backbone.prepare(torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)))
    assert Backbone.from_module(backbone.module, preprocessing=SMALL).weights == before


def test_prepare_equals_torchvisions_transforms_bit_for_bit():
    pixels = random_stream("test prepare").integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    facts = Preprocessing(8, 8, (0.1, 0.2, 0.3), (0.5, 0.25, 0.7))
    backbone = Backbone.from_module(tiny(), preprocessing=facts)
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(facts.mean, facts.std)])
    ours = backbone.prepare(torch.from_numpy(pixels))
    assert torch.equal(ours, torch.stack([theirs(Image.fromarray(one)) for one in pixels]))
    assert ours.is_contiguous()


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(1, 8, 8, 3),
        torch.zeros(1, 9, 9, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
    ],
)
def test_prepare_refuses_other_pixels(pixels):
    with pytest.raises(InputError, match="8, 8, 3"):
        Backbone.from_module(tiny(), preprocessing=SMALL).prepare(pixels)


def test_editing_returns_a_copy_with_a_note():
    backbone = Backbone.from_module(tiny(), preprocessing=SMALL)
    digest = backbone.weights
    module = copy.deepcopy(backbone.module)
    module[0].weight.data.zero_()
    edited = backbone.edited(module, "first layer zero")
    assert edited.weights != digest
    assert backbone.weights == digest
    assert edited.checkpoint.notes[-1] == "first layer zero"
    assert edited.cache is not backbone.cache


def test_moving_returns_itself_where_it_is():
    backbone = Backbone.from_module(tiny(), preprocessing=SMALL)
    assert backbone.to("cpu") is backbone
    moved = backbone.to("meta")
    assert moved.device.type == "meta"
    assert backbone.device.type == "cpu"


def test_facts_are_json():
    facts = Backbone.from_module(tiny(), name="t", preprocessing=SMALL).facts()
    assert canonical_json(facts)
    assert facts["checkpoint"] == "memory"
    assert facts["parameters"] == 4 * 27 + 4 + 8 + 144 * 5 + 5
    assert not facts["random_init"]


def test_paths_given_are_checked():
    for settings in ({"blocks": ["0", "7"]}, {"levels": {"7": "low"}}, {"classifier": "7"}):
        with pytest.raises(InputError, match="'7'"):
            Backbone.from_module(tiny(), preprocessing=SMALL, **settings)
    backbone = Backbone.from_module(tiny(), preprocessing=SMALL, blocks=["0", "2"], classifier="4")
    assert backbone.blocks == ("0", "2")
    assert backbone.has_head


def test_wrappers_are_taken_off():
    module = tiny()
    assert unwrap(nn.DataParallel(module)) is module
    compiled = nn.Module()
    compiled._orig_mod = nn.DataParallel(module)  # what torch.compile makes, without loading the compiler
    assert unwrap(compiled) is module


def test_a_module_that_cannot_be_copied_is_refused():
    module = tiny()
    module.made = (torch.ones(2, requires_grad=True) * 2,)
    with pytest.raises(InputError, match="copied"):
        Backbone.from_module(module)


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner


class HuggingFaceEmbeddings(nn.Module):
    def __init__(self, registers):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, 4))


def shrunk(arch, **settings):
    return timm.create_model(arch, embed_dim=48, depth=1, num_heads=2, **settings)


# Network → channels_last, prefix_tokens, has_class_token.
LAYOUTS = [
    (lambda: timm.create_model("resnet18"), (False, None, False)),
    (lambda: shrunk("vit_tiny_patch16_224"), (False, 1, True)),
    (lambda: Wrapper(shrunk("vit_tiny_patch16_224")), (False, 1, True)),
    (lambda: shrunk("deit_tiny_distilled_patch16_224"), (False, 2, True)),
    (lambda: shrunk("vit_small_patch14_reg4_dinov2", img_size=56), (False, 5, True)),
    (lambda: shrunk("vit_medium_patch16_reg4_gap_256"), (False, 4, False)),
    (lambda: shrunk("vit_base_patch16_gap_224"), (False, 0, False)),
    (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1)),
        (True, None, False),
    ),
    (lambda: timm.create_model("convnext_atto"), (False, None, False)),
    (lambda: shrunk("cait_xxs24_224"), (False, 0, False)),
    (lambda: shrunk("xcit_nano_12_p16_224"), (False, 0, False)),
    (lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 16), (False, 1, True)),
    (lambda: torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [2, 2], [7, 7]), (True, None, False)),
    (lambda: Wrapper(HuggingFaceEmbeddings(0)), (False, 1, True)),
    (lambda: Wrapper(HuggingFaceEmbeddings(4)), (False, 5, True)),
]


@pytest.mark.parametrize(("make", "expected"), LAYOUTS)
def test_layout_is_read_from_attributes(make, expected):
    assert tuple(token_facts(make()).values()) == expected


def test_a_timm_module_brings_its_preprocessing():
    backbone = Backbone.from_module(timm.create_model("mobilenetv3_small_050"))
    theirs = timm.data.resolve_model_data_config(backbone.module)
    assert backbone.preprocessing.size == theirs["input_size"][1]
    assert backbone.preprocessing.resize == int(theirs["input_size"][1] / theirs["crop_pct"])
    assert backbone.preprocessing.mean == tuple(theirs["mean"])
    assert "timm" in backbone.checkpoint.notes[-1]
    assert "assumed" in Backbone.from_module(tiny()).checkpoint.notes[-1]


def test_timms_settings_become_preprocessing():
    cut, notes = read_settings({"input_size": (3, 224, 224), "crop_pct": 0.9, "crop_mode": "squash"})
    assert (cut.size, cut.resize) == (224, 248)
    assert "squash" in notes[0]
    assert read_settings({"input_size": (3, 32, 32), "crop_pct": 1.0})[0].resize == 32
    assert "random" in read_settings({"interpolation": "random"})[1][0]
    with pytest.raises(InputError, match="1 channels"):
        read_settings({"input_size": (1, 28, 28)})


def test_size_alone_scales_the_resize():
    base = Preprocessing(224, 256)
    assert (adjust(base, {"size": 96}).size, adjust(base, {"size": 96}).resize) == (96, 110)
    assert adjust(base, {"mean": (0.0, 0.0, 0.0)}).resize == 256
    assert adjust(Preprocessing(32, 32), {"size": 33}).resize == 33
