"""Paired comparisons: on the same images, by name, adjusted for their number."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from probekit.errors import InputError
from probekit.files import safe_name
from probekit.results.table import ResultTable

N = 300


def make(scores, taps=("t",), metric="accuracy", ids=None, target="y"):
    """Build a table from model → (N,) scores, equal at all taps unless a dict of taps is given."""
    rows, attachments = [], {}
    for model, values in scores.items():
        for tap in taps if not isinstance(values, dict) else values:
            held = values[tap] if isinstance(values, dict) else values
            names = (ids or {}).get(model, [f"i{k:03d}" for k in range(len(held))])
            row = {
                "model": model,
                "tap": tap,
                "target": target,
                "metric": metric,
                "value": float(np.mean(held)),
            }
            rows.append(row | {"depth": 0.5, "level": "mid", "n": len(held)})
            frame = pd.DataFrame({"id": names, metric: held})
            attachments[f"scores/{safe_name(model)}/{tap}/{target}.parquet"] = frame
    return ResultTable.from_rows(rows, {"run_id": "r"}, attachments)


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    easy = rng.random(N)
    return {
        "good": (easy < 0.8).astype(float),
        "same": (easy < 0.8).astype(float),
        "bad": (easy < 0.6).astype(float),
        "random@0": (rng.random(N) < 0.1).astype(float),
    }


def params(table):
    return [json.loads(text) for text in table.frame["params"]]


def test_the_difference_is_the_difference_of_the_rows_values(scores):
    table = make(scores).compare(baseline="bad")
    frame = table.frame
    assert frame["model"].tolist() == ["good", "same"]
    assert frame["metric"].tolist() == ["accuracy_difference"] * 2
    assert frame["value"].iloc[0] == pytest.approx(scores["good"].mean() - scores["bad"].mean(), abs=1e-12)
    one = params(table)[0]
    assert (one["versus"], one["versus_tap"]) == ("bad", "t")
    assert one["first"] - one["second"] == pytest.approx(frame["value"].iloc[0])
    assert frame["null"].tolist() == [0.0, 0.0]
    assert frame["n"].tolist() == [N, N]
    assert frame["level"].tolist() == ["mid", "mid"]


def test_the_interval_agrees_with_the_normal_one(scores):
    row = make(scores).compare(baseline="bad").frame.iloc[0]
    difference = scores["good"] - scores["bad"]
    half = stats.norm.ppf(0.975) * difference.std() / np.sqrt(N)
    assert row["ci_high"] - row["ci_low"] == pytest.approx(2 * half, rel=0.08)
    assert row["ci_low"] < row["value"] < row["ci_high"]


def test_a_duplicate_differs_by_exactly_zero(scores):
    table = make(scores).where(model=["good", "same"]).compare()
    row = table.frame.iloc[0]
    assert (row["value"], row["ci_low"], row["ci_high"]) == (0.0, 0.0, 0.0)
    assert params(table)[0]["p"] == 1.0


def test_every_pair_of_trained_models_by_default_and_controls_only_as_baseline(scores):
    table = make(scores)
    pairs = [
        (row["model"], one["versus"])
        for row, one in zip(table.compare().frame.to_dict("records"), params(table.compare()), strict=True)
    ]
    assert pairs == [("same", "good"), ("bad", "good"), ("bad", "same")]
    against = table.compare(baseline="random@0")
    assert against.frame["model"].tolist() == ["good", "same", "bad"]
    assert min(against.frame["ci_low"]) > 0.3


def test_holm_counts_all_comparisons_of_the_call():
    rng = np.random.default_rng(1)
    taps = {f"t{k}": (rng.random(N) < 0.5 + 0.03 * k).astype(float) for k in range(4)}
    found = sorted(params(make({"m": taps}).compare(by="tap")), key=lambda one: one["p"])
    assert [one["comparisons"] for one in found] == [6] * 6
    # Holm: the j-th smallest of m values times m − j + 1, never below an earlier one, at most 1.
    steps = [(6 - j) * one["p"] for j, one in enumerate(found)]
    assert [one["p_holm"] for one in found] == pytest.approx(
        [min(1.0, max(steps[: j + 1])) for j in range(6)]
    )


def test_order_of_images_does_not_matter(scores):
    order = np.random.default_rng(2).permutation(N)
    names = np.array([f"i{k:03d}" for k in range(N)])
    mixed = {**scores, "bad": scores["bad"][order]}
    one = make(scores).compare(baseline="bad").frame
    two = make(mixed, ids={"bad": names[order]}).compare(baseline="bad").frame
    pd.testing.assert_frame_equal(one[["value", "ci_low", "ci_high"]], two[["value", "ci_low", "ci_high"]])


def test_another_model_in_the_table_does_not_move_an_interval(scores):
    alone = make({name: scores[name] for name in ("good", "bad")}).compare().frame.iloc[0]
    among = make(scores).compare().where(model="bad").frame.iloc[0]
    assert (alone["ci_low"], alone["ci_high"]) == (among["ci_low"], among["ci_high"])


def test_other_images_are_refused_by_name(scores):
    shifted = [f"i{k + 1:03d}" for k in range(N)]
    with pytest.raises(InputError, match=r"bad at t.*good at t.*2 of them on one side only"):
        make(scores, ids={"bad": shifted}).compare()
    fewer = {**scores, "bad": scores["bad"][:-1]}
    with pytest.raises(InputError, match="i299"):
        make(fewer).compare()
    twice = {"bad": ["i000"] * N}
    with pytest.raises(InputError, match="'i000' twice"):
        make(scores, ids=twice).compare()


def test_unknown_names_are_refused(scores):
    table = make(scores)
    for settings, words in [
        ({"metric": "bitz"}, "'bitz'"),
        ({"baseline": "goood"}, r"'goood'.*good"),
        ({"by": "level"}, "model, tap"),
        ({"at": "end"}, "tap, best"),
        ({"target": "z"}, "'z'"),
        ({"by": "tap", "baseline": "u"}, "'u'"),
    ]:
        with pytest.raises(InputError, match=words):
            table.compare(**settings)
    with pytest.raises(InputError, match="attachment"):
        ResultTable(table.frame).compare()
    with pytest.raises(InputError, match=r"per-image scores of 'r2'.*accuracy"):
        ResultTable(table.frame.assign(metric="r2"), {}, table.attachments).compare(metric="r2")


def test_one_target_must_be_named_among_several(table):
    with pytest.raises(InputError, match="Name it"):
        table.compare(metric="r2")
    assert table.compare(metric="r2", target="size_px", baseline="moco", draws=200).models == [
        "supervised",
        "exemplar",
    ]


def test_models_without_a_common_tap_are_compared_at_their_best(scores):
    table = make(
        {"cnn": {"layer1": scores["bad"], "layer2": scores["good"]}, "vit": {"blocks.3": scores["bad"]}}
    )
    with pytest.raises(InputError, match="at='best'"):
        table.compare()
    best = table.compare(at="best", baseline="cnn")
    assert best.frame["tap"].tolist() == ["blocks.3"]
    assert params(best)[0]["versus_tap"] == "layer2"


def test_comparisons_can_be_written_and_shown(table, tmp_path):
    made = table.compare(metric="accuracy", target="species", baseline="supervised", draws=200)
    assert len(made) == 2 * 8
    made.write(tmp_path)
    assert ResultTable.read(tmp_path).frame.equals(made.frame)
    assert "Difference in accuracy" in made._repr_html_()
    assert list(made.wide().index) == ["moco", "exemplar"]
