"""Scores of maps against masks: closed forms, brute force, and what leaves them unchanged."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from probekit.errors import InputError, NonFiniteFeatures
from probekit.functional import (
    best_threshold_iou,
    centred_gaussian,
    energy_inside,
    pointing_game,
    relevance_rank,
)

ALL = (pointing_game, energy_inside, relevance_rank, best_threshold_iou)
SHAPE = (3, 4)

small = st.integers(-3, 3)
masks = hnp.arrays(np.bool_, SHAPE).filter(lambda one: one.any() and not one.all())
levels = hnp.arrays(np.int64, SHAPE, elements=small)


def one(score, values, mask, **settings):
    return float(score(np.asarray(values, float)[None], np.asarray(mask, float)[None], **settings)[0])


def orders(values):
    """Return every way to break the ties of few values, highest first."""
    flat = np.asarray(values).ravel()
    groups = [np.flatnonzero(flat == level) for level in sorted(set(flat.tolist()), reverse=True)]
    for parts in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [place for part in parts for place in part]


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.int64, (2, 3), elements=small), hnp.arrays(np.bool_, (2, 3)))
def test_ties_score_the_mean_over_all_orders(values, mask):
    if not mask.any() or mask.all():
        return
    inside, count = mask.ravel(), int(mask.sum())
    every = list(orders(values))
    pointed = np.mean([inside[order[0]] for order in every])
    ranked = np.mean([inside[order[:count]].sum() / count for order in every])
    assert one(pointing_game, values, mask) == pytest.approx(pointed)
    assert one(relevance_rank, values, mask) == pytest.approx(ranked)


@settings(max_examples=100, deadline=None)
@given(levels, masks)
def test_the_best_iou_is_that_of_some_threshold(values, mask):
    tried = [values >= level for level in np.unique(values)]
    expected = max((taken & mask).sum() / (taken | mask).sum() for taken in tried)
    assert one(best_threshold_iou, values, mask) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(levels, masks)
def test_energy_is_what_a_loop_adds_up(values, mask):
    total = inside = 0
    for value, holds in zip(values.ravel().tolist(), mask.ravel().tolist(), strict=True):
        if value > 0:
            total += value
            inside += value * holds
    found = one(energy_inside, values, mask)
    assert np.isnan(found) if total == 0 else found == pytest.approx(inside / total)


@settings(max_examples=100, deadline=None)
@given(levels, masks)
def test_monotone_changes_leave_order_scores_and_scales_leave_energy(values, mask):
    for score in (pointing_game, relevance_rank, best_threshold_iou):
        assert one(score, np.exp(values) * 7 - 3, mask) == one(score, values, mask)
    np.testing.assert_allclose(one(energy_inside, values * 2.5, mask), one(energy_inside, values, mask))


@settings(max_examples=60, deadline=None)
@given(levels, masks)
def test_turning_map_and_mask_together_changes_nothing(values, mask):
    for score in ALL:
        np.testing.assert_allclose(
            one(score, values[::-1].T, mask[::-1].T), one(score, values, mask), rtol=1e-12
        )


@settings(max_examples=60, deadline=None)
@given(masks)
def test_a_map_that_is_the_mask_is_perfect_and_its_opposite_is_not(mask):
    for score in ALL:
        assert one(score, mask, mask) == 1
    assert one(pointing_game, ~mask, mask) == 0
    assert one(energy_inside, ~mask, mask) == 0


@settings(max_examples=60, deadline=None)
@given(masks, st.floats(0.1, 10))
def test_a_constant_map_scores_the_area(mask, level):
    area = mask.mean()
    for score in ALL:
        assert one(score, np.full(SHAPE, level), mask) == pytest.approx(area)


def test_the_tolerance_is_a_distance_in_pixels():
    mask, peak = np.zeros((9, 9)), np.zeros((9, 9))
    mask[4, 4], peak[7, 8] = 1, 1
    assert one(pointing_game, peak, mask, tolerance_px=4.99) == 0
    assert one(pointing_game, peak, mask, tolerance_px=5) == 1


def test_pixels_partly_inside_count_in_part_for_energy_and_from_a_half_elsewhere():
    values, shares = [[2.0, 1.0, 1.0]], [[0.5, 0.25, 0.0]]
    assert one(energy_inside, values, shares) == pytest.approx((1 + 0.25) / 4)
    assert one(pointing_game, values, shares) == 1
    assert one(relevance_rank, values, shares) == 1


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_nothing_is_said_where_nothing_or_everything_is_inside(share):
    maps = np.random.default_rng(0).normal(size=(2, 5, 5))
    mask = np.stack([np.full((5, 5), share), np.eye(5)])
    for score in ALL:
        found = score(maps, mask)
        assert np.isnan(found).tolist() == [True, False]


def test_maps_without_a_positive_value_have_no_energy_but_an_order():
    values, mask = -np.arange(1.0, 10).reshape(3, 3), np.eye(3)
    assert np.isnan(one(energy_inside, values, mask))
    assert one(pointing_game, values, mask) == 1


def test_values_near_the_ends_of_floats_keep_their_energy():
    assert one(energy_inside, [[1e308, 1e308]], [[1, 0]]) == 0.5
    assert one(energy_inside, [[1e-310, 3e-310]], [[1, 0]]) == pytest.approx(0.25)


def test_the_gaussian_is_centred_symmetric_and_falls_by_its_formula():
    found = centred_gaussian(8, 12)
    assert found.shape == (8, 12)
    np.testing.assert_allclose(found, found[::-1, ::-1])
    assert found[4, 6] == pytest.approx(np.exp(-0.5 * ((0.5 / 2) ** 2 + (0.5 / 3) ** 2)))
    assert np.unravel_index(centred_gaussian(5, 7).argmax(), (5, 7)) == (2, 3)


def test_no_image_gives_no_score():
    for score in ALL:
        assert score(np.zeros((0, 2, 2)), np.zeros((0, 2, 2))).shape == (0,)


@pytest.mark.parametrize(
    ("maps", "mask", "error", "words"),
    [
        (np.zeros((2, 3, 4)), np.zeros((2, 4, 3)), InputError, "Resize maps"),
        (np.zeros((3, 4)), np.zeros((3, 4)), InputError, "one shape"),
        (np.full((1, 2, 2), np.nan), np.zeros((1, 2, 2)), NonFiniteFeatures, "NaN"),
        (np.zeros((1, 2, 2)), np.full((1, 2, 2), 255), InputError, "255"),
    ],
)
def test_what_cannot_be_scored_is_refused(maps, mask, error, words):
    for score in ALL:
        with pytest.raises(error, match=words):
            score(maps, mask)


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match="tolerance"):
        pointing_game(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), tolerance_px=-1)
    with pytest.raises(InputError, match="sides"):
        centred_gaussian(0, 3)
