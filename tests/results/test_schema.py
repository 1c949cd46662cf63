"""Result schema: what is filled in, what is refused, and in which words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import SchemaMismatch
from probekit.results.metrics import METRICS, metric_facts
from probekit.results.schema import (
    SCHEMA,
    empty_frame,
    params_text,
    read_params,
    rows_to_frame,
    validate,
)

ROW = {"model": "a", "metric": "accuracy", "value": 0.5, "level": "low", "depth": 0.25, "n": 10}


def test_defaults_are_the_schema_s_missing_values():
    frame = rows_to_frame([ROW])
    assert list(frame.columns) == list(SCHEMA)
    assert {column: str(dtype) for column, dtype in frame.dtypes.items()} == SCHEMA
    row = frame.iloc[0]
    assert row["tap"] == ""
    assert np.isnan(row["ci_low"])
    assert row["d"] is pd.NA
    assert row["status"] == "ok"
    assert row["params"] == "{}"


def test_none_means_missing():
    frame = rows_to_frame([{**ROW, "tap": None, "null": None, "d": None}])
    assert frame.loc[0, "tap"] == ""
    assert np.isnan(frame.loc[0, "null"])


def test_numpy_values_and_params_are_taken():
    row = {
        **ROW,
        "n": np.int64(3),
        "value": np.float32(0.5),
        "params": {"b": np.int64(2), "a": np.array([1.5])},
    }
    frame = rows_to_frame([row])
    assert frame.loc[0, "params"] == '{"a":[1.5],"b":2}'
    assert read_params(frame) == [{"a": [1.5], "b": 2}]


def test_an_empty_frame_is_valid():
    assert len(validate(empty_frame())) == 0
    assert list(rows_to_frame([]).dtypes) == list(empty_frame().dtypes)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"modle": "a"}, ["'modle'", "model"]),
        ({"value": float("nan")}, ["status", "accuracy"]),
        ({"level": "deep"}, ["low, mid, high", "'deep'"]),
        ({"depth": 2.0}, ["depth", "[0, 1]"]),
        ({"n": 2.5}, ["'n'", "Int64"]),
        ({"value": "much"}, ["'value'", "float64"]),
        ({"value": float("inf")}, ["'value'", "finite"]),
        ({"tap": 3}, ["'tap'", "text", "3"]),
        ({"ci_low": 0.6, "ci_high": 0.5}, ["ci_low", "ci_high"]),
        ({"params": "[1]"}, ["params", "object"]),
        ({"params": {"x": float("nan")}}, ["params", "None for missing"]),
    ],
)
def test_what_does_not_fit_is_refused_by_name(row, words):
    with pytest.raises(SchemaMismatch) as caught:
        rows_to_frame([{**ROW, **row}])
    for word in words:
        assert word in str(caught.value)


def test_a_missing_value_with_its_reason_is_valid():
    frame = rows_to_frame([{**ROW, "value": None, "status": "dead at initialisation"}])
    assert np.isnan(frame.loc[0, "value"])


def test_validate_names_missing_misplaced_and_mistyped_columns():
    frame = rows_to_frame([ROW])
    with pytest.raises(SchemaMismatch, match="'tap'"):
        validate(frame.drop(columns="tap"))
    with pytest.raises(SchemaMismatch, match="position 0"):
        validate(frame[list(SCHEMA)[::-1]])
    with pytest.raises(SchemaMismatch, match="dtype Int64"):
        validate(frame.assign(n=frame["n"].astype("float64")))
    with pytest.raises(SchemaMismatch, match="missing text"):
        validate(frame.assign(tap=pd.Series([pd.NA], dtype="string")))
    with pytest.raises(SchemaMismatch, match="sorted keys"):
        validate(frame.assign(params=pd.Series(['{"b": 1, "a": 2}'], dtype="string")))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_params_survive_and_do_not_depend_on_order(params):
    text = params_text(params)
    assert params_text(text) == text
    assert params_text(dict(reversed(list(params.items())))) == text
    assert read_params(rows_to_frame([{**ROW, "params": params}])) == [params]


def test_every_metric_of_the_probe_verb_has_facts():
    names = ["accuracy", "balanced_accuracy", "bits", "calibration_error", "accuracy_equal_d", "knn_accuracy"]
    names += ["description_length", "compression", "control_accuracy", "selectivity"]
    for name in [*names, "few_shot_accuracy", "class_recall", "r2", "mean_ap"]:
        facts = METRICS[name]
        assert facts.label
        assert facts.reading.endswith((".", "null."))
    assert METRICS["accuracy"].chance is not None
    assert METRICS["accuracy"].chance(10) == pytest.approx(0.1)
    assert not METRICS["bits"].higher_is_better


def test_differences_inherit_direction_and_double_their_bounds():
    facts = metric_facts("accuracy_difference")
    assert (facts.low, facts.high, facts.higher_is_better) == (-1.0, 1.0, True)
    assert metric_facts("bits_difference").higher_is_better is False
    assert metric_facts("r2_difference").label == "Difference in R²"
    assert metric_facts("knn_accuracy_difference").label == "Difference in k-NN accuracy"
