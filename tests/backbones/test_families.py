"""Which project wrote a checkpoint is told, and each layout fills the backbone from the right branch."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from probekit.backbones.families import BICUBIC, BILINEAR, CLIP, recognise
from probekit.backbones.formats import load_weights
from probekit.backbones.loading import load_backbone
from probekit.errors import CheckpointCoverage, CheckpointError
from tests.backbones.reference import ClipVisual, HuggingFaceViT
from tests.backbones.test_formats import (
    BODY,
    DINO,
    LAYOUTS,
    MLP,
    OTHER,
    QUEUE,
    TRUNK,
    A,
    V,
    W,
    at,
    body,
    linear,
    resnet,
    vit,
)

# Layout of test_formats → the family it belongs to.
NAMED = {
    "timm with EMA": "timm with a moving average",
    "MoCo v1": "MoCo v1",
    "MoCo v2": "MoCo v2",
    "MoCo v3": "MoCo v3",
    "SimSiam": "SimSiam",
    "SimCLR": "SimCLR",
    "SwAV": "SwAV or DeepCluster-v2",
    "Barlow Twins, VICReg": "VICReg",
    "DINO": "DINO",
    "DINO, ResNet": "DINO",
    "MAE": "unknown",
    "VISSL": "VISSL",
    "lightly DINO": "lightly",
    "lightly BYOL": "lightly",
    "solo-learn": "solo-learn",
    "mmselfsup": "unknown",
    "bare": "unknown",
    "model": "unknown",
    "DataParallel": "unknown",
    "compiled DDP": "unknown",
    "Barlow Twins, released": "unknown",
}
SCALE = {f"blocks.{block}.ls{i}.gamma": torch.rand(16) for block in (0, 1) for i in (1, 2)}
SWAV = {
    **at("module.", BODY),
    **linear("module.projection_head.0", 9, 16),
    "module.prototypes.weight": torch.rand(9, 9),
}
# Family, checkpoint, module, the weights that must be loaded.
MORE = [
    ("SwAV or DeepCluster-v2", {"epoch": 1, "state_dict": SWAV, "optimizer": {}, "amp": {}}, resnet, BODY),
    (
        "SwAV or DeepCluster-v2",
        {
            **{k: v for k, v in SWAV.items() if "prototypes" not in k},
            **linear("module.prototypes.prototypes0", 9, 9),
        },
        resnet,
        BODY,
    ),
    (
        "Barlow Twins",
        {
            "epoch": 1,
            "model": {
                **at("module.backbone.", BODY),
                **linear("module.projector.0", 9, 16),
                "module.bn.running_mean": torch.rand(9),
            },
        },
        resnet,
        BODY,
    ),
    (
        "iBOT",
        {
            "student": {**at("module.backbone.", body(V)), "module.backbone.masked_embed": torch.rand(1, 16)},
            "teacher": {**at("backbone.", body(W)), "backbone.masked_embed": torch.rand(1, 16)},
        },
        vit,
        body(W),
    ),
    (
        "MAE",
        {"model": {**body(V), "mask_token": V["cls_token"], **linear("decoder_embed", 8, 16)}, "args": None},
        vit,
        body(V),
    ),
    ("VISSL", {"model_state_dict": TRUNK}, resnet, BODY),
    (
        "VISSL",
        {"classy_state_dict": {"base_model": {"model": {"trunk": body(V), "heads": linear("0.clf", 9, 16)}}}},
        vit,
        body(V),
    ),
    (
        "lightly",
        {"state_dict": {**at("backbone.vit.", body(V)), **linear("projection_head.0", 9, 16)}, "epoch": 1},
        vit,
        body(V),
    ),
    (
        "lightly",
        {
            "state_dict": {
                **at("backbone.", BODY),
                **at("key_backbone.", OTHER),
                **linear("projection_head.0", 9, 16),
            }
        },
        resnet,
        BODY,
    ),
    (
        "solo-learn",
        {
            "state_dict": {
                **at("encoder.", BODY),
                **at("momentum_encoder.", OTHER),
                **linear("classifier", 9, 16),
            },
            "hyper_parameters": {"cifar": True},
        },
        resnet,
        BODY,
    ),
    (
        "OpenMMLab",
        {
            "state_dict": {
                **at("backbone.", BODY),
                **at("target_net.module.0.", OTHER),
                **linear("neck.fc", 9, 16),
            },
            "meta": {},
            "message_hub": {},
        },
        resnet,
        BODY,
    ),
    (
        "OpenMMLab",
        {
            "state_dict": {**at("backbone.", body(V)), **at("momentum_encoder.module.0.", body(W))},
            "meta": {},
        },
        vit,
        body(V),
    ),
    (
        "CLIP",
        {"state_dict": {**at("module.visual.trunk.", body(V)), **linear("module.text.fc", 9, 9)}},
        vit,
        body(V),
    ),
    ("DINO", {**DINO, "teacher": at("module.backbone.", body(W))}, vit, body(W)),
    (
        "lightly",
        {
            "state_dict": {
                **at("backbone.", BODY),
                **at("query_backbone.", OTHER),
                **linear("query_projection_head.0", 9, 16),
                **linear("online_classifier", 9, 16),
            }
        },
        resnet,
        BODY,
    ),
    (
        "VISSL",
        {
            "classy_state_dict": {
                "base_model": {
                    "model": {
                        "trunk": {
                            {"cls_token": "class_token", "pos_embed": "pos_embedding"}.get(name, name): one
                            for name, one in body(V).items()
                        }
                    }
                }
            }
        },
        vit,
        body(V),
    ),
]


@pytest.mark.parametrize(
    ("row", "name"), [(row, NAMED[row[0]]) for row in LAYOUTS], ids=list(NAMED)[: len(LAYOUTS)]
)
def test_layouts_are_told_apart(row, name):
    assert recognise(row[1]).name == name


@pytest.mark.parametrize(("name", "opened", "make", "expected"), MORE, ids=[row[0] for row in MORE])
def test_more_layouts_are_told_and_filled(name, opened, make, expected):
    assert recognise(opened).name == name
    module = make()
    report, _ = load_weights(module, opened, source="a.pth")
    state = module.state_dict()
    for key, tensor in expected.items():
        assert torch.equal(state[key], tensor), key
    assert report.unexpected == ()


EVERY = [*MORE, *(row[:4] for row in LAYOUTS)]


@pytest.mark.parametrize(("name", "opened", "make", "expected"), EVERY, ids=[row[0] for row in EVERY])
def test_one_block_of_another_shape_is_refused_everywhere(name, opened, make, expected):
    def broken(value):
        if isinstance(value, dict):
            return {key: broken(one) for key, one in value.items()}
        weight = isinstance(value, torch.Tensor) and value.shape in {(16, 16, 3, 3), (64, 16)}
        return value[:-1] if weight else value

    module = make()
    before = {key: one.clone() for key, one in module.state_dict().items()}
    with pytest.raises(CheckpointCoverage):
        load_weights(module, broken(opened), source="a.pth")
    assert all(torch.equal(one, before[key]) for key, one in module.state_dict().items())
    assert name
    assert expected


def test_i_jepa_must_be_chosen():
    """Its projects evaluate the encoder or its moving average; there is no class token."""

    def make():
        return VisionTransformer(
            img_size=32,
            patch_size=8,
            embed_dim=16,
            depth=2,
            num_heads=2,
            class_token=False,
            global_pool="avg",
        )

    one, other = make().state_dict(), make().state_dict()
    opened = {
        "encoder": at("module.", body(one)),
        "predictor": at("module.", {"predictor_embed.weight": torch.rand(4, 16)}),
        "target_encoder": at("module.", body(other)),
        "opt": {},
        "epoch": 3,
    }
    assert recognise(opened).name == "I-JEPA"
    with pytest.raises(CheckpointError, match="branch=online or branch=ema"):
        load_weights(make(), opened, source="a.pth")
    module = make()
    load_weights(module, opened, source="a.pth", branch="ema")
    assert torch.equal(module.pos_embed, other["pos_embed"])


def test_dinov2_and_clip_say_how_their_images_are_prepared():
    weights = {**body(V), **SCALE, "mask_token": torch.rand(1, 16)}
    assert recognise({"teacher": at("backbone.", weights)}).preprocessing == BICUBIC
    clip = recognise({f"visual.{name}": one for name, one in ClipVisual().state_dict().items()})
    assert (clip.name, clip.preprocessing) == ("CLIP", CLIP)


NAMES = [
    f"{objective}_{data}.pth"
    for objective in ("moco_v2", "supervised")
    for data in (
        *("imagenet", "imagenet_aug_f", "imagenet_aug_fr", "imagenet_aug_frc", "imagenet_aug_frcg"),
        *("imagenet1over10", "imagenet100", "places", "celeba", "coco", "synthia"),
    )
] + ["exemplar_v1.pth", "exemplar_v2.pth"]


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_files_are_known_by_name(name, tmp_path):
    assert len(NAMES) == 24
    moco = {**at("module.encoder_q.", {**BODY, **MLP}), **at("module.encoder_k.", {**OTHER, **MLP}), **QUEUE}
    for opened in (
        {"state_dict": A} if "supervised" in name else {"state_dict": moco},
        {"model": at("module.", A)},
        BODY,
    ):
        family = recognise(opened, tmp_path / name)
        assert name.removesuffix(".pth").split("_")[0] in family.name
        assert family.preprocessing == BILINEAR
        assert "Zhao" in family.note
        load_weights(resnet(), opened, source=name)


def test_the_familys_preprocessing_is_used_and_said(tmp_path):
    import timm

    weights = timm.create_model("resnet18", num_classes=0).state_dict()
    torch.save({"state_dict": at("module.encoder_q.", weights)}, tmp_path / "moco.pth")
    backbone = load_backbone(f"resnet18:{tmp_path / 'moco.pth'}")
    assert str(backbone.preprocessing).startswith("resize 256 bilinear, crop 224")
    assert "preprocessing is that of MoCo v1's evaluation" in backbone.checkpoint.notes
    smaller = load_backbone(f"resnet18:{tmp_path / 'moco.pth'},size=112,interpolation=bicubic")
    assert str(smaller.preprocessing).startswith("resize 128 bicubic, crop 112")


def test_a_hugging_face_folder_says_how_its_images_are_prepared(tmp_path):
    save_file(HuggingFaceViT().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    facts = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    facts |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    opened = {"config": {"model_type": "vit"}, "state_dict": HuggingFaceViT().state_dict()}
    family = recognise(opened, tmp_path)
    assert family.name == "Hugging Face vit"
    assert str(family.preprocessing) == "resize 40 bicubic, crop 32, mean 0.5/0.4/0.3, std 0.2/0.2/0.2"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**facts, "image_std": [0, 1]}))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        recognise(opened, tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert recognise(opened, tmp_path).preprocessing is None
