"""Names of other projects: the renamed network computes what the project's own does."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
import torchvision
from timm.layers import QuickGELU, SwiGLUPacked
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from probekit.backbones.formats import load_weights
from probekit.backbones.layouts import flatten_chunks, fuse_qkv
from probekit.errors import CheckpointCoverage
from tests.backbones.reference import (
    DEPTH,
    HEADS,
    PATCH,
    SIZE,
    WIDTH,
    ClipVisual,
    HuggingFaceViT,
    OpenMMLabViT,
    draw,
)

IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(9))


def vit(**settings):
    shape = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return VisionTransformer(**{**shape, "num_classes": 3, **settings}).eval()


def at(prefix, module):
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


LAYER_SCALE = {"init_values": 1.0}
GATED = {"mlp_layer": SwiGLUPacked, "mlp_ratio": 4.0, "act_layer": nn.SiLU}
# What it is, the project's network, the same in timm, where it stands.
SAME = [
    ("Hugging Face ViT", HuggingFaceViT, {}, ""),
    ("within a classifier", HuggingFaceViT, {}, "vit."),
    ("DeiT", HuggingFaceViT, {}, "deit."),
    ("DINOv2", partial(HuggingFaceViT, scale=True), LAYER_SCALE, "dinov2."),
    (
        "DINOv2 with registers",
        partial(HuggingFaceViT, scale=True, registers=4),
        {**LAYER_SCALE, "reg_tokens": 4, "no_embed_class": True},
        "",
    ),
    (
        "DINOv2 with a gated MLP",
        partial(HuggingFaceViT, scale=True, gated=True),
        {**LAYER_SCALE, **GATED},
        "",
    ),
    ("OpenMMLab", OpenMMLabViT, {}, "backbone."),
    (
        "CLIP",
        ClipVisual,
        {"pre_norm": True, "act_layer": QuickGELU, "norm_layer": partial(nn.LayerNorm, eps=1e-6)},
        "visual.",
    ),
    (
        "CLIP under DDP",
        ClipVisual,
        {"pre_norm": True, "act_layer": QuickGELU, "norm_layer": partial(nn.LayerNorm, eps=1e-6)},
        "module.visual.",
    ),
]


@pytest.mark.parametrize(("name", "make", "settings", "prefix"), SAME, ids=[row[0] for row in SAME])
def test_renamed_it_computes_the_same(name, make, settings, prefix):
    theirs, ours = draw(make(), 3), vit(**settings)
    # A text tower of the same width and depth is no second branch.
    tower = at(prefix.replace("visual.", ""), theirs) if "visual" in prefix else {}
    text = {name: one for name, one in tower.items() if "resblocks" in name}
    report, has_head = load_weights(ours, {"state_dict": {**at(prefix, theirs), **text}}, source="a.pth")
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(IMAGES), theirs(IMAGES), rtol=1e-4, atol=1e-5)
    assert not has_head
    assert any("names mapped" in note for note in report.notes), name


@pytest.mark.parametrize(("name", "make", "settings", "prefix"), SAME, ids=[row[0] for row in SAME])
def test_one_block_of_another_shape_is_refused_and_nothing_is_filled(name, make, settings, prefix):
    weights = at(prefix, draw(make(), 3))
    broken = next(key for key in reversed(weights) if weights[key].dim() == 2 and "1." in key)
    ours = vit(**settings)
    before = {key: one.clone() for key, one in ours.state_dict().items()}
    with pytest.raises(CheckpointCoverage):
        load_weights(ours, {**weights, broken: weights[broken][:, :-1]}, source="a.pth")
    with pytest.raises(CheckpointCoverage):
        load_weights(ours, {key: one for key, one in weights.items() if key != broken}, source="a.pth")
    assert all(torch.equal(one, before[key]) for key, one in ours.state_dict().items()), name


def test_torchvisions_vit_computes_the_same_and_keeps_its_classifier():
    theirs = torchvision.models.VisionTransformer(SIZE, PATCH, DEPTH, HEADS, WIDTH, 4 * WIDTH, num_classes=5)
    theirs, ours = draw(theirs, 1), vit()
    report, has_head = load_weights(ours, {"model": theirs.state_dict()}, source="a.pth")
    assert has_head
    assert report.unexpected == ()
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES), rtol=1e-4, atol=1e-5)


def test_hugging_faces_classifier_stands_beside_the_body():
    body = draw(HuggingFaceViT(), 2)
    weights = {
        **at("vit.", body),
        "classifier.weight": torch.rand(7, WIDTH),
        "classifier.bias": torch.rand(7),
    }
    ours = vit()
    _, has_head = load_weights(ours, weights, source="a.pth")
    assert has_head
    assert torch.equal(ours.head.weight, weights["classifier.weight"])


def test_hugging_faces_resnet_computes_the_same():
    def make():
        return ResNet(Bottleneck, [1, 2, 1, 1], channels=(8, 8, 16, 16), num_classes=3)

    theirs = draw(make(), 4)
    stages = {f"layer{stage}": f"encoder.stages.{stage - 1}.layers" for stage in (1, 2, 3, 4)}
    weights = {}
    for name, tensor in theirs.state_dict().items():
        path = name.split(".")
        if path[0] in stages:
            unit = {"conv": "convolution", "bn": "normalization"}
            kind = (
                f"shortcut.{'convolution' if path[3] == '0' else 'normalization'}"
                if path[2] == "downsample"
                else f"layer.{int(path[2][-1]) - 1}.{unit[path[2][:-1]]}"
            )
            weights[f"resnet.{stages[path[0]]}.{path[1]}.{kind}.{path[-1]}"] = tensor
        elif path[0] == "fc":
            weights[f"classifier.1.{path[1]}"] = tensor
        else:
            unit = "convolution" if path[0] == "conv1" else "normalization"
            weights[f"resnet.embedder.embedder.{unit}.{path[1]}"] = tensor
    ours = draw(make(), 5)
    _, has_head = load_weights(ours, weights, source="a.pth")
    assert has_head
    with torch.no_grad():
        torch.testing.assert_close(ours(IMAGES), theirs(IMAGES))


@pytest.mark.parametrize("own_numbers", [True, False])
def test_blocks_in_chunks_are_numbered_in_one_row(own_numbers):
    theirs = draw(vit(depth=4, init_values=1.0), 6)
    weights = {}
    for name, tensor in theirs.state_dict().items():
        _, *path = name.split(".")
        if name.startswith("blocks."):
            block = int(path[0])
            inner = block if own_numbers else block % 2
            name = ".".join(["blocks", str(block // 2), str(inner), *path[1:]])
        weights[f"backbone.{name}"] = tensor
    ours = draw(vit(depth=4, init_values=1.0), 7)
    load_weights(ours, {"teacher": weights}, source="a.pth")
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(IMAGES), theirs.forward_features(IMAGES))


def test_query_key_and_value_stay_in_order():
    parts = {f"blocks.0.attn.{name}.weight": torch.full((1, 1), float(i)) for i, name in enumerate("qkv")}
    assert fuse_qkv(parts)["blocks.0.attn.qkv.weight"].flatten().tolist() == [0, 1, 2]
    biases = {f"blocks.0.attn.{name}.bias": torch.ones(2) for name in "qv"}
    assert fuse_qkv(biases)["blocks.0.attn.qkv.bias"].tolist() == [1, 1, 0, 0, 1, 1]
    assert list(fuse_qkv({"a.attn.q.weight": torch.ones(1)})) == ["a.attn.q.weight"]
    assert list(flatten_chunks({"blocks.1.2.w": torch.ones(1), "x": torch.ones(1)})) == ["blocks.2.w", "x"]


def dinov3(seed):
    module = timm.create_model("vit_small_patch16_dinov3", num_classes=0, depth=2, embed_dim=48, num_heads=2)
    return draw(module, seed)


def as_published(module):
    """The names of DINOv3's authors, and what they save beside the weights."""
    names = {"reg_token": "storage_tokens"}
    weights = {
        names.get(name, name).replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): tensor
        for name, tensor in module.state_dict().items()
    }
    for block in range(2):
        weights[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(3 * 48)
        weights[f"blocks.{block}.attn.qkv.bias_mask"] = torch.zeros(3 * 48)
    return {**weights, "rope_embed.periods": torch.rand(6), "mask_token": torch.zeros(1, 48)}


def as_hugging_face(module):
    weights = {}
    for name, tensor in as_published(module).items():
        name = name.replace("storage_tokens", "embeddings.register_tokens")
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings")
        name = name.replace("blocks.", "layer.").replace(".attn.proj", ".attention.o_proj")
        name = name.replace("mlp.fc1", "mlp.up_proj").replace("mlp.fc2", "mlp.down_proj")
        name = name.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        if name in {"cls_token", "mask_token"}:
            name = f"embeddings.{name}"
        if ".attn.qkv." in name:
            path, kind = name.split(".attn.qkv.")
            if kind != "bias_mask":
                for part, one in zip("qkv", tensor.chunk(3), strict=True):
                    if (part, kind) != ("k", "bias"):
                        weights[f"{path}.attention.{part}_proj.{kind}"] = one
        elif "rope" not in name:
            weights[name] = tensor
    return weights


@pytest.mark.parametrize(
    "write",
    [
        as_published,
        as_hugging_face,
        lambda module: {"teacher": {f"backbone.{k}": v for k, v in as_published(module).items()}},
    ],
    ids=["hub", "Hugging Face", "training"],
)
def test_dinov3_computes_the_same_under_every_name(write, capsys):
    theirs, ours = dinov3(1), dinov3(2)
    load_weights(ours, write(theirs), source="a.pth", arch="vit_small_patch16_dinov3")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(images), theirs.forward_features(images))
    assert capsys.readouterr().out == ""


def test_dinov3_biases_that_are_not_zero_are_not_dropped():
    weights = as_published(dinov3(1))
    weights["blocks.1.attn.qkv.bias"] = torch.ones(3 * 48)
    with pytest.raises(CheckpointCoverage):
        load_weights(dinov3(2), weights, source="a.pth", arch="vit_small_patch16_dinov3")


def test_deits_second_classifier_comes_along_or_there_is_none():
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, depth=1)
    weights = draw(theirs, 1).state_dict()
    names = {"head.": "cls_classifier.", "head_dist.": "distillation_classifier."}
    both = {
        next((new + name[len(old) :] for old, new in names.items() if name.startswith(old)), name): one
        for name, one in weights.items()
    }
    ours = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, depth=1)
    hugging = {}
    for name, one in both.items():
        if ".qkv." in name:
            path, kind = name.replace("blocks.", "deit.encoder.layer.").split(".attn.qkv.")
            for part, value in zip(("query", "key", "value"), one.chunk(3), strict=True):
                hugging[f"{path}.attention.attention.{part}.{kind}"] = value
            continue
        name = name.replace("blocks.", "encoder.layer.").replace("attn.proj", "attention.output.dense")
        name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        name = name.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
        name = {"norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias"}.get(name, name)
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = {
            "cls_token": "embeddings.cls_token",
            "dist_token": "embeddings.distillation_token",
            "pos_embed": "embeddings.position_embeddings",
        }.get(name, name)
        hugging[name if "classifier" in name else f"deit.{name}"] = one
    _, has_head = load_weights(ours, hugging, source="a.pth", arch="deit_tiny_distilled_patch16_224")
    assert has_head
    assert torch.equal(ours.head_dist.weight, weights["head_dist.weight"])
    alone = {name: one for name, one in hugging.items() if "distillation_classifier" not in name}
    other = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, depth=1)
    _, has_head = load_weights(other, alone, source="a.pth", arch="deit_tiny_distilled_patch16_224")
    assert not has_head


def test_xcits_biases_are_carried_over_by_timms_rules():
    ours = timm.create_model("xcit_nano_12_p16_224", depth=2, num_classes=0)
    theirs = draw(timm.create_model("xcit_nano_12_p16_224", depth=2, num_classes=0), 3)
    published, parts = {}, {}
    for name, one in theirs.state_dict().items():
        path, _, kind = name.rpartition(".")
        if "cls_attn_blocks" in name and path.rpartition(".")[2] in {"q", "k", "v"}:
            parts.setdefault((path[:-1], kind), []).append(one)
        else:
            published[name.replace("pos_embed.", "pos_embeder.")] = one
    published |= {f"{path}qkv.{kind}": torch.cat(values) for (path, kind), values in parts.items()}
    load_weights(ours, published, source="a.pth", arch="xcit_nano_12_p16_224")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs(images))
