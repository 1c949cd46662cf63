from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from probekit.data.splits import (
    check_ids,
    complete_roles,
    hold_out,
    role_of,
    split_stratified,
    stratified_order,
    warn_of_copies,
)
from probekit.errors import DataError, SplitOverlap
from probekit.seeds import random_stream

labels_of_few = st.lists(st.integers(0, 4), min_size=2, max_size=60)
checked = settings(deadline=None, max_examples=50)


@checked
@given(counts=st.lists(st.sampled_from([1, 2, 5, 40]), max_size=6), seed=st.integers(0, 5))
@example(counts=[2, 40], seed=0)
def test_every_prefix_of_the_order_is_stratified(counts, seed):
    labels = random_stream("labels", seed).permutation(np.repeat(np.arange(len(counts)), counts)).tolist()
    order = stratified_order(labels, random_stream("x", seed))
    assert sorted(order.tolist()) == list(range(len(labels)))
    counts = Counter(labels)
    for m in range(1, len(labels) + 1):
        taken = Counter(labels[place] for place in order[:m])
        if m >= len(counts):
            assert set(taken) == set(counts)
        for label, count in counts.items():
            assert count * (m - len(counts)) <= taken[label] * len(labels) <= count * m + len(labels)


@checked
@given(labels=labels_of_few, seed=st.integers(0, 9), fraction=st.floats(0.05, 0.95))
def test_parts_are_disjoint_whole_and_keep_every_class(labels, seed, fraction):
    if max(Counter(labels).values()) < 2:
        with pytest.raises(DataError, match="at least two"):
            hold_out(labels, fraction, seed=seed)
        return
    kept, held = hold_out(labels, fraction, seed=seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert set(np.array(labels)[kept]) == set(labels)
    spare = len(labels) - len(set(labels))
    assert len(held) == min(spare, max(1, round(fraction * len(labels))))


def test_equal_classes_give_equal_parts():
    labels = np.repeat(np.arange(10), 50)
    _, held = hold_out(labels, seed=1)
    assert Counter(labels[held].tolist()) == dict.fromkeys(range(10), 10)


def test_class_with_one_member_stays():
    for seed in range(20):
        kept, _ = hold_out([0, 1, 1, 1, 1], seed=seed)
        assert 0 in kept


def test_seed_and_use_name_the_stream():
    labels = np.zeros(100)
    first, again, other = (hold_out(labels, seed=seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert hold_out(labels, use="split")[1].tolist() != first


def test_without_classes_any_image_may_be_held_out():
    kept, held = hold_out(np.arange(10.0), 0.3, stratified=False)
    assert (len(kept), len(held)) == (7, 3)


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 20])
def test_fraction_is_a_share(fraction):
    with pytest.raises(DataError, match="between 0 and 1"):
        hold_out([0, 0, 1, 1], fraction)


def test_default_split_is_80_to_20():
    roles = split_stratified(np.repeat([0, 1], 50), 100)
    assert Counter(roles) == {"train": 80, "test": 20}


def test_roles_are_completed():
    labels = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert Counter(complete_roles([None] * 10, labels)) == {"train": 8, "test": 2}
    assert Counter(complete_roles(["train"] * 10, labels)) == {"train": 8, "test": 2}
    assert complete_roles(["train", "val"], [0, 1]) == ["train", "test"]
    assert complete_roles(["train", "val", "test"], [0, 1, 0]) == ["train", "val", "test"]
    assert complete_roles(["test", "test"], [0, 1]) == ["test", "test"]
    with pytest.raises(DataError, match="1 without"):
        complete_roles(["train", None], [0, 1])


def test_role_words():
    assert [role_of(word) for word in ("Train", "VALID", "val", " test ", "dev")] == [
        *("train", "val", "val", "test"),
        None,
    ]


def test_overlap_is_refused_with_examples():
    with pytest.raises(SplitOverlap, match=r"1 in several, such as 'a'"):
        check_ids(["a", "b", "a"], ["train", "train", "test"])
    with pytest.raises(DataError, match=r"1 that repeat, such as 'a'") as caught:
        check_ids(["a", "b", "a"], ["train", "train", "train"])
    assert not isinstance(caught.value, SplitOverlap)


def test_copies_are_counted_and_logged(caplog):
    with caplog.at_level(logging.WARNING):
        count = warn_of_copies(["x", "y", "x", "z"], list("abcd"), ["train", "train", "test", "test"], "pets")
    assert count == 1
    assert "pets: 1 images" in caplog.text
    assert "'c'" in caplog.text
