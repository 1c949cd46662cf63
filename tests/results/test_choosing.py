"""The best tap is chosen on val, and says so."""

from __future__ import annotations

import numpy as np
import pytest

from probekit.results.choosing import TapChoice, choose_taps
from probekit.results.table import ResultTable

GROUP = ("", "a", "y")


def rows(values, metric="accuracy", split="test", vals=None, **shared):
    vals = vals or [None] * len(values)
    return [
        {
            "model": "a", "target": "y", "tap": f"t{i}", "depth": i / 10, "metric": metric, "value": value,
            "split": split, "params": {} if val is None else {"val": val}, **shared,
        }
        for i, (value, val) in enumerate(zip(values, vals, strict=True))
    ]  # fmt: skip


def chosen(*parts, metric="accuracy"):
    frame = ResultTable.from_rows([row for part in parts for row in part]).frame
    return choose_taps(frame, metric)[GROUP]


def test_val_scores_in_the_params_decide_against_a_higher_test_value():
    assert chosen(rows([0.9, 0.5], vals=[0.4, 0.6])) == TapChoice("t1", "val")


def test_val_rows_come_before_val_params():
    assert chosen(rows([0.9, 0.5], vals=[0.9, 0.1]), rows([0.1, 0.7], split="val")) == TapChoice("t1", "val")


def test_without_val_the_choice_is_marked_as_made_on_test():
    assert chosen(rows([0.9, 0.5])) == TapChoice("t0", "test")
    assert chosen(rows([0.9, 0.5], vals=[0.9, None])) == TapChoice("t0", "test")


def test_other_metrics_follow_the_val_score_of_the_primary_one():
    parts = (rows([0.9, 0.5], vals=[0.4, 0.6]), rows([2.0, 3.0], metric="bits"))
    assert chosen(*parts, metric="bits") == TapChoice("t1", "val")


def test_a_metric_with_val_scores_of_its_own_follows_those():
    parts = (rows([0.9, 0.5], vals=[0.4, 0.6]), rows([0.1, 0.2], metric="knn_accuracy", vals=[0.3, 0.2]))
    assert chosen(*parts, metric="knn_accuracy") == TapChoice("t0", "val")


def test_lower_is_better_where_it_is():
    assert chosen(rows([2.0, 3.0], metric="bits"), metric="bits") == TapChoice("t0", "test")
    val = rows([2.0, 1.0], metric="bits", split="val")
    assert chosen(rows([1.0, 2.0], metric="bits"), val, metric="bits") == TapChoice("t1", "val")


def test_the_shallower_of_equals_wins_and_undefined_rows_never_do():
    assert chosen(rows([0.5, 0.5, 0.5])).tap == "t0"
    dead = [{**row, "value": np.nan, "status": "dead"} for row in rows([0.0], vals=[1.0])]
    assert chosen(dead, rows([0.9, 0.5], vals=[0.2, 0.3])).tap == "t1"


def test_best_returns_one_row_per_model_and_target(table):
    best = table.best("accuracy", target="species")
    assert best.models == table.models
    assert len(best) == len(table.models)
    assert table.best("r2").targets == ["angle_deg", "size_px"] or set(table.best("r2").targets) == {
        "angle_deg",
        "size_px",
    }
    few = table.best("few_shot_accuracy", model="moco").frame
    assert len(few) == 5
    assert few["tap"].nunique() == 1


def test_unknown_names_are_refused_with_near_ones(table):
    with pytest.raises(Exception, match=r"'acuracy'.*accuracy"):
        table.best("acuracy")
    with pytest.raises(Exception, match=r"'specie'.*species"):
        table.best("accuracy", target="specie")
