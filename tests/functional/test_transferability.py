"""Transferability and neural collapse: exact cases, direct formulas, an optimiser, scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.covariance import OAS
from sklearn.neighbors import NearestCentroid

from probekit.errors import InputError
from probekit.functional.moments import Moments
from probekit.functional.transferability import (
    Whitening,
    h_score,
    logme,
    nearest_means,
    neural_collapse,
    self_duality,
    variability_collapse,
)


@pytest.fixture
def case():
    stream = np.random.default_rng(0)
    y = stream.integers(0, 5, 300)
    x = stream.normal(size=(300, 12)) @ stream.normal(size=(12, 12)) + 3 * stream.normal(size=(5, 12))[y] + 4
    return x, y, Moments.of(x, y, n_classes=5)


def simplex(c: int, d: int) -> np.ndarray:
    """C points with equal norms and equal angles around 0, turned into D features."""
    corners = np.eye(c) - 1 / c
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(d, d)))[0]
    return np.pad(corners, ((0, 0), (0, d - c))) @ turn


def test_an_exact_simplex_has_collapsed():
    y = np.repeat(np.arange(6), 10)
    x = simplex(6, 9)[y] + 2.0
    kept = Moments.of(x, y, n_classes=6)
    found = neural_collapse(kept)
    assert [found["nc1"], found["nc2_norms"], found["nc2_angles"]] == pytest.approx([0, 0, 0], abs=1e-10)
    weights = simplex(6, 9).T * 7
    assert self_duality(weights, kept) == pytest.approx(0, abs=1e-10)
    assert self_duality(-weights, kept) == pytest.approx(2)


def test_nc1_is_its_formula_with_a_pseudo_inverse(case):
    x, y, kept = case
    means = np.stack([x[y == c].mean(0) for c in range(5)])
    within = sum((x[y == c] - means[c]).T @ (x[y == c] - means[c]) for c in range(5)) / len(x)
    centred = means - means.mean(0)
    expected = np.trace(within @ np.linalg.pinv(centred.T @ centred / 5)) / 5
    assert neural_collapse(kept)["nc1"] == pytest.approx(expected)


def test_no_simplex_of_more_classes_than_features_allow():
    stream = np.random.default_rng(2)
    y = np.repeat(np.arange(6), 5)
    found = neural_collapse(Moments.of(stream.normal(size=(30, 3)) + y[:, None], y, n_classes=6))
    assert np.isnan(found["nc2_angles"])
    assert np.isfinite(found["nc2_norms"])


def test_h_score_and_collapse_index_with_a_dense_inverse(case):
    x, y, kept = case
    whitening = Whitening.of(kept)
    oracle = OAS().fit(x)
    assert whitening.shrinkage == pytest.approx(oracle.shrinkage_, rel=0.05)
    shrunk = (whitening.axes * whitening.variances) @ whitening.axes.T
    covariance = np.cov(x.T, bias=True)
    rho = whitening.shrinkage
    np.testing.assert_allclose(
        shrunk, (1 - rho) * covariance + rho * np.trace(covariance) / 12 * np.eye(12), atol=1e-8
    )
    means = np.stack([x[y == c].mean(0) for c in y]) - x.mean(0)
    direct = np.trace(np.linalg.inv(shrunk) @ (means.T @ means) / len(x))
    assert h_score(kept, whitening) == pytest.approx((1 - rho) * direct)
    assert variability_collapse(kept, whitening) == pytest.approx(1 - (1 - rho) * direct / 4)


def test_the_collapse_index_is_0_for_points_and_near_1_for_noise():
    stream = np.random.default_rng(3)
    y = np.repeat(np.arange(4), 500)
    points = Moments.of(simplex(4, 6)[y] + 1e-6 * stream.normal(size=(2000, 6)), y, n_classes=4)
    noise = Moments.of(stream.normal(size=(2000, 6)), y, n_classes=4)
    assert variability_collapse(points, Whitening.of(points)) == pytest.approx(0, abs=0.01)
    assert variability_collapse(noise, Whitening.of(noise)) == pytest.approx(1, abs=0.01)


def test_nearest_means_against_scikit_learn(case):
    x, y, kept = case
    other = np.random.default_rng(4).normal(size=(50, 12)) * 4 + 4
    np.testing.assert_array_equal(nearest_means(other, kept), NearestCentroid().fit(x, y).predict(other))
    empty = Moments.of(x[y > 0], y[y > 0], n_classes=5)
    assert (nearest_means(other, empty) > 0).all()


def test_logme_is_the_largest_evidence(case):
    x, y, kept = case
    n, d = x.shape
    best = []
    for c in range(5):
        target = (y == c).astype(float)

        def evidence(logs, target=target):
            alpha, beta = np.exp(logs)
            a = alpha * np.eye(d) + beta * x.T @ x
            m = beta * np.linalg.solve(a, x.T @ target)
            return -(
                d / 2 * np.log(alpha) + n / 2 * np.log(beta) - np.linalg.slogdet(a)[1] / 2
                - beta / 2 * ((x @ m - target) ** 2).sum() - alpha / 2 * m @ m - n / 2 * np.log(2 * np.pi)
            ) / n  # fmt: skip

        best.append(-minimize(evidence, np.zeros(2), method="Nelder-Mead", tol=1e-10).fun)
    assert logme(kept) == pytest.approx(np.mean(best), abs=1e-5)
    shuffled = Moments.of(x, np.random.default_rng(5).permutation(y), n_classes=5)
    assert logme(shuffled) < logme(kept)


def test_says_what_is_wrong(case):
    x, y, _ = case
    with pytest.raises(InputError, match="Leave out this tap"):
        Whitening.of(Moments.of(np.ones((5, 2))))
    with pytest.raises(InputError, match="products=True"):
        logme(Moments.of(x, y, n_classes=5, products=False))
