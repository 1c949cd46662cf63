"""The verb: one table of models, data, taps and bands; controls, regions, refusals, figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import probekit
from probekit import Backbone, ImageSet, Preprocessing
from probekit.data.annotations import Boxes
from probekit.data.targets import Target
from probekit.errors import InputError
from probekit.figures import draw_reconstruction
from probekit.reconstruction import decoding
from probekit.results.table import ResultTable
from tests.features.conftest import small_backbone, small_net

QUICK = {"random": 0, "permutations": 2, "bootstrap_draws": 50, "penalties": (1.0, 0.01)}


DECODER = QUICK | {"method": "decoder", "draws": 2, "steps": 40}


def pictures(n: int = 160, *, boxes: bool = False, roles: str = "both") -> ImageSet:
    """Return images of coarse colour, which survives a convolution."""
    random = np.random.default_rng(0)
    pixels = np.repeat(np.repeat(random.integers(0, 256, (n, 2, 2, 3), dtype=np.uint8), 6, 1), 6, 2)
    splits = np.where(np.arange(n) < n * 3 // 4, "train", "test") if roles == "both" else np.full(n, roles)
    targets = {"class": Target(np.arange(n) % 2, "class", ("even", "odd"))}
    if boxes:
        values = np.empty(n, object)
        values[:] = [Boxes(np.array([[0, 0, 6, 12]]), np.array([0]), np.array([False]))] * n
        targets["objects"] = Target(values, "boxes", ("thing",))
    return ImageSet.from_arrays("coarse", pixels, targets, splits)


def test_one_row_a_band_model_and_tap_with_controls_beside(tmp_path: Path):
    table = probekit.reconstruct(
        small_backbone(), pictures(), taps=["3", "5"], store=tmp_path, **(QUICK | {"random": 1})
    )
    frame = table.frame
    assert set(frame["analysis"]) == {"reconstruct"}
    assert not frame.duplicated(["model", "tap", "metric", "target"]).any()
    assert frame["model"].nunique() == 2
    assert set(frame["tap"]) == {"3|grid(4)", "5|grid(4)"}
    params = json.loads(frame.loc[0, "params"])
    assert params["grid"] == 4
    assert params["ceiling"] > 0.99
    # The narrowest tap bounds what all of them are projected to.
    assert set(frame["d"]) == {80}
    whole = table.where(metric="pixel_r2", target="all", model="small").frame
    assert (whole["value"] > 0.5).all()
    assert (whole["null_high"] < 0.2).all()
    figures = draw_reconstruction(table)
    assert list(figures) == ["depth-pixel_r2", "places-pixel_r2", "examples-small"]


def test_a_table_read_again_draws_the_same(tmp_path: Path):
    table = probekit.reconstruct(small_backbone(), pictures(), taps=["3"], store=tmp_path, **QUICK)
    table.write(tmp_path / "table")
    again = draw_reconstruction(ResultTable.read(tmp_path / "table"))
    found = np.asarray(again["places-pixel_r2"].axes[0].images[0].get_array())
    (key,) = [name for name in table.attachments if name.startswith("maps/") and "pixel_r2" in name]
    np.testing.assert_array_equal(found, table.attachments[key])
    picture = np.asarray(again["examples-small"].axes[0].images[0].get_array())
    assert picture.shape == (8, 8, 3)


def test_foreground_comes_from_the_test_images_or_from_others(tmp_path: Path):
    own = probekit.reconstruct(small_backbone(), pictures(boxes=True), taps=["3"], store=tmp_path, **QUICK)
    rows = own.where(metric="foreground_error").frame
    assert rows["n"].tolist() == [40]
    apart = probekit.reconstruct(
        small_backbone(), pictures(), taps=["3"], store=tmp_path,
        regions=pictures(30, boxes=True, roles="test"), **(QUICK | {"random": 1}),
    )  # fmt: skip
    rows = apart.where(metric="background_ratio").frame
    # The control reads them with the statistics of the images that its map was fitted on.
    assert rows["n"].tolist() == [30, 30]
    assert rows["value"].notna().all()
    assert apart.provenance["settings"]["regions"]
    with pytest.raises(InputError, match="masks or boxes"):
        probekit.reconstruct(small_backbone(), pictures(), regions=pictures(), store=tmp_path, **QUICK)


def test_images_that_are_not_divided_are_held_out_at_random(tmp_path: Path):
    for role in ("train", "test"):
        table = probekit.reconstruct(
            small_backbone(), pictures(roles=role), taps=["3"], store=tmp_path, **QUICK
        )
        assert table.where(target="all", metric="pixel_r2").frame["n"].tolist() == [32]
    roles = decoding._divide(pictures(roles="test"), 0)
    every = np.concatenate([roles.train, roles.val, roles.test])
    assert sorted(every) == list(range(160))


def test_models_that_take_other_pixels_are_refused(tmp_path: Path):
    other = Backbone.from_module(small_net(1), name="other", preprocessing=Preprocessing(10, 12))
    with pytest.raises(InputError, match="take the same pixels"):
        probekit.reconstruct([small_backbone(), other], pictures(), taps=["3"], store=tmp_path, **QUICK)


def test_taps_without_places_are_refused(tmp_path: Path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(12 * 12 * 3, 4))
    flat = Backbone.from_module(module, name="flat", preprocessing=Preprocessing(12, 12))
    with pytest.raises(InputError, match="taps with places"):
        probekit.reconstruct(flat, pictures(), taps=["1"], store=tmp_path, **QUICK)


def test_finished_cells_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    original = decoding._measure

    def counted(method, network, features, **rest):
        calls.append(features.tap)
        return original(method, network, features, **rest)

    monkeypatch.setattr(decoding, "_measure", counted)
    one = probekit.reconstruct(small_backbone(), pictures(), taps=["3"], store=tmp_path, **QUICK)
    two = probekit.reconstruct(small_backbone(), pictures(), taps=["3"], store=tmp_path, **QUICK)
    assert calls == ["3|grid(4)"]
    assert one.frame.equals(two.frame)


@pytest.mark.slow
def test_a_decoder_has_the_rows_of_the_linear_map_and_those_of_made_images(tmp_path: Path):
    judge = Backbone.from_module(small_net(7), name="judge", preprocessing=Preprocessing(12, 12))
    table = probekit.reconstruct(
        small_backbone(), pictures(boxes=True), taps=["3"], store=tmp_path, perceptual=judge, **DECODER
    )
    frame = table.frame
    assert set(frame["status"]) == {"ok"}
    assert not frame.duplicated(["model", "tap", "metric", "target"]).any()
    linear = probekit.reconstruct(
        small_backbone(), pictures(boxes=True), taps=["3"], store=tmp_path, **QUICK
    ).frame
    rows = set(zip(frame["metric"], frame["target"], strict=True))
    assert set(zip(linear["metric"], linear["target"], strict=True)) < rows
    assert {"psnr", "ssim", "gradient_deviation", "image_r2", "perceptual_distance"} < set(frame["metric"])
    assert frame.set_index("target").loc["mean", "value"] > 0.5
    params = json.loads(frame.loc[0, "params"])
    assert params["ceiling"] > 0.5
    assert params["grid"] == 4
    assert table.provenance["settings"]["perceptual"]["name"] == "judge"
    figures = draw_reconstruction(table)
    picture = np.asarray(figures["examples-small"].axes[0].images[0].get_array())
    assert picture.shape == (32, 32, 3)
    found = np.asarray(figures["places-pixel_r2"].axes[0].images[0].get_array())
    assert found.shape == (32, 32)
    table.write(tmp_path / "table")
    assert ResultTable.read(tmp_path / "table").frame.equals(frame)


def test_methods_that_cannot_be_are_refused_before_an_image_is_read(tmp_path: Path):
    given = {"taps": ["3"], "store": tmp_path}
    with pytest.raises(InputError, match="linear, decoder"):
        probekit.reconstruct(small_backbone(), pictures(), **given, **(QUICK | {"method": "decode"}))
    with pytest.raises(InputError, match="makes images"):
        probekit.reconstruct(
            small_backbone(), pictures(), perceptual="cifar_resnet20:random@0", **given, **QUICK
        )
    with pytest.raises(InputError, match="none of those under study"):
        probekit.reconstruct(small_backbone(), pictures(), perceptual=small_backbone(), **given, **DECODER)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_cells_of_other_methods_budgets_and_judges_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    original = decoding._measure

    def counted(method, network, features, **rest):
        calls.append((method, rest["settings"].facts().get("budget", {}).get("steps"), network is not None))
        return original(method, network, features, **rest)

    monkeypatch.setattr(decoding, "_measure", counted)
    judge = Backbone.from_module(small_net(7), name="judge", preprocessing=Preprocessing(12, 12))
    short = DECODER | {"steps": 1}
    asked = [QUICK, short, short | {"steps": 2}, short | {"perceptual": judge}]
    for settings in [*asked, *asked]:
        probekit.reconstruct(small_backbone(), pictures(), taps=["3"], store=tmp_path, **settings)
    assert calls == [
        ("linear", None, False), ("decoder", 1, False), ("decoder", 2, False), ("decoder", 1, True)
    ]  # fmt: skip
