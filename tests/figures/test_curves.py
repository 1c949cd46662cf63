"""Curves: colours, references and notes say what the table says."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from probekit.errors import InputError
from probekit.figures import plot_depth, plot_few_shot
from probekit.figures.style import COLOURS
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable


@pytest.fixture(scope="module")
def accuracy(table):
    """The figure most tests look at."""
    return plot_depth(table)


def footer(figure):
    return figure.get_supxlabel().replace("\n", " ")


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def solid(axes):
    return [line for line in axes.lines if line.get_linestyle() == "-"]


def test_lines_are_the_values_in_the_colours_of_their_models(table, accuracy):
    (axes,) = accuracy.axes
    drawn = solid(axes)
    assert [to_hex(line.get_color()).upper() for line in drawn] == list(COLOURS[:3])
    wanted = table.where(metric="accuracy", model="moco").frame.sort_values("depth")
    np.testing.assert_allclose(drawn[1].get_ydata(), wanted["value"])
    np.testing.assert_allclose(drawn[1].get_xdata(), wanted["depth"])


def test_a_model_keeps_its_colour_in_every_figure(table):
    for figure in (plot_depth(table, "r2", "size_px"), plot_few_shot(table)):
        assert [to_hex(line.get_color()).upper() for line in solid(figure.axes[0])] == list(COLOURS[:3])


def test_references_are_dashed_and_dotted_and_explained(accuracy):
    figure = accuracy
    assert legend(figure) == ["supervised", "moco", "exemplar", "null", "random init"]
    (axes,) = figure.axes
    assert sorted(str(line.get_linestyle()) for line in axes.lines) == sorted(["-", "-", "-", "--", ":"])
    for words in (
        "n = 400 test images",
        "bootstrap over test units",
        "permuted, 20 draws",
        "range of 3",
        "chosen on val",
    ):
        assert words in footer(figure)
    assert figure.get_label() == "Accuracy against depth: species (flowers)."


def test_levels_and_blocks_stand_at_the_axis(accuracy):
    (axes,) = accuracy.axes
    assert [text.get_text() for text in axes.texts] == ["low", "mid", "high"]
    assert [text.get_text() for text in axes.get_xticklabels()][:2] == ["layer1.0", "layer1.2"]
    assert axes.get_ylabel() == "Accuracy"


def test_several_targets_share_one_scale(table):
    figure = plot_depth(table, "r2")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["angle_deg", "size_px"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_a_choice_made_on_test_is_called_optimistic(table):
    blind = ResultTable(table.frame.assign(params="{}"))
    assert "optimistic" in footer(plot_depth(blind, "accuracy"))


def test_the_axis_says_when_lower_is_better_and_hopeless_r2_is_cut(table):
    assert "lower is better" in plot_depth(table, "bits").axes[0].get_ylabel().replace("\n", " ")
    awful = table.frame.copy()
    awful.loc[
        (awful["metric"] == "r2") & (awful["model"] == "moco") & (awful["tap"] == "layer4.2|gap"),
        ["value", "ci_low"],
    ] = -40.0
    figure = plot_depth(ResultTable(awful), "r2", "size_px")
    assert figure.axes[0].get_ylim()[0] > -1
    assert "cut off" in footer(figure)


def test_two_data_sets_get_panels_of_their_own(table):
    both = ResultTable.concat([table, ResultTable(table.frame.assign(data="birds"))])
    titles = [axes.get_title(loc="left") for axes in plot_depth(both, "accuracy").axes]
    assert titles == ["flowers · species", "birds · species"]
    assert len(plot_depth(both, "accuracy", data="birds").axes) == 1


def test_unlike_architectures_get_a_numeric_axis_and_their_own_controls():
    models = {"cnn": "resnet", "vit": "vit", "resnet:random@0": "resnet", "vit:random@0": "vit"}
    shared = {"target": "y", "metric": "accuracy", "null": 0.1}
    rows = [
        shared | {"model": model, "arch": arch, "tap": f"{arch}.{i}", "depth": i / 3, "value": 0.3 + 0.1 * i}
        for model, arch in models.items()
        for i in range(4)
    ]
    figure = plot_depth(ResultTable.from_rows(rows))
    assert figure.axes[0].get_xlabel().startswith("Relative depth")
    assert legend(figure) == ["cnn", "vit", "null", "random init"]
    dotted = [
        to_hex(line.get_color()).upper() for line in figure.axes[0].lines if line.get_linestyle() == ":"
    ]
    assert dotted == list(COLOURS[:2])


def test_differences_are_drawn_against_their_opponent(table):
    made = table.compare(metric="accuracy", target="species", baseline="supervised", draws=100)
    figure = plot_depth(made, "accuracy_difference")
    assert legend(figure)[:2] == ["moco − supervised", "exemplar − supervised"]


def test_few_shot_is_drawn_at_the_chosen_tap_over_shots(table):
    figure = plot_few_shot(table)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "5", "10", "20"]
    tap = table.best("few_shot_accuracy", model="moco").frame
    np.testing.assert_allclose(solid(axes)[1].get_ydata(), tap["value"])
    assert "moco at layer4.2|gap" in footer(figure)
    assert "At layer1.0|gap" in footer(plot_few_shot(table, tap="layer1.0|gap"))


def test_names_are_never_formulas_or_hidden():
    rows = [
        {
            "model": name,
            "tap": f"t{i}",
            "depth": i / 2,
            "target": "a_$x^2$",
            "metric": "accuracy",
            "value": 0.4,
        }
        for name in ("_private", "$\\frac{1}{2}$ broken {")
        for i in range(2)
    ]
    figure = plot_depth(ResultTable.from_rows(rows))
    figure._repr_png_()
    assert legend(figure) == [" _private", r"\$\frac{1}{2}\$ broken {"]


def test_matplotlib_s_settings_are_left_alone(table):
    before = dict(matplotlib.rcParams)
    plot_depth(table.where(tap=table.taps[0]))._repr_png_()
    assert dict(matplotlib.rcParams) == before


def test_a_table_without_depth_or_rows_is_refused(table):
    with pytest.raises(InputError, match="'depth'"):
        plot_depth(ResultTable(table.frame.assign(depth=np.nan)), "accuracy")
    with pytest.raises(InputError, match="a table with rows"):
        plot_depth(ResultTable.from_rows([]))


def geometry(metric: str, values=(0.5, 2.0, 50.0), split: str = "unknown"):
    return ResultTable.from_rows(
        [
            {"model": "a", "tap": f"t{i}", "block": f"b{i}", "depth": i / 2, "target": "y", "metric": metric}
            | {"value": value, "n": 80, "split": split, "analysis": "geometry"}
            for i, value in enumerate(values)
        ]
    )


def test_where_neither_end_is_better_no_tap_is_starred_and_all_images_count():
    figure = plot_depth(geometry("icc", (0.1, 0.3, 0.2)))
    assert "n = 80 images" in footer(figure)
    assert "★" not in footer(figure)
    assert (
        len(figure.axes[0].collections)
        == len(plot_depth(geometry("accuracy", (0.1,))).axes[0].collections) - 1
    )
    assert "n = 80 test images" in footer(plot_depth(geometry("accuracy", (0.1, 0.3), "test")))


def test_ratios_have_a_logarithmic_axis_where_they_are_above_0():
    axes = plot_depth(geometry("within_between")).axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "Within/between variance (log scale)"
    low, high = axes.get_ylim()
    assert 0 < low < 0.5
    assert high > 50
    assert plot_depth(geometry("within_between", (0.0, 1.0))).axes[0].get_yscale() == "linear"
    assert plot_depth(geometry("icc", (0.1, 0.2))).axes[0].get_yscale() == "linear"


def test_panels_that_share_an_axis_show_all_that_is_drawn_in_any_of_them():
    for metric in ("bits", "cdnv"):
        rows = [
            {
                "data": data, "model": "a", "tap": f"b{place}|gap", "depth": place / 2, "target": "y",
                "metric": metric, "value": value * (1 + place), "n": 10, "split": "test",
            }
            for data, value in (("small", 1.0), ("large", 100.0), ("tiny", 0.01))
            for place in range(3)
        ]  # fmt: skip
        figure = plot_depth(ResultTable(rows_to_frame(rows)), metric)
        low, high = figure.axes[0].get_ylim()
        assert low <= 0.01
        assert high >= 300
