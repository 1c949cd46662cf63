"""Sigmoid regression: scikit-learn, a closed form, and the independence of labels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from probekit.errors import InputError
from probekit.functional import certified_fit, fit_sigmoid
from probekit.functional.sigmoid_regression import ABSENT_LOGIT

PENALTIES = [10.0, 0.1, 1e-3, 1e-5]


@pytest.fixture
def several(planted):
    """Features and three labels, the last one rare."""
    x, labels = planted(200, 12, 4)
    return x, np.stack([labels == 0, labels >= 2, (labels == 3) & (x[:, 0] > 1)], axis=1)


def objective(x, truth, weights, intercept, penalty):
    sign = np.where(truth, 1, -1)
    return np.logaddexp(0, -sign * (x @ weights + intercept)).mean() + 0.5 * penalty * (weights**2).sum()


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_reaches_the_optimum_of_scikit_learn(several, monkeypatch, single):
    x, truth = several
    if single:
        monkeypatch.setattr(certified_fit, "_SMALL", 0)
        x = x.astype(np.float32)
    path = fit_sigmoid(x, truth, PENALTIES)
    assert path.converged.all()
    assert path.objective.shape == path.gap.shape == path.iterations.shape == (4, 3)
    x = x.astype(np.float64)
    for place, penalty in enumerate(PENALTIES):
        for label in range(3):
            fit = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-10, solver="newton-cholesky")
            fit.fit(x, truth[:, label])
            own = objective(
                x, truth[:, label], path.weights[place, :, label], path.intercepts[place, label], penalty
            )
            least = objective(x, truth[:, label], fit.coef_[0], fit.intercept_[0], penalty)
            assert own == pytest.approx(path.objective[place, label], rel=1e-9)
            assert -1e-8 <= (own - least) / least <= path.gap[place, label]


def test_one_feature_of_two_values_against_the_root_of_its_equation():
    x = np.repeat([1.0, 1.0, -1.0, -1.0], [30, 10, 30, 10])[:, None]
    truth = np.repeat([1, 0, 0, 1], [30, 10, 30, 10])
    for penalty in (1.0, 0.1, 1e-4):
        w = brentq(lambda w, penalty=penalty: expit(w) - 0.75 + penalty * w, -10, 10)
        path = fit_sigmoid(x, truth, [penalty], gap=1e-12)
        assert path.weights.ravel() == pytest.approx([w], abs=1e-6)
        assert path.intercepts.ravel() == pytest.approx([0], abs=1e-6)


def test_each_label_is_fitted_as_if_alone(several):
    x, truth = several
    together = fit_sigmoid(x, truth, PENALTIES, gap=1e-9)
    for label in range(3):
        alone = fit_sigmoid(x, truth[:, label], PENALTIES, gap=1e-9)
        np.testing.assert_allclose(together.objective[:, label], alone.objective[:, 0], rtol=2e-9)
        np.testing.assert_allclose(together.weights[:, :, label], alone.weights[:, :, 0], atol=2e-2)


def test_the_opposite_label_has_the_opposite_weights(several):
    x, truth = several
    one, other = fit_sigmoid(x, truth, [0.1], gap=1e-10), fit_sigmoid(x, ~truth, [0.1], gap=1e-10)
    np.testing.assert_allclose(one.weights, -other.weights, atol=1e-5)
    np.testing.assert_allclose(one.intercepts, -other.intercepts, atol=1e-4)


def test_labels_that_never_vary(several):
    x, truth = several
    wide = np.concatenate([truth[:, :1], np.zeros((200, 1), bool), np.ones((200, 1), bool)], axis=1)
    path = fit_sigmoid(x, wide, [0.1, 1.0])
    assert (path.weights[:, :, 1:] == 0).all()
    assert path.intercepts[:, 1:].tolist() == [[ABSENT_LOGIT, -ABSENT_LOGIT]] * 2
    assert path.converged.all()
    only = fit_sigmoid(x, wide[:, 1:], [0.1])
    assert only.objective.max() < 1e-40
    alone = fit_sigmoid(x, wide[:, :1], [0.1, 1.0])
    np.testing.assert_allclose(path.weights[:, :, :1], alone.weights, atol=1e-9)


def test_rows_of_weight_zero_are_as_if_absent(several):
    x, truth = several
    mask = np.arange(200) < 120
    one = fit_sigmoid(x, truth, PENALTIES, sample_weight=mask)
    other = fit_sigmoid(x[mask], truth[mask], PENALTIES)
    np.testing.assert_allclose(one.objective, other.objective, rtol=1e-4)


def test_whole_weights_are_repeated_rows(several):
    x, truth = several
    counts = np.random.default_rng(0).integers(0, 3, 200)
    one = fit_sigmoid(x, truth, [0.1], sample_weight=counts, gap=1e-10)
    other = fit_sigmoid(np.repeat(x, counts, 0), np.repeat(truth, counts, 0), [0.1], gap=1e-10)
    np.testing.assert_allclose(one.objective, other.objective, rtol=1e-9)
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-4)


def test_a_row_of_vanishing_weight_still_counts(several):
    x, truth = several
    weight = np.where(truth[:, 0], 1.0, 1e-25)
    path = fit_sigmoid(x, truth[:, :1], [0.1], sample_weight=weight)
    assert np.isfinite(path.intercepts).all()
    assert path.intercepts[0, 0] > 40


def test_stopping_early_is_said_and_not_warned(several):
    path = fit_sigmoid(*several, [1e-5], max_iterations=2)
    assert not path.converged.any()
    assert (path.iterations == 2).all()


@pytest.mark.parametrize(
    ("labels", "said"),
    [(np.full((10, 2), 2), "0 and 1"), (np.zeros((9, 2)), r"\(10, C\)"), (np.zeros((10, 0)), r"\(10, C\)")],
)
def test_says_what_is_wrong(labels, said):
    with pytest.raises(InputError, match=said):
        fit_sigmoid(np.eye(10), labels, [1.0])
