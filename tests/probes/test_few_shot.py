"""Few-shot curves: nested draws, penalty chosen on val, empty where there are too few images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from probekit.data.targets import Target
from probekit.probes.few_shot import _draw, few_shot_rows
from tests.probes.conftest import QUICK, gaussians, tap_data

NAMES = ("a", "b", "c")


def test_more_shots_of_a_draw_hold_the_fewer():
    labels = np.arange(60) % 3
    few, many = (set(_draw(labels, shots, "class", 0, QUICK)) for shots in (2, 5))
    assert few < many
    assert np.bincount(labels[list(many)]).tolist() == [5, 5, 5]
    assert few != set(_draw(labels, 2, "class", 1, QUICK))


def test_accuracy_grows_with_shots_and_stands_above_its_null():
    values, labels = gaussians(distance=2.0)
    protocol = replace(QUICK, shots=(1, 20), few_shot_draws=5)
    one, twenty = few_shot_rows(tap_data(values), "class", Target(labels, "class", NAMES), protocol)
    assert one["value"] < twenty["value"]
    assert twenty["null"] < 0.6 < twenty["value"]
    assert twenty["ci_low"] < twenty["value"] < twenty["ci_high"]
    assert twenty["ci_kind"] == "t,draws"
    assert twenty["params"]["shots"] == 20


def test_too_few_images_of_a_class_leave_the_row_empty_with_the_reason():
    values, labels = gaussians()
    labels = labels.copy()
    rows = np.flatnonzero(labels[:300] == 2)[3:]
    labels[rows] = 0
    found = few_shot_rows(tap_data(values), "class", Target(labels, "class", NAMES), QUICK)
    assert "value" in found[0]
    assert found[1]["status"] == "class c has only 3 training images"
    assert "value" not in found[1]
