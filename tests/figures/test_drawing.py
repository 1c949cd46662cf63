"""All figures of a table, and the files they become."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pandas as pd
import pytest

from probekit.errors import InputError
from probekit.figures import draw, draw_probe, save_figures
from probekit.figures.style import render
from probekit.results.table import ResultTable


@pytest.fixture(scope="module")
def figures(table):
    return draw_probe(table)


@pytest.mark.slow
def test_a_probe_table_gives_every_figure_it_supports(figures):
    assert list(figures) == [
        "depth-accuracy", "depth-r2", "depth-bits", "depth-knn_accuracy", "depth-accuracy_equal_d",
        "depth-calibration_error", "few-shot", "class-recall-species-supervised", "class-recall-species-moco",
        "class-recall-species-exemplar",
    ]  # fmt: skip
    assert all(figure.get_label() for figure in figures.values())


def test_compression_and_selectivity_are_drawn_against_depth(table):
    rows = table.where(metric="accuracy", target="species").frame
    coded = rows.assign(metric="compression", split="train+val", n=1600)
    both = ResultTable(pd.concat([rows, rows.assign(metric="selectivity"), coded], ignore_index=True))
    drawn = draw_probe(both)
    assert list(drawn) == ["depth-accuracy", "depth-compression", "depth-selectivity"]
    said = {name: " ".join(text.get_text() for text in one.texts) for name, one in drawn.items()}
    assert "n = 400 test images" in said["depth-selectivity"]
    # What is coded are the images a probe is fitted on.
    assert "n = 1600 images" in said["depth-compression"]


def test_many_targets_become_an_overview(make_table):
    table = make_table(n_test=40, factors=[f"f{i}" for i in range(6)], models=("moco", "random@0"))
    names = list(draw_probe(table.where(metric="r2")))
    assert names == ["targets-r2"]


def test_two_data_sets_do_not_share_names(table):
    part = table.where(metric="accuracy")
    both = ResultTable.concat([part, ResultTable(part.frame.assign(data="birds"))])
    assert list(draw_probe(both)) == ["flowers-depth-accuracy", "birds-depth-accuracy"]


@pytest.mark.slow
def test_files_are_whole_deterministic_and_free_of_dates(figures, tmp_path):
    some = {"depth-accuracy": figures["depth-accuracy"]}
    paths = save_figures(some, tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(path.name for path in paths)
    save_figures(some, tmp_path / "two")
    for path in paths:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    svg = (tmp_path / "one" / "depth-accuracy.svg").read_text()
    ET.fromstring(svg)
    assert "dc:date" not in svg
    assert (tmp_path / "one" / "depth-accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_read_from_disk_draws_the_same_bytes(table, tmp_path):
    part = ResultTable(table.frame, table.provenance)
    part.write(tmp_path)
    again = ResultTable.read(tmp_path)
    assert render(part.plot(metric="r2"), "svg") == render(again.plot(metric="r2"), "svg")


def test_letters_no_font_has_do_not_stop_a_figure(make_table):
    table = make_table(n_test=40, classes=["日本語", "中文"], factors=(), models=("moco",))
    assert render(table.plot("class_recall"), "png")


def test_plot_names_its_kinds(table):
    assert table.plot("few_shot").get_label().startswith("Test accuracy")
    assert (
        draw(table, "class_recall", model="moco").get_label()
        == "Recall by class at every tap of moco: species (flowers)."
    )
    with pytest.raises(InputError, match=r"'dept'.*depth"):
        table.plot("dept")
