"""The headline: the chosen tap's value beside its null and its control at the same tap."""

from __future__ import annotations

import numpy as np
import pytest

from probekit.reporting.headline import MOST_IN_ORDER, STRIP_WIDTH, comparison_rows, headline_blocks
from probekit.results.table import ResultTable


def test_values_come_from_the_chosen_taps(table):
    blocks = headline_blocks(table)
    assert [(block.label, list(block.targets)) for block in blocks] == [
        ("Accuracy", ["species"]),
        ("R²", ["angle_deg", "size_px"]),
    ]
    for row in blocks[1].targets["size_px"]:
        best = table.best("r2", target="size_px", model=row.model).frame.iloc[0]
        assert row.tap == best["tap"]
        assert row.value.text == f"{best['value']:.3f}"
        assert row.chosen_on == "val"
        drawn = table.where(metric="r2", target="size_px", model=table.controls, tap=row.tap).frame["value"]
        assert row.random.value == pytest.approx(drawn.mean())
        assert (row.random.low, row.random.high) == (drawn.min(), drawn.max())
    assert sum(row.best for row in blocks[0].targets["species"]) == 1


def test_a_best_value_within_its_null_is_not_marked(table):
    frame = table.frame.copy()
    frame.loc[frame["metric"] == "accuracy", ["null_high"]] = 0.99
    rows = headline_blocks(ResultTable(frame))[0].targets["species"]
    assert not any(row.best for row in rows)


def test_the_drawing_is_to_scale(table):
    (row, *_) = headline_blocks(table)[0].targets["species"]
    share = (row.strip["value_value"] - 2) / (STRIP_WIDTH - 4)
    assert share == pytest.approx(row.value.value, abs=0.002)
    assert row.strip["null_low"] < row.strip["null_value"] < row.strip["null_high"]


def test_missing_nulls_controls_and_intervals_are_dashes():
    rows = [{"model": "a", "tap": "t", "target": "y", "metric": "r2", "value": -0.5}]
    (block,) = headline_blocks(ResultTable.from_rows(rows))
    (row,) = block.targets["y"]
    assert (row.value.text, row.value.ends, row.null.text, row.random.text) == ("−0.500", "", "–", "–")
    assert not row.best
    assert row.chosen_on == "test"
    assert "null_value" not in row.strip


def test_controls_of_another_architecture_are_not_used(table):
    frame = table.frame.copy()
    frame.loc[frame["model"] == "moco", "arch"] = "vit"
    rows = headline_blocks(ResultTable(frame))[0].targets["species"]
    assert {row.model: row.random.text == "–" for row in rows} == {
        "supervised": False,
        "moco": True,
        "exemplar": False,
    }


def test_differences_stand_in_a_list_of_their_own(table):
    made = table.compare(metric="accuracy", target="species", baseline="supervised", draws=200)
    assert headline_blocks(made) == []
    rows = comparison_rows(made)
    assert len(rows) == len(made)
    assert [row["p_holm"] for row in rows] == sorted(row["p_holm"] for row in rows)
    assert comparison_rows(table) == []


def test_a_model_without_a_defined_value_is_left_out(table):
    frame = table.frame.copy()
    gone = frame["model"] == "moco"
    frame.loc[gone, ["value", "ci_low", "ci_high"]] = np.nan
    frame.loc[gone, "status"] = "no weights"
    assert [row.model for row in headline_blocks(ResultTable(frame))[0].targets["species"]] == [
        "supervised",
        "exemplar",
    ]


@pytest.mark.parametrize(("metric", "best_first"), [("accuracy", False), ("calibration_error", True)])
def test_very_many_models_are_ranked(metric, best_first):
    count = MOST_IN_ORDER + 1
    rows = [
        {"model": f"step{i:02d}", "tap": "t", "target": "y", "metric": metric, "value": i / count}
        for i in range(count)
    ]
    named = [row.model for row in headline_blocks(ResultTable.from_rows(rows))[0].targets["y"]]
    assert named == sorted(named, reverse=not best_first)
    few = [row.model for row in headline_blocks(ResultTable.from_rows(rows[:-1]))[0].targets["y"]]
    assert few == sorted(few)
