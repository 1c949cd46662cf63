"""The verb by inversion: rows of all models and taps, equal residuals, kept cells, figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import probekit
from probekit import Backbone, ImageSet, Preprocessing
from probekit.errors import InputError
from probekit.figures import draw_reconstruction
from probekit.reconstruction import inversion
from probekit.reconstruction.inverting import shown_rows
from probekit.results.table import ResultTable
from tests.features.conftest import small_net
from tests.reconstruction.test_sweep import pictures

SIDE = 32
QUICK = {"method": "inversion", "shown": 2, "draws": 2, "residual": 0.3, "random": 0, "taps": ["3"]}
METRICS = ["feature_residual", "psnr", "ssim", "gradient_deviation", "image_r2"]


def backbone(name: str = "small", seed: int = 0) -> Backbone:
    return Backbone.from_module(small_net(seed), name=name, preprocessing=Preprocessing(SIDE, SIDE))


@pytest.mark.slow
def test_every_model_and_tap_has_scores_at_one_residual(tmp_path: Path):
    settings = QUICK | {"random": 1, "taps": ["3", "5"]}
    table = probekit.reconstruct(backbone(), pictures(40, boxes=True), store=tmp_path, **settings)
    frame = table.frame
    assert frame["model"].nunique() == 2
    assert set(frame["tap"]) == {"3|raw", "5|raw"}
    regions = ["foreground_error", "background_error", "background_ratio"]
    for _, own in frame.groupby(["model", "tap"]):
        assert own["metric"].tolist() == [*METRICS, *regions]
    residuals = frame[frame["metric"] == "feature_residual"]
    ranked = residuals["status"] == "ok"
    assert ranked.any()
    assert (residuals.loc[ranked, "value"] <= 0.3).all()
    assert set(residuals["n"]) == {2}
    first = frame[(frame["metric"] == "psnr") & (frame["status"] == "ok")].iloc[0]
    assert first["ci_kind"] == "t,draws of the prior"
    assert first["ci_low"] <= first["value"] <= first["ci_high"]
    assert first["null_kind"] == "other images,1"
    params = json.loads(first["params"])
    assert params["mean_of"] == 40
    assert params["target_residual"] == 0.3
    (made,) = [one for name, one in table.attachments.items() if name.startswith("pictures/") and
               "small/3" in name and name.endswith("made.npy")]  # fmt: skip
    assert made.shape == (2, 2, SIDE, SIDE, 3)
    assert made.dtype == np.uint8
    # Curves and scores speak of the same images: the least residual of each, mean over draws.
    (curves,) = [one for name, one in table.attachments.items() if name.startswith("curves/") and
                 "small/3" in name]  # fmt: skip
    (scores,) = [one for name, one in table.attachments.items() if name.startswith("scores/") and
                 "small/3" in name]  # fmt: skip
    least = curves.groupby(["id", "draw"])["residual"].min()
    assert least.groupby("draw").size().tolist() == [2, 2]
    found = least.groupby("id").mean().loc[scores["id"]].to_numpy()
    np.testing.assert_allclose(found, scores["feature_residual"], rtol=1e-6)
    figures = draw_reconstruction(table)
    assert {"inversions", "inversion-errors", "inversion-residuals", "depth-psnr"} <= set(figures)
    table.write(tmp_path / "table")
    again = draw_reconstruction(ResultTable.read(tmp_path / "table"))
    drawn = np.asarray(again["inversions"].axes[1].images[0].get_array())
    np.testing.assert_array_equal(drawn, made[0, 0])


@pytest.mark.slow
def test_what_ends_above_the_target_is_shown_but_not_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few = {**inversion.PRESETS, "preview": inversion.replace(inversion.PRESETS["preview"], steps=5)}
    monkeypatch.setattr(inversion, "PRESETS", few)
    table = probekit.reconstruct(backbone(), pictures(40), store=tmp_path, **(QUICK | {"residual": 1e-4}))
    rows = table.frame.set_index("metric")
    assert rows.loc["feature_residual", "value"] > 1e-4
    for metric in METRICS[1:]:
        assert np.isnan(rows.loc[metric, "value"])
        assert "4 of 4 made images ended above the target residual 0.0001" in rows.loc[metric, "status"]
        assert "the most steps: not ranked" in rows.loc[metric, "status"]
        kept = json.loads(rows.loc[metric, "params"])["unranked"]
        assert np.isfinite(kept["value"])
    figures = draw_reconstruction(table)
    assert "depth-psnr" not in figures
    captions = [axes.get_xlabel() for axes in figures["inversions"].axes]
    assert any("not ranked" in one for one in captions)


@pytest.mark.slow
def test_finished_cells_are_found_again_and_weights_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = pictures(40)
    settings = QUICK | {"store": tmp_path, "draws": 1}
    one = probekit.reconstruct([backbone("a", 0), backbone("b", 1)], data, **settings)
    monkeypatch.setattr(inversion, "invert", lambda *_, **__: pytest.fail("inverted again"))
    swapped = probekit.reconstruct([backbone("a", 1), backbone("b", 0)], data, **settings)
    for metric in METRICS:
        left, right = (
            table.where(metric=metric).frame.set_index("model")["value"] for table in (one, swapped)
        )
        assert left["a"] == right["b"]
        assert left["b"] == right["a"]
        assert left["a"] != left["b"]


def test_settings_that_cannot_be_used_are_refused_before_work(tmp_path: Path):
    for wrong in ({"shown": 0}, {"draws": 0}, {"residual": 1.5}, {"preset": "quick"}, {"prior": "gan"},
                  {"regions": pictures(20, boxes=True)}):  # fmt: skip
        with pytest.raises(InputError):
            probekit.reconstruct(backbone(), pictures(40), store=tmp_path, **(QUICK | wrong))
    with pytest.raises(InputError, match="more than 192 pixels"):
        probekit.reconstruct(backbone(), pictures(40), store=tmp_path, **(QUICK | {"preset": "paper"}))


def test_shown_images_are_evenly_spaced_test_images():
    images = pictures(40)
    rows = shown_rows(images, 4)
    assert set(images.splits[rows]) == {"test"}
    assert rows.tolist() == [30, 33, 36, 39]
    only = ImageSet.from_arrays(
        "train", np.zeros((5, 8, 8, 3), np.uint8), np.arange(5) % 2, np.full(5, "train")
    )
    assert shown_rows(only, 10).tolist() == [0, 1, 2, 3, 4]
