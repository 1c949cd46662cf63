"""Checkpoint layouts of the projects people download from, in miniature; and what must be refused."""

from __future__ import annotations

import argparse
import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from probekit.backbones.checkpoint import StateDict
from probekit.backbones.formats import load_weights, vote
from probekit.backbones.renames import rename_lite0
from probekit.errors import CheckpointCoverage, CheckpointError


def resnet(classes=10, layers=(1, 1, 1, 1)):
    return ResNet(BasicBlock, layers, channels=(8, 8, 16, 16), num_classes=classes)


def vit(classes=10, depth=2, size=32, patch=8):
    settings = {"embed_dim": 16, "depth": depth, "num_heads": 2, "num_classes": classes}
    return VisionTransformer(img_size=size, patch_size=patch, **settings)


def drawn(module, seed):
    """The module with every weight and statistic drawn from a seed, and its state dict."""
    generator = torch.Generator().manual_seed(seed)
    state = module.state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return {name: tensor.clone() for name, tensor in state.items()}


def body(state):
    """Without the classifier."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(("fc.", "head."))}


def at(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def linear(name, out, into):
    return {f"{name}.weight": torch.rand(out, into), f"{name}.bias": torch.rand(out)}


def two(first, second, head):
    """A Lightning checkpoint with two copies of the backbone and a head."""
    return {"state_dict": {**at(first, BODY), **at(second, OTHER), **linear(head, 10, 16)}, "epoch": 1}


A, B = drawn(resnet(), 1), drawn(resnet(), 2)
V, W = drawn(vit(), 3), drawn(vit(), 4)
BODY, OTHER = body(A), body(B)
QUEUE = {"module.queue": torch.rand(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
MOCO1 = {
    **at("module.encoder_q.", {**BODY, **linear("fc", 128, 16)}),
    **at("module.encoder_k.", {**OTHER, **linear("fc", 128, 16)}),
    **QUEUE,
}
MLP = {**linear("fc.0", 16, 16), **linear("fc.2", 128, 16)}
MOCO2 = {**at("module.encoder_q.", {**BODY, **MLP}), **at("module.encoder_k.", {**OTHER, **MLP}), **QUEUE}
DINO_HEAD = {**linear("mlp.0", 32, 16), "last_layer.weight_g": torch.rand(9, 1)}
DINO = {
    "student": {**at("module.backbone.", body(V)), **at("module.head.", DINO_HEAD)},
    "teacher": {**at("backbone.", body(W)), **at("head.", DINO_HEAD)},
    "optimizer": {"state": {0: {"exp_avg": torch.rand(3)}}, "param_groups": []},
    "epoch": 100,
    "args": argparse.Namespace(arch="vit_small"),
    "fp16_scaler": {"scale": 1.0},
    "dino_loss": {"center": torch.rand(1, 9)},
}
VISSL = "classy_state_dict/base_model/model/trunk"
TRUNK = at("_feature_blocks.", BODY)

# Layout, checkpoint, module, weights expected by default, branch, place.
LAYOUTS = [
    ("bare", A, resnet, A, "", ""),
    ("model", {"model": A, "epoch": 3}, resnet, A, "", "model"),
    ("DataParallel", {"state_dict": at("module.", A)}, resnet, A, "", "state_dict/module"),
    ("compiled DDP", {"model": at("_orig_mod.module.", A)}, resnet, A, "", "model/_orig_mod.module"),
    (
        "timm with EMA",
        {"state_dict": A, "state_dict_ema": B, "arch": "r"},
        resnet,
        B,
        "ema",
        "state_dict_ema",
    ),
    ("MoCo v1", {"epoch": 1, "state_dict": MOCO1}, resnet, BODY, "online", "state_dict/module.encoder_q"),
    ("MoCo v2", {"epoch": 1, "state_dict": MOCO2}, resnet, BODY, "online", "state_dict/module.encoder_q"),
    (
        "MoCo v3",
        {
            "state_dict": {
                **at("module.base_encoder.", {**body(V), **linear("head.0", 9, 16)}),
                **at("module.momentum_encoder.", body(W)),
                **at("module.predictor.", linear("0", 9, 9)),
            }
        },
        vit,
        body(V),
        "online",
        "state_dict/module.base_encoder",
    ),
    (
        "SimSiam",
        {
            "state_dict": {
                **at("module.encoder.", {**BODY, **linear("fc.0", 16, 16)}),
                **at("module.predictor.", linear("0", 9, 9)),
            }
        },
        resnet,
        BODY,
        "",
        "state_dict/module.encoder",
    ),
    ("SimCLR", {"state_dict": at("backbone.", {**BODY, **MLP})}, resnet, BODY, "", "state_dict/backbone"),
    (
        "SwAV",
        {
            **at("module.", BODY),
            **linear("module.projection_head.0", 9, 16),
            "module.prototypes.weight": torch.rand(9, 9),
        },
        resnet,
        BODY,
        "",
        "module",
    ),
    ("Barlow Twins, released", BODY, resnet, BODY, "", ""),
    (
        "Barlow Twins, VICReg",
        {"epoch": 1, "model": {**at("module.backbone.", BODY), **linear("module.projector.0", 9, 16)}},
        resnet,
        BODY,
        "",
        "model/module.backbone",
    ),
    ("DINO", DINO, vit, body(W), "ema", "teacher/backbone"),
    (
        "DINO, ResNet",
        {"student": at("module.backbone.", BODY), "teacher": at("module.backbone.", OTHER)},
        resnet,
        OTHER,
        "ema",
        "teacher/module.backbone",
    ),
    (
        "MAE",
        {"model": {**body(V), "mask_token": V["cls_token"], **linear("decoder_pred", 9, 8)}},
        vit,
        body(V),
        "",
        "model",
    ),
    (
        "VISSL",
        {"classy_state_dict": {"base_model": {"model": {"trunk": TRUNK}}}},
        resnet,
        BODY,
        "",
        f"{VISSL}/_feature_blocks",
    ),
    (
        "lightly DINO",
        two("backbone.", "student_backbone.", "projection_head.0"),
        resnet,
        BODY,
        "ema",
        "state_dict/backbone",
    ),
    (
        "lightly BYOL",
        two("backbone.", "teacher_backbone.", "online_classifier"),
        resnet,
        BODY,
        "online",
        "state_dict/backbone",
    ),
    (
        "solo-learn",
        two("backbone.", "momentum_backbone.", "classifier"),
        resnet,
        BODY,
        "online",
        "state_dict/backbone",
    ),
    (
        "mmselfsup",
        two("backbone.", "encoder_k.module.0.", "neck.fc"),
        resnet,
        BODY,
        "online",
        "state_dict/backbone",
    ),
]


@pytest.mark.parametrize(
    ("layout", "opened", "make", "expected", "branch", "place"), LAYOUTS, ids=[row[0] for row in LAYOUTS]
)
def test_each_layout_is_filled_wholly(layout, opened, make, expected, branch, place):
    module = make()
    report, has_head = load_weights(module, opened, source="a.pth")
    state = module.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    assert report.branch == branch
    assert "/".join(part for part in (report.container, report.prefix.rstrip(".")) if part) == place
    assert report.unexpected == ()
    assert has_head == ("fc.weight" in expected or "head.weight" in expected)
    if not has_head:
        head = [tensor for name, tensor in state.items() if name.startswith(("fc.", "head."))]
        assert all(not tensor.any() for tensor in head)
    assert layout


@pytest.mark.parametrize(
    ("opened", "branch", "expected"),
    [
        ({"state_dict": MOCO2}, "ema", OTHER),
        ({"state_dict": MOCO2}, "online", BODY),
        ({"state_dict": MOCO2}, "encoder_k", OTHER),
        ({"state_dict": MOCO2}, "state_dict/module.encoder_k", OTHER),
        ({"state_dict": A, "state_dict_ema": B}, "online", A),
        ({"state_dict": A}, "online", A),
    ],
)
def test_a_branch_is_chosen_by_role_or_place(opened, branch, expected):
    module = resnet()
    report, _ = load_weights(module, opened, source="a.pth", branch=branch)
    assert torch.equal(module.state_dict()["conv1.weight"], expected["conv1.weight"])
    assert len(report.alternatives) == (0 if opened == {"state_dict": A} else 1)


def test_the_other_branch_is_named():
    report, _ = load_weights(resnet(), {"state_dict": MOCO2}, source="a.pth")
    assert report.alternatives == ("ema (state_dict/module.encoder_k)",)
    report, _ = load_weights(vit(), DINO, source="a.pth")
    assert report.alternatives == ("online (student/module.backbone)",)


def test_a_branch_that_is_not_there_is_refused():
    with pytest.raises(CheckpointError, match="branch ema"):
        load_weights(resnet(), {"state_dict": A}, source="a.pth", branch="ema")
    with pytest.raises(CheckpointError, match=r"branch encoder_z.*encoder_q"):
        load_weights(resnet(), {"state_dict": MOCO2}, source="a.pth", branch="encoder_z")


def test_two_branches_of_equal_right_must_be_chosen_from():
    with pytest.raises(CheckpointError, match="branch=online or branch=ema"):
        load_weights(
            resnet(), {"encoder": at("module.", A), "target_encoder": at("module.", B)}, source="a.pth"
        )
    with pytest.raises(CheckpointError, match="branch=left"):
        load_weights(resnet(), {"left": A, "right": B}, source="a.pth")
    report, _ = load_weights(resnet(), {"left": A, "right": copy.deepcopy(A)}, source="a.pth")
    assert report.container == "left"


def test_a_damaged_default_branch_is_not_replaced_by_the_other():
    broken = {
        **DINO,
        "teacher": {name: one for name, one in DINO["teacher"].items() if "blocks.1.mlp.fc1" not in name},
    }
    with pytest.raises(CheckpointCoverage, match=r"blocks\.1\.mlp\.fc1"):
        load_weights(vit(), broken, source="a.pth")
    load_weights(vit(), broken, source="a.pth", branch="online")


def unchanged(module, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


REFUSED = [
    (
        "a weight is missing",
        without(A, "layer2.0.conv1.weight"),
        r"1 missing, such as layer2\.0\.conv1\.weight",
    ),
    ("a statistic is missing", without(A, "layer3.0.bn1.running_var"), r"layer3\.0\.bn1\.running_var"),
    (
        "a block has another shape",
        {**A, "layer2.0.conv1.weight": torch.rand(16, 8, 1, 1)},
        r"\(16, 8, 1, 1\) instead of \(8, 8, 3, 3\)",
    ),
    ("whole numbers for weights", {**A, "conv1.weight": A["conv1.weight"].to(torch.int8)}, "fills"),
    ("a deeper network", drawn(resnet(layers=(1, 2, 1, 1)), 5), r"more inside it, such as layer2\.1"),
    ("another stage", {**A, "layer5.0.conv1.weight": torch.rand(3, 3)}, r"layer5\.0\.conv1"),
    ("squeeze and excitation", {**A, "layer1.0.se.fc1.weight": torch.rand(3, 3)}, r"layer1\.0\.se\.fc1"),
    ("a bias where there is none", {**A, "layer1.0.conv1.bias": torch.rand(8)}, r"layer1\.0\.conv1\.bias"),
    ("another architecture", V, "none of them|fills"),
]


@pytest.mark.parametrize(("why", "opened", "said"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_does_not_fit_is_refused_and_nothing_is_filled(why, opened, said):
    module = resnet()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointCoverage, match=said):
        load_weights(module, opened, source="a.pth")
    assert unchanged(module, before), why


def test_a_layer_named_key_makes_no_head_a_projector():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.key = nn.Linear(4, 4)
            self.fc = nn.Linear(4, 3)

    _, has_head = load_weights(Attention(), drawn(Attention(), 1), source="a.pth")
    assert has_head


def test_tables_that_the_architecture_computes_may_be_missing():
    module = resnet()
    for name, value in (("relative_coords_table", torch.ones(2)), ("steps", torch.ones(2, dtype=torch.long))):
        module.layer1.register_buffer(name, value)
    report, _ = load_weights(module, A, source="a.pth")
    assert {"layer1.relative_coords_table", "layer1.steps"} == set(report.missing)
    module.layer1.register_buffer("scale", torch.ones(2))
    with pytest.raises(CheckpointCoverage, match=r"layer1\.scale"):
        load_weights(module, A, source="a.pth")


def test_weights_that_are_not_finite_are_refused():
    broken = {**A, "layer1.0.bn1.weight": torch.full((8,), torch.nan), "conv1.weight": A["conv1.weight"] / 0}
    module = resnet()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"conv1\.weight, layer1\.0\.bn1\.weight"):
        load_weights(module, broken, source="a.pth")
    assert unchanged(module, before)


def test_a_file_without_tensors_is_refused():
    with pytest.raises(CheckpointError, match="state dict"):
        load_weights(resnet(), {"epoch": 3}, source="a.pth")


def test_what_no_rule_expects_is_listed_and_warned_of(caplog):
    report, _ = load_weights(resnet(), {**A, "surprise.weight": torch.rand(2)}, source="a.pth")
    assert report.unexpected == ("surprise.weight",)
    assert "surprise.weight" in caplog.text


@pytest.mark.parametrize("classes", [1, 7, 1001])
def test_the_classifier_takes_the_checkpoints_classes(classes):
    module = resnet()
    state = {**BODY, **linear("fc", classes, 16)}
    _, has_head = load_weights(module, state, source="a.pth")
    assert has_head
    assert module.eval()(torch.rand(1, 3, 32, 32)).shape == (1, classes)
    assert torch.equal(module.fc.bias, state["fc.bias"])
    assert module.num_classes == classes


def test_a_projector_of_fitting_shape_is_not_a_classifier():
    module = resnet(classes=128)
    report, has_head = load_weights(module, {"state_dict": MOCO1}, source="a.pth")
    assert not has_head
    assert not module.fc.weight.any()
    assert "a projector" in report.notes[0]
    assert set(report.missing) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_copied_into_float32(dtype):
    state = {name: one.to(dtype) if one.is_floating_point() else one for name, one in A.items()}
    module = resnet()
    load_weights(module, state, source="a.pth")
    assert module.conv1.weight.dtype == torch.float32
    assert torch.equal(module.conv1.weight, state["conv1.weight"].float())


def test_missing_counters_are_allowed_and_said():
    state = {name: one for name, one in A.items() if "num_batches" not in name}
    report, _ = load_weights(resnet(), state, source="a.pth")
    assert all(name.endswith("num_batches_tracked") for name in report.missing)
    assert "batch counters" in report.coverage


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["module", "q", "layer1", "0", "conv1", "weight", "backbone"]), max_size=4))
def test_any_prefix_is_found(words):
    prefix = "".join(f"{word}." for word in words)
    best = vote(StateDict("", at(prefix, A)), BODY)[0]
    assert best.prefix == prefix
    assert set(best.filled) == set(BODY)


def test_prefixes_are_never_stripped_in_the_middle():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(3, 3)
            self.backbone = nn.Sequential(nn.Linear(3, 3))

    state = drawn(Wrapped(), 1)
    module = Wrapped()
    report, _ = load_weights(module, at("module.backbone.", state), source="a.pth")
    assert report.prefix == "module.backbone."
    assert torch.equal(module.module.weight, state["module.weight"])
    assert torch.equal(module.backbone[0].weight, state["backbone.0.weight"])


def test_timms_rules_resample_positions_only_and_say_so():
    module = vit(size=48)
    report, has_head = load_weights(module, V, source="a.pth", arch="vit_tiny_patch16_224")
    assert has_head
    assert "resampled to the input size by timm: pos_embed 1×17×16 to 1×37×16" in report.notes
    assert torch.equal(module.blocks[1].mlp.fc1.weight, V["blocks.1.mlp.fc1.weight"])
    assert module.pos_embed.shape == (1, 37, 16)
    with pytest.raises(CheckpointCoverage, match=r"patch_embed\.proj\.weight"):
        load_weights(vit(patch=16), V, source="a.pth", arch="vit_tiny_patch16_224")


def test_timms_rules_are_left_alone_where_names_agree():
    report, _ = load_weights(vit(), V, source="a.pth", arch="vit_tiny_patch16_224")
    assert report.notes == ()


def test_timms_rules_read_dinov2_names():
    settings = {
        "img_size": 28,
        "patch_size": 14,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 0,
    }
    make = {**settings, "init_values": 1e-5, "reg_tokens": 2, "no_embed_class": True}
    source = drawn(VisionTransformer(**make), 1)
    dinov2 = {name.replace("reg_token", "register_tokens"): one for name, one in source.items()}
    # DINOv2 adds a position to its class token; timm folds it in.
    dinov2["pos_embed"] = torch.cat([torch.zeros(1, 1, 16), source["pos_embed"]], 1)
    dinov2["mask_token"] = torch.zeros(1, 16)
    module = VisionTransformer(**make)
    report, has_head = load_weights(module, dinov2, source="a.pth", arch="vit_small_patch14_reg4_dinov2")
    assert not has_head
    assert torch.equal(module.reg_token, source["reg_token"])
    assert report.notes[0].startswith("names mapped by timm's rules")


def test_lite0_rules_give_each_name_once():
    names = set(timm.create_model("tf_efficientnet_lite0").state_dict())
    old = {}
    parts = ["_depthwise_conv.weight", "_project_conv.weight", "_expand_conv.weight"]
    parts += [
        f"_bn{i}.{leaf}"
        for i in (0, 1, 2)
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]
    for block in range(16):
        for part in parts:
            if block or not part.startswith(("_expand", "_bn0")):
                old[f"_blocks.{block}.{part}"] = torch.ones(1)
    for part in ("_conv_stem.weight", "_conv_head.weight", "_fc.weight", "_fc.bias"):
        old[part] = torch.ones(1)
    for norm in ("_bn0", "_bn1"):
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            old[f"{norm}.{leaf}"] = torch.ones(1)
    renamed = rename_lite0(old)
    assert set(renamed) == names
    assert len(renamed) == len(old)
