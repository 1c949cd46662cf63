"""Permutations that destroy only what they should."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.probes.controls import null_columns, permute_rows, permute_within


@given(st.integers(1, 40), st.integers(0, 4), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_orders_are_permutations(count: int, draws: int, seed: int):
    orders = permute_rows(count, draws, seed=seed, name="x")
    assert orders.shape == (draws, count)
    assert (np.sort(orders, axis=1) == np.arange(count)).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
@settings(deadline=None, max_examples=30)
def test_rows_stay_within_their_group(groups: list[int]):
    labels = np.array(groups)
    orders = permute_within(labels, 3, seed=0, name="x")
    assert (np.sort(orders, axis=1) == np.arange(len(labels))).all()
    assert (labels[orders] == labels).all()


def test_data_sets_and_seeds_have_streams_of_their_own():
    one = permute_rows(50, 1, seed=0, name="x")
    assert (one == permute_rows(50, 1, seed=0, name="x")).all()
    assert not (one == permute_rows(50, 1, seed=1, name="x")).all()
    assert not (one == permute_rows(50, 1, seed=0, name="y")).all()


def test_no_permutation_leaves_the_null_out():
    assert null_columns(np.array([])) == {}
