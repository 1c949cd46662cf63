from __future__ import annotations

import pickle

import numpy as np
import pytest

from probekit.data.targets import Target, class_order
from probekit.errors import DataError


def test_class_target_keeps_int64_and_is_read_only():
    given = np.array([1, 0, 1], np.uint8)
    target = Target(given, "class", ("a", "b"))
    given[0] = 0
    assert target.values.dtype == np.int64
    assert target.values.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="read-only"):
        target.values[0] = 0


def test_selection_keeps_every_class():
    target = Target([0, 1, 2, 2], "class", ("a", "b", "c")).select([3, 0])
    assert target.values.tolist() == [2, 0]
    assert target.n_classes == 3
    assert target.facts() == {"kind": "class", "classes": ["a", "b", "c"]}
    assert len(target.select([])) == 0


def test_continuous_row_becomes_a_column():
    target = Target([0.5, 1], "continuous", ("x",))
    assert target.values.shape == (2, 1)
    assert target.select([1]).values.tolist() == [[1.0]]


def test_multilabel_is_boolean():
    target = Target([[1, 0], [1, 1]], "multilabel", ("cat", "dog"))
    assert target.values.dtype == np.bool_


def test_names_sort_by_value_only_if_all_are_whole_numbers():
    assert class_order({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert class_order({"10", "9", "x"}) == ["10", "9", "x"]
    assert class_order({"00010", "00009"}) == ["00009", "00010"]


def test_given_classes_may_exceed_those_present():
    target = Target.from_names(["b"], ["a", "b"])
    assert target.values.tolist() == [1]


def test_target_survives_pickling():
    target = pickle.loads(pickle.dumps(Target([0, 1], "class", ("a", "b"))))
    assert target.values.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("values", "kind", "classes", "said"),
    [
        ([0, 1], "classes", ("a", "b"), "a kind among"),
        ([0, 0], "class", ("a",), "at least 2 classes"),
        ([0, 1], "class", ("a", "a"), "'a' twice"),
        ([0, 2], "class", ("a", "b"), "0 to 2"),
        ([-1, 0], "class", ("a", "b"), "-1 to 0"),
        ([0.0, 1.0], "class", ("a", "b"), "whole numbers"),
        ([[0, 1]], "class", ("a", "b"), "shape \\(N,\\)"),
        ([[1, 0]], "multilabel", ("a",), "shape \\(N, 1\\)"),
        ([[2]], "multilabel", ("a",), "0 or 1"),
        ([["x"]], "multilabel", ("a",), "0 or 1"),
        ([1.0, np.nan], "continuous", ("x",), "first at row 1"),
        ([np.inf], "continuous", ("x",), "finite"),
        (["a"], "continuous", ("x",), "numbers"),
        ([[1.0, 2.0]], "continuous", ("x",), "shape \\(N, 1\\)"),
        ([], "continuous", (), "at least 1 columns"),
    ],
)
def test_impossible_values_are_refused(values, kind, classes, said):
    with pytest.raises(DataError, match=said):
        Target(values, kind, classes)


def test_unknown_class_names_are_named():
    with pytest.raises(DataError, match="'cta'"):
        Target.from_names(["cat", "cta"], ["cat", "dog"])
