"""Invariance: closed forms, planted models, SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from probekit.errors import InputError
from probekit.functional import (
    Classes,
    Moments,
    Whitening,
    lidar,
    perturbation_variance,
    row_cosines,
    row_distances,
    target_invariance,
)


def views(count: int, times: int, width: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (count · times, width) rows: images of variance 1, changes of variance ``noise``²."""
    random = np.random.default_rng(seed)
    images = np.repeat(np.arange(count), times)
    centres = random.normal(size=(count, width))
    return centres[images] + noise * random.normal(size=(len(images), width)), images


def test_whitened_distances_are_those_of_scipy():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(5, 5))
    x = random.normal(size=(4000, 5)) @ mixing + 3
    moments = Moments.of(x)
    whitening = Whitening.of(moments)
    covariance = whitening.axes @ np.diag(whitening.variances) @ whitening.axes.T
    white = whitening.whiten(x - moments.mean)
    found = row_distances(white[:10], white[10:20])
    inverse = np.linalg.inv(covariance)
    np.testing.assert_allclose(
        found, [mahalanobis(a, b, inverse) for a, b in zip(x[:10], x[10:20], strict=True)]
    )
    # cos((f − m)L, (f′ − m)L) with L = S^(−1/2)
    a, b = x[0] - moments.mean, x[10] - moments.mean
    expected = a @ inverse @ b / np.sqrt((a @ inverse @ a) * (b @ inverse @ b))
    assert row_cosines(white[:1], white[10:11])[0] == pytest.approx(expected)


def test_whitened_measures_do_not_change_under_linear_maps():
    random = np.random.default_rng(1)
    x = random.normal(size=(5000, 4))
    changed = x + 0.3 * random.normal(size=x.shape)
    found = []
    for mixing in (np.eye(4), random.normal(size=(4, 4))):
        moments = Moments.of(x @ mixing)
        whitening = Whitening.of(moments)
        one, other = (whitening.whiten(rows @ mixing - moments.mean) for rows in (x, changed))
        found.append((row_cosines(one, other).mean(), row_distances(one, other).mean()))
    # Shrinkage is the only thing that is not invariant, and small here.
    np.testing.assert_allclose(found[0], found[1], rtol=0.02)


def test_a_row_of_zeros_has_no_direction_and_shapes_must_agree():
    assert row_cosines([[0.0, 0.0]], [[1.0, 0.0]]).tolist() == [0.0]
    with pytest.raises(InputError, match="one shape"):
        row_distances(np.ones((2, 3)), np.ones((3, 3)))


@pytest.mark.parametrize("times", [2, 5, 20])
def test_perturbation_variance_is_not_biased_by_the_number_of_changes(times: int):
    drawn = [
        perturbation_variance(
            Classes.of(Moments.of(*views(200, times, 8, 0.5, seed), n_classes=200, products=False))
        )
        for seed in range(30)
    ]
    # σ²/(σ² + 1) with σ² = 1/4
    assert np.mean([one.value for one in drawn]) == pytest.approx(0.2, abs=0.006)
    assert sum(one.low <= 0.2 <= one.high for one in drawn) >= 25


def test_views_dealt_out_at_random_have_all_the_variance():
    x, images = views(100, 6, 8, 0.3)
    shuffled = np.random.default_rng(0).permutation(images)
    found = perturbation_variance(Classes.of(Moments.of(x, shuffled, n_classes=100, products=False)))
    assert found.value == pytest.approx(1, abs=0.03)


def test_one_view_an_image_says_why_there_is_no_value():
    x, images = views(10, 1, 4, 0.1)
    found = perturbation_variance(Classes.of(Moments.of(x, images, n_classes=10)))
    assert np.isnan(found.value)
    assert "one image a class" in found.status


def test_lidar_counts_the_directions_in_which_images_differ():
    random = np.random.default_rng(0)
    images = np.repeat(np.arange(400), 10)
    signal = np.zeros((400, 20))
    signal[:, :6] = random.normal(size=(400, 6))
    x = signal[images] + 0.2 * random.normal(size=(4000, 20))
    found = lidar(Moments.of(x, images, n_classes=400))
    # Six equal directions, and fourteen of noise at (σ²/10)/σ² = 1/10 against 25.1.
    p = np.array([1 / 0.04 + 0.1] * 6 + [0.1] * 14)
    p /= p.sum()
    assert found == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=0.02)
    # Scale does not matter, δ included; neither do rotations.
    turn = np.linalg.qr(random.normal(size=(20, 20)))[0]
    assert lidar(Moments.of(1e4 * x @ turn, images, n_classes=400)) == pytest.approx(found, rel=1e-6)


def test_lidar_is_undefined_where_nothing_moves_or_for_one_image():
    still, images = (
        np.repeat(np.random.default_rng(0).normal(size=(5, 3)), 4, axis=0),
        np.repeat(np.arange(5), 4),
    )
    assert np.isnan(lidar(Moments.of(still, images, n_classes=5)))
    assert np.isnan(lidar(Moments.of(np.random.default_rng(0).normal(size=(4, 3)), n_classes=1)))


def planted_units(seed: int = 0, *, signal: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return views, labels, images: unit c is ``signal`` higher for the images of class c."""
    random = np.random.default_rng(seed)
    images = np.repeat(np.arange(200), 6)
    labels = images % 4
    x = random.normal(size=(1200, 16))
    x[np.arange(1200), labels] += signal
    return x, labels, images


def test_units_that_fire_for_a_class_alone_score_one_and_noise_its_share():
    for signal, expected, margin in ((30.0, 1.0, 1e-12), (0.0, 0.25, 0.06)):
        x, labels, images = planted_units(signal=signal)
        # Of four units one counts: the class's own.
        found = target_invariance(
            x[:, :4], labels, images, n_classes=4, width=4, stream=np.random.default_rng(0)
        )
        assert found.by_class.mean() == pytest.approx(expected, abs=margin)
        assert found.by_chance.mean() == pytest.approx(0.25, abs=0.03)


def test_a_unit_that_falls_for_a_class_counts_as_one_that_rises():
    x, labels, images = planted_units(signal=30.0)
    found = target_invariance(
        -x[:, :4], labels, images, n_classes=4, width=4, stream=np.random.default_rng(0)
    )
    assert found.by_class.mean() == pytest.approx(1)
    # All views of the class and no others.
    assert found.by_chance.mean() == pytest.approx(0.25, abs=0.03)


def test_choosing_and_scoring_on_other_halves_keeps_noise_at_chance():
    """The best of many units of noise would look invariant on the images they were chosen by."""
    scores = []
    for seed in range(10):
        random = np.random.default_rng(seed)
        images = np.repeat(np.arange(16), 4)
        # One value an image: changes do not move it.
        x = random.normal(size=(16, 200))[images]
        found = target_invariance(x, images % 4, images, n_classes=4, width=200, stream=random)
        scores.append(found.by_class.mean())
    assert np.mean(scores) == pytest.approx(0.25, abs=0.05)


def test_classes_with_few_images_have_no_score_and_the_width_is_checked():
    x, labels, images = planted_units(signal=3.0)
    labels = np.where(images == 3, 4, labels)
    stream = np.random.default_rng(0)
    found = target_invariance(x, labels, images, n_classes=5, width=16, stream=stream)
    assert np.isfinite(found.by_class).tolist() == [True] * 4 + [False]
    with pytest.raises(InputError, match="1 to 16 units"):
        target_invariance(x, labels, images, n_classes=5, width=17, stream=stream)
