"""Episodes: rows that fit, closed forms, scikit-learn's neighbours, intervals over classes."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from probekit.errors import InputError, NonFiniteFeatures
from probekit.functional import draw_episodes, jackknife_interval, mean_over_episodes, score_episodes

LABELS = np.repeat([3, 5, 6, 8, 9, 12], [10, 8, 9, 20, 8, 8])


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_an_episode_holds_different_classes_and_different_images_of_them():
    drawn = draw_episodes(LABELS, ways=4, shots=3, queries=5, count=50, stream=stream())
    assert (drawn.classes.shape, drawn.support.shape, drawn.queries.shape) == (
        (50, 4),
        (50, 4, 3),
        (50, 4, 5),
    )
    for classes, support, queries in zip(drawn.classes, drawn.support, drawn.queries, strict=True):
        assert len(set(classes)) == 4
        rows = np.concatenate([support, queries], axis=1)
        assert len(np.unique(rows)) == 4 * 8
        assert (LABELS[rows] == classes[:, None]).all()
    # Every class and image has its turn.
    assert set(np.unique(drawn.classes)) == set(LABELS)
    assert len(np.unique(drawn.support)) == len(LABELS)


def test_fewer_shots_are_the_first_of_the_same_episodes():
    drawn = draw_episodes(LABELS, shots=3, queries=2, count=7, stream=stream())
    one = drawn.of_shots(1)
    np.testing.assert_array_equal(one.support[:, :, 0], drawn.support[:, :, 0])
    np.testing.assert_array_equal(one.queries, drawn.queries)


@pytest.mark.parametrize("shots", [1, 5])
def test_accuracies_are_those_of_scikit_learns_nearest_neighbour_among_means(shots, monkeypatch):
    from probekit.functional import episodes

    # Chunks of a few episodes.
    monkeypatch.setattr(episodes, "_CHUNK_BYTES", 8 * 5 * 3 * 6 * 4)
    features = 1000 + stream(1).normal(size=(len(LABELS), 6)) + 0.4 * LABELS[:, None]
    drawn = draw_episodes(LABELS, shots=shots, queries=3, count=30, stream=stream())
    expected = []
    for support, queries in zip(drawn.support, drawn.queries, strict=True):
        means = features[support].mean(axis=1)
        fitted = KNeighborsClassifier(1).fit(means, LABELS[support[:, 0]])
        expected.append(fitted.score(features[queries.ravel()], LABELS[queries.ravel()]))
    found = score_episodes(features, drawn)
    np.testing.assert_allclose(found, expected)
    assert 0.25 < found.mean() < 0.95


def test_far_apart_classes_are_always_right_and_constant_features_one_in_w():
    drawn = draw_episodes(LABELS, shots=1, queries=4, count=20, stream=stream())
    apart = 100.0 * np.eye(13)[LABELS] + stream().normal(size=(len(LABELS), 13))
    assert (score_episodes(apart, drawn) == 1).all()
    np.testing.assert_allclose(score_episodes(np.ones((len(LABELS), 3)), drawn), 1 / 5)
    noise = score_episodes(stream().normal(size=(len(LABELS), 13)), drawn)
    assert noise.mean() == pytest.approx(0.2, abs=0.06)


def test_the_interval_leaves_out_a_class_at_a_time():
    drawn = draw_episodes(LABELS, ways=2, shots=1, queries=1, count=40, stream=stream())
    shares = stream(2).random(40)
    found = mean_over_episodes(shares, drawn.classes)
    without = [
        shares[[one not in held for held in drawn.classes.tolist()]].mean() for one in np.unique(LABELS)
    ]
    low, high = jackknife_interval(float(shares.mean()), np.array(without))
    assert found.value == pytest.approx(shares.mean())
    assert (found.low, found.high) == pytest.approx((max(low, 0), min(high, 1)))


def test_the_interval_stays_within_what_an_accuracy_can_be_and_is_none_where_no_class_can_be_left_out():
    classes = np.array([[0, 1], [2, 3], [0, 2], [1, 3]])
    assert mean_over_episodes([1.0, 0.9, 1.0, 1.0], classes).high == 1
    same = mean_over_episodes([0.5, 0.7], [[0, 1], [1, 0]])
    assert same.value == pytest.approx(0.6)
    assert np.isnan([same.low, same.high]).all()


def test_more_episodes_of_the_same_classes_do_not_narrow_the_interval_to_nothing():
    """Accuracy that depends on the classes alone: an interval over episodes would shrink like 1/√E."""

    def width(count: int) -> float:
        drawn = draw_episodes(np.arange(240) % 12, shots=1, queries=1, count=count, stream=stream())
        easy = np.linspace(0, 1, 12)
        found = mean_over_episodes(easy[drawn.classes].mean(axis=1), drawn.classes)
        return found.high - found.low

    assert width(6400) == pytest.approx(width(400), rel=0.25)
    # The mean of 12 classes: ± t(11)·σ/√12.
    plain = 2 * 2.201 * np.linspace(0, 1, 12).std(ddof=1) / np.sqrt(12)
    assert width(6400) == pytest.approx(plain, rel=0.15)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"ways": 7, "queries": 2}, "at least 7 classes, for 7 ways; got 6"),
        ({"queries": 4}, r"at least 9 images of every class \(5 shots and 4 queries\); got 8 of class 5"),
        ({"ways": 1}, "ways of at least 2"),
        ({"shots": 0}, "shots of at least 1"),
        ({"queries": 0}, "queries of at least 1"),
        ({"count": 0}, "episodes of at least 1"),
    ],
)
def test_what_holds_no_episode_is_refused(settings, part):
    with pytest.raises(InputError, match=part):
        draw_episodes(LABELS, stream=stream(), **settings)


def test_features_and_accuracies_that_do_not_fit_are_refused():
    drawn = draw_episodes(LABELS, shots=1, queries=1, count=60, stream=stream())
    with pytest.raises(InputError, match="episodes of 20 rows"):
        score_episodes(np.ones((20, 2)), drawn)
    with pytest.raises(NonFiniteFeatures):
        score_episodes(np.full((len(LABELS), 2), np.nan), drawn)
    with pytest.raises(InputError, match="an accuracy for each"):
        mean_over_episodes(np.ones(3), drawn.classes)
