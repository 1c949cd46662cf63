"""The verb: refusals before any work, what is kept, what a figure and a page say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import probekit
from probekit import Backbone, ImageSet, Plan, Preprocessing, ResultTable, open_images
from probekit.errors import DataError, InputError, TapError
from probekit.features import regions, statistics
from probekit.running import draw, execute, foresee
from tests.conftest import ROOT
from tests.data.boxed import boxed, boxes, scattered

QUICK = {"penalties": (1.0, 0.1), "permutations": 2, "bootstrap_draws": 100, "gap": 1e-3}
PIXELS = Preprocessing(32, 36)


def noisy(count: int = 30) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 40, 80, 3), dtype=np.uint8)
    return boxed(scattered(count), pixels)


def backbone(name: str = "small", seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    return Backbone.from_module(net, name=name, preprocessing=PIXELS, classifier="6", blocks=["1", "3"])


@pytest.fixture
def no_pass(monkeypatch: pytest.MonkeyPatch):
    """Fail where an image goes to a backbone."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was prepared")

    monkeypatch.setattr(regions, "prepared", refuse)
    monkeypatch.setattr(statistics, "prepared", refuse)


@pytest.mark.usefixtures("no_pass")
def test_what_cannot_be_asked_is_refused_before_any_work(tmp_path: Path):
    def ask(data: ImageSet, **settings: object) -> None:
        probekit.probe_boxes(backbone(), data, **{"random": 1, "store": tmp_path, **QUICK, **settings})

    images = noisy()
    with pytest.raises(TapError, match="a tap with positions"):
        ask(images, taps="penultimate")
    with pytest.raises(InputError, match="taps without a readout"):
        ask(images, taps="1|gap")
    with pytest.raises(InputError, match="questions among what, where, offset; got 'whose'"):
        ask(images, questions="whose")
    with pytest.raises(InputError, match="questions among"):
        ask(images, questions=[])
    with pytest.raises(InputError, match=r"boxes of boxed; got 'bxes'\. The nearest are boxes"):
        ask(images, target="bxes")
    with pytest.raises(InputError, match="grid of at least 1"):
        ask(images, grid=0)
    classes = ImageSet.from_arrays("plain", np.zeros((4, 8, 8, 3), np.uint8), ["a", "b"] * 2)
    with pytest.raises(InputError, match=r"boxes in plain; got class \(class\)"):
        ask(classes)
    empty = boxed([*scattered(20), *[boxes()] * 10])
    with pytest.raises(DataError, match="boxes in the split 'test' of boxed"):
        ask(empty)
    alone = boxed([boxes((5, 5, 30, 30))] * 9)
    with pytest.raises(DataError, match=r"at least two classes in boxes of boxed; got a alone\. Leave"):
        ask(alone)


def test_one_class_can_still_be_asked_where(tmp_path: Path):
    data = boxed(
        [boxes((5, 5, 30, 30))] * 9, np.random.default_rng(0).integers(0, 256, (9, 40, 80, 3), np.uint8)
    )
    table = probekit.probe_boxes(
        backbone(), data, questions=["where", "offset"], random=0, store=tmp_path, **QUICK
    )
    assert set(table.frame["metric"]) == {"where_accuracy", "offset_r2", "offset_component_r2"}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ResultTable:
    store = tmp_path_factory.mktemp("store")
    models = [backbone("one"), backbone("two", 1)]
    return probekit.probe_boxes(models, noisy(), taps="blocks", random=2, store=store, **QUICK)


def test_every_model_and_control_has_its_rows(table: ResultTable):
    frame = table.frame
    assert table.models == ["one", "two", "random@0", "random@1"]
    assert table.controls == ["random@0", "random@1"]
    assert frame.groupby("model").size().unique().tolist() == [2 * (2 + 1 + 1 + 4)]
    assert set(frame["tap"]) == {"1|roi(3)", "3|roi(3)"}
    assert set(frame["status"]) == {"ok"}
    for column in ("value", "ci_low", "ci_high", "null", "n", "d", "depth"):
        assert frame[column].notna().all(), column
    assert ((frame["ci_low"] <= frame["value"]) & (frame["value"] <= frame["ci_high"])).all()
    assert set(frame["d"]) == {4 * 9, 6 * 9}
    said = table.provenance["boxes"]["boxed"]
    assert said["images"] == 30
    assert said["crowd"] == 0
    assert table.provenance["models"]["one"]["preprocessing"]["resize"] == 32


def test_the_figures_draw_the_table(table: ResultTable):
    figures = draw({"boxes": table})
    assert list(figures) == [
        "what-where", "depth-what_accuracy", "depth-where_accuracy", "depth-offset_r2",
        "depth-what_balanced_accuracy",
    ]  # fmt: skip
    panels = figures["what-where"].axes
    assert [axes.get_title(loc="left") for axes in panels] == ["one", "two"]


def test_a_repeat_runs_no_backbone_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run() -> ResultTable:
        return probekit.probe_boxes(backbone(), noisy(), taps="blocks", random=0, store=tmp_path, **QUICK)

    first = run()
    monkeypatch.setattr("probekit.features.regions.prepared", None)
    monkeypatch.setattr("probekit.probes.questions.fit_classes", None)
    assert run().frame.equals(first.frame)


@pytest.mark.slow
def test_two_data_sets_and_a_page(tmp_path: Path):
    spec = "shapeworld/scenes,train=40,test=20,annotations=boxes"
    settings = {
        "models": ["ce=resnet10_w16:bundled@ce"],
        "data": [spec, f"{spec},name=again"],
        "taps": ["layer2.0"],
        "random": 0,
        "boxes": 40,
        **QUICK,
        "penalties": [1.0, 0.1],
    }
    tables = execute(Plan("boxes", settings), tmp_path / "out", store=tmp_path / "store")
    frame = tables["boxes"].frame
    same = [frame[frame["data"] == name]["value"].tolist() for name in frame["data"].unique()]
    assert len(same) == 2
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    for words in (
        "Accuracy of what",
        "R² of box offsets",
        "bootstrap over whole images",
        "where does it end?",
    ):
        assert words in page, words
    assert "fitting regions per feature" in page
    assert sorted(path.stem for path in (tmp_path / "out" / "figures").glob("*what-where.svg"))


def test_a_dry_run_foresees_the_features_that_are_kept(tmp_path: Path):
    spec = "shapeworld/scenes,train=20,test=10,annotations=boxes"
    settings = {"models": ["ce=resnet10_w16:bundled@ce"], "data": [spec], "taps": ["layer1.0"], "random": 0}
    (row,) = foresee(Plan("boxes", settings)).to_dict("records")
    count = sum(len(one) for one in open_images(spec).targets["boxes"].values)
    assert row["regions"] == 6 * count
    probekit.probe_boxes(**settings, store=tmp_path, **QUICK, questions="where")
    (kept,) = tmp_path.rglob("regions/*/*.npy")
    assert row["size_bytes"] == np.load(kept).nbytes


@pytest.mark.weights
@pytest.mark.slow
def test_blood_cells_are_told_apart(tmp_path: Path):
    place = ROOT / "data" / "bccd" / "bccd_voc.zip"
    if not place.is_file():
        pytest.skip("data/bccd/bccd_voc.zip is not here")
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", pretrained=False)
    one = Backbone.from_module(net, name="untrained", preprocessing=Preprocessing(96, 96))
    table = probekit.probe_boxes(
        one, str(place), taps="layer1", boxes=400, questions="what", random=0, store=tmp_path, **QUICK
    )
    row = table.frame[table.frame["metric"] == "what_balanced_accuracy"].iloc[0]
    # Three kinds of cells differ in colour and size: random filters tell them apart.
    assert row["ci_low"] > row["null_high"]
