"""Linear probes against scikit-learn, and against what was planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss

from probekit.data.targets import Target
from probekit.functional import fit_sigmoid, fit_softmax
from probekit.probes import linear, racing
from probekit.probes.controls import permute_rows
from probekit.probes.linear import fit_classes, fit_labels, probe_classes, probe_labels
from probekit.results.fitted import Probe
from tests.probes.conftest import QUICK, gaussians, tap_data

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def case():
    values, labels = gaussians(distance=2.0)
    return values, tap_data(values), Target(labels, "class", NAMES)


def test_scores_are_those_of_scikit_learn_under_the_same_protocol(case):
    values, data, target = case
    # A nearly tied image must fall to the same side, so both are solved further than a probe needs.
    outcome = probe_classes(data, "class", target, replace(QUICK, gap=1e-9))
    rows = {row["metric"]: row for row in outcome.rows if row["metric"] != "class_recall"}
    labels, roles = target.values, data.roles

    def fit(rows_, penalty):
        mean, scale = values[rows_].mean(0, dtype=float), values[rows_].std(0, dtype=float)
        model = LogisticRegression(C=1 / (len(rows_) * penalty), tol=1e-10, max_iter=10_000)
        model.fit((values[rows_] - mean) / scale, labels[rows_])
        return lambda other: model.predict_proba((values[other] - mean) / scale)

    on_val = {penalty: fit(roles.train, penalty)(roles.val) for penalty in QUICK.penalties}
    accuracy = {p: (one.argmax(1) == labels[roles.val]).mean() for p, one in on_val.items()}
    loss = {p: log_loss(labels[roles.val], one) for p, one in on_val.items()}
    best = max(QUICK.penalties, key=lambda p: (accuracy[p], -loss[p]))
    assert rows["accuracy"]["params"]["penalty"] == best
    assert rows["accuracy"]["params"]["val"] == pytest.approx(accuracy[best])

    probabilities = fit(roles.fitting, best)(roles.test)
    truth = labels[roles.test]
    assert rows["accuracy"]["value"] == pytest.approx((probabilities.argmax(1) == truth).mean())
    assert rows["bits"]["value"] == pytest.approx(log_loss(truth, probabilities) / np.log(2), rel=1e-5)
    expected = balanced_accuracy_score(truth, probabilities.argmax(1))
    assert rows["balanced_accuracy"]["value"] == pytest.approx(expected)
    assert rows["accuracy"]["params"]["gap"] <= 1e-9


@pytest.mark.parametrize("distance", [0.0, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize(("d", "noise"), [(6, 0), (60, 40), (400, 390)])
def test_racing_changes_no_choice(monkeypatch, distance: float, d: int, noise: int):
    # A few columns that tell, many that do not: weak penalties overfit, and the race ends early.
    values, labels = gaussians(n=6400, d=d - noise, distance=distance, seed=d)
    values = np.concatenate(
        [values, np.random.default_rng(d).normal(size=(len(values), noise))], axis=1
    ).astype(np.float32)
    data, target = tap_data(values), Target(labels, "class", NAMES)
    # At wider gaps the images right on val are themselves open by one or two.
    protocol = replace(QUICK, penalties=tuple(np.geomspace(10, 1e-5, 13)), permutations=0, gap=1e-6)
    chosen = []
    original = linear.fit_softmax

    def whole_path(*args, refine=None, **settings):
        settings.setdefault("gap", protocol.gap)
        return original(*args, **settings)

    def counted(*args, **settings):
        path = original(*args, **settings)
        chosen.append(path)
        return path

    monkeypatch.setattr(linear, "fit_softmax", whole_path)
    whole = fit_classes(data, target, protocol, "class")
    monkeypatch.setattr(linear, "fit_softmax", counted)
    monkeypatch.setattr(racing, "_WORTH_A_RACE", 0)
    raced = fit_classes(data, target, protocol, "class")
    assert raced.params["penalty"] == whole.params["penalty"]
    assert raced.params["val"] == whole.params["val"]
    path = chosen[0]
    assert path.gap[path.penalties == raced.params["penalty"]] <= protocol.gap
    if (d, distance) == (400, 2.0):
        assert len(path.penalties) < 13
    np.testing.assert_allclose(raced.weights, whole.weights, atol=0.02)


def test_test_labels_touch_nothing_but_the_score(case):
    _, data, target = case
    changed = target.values.copy()
    changed[data.roles.test] = (changed[data.roles.test] + 1) % 3
    one = fit_classes(data, target, QUICK, "class")
    other = fit_classes(data, Target(changed, "class", NAMES), QUICK, "class")
    np.testing.assert_array_equal(one.weights, other.weights)
    assert one.params == other.params


def test_the_null_is_at_chance_and_the_score_is_not(case):
    _, data, target = case
    row = probe_classes(data, "class", target, QUICK).rows[0]
    assert row["null_kind"] == "permuted,5"
    assert row["null_low"] <= row["null"] <= row["null_high"]
    assert abs(row["null"] - 1 / 3) < 0.1
    assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert row["ci_low"] > row["null_high"]


def test_the_attached_probe_gives_the_scored_predictions(case):
    values, data, target = case
    outcome = probe_classes(data, "class", target, QUICK)
    probe = Probe.from_arrays(outcome.arrays)
    predicted = probe.predict(values[data.roles.test])
    np.testing.assert_array_equal(predicted, outcome.images["prediction"])
    np.testing.assert_allclose(
        probe.probabilities(values[data.roles.test]), softmax(probe.scores(values[data.roles.test]), axis=1)
    )


def test_constant_columns_are_left_out_and_counted(case):
    values, data, target = case
    wider = np.concatenate([values, np.full((len(values), 2), 7, np.float32)], axis=1)
    one = probe_classes(data, "class", target, QUICK)
    other = probe_classes(tap_data(wider), "class", target, QUICK)
    assert other.rows[0]["params"]["n_constant"] == 2
    assert one.rows[0]["value"] == other.rows[0]["value"]


def test_a_class_recall_row_a_class_averages_to_balanced_accuracy(case):
    _, data, target = case
    rows = probe_classes(data, "class", target, QUICK).rows
    recalls = [row["value"] for row in rows if row["metric"] == "class_recall"]
    balanced = next(row["value"] for row in rows if row["metric"] == "balanced_accuracy")
    assert len(recalls) == 3
    assert np.mean(recalls) == pytest.approx(balanced)


def test_without_permutations_there_is_no_null(case):
    _, data, target = case
    rows = probe_classes(data, "class", target, replace(QUICK, permutations=0)).rows
    assert not any("null" in row for row in rows)


def test_labels_are_read_where_they_are_planted_and_not_elsewhere():
    random = np.random.default_rng(0)
    values = random.normal(size=(600, 6)).astype(np.float32)
    planted = np.stack([values[:, 0] > 0, values[:, 1] + values[:, 2] > 0], axis=1)
    names = ("first", "second")
    found = probe_labels(tap_data(values), "labels", Target(planted, "multilabel", names), QUICK).rows[0]
    noise = random.random((600, 2)) > 0.5
    lost = probe_labels(tap_data(values), "labels", Target(noise, "multilabel", names), QUICK).rows[0]
    assert found["metric"] == lost["metric"] == "mean_ap"
    assert found["value"] > 0.95 > found["null_high"]
    assert lost["ci_low"] < lost["null_high"] + 0.1
    assert lost["value"] < 0.65


@pytest.mark.parametrize("penalties", [(0.1,), (10.0,)])
@pytest.mark.parametrize("kind", ["class", "multilabel"])
def test_kept_nulls_are_the_probes_of_permuted_targets(kind: str, penalties: tuple[float, ...]):
    features, labels = gaussians(d=5)
    values = labels if kind == "class" else np.stack([labels == 0, labels > 0, labels == 1], axis=1)
    target = Target(values, kind, ("a", "b", "c"))
    data, protocol = tap_data(features), replace(QUICK, penalties=penalties, gap=1e-7, permutations=3)
    fit = (fit_classes if kind == "class" else fit_labels)(data, target, protocol, "t", keep_null=True)
    fitting = values[data.roles.fitting]
    orders = permute_rows(len(fitting), 3, seed=protocol.seed, name="t")
    for order, weights, intercept, logits in zip(
        orders, fit.null_weights, fit.null_intercepts, fit.null_logits, strict=True
    ):
        if kind == "class":
            own = fit_softmax(data.refit.fit, fitting[order], penalties, n_classes=3, gap=1e-9)
        else:
            own = fit_sigmoid(data.refit.fit, fitting[order], penalties, gap=1e-9)
        assert np.linalg.norm(weights) > 0
        np.testing.assert_allclose(weights, own.weights[0], atol=0.02 * np.abs(own.weights[0]).max())
        np.testing.assert_allclose(logits, data.refit.score @ weights + intercept, atol=1e-5)
    assert not fit_classes(*(data, Target(labels, "class", ("a", "b", "c")), QUICK, "t")).null_weights.size
