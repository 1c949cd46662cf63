"""One measure against another: points are joined by data, model and tap."""

from __future__ import annotations

import numpy as np
import pytest

from probekit.errors import InputError
from probekit.figures import plot_relation
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable


def table(metric: str, values: dict[tuple[str, str, int], float], target: str = "class") -> ResultTable:
    rows = [
        {
            "data": data, "model": model, "tap": f"b{place}|gap", "depth": place / 3, "metric": metric,
            "target": target, "value": value, "ci_low": value - 0.1, "ci_high": value + 0.2, "n": 10,
        }
        for (data, model, place), value in values.items()
    ]  # fmt: skip
    models = {
        model: {"random_init": model.startswith("random"), "control_of": None} for _, model, _ in values
    }
    return ResultTable(rows_to_frame(rows), {"format": 1, "analysis": "probe", "models": models})


# Deepest first, to see that lines follow depth.
PLACES = [
    (data, model, place) for data in ("one", "two") for model in ("a", "random@0") for place in (2, 0, 1)
]
ICC = {key: 0.1 * key[2] + (0.5 if key[0] == "two" else 0) for key in PLACES}
ACCURACY = {key: 0.3 * key[2] + (0.05 if key[1] == "a" else 0) for key in PLACES}


def test_points_stand_where_both_tables_say():
    figure = plot_relation(table("icc", ICC), table("accuracy", ACCURACY))
    one, two = figure.axes
    assert [one.get_title(loc="left"), two.get_title(loc="left")] == ["one", "two"]
    line = next(each for each in two.lines if len(each.get_xdata()) == 3)
    np.testing.assert_allclose(line.get_xdata(), [0.5, 0.6, 0.7])
    np.testing.assert_allclose(line.get_ydata(), [0.05, 0.35, 0.65])
    markers = two.collections[-1]
    assert np.argmax(markers.get_sizes()) == 2
    assert "against" in figure.get_label()


def test_a_measure_of_one_data_set_may_stand_against_another_of_several():
    figure = plot_relation(table("icc", ICC), table("accuracy", ACCURACY), x_data="two")
    for axes in figure.axes:
        line = next(each for each in axes.lines if len(each.get_xdata()) == 3)
        np.testing.assert_allclose(line.get_xdata(), [0.5, 0.6, 0.7])


def test_what_cannot_be_joined_says_why():
    strangers = {("three", "b", 0): 0.5}
    with pytest.raises(InputError, match="none of icc and accuracy"):
        plot_relation(table("icc", ICC), table("accuracy", strangers))
    twice = ResultTable.concat([table("icc", ICC), table("icc", ICC, target="other")])
    with pytest.raises(InputError, match="x_target="):
        plot_relation(twice, table("accuracy", ACCURACY))
