"""Planted classifiers and planted batch-norm statistics: the preprocessing they were made with is found."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from probekit.backbones.backbone import Backbone
from probekit.backbones.batch_norm import recalibrate_batch_norm
from probekit.data.images import ImageSet
from probekit.data.targets import Target
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError
from probekit.verification.candidates import FACTORS, SCALES, Candidate
from probekit.verification.verdict import verify

HALF = Preprocessing(8, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = Preprocessing(8, 8)


def photographs(count=200, seed=0):
    """Uneven images, redder than they are blue, in two classes by their brightness."""
    stream = np.random.default_rng(seed)
    classes = np.arange(count) % 2
    level = np.where(classes, 142, 118)[:, None, None, None]
    tint = np.array([25, 0, -25])
    values = level + tint + stream.normal(0, 20, (count, 8, 8, 3))
    return ImageSet.from_arrays(
        "photographs",
        np.clip(np.round(values), 0, 255).astype(np.uint8),
        Target(classes, "class", ("dark", "bright")),
    )


class ByBrightness(nn.Module):
    """Says bright where the mean input is above a threshold."""

    def __init__(self, threshold, channel=slice(None)):
        super().__init__()
        self.channel = channel
        self.fc = nn.Linear(1, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[0.0], [1.0]]))
            self.fc.bias.copy_(torch.tensor([0.0, -threshold]))

    def forward(self, x):
        return self.fc(x[:, self.channel].flatten(1).mean(1, keepdim=True))


def classifier(stated, threshold=(130 / 255 - 0.5) / 0.5, **channel):
    return Backbone.from_module(
        ByBrightness(threshold, **channel), name="planted", preprocessing=stated, classifier="fc"
    )


def test_the_scale_a_classifier_was_made_with_is_found():
    found = verify(classifier(IMAGENET), photographs())
    assert found.basis == "classifier"
    assert found.better == "mean=0.5/0.5/0.5,std=0.5/0.5/0.5"
    assert found.verdict.startswith("WARNING")
    rows = found.table.set_index("change")
    assert rows.loc["as stated", "accuracy"] < 0.8
    assert rows.loc["-1 to 1", "accuracy"] == 1
    assert rows.loc["-1 to 1", "gain_low"] > 0
    # Shuffled labels: predictions of one class only are right for half of the images.
    assert "by chance 0.500" in found.notes[1]


def test_the_stated_one_stands_where_nothing_fits_better():
    found = verify(classifier(HALF), photographs())
    assert found.better is None
    assert found.table["accuracy"][0] == 1
    assert "No common preprocessing fits clearly better" in found.verdict
    assert json.loads(json.dumps(found.facts(), allow_nan=False))["basis"] == "classifier"
    assert "1.000 [1.000, 1.000]" in str(found)
    assert "<table" in found._repr_html_()


def test_the_order_of_channels_is_found():
    # Blue alone tells the classes apart; the threshold is that of blue.
    found = verify(classifier(HALF, (105 / 255 - 0.5) / 0.5, channel=0), photographs())
    assert found.better is not None
    assert "blue first" in found.verdict
    assert "images.flip(1)" in found.verdict


def test_labels_without_meaning_are_said_to_be():
    images = photographs()
    shuffled = ImageSet.from_arrays(
        "shuffled",
        np.stack([np.asarray(images.image(place)) for place in range(len(images))]),
        Target(np.random.default_rng(1).integers(0, 2, len(images)), "class", ("dark", "bright")),
    )
    found = verify(classifier(HALF), shuffled)
    assert "no better than chance" in found.verdict
    assert found.better is None


def normed(stated, blue_first=False):
    torch.manual_seed(0)
    stem = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    body = nn.Sequential(*stem, nn.Conv2d(16, 4, 3), nn.BatchNorm2d(4))
    images = photographs(seed=1)
    pixels = np.stack([np.asarray(images.image(place)) for place in range(len(images))])
    pixels = pixels[..., ::-1].copy() if blue_first else pixels
    trained = Backbone.from_module(body, preprocessing=stated)
    batch = trained.prepare(torch.from_numpy(pixels))
    module = recalibrate_batch_norm(trained, [batch], "trained").module
    return lambda preprocessing: Backbone.from_module(module, name="planted", preprocessing=preprocessing)


@pytest.mark.parametrize("blue_first", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_batch_norm_was_trained_with_is_found(scale, blue_first):
    mean, std = SCALES[scale]
    truth = Preprocessing(8, 8, mean, std)
    stated = HALF if scale != "-1 to 1" else IMAGENET
    found = verify(normed(truth, blue_first)(stated), photographs())
    assert found.basis == "batch norm"
    best = found.table.loc[found.table["divergence"].idxmin()]
    assert best["preprocessing"] == str(Candidate(truth, blue_first))
    assert best["divergence"] < 0.05
    if scale != "CIFAR-10's mean and std" and scale != "CLIP's mean and std":
        assert found.better is not None


def test_right_statistics_bring_no_warning_and_other_images_are_not_blamed_on_the_scale():
    build = normed(HALF)
    assert verify(build(HALF), photographs(seed=2)).better is None
    flat = ImageSet.from_arrays(
        "flat", np.full((20, 8, 8, 3), 7, np.uint8), Target(np.arange(20) % 2, "class", ("a", "b"))
    )
    found = verify(build(HALF), flat)
    assert found.table["divergence"][0] > 1


def test_nothing_is_said_where_nothing_can_be_known():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    found = verify(Backbone.from_module(body, preprocessing=HALF), photographs())
    assert found.basis == "nothing"
    assert "Nothing can be said" in str(found)
    assert found.facts()["candidates"] == []
    assert "Nothing can be said" in found._repr_html_()
    folded = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    nn.init.constant_(folded[1].bias, 1.0)
    assert "folded" in verify(Backbone.from_module(folded, preprocessing=HALF), photographs()).verdict


def test_images_of_other_classes_are_held_against_batch_norm_unless_asked_for():
    images = photographs()
    pixels = np.stack([np.asarray(images.image(place)) for place in range(len(images))])
    five = ImageSet.from_arrays("five", pixels, [str(place % 5 + 10) for place in range(len(images))])
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    backbone = Backbone.from_module(body, preprocessing=HALF, classifier="3")
    found = verify(backbone, five)
    assert found.basis == "batch norm"
    assert "classifier cannot be asked" in found.notes[0]
    with pytest.raises(InputError, match="2 outputs"):
        verify(backbone, five, target="class")


def test_a_target_that_is_no_class_is_refused():
    with pytest.raises(InputError, match="There are class"):
        verify(classifier(HALF), photographs(), target="age")


def test_every_factor_varies_one_thing():
    stated = Candidate(Preprocessing(224, 256))
    for factor, vary in FACTORS.items():
        tried = vary(stated)
        assert stated not in tried
        assert len(set(tried)) == len(tried) >= 1, factor
    assert len(FACTORS["scale"](stated)) == 2 * len(SCALES) - 1
    assert [one.preprocessing.resize for one in FACTORS["crop"](stated)] == [235, 224]
