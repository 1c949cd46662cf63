"""Control tasks: what is known by heart, and selectivity above it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from probekit.data.targets import Target
from probekit.probes.control_tasks import control_rows, memorised_shares
from probekit.probes.controls import permute_rows
from probekit.probes.linear import probe_classes
from tests.probes.conftest import QUICK, gaussians, tap_data

NAMES = ("a", "b", "c")


def rows_of(values: np.ndarray, labels: np.ndarray, protocol=QUICK) -> dict:
    outcome = probe_classes(tap_data(values), "class", Target(labels, "class", NAMES), protocol)
    return {row["metric"]: row for row in outcome.rows if row["metric"] != "class_recall"}


def test_labels_given_back_are_counted_probe_by_probe():
    features = np.eye(4, dtype=np.float32)
    by_heart = np.array([0, 1, 1, 1])
    weights = np.stack([np.eye(2)[by_heart], np.eye(2)[by_heart]])
    shares = memorised_shares(features, np.stack([by_heart, 1 - by_heart]), weights, np.zeros((2, 2)))
    assert shares.tolist() == [1.0, 0.0]
    shifted = memorised_shares(features, by_heart[None], weights[:1], np.array([[2.0, 0.0]]))
    assert shifted.tolist() == [0.25]


def test_control_accuracy_is_that_of_scikit_learn_on_the_same_labels():
    values, labels = gaussians(distance=2.0)
    data = tap_data(values)
    row = rows_of(values, labels, replace(QUICK, gap=1e-8))["control_accuracy"]
    fitting = labels[data.roles.fitting]
    found = []
    for order in permute_rows(len(fitting), QUICK.permutations, seed=0, name="class"):
        model = LogisticRegression(C=1 / (len(fitting) * row["params"]["penalty"]), tol=1e-8, max_iter=10_000)
        found.append(model.fit(data.refit.fit, fitting[order]).score(data.refit.fit, fitting[order]))
    # Fits to random labels stop at a gap of 1 %, where a few images are still open.
    assert row["value"] == pytest.approx(np.mean(found), abs=0.02)
    assert (row["n"], row["split"]) == (375, "train+val")


def test_wide_random_features_are_learnt_by_heart_and_narrow_real_ones_read():
    values, labels = gaussians(distance=4.0)
    noise = np.random.default_rng(0).normal(size=(len(values), 1000)).astype(np.float32)
    real, stored = rows_of(values, labels), rows_of(noise, labels, replace(QUICK, penalties=(1e-3,)))
    assert real["selectivity"]["value"] > 0.4
    assert real["selectivity"]["ci_low"] > real["selectivity"]["null_high"]
    assert stored["control_accuracy"]["value"] > 0.99
    assert stored["selectivity"]["value"] < -0.5
    # Nothing to read: selectivity is what it is of random labels.
    assert stored["selectivity"]["ci_low"] < stored["selectivity"]["null_high"]


def test_control_accuracy_grows_with_width_and_falls_with_the_penalty():
    values, labels = gaussians(distance=2.0)
    noise = np.random.default_rng(0).normal(size=(len(values), 100)).astype(np.float32)
    wide = np.concatenate([values, noise], axis=1)

    def control(features, penalty):
        return rows_of(features, labels, replace(QUICK, penalties=(penalty,)))["control_accuracy"]["value"]

    assert control(values, 0.01) < control(wide, 1.0) < control(wide, 0.01)


def test_selectivity_is_the_difference_and_its_null_that_of_random_labels():
    hits, nulls, memorised = np.array([1.0, 1.0, 1.0, 0.0] * 50), np.array([0.3, 0.5]), np.array([0.6, 0.7])
    control, selectivity = control_rows(hits, nulls, memorised, 40, QUICK, "class")
    assert control["value"] == pytest.approx(0.65)
    assert (control["null_low"], control["null_high"]) == (0.3, 0.5)
    assert selectivity["value"] == pytest.approx(0.75 - 0.65)
    assert selectivity["null"] == pytest.approx(-0.25)
    assert selectivity["ci_low"] < selectivity["value"] < selectivity["ci_high"]
    # SE² = p(1 − p)/n + s²/B
    error = np.sqrt(0.75 * 0.25 / 200 + 0.05**2 / 2)
    assert selectivity["ci_high"] - selectivity["ci_low"] == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_without_permutations_there_is_no_control():
    values, labels = gaussians()
    assert not {"control_accuracy", "selectivity"} & set(
        rows_of(values, labels, replace(QUICK, permutations=0))
    )
