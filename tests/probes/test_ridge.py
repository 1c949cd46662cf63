"""Ridge probes against scikit-learn, and nulls within class."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from probekit.data.targets import Target
from probekit.probes.ridge import probe_values
from tests.probes.conftest import QUICK, tap_data


def case(seed: int = 0):
    random = np.random.default_rng(seed)
    values = random.normal(size=(400, 5)).astype(np.float32)
    labels = (values[:, 0] > 0).astype(np.int64)
    return random, values, labels


def test_scores_are_those_of_scikit_learn():
    random, values, _ = case()
    truth = values @ random.normal(size=(5, 2)) + random.normal(size=(400, 2))
    data = tap_data(values)
    row = probe_values(data, {"xy": Target(truth, "continuous", ("x", "y"))}, QUICK, None)["xy"].rows[0]
    roles = data.roles
    mean, scale = values[roles.fitting].mean(0, dtype=float), values[roles.fitting].std(0, dtype=float)
    alpha = len(roles.fitting) * row["params"]["penalty"]
    model = Ridge(alpha=alpha).fit((values[roles.fitting] - mean) / scale, truth[roles.fitting])
    predicted = model.predict((values[roles.test] - mean) / scale)
    expected = r2_score(truth[roles.test], predicted, multioutput="variance_weighted")
    assert row["value"] == pytest.approx(expected, abs=1e-6)
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert row["null"] < 0.05


def test_targets_scored_together_are_scored_as_alone():
    random, values, labels = case()
    targets = {
        name: Target(values @ random.normal(size=5) + random.normal(size=400) * noise, "continuous", (name,))
        for name, noise in (("a", 0.1), ("b", 3.0))
    }
    together = probe_values(tap_data(values), targets, QUICK, labels)
    for name, target in targets.items():
        alone = probe_values(tap_data(values), {name: target}, QUICK, labels)[name]
        both = (together[name].rows[0], alone.rows[0])
        for params in both:
            # The width of a product decides the order of its sums, and so the last bit.
            params["params"]["val"] = pytest.approx(params["params"]["val"], abs=1e-12)
        assert both[0]["params"] == both[1]["params"]
        for column in ("value", "ci_low", "ci_high", "null"):
            assert both[0][column] == pytest.approx(both[1][column], abs=1e-9)
        np.testing.assert_allclose(together[name].arrays["weights"], alone.arrays["weights"])


def test_a_factor_that_only_follows_the_class_is_all_null():
    random, values, labels = case()
    follows = Target(labels + random.normal(size=400) * 0.1, "continuous", ("factor",))
    free = probe_values(tap_data(values), {"factor": follows}, QUICK, None)["factor"].rows[0]
    within = probe_values(tap_data(values), {"factor": follows}, QUICK, labels)["factor"].rows[0]
    assert free["null"] < 0.05 < 0.4 < free["value"]
    assert within["null_kind"] == "permuted within class,5"
    assert within["null"] > within["value"] - 0.05


def test_per_image_scores_average_to_the_value():
    random, values, _ = case()
    target = Target(values @ random.normal(size=5), "continuous", ("a",))
    outcome = probe_values(tap_data(values), {"a": target}, QUICK, None)["a"]
    assert outcome.images["r2"].mean() == pytest.approx(outcome.rows[0]["value"])


def test_a_target_that_does_not_vary_on_test_is_empty_with_the_reason():
    _, values, _ = case()
    data = tap_data(values)
    truth = values[:, 0].astype(float).copy()
    truth[data.roles.test] = 1.0
    row = probe_values(data, {"a": Target(truth, "continuous", ("a",))}, QUICK, None)["a"].rows[0]
    assert "value" not in row
    assert "does not vary" in row["status"]
