"""Intervals: the known laws of resampling, SciPy, and a worked example of Holm's procedure."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probekit.errors import InputError, NonFiniteFeatures
from probekit.functional import (
    adjust_holm,
    bootstrap_means,
    bootstrap_statistic,
    intervals,
    paired_difference,
    ratio_interval,
    resampled_sums,
    t_interval,
    welch_interval,
)
from probekit.seeds import random_stream


def stream(*keys):
    return random_stream("tests of intervals", *keys)


def class_means(sums):
    hits, counts = np.split(sums, 2, axis=1)
    return np.where(counts > 0, hits / np.maximum(counts, 1), np.nan).mean(1)


def test_resampled_means_have_the_known_mean_and_variance():
    scores = stream().normal(size=(400, 3)) * [1, 2, 0.5]
    means = resampled_sums(scores, draws=20_000, stream=stream(1)) / 400
    # Var of a resampled mean = (1/N)·(divided-by-N variance); its own sampling error is √(2/B) = 1 %.
    np.testing.assert_allclose(means.var(0), scores.var(0) / 400, rtol=0.05)
    np.testing.assert_allclose(means.mean(0), scores.mean(0), atol=5 * scores.std() / 20 / np.sqrt(20_000))


def test_counts_are_multinomial():
    counts = resampled_sums(np.eye(6), draws=5000, stream=stream(2))
    assert (counts.sum(1) == 6).all()
    table = np.bincount(counts.astype(int).ravel(), minlength=7)[:5]
    expected = stats.binom.pmf(np.arange(5), 6, 1 / 6) * counts.size
    assert stats.chisquare(table, expected * table.sum() / expected.sum()).pvalue > 1e-3


def test_an_accuracy_has_the_interval_of_the_binomial_law():
    hits = np.arange(500) < 430
    low, high = bootstrap_means(hits[:, None], draws=20_000, stream=stream(3))
    np.testing.assert_allclose(
        [low[0], high[0]], stats.binom(500, 0.86).ppf([0.025, 0.975]) / 500, atol=0.0021
    )


def test_agrees_with_scipy_on_a_skewed_mean():
    scores = stream(4).exponential(size=60)
    low, high = bootstrap_means(scores[:, None], draws=20_000, stream=stream(5))
    # SciPy's earlier name for its generator.
    name = "rng" if "rng" in inspect.signature(stats.bootstrap).parameters else "random_state"
    other = stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", **{name: np.random.default_rng(0)}
    ).confidence_interval
    np.testing.assert_allclose([low[0], high[0]], other, atol=0.015)


def test_a_statistic_of_class_sums_equals_recounting_every_resample():
    labels, hits = stream(6).integers(4, size=50), stream(7).integers(2, size=50)
    one_hot = np.eye(4)[labels]
    columns = np.concatenate([one_hot * hits[:, None], one_hot], axis=1)
    ends = bootstrap_statistic(columns, class_means, draws=300, stream=stream(8))
    drawn = stream(8).integers(50, size=(300, 50))
    slow = [
        np.mean([hits[rows][labels[rows] == c].mean() for c in range(4)])
        for rows in drawn
        if len(set(labels[rows])) == 4
    ]
    np.testing.assert_allclose(ends, np.quantile(slow, [0.025, 0.975]), atol=1e-12)


def test_chunks_of_draws_do_not_change_the_draws(monkeypatch):
    scores = stream(9).normal(size=(70, 2))
    whole = resampled_sums(scores, draws=101, stream=stream(10))
    monkeypatch.setattr(intervals, "_CHUNK_BYTES", 8 * 70 * 3)
    np.testing.assert_allclose(resampled_sums(scores, draws=101, stream=stream(10)), whole, atol=1e-12)


def test_columns_are_resampled_together():
    scores = np.repeat(stream(11).normal(size=(40, 1)), 3, axis=1)
    sums = resampled_sums(scores, draws=50, stream=stream(12))
    np.testing.assert_allclose(sums, sums[:, :1] * np.ones(3))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), a=st.floats(0.1, 10), b=st.floats(-5, 5))
def test_intervals_follow_a_change_of_units(seed, a, b):
    scores = stream(seed).normal(size=(30, 2))
    one = bootstrap_means(scores, draws=50, stream=stream(13))
    other = bootstrap_means(a * scores + b, draws=50, stream=stream(13))
    np.testing.assert_allclose(other, a * np.array(one) + b, atol=1e-9)


def test_resamples_that_leave_a_statistic_undefined_are_left_out():
    columns = np.concatenate([np.ones((5, 1)), np.eye(5)[:, :1]], axis=1)
    low, high = bootstrap_statistic(
        columns, lambda sums: np.where(sums[:, 1] > 0, sums[:, 0], np.nan), stream=stream(14)
    )
    assert (low, high) == (5.0, 5.0)
    never = bootstrap_statistic(columns, lambda sums: np.full(len(sums), np.nan), stream=stream(14))
    assert np.isnan(never).all()


def test_percentile_intervals_cover():
    covered = 0
    for trial in range(400):
        hits = stream("coverage", trial).random(300) < 0.8
        low, high = bootstrap_means(hits[:, None], draws=500, stream=stream("resampling", trial))
        covered += low[0] <= 0.8 <= high[0]
    # 95 % nominal; ±3 standard errors of 400 trials, and half a step of the discrete mean
    assert 0.90 <= covered / 400 <= 0.985


def test_a_paired_difference_near_the_t_test():
    a, b = stream(15).normal(0.15, 1, 300), stream(16).normal(0, 1, 300)
    result = paired_difference(a, b, draws=20_000, stream=stream(17))
    test = stats.ttest_rel(a, b)
    assert result.value == pytest.approx((a - b).mean())
    assert result.p_value == pytest.approx(test.pvalue, abs=0.02)
    interval = test.confidence_interval()
    np.testing.assert_allclose([result.low, result.high], [interval.low, interval.high], atol=0.01)


def test_swapping_the_sides_turns_the_signs():
    a, b = stream(18).integers(2, size=(2, 80))
    one, other = (paired_difference(*pair, stream=stream(19)) for pair in ((a, b), (b, a)))
    assert (one.value, one.p_value) == (-other.value, other.p_value)
    np.testing.assert_allclose([one.low, one.high], [-other.high, -other.low], atol=1e-12)


def test_p_agrees_with_the_interval_and_has_a_floor():
    for shift in np.linspace(0, 0.6, 13):
        a = stream(20).normal(shift, 1, 60)
        result = paired_difference(a, np.zeros(60), draws=999, stream=stream(21))
        assert (result.p_value < 0.05) == (result.low > 0) or abs(result.p_value - 0.05) < 0.003
    assert paired_difference(np.ones(9), np.zeros(9), draws=999, stream=stream()).p_value == 2 / 1000


def test_p_is_even_under_no_difference():
    values = [
        paired_difference(
            stream("even", trial).normal(size=100), np.zeros(100), draws=400, stream=stream("p", trial)
        ).p_value
        for trial in range(400)
    ]
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_holm_by_hand():
    # Sorted 0.005·4, 0.01·3, 0.03·2, 0.04·1 = 0.02, 0.03, 0.06, 0.04; made to rise: 0.02, 0.03, 0.06, 0.06.
    np.testing.assert_allclose(adjust_holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(adjust_holm([0.9, 0.8]), [1.0, 1.0])
    assert adjust_holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_values_and_bonferroni_in_the_same_order(values):
    raw, adjusted = np.array(values), adjust_holm(values)
    assert (adjusted >= raw).all()
    assert (adjusted <= np.minimum(1, len(raw) * raw)).all()
    assert (np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0).all()


def test_t_interval_agrees_with_scipy():
    sample = stream(22).normal(size=7)
    other = stats.ttest_1samp(sample, 0).confidence_interval(0.9)
    np.testing.assert_allclose(t_interval(sample, 0.9), [other.low, other.high], rtol=1e-12)
    assert np.isnan(t_interval([1.0])).all()
    assert t_interval([2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bootstrap_means(np.empty((0, 1)), stream=stream()), "at least 1 by 1"),
        (lambda: bootstrap_means(np.ones((3, 1)), draws=0, stream=stream()), "at least 1 draw"),
        (lambda: bootstrap_means(np.ones((3, 1)), level=95, stream=stream()), "between 0 and 1"),
        (lambda: bootstrap_statistic(np.ones((3, 1)), lambda sums: sums, stream=stream()), "2000 resamples"),
        (lambda: paired_difference([1.0], [1.0, 2.0], stream=stream()), "same units"),
        (lambda: adjust_holm([0.1, np.nan]), "from 0 to 1"),
        (lambda: t_interval([1.0, 2.0], level=1.0), "between 0 and 1"),
    ],
)
def test_says_what_is_wrong(call, said):
    with pytest.raises(InputError, match=said):
        call()


def test_an_undefined_score_is_not_resampled():
    with pytest.raises(NonFiniteFeatures, match="first row 1"):
        bootstrap_means([[0.0], [np.nan]], stream=stream())


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says():
    draws = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        y = draws.normal(4.0, 1.0, 5)
        x = 0.5 * y + draws.normal(0.0, 0.5, 5)
        low, high = ratio_interval(x, y)
        # Where y is not told from 0 any ratio is possible: that interval covers.
        covered += not np.isfinite(low) or low <= 0.5 <= high
    # 95 % ± four standard errors
    assert abs(covered / 2000 - 0.95) < 0.02


def test_ends_of_the_interval_of_a_ratio_are_where_the_difference_is_just_not_told_from_0():
    draws = np.random.default_rng(1)
    y = draws.normal(3.0, 0.5, 6)
    x = 0.4 * y + draws.normal(0.0, 0.3, 6)
    for end in ratio_interval(x, y):
        assert min(np.abs(t_interval(x - end * y))) == pytest.approx(0, abs=1e-9)


def test_no_ratio_where_what_is_below_may_be_0():
    low, high = ratio_interval([1.0, 2.0, 3.0], [-1.0, 0.1, 1.0])
    assert np.isnan(low)
    assert np.isnan(high)
    assert np.isnan(ratio_interval([1.0], [2.0])[0])
    with pytest.raises(InputError, match="as many values"):
        ratio_interval([1.0, 2.0], [1.0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(2, 9))
def test_welchs_interval_is_scipys(seed, n, m):
    draws = np.random.default_rng(seed)
    x, y = draws.normal(1, 2, n), draws.normal(0, 0.5, m)
    expected = stats.ttest_ind(x, y, equal_var=False).confidence_interval()
    np.testing.assert_allclose(welch_interval(x, y), (expected.low, expected.high))


def test_welchs_interval_of_constants_is_their_difference():
    assert welch_interval([1.0, 1.0], [0.5, 0.5]) == (0.5, 0.5)
    assert np.isnan(welch_interval([1.0], [0.5, 0.6])[0])
