"""Means, scales and axes: exact values far from zero, constant columns, planted directions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from probekit.errors import InputError, NonFiniteFeatures
from probekit.functional import principal_axes, standardisation, standardise


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), d=st.integers(1, 5), seed=st.integers(0, 999), offset=st.floats(-1e4, 1e4))
def test_float32_far_from_zero_keeps_its_variance(n, d, seed, offset):
    x = (np.random.default_rng(seed).normal(size=(n, d)) + offset).astype(np.float32)
    mean, scale, kept = standardisation(x)
    exact = x.astype(np.longdouble)
    np.testing.assert_allclose(mean, exact.mean(0).astype(float), rtol=1e-14, atol=1e-12)
    np.testing.assert_allclose(scale[kept], exact.std(0).astype(float)[kept], rtol=1e-10)
    assert kept.all() == (n > 1 and bool((x.std(0, dtype=np.float64) > 1e-6 * abs(offset)).all()))


def test_blocks_of_rows_change_nothing(monkeypatch):
    x = np.random.default_rng(0).normal(size=(101, 7))
    whole = standardisation(x)
    monkeypatch.setattr(standardise, "_BLOCK_BYTES", 1)
    for one, other in zip(whole, standardisation(x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-15)


def test_constant_columns_are_flagged_in_every_precision():
    stream = np.random.default_rng(1)
    jitter = np.nextafter(np.float32(3.7), np.float32(9), dtype=np.float32)
    for dtype in (np.float16, np.float32, np.float64):
        x = np.zeros((50, 5), dtype)
        x[:, 1] = 0.1
        x[:, 2] = np.where(stream.random(50) < 0.5, 3.7, jitter if dtype == np.float32 else 3.7)
        x[:, 3] = 1000 + stream.normal(size=50)
        x[:, 4] = 1e-30 * stream.normal(size=50) if dtype != np.float16 else stream.normal(size=50)
        mean, scale, kept = standardisation(x)
        assert kept.tolist() == [False, False, False, dtype != np.float16 or kept[3], True]
        assert (scale[:3] == 1).all()
        assert mean[1] == pytest.approx(float(x[0, 1]))


def test_weights_are_repeated_rows():
    x = np.random.default_rng(2).normal(size=(30, 4))
    counts = np.random.default_rng(3).integers(0, 4, 30)
    for one, other in zip(standardisation(x, counts), standardisation(np.repeat(x, counts, 0)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_scales_that_a_float32_square_could_not_hold():
    x = np.array([[-1e30], [1e30]], np.float32)
    mean, scale, kept = standardisation(x)
    assert (mean.item(), scale.item(), kept.item()) == (0.0, pytest.approx(1e30, rel=1e-6), True)


@pytest.mark.parametrize(("n", "d"), [(60, 7), (5, 20)])
def test_axes_agree_with_scikit_learn_up_to_sign(n, d):
    x = np.random.default_rng(4).normal(size=(n, d)) * np.geomspace(1, 3, d) + 10
    mean, axes = principal_axes(x, 4)
    other = PCA(4, svd_solver="full").fit(x)
    np.testing.assert_allclose(mean, other.mean_)
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(np.abs(axes.T @ other.components_.T), np.eye(4), atol=1e-8)
    assert (axes[np.abs(axes).argmax(0), np.arange(4)] > 0).all()


def test_axes_of_float32_far_from_zero():
    x = (np.random.default_rng(5).normal(size=(500, 2)) * [1, 0.1] + 1000).astype(np.float32)
    np.testing.assert_allclose(principal_axes(x, 1)[1].ravel(), [1, 0], atol=0.02)


def test_weighted_axes_are_those_of_repeated_rows():
    x = np.random.default_rng(6).normal(size=(30, 4))
    counts = np.random.default_rng(7).integers(0, 4, 30)
    for one, other in zip(
        principal_axes(x, 2, counts), principal_axes(np.repeat(x, counts, 0), 2), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-10)


def test_few_rows_give_few_axes():
    assert principal_axes(np.eye(3, 10), 8)[1].shape == (10, 3)


@pytest.mark.parametrize("d", [0, 4])
def test_a_number_of_axes_out_of_range(d):
    with pytest.raises(InputError, match="d from 1 to the 3"):
        principal_axes(np.eye(3), d)


def test_values_that_are_not_finite():
    with pytest.raises(NonFiniteFeatures, match="first row 1"):
        standardisation([[1.0], [np.inf]])
