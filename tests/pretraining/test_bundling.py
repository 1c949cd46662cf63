"""Weights that come with the package: as they were trained, recognised, and told where they are from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from probekit import ResultTable, load_backbone, pretrain
from probekit.backbones import bundled
from probekit.backbones.bundled import bundled_facts, bundled_names, find_bundled
from probekit.errors import InputError
from probekit.features.extraction import extract
from probekit.pretraining import bundling
from probekit.pretraining.bundling import bundle_arms

DATA = "shapeworld/source,train=60,test=30"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ResultTable:
    return pretrain(
        ["ce", "moco-v2", "supcon"], DATA, epochs=1, batch_size=16, queue=32, random=0,
        store=tmp_path_factory.mktemp("store"),
    )  # fmt: skip


@pytest.mark.parametrize("arm", ["ce", "moco-v2", "supcon"])
def test_a_bundled_arm_is_the_checkpoint_that_was_attached(
    arm: str, trained: ResultTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (path,) = bundle_arms(trained, [f"{arm} seed 0"], tmp_path)
    monkeypatch.setattr(bundled, "_folder", lambda: tmp_path)
    found = load_backbone(f"resnet10_w16:bundled@{arm}")
    attached = tmp_path / "attached.pth"
    attached.write_bytes(trained.attachments[f"checkpoints/{arm}/seed-0.pth"])
    assert found.weights == load_backbone(f"resnet10_w16:{attached}").weights
    assert found.checkpoint.matched >= 72
    facts = bundled_facts(arm)
    assert facts["params"]["arm"] == arm
    assert facts["data"] == "shapeworld-source"
    assert path.stat().st_size < 1_000_000
    assert load_backbone(f"auto:bundled@{arm}").weights == found.weights


def test_files_that_are_too_large_are_not_bundled(
    trained: ResultTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bundling, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match="at most 1,000 bytes"):
        bundle_arms(trained, ["ce seed 0"], tmp_path)


@pytest.mark.parametrize("arm", bundled_names())
def test_every_arm_in_the_package_loads_and_says_where_it_is_from(arm: str, tmp_path: Path):
    backbone = load_backbone(f"resnet10_w16:bundled@{arm}")
    assert backbone.weights != load_backbone("resnet10_w16:random").weights
    facts = bundled_facts(arm)
    assert {"arch", "data", "params", "pretrain_seed", "probekit"} <= facts.keys()
    assert find_bundled(arm).stat().st_size < 1_000_000
    assert all(torch.isfinite(one).all() for one in backbone.module.state_dict().values())
    features = extract(f"resnet10_w16:bundled@{arm}", "digits,limit=20", "penultimate", store=tmp_path)
    assert json.dumps(facts)
    assert len(next(iter(features.values())).values) == 40
