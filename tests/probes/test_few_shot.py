"""Few-shot curves: nested draws, penalty chosen on val, empty where there are too few images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probekit.data.targets import Target
from probekit.functional import rows
from probekit.functional.ridge import fit_ridge
from probekit.probes.few_shot import _along, _draw, _span, few_shot_rows
from probekit.probes.protocol import Stage
from tests.probes.conftest import QUICK, gaussians, tap_data

NAMES = ("a", "b", "c")


def test_more_shots_of_a_draw_hold_the_fewer():
    labels = np.arange(60) % 3
    few, many = (set(_draw(labels, shots, "class", 0, 0)) for shots in (2, 5))
    assert few < many
    assert np.bincount(labels[list(many)]).tolist() == [5, 5, 5]
    assert few != set(_draw(labels, 2, "class", 1, 0))


def test_accuracy_grows_with_shots_and_stands_above_its_null():
    values, labels = gaussians(distance=2.0)
    protocol = replace(QUICK, shots=(1, 20), few_shot_draws=5)
    one, twenty = few_shot_rows(tap_data(values), "class", Target(labels, "class", NAMES), protocol)
    assert one["value"] < twenty["value"]
    assert twenty["null"] < 0.6 < twenty["value"]
    assert twenty["ci_low"] < twenty["value"] < twenty["ci_high"]
    assert twenty["ci_kind"] == "t,draws"
    assert twenty["params"]["shots"] == 20


@pytest.mark.parametrize("count", [6, 39, 41])
def test_rows_in_their_span_are_predicted_as_they_were(count: int):
    stream = np.random.default_rng(0)
    values = stream.normal(3, 2, size=(count + 50, 40)).astype(np.float32)
    stage = Stage.of(values[:count], values[count:])
    targets, penalties = stream.normal(size=(count, 3)), [1.0, 1e-5]
    expected = fit_ridge(stage.fit, targets, penalties).predict(stage.score)
    axes = _span(stage.fit)
    fit, score = _along(stage.fit, axes), _along(stage.score, axes)
    assert fit.shape == (count, min(count, 40))
    np.testing.assert_allclose(
        fit_ridge(fit, targets, penalties).predict(score), expected, rtol=1e-6, atol=1e-8
    )


def test_rows_are_scored_alike_in_blocks(monkeypatch: pytest.MonkeyPatch):
    values, labels = gaussians(distance=1.0)
    given = tap_data(values), "class", Target(labels, "class", NAMES), replace(QUICK, shots=(2, 5))
    whole = few_shot_rows(*given)
    monkeypatch.setattr(rows, "_BLOCK_BYTES", 8 * 2 * 3 * len(QUICK.penalties) * 7)
    in_blocks = few_shot_rows(*given)
    assert [one["value"] for one in in_blocks] == [one["value"] for one in whole]
    assert [one["null"] for one in in_blocks] == [one["null"] for one in whole]


def test_too_few_images_of_a_class_leave_the_row_empty_with_the_reason():
    values, labels = gaussians()
    labels = labels.copy()
    labels[np.flatnonzero(labels[:300] == 2)[3:]] = 0
    found = few_shot_rows(tap_data(values), "class", Target(labels, "class", NAMES), QUICK)
    assert "value" in found[0]
    assert found[1]["status"] == "class c has only 3 training images"
    assert "value" not in found[1]
