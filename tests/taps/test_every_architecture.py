"""Architectures of timm against what timm declares and computes: a sample here, all of them in a campaign."""

from __future__ import annotations

import importlib

import pytest

from probekit.running import load_analysis
from tests.conftest import ROOT

SWEEP = load_analysis(ROOT / "analyses" / "timm_sweep.py")
# Beside the analysis, and found once that is loaded.
checking = importlib.import_module("timm_checks.checking")
CHECKS, RIGHT, UNKNOWN = checking.CHECKS, checking.RIGHT, checking.UNKNOWN
check_architecture = checking.check_architecture

# Small ones of kinds that differ in axes, tokens, stages or what a block returns.
SAMPLE = (
    "convnext_atto",
    "crossvit_tiny_240",
    "edgenext_xx_small",
    "efficientvit_b0",
    "hiera_tiny_224",
    "inception_v3",
    "levit_128s",
    "mobilevitv2_050",
    "nest_tiny_jx",
    "pit_ti_distilled_224",
    "regnety_002",
    "repvit_m0_9",
    "resmlp_12_224",
    "test_vit4",
    "xcit_nano_12_p8_224",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_is_right_in_every_check(name):
    found = check_architecture(name, seconds=100)
    assert {check: found[check] for check in CHECKS} == dict.fromkeys(CHECKS, RIGHT)


def test_a_wrong_readout_is_seen(monkeypatch):
    """Let patch means leave a patch out: the check against timm's own numbers must say so."""
    right = checking.token_facts
    monkeypatch.setattr(checking, "token_facts", lambda module: {**right(module), "prefix_tokens": 2})
    found = check_architecture("vit_tiny_patch16_224", seconds=100)
    assert found["readouts"].startswith("intermediate 0")
    assert found["early stop"] == RIGHT


def test_names_that_cannot_be_checked_say_why():
    found = check_architecture("resnet18", seconds=60, most_parameters=1)
    assert found["how"].startswith("shapes at")
    assert found["layers"] == found["strides"] == found["levels"] == RIGHT
    assert found["readouts"] == f"{UNKNOWN}: shapes only"


def test_the_table_counts_names_by_check():
    table = SWEEP.run(SWEEP.smoke(SWEEP.PLAN))["sweep"]
    rows = table.frame[table.frame["model"] == "timm"].set_index("target")
    assert list(rows.index) == list(CHECKS)
    assert (rows["n"] == 3).all()
    assert (rows["value"] == 1).all()


@pytest.mark.campaign
@pytest.mark.timeout(3 * 3600)
def test_all_of_timm_is_right_for_95_in_100():
    frame = SWEEP.run(SWEEP.PLAN)["sweep"].frame
    rows = frame[frame["model"] == "timm"].set_index("target")
    assert (rows["value"] >= 0.95).all(), rows["value"]
