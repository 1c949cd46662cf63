"""The architecture is read from names and shapes, and held against the checkpoint before it is named."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn

from probekit.backbones.architectures import OURS, VARIANTS
from probekit.backbones.checkpoint import find_state_dicts
from probekit.backbones.inference import (
    build_hollow,
    examine,
    examine_all,
    infer_architecture,
    propose_architectures,
)
from probekit.backbones.reading_transformers import read_vit
from probekit.backbones.readings import Proposal
from probekit.errors import CheckpointError, InputError


def hollow(arch, prefix="module.", size=None):
    """The names and shapes of an architecture's weights, in a checkpoint."""
    state = build_hollow(arch, size).state_dict()
    return {"state_dict": {prefix + name: one for name, one in state.items()}}


def fitting(opened):
    states = find_state_dicts(opened)
    trials = examine_all(propose_architectures(opened, states), states, "a.pth")
    return [trial.proposal.arch for trial in trials if trial.fits]


SAMPLE = [
    *(
        "resnet26d",
        "resnet50t",
        "resnet101s",
        "resnext50_32x4d",
        "wide_resnet50_2",
        "seresnet50",
        "ecaresnet50d",
    ),
    *("resnet50x2", "resnet200x2", "resnet34_cifar", "cifar_resnet110"),
    *("convnext_atto", "convnextv2_nano", "convnext_atto_ols", "swin_tiny_patch4_window7_224"),
    *("mobilenetv2_100", "mobilenetv3_small_050", "efficientnet_b0", "efficientnet_lite0"),
    *(
        "vit_tiny_patch16_224",
        "vit_small_patch8_224",
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
    ),
    *("vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3_qkvb", "deit_tiny_distilled_patch16_224"),
    *(
        "deit3_small_patch16_224",
        "vit_base_patch32_clip_224",
        "beit_base_patch16_384",
        "vit_huge_patch14_gap_224",
    ),
    *("torchvision.models.mobilenet_v2", "torchvision.models.densenet121", "torchvision.models.alexnet"),
    *("torchvision.models.shufflenet_v2_x0_5", "torchvision.models.squeezenet1_1"),
]


@pytest.mark.parametrize("arch", SAMPLE)
def test_an_architecture_is_read_from_its_names_and_shapes(arch):
    assert infer_architecture(hollow(arch), "a.pth") == arch


FAMILIES = (
    r"resnet\d+[cdst]?|wide_resnet\w+|resnext\d+_32x\d+d|seresnet\d+[dt]?|seresnext\d+_32x\d+d|ecaresnet(26t|50[dt]|101d)"
    r"|convnext(v2)?_[a-z]+(_ols)?|swin_[tsbl][a-z]+_patch\w+|swinv2_[tsb][a-z]+_window\d+_\d+|(tf_)?efficientnet_(b[0-7]|lite\d)"
    r"|mobilenetv2_\w+|(tf_)?mobilenetv3_(small|large)_\d+|(tf_)?efficientnetv2_[sml]"
    r"|vit_(tiny|small|base|large|huge)_patch\d+_(gap_)?(224|384|448)|vit_\w+_dinov[23](_qkvb)?"
    r"|deit3?_(tiny|small|base|large|huge)\w+|beit(v2)?_\w+|vit_(base|large|huge)_patch\d+_clip_(quickgelu_)?(224|336|378|384)"
)
# A depth of timm's own, left out of the table.
UNREAD = {"seresnet269d"}


@pytest.mark.campaign
def test_every_architecture_of_the_families_is_among_those_that_fit(caplog):
    caplog.set_level(logging.ERROR)
    names = [name for name in timm.list_models() if re.fullmatch(FAMILIES, name) and name not in UNREAD]
    missed = [name for name in [*names, *OURS, *VARIANTS] if name not in fitting(hollow(name))]
    assert len(names) > 150
    assert missed == []


@pytest.mark.parametrize(
    ("arch", "also"),
    [
        ("resnet18_cifar", "resnet18_cifar_pad2"),
        ("vit_small_patch16_224", "vit_small_patch16_224_heads12"),
        ("mobilenetv2_100", "mobilenetv2_100_same"),
        ("efficientnet_b0", "tf_efficientnet_b0"),
        ("vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224"),
        ("swinv2_tiny_window8_256", "swinv2_tiny_window16_256"),
    ],
)
def test_all_that_fit_are_listed_and_what_the_weights_cannot_tell_is_said(arch, also):
    opened = hollow(arch)
    assert {arch, also} <= set(fitting(opened))
    proposals = {one.arch: one for one in propose_architectures(opened, find_state_dicts(opened))}
    assert any("no mark in the weights" in note for note in proposals[also].notes)


def test_signs_of_a_project_decide_between_equals():
    moco = {
        name.replace("module.", "module.base_encoder."): one
        for name, one in hollow("vit_small_patch16_224")["state_dict"].items()
    }
    assert infer_architecture({"state_dict": moco}, "a.pth") == "vit_small_patch16_224_heads12"
    with_background = hollow("mobilenetv2_100", "")["state_dict"] | {
        "classifier.weight": torch.empty(1001, 1280)
    }
    assert infer_architecture(with_background, "a.pth") == "mobilenetv2_100_same"
    clip = {
        f"visual.{name}": one for name, one in hollow("vit_base_patch32_clip_224", "")["state_dict"].items()
    }
    assert infer_architecture(clip, "a.pth").startswith("vit_base_patch32_clip")


def test_folded_batch_norm_speaks_for_tensorflow():
    state = timm.create_model("mobilenetv2_100").state_dict()
    assert infer_architecture(state, "a.pth") == "mobilenetv2_100_same"
    state["bn1.running_var"] = torch.full((32,), 0.7)
    assert infer_architecture(state, "a.pth") == "mobilenetv2_100"


@pytest.mark.parametrize(
    ("arch", "size", "said"), [("vit_tiny_patch16_224", 96, 96), ("vit_tiny_patch16_224", 384, None)]
)
def test_the_size_of_a_position_embedding_is_read(arch, size, said):
    opened = hollow(arch, size=size)
    found = propose_architectures(opened, find_state_dicts(opened))[0]
    assert found.facts["image_size"] == size
    assert found.size == said
    assert found.arch == (arch if said else "vit_tiny_patch16_384")
    assert examine(found, find_state_dicts(opened), "a.pth").match.notes == ()


def test_a_wider_or_deeper_network_is_not_taken_for_a_known_one():
    tensors = hollow("resnet50x2", "")["state_dict"]
    tensors["layer1.0.conv2.weight"] = torch.empty(256, 256, 3, 3)
    with pytest.raises(CheckpointError, match="ResNet-50, 2 times wider throughout, but does not fill it"):
        infer_architecture(tensors, "a.pth")
    deeper = hollow("vit_tiny_patch16_224", "")["state_dict"]
    deeper |= {
        name.replace("blocks.11.", "blocks.12."): one for name, one in deeper.items() if "blocks.11." in name
    }
    with pytest.raises(CheckpointError, match="ViT 192×13/16, but does not fill it"):
        infer_architecture(deeper, "a.pth")
    wrong = hollow("resnet18", "")["state_dict"]
    wrong["layer3.0.conv1.weight"] = torch.empty(256, 128, 1, 1)
    with pytest.raises(CheckpointError, match="ResNet-18, but does not fill it"):
        infer_architecture(wrong, "a.pth")
    with pytest.raises(CheckpointError, match="looks like none of them"):
        infer_architecture({"a.weight": torch.ones(2, 2)}, "a.pth")


def test_a_config_may_name_the_architecture():
    opened = {"config": {"architecture": "mobilenetv3_small_050"}, "state_dict": {"a": torch.ones(1)}}
    assert infer_architecture(opened, "a.pth") == "mobilenetv3_small_050"
    assert infer_architecture({**hollow("resnet18"), "arch": "vit_small"}, "a.pth") == "resnet18"


def names_of(layout, depth=12):
    """Names of a ViT-S/16 in the layouts of other projects, as their files have them."""
    wide = {
        "patch": torch.empty(384, 3, 16, 16, device="meta"),
        "token": torch.empty(1, 1, 384, device="meta"),
    }
    grid = torch.empty(1, 197, 384, device="meta")
    begin, block, more = layout
    tensors = {
        name: {"patch": wide["patch"], "class": wide["token"], "grid": grid}[part]
        for name, part in begin.items()
    }
    for i in range(depth):
        tensors[block.format(i, i // 3)] = torch.empty(384, device="meta")
        tensors |= {name.format(i): torch.empty(384, device="meta") for name in more}
    return tensors


LAYOUTS = {
    "torchvision": (
        {"conv_proj.weight": "patch", "class_token": "class", "encoder.pos_embedding": "grid"},
        "encoder.layers.encoder_layer_{}.ln_1.weight",
        (),
    ),
    "Hugging Face": (
        {
            "vit.embeddings.patch_embeddings.projection.weight": "patch",
            "vit.embeddings.cls_token": "class",
            "vit.embeddings.position_embeddings": "grid",
        },
        "vit.encoder.layer.{}.layernorm_before.weight",
        (),
    ),
    "OpenMMLab": (
        {
            "backbone.patch_embed.projection.weight": "patch",
            "backbone.cls_token": "class",
            "backbone.pos_embed": "grid",
        },
        "backbone.layers.{}.ln1.weight",
        (),
    ),
    "CLIP": (
        {
            "visual.conv1.weight": "patch",
            "visual.class_embedding": "class",
            "visual.positional_embedding": "grid",
        },
        "visual.transformer.resblocks.{}.ln_1.weight",
        ("transformer.resblocks.{}.ln_1.weight",),
    ),
    "DINOv2 in chunks": (
        {
            "backbone.patch_embed.proj.weight": "patch",
            "backbone.cls_token": "class",
            "backbone.pos_embed": "grid",
        },
        "backbone.blocks.{1}.{0}.norm1.weight",
        ("backbone.blocks.0.{}.ls1.gamma",),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_vit_is_read_whatever_its_parts_are_called(layout):
    found = list(read_vit(names_of(LAYOUTS[layout])))
    assert found[0].kind == "ViT-S/16"
    assert {
        name: found[0].facts[name] for name in ("width", "depth", "patch", "class_token", "image_size")
    } == {
        "width": 384,
        "depth": 12,
        "patch": 16,
        "class_token": True,
        "image_size": 224,
    }
    assert found[0].facts["layer_scale"] == (layout == "DINOv2 in chunks")


def hugging_face(state):
    """A ViT's weights under the names of transformers, query, key and value apart."""
    words = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}  # fmt: skip
    top = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
           "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        found = re.match(r"blocks[.]([0-9]+)[.](.+?)([.]weight|[.]bias|)$", name)
        part, end = found.groups()[1:] if found else re.match(r"(.+?)([.]weight|[.]bias|)$", name).groups()
        if found and part == "attn.qkv":
            for one, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"vit.encoder.layer.{found[1]}.attention.attention.{one}{end}"] = piece
        elif found:
            renamed[f"vit.encoder.layer.{found[1]}.{words[part]}{end}"] = tensor
        else:
            renamed[f"vit.{top[part]}{end}" if part != "head" else f"classifier{end}"] = tensor
    return renamed


def meta_swin(state):
    """A Swin's weights as Meta's and Microsoft's code names them: downsampling ends a stage."""
    end = r"layers[.]([0-9])[.]downsample"
    return {
        re.sub(end, lambda found: f"layers.{int(found[1]) - 1}.downsample", name).replace(
            "head.fc", "head"
        ): one
        for name, one in state.items()
    }


def meta_convnext(state):
    words = {
        "head.norm.": "norm.",
        "head.fc.": "head.",
        "conv_dw": "dwconv",
        "mlp.fc1": "pwconv1",
        "mlp.fc2": "pwconv2",
    }
    renamed = {}
    for name, one in state.items():
        new = re.sub(r"^stem[.]", "downsample_layers.0.", name)
        new = re.sub(r"stages[.]([0-9])[.]downsample[.]", r"downsample_layers.\1.", new)
        new = re.sub(r"stages[.]([0-9])[.]blocks[.]", r"stages.\1.", new)
        for old, word in words.items():
            new = new.replace(old, word)
        renamed[new] = one
    return renamed


@pytest.mark.parametrize(
    ("arch", "write"),
    [
        ("vit_tiny_patch16_224", hugging_face),
        ("swin_tiny_patch4_window7_224", meta_swin),
        ("convnext_tiny", meta_convnext),
        ("vit_base_patch16_224", lambda _state: build_hollow("torchvision.models.vit_b_16").state_dict()),
    ],
)
def test_an_architecture_is_read_under_the_names_of_another_project(arch, write):
    assert infer_architecture({"model": write(build_hollow(arch).state_dict())}, "a.pth") == arch


def test_an_architecture_that_cannot_be_built_lacks_everything_or_raises():
    states = find_state_dicts({"a": torch.ones(1)})
    impossible = Proposal("vit_tiny_patch16_224", "ViT", 100)
    assert "100 px" in examine_all([impossible], states, "a.pth")[0].lacking
    with pytest.raises(InputError, match="100 px"):
        examine(impossible, states, "a.pth")
    assert not examine(Proposal("", "ViT"), states, "a.pth").fits


def test_a_function_that_needs_values_is_built_with_them(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    width = int(torch.tensor([2.0, 3.0]).sum())\n    "
        "return nn.Sequential(nn.Conv2d(3, width, 1))\n"
    )
    module = build_hollow(f"{file}:make")
    assert module[0].out_channels == 5


def test_two_branches_of_equal_standing_fit_and_ask():
    encoder = build_hollow("resnet18").state_dict()
    filled = {name: torch.zeros(one.shape, dtype=one.dtype) for name, one in encoder.items()}
    other = {name: one + 1 for name, one in filled.items()}
    opened = OrderedDict(encoder=filled, target_encoder=other)
    states = find_state_dicts(opened)
    trial = examine(Proposal("resnet18", "ResNet-18"), states, "a.pth")
    assert trial.fits
    assert trial.match is None
    assert "branch=online or branch=ema" in trial.choice
    assert isinstance(trial.module, nn.Module)
