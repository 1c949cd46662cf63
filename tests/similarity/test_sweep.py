"""The verb: every ordered pair of layers, repeats, figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import probekit
from probekit.figures import draw_similarity
from probekit.results.table import ResultTable
from probekit.similarity import sweep
from tests.features.conftest import images, small_backbone

QUICK = {"random": 0, "permutations": 2, "pairwise": 20, "groups": 4, "k": 3}


def test_every_pair_of_layers_has_a_row(tmp_path: Path):
    table = probekit.measure_similarity(small_backbone(), images(), taps=["3", "5"], store=tmp_path, **QUICK)
    rows = table.where(metric="cka").frame
    assert len(rows) == 4
    matrix = rows.pivot(index="tap", columns="target", values="value").to_numpy()
    np.testing.assert_allclose(np.diagonal(matrix), 1)
    np.testing.assert_allclose(matrix, matrix.T)
    assert not table.frame.duplicated(["model", "tap", "target", "metric"]).any()
    figures = draw_similarity(table)
    assert "layers-cka_debiased" in figures
    axes = figures["layers-cka"].axes[0]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), matrix)
    assert axes.images[0].get_clim() == (0.0, 1.0)


def test_finished_cells_are_found_again(tmp_path: Path, monkeypatch):
    calls = []
    original = sweep._measure

    def counted(features, **rest):
        calls.append(features.tap)
        return original(features, **rest)

    monkeypatch.setattr(sweep, "_measure", counted)
    for _ in range(2):
        probekit.measure_similarity(small_backbone(), images(), taps=["3"], store=tmp_path, **QUICK)
    assert calls == ["3|gap"]


def test_data_sets_have_panels_and_models_their_names_once(tmp_path: Path):
    table = probekit.measure_similarity(small_backbone(), images(), taps=["3", "5"], store=tmp_path, **QUICK)
    other = table.frame.assign(data="others", value=table.frame["value"] / 2)
    both = ResultTable(pd.concat([table.frame, other], ignore_index=True), table.provenance)
    figure = draw_similarity(both)["layers-cka"]
    left, right = figure.axes[:2]
    np.testing.assert_allclose(np.asarray(right.images[0].get_array()) * 2, left.images[0].get_array())
    assert right.get_title(loc="left").startswith("others · ")
    name = table.models[0]
    # The block of tap 3 is 4.
    assert [one.get_text() for one in left.get_yticklabels()] == [f"{name} · 4", "5"]
    assert [one.get_text() for one in right.get_yticklabels()] == ["", ""]
    footer = figure.get_supxlabel()
    assert "images paired anew" in footer


def test_layers_keep_their_order_where_some_values_are_empty(tmp_path: Path):
    table = probekit.measure_similarity(small_backbone(), images(), taps=["3", "5"], store=tmp_path, **QUICK)
    first = (table.frame["tap"] == "3|gap") & (table.frame["metric"] == "cka")
    gone = first & table.frame["target"].str.endswith("3|gap")
    frame = table.frame.assign(value=table.frame["value"].where(~gone))
    frame.loc[gone, "status"] = "left out"
    last = frame[first].iloc[::-1]
    figure = draw_similarity(ResultTable(pd.concat([frame[~first], last]), table.provenance))["layers-cka"]
    assert [one.get_text() for one in figure.axes[0].get_xticklabels()] == ["4", "5"]
    assert "White cells are empty" in figure.get_supxlabel()
    assert "White cells" not in draw_similarity(table)["layers-cka"].get_supxlabel()
