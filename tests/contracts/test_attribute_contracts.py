"""What every analysis promises, shown of ``attribute``."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import probekit
from probekit import Backbone, Preprocessing, ResultTable
from tests.attribution.spots import QUICK, seeing, spots
from tests.contracts.test_probe_contracts import count_hooks

METRICS = ("energy_inside", "relevance_rank", "best_iou", "pointing_game")


def energies(table: ResultTable, model: str, metric: str = "energy_inside") -> dict[str, float]:
    rows = table.where(metric=metric, model=model).frame
    return dict(zip(rows["block"], rows["value"], strict=True))


@pytest.mark.parametrize("k", [1, 3])
def test_a_planted_block_is_found(k: int, tmp_path: Path):
    table = probekit.attribute(seeing(k), spots(), taps="blocks", store=tmp_path, **QUICK)
    for metric, low, high in zip(METRICS, (0.35, 0.3, 0.35, 0.35), (0.6, 0.6, 0.5, 0.9), strict=True):
        found = energies(table, "seeing", metric)
        assert len(found) == 4
        for place, (block, value) in enumerate(found.items()):
            assert value > high if place >= k else value < low, (metric, block, value)
        rows = table.where(metric=metric).frame
        sees = rows["block"].isin(list(found)[k:])
        # Probes of permuted labels look where features differ, which is at spots: they may find some.
        assert (rows["ci_low"] > rows["null"])[sees].all(), metric
        assert (rows["ci_low"] <= rows["null_high"])[~sees].all(), metric


def test_swapped_weights_swap_the_table(tmp_path: Path):
    data, settings = spots(), {"taps": "blocks", "store": tmp_path, **QUICK}
    one = probekit.attribute([seeing(1, "a"), seeing(3, "b")], data, **settings)
    other = probekit.attribute([seeing(3, "a"), seeing(1, "b")], data, **settings)
    assert energies(one, "a") == energies(other, "b")
    assert energies(one, "b") == energies(other, "a")
    assert energies(one, "a") != energies(one, "b")


def test_a_duplicated_model_differs_by_exactly_nothing(tmp_path: Path):
    models = [seeing(2, "a"), seeing(2, "b")]
    table = probekit.attribute(models, spots(), taps="blocks", store=tmp_path, **QUICK)
    a, b = (table.where(model=name).frame.drop(columns="model").reset_index(drop=True) for name in "ab")
    assert a.equals(b)


def test_permuted_labels_fall_to_the_null(tmp_path: Path):
    data = spots(240, shuffled=True)
    table = probekit.attribute(
        seeing(0), data, taps=["blocks.0"], store=tmp_path, **(QUICK | {"permutations": 10})
    )
    rows = table.frame
    assert (rows["ci_low"] <= rows["null_high"]).all()
    assert (rows["ci_high"] >= rows["null_low"]).all()


@pytest.mark.parametrize("cascade", [False, True])
def test_the_backbone_is_untouched_by_success_and_failure(cascade: bool, tmp_path: Path):
    module = timm.create_model("resnet10t", pretrained=False, num_classes=3)
    backbone = Backbone.from_module(module, preprocessing=Preprocessing(32, 32))
    fresh = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    settings = {"taps": "levels", "store": tmp_path, "cascade": cascade, **QUICK}
    probekit.attribute(backbone, spots(90), **settings)
    with pytest.raises(probekit.ProbekitError):
        probekit.attribute(backbone, spots(90), **(settings | {"taps": ["fc"]}))
    after = backbone.module.state_dict()
    assert all(torch.equal(after[key], fresh[key]) for key in fresh)
    assert count_hooks(backbone.module) == 0
    assert not backbone.module.training
