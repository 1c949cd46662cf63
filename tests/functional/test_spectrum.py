"""Spectra: known eigenvalues, invariances, scikit-dimension."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from probekit.errors import InputError
from probekit.functional.moments import Moments
from probekit.functional.spectrum import (
    covariance_spectrum,
    effective_rank,
    participation_ratio,
    rankme,
    spectral_decay,
    two_nearest_dimension,
)


def normal(n: int, scales, seed: int = 0):
    return np.random.default_rng(seed).normal(size=(n, len(scales))) * scales


def test_spectrum_is_that_of_the_covariance():
    x = normal(400, [3.0, 2.0, 1.0]) + 50
    found = covariance_spectrum(Moments.of(x))
    np.testing.assert_allclose(found, np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1], rtol=1e-9)


def test_flat_spectra_have_all_their_directions():
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert participation_ratio([1, 1, 1, 1, 0, 0]) == pytest.approx(4)
    assert effective_rank([5.0, 0, 0]) == pytest.approx(1)
    assert participation_ratio([4.0, 1.0]) == pytest.approx(25 / 17)


def test_rankme_is_its_authors_formula_on_uncentred_features():
    x = normal(300, np.ones(20)) + 2.0
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert rankme(Moments.of(x)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    # The offset takes most of it away; the effective rank of the covariance does not see it.
    assert rankme(Moments.of(x)) < 0.8 * rankme(Moments.of(x - 2.0))
    assert effective_rank(covariance_spectrum(Moments.of(x))) > 18


def test_decay_recovers_its_exponent_and_names_its_window():
    fit = spectral_decay(np.arange(1, 301.0) ** -1.2)
    assert (fit.alpha, fit.r2) == pytest.approx((1.2, 1.0))
    assert (fit.first, fit.last) == (11, 300)
    few = np.concatenate([np.arange(1, 31.0) ** -2.0, np.zeros(100)])
    assert spectral_decay(few).last == 30
    assert spectral_decay(np.ones(12)) is None


@pytest.mark.parametrize("d", [2, 5, 10])
def test_two_nearest_neighbours_against_a_line_through_sorted_ratios(d: int):
    x = normal(1500, np.ones(d), seed=d) @ np.random.default_rng(1).normal(size=(d, 25))
    distances = NearestNeighbors().fit(x).kneighbors(x, 3)[0]
    logs = np.log(np.sort(distances[:, 2] / distances[:, 1])[:1350])
    heights = -np.log(1 - np.arange(1350) / 1500)
    found = two_nearest_dimension(x)
    assert found == pytest.approx(np.linalg.lstsq(logs[:, None], heights, rcond=None)[0][0], rel=1e-6)
    assert found == pytest.approx(d, rel=0.15)


@pytest.mark.parametrize("d", [2, 5, 10])
def test_two_nearest_neighbours_against_scikit_dimension(d: int):
    skdim = pytest.importorskip("skdim")
    x = normal(1500, np.ones(d), seed=d) @ np.random.default_rng(1).normal(size=(d, 25))
    found = two_nearest_dimension(x)
    assert found == pytest.approx(skdim.id.TwoNN().fit(x).dimension_, rel=0.01)
    # Rows that stand twice change nothing.
    assert two_nearest_dimension(np.concatenate([x, x[:700]])) == pytest.approx(found)


def test_what_cannot_be_said():
    assert np.isnan(two_nearest_dimension(np.ones((50, 3))))
    assert np.isnan(two_nearest_dimension(np.eye(5)))
    assert np.isnan(rankme(Moments.of(np.zeros((4, 3)))))
    with pytest.raises(InputError, match="one of them positive"):
        effective_rank(np.zeros(3))
    with pytest.raises(InputError, match="products=True"):
        rankme(Moments.of(np.eye(3), products=False))
