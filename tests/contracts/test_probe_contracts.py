"""What every analysis promises, shown of ``probe``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import probekit
from probekit import Backbone, ImageSet, Preprocessing, ResultTable
from probekit.data.targets import Target
from tests.contracts.planted import CLASSES, SIDE, Planted

PIXELS = Preprocessing(SIDE, SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
QUICK = {
    "random": 0,
    "permutations": 3,
    "bootstrap_draws": 200,
    "neighbours": 5,
    "shots": (5,),
    "few_shot_draws": 2,
    "penalties": (1.0, 0.1, 0.01),
    "equal_d": False,
}


def images(n: int = 300, seed: int = 0) -> ImageSet:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    labels = random.integers(0, CLASSES, n)
    # The pixel's value modulo the number of classes is the class.
    pixels[:, 0, 0, 0] = random.integers(0, 50, n) * CLASSES + labels
    splits = np.where(np.arange(n) < n * 2 // 3, "train", "test")
    target = Target(labels, "class", tuple("abcde"))
    return ImageSet.from_arrays("noise", pixels, {"class": target}, splits=splits)


def planted(k: int, name: str = "planted") -> Backbone:
    return Backbone.from_module(Planted(k), name=name, preprocessing=PIXELS)


def accuracies(table: ResultTable, model: str) -> dict[str, float]:
    rows = table.where(metric="accuracy", model=model).frame
    return dict(zip(rows["block"], rows["value"], strict=True))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.mark.parametrize("k", [1, 4])
def test_a_planted_block_is_found(k: int, store: Path):
    table = probekit.probe(planted(k), images(), taps="blocks", store=store, **QUICK)
    found = accuracies(table, "planted")
    assert len(found) == 6
    for place, (block, value) in enumerate(found.items()):
        assert value > 0.95 if place >= k else value < 0.4, (block, value)
    rows = table.where(metric="accuracy").frame
    informed = rows["block"].isin(list(found)[k:])
    # Below the planted block the score lies within what permuted labels give, above far outside of it.
    assert (rows["value"] > rows["null_high"])[informed].all()
    assert (rows["ci_low"] <= rows["null_high"])[~informed].all()


def test_a_planted_block_compresses_and_is_selective(store: Path):
    table = probekit.probe(planted(3), images(), taps="blocks", store=store, orders=2, **QUICK)
    for metric in ("compression", "selectivity"):
        rows = table.where(metric=metric).frame
        assert len(rows) == 6
        clear = (rows["ci_low"] > rows["null_high"]).to_numpy()
        assert clear.tolist() == [False] * 3 + [True] * 3, metric
    rows = table.where(metric="compression").frame
    assert (rows["value"][:3] < 1.01).all()
    assert (rows["value"][3:] > 2).all()


def test_swapped_weights_swap_the_table(store: Path):
    data = images()
    one = probekit.probe([planted(2, "a"), planted(4, "b")], data, taps="blocks", store=store, **QUICK)
    other = probekit.probe([planted(4, "a"), planted(2, "b")], data, taps="blocks", store=store, **QUICK)
    assert accuracies(one, "a") == accuracies(other, "b")
    assert accuracies(one, "b") == accuracies(other, "a")
    assert accuracies(one, "a") != accuracies(one, "b")


def test_a_duplicated_model_differs_by_exactly_nothing(store: Path):
    table = probekit.probe([planted(3, "a"), planted(3, "b")], images(), taps="blocks", store=store, **QUICK)
    a, b = (table.where(model=name).frame.drop(columns="model").reset_index(drop=True) for name in "ab")
    assert a.equals(b)
    differences = table.compare(metric="accuracy").frame
    assert (differences["value"] == 0).all()


def test_permuted_labels_fall_to_the_null(store: Path):
    data = images(600)
    labels = data.targets["class"].values
    permuted = np.random.default_rng(7).permutation(labels)
    pixels = np.stack([np.asarray(data.image(i)) for i in range(len(data))])
    splits = np.where(np.arange(600) < 400, "train", "test")
    shuffled = ImageSet.from_arrays(
        "permuted", pixels, {"class": Target(permuted, "class", tuple("abcde"))}, splits=splits
    )
    table = probekit.probe(planted(0), shuffled, taps="blocks", store=store, **QUICK)
    rows = table.where(metric=["accuracy", "balanced_accuracy"]).frame
    assert (rows["ci_low"] < 1 / CLASSES).all()
    assert (rows["value"] < 0.32).all()


def test_the_backbone_is_untouched_by_success_and_failure(store: Path):
    module = timm.create_model("resnet10t", pretrained=False, num_classes=3)
    backbone = Backbone.from_module(module, preprocessing=Preprocessing(32, 32))
    before, hooks = backbone.weights, count_hooks(backbone.module)
    fresh = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    probekit.probe(backbone, images(60), taps="stages", store=store, **(QUICK | {"shots": ()}))
    with pytest.raises(probekit.ProbekitError):
        probekit.probe(backbone, images(60), taps=["stages", "nowhere"], store=store, **QUICK)
    after = backbone.module.state_dict()
    assert all(torch.equal(after[key], fresh[key]) for key in fresh)
    assert count_hooks(backbone.module) == hooks == 0
    assert not backbone.module.training
    assert before == Backbone.from_module(backbone.module, preprocessing=Preprocessing(32, 32)).weights


def count_hooks(module: torch.nn.Module) -> int:
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules())


def test_rows_carry_everything_the_schema_asks_for(store: Path):
    table = probekit.probe(planted(2), images(), taps="levels", store=store, **QUICK)
    frame = table.frame
    assert set(frame["status"]) == {"ok"}
    for column in (
        "run_id",
        "analysis",
        "model",
        "arch",
        "weights",
        "data",
        "split",
        "target",
        "tap",
        "block",
        "level",
    ):
        assert (frame[column] != "").all(), column
    scored = frame[frame["metric"] != "few_shot_accuracy"]
    for column in ("value", "ci_low", "ci_high", "null", "null_low", "null_high"):
        assert scored[column].notna().all(), column
    assert ((frame["ci_low"] <= frame["value"] + 1e-9) & (frame["value"] <= frame["ci_high"] + 1e-9)).all()
    assert table.probe("planted", frame["tap"].iloc[-1], "class").classes == tuple("abcde")
