"""What against where: the drawn numbers are the table's, on the way from null to perfect."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from probekit.errors import InputError
from probekit.figures import plot_what_where
from probekit.figures.boxes import SKILLS, skills
from probekit.figures.style import COLOURS
from probekit.results.table import ResultTable

DEPTHS = (0.0, 0.5, 1.0)


def row(model: str, metric: str, depth: float, value: float, **more: object) -> dict[str, object]:
    null = {"what_accuracy": 0.5, "where_accuracy": 0.2, "offset_r2": 0.0}[metric]
    return {
        "analysis": "boxes",
        "model": model,
        "arch": "net",
        "weights": model,
        "data": "cells",
        "split": "test",
        "target": "boxes",
        "tap": f"b{depth:g}|roi(3)",
        "block": f"b{depth:g}",
        "level": "low",
        "depth": depth,
        "metric": metric,
        "value": value,
        "ci_low": value - 0.1,
        "ci_high": value + 0.1,
        "ci_kind": "bootstrap,whole images",
        "null": null,
        "null_low": null - 0.05,
        "null_high": null + 0.05,
        "null_kind": "permuted,20",
        "n": 36,
        "n_classes": 3,
        **more,
    }


def made(models: tuple[str, ...] = ("one", "two")) -> ResultTable:
    rows = [
        row(model, metric, depth, 0.7 + 0.1 * place + 0.05 * number)
        for number, model in enumerate(models)
        for metric in SKILLS
        for place, depth in enumerate(DEPTHS)
    ]
    controls = {f"random@{k}": 0.55 + 0.1 * k for k in range(2)}
    rows += [row(name, metric, d, v) for name, v in controls.items() for metric in SKILLS for d in DEPTHS]
    known = {name: {"arch": "net", "random_init": name in controls} for name in (*models, *controls)}
    return ResultTable.from_rows(rows, {"analysis": "boxes", "models": known})


def test_lines_are_the_skills_of_each_model():
    figure = plot_what_where(made())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "two"]
    for number, axes in enumerate(figure.axes):
        values = 0.7 + 0.1 * np.arange(3) + 0.05 * number
        drawn = [line for line in axes.lines if to_hex(line.get_color()).upper() in COLOURS[:3]]
        curves, dotted = drawn[0::2], drawn[1::2]
        for line, random, null in zip(curves, dotted, (0.5, 0.2, 0.0), strict=True):
            np.testing.assert_allclose(line.get_xdata(), DEPTHS)
            np.testing.assert_allclose(line.get_ydata(), (values - null) / (1 - null))
            # Mean of 0.55 and 0.65.
            np.testing.assert_allclose(random.get_ydata(), (0.6 - null) / (1 - null))
            assert random.get_linestyle() == ":"


def test_intervals_that_reach_the_null_have_open_markers_and_are_explained():
    table = made(("one",))
    frame = table.frame
    near = (frame["metric"] == "where_accuracy") & (frame["depth"] == 0.5) & (frame["model"] == "one")
    frame.loc[near, ["value", "ci_low", "ci_high"]] = [0.3, 0.2, 0.4]
    figure = plot_what_where(ResultTable(frame, table.provenance))
    drawn = [one for one in figure.axes[0].collections if len(one.get_offsets()) == 3]
    faces = [points.get_facecolors() for points in drawn]
    is_open = [[bool((face[:3] == 1).all()) for face in one] for one in faces]
    assert is_open == [[False] * 3, [False, True, False], [False] * 3]
    footer = figure.get_supxlabel().replace("\n", " ")
    for words in ("n = 36 test images", "bootstrap over whole images", "permuted, 20 draws", "random init"):
        assert words in footer, words


def test_without_permutations_chance_is_the_origin():
    frame = made(("one",)).frame.assign(null=np.nan, null_low=np.nan, null_high=np.nan, null_kind="")
    found = skills(frame).groupby("metric")["skill"].first()
    assert found["what_accuracy"] == pytest.approx((0.7 - 1 / 3) / (2 / 3))


def test_other_tables_and_several_data_sets_are_refused():
    with pytest.raises(InputError, match="rows of probe_boxes"):
        plot_what_where(ResultTable.from_rows([{"model": "a", "metric": "accuracy", "value": 1.0}]))
    table = made(("one",))
    both = ResultTable.concat([table, ResultTable(table.frame.assign(data="other"), table.provenance)])
    with pytest.raises(InputError, match="Name one: data="):
        plot_what_where(both)
    assert plot_what_where(both, data="other").axes
