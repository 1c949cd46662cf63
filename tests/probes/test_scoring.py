"""Scores of labels: average precision as scikit-learn has it, and an interval that is honest about pairs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from probekit.probes import scoring
from probekit.probes.protocol import Protocol
from probekit.probes.scoring import AP_GROUPS, label_rows, mean_average_precision


def drawn(count, prevalence, seed):
    random = np.random.default_rng(seed)
    truth = random.random((count, len(prevalence))) < prevalence
    return random.normal(size=truth.shape) + truth, truth


def rows(scores, truth):
    return label_rows(scores, truth, scores[None], Protocol(seed=1), "labels")[0]


def test_labels_that_do_not_occur_are_left_out():
    scores, truth = drawn(60, np.array([0.3, 0.0, 0.5]), 0)
    both = [average_precision_score(truth[:, label], scores[:, label]) for label in (0, 2)]
    assert mean_average_precision(scores, truth) == pytest.approx(np.mean(both))
    assert np.isnan(mean_average_precision(scores, np.zeros_like(truth)))


def test_leaving_out_single_images_is_the_textbooks_jackknife():
    scores, truth = drawn(AP_GROUPS, np.array([0.5]), 2)
    row = rows(scores, truth)
    left = []
    for place in range(AP_GROUPS):
        kept = np.arange(AP_GROUPS) != place
        left.append(average_precision_score(truth[kept, 0], scores[kept, 0]))
    # The textbook's pseudo-values: n·θ − (n − 1)·θ₋ᵢ
    pseudo = AP_GROUPS * row["value"] - (AP_GROUPS - 1) * np.array(left)
    half = stats.t.ppf(0.975, AP_GROUPS - 1) * stats.sem(pseudo)
    assert row["ci_low"] == pytest.approx(max(0, row["value"] - half))
    assert row["ci_high"] == pytest.approx(min(1, row["value"] + half))
    assert row["ci_kind"] == "jackknife,test units"


def test_rare_labels_never_push_the_value_out_of_its_interval():
    """Resampling with replacement did: copies of the only image of a label rank against each other."""
    scores, truth = drawn(85, np.linspace(0.01, 0.2, 30), 3)
    row = rows(scores, truth)
    assert row["ci_low"] < row["value"] < row["ci_high"]


def test_the_interval_covers_as_often_as_it_says():
    prevalence = np.array([0.3, 0.5])
    truth = mean_average_precision(*drawn(50_000, prevalence, 99))
    covered = 0
    for seed in range(100):
        row = rows(*drawn(300, prevalence, seed))
        covered += row["ci_low"] <= truth <= row["ci_high"]
    # 95 expected; fewer than 88 would be seen once in 500 such runs.
    assert covered >= 88


def test_without_any_label_the_row_says_so():
    scores, truth = drawn(10, np.array([0.5]), 4)
    assert rows(scores, np.zeros_like(truth))["status"] == "no label occurs among the test images"
    assert scoring.AP_KIND.startswith("jackknife")
