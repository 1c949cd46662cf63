"""Ridge regression: normal equations, scikit-learn, and relations that any optimum obeys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from probekit.errors import InputError, NonFiniteFeatures
from probekit.functional import fit_ridge

PENALTIES = [10.0, 0.1, 1e-3, 1e-6]


def draw(n, d, k=3, seed=0):
    stream = np.random.default_rng(seed)
    x = stream.normal(size=(n, d)) @ (np.eye(d) + 0.3 * stream.normal(size=(d, d)))
    return x, x @ stream.normal(size=(d, k)) + stream.normal(size=(n, k)) + 5


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 30), d=st.integers(1, 30), seed=st.integers(0, 1000), log_penalty=st.floats(-5, 2))
def test_solves_the_normal_equations(n, d, seed, log_penalty):
    x, y = draw(n, d, seed=seed)
    weight = np.random.default_rng(seed).random(n) + 0.1
    path = fit_ridge(x, y, [10**log_penalty], sample_weight=weight)
    # Gradient of the objective by W and by b at the solution
    residual = (path.predict(x)[0] - y) * (weight / weight.sum())[:, None]
    np.testing.assert_allclose(x.T @ residual + 10**log_penalty * path.weights[0], 0, atol=1e-8)
    np.testing.assert_allclose(residual.sum(0), 0, atol=1e-10)


@pytest.mark.parametrize(("n", "d"), [(50, 5), (5, 50), (20, 20), (40, 1), (1, 3)])
def test_agrees_with_scikit_learn_at_alpha_n_times_penalty(n, d):
    x, y = draw(n, d)
    path = fit_ridge(x, y, PENALTIES)
    for place, penalty in enumerate(PENALTIES):
        other = Ridge(alpha=n * penalty, solver="svd").fit(x, y)
        np.testing.assert_allclose(path.weights[place], other.coef_.T, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(path.intercepts[place], other.intercept_, rtol=1e-6, atol=1e-7)


def test_weighted_rows_agree_with_scikit_learn():
    x, y = draw(40, 6)
    weight = np.random.default_rng(0).random(40)
    path = fit_ridge(x, y, [0.1], sample_weight=weight)
    other = Ridge(alpha=0.1 * weight.sum(), solver="cholesky").fit(x, y, sample_weight=weight)
    np.testing.assert_allclose(path.weights[0], other.coef_.T, rtol=1e-8)


def test_rows_of_weight_zero_are_as_if_absent():
    x, y = draw(40, 6)
    mask = np.arange(40) % 3 > 0
    one, other = fit_ridge(x, y, PENALTIES, sample_weight=mask), fit_ridge(x[mask], y[mask], PENALTIES)
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-9)


def test_features_times_a_and_penalty_times_its_square():
    x, y = draw(30, 8)
    one, other = fit_ridge(x, y, [0.1]), fit_ridge(4 * x, y, [1.6])
    np.testing.assert_allclose(one.weights, 4 * other.weights, rtol=1e-10)
    np.testing.assert_allclose(one.intercepts, other.intercepts, rtol=1e-10)


def test_targets_do_not_see_each_other():
    x, y = draw(30, 8)
    one, other = fit_ridge(x, y, [0.1]), fit_ridge(x, y[:, 1], [0.1])
    np.testing.assert_allclose(one.weights[:, :, 1:2], other.weights, rtol=1e-12)


def test_no_targets_give_no_columns():
    x, y = draw(30, 8)
    path = fit_ridge(x, y[:, :0], PENALTIES)
    assert path.weights.shape == (4, 8, 0)
    assert path.predict(x).shape == (4, 30, 0)


def test_float32_features_far_from_zero_keep_their_slope():
    x = np.linspace(0, 1, 100)[:, None]
    x = (x + 1000).astype(np.float32)
    path = fit_ridge(x, 3 * x.astype(np.float64), [1e-12])
    assert path.weights.item() == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"targets": np.zeros(9)}, r"\(10, K\)"), ({"penalties": [-1.0]}, "positive"), ({"targets": 3.0}, "K")],
)
def test_says_what_is_wrong(change, said):
    with pytest.raises(InputError, match=said):
        fit_ridge(**({"features": np.eye(10), "targets": np.zeros(10), "penalties": [1.0]} | change))


def test_refuses_targets_that_are_not_finite():
    with pytest.raises(NonFiniteFeatures, match="finite targets"):
        fit_ridge(np.eye(3), [0.0, np.inf, 0.0], [1.0])
