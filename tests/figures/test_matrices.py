"""Heat-maps: right cells, fixed scale, readable from two to a hundred classes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from probekit.errors import InputError
from probekit.figures import plot_class_recall, plot_targets
from probekit.figures.style import FULL_WIDTH
from probekit.results.table import ResultTable


def images(figure):
    return [axes.images[0] for axes in figure.axes if axes.images]


def test_cells_are_the_recalls_of_the_table(table):
    figure = plot_class_recall(table, "species", "moco")
    (image,) = images(figure)
    assert image.get_clim() == (0.0, 1.0)
    rows = table.where(metric="class_recall", model="moco", tap="layer4.2|gap").frame
    wanted = {
        json.loads(text)["class"]: value for text, value in zip(rows["params"], rows["value"], strict=True)
    }
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert [label.split(" (")[0] for label in labels] == list(wanted)
    np.testing.assert_allclose(image.get_array()[:, -1], list(wanted.values()))
    assert figure.axes[0].get_xticklabels()[-1].get_text() == "★ layer4.2"


def test_a_class_without_test_images_is_an_empty_cell(make_table):
    table = make_table(n_test=12, factors=(), models=("moco",))
    assert "no test image" in " ".join(table.frame["status"])
    image = images(plot_class_recall(table))[0]
    assert not np.ma.is_masked(image.get_array()[0])


@pytest.mark.parametrize("count", [2, 41, pytest.param(100, marks=pytest.mark.slow)])
def test_any_number_of_classes_fits_the_page(make_table, count):
    classes = [f"class {i:03d} with a rather long name of its own" for i in range(count)]
    table = make_table(n_test=20 * count, classes=classes, factors=(), models=("moco",))
    figure = plot_class_recall(table)
    assert figure.get_figwidth() <= 1.2 * FULL_WIDTH
    assert figure.get_figheight() <= 9
    shown = [text for axes in figure.axes[:-1] for text in axes.get_yticklabels()]
    assert len(shown) == count
    assert min(text.get_fontsize() for text in shown) >= 6
    figure._repr_png_()


def test_what_is_ambiguous_is_refused(table):
    with pytest.raises(InputError, match="supervised, moco, exemplar"):
        plot_class_recall(table)
    with pytest.raises(InputError, match="class_recall"):
        plot_class_recall(table.where(metric="r2"))


def test_the_overview_has_one_matrix_per_model_and_one_for_the_controls(make_table):
    table = make_table(n_test=60, factors=[f"factor_{i}" for i in range(7)])
    figure = plot_targets(table)
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in figure.axes if axes.images]
    assert titles == ["supervised", "moco", "exemplar", "random init (mean of 3)"]
    wanted = table.where(metric="r2", model="moco", target="factor_3").frame.sort_values("depth")["value"]
    np.testing.assert_allclose(images(figure)[1].get_array()[3], wanted)
    drawn = table.where(metric="r2", model=table.controls, target="factor_3", tap="layer1.0|gap").frame[
        "value"
    ]
    assert images(figure)[3].get_array()[3, 0] == pytest.approx(drawn.mean())
    assert all(image.get_clim() == (0.0, 1.0) for image in images(figure))


def test_controls_of_each_architecture_get_a_matrix_of_their_own(table):
    frame = table.frame.copy()
    frame.loc[frame["model"].isin(["moco", "random@2"]), "arch"] = "vit"
    figure = plot_targets(ResultTable(frame))
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in figure.axes if axes.images]
    assert titles[3:] == ["random init, resnet50 (mean of 2)", "random init, vit (mean of 1)"]
