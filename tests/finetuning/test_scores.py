"""Gains, shares and depths, on planted metrics."""

from __future__ import annotations

import numpy as np
import pytest

from probekit.errors import InputError
from probekit.finetuning.curves import SELFFER, Group, Point, curve_of, list_points
from probekit.finetuning.scores import Gains, score_rows, steps_to

LEVELS = ("low", "mid", "high")
GROUPS = [Group(name, name, (name,)) for name in LEVELS]
NOISE = np.array([-0.01, 0.0, 0.01])


def planted(worth: dict[str, float], sign: int = 1, noise: float = 1.0, stats: float = 0.0) -> Gains:
    """Return 0.5 plus what each level kept is worth; matched statistics add a share of the rest."""
    values = {}
    for point in list_points(GROUPS, ["prefix", "suffix", "leave-one-out", "keep-one"], ["random", "stats"]):
        gain = sum(worth[name] for name in point.kept)
        if point.mode == "stats":
            gain += stats * (sum(worth.values()) - gain)
        values[point] = 0.5 + sign * gain + noise * NOISE * (1 + len(point.kept))
    return Gains(LEVELS, LEVELS, values, sign)


def rows(gains: Gains, metric: str, **equal: object) -> list[dict[str, object]]:
    found = score_rows(gains, ["prefix", "suffix"], ["random", "stats"])
    return [one for one in found if one["metric"] == metric and all(one[k] == v for k, v in equal.items())]


@pytest.mark.parametrize("sign", [1, -1])
def test_planted_worths_come_back(sign):
    gains = planted({"low": 0.1, "mid": 0.25, "high": 0.05}, sign)
    (whole,) = rows(gains, "gain", mode="")
    assert whole["value"] == pytest.approx(0.4)
    along = {
        tuple(one["kept"]): one["value"]
        for one in rows(gains, "recovered_fraction", curve="prefix", mode="random")
    }
    assert along == {(): 0.0, ("low",): pytest.approx(0.25), ("low", "mid"): pytest.approx(0.875)}
    (high,) = rows(gains, "high_level_share", mode="random")
    assert high["value"] == pytest.approx(0.125)
    assert high["ci_low"] <= 0.125 <= high["ci_high"]
    (depth,) = rows(gains, "depth_90", mode="random")
    assert depth["value"] == 3


def test_depth_90_is_the_first_point_that_recovers_nearly_all():
    (depth,) = rows(planted({"low": 0.1, "mid": 0.28, "high": 0.02}), "depth_90", mode="random")
    assert depth["value"] == 2
    assert depth["kept"] == ["low", "mid"]


@pytest.mark.parametrize("stats", [0.0, 0.5, 1.0])
def test_the_reuse_share_is_what_matched_statistics_do_not_give(stats):
    (share,) = rows(planted({"low": 0.1, "mid": 0.2, "high": 0.1}, stats=stats), "reuse_share")
    assert share["value"] == pytest.approx(1 - stats)


def test_shares_of_noise_are_empty_and_say_so():
    gains = planted({"low": 0.001, "mid": 0.0, "high": 0.0}, noise=3.0)
    for metric in ("recovered_fraction", "high_level_share", "depth_90", "reuse_share"):
        found = rows(gains, metric)
        assert found
        assert all(one["value"] is None and "within noise" in one["status"] for one in found)
    (whole,) = rows(gains, "gain", mode="")
    assert whole["value"] is not None


def test_a_backbone_worse_than_scratch_has_no_shares():
    gains = planted({"low": -0.2, "mid": -0.1, "high": 0.0})
    assert all("worse than scratch" in one["status"] for one in rows(gains, "recovered_fraction"))


def test_one_trial_has_gains_and_no_shares():
    gains = planted({"low": 0.1, "mid": 0.2, "high": 0.1})
    single = Gains(LEVELS, LEVELS, {point: values[:1] for point, values in gains.values.items()}, 1)
    assert "ci_low" not in rows(single, "gain", mode="")[0]
    assert all("one trial" in one["status"] for one in rows(single, "recovered_fraction"))


def test_a_failed_training_is_left_out_of_means():
    gains = planted({"low": 0.1, "mid": 0.2, "high": 0.1})
    values = {point: one.copy() for point, one in gains.values.items()}
    values[Point(("low",), "random")][1] = np.nan
    (found,) = rows(Gains(LEVELS, LEVELS, values, 1), "gain", kept=["low"], mode="random")
    assert found["n"] == 2
    assert found["value"] == pytest.approx(0.1)


def test_curves_are_what_their_names_say():
    assert curve_of(LEVELS, "prefix") == [(), ("low",), ("low", "mid"), LEVELS]
    assert curve_of(LEVELS, "leave-one-out") == [("mid", "high"), ("low", "high"), ("low", "mid")]
    assert curve_of(LEVELS, "keep-one") == [("low",), ("mid",), ("high",)]
    with pytest.raises(InputError, match="a curve among prefix"):
        list_points(GROUPS, ["suffixes"], ["random"])
    with pytest.raises(InputError, match="a mode among random"):
        list_points(GROUPS, ["suffix"], ["copied"])


def test_every_state_stands_once_and_scratch_is_random():
    points = list_points(GROUPS, ["prefix", "suffix", "leave-one-out", "keep-one"], ["stats"])
    assert len(points) == len(set(points)) == 2 + 7
    assert points[:2] == [Point(LEVELS, ""), Point((), "random")]


def test_co_adaptation_is_what_a_network_loses_to_its_own_first_groups_kept():
    gains = planted({"low": 0.1, "mid": 0.2, "high": 0.1})
    scratch = gains.values[Point((), "random")]
    values = {
        **gains.values,
        Point(("low",), SELFFER): scratch - 0.03,
        Point(("low", "mid"), SELFFER): scratch,
    }
    found = score_rows(Gains(LEVELS, LEVELS, values, 1), ["selffer"], [])
    lost = {tuple(one["kept"]): one["value"] for one in found if one["metric"] == "co_adaptation"}
    assert lost == {("low",): pytest.approx(0.03), ("low", "mid"): pytest.approx(0.0)}


@pytest.mark.parametrize(
    ("values", "aim", "rising", "step"),
    [
        ([0.1, 0.5, 0.9], 0.7, True, 15.0),
        ([0.1, 0.5, 0.9], 0.5, True, 10.0),
        ([0.1, 0.5, 0.9], 0.95, True, None),
        ([0.9, 0.5, 0.1], 0.3, False, 15.0),
        ([0.8, 0.5, 0.9], 0.7, True, 0.0),
    ],
)
def test_steps_are_counted_to_where_a_curve_first_reaches_its_aim(values, aim, rising, step):
    assert steps_to([0, 10, 20], values, aim, rising) == (None if step is None else pytest.approx(step))


def test_the_selffer_curve_keeps_first_groups_and_rewind_trains_nothing_more():
    points = list_points(GROUPS, ["selffer", "rewind"], ["random", "stats"])
    assert points == [
        Point(LEVELS, ""), Point((), "random"), Point(("low",), SELFFER), Point(("low", "mid"), SELFFER)
    ]  # fmt: skip
