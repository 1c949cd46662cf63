"""The verb: one table of models, data, taps and scores; controls, baselines, refusals, figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
from scipy.stats import spearmanr
from torch import nn

import probekit
from probekit import Backbone, ImageSet, Preprocessing, ResultTable
from probekit.attribution import sweep
from probekit.attribution.cascading import _other_images, likeness, spearman
from probekit.attribution.maps import enlarge
from probekit.attribution.marked import METRICS
from probekit.data.targets import Target
from probekit.errors import DataError, InputError
from probekit.figures import draw_attribution
from probekit.functional import energy_inside, pointing_game
from probekit.probes.protocol import Protocol
from tests.attribution.spots import PIXELS, QUICK, SIDE, seeing, several, spots
from tests.data.test_regions import masked
from tests.features.conftest import images as plain_images


def test_rows_say_what_they_are_and_scores_of_images_make_their_means(tmp_path: Path):
    table = probekit.attribute(
        seeing(2), spots(), taps=["blocks.2"], store=tmp_path, **(QUICK | {"random": 1})
    )
    frame = table.frame
    assert set(frame["analysis"]) == {"attribute"}
    assert frame["metric"].tolist() == list(METRICS) * 2
    assert set(frame["model"]) == {"seeing", "random@0"}
    assert set(frame["n"]) == {60}
    assert set(frame["split"]) == {"test"}
    params = json.loads(frame.loc[0, "params"])
    assert params["accuracy"] > 0.95
    assert params["map"] == [SIDE, SIDE]
    assert params["pairs"] == 60
    assert params["classes"] == 3
    assert set(params["baselines"]) == {"uniform", "centred Gaussian"}
    area = 16 / 144
    assert params["baselines"]["uniform"] == pytest.approx(area)
    gain, low, high = params["above"]["uniform"]
    assert gain == pytest.approx(frame.loc[0, "value"] - area)
    # All things are of one size here: the difference moves as the mean does.
    assert (low, high) == pytest.approx((frame.loc[0, "ci_low"] - area, frame.loc[0, "ci_high"] - area))
    scores = table.scores("seeing", "blocks.2|gap", "class")
    assert len(scores) == 60
    for metric in METRICS:
        row = table.where(metric=metric, model="seeing").frame.iloc[0]
        assert row["value"] == pytest.approx(scores[metric].mean())
        assert row["ci_low"] <= row["value"] <= row["ci_high"]
        assert row["null_kind"] == "permuted,3"
        assert row["ci_kind"] == "bootstrap,test images"
    assert table.best("energy_inside").frame["tap"].unique().tolist() == ["blocks.2|gap"]


def test_a_second_way_to_the_same_numbers(tmp_path: Path):
    """Maps from the public function and the attached probe, scored one image at a time."""
    data, backbone = spots(), seeing(0)
    table = probekit.attribute(backbone, data, taps=["blocks.1"], store=tmp_path, **QUICK)
    probe = table.probe("seeing", "blocks.1|gap", "class")
    test = data.split("test")
    maps = probekit.probe_cam(backbone, test, probe)
    scores = table.scores("seeing", "blocks.1|gap", "class").set_index("id")
    for i, name in enumerate(test.ids):
        x0, y0, x1, y1 = test.targets["boxes"].values[i].corners[0].astype(int)
        inside = np.zeros((1, SIDE, SIDE))
        inside[0, y0:y1, x0:x1] = 1
        own = maps[i, test.targets["class"].values[i]][None]
        assert scores.loc[name, "energy_inside"] == pytest.approx(energy_inside(own, inside)[0], rel=1e-4)
        assert scores.loc[name, "pointing_game"] == pointing_game(own, inside)[0]


def test_labels_are_each_scored_with_boxes_of_their_own(tmp_path: Path):
    table = probekit.attribute(seeing(0), several(), taps=["blocks.1"], store=tmp_path, **QUICK)
    rows = table.frame.set_index("metric")
    assert set(rows["target"]) == {"present"}
    params = json.loads(rows.loc["energy_inside", "params"])
    assert params["mean_ap"] > 0.95
    assert params["pairs"] > rows.loc["energy_inside", "n"]
    assert rows.loc["pointing_game", "value"] > 0.9
    # Spots of other colours lie outside: a map that shows all of them alike would hit one of three.
    assert rows.loc["energy_inside", "value"] > 0.6


def test_methods_by_gradients_make_maps_for_each_label(tmp_path: Path):
    table = probekit.attribute(
        seeing(0), several(60), taps=["blocks.1"], method="saliency", store=tmp_path,
        **(QUICK | {"permutations": 1}),
    )  # fmt: skip
    params = json.loads(table.frame.loc[0, "params"])
    assert params["method"] == "saliency"
    assert params["map"] == [SIDE, SIDE]
    assert table.frame["value"].notna().all()


def test_the_exact_method_is_that_of_attribute_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from probekit.attribution import maps

    settings = {"taps": ["blocks.1"], **QUICK}
    one = probekit.attribute(seeing(0), several(60), store=tmp_path / "one", **settings)
    monkeypatch.setattr(
        maps, "_decomposed",
        lambda backbone, marked, probes, _: np.stack(
            [maps._explained(backbone, marked, probe, "probe_cam", 0) for probe in probes]
        ),
    )  # fmt: skip
    other = probekit.attribute(seeing(0), several(60), store=tmp_path / "other", **settings)
    np.testing.assert_allclose(one.frame["value"], other.frame["value"], rtol=1e-6)
    np.testing.assert_allclose(one.frame["null"], other.frame["null"], rtol=1e-6)


def test_tokens_are_read_by_their_mean_over_patches(tmp_path: Path):
    module = timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=0, depth=3)
    backbone = Backbone.from_module(module, name="vit", preprocessing=Preprocessing(48, 48))
    table = probekit.attribute(backbone, spots(60), taps=["blocks.1"], store=tmp_path, **QUICK)
    assert set(table.frame["tap"]) == {"blocks.1|patch_mean"}
    assert json.loads(table.frame.loc[0, "params"])["map"] == [3, 3]


@pytest.mark.slow
def test_a_table_read_again_draws_the_same(tmp_path: Path):
    table = probekit.attribute(
        Backbone.from_module(
            timm.create_model("resnet10t", pretrained=False, num_classes=0), name="net",
            preprocessing=Preprocessing(48, 48),
        ),
        spots(60), store=tmp_path, cascade=True, **QUICK,
    )  # fmt: skip
    names = [f"depth-{metric}" for metric in METRICS]
    figures = draw_attribution(table)
    assert list(figures) == [*names, "overlays-net", "cascade-spearman", "cascade-ssim"]
    table.write(tmp_path / "table")
    again = draw_attribution(ResultTable.read(tmp_path / "table"))
    assert list(again) == list(figures)
    # An image and three maps a line, five lines.
    assert len(again["overlays-net"].axes) == 20
    labels = [one.get_text() for one in figures["depth-energy_inside"].legends[0].get_texts()]
    assert labels == ["net", "null", "centred Gaussian", "uniform"]
    (key,) = [name for name in table.attachments if name.startswith("maps/") and "layer4" in name]
    shown = table.attachments[key]
    assert shown["images"].shape == (*shown["inside"].shape, 3) == (5, 48, 48, 3)
    assert shown["images"].dtype == shown["inside"].dtype == np.uint8


@pytest.mark.slow
def test_resets_above_the_tap_are_not_rows_and_those_below_are(tmp_path: Path):
    backbone = Backbone.from_module(
        timm.create_model("resnet10t", pretrained=False, num_classes=0), name="net",
        preprocessing=Preprocessing(64, 64),
    )  # fmt: skip
    table = probekit.attribute(
        backbone, spots(60), taps=["layer2.0"], store=tmp_path, cascade=True, **(QUICK | {"random": 1})
    )
    rows = table.where(metric="cascade_spearman").frame
    assert set(rows["model"]) == {"net"}
    params = [json.loads(text) for text in rows["params"]]
    assert [one["reset"] for one in params] == ["layer2.0", "layer1.0", "maxpool"]
    assert [one["reset_depth"] for one in params] == [0.5, 0.25, 0.0]
    # Of new pairings: the mean over B of them, none of which is the pairing itself.
    assert set(rows["null_kind"]) == {"permuted,3"}
    assert (rows["null_low"] < rows["null_high"]).all()
    assert (rows["null"] != rows["value"]).all()
    assert (rows["value"] < 1).all()


def test_no_image_is_paired_with_itself():
    partners = _other_images(7, Protocol(permutations=20))
    assert partners.shape == (20, 7)
    assert (np.sort(partners, axis=1) == np.arange(7)).all()
    assert (partners != np.arange(7)).all()
    assert _other_images(1, Protocol()).shape == (0, 1)


def test_likeness_of_maps_has_its_closed_forms():
    random = np.random.default_rng(0)
    one = random.normal(size=(4, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(spearman(one, np.exp(one)), 1)
    np.testing.assert_allclose(likeness(one, 3 * one + 2), 1, atol=1e-5)
    other = np.round(random.normal(size=(4, 6, 6)), 1).astype(np.float32)
    pairs = zip(one, other, strict=True)
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in pairs]
    np.testing.assert_allclose(spearman(one, other), expected)
    assert np.isnan(spearman(one, np.zeros_like(one))).all()


def test_maps_are_enlarged_between_centres():
    maps = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    larger = enlarge(maps, 9)
    np.testing.assert_allclose(larger[:, 1::3, 1::3], maps, atol=1e-6)
    np.testing.assert_allclose(larger[:, 0, 0], maps[:, 0, 0], atol=1e-6)
    assert enlarge(maps, 3) is maps


def test_finished_cells_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    original = sweep._measure

    def counted(features, **rest):
        calls.append(features.tap)
        return original(features, **rest)

    monkeypatch.setattr(sweep, "_measure", counted)
    one = probekit.attribute(seeing(0), spots(60), taps=["blocks.1"], store=tmp_path, **QUICK)
    two = probekit.attribute(seeing(0), spots(60), taps=["blocks.1"], store=tmp_path, **QUICK)
    assert calls == ["blocks.1|gap"]
    assert one.frame.equals(two.frame)


def test_a_dead_tap_says_so(tmp_path: Path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))
    nn.init.zeros_(module[1].weight)
    backbone = Backbone.from_module(module, name="dead", preprocessing=PIXELS)
    frame = probekit.attribute(backbone, spots(60), taps=["1"], store=tmp_path, **QUICK).frame
    assert frame["value"].isna().all()
    assert frame["status"].str.startswith("dead at initialisation").all()


def with_roles(images: ImageSet, role: str) -> ImageSet:
    return ImageSet.from_arrays(
        "roles", np.stack([np.asarray(images.image(i)) for i in range(len(images))]), dict(images.targets),
        [role] * len(images),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "part"),
    [
        ({"method": "probe_com"}, InputError, "a method among probe_cam"),
        ({"images": 0}, InputError, "at least 1 image"),
        ({"tolerance_px": -1}, InputError, "tolerance"),
        ({"target": "boxes"}, InputError, "a target of classes or labels"),
        ({"data": plain_images()}, DataError, "masks or boxes in small"),
        ({"data": with_roles(spots(30), "train")}, DataError, "split 'test' of roles"),
        ({"taps": ["blocks.1|max"]}, InputError, "a mean over places"),
    ],
)
def test_what_cannot_be_done_is_refused(changes, error, part, tmp_path: Path):
    given = {"data": spots(30), "taps": ["blocks.1"], "store": tmp_path, **QUICK, **changes}
    with pytest.raises(error, match=part):
        probekit.attribute(seeing(0), **given)


def test_a_tap_without_places_and_a_mask_of_another_size_are_refused(tmp_path: Path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    flat = Backbone.from_module(module, name="flat", preprocessing=PIXELS)
    with pytest.raises(InputError, match=r"2\|raw, a vector an image"):
        probekit.attribute(flat, spots(30), taps=["2"], store=tmp_path, **QUICK)
    n = 36
    small = masked(*[np.ones((4, SIDE), np.uint8)] * n, side=SIDE)
    targets = {
        "class": Target(np.arange(n) % 2, "class", ("cat", "dog")),
        "masks": small.targets["masks"],
    }
    images = ImageSet.from_arrays(
        "sized", np.zeros((n, SIDE, SIDE, 3), np.uint8), targets, np.where(np.arange(n) < 24, "train", "test")
    )
    with pytest.raises(DataError, match="a mask of the size of its image, 12×12"):
        probekit.attribute(seeing(0), images, taps=["blocks.1"], store=tmp_path, **QUICK)


def test_models_that_take_other_pixels_are_refused(tmp_path: Path):
    other = Backbone.from_module(seeing(0).module, name="other", preprocessing=Preprocessing(10, 12))
    with pytest.raises(InputError, match="take the same pixels"):
        probekit.attribute([seeing(0), other], spots(30), taps=["blocks.1"], store=tmp_path, **QUICK)
