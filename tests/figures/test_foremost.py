"""Very many models: a figure names a few from the best to the worst, and draws the others thinly."""

from __future__ import annotations

import pytest

from probekit.figures import plot_depth
from probekit.figures.drawing import draw_probe
from probekit.figures.foremost import MOST_MODELS, NAMED, foremost
from probekit.results.table import ResultTable


def steps(count: int, metric: str = "accuracy", stem: str = "step") -> ResultTable:
    """Return checkpoints that get better in steps, from the last to the first."""
    return ResultTable.from_rows(
        {"model": f"{stem}{i:03d}", "tap": f"t{tap}", "depth": tap / 2, "metric": metric, "target": "y",
         "value": 1 - (i + tap / 4) / (count + 1)}
        for i in range(count)
        for tap in range(3)
    )  # fmt: skip


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_as_many_as_can_be_told_apart_are_all_named():
    table = steps(MOST_MODELS)
    assert foremost(table, table.trained) == table.trained
    assert legend(plot_depth(table)) == table.trained


def test_of_more_a_few_are_named_from_the_best_to_the_worst():
    table = steps(MOST_MODELS + 10)
    named = foremost(table, table.trained)
    assert len(named) == NAMED
    assert (named[0], named[-1]) == (table.trained[0], table.trained[-1])
    figure = plot_depth(table)
    assert legend(figure) == [*named, "other models"]
    assert len(figure.axes[0].lines) == len(table.trained)
    assert f"Named: {NAMED} of {len(table.trained)} models" in figure.get_supxlabel().replace("\n", " ")


@pytest.mark.parametrize("metric", ["calibration_error", "icc"])
def test_the_worst_of_an_error_is_the_highest_and_without_better_the_order_counts(metric):
    table = steps(MOST_MODELS + 10, metric)
    named = foremost(table, table.trained)
    assert {named[0], named[-1]} == {table.trained[0], table.trained[-1]}


def test_a_figure_for_each_model_is_drawn_of_named_ones_only():
    table = steps(MOST_MODELS + 10)
    recalls = table.frame.assign(metric="class_recall", params='{"class":"a"}')
    made = draw_probe(ResultTable.concat([table, ResultTable(recalls)]))
    assert sum(name.startswith("class-recall") for name in made) == NAMED


def test_a_long_legend_leaves_the_panels_their_room():
    heights = []
    for count in (4, MOST_MODELS):
        figure = plot_depth(steps(count, stem="no two of these stand beside each other "))
        heights.append(figure.axes[0].get_position().height * figure.get_figheight())
    assert heights[1] > 0.5 * heights[0]
