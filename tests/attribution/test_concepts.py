"""Concepts: a planted one is found, one that plays no part is not; draws, signs and p values."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from probekit import Backbone, ImageSet, Preprocessing, Probe
from probekit.attribution.composed import own_classifier
from probekit.attribution.concepts import measure_concepts, welch_p_value
from probekit.data.targets import Target
from probekit.errors import InputError, TapError

SIZE = 12


def planted() -> Backbone:
    """Return a network whose first channel is redness, the second stripes; behind it nothing mixes them."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU())
    torch.manual_seed(0)
    with torch.no_grad():
        for part in (net[0], net[2]):
            nn.init.normal_(part.weight, std=0.3)
            part.bias.fill_(0.5)
        net[0].weight[0] = torch.tensor([1.0, -0.5, -0.5])[:, None, None] / 9
        net[0].weight[1] = torch.tensor([-0.5, 1.0, -0.5]) / 3
        # The other channels do not see red.
        net[0].weight[2:, 0] = 0
        net[2].weight[:] = 1 / 9
    return Backbone.from_module(net, name="planted", preprocessing=Preprocessing(SIZE, SIZE))


def red_probe() -> Probe:
    """Return a probe that reads redness alone."""
    weights = np.zeros((4, 2))
    weights[0] = [1.0, -1.0]
    return Probe(
        weights=weights, intercept=np.zeros(2), mean=np.zeros(4), scale=np.ones(4), kept=np.ones(4, bool),
        classes=("fire", "sea"), kind="class", tap="3|gap", penalty=0.1, target="class",
    )  # fmt: skip


def image_set(name: str, pixels: np.ndarray) -> ImageSet:
    target = Target(np.arange(len(pixels)) % 2, "class", ("fire", "sea"))
    return ImageSet.from_arrays(name, np.clip(pixels, 0, 255).astype(np.uint8), {"class": target})


def noise(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(120, 25, (count, 1, 1, 3)) + random.normal(0, 30, (count, SIZE, SIZE, 3))


def concepts() -> dict[str, ImageSet]:
    striped, red = noise(60, 1), noise(24, 2)
    striped[:, :, ::3] += 60
    striped[:, :, 1::3] -= 30
    striped[:, :, 2::3] -= 30
    red[..., 0] += 80
    return {"red": image_set("red", red), "striped": image_set("striped", striped)}


def test_a_planted_concept_is_found_and_another_is_not():
    table = measure_concepts(
        planted(), image_set("test", noise(20, 3)), red_probe(), concepts(), image_set("pool", noise(60, 1)),
        layer="1",
    )  # fmt: skip
    rows = {row["target"]: row for _, row in table.frame.iterrows()}
    told = {name: json.loads(row["params"]) for name, row in rows.items()}
    assert rows["red → fire"]["value"] == 1.0
    assert rows["red → sea"]["value"] == 0.0
    assert rows["red → fire"]["tap"] == "1|gap"
    assert rows["red → fire"]["null_kind"] == "random concepts,20"
    assert 0 < rows["red → fire"]["null"] < 1
    assert rows["red → fire"]["n"] == 10
    assert all(told[f"red → {name}"]["p_holm"] < 0.05 for name in ("fire", "sea"))
    assert told["red → fire"]["accuracy_held_out"] > 0.8
    # The direction is found, and it does nothing.
    assert told["striped → fire"]["accuracy_held_out"] > 0.9
    assert all(told[f"striped → {name}"]["p_holm"] > 0.2 for name in ("fire", "sea"))
    assert table.attachments["scores/red/fire.npy"].shape == (2, 20)


def test_draws_follow_the_seed_and_batches_do_not_matter():
    def table(seed: int, batch_size: int) -> np.ndarray:
        found = measure_concepts(
            planted(), image_set("test", noise(8, 3)), red_probe(), {"red": concepts()["red"]},
            image_set("pool", noise(60, 1)), layer="1", runs=4, seed=seed, batch_size=batch_size,
            classes=["fire"],
        )  # fmt: skip
        return found.attachments["scores/red/fire.npy"]

    assert np.array_equal(table(0, 3), table(0, 16))
    assert not np.array_equal(table(0, 16), table(1, 16))


def test_the_own_classifier_is_a_probe():
    net = nn.Sequential()
    net.add_module("body", planted().module)
    net.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    net.add_module("fc", nn.Linear(4, 2))
    with torch.no_grad():
        net.fc.weight[:] = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    backbone = Backbone.from_module(net, preprocessing=Preprocessing(SIZE, SIZE), classifier="fc")
    probe = own_classifier(backbone, ["fire", "sea"])
    data = image_set("test", noise(8, 3))
    data = ImageSet.from_arrays(
        "test", np.zeros((8, SIZE, SIZE, 3), np.uint8), {"classifier": data.targets["class"]}
    )
    table = measure_concepts(
        backbone,
        data,
        probe,
        {"red": concepts()["red"]},
        image_set("pool", noise(60, 1)),
        layer="body.1",
        runs=4,
    )
    assert table.frame["value"].tolist() == [1.0, 0.0]
    with pytest.raises(InputError, match="2 class names; got 3"):
        own_classifier(backbone, ["a", "b", "c"])
    with pytest.raises(InputError, match="a backbone with a classifier"):
        own_classifier(planted())


def test_welch_is_scipys():
    random = np.random.default_rng(0)
    one, other = random.normal(size=12), random.normal(0.5, 3, size=7)
    assert welch_p_value(one, other) == pytest.approx(
        scipy.stats.ttest_ind(one, other, equal_var=False).pvalue
    )
    assert welch_p_value(np.ones(3), np.ones(4)) == 1
    assert welch_p_value(np.ones(3), np.zeros(4)) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runs": 1}, "at least 2 runs"),
        ({"concepts": {}}, "at least one concept"),
        ({"concepts": {"few": image_set("few", noise(3, 0))}}, "at least 6 images of few"),
        ({"random": image_set("few", noise(9, 0))}, "at least 12 random images"),
        ({"classes": ["fog"]}, "images of 'fog'"),
        ({"layer": "3"}, None),
    ],
)
def test_what_cannot_be_tested_is_refused(given: dict, message: str | None):
    settings = {
        "concepts": {"red": concepts()["red"]}, "random": image_set("pool", noise(60, 1)), "layer": "1",
        "runs": 2,
    }  # fmt: skip
    data = image_set("test", noise(4, 3))
    if message is None:
        assert set(measure_concepts(planted(), data, red_probe(), **settings | given).frame["value"]) <= {
            0.0,
            1.0,
        }
        return
    with pytest.raises(InputError, match=message):
        measure_concepts(planted(), data, red_probe(), **settings | given)


def test_a_layer_behind_the_tap_is_refused():
    probe = Probe(**{**vars(red_probe()), "tap": "1|gap"})
    with pytest.raises(TapError, match="lies behind"):
        measure_concepts(
            planted(),
            image_set("test", noise(4, 3)),
            probe,
            concepts(),
            image_set("p", noise(60, 1)),
            layer="3",
        )
