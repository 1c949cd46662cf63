"""Racing penalties: who is wanted next, and when weaker ones are past the best."""

from __future__ import annotations

import numpy as np
import pytest

from probekit.functional.softmax_regression import SoftmaxPath
from probekit.probes.racing import Race, is_past_best

PENALTIES = np.geomspace(10, 1e-4, 6)


def planted_path(rights: list[int], gaps: list[float], n: int = 1000) -> tuple[SoftmaxPath, np.ndarray]:
    """Return fits on one feature that have so many of n images right: the first ones."""
    # A row is right where its feature, its place, is below the fit's threshold.
    weights = np.zeros((len(rights), 1, 2))
    weights[:, 0, 1] = -1
    intercepts = np.array([[0.0, right - 0.5] for right in rights])
    gap = np.array(gaps)
    none = np.zeros(len(rights))
    path = SoftmaxPath(
        PENALTIES[: len(rights)], weights, intercepts, none, gap, none.astype(int), np.isfinite(gap)
    )
    return path, np.arange(n, dtype=np.float32)[:, None]


def test_the_stronger_half_comes_first_then_one_by_one():
    path, features = planted_path([500, 600, 700, 0, 0, 0], [np.inf] * 6)
    race = Race(features, np.ones(1000, np.int64), gap=1e-4)
    wanted = race.refine(path)
    assert wanted.tolist() == [1e-2] * 3 + [np.inf] * 3
    path, _ = planted_path([500, 600, 700, 0, 0, 0], [1e-3] * 3 + [np.inf] * 3)
    assert race.refine(path).tolist() == [np.inf] * 3 + [1e-2] + [np.inf] * 2


def test_small_problems_are_fitted_at_once():
    path, features = planted_path([0] * 6, [np.inf] * 6)
    race = Race(features, np.ones(1000, np.int64), gap=1e-4, work=1e3)
    assert race.refine(path).tolist() == [1e-2] * 6


def test_only_what_may_be_best_is_solved_to_the_gap():
    race = Race(np.arange(1000, dtype=np.float32)[:, None], np.ones(1000, np.int64), gap=1e-4, work=1e3)
    race.refine(planted_path([0] * 6, [np.inf] * 6)[0])
    loose = [500, 600, 696, 700, 695, 650]
    wanted = race.refine(planted_path(loose, [1e-3] * 6)[0])
    # Four images is what a fit at the racing gap may gain.
    assert np.isfinite(wanted).tolist() == [False, False, True, True, False, False]
    # One of them moved by six: so may others.
    moved = [500, 600, 690, 700, 695, 650]
    wanted = race.refine(planted_path(moved, [1e-3, 1e-3, 1e-5, 1e-5, 1e-3, 1e-3])[0])
    assert np.isfinite(wanted).tolist() == [False, False, False, True, True, False]
    assert wanted[3] == wanted[4] == 1e-4


def overfitting(n: int, losses: list[float], rights: list[float], seed: int = 0):
    stream = np.random.default_rng(seed)
    order = stream.random(n)
    hits = np.stack([order < right for right in rights])
    return hits, np.array(losses)[:, None] + 0.1 * stream.standard_normal((len(losses), n))


def test_past_the_best_needs_both_accuracy_and_loss():
    falling, level, rising = [0.5, 0.8, 0.75, 0.7], [0.5, 0.8, 0.8, 0.8], [0.5, 0.6, 0.7, 0.8]
    worse, better = [1.0, 0.6, 0.7, 0.8], [1.0, 0.6, 0.5, 0.4]
    assert is_past_best(*overfitting(2000, worse, falling))
    assert not is_past_best(*overfitting(2000, worse, level))
    assert not is_past_best(*overfitting(2000, worse, rising))
    assert not is_past_best(*overfitting(2000, better, falling))
    # The lowest loss must lie two penalties back, and so must the highest accuracy.
    assert not is_past_best(*overfitting(2000, worse[:3], falling[:3]))


@pytest.mark.parametrize("n", [1, 2, 10])
def test_a_handful_of_images_proves_nothing(n: int):
    assert not is_past_best(*overfitting(n, [1.0, 0.6, 0.62, 0.64], [0.5, 0.8, 0.79, 0.78]))
