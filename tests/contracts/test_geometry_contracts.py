"""What every analysis promises, shown of ``measure_geometry``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import probekit
from probekit import Backbone, ImageSet, Preprocessing, ResultTable
from probekit.data.targets import Target
from tests.contracts.test_probe_contracts import count_hooks, images, planted

QUICK = {"random": 0, "permutations": 5, "subsample": 200, "probe": False}


def iccs(table: ResultTable, model: str) -> dict[str, float]:
    rows = table.where(metric="icc", model=model).frame
    return dict(zip(rows["block"], rows["value"], strict=True))


@pytest.mark.parametrize("k", [1, 4])
def test_a_planted_block_is_found(k: int, tmp_path: Path):
    settings = QUICK | {"permutations": 20}
    table = probekit.measure_geometry(planted(k), images(), taps="blocks", store=tmp_path, **settings)
    for metric in ("icc", "cosine_gap_centred", "recall_at_1", "ncm_accuracy", "logme"):
        rows = table.where(metric=metric).frame
        assert len(rows) == 6
        above = (rows["value"] > rows["null_high"]).to_numpy()
        assert above[k:].all(), metric
        assert above[:k].sum() <= 1, metric
    rows = table.where(metric="directional_cdnv").frame
    assert rows["value"].notna().to_numpy().tolist() == [place >= k for place in range(6)]
    assert rows["status"].str.contains("within noise").sum() == k


def test_swapped_weights_swap_the_table(tmp_path: Path):
    data, settings = images(), {"taps": "blocks", "store": tmp_path, **QUICK}
    one = probekit.measure_geometry([planted(2, "a"), planted(4, "b")], data, **settings)
    other = probekit.measure_geometry([planted(4, "a"), planted(2, "b")], data, **settings)
    assert iccs(one, "a") == iccs(other, "b")
    assert iccs(one, "b") == iccs(other, "a")
    assert iccs(one, "a") != iccs(one, "b")


def test_a_duplicated_model_differs_by_exactly_nothing(tmp_path: Path):
    models = [planted(3, "a"), planted(3, "b")]
    table = probekit.measure_geometry(models, images(), taps="blocks", store=tmp_path, **QUICK)
    a, b = (table.where(model=name).frame.drop(columns="model").reset_index(drop=True) for name in "ab")
    assert a.equals(b)


def test_permuted_labels_fall_to_the_null(tmp_path: Path):
    data = images(600)
    labels = np.random.default_rng(7).permutation(data.targets["class"].values)
    pixels = np.stack([np.asarray(data.image(i)) for i in range(len(data))])
    splits = np.where(np.arange(600) < 400, "train", "test")
    target = Target(labels, "class", tuple("abcde"))
    shuffled = ImageSet.from_arrays("permuted", pixels, {"class": target}, splits=splits)
    table = probekit.measure_geometry(planted(0), shuffled, taps="blocks", store=tmp_path, **QUICK)
    rows = table.where(metric="icc").frame
    assert (rows["value"].abs() < 0.02).all()
    assert table.where(metric="cdnv").frame["value"].isna().sum() >= 5


def test_the_backbone_is_untouched_by_success_and_failure(tmp_path: Path):
    module = timm.create_model("resnet10t", pretrained=False, num_classes=3)
    backbone = Backbone.from_module(module, preprocessing=Preprocessing(32, 32))
    fresh = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    probekit.measure_geometry(backbone, images(60), taps="stages", store=tmp_path, **QUICK)
    with pytest.raises(probekit.ProbekitError):
        probekit.measure_geometry(backbone, images(60), taps=["nowhere"], store=tmp_path, **QUICK)
    after = backbone.module.state_dict()
    assert all(torch.equal(after[key], fresh[key]) for key in fresh)
    assert count_hooks(backbone.module) == 0
    assert not backbone.module.training


def test_images_of_one_class_each_leave_cells_empty_with_the_reason(tmp_path: Path):
    data = images(60)
    pixels = np.stack([np.asarray(data.image(i)) for i in range(60)])
    target = Target(np.arange(60), "class", tuple(f"c{i}" for i in range(60)))
    single = ImageSet.from_arrays("single", pixels, {"class": target}, splits=np.full(60, "train"))
    table = probekit.measure_geometry(planted(2), single, taps="blocks", store=tmp_path, **QUICK)
    rows = table.where(metric=["icc", "cdnv", "map_at_r", "nc1"]).frame
    assert rows["value"].isna().all()
    assert (rows["status"] != "ok").all()
    assert table.where(metric="effective_rank").frame["value"].notna().all()
