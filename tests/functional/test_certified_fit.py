"""The accounts in float64: intercepts from anywhere, and bounds that hold at any weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.functional import certified_fit, fit_softmax
from probekit.functional.certified_fit import CertifiedFits, certify
from probekit.functional.softmax_regression import _CrossEntropy


def account(x, labels, weights, intercepts, penalty):
    reached = CertifiedFits(weights[None], intercepts[None], np.zeros(1), np.zeros(1), np.zeros(1, np.int64))
    loss = _CrossEntropy(torch.from_numpy(labels)[None])
    share = np.full(len(x), 1 / len(x))
    return certify(x, share, loss, reached, np.array([penalty]), np.arange(1))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 9999), size=st.floats(0, 3), log_penalty=st.floats(-3, 2))
def test_the_bound_holds_at_any_weights(planted, seed, size, log_penalty):
    x, labels = planted(40, 6, 3, seed=seed % 50)
    weights = size * np.random.default_rng(seed).normal(size=(6, 3))
    best = fit_softmax(x, labels, [10**log_penalty], n_classes=3, gap=1e-10)
    there = account(x, labels, weights, np.zeros(3), 10**log_penalty)
    assert there.gap[0] * (1 + 1e-9) >= (there.objective[0] - best.objective[0]) / best.objective[0]
    least = best.objective[0] * (1 - best.gap[0])
    assert there.objective[0] >= least * (1 - 1e-12)


@pytest.mark.parametrize("far", [3.0, 15.0, -20.0])
def test_intercepts_are_found_from_afar(planted, far):
    x, labels = planted(90, 4, 3)
    there = account(x, labels, np.zeros((4, 3)), far * np.array([1.0, 0.0, -1.0]), 0.1)
    shares = np.bincount(labels) / 90
    found = np.exp(there.intercepts[0])
    np.testing.assert_allclose(found / found.sum(), shares, rtol=1e-8)
    assert there.objective[0] == pytest.approx(-(shares * np.log(shares)).sum())


def test_intercepts_that_do_not_settle_leave_no_bound(planted, monkeypatch):
    monkeypatch.setattr(certified_fit, "_NEWTON_STEPS", 1)
    x, labels = planted(90, 4, 3)
    there = account(x, labels, np.zeros((4, 3)), 15 * np.array([1.0, 0.0, -1.0]), 0.1)
    assert there.gap[0] == np.inf


def test_a_bound_as_large_as_the_objective_is_none(planted):
    x, labels = planted(90, 4, 3)
    assert account(x, labels, 50 * np.ones((4, 3)) * [1, 0, -1], np.zeros(3), 1e-6).gap[0] == np.inf
