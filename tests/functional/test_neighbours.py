"""Neighbours and votes: brute force, scikit-learn, ties, and no vote for oneself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from probekit.errors import InputError
from probekit.functional import nearest_neighbours, neighbours, vote, vote_neighbours


def brute_force(train, labels, queries, k, c, temperature, skip_own=False):
    scores = np.zeros((len(queries), c))
    for row, query in enumerate(queries):
        like = train @ query / np.linalg.norm(train, axis=1) / np.linalg.norm(query)
        if skip_own:
            like[row] = -np.inf
        for place in np.argsort(-like, kind="stable")[:k]:
            scores[row, labels[place]] += np.exp(like[place] / temperature)
    return scores / scores.sum(1, keepdims=True)


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(2, 40), d=st.integers(1, 6), m=st.integers(1, 20), seed=st.integers(0, 99), data=st.data()
)
def test_agrees_with_brute_force(n, d, m, seed, data):
    stream = np.random.default_rng(seed)
    train, queries = stream.normal(size=(n, d)), stream.normal(size=(m, d))
    labels, k = stream.integers(3, size=n), data.draw(st.integers(1, n))
    if d == 1:  # similarities are ±1: rounding would decide
        train, queries = np.sign(train), np.sign(queries)
    scores = vote_neighbours(train, labels, queries, k=k, n_classes=3)
    np.testing.assert_allclose(scores, brute_force(train, labels, queries, k, 3, 0.07), atol=1e-4)
    np.testing.assert_allclose(scores.sum(1), 1)


def test_even_votes_agree_with_scikit_learn(planted):
    x, labels = planted(300, 10, 4)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    other = KNeighborsClassifier(15).fit(x[:200], labels[:200]).predict_proba(x[200:])
    scores = vote_neighbours(x[:200], labels[:200], x[200:], k=15, n_classes=4, temperature=np.inf)
    np.testing.assert_allclose(scores, other, atol=1e-12)


def test_several_k_from_one_pass(planted):
    x, labels = planted(100, 5, 3)
    several = vote_neighbours(x, labels, x, k=(1, 5, 100), n_classes=3)
    for place, k in enumerate((1, 5, 100)):
        np.testing.assert_array_equal(several[place], vote_neighbours(x, labels, x, k=k, n_classes=3))
    assert (several[0].argmax(1) == labels).all()


def test_no_row_votes_for_itself(planted, monkeypatch):
    monkeypatch.setattr(neighbours, "_BLOCK_BYTES", 4 * 100 * 7)  # blocks of 7 queries
    x, labels = planted(100, 5, 3)
    places, _ = nearest_neighbours(x, x, k=99, exclude_self=True)
    assert (np.sort(places, axis=1) == [np.delete(np.arange(100), row) for row in range(100)]).all()
    scores = vote_neighbours(x, labels, x, k=9, n_classes=3, exclude_self=True)
    np.testing.assert_allclose(scores, brute_force(x, labels, x, 9, 3, 0.07, skip_own=True), atol=1e-4)


def test_equals_are_taken_in_order_whatever_the_block(monkeypatch):
    # Directions of 8 rows, three of each: every neighbour has two equals.
    directions = np.random.default_rng(0).normal(size=(8, 4))
    train = np.tile(directions, (3, 1)) * np.repeat([1.0, 2.0, 4.0], 8)[:, None]
    found = []
    for size in (1, 3, 100):
        monkeypatch.setattr(neighbours, "_BLOCK_BYTES", 4 * 24 * size)
        found.append(nearest_neighbours(train, directions, k=2)[0])
    assert (found[0] == np.stack([np.arange(8), np.arange(8) + 8], axis=1)).all()
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


def test_a_row_of_zeros_is_like_nothing():
    places, near = nearest_neighbours([[0.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]], k=2)
    assert places.tolist() == [[1, 0], [0, 1]]
    assert near[:, 1].tolist() == [0.0, 0.0]


def test_lengths_do_not_count_even_beyond_the_range_of_squares(planted):
    x, labels = planted(60, 5, 3)
    long = x * np.geomspace(1e-200, 1e200, 60)[:, None]
    one, other = (vote_neighbours(y, labels, x, k=7, n_classes=3) for y in (x, long))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_low_temperature_leaves_the_nearest_alone(planted):
    x, labels = planted(60, 5, 3)
    cold = vote_neighbours(x, labels, x, k=20, n_classes=3, temperature=1e-6)
    np.testing.assert_allclose(cold, np.eye(3)[labels], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 11}, "k from 1 to the 10"),
        ({"k": 10, "exclude_self": True}, "k from 1 to the 9"),
        ({"k": 0}, "at least 1"),
        ({"k": ()}, "at least 1"),
        ({"queries": np.eye(9)}, "10 features"),
        ({"queries": np.eye(10)[:5], "exclude_self": True}, "rows themselves"),
        ({"temperature": 0.0}, "above 0"),
        ({"train_labels": np.full(10, 3)}, "from 0 to 2"),
    ],
)
def test_says_what_is_wrong(change, said):
    call = {
        "train": np.eye(10), "train_labels": np.zeros(10, int), "queries": np.eye(10), "k": 1, "n_classes": 3,
    }  # fmt: skip
    with pytest.raises(InputError, match=said):
        vote_neighbours(**(call | change))


def test_votes_need_a_label_for_each_neighbour():
    with pytest.raises(InputError, match="a label for each"):
        vote(np.zeros((2, 3), int), np.zeros((4, 3)), n_classes=2)
