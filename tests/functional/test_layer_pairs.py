"""Layers in their principal axes: the same values as measures of the raw layers, group by group."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from probekit.errors import InputError
from probekit.functional import similarity as s
from probekit.functional.layer_pairs import (
    GroupsLeftOut,
    PrincipalRows,
    correlate,
    sizes_left_out,
    sums_by_image,
    without_first,
)
from probekit.functional.moments import CrossMoments

RNG = np.random.default_rng(0)
SHAPES = {"narrow": (300, 6, 9), "wide": (40, 90, 60), "one of each": (50, 5, 80)}


def layers(shape: str):
    n, d, e = SHAPES[shape]
    shared = RNG.normal(size=(n, 4))
    x = shared @ RNG.normal(size=(4, d)) + 0.5 * RNG.normal(size=(n, d)) + 3
    return x, shared @ RNG.normal(size=(4, e)) + RNG.normal(size=(n, e)) - 1


def three(x, y):
    return CrossMoments.of(x, y), CrossMoments.of(x, x), CrossMoments.of(y, y)


def turned(x, y):
    a, b = PrincipalRows.of(x), PrincipalRows.of(y)
    return a, b, a.rows.T @ b.rows


@pytest.mark.parametrize("shape", SHAPES)
def test_turned_layers_give_the_values_of_the_raw_ones(shape: str):
    x, y = layers(shape)
    a, b, cross = turned(x, y)
    sizes = [float(np.square(one.scale).sum()) for one in (a, b)]
    assert s.angle_between(cross, *sizes) == pytest.approx(s.procrustes_angle(*three(x, y)), abs=1e-9)
    if len(x) > x.shape[1] + y.shape[1]:
        found = correlate(a, b, cross)
        for own, (one, other) in zip(found, ((x, y), (y, x)), strict=True):
            expected = s.canonical_correlations(*three(one, other))
            assert own.dimensions == expected.dimensions
            assert own.svcca == pytest.approx(expected.svcca, abs=1e-9)
            assert own.pwcca == pytest.approx(expected.pwcca, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rest", [False, True])
def test_sums_without_a_group_are_those_of_the_other_images(shape: str, rest: bool):
    x, y = layers(shape)
    a, b, cross = turned(x, y)
    groups = np.array_split(np.random.default_rng(1).permutation(len(x)), 7)
    by_image = sums_by_image(a.rows, b.rows, cross)
    left, right = a.rows, b.rows
    if rest:
        by_image = without_first(by_image, left, right, cross)
        x, y = s.without_leading_component(x), s.without_leading_component(y)
        left, right, cross = left[:, 1:], right[:, 1:], cross[1:, 1:]
    own, other = GroupsLeftOut.of(left, groups), GroupsLeftOut.of(right, groups)
    size, hsic = sizes_left_out(own, other, cross, by_image)
    for place in range(8):
        keep = np.ones(len(x), bool)
        if place:
            keep[groups[place - 1]] = False
        raw = CrossMoments.of(x[keep], y[keep])
        assert size[place] == pytest.approx(float(np.square(raw.centred().products).sum()), rel=1e-9)
        assert hsic[place] == pytest.approx(s.unbiased_hsic(raw), rel=1e-8, abs=1e-12 * abs(size[0]))


def test_the_spread_of_rsa_is_that_over_all_pairings():
    x, y = RNG.normal(size=(7, 4)), RNG.normal(size=(7, 3))
    left, right = s.dissimilarity_ranks(x), s.dissimilarity_ranks(y)
    drawn = [np.vdot(left, right[np.ix_(order, order)]) for order in permutations(range(7))]
    assert np.mean(drawn) == pytest.approx(0, abs=1e-12)
    assert s.rank_correlation_spread(left, right) == pytest.approx(np.std(drawn), rel=1e-9)
    order = list(RNG.permutation(7))
    paired_anew = s.representational_similarity(x, y[order])
    assert np.vdot(left, right[np.ix_(order, order)]) == pytest.approx(paired_anew)


def test_neighbours_take_the_earlier_image_among_equals():
    x = np.repeat(RNG.normal(size=(15, 5)), 4, axis=0)[RNG.permutation(60)]
    rows = x - x.mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    # Similarities to 9 digits: those of equal images are then equal, whatever the order of summing.
    similar = np.round(rows @ rows.T, 9)
    np.fill_diagonal(similar, -np.inf)
    expected = np.argsort(-similar, axis=1, kind="stable")[:, :2]
    np.testing.assert_array_equal(np.sort(s.centred_neighbours(x, 2)), np.sort(expected))
    y = RNG.normal(size=(60, 5))
    sets = [[set(row) for row in s.centred_neighbours(one, 6).tolist()] for one in (x, y)]
    share = np.mean([len(one & other) / 6 for one, other in zip(*sets, strict=True)])
    assert s.mutual_neighbours(x, y, 6) == pytest.approx(share)


def test_says_what_is_wrong():
    with pytest.raises(InputError, match="constant"):
        PrincipalRows.of(np.full((9, 2), 0.1))
    with pytest.raises(InputError, match="at least 4 images"):
        GroupsLeftOut.of(RNG.normal(size=(6, 2)), [np.arange(3)])
