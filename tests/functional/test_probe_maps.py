"""Maps of a linear score: their means are the scores, whatever the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import InputError
from probekit.functional import map_scores


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 9),
)
def test_the_mean_of_the_map_is_the_score(cells, more_rows, more_columns, channels, scores, seed):
    random = np.random.default_rng(seed)
    maps = random.normal(size=(3, channels, cells + more_rows, cells + more_columns))
    kept = random.random(channels * cells**2) < 0.8
    weights, centre = random.normal(size=(kept.sum(), scores)), random.normal(size=kept.sum())
    features = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(maps), cells).flatten(1).numpy()
    expected = (features[:, kept] - centre) @ weights
    found = map_scores(maps, weights, centre, kept=kept, cells=cells)
    assert found.shape == (3, scores, *maps.shape[2:])
    np.testing.assert_allclose(found.mean(axis=(2, 3)), expected, atol=1e-10)


def test_a_place_that_decides_stands_out():
    maps = np.zeros((1, 2, 4, 4))
    maps[0, 1, 2, 3] = 5.0
    found = map_scores(maps, [[0.0], [2.0]], [0.0, 0.0])
    assert np.unravel_index(found[0, 0].argmax(), (4, 4)) == (2, 3)
    assert found[0, 0, 2, 3] == 10
    assert np.count_nonzero(found) == 1


@pytest.mark.parametrize(
    ("maps", "weights", "cells", "part"),
    [
        (np.zeros((2, 3, 4)), np.zeros((3, 1)), 1, "N, D, H, W"),
        (np.zeros((2, 3, 2, 2)), np.zeros((27, 1)), 3, "at least 3 by 3"),
        (np.zeros((2, 3, 4, 4)), np.zeros((3, 1)), 2, "12 features"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(maps, weights, cells, part):
    with pytest.raises(InputError, match=part):
        map_scores(maps, weights, np.zeros(len(weights)), cells=cells)
