from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.backbones.levels import LEVELS, assign_levels
from probekit.errors import InputError

LOW, MID, HIGH = LEVELS


def test_resnet50_stem_and_four_stages():
    strides = [4] + [4] * 3 + [8] * 4 + [16] * 6 + [32] * 3
    assert assign_levels(strides, has_stem=True) == [LOW] * 4 + [MID] * 10 + [HIGH] * 3


def test_vit_thirds_of_twelve_with_the_stem_outside():
    assert assign_levels([16] * 13, has_stem=True) == [LOW] * 5 + [MID] * 4 + [HIGH] * 4
    assert assign_levels([16] * 12) == [LOW] * 4 + [MID] * 4 + [HIGH] * 4


def test_resnet10_at_48_px_is_relative_to_its_deepest_stride():
    assert assign_levels([2, 2, 4, 8, 16], has_stem=True) == [LOW, LOW, MID, MID, HIGH]


def test_cifar_resnet20_has_three_strides_so_thirds_of_nine():
    assert (
        assign_levels([1] + [1] * 3 + [2] * 3 + [4] * 3, has_stem=True) == [LOW] * 4 + [MID] * 3 + [HIGH] * 3
    )


def test_efficientnet_five_strides_and_a_final_convolution():
    assert assign_levels([2, 2, 4, 8, 16, 16, 32, 32], 1, has_stem=True) == [LOW] * 3 + [MID] * 3 + [HIGH] * 2


def test_strides_are_compared_in_octaves():
    # Inception at 299 px: maps of 147, 73, 35, 17 and 8 positions a side.
    strides = [299 / side for side in (147, 73, 35, 17, 8)]
    assert assign_levels(strides) == [LOW, LOW, MID, MID, HIGH]


def test_a_tail_at_one_position_does_not_shift_the_levels():
    assert assign_levels([4, 8, 16, 32, 224], 1) == [LOW, MID, MID, HIGH, HIGH]


def test_a_decoder_that_goes_back_up_falls_back_to_thirds():
    assert assign_levels([2, 4, 8, 16, 8, 4]) == [LOW, LOW, MID, MID, HIGH, HIGH]


@pytest.mark.parametrize("strides", [[], [4], [4, 8]])
def test_fewer_than_three_blocks_ask_for_a_mapping(strides):
    with pytest.raises(InputError, match="levels="):
        assign_levels(strides)


def test_a_stem_counts_among_three_blocks():
    assert assign_levels([4, 4, 4], has_stem=True) == [LOW, MID, HIGH]


@given(
    st.lists(st.sampled_from([1, 2, 4, 7, 8, 8.5, 14, 16, 32, 64]), min_size=3, max_size=40),
    st.integers(0, 2),
    st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_every_level_is_there_and_none_comes_back(strides, after, has_stem):
    levels = assign_levels(strides, after, has_stem=has_stem)
    ranks = [LEVELS.index(level) for level in levels]
    assert len(levels) == len(strides)
    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2}
    if len(strides) - after - has_stem >= 3:
        assert levels[len(levels) - after :] == [HIGH] * after


@given(st.lists(st.sampled_from([2, 4, 8, 16, 32]), min_size=3, max_size=30), st.sampled_from([2, 4, 0.5]))
@settings(deadline=None, max_examples=50)
def test_only_ratios_of_strides_count(strides, factor):
    assert assign_levels(strides) == assign_levels([stride * factor for stride in strides])


@given(st.integers(3, 60))
@settings(deadline=None, max_examples=50)
def test_thirds_differ_by_at_most_one_block(count):
    levels = assign_levels([16] * count)
    sizes = [levels.count(level) for level in LEVELS]
    assert max(sizes) - min(sizes) <= 1
