"""The verb: every ordered pair of layers, repeats, figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import probekit
from probekit.figures import draw_similarity
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
