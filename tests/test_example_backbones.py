"""The functions of analyses/backbones: what they build is what their checkpoints hold."""

from __future__ import annotations

import pytest
import torch

from probekit import list_layers, load_backbone
from probekit.backbones.batch_norm import is_folded, unfold_batch_norm
from probekit.verification.verdict import verify
from tests.conftest import ROOT

FOLDER = ROOT / "analyses" / "backbones"
V1 = f"{FOLDER / 'mobilenet_v1.py'}:mobilenet_v1_025"
FACE = f"{FOLDER / 'mobilenet_v1.py'}:retinaface_body"
V2 = "mobilenetv2_100_same"
SHUFFLE = f"{FOLDER / 'shufflenet_v2.py'}:shufflenet_v2_05"
ENCODER = f"{FOLDER / 'autoencoder.py'}:encoder"


@pytest.mark.parametrize(
    ("arch", "numbers", "strides"),
    [
        # What Keras counts for MobileNet at α = 0.25, and 27 batch counters.
        (V1, 475_544 + 27, [2, 4, 8, 16, 32]),
        (SHUFFLE, 149_095, [4, 8, 16, 32]),
        (ENCODER, 15_440, [4, 8]),
    ],
)
def test_their_size_and_blocks(arch, numbers, strides):
    backbone = load_backbone(f"{arch}:random")
    assert sum(one.numel() for one in backbone.module.state_dict().values()) == numbers
    layers = list_layers(backbone)
    blocks = layers[layers["path"] == layers["block"]]
    assert list(dict.fromkeys(blocks["stride"].dropna().astype(int))) == strides
    assert not backbone.checkpoint.notes or "no preprocessing is stated" not in backbone.checkpoint.summary()


def test_shuffling_keeps_every_channel():
    """Even channels pass a unit untouched; after log2(D) units each has been through a branch."""
    module = load_backbone(f"{SHUFFLE}:random").module
    unit = module.stage2[1]
    maps = torch.rand(1, 48, 4, 4)
    assert torch.equal(unit(maps)[:, :24], maps[:, 0::2])


@pytest.mark.parametrize(
    ("arch", "file", "prefix"),
    [
        (V1, "imagenet_mobilenetv1_025", ""),
        (FACE, "widerface_retinaface_mobilenetv1_025", "body."),
        (SHUFFLE, "shufflenetv2_05_backbone", ""),
        (SHUFFLE, "coco_fastestdet_shufflenetv2_05", "backbone."),
        (ENCODER, "cifar10_conv_autoencoder", ""),
        (V2, "imagenet_mobilenetv2_100_qat_fp16", ""),
        (V2, "inat_birds_mobilenetv2_100_qat_fp16", ""),
    ],
)
def test_real_checkpoints_fill_them(shared_data, arch, file, prefix):
    backbone = load_backbone(f"{arch}:{shared_data / 'checkpoints' / file}.pth")
    assert backbone.checkpoint.prefix == prefix
    assert set(backbone.checkpoint.missing) <= {"fc.weight", "fc.bias"}
    assert is_folded(backbone.module) == ("qat" in file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "file"),
    [(FACE, "widerface_retinaface_mobilenetv1_025"), (SHUFFLE, "coco_fastestdet_shufflenetv2_05")],
)
def test_detectors_bodies_get_the_inputs_their_batch_norm_expects(shared_data, arch, file):
    images = shared_data / "imagenet_samples" / "imagenet_800.zip"
    found = verify(f"{arch}:{shared_data / 'checkpoints' / file}.pth", str(images), limit=32)
    assert found.basis == "batch norm"
    assert found.table["divergence"][0] < 0.05
    assert found.table["divergence"].idxmin() == 0
    wrong = f"{arch}:{shared_data / 'checkpoints' / file}.pth,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
    assert verify(wrong, str(images), limit=32).better is not None


@pytest.mark.slow
def test_the_real_folded_network_is_unfolded(shared_data):
    backbone = load_backbone(f"{V2}:{shared_data / 'checkpoints' / 'imagenet_mobilenetv2_100_qat_fp16.pth'}")
    torch.manual_seed(0)
    batch = torch.rand(8, 3, 96, 96) * 2 - 1
    edited = unfold_batch_norm(backbone, [batch], "noted")
    with torch.inference_mode():
        before, after = backbone.module(batch), edited.module(batch)
    assert ((after - before).norm() / before.norm()).item() <= 1e-5
    assert not is_folded(edited.module)
