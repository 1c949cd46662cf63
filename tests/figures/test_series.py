"""Rows to curves: what is drawn is what stands in the table."""

from __future__ import annotations

import numpy as np
import pytest

from probekit.errors import InputError
from probekit.figures import series
from probekit.results.table import ResultTable


def rows(*parts):
    shared = {"model": "a", "target": "y", "metric": "accuracy", "arch": "net"}
    return ResultTable.from_rows([shared | part for part in parts])


def lines(table, metric="accuracy"):
    return series.curves(table, series.scored_rows(table, metric))


def test_points_are_in_order_of_depth_with_their_interval_and_null():
    table = rows(
        {"tap": "t1", "depth": 1.0, "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "null": 0.1},
        {"tap": "t0", "depth": 0.0, "value": 0.2},
    )
    (line,) = lines(table)
    assert line.x.tolist() == [0.0, 1.0]
    assert line.y.tolist() == [0.2, 0.5]
    assert line.low[1] == 0.4
    assert np.isnan(line.low[0])
    assert line.star == 1


@pytest.mark.parametrize(
    ("metric", "value", "clear"),
    [
        ("accuracy", (0.5, 0.35, 0.6), True),
        ("accuracy", (0.5, 0.25, 0.6), False),
        ("bits", (0.5, 0.4, 0.6), False),
        ("bits", (0.1, 0.05, 0.15), True),
        ("accuracy_difference", (-0.5, -0.6, -0.4), True),
        ("some_number", (0.1, 0.05, 0.15), True),
    ],
)
def test_markers_are_filled_only_where_the_interval_clears_the_null_on_the_better_side(metric, value, clear):
    mid, low, high = value
    null = {"null": 0.25, "null_low": 0.2, "null_high": 0.3}
    table = rows(
        {"metric": metric, "tap": "t", "depth": 0.0, "value": mid, "ci_low": low, "ci_high": high, **null}
    )
    assert bool(lines(table, metric)[0].clear[0]) is clear


def test_without_a_null_every_marker_is_filled():
    assert lines(rows({"tap": "t", "depth": 0.0, "value": 0.1}))[0].clear.tolist() == [True]


def test_repeats_over_seeds_become_mean_and_range():
    table = rows(
        *({"tap": "t", "depth": 0.0, "value": v, "pretrain_seed": s} for s, v in enumerate((0.2, 0.4, 0.9)))
    )
    (line,) = lines(table)
    assert line.y.tolist() == [pytest.approx(0.5)]
    assert (line.low[0], line.high[0]) == (0.2, 0.9)


def test_unexplained_repeats_are_refused():
    with pytest.raises(InputError, match="do not differ in their seed"):
        lines(rows(*({"tap": "t", "depth": 0.0, "value": v} for v in (0.2, 0.4))))


def test_several_readouts_at_one_place_are_lines_of_their_own():
    table = rows(
        {"tap": "t|gap", "depth": 0.0, "readout": "gap", "value": 0.2},
        {"tap": "t|max", "depth": 0.0, "readout": "max", "value": 0.4},
    )
    assert [line.label for line in lines(table)] == ["a (gap)", "a (max)"]


def test_controls_become_one_band_per_architecture(table):
    drawn = series.scored_rows(table, "accuracy", target="species")
    (band,) = series.random_bands(table, drawn)
    at = table.where(metric="accuracy", model=table.controls, tap="layer1.0|gap").frame["value"]
    assert band.label == "random init"
    assert (band.mean[0], band.low[0], band.high[0]) == (pytest.approx(at.mean()), at.min(), at.max())
    two = drawn.assign(arch=np.where(drawn["model"] == "random@2", "vit", "resnet50"))
    assert [one.label for one in series.random_bands(table, two)] == [
        "random init, resnet50",
        "random init, vit",
    ]


def test_nulls_share_a_band_only_at_shared_places(table):
    made = series.curves(table, series.scored_rows(table, "accuracy", target="species"))
    assert len(series.null_bands(made)) == 1
    apart = rows(
        {"tap": "t", "depth": 0.0, "value": 0.2, "null": 0.1},
        {"model": "b", "tap": "u", "depth": 0.5, "value": 0.2, "null": 0.1},
    )
    assert [band.model for band in series.null_bands(lines(apart))] == ["a", "b"]
    assert series.null_bands(lines(rows({"tap": "t", "depth": 0.0, "value": 0.2}))) == []


def test_levels_change_halfway_between_taps(table):
    spans = series.level_spans(series.scored_rows(table, "accuracy"))
    assert [level for level, _, _ in spans] == ["low", "mid", "high"]
    assert spans[0][2] == spans[1][1] == pytest.approx((3 / 16 + 5 / 16) / 2)


def test_models_that_disagree_about_levels_get_no_shading():
    table = rows(
        {"tap": "t", "depth": 0.5, "level": "low", "value": 0.2},
        {"model": "b", "tap": "t", "depth": 0.5, "level": "mid", "value": 0.2},
    )
    assert series.level_spans(table.frame) == []


def test_models_with_taps_at_other_depths_get_no_shading():
    table = rows(
        {"tap": "t", "depth": 0.5, "level": "low", "value": 0.2},
        {"model": "b", "tap": "t", "depth": 0.6, "level": "mid", "value": 0.2},
    )
    assert series.level_spans(table.frame) == []


def test_ticks_are_blocks_only_where_all_models_share_them(table):
    ticks = series.block_ticks(series.scored_rows(table, "accuracy"))
    assert ticks is not None
    assert ticks[1][0] == "layer1.0"
    other = rows(
        {"tap": "t", "block": "t", "depth": 0.5, "value": 0.2},
        {"model": "b", "tap": "u", "block": "u", "depth": 0.6, "value": 0.2},
    )
    assert series.block_ticks(other.frame) is None


def test_what_is_missing_is_named(table):
    with pytest.raises(InputError, match=r"'acuracy'.*accuracy"):
        series.scored_rows(table, "acuracy")
    with pytest.raises(InputError, match="species"):
        series.scored_rows(table, "accuracy", target="specie")
    dead = rows({"tap": "t", "value": None, "status": "dead at initialisation"})
    with pytest.raises(InputError, match="dead at initialisation"):
        series.scored_rows(dead, "accuracy")
