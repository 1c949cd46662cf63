"""The verbs: whole is plain finetuning, nothing kept is scratch, a planted block is found, runs go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import probekit
from probekit import (
    Backbone,
    ImageSet,
    Preprocessing,
    ResultTable,
    load_backbone,
    open_images,
    reset_curves,
    transfer,
)
from probekit.cli.main import app
from probekit.errors import DataError, InputError
from probekit.figures import draw_transfer
from probekit.finetuning import cell as cell_module
from probekit.finetuning import cells
from probekit.finetuning.cell import Data, Finetuning, Trained, batch_rows, finetune
from probekit.finetuning.curves import Point, group_blocks, put_in_state
from probekit.functional import CrossMoments, debiased_cka
from probekit.tasks.choosing import find_task
from probekit.tasks.task import Score
from probekit.training.optimisers import Optimisation

WORDS = "resnet10_w16:random@5"
DATA = "shapeworld/source,train=60,test=30,classes=3"
QUICK = {"trials": 2, "steps": 4, "batch_size": 8, "lr": [1e-3], "warmup": 0.0}


def state_rows(table: ResultTable, **params: object) -> pd.DataFrame:
    """Return the rows of single trainings whose params equal what is given."""
    frame = table.frame[table.frame["trial_seed"].notna()]
    told = [json.loads(one) for one in frame["params"]]
    return frame[[all(one[key] == value for key, value in params.items()) for one in told]]


def plain(backbone: Backbone, seed: int = 0, tuned: bool = True) -> float:
    """Finetune without the verb, and return the accuracy on test."""
    images = open_images(DATA)
    data = Data.open(images, find_task("classification", images), backbone.preprocessing)
    one = Finetuning(Optimisation(4, 1e-3, "adamw", 0.05), tuned, "train", 8, seed)
    return finetune(backbone, data, one).test["accuracy"].value


def test_the_whole_is_plain_finetuning_and_nothing_kept_is_scratch(tmp_path: Path):
    table = transfer(WORDS, DATA, store=tmp_path, **QUICK)
    backbone = load_backbone(WORDS)
    whole = state_rows(table, mode="").query("metric == 'accuracy'")
    assert whole["value"].tolist() == [plain(backbone, seed) for seed in (0, 1)]
    scratch = state_rows(table, mode="random", kept=[]).query("metric == 'accuracy'")
    images = open_images(DATA)
    data = Data.open(images, find_task("classification", images), backbone.preprocessing)
    groups = group_blocks(backbone, "level")
    drawn = [put_in_state(backbone, groups, Point((), "random"), seed, "reset", data) for seed in (0, 1)]
    assert scratch["value"].tolist() == [plain(one, seed) for seed, one in enumerate(drawn)]
    assert drawn[0].weights != drawn[1].weights != backbone.weights
    assert backbone.weights == load_backbone(WORDS).weights


@pytest.mark.parametrize("tuned", [True, False])
def test_two_trainings_are_equal_bit_for_bit_and_leave_the_backbone(tuned):
    images = open_images(DATA)
    backbone = load_backbone(WORDS)
    before = backbone.weights
    data = Data.open(images, find_task("classification", images), backbone.preprocessing)
    one = Finetuning(Optimisation(4, 1e-3, "adamw", 0.05), tuned, "train", 8, 0)
    first, again = (finetune(backbone, data, one).learner for _ in range(2))
    assert first is not None
    assert again is not None
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert backbone.weights == before


class Gate(nn.Module):
    """Adds the code of the image's class to the last four channels, as far as its only weight lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        """Draw it anew: closed."""
        nn.init.zeros_(self.share)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, 7, H, W) to the same."""
        code = (x[:, 0, 0, 0] * 255).round().long() % 4
        known = nn.functional.one_hot(code, 4).float()[:, :, None, None]
        return torch.cat([x[:, :3], x[:, 3:] + self.share * known], dim=1)


class Gated(nn.Module):
    """Three gates, of which one is open, over an image and noise of its own."""

    def __init__(self, opened: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(Gate() for _ in range(3))
        nn.init.ones_(self.gates[opened].share)
        self.last = nn.AvgPool2d(2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (N, 7, H / 2, W / 2)."""
        x = torch.cat([image, torch.sin(1e3 * image), torch.sin(1e4 * image[:, :1])], dim=1)
        for gate in self.gates:
            x = gate(x)
        return self.last(x)


def coded(count: int = 200) -> ImageSet:
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    splits = np.where(np.arange(count) < count * 3 // 4, "train", "test")
    return ImageSet.from_arrays("coded", pixels, pixels[:, 0, 0, 0] % 4, splits)


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_the_curve_of_a_planted_backbone_finds_its_block(opened, tmp_path: Path):
    backbone = Backbone.from_module(
        Gated(opened), preprocessing=Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        blocks=[f"gates.{k}" for k in range(3)] + ["last"],
    )  # fmt: skip
    table = reset_curves(
        backbone, coded(), curves=["leave-one-out"], modes=["random"], by="block", tuned=False,
        store=tmp_path, trials=2, steps=40, batch_size=32, lr=[0.1],
    )  # fmt: skip
    fractions = table.where(metric="recovered_fraction").frame
    told = [json.loads(one) for one in fractions["params"]]
    for value, one in zip(fractions["value"], told, strict=True):
        kept = f"gates.{opened}" in one["kept"]
        assert value == pytest.approx(float(kept), abs=0.25), one["kept"]


def test_an_interrupted_run_goes_on_and_a_finished_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    real = cells.finetune

    def failing(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(cells, "finetune", failing)
    with pytest.raises(KeyboardInterrupt):
        transfer(WORDS, DATA, store=tmp_path, **QUICK)
    first = transfer(WORDS, DATA, store=tmp_path, **QUICK)
    assert len(calls) == 3 + 2
    again = transfer(WORDS, DATA, store=tmp_path, **QUICK)
    assert len(calls) == 5
    pd.testing.assert_frame_equal(first.frame, again.frame)
    assert set(first.attachments) == set(again.attachments)
    other = transfer(WORDS, DATA, store=tmp_path / "other", **QUICK)
    pd.testing.assert_frame_equal(first.frame, other.frame)


def test_a_training_that_diverges_is_recorded_and_the_rest_go_on(tmp_path: Path):
    table = transfer(WORDS, DATA, store=tmp_path, **(QUICK | {"lr": [1e30], "optimiser": "sgd", "steps": 6}))
    rows = state_rows(table, mode="")
    assert rows["value"].isna().all()
    assert rows["status"].str.contains("finite loss").all()
    gain = table.where(metric="gain").frame
    assert (gain["status"] == "no training was finished").all()


@pytest.mark.parametrize(
    ("task", "data", "best", "edge"),
    [
        ("classification", DATA, 1e-2, True),
        ("landmarks", "shapeworld/source,train=40,test=20,annotations=keypoints", 1e-3, False),
    ],
)
def test_rates_are_chosen_on_val_in_the_first_trial_and_edges_are_flagged(
    task, data, best, edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # More is better of an accuracy, less of an error.
    values = {1e-4: 0.4, 1e-3: 0.2, 1e-2: 0.6}
    seen = []

    def planted(_state: object, asked: Data, one: Finetuning, folder: Path, _keep: object) -> Trained:
        (folder / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}\n')
        seen.append((one.seed, one.optimisation.lr))
        metrics = {metric: Score(0.5, np.empty(0)) for metric in asked.task.metrics}
        return Trained(values[one.optimisation.lr], metrics)

    monkeypatch.setattr(cells, "finetune", planted)
    table = transfer(WORDS, data, task=task, store=tmp_path, **(QUICK | {"lr": list(values)}))
    told = [json.loads(one) for one in state_rows(table, mode="")["params"]]
    assert {one["lr"] for one in told} == {best}
    assert {one["lr_at_edge"] for one in told} == {edge}
    # Every rate in the first trial of both states, then the chosen one alone.
    assert sorted(seen) == sorted([(0, rate) for rate in values] * 2 + [(1, best)] * 2)


def test_frozen_backbones_learn_the_head_alone(tmp_path: Path):
    table = transfer(WORDS, DATA, tuned=False, store=tmp_path, **QUICK)
    whole = state_rows(table, mode="").query("metric == 'accuracy'")
    assert whole["value"].iloc[0] == plain(load_backbone(WORDS), tuned=False)
    assert json.loads(whole["params"].iloc[0])["tuned"] is False


@pytest.mark.parametrize(
    ("task", "data", "metric"),
    [
        ("landmarks", "shapeworld/source,train=40,test=20,annotations=keypoints", "normalised_error"),
        ("detection", "shapeworld/scenes,train=40,test=20,annotations=boxes", "ap50"),
        ("detection/c4", "shapeworld/scenes,train=24,test=6,annotations=boxes", "ap50"),
        ("segmentation", "shapeworld/source,train=40,test=20,annotations=masks", "mean_iou"),
        ("segmentation/one-layer", "shapeworld/source,train=40,test=20,annotations=masks", "mean_iou"),
        ("segmentation/deeplabv3", "shapeworld/source,train=20,test=6,annotations=masks", "mean_iou"),
    ],
)
@pytest.mark.parametrize("tuned", [True, False])
def test_tasks_with_places_are_learnt(task, data, metric, tuned, tmp_path: Path):
    table = transfer(
        WORDS if task != "segmentation/deeplabv3" else f"{WORDS},size=96",
        data,
        task=task,
        tuned=tuned,
        store=tmp_path,
        **(QUICK | {"trials": 1, "steps": 2}),
    )
    rows = table.where(metric=metric).frame
    assert len(rows) == 2
    assert rows["value"].notna().all()
    assert rows["null"].notna().all()


def few_shot_rows(tmp_path: Path, **settings: object) -> ResultTable:
    data = "shapeworld/source,train=240,test=500,val=240"
    return reset_curves(
        WORDS,
        data,
        curves=["prefix"],
        modes=["random"],
        store=tmp_path,
        **(QUICK | {"lr": [1e-3, 3e-3]} | settings),
    )


@pytest.mark.slow
def test_episodes_of_a_frozen_backbone_train_nothing_and_follow_resets(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cell_module, "train", lambda *_, **__: pytest.fail("nothing is to be trained"))
    table = few_shot_rows(tmp_path, task="episodes", tuned=False)
    rows = state_rows(table).query("metric == 'five_shot_accuracy'")
    whole = rows[[json.loads(one)["mode"] == "" for one in rows["params"]]]
    assert whole["value"].nunique() == 1
    assert (whole["null"] == 0.2).all()
    assert set(whole["ci_kind"]) == {"jackknife,classes"}
    assert (whole["ci_low"] < whole["value"]).all()
    assert {json.loads(one)["lr"] for one in rows["params"]} == {None}
    assert {json.loads(one)["steps"] for one in rows["params"]} == {0}
    # Every state says something of its own: whole, scratch, low kept, low and mid kept.
    first = rows[rows["trial_seed"] == 0]
    assert first["value"].nunique() == 4
    assert set(draw_transfer(table)) == {"reset"}
    assert few_shot_rows(tmp_path, task="episodes", tuned=False).frame["value"].equals(table.frame["value"])


def test_episodes_of_a_frozen_backbone_are_those_of_its_features(tmp_path: Path):
    data = "shapeworld/source,train=60,test=500"
    table = transfer(WORDS, data, task="episodes", tuned=False, store=tmp_path, **QUICK)
    backbone, images = load_backbone(WORDS), open_images(data)
    test = images.split("test")
    features = probekit.extract(backbone, test, "penultimate", store=tmp_path)
    (values,) = features.values()
    task = find_task("episodes", images)
    expected = task.score(values.matrix(), test.targets["class"].values)["one_shot_accuracy"].value
    (found,) = set(state_rows(table, mode="").query("metric == 'one_shot_accuracy'")["value"])
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_episodes_of_a_tuned_backbone_are_of_classes_it_was_not_trained_on(tmp_path: Path):
    data = "shapeworld/source,train=240,test=500,val=240"
    with pytest.raises(InputError, match="classes that are not trained on"):
        transfer(WORDS, data, task="episodes", store=tmp_path, **QUICK)
    table = transfer(WORDS, data, task="episodes/novel", store=tmp_path, **QUICK)
    rows = state_rows(table).query("metric == 'five_shot_accuracy'")
    assert rows["value"].notna().all()
    assert set(rows["n"]) == {250}
    assert {json.loads(one)["n_train"] for one in rows["params"]} == {120}
    assert set(draw_transfer(table)) == {"reset", "learning"}


def test_a_share_of_the_training_images_keeps_every_class():
    images = open_images("shapeworld/source,train=200,test=30")
    task = find_task("classification", images)
    data = Data.open(images, task, load_backbone(WORDS).preprocessing, 0.3)
    assert len(data.train) < 0.4 * 200
    assert set(data.train.truth) == set(range(20))
    assert not set(data.train.rows) & set(data.val.rows)


def test_an_epoch_visits_every_image_at_most_once():
    rows = np.concatenate([batch_rows(50, 8, step, seed=1) for step in range(6)])
    assert len(set(rows)) == 48
    assert not np.array_equal(rows[:8], batch_rows(50, 8, 6, seed=1))
    assert len(batch_rows(5, 8, 0, 0)) == 5


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"task": "landmarks"}, "kind keypoints"),
        ({"trials": 0}, "trials of at least 1"),
        ({"steps": 0}, "steps of at least 1"),
        ({"lr": []}, "at least one learning rate"),
        ({"fraction": 0.0}, "fraction of the training images"),
        ({"optimiser": "lion"}, "an optimiser among"),
        ({"target": "colour"}, "kind class for classification"),
        ({"task": "episodes", "tuned": False}, "at least 5 classes in test"),
        ({"task": "detection/c5"}, "a task among"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_trained(settings, part, tmp_path: Path):
    with pytest.raises((InputError, DataError), match=part):
        transfer(WORDS, DATA, store=tmp_path, **(QUICK | settings))
    assert not (tmp_path / "finetuning").exists()


def test_maps_too_small_for_a_head_are_refused_before_anything_is_trained(tmp_path: Path):
    masks = "shapeworld/source,train=60,test=30,annotations=masks"
    with pytest.raises(InputError, match="6 × 6 positions for DeepLabv3"):
        transfer(WORDS, masks, task="segmentation/deeplabv3", store=tmp_path, **QUICK)
    assert not (tmp_path / "finetuning").exists()


def test_unknown_curves_modes_and_grains_are_refused(tmp_path: Path):
    for settings, part in (
        ({"curves": ["first"]}, "a curve among"),
        ({"modes": ["zero"]}, "a mode among"),
        ({"by": "layer"}, "by level, stage or block"),
    ):
        with pytest.raises(InputError, match=part):
            reset_curves(WORDS, DATA, store=tmp_path, **(QUICK | settings))
    images = open_images(DATA)
    with pytest.raises(DataError, match="test images"):
        transfer(WORDS, images.select(images.indices("train")), store=tmp_path, **QUICK)


def test_the_command_leaves_tables_figures_and_a_page(tmp_path: Path):
    asked = [
        "reset",
        "-m",
        WORDS,
        "-d",
        DATA,
        "--smoke",
        "-o",
        str(tmp_path / "out"),
        "--store",
        str(tmp_path),
    ]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    table = ResultTable.read(tmp_path / "out" / "tables" / "reset")
    assert {"accuracy", "gain", "recovered_fraction", "high_level_share"} <= set(table.metrics)
    assert (tmp_path / "out" / "index.html").exists()
    figures = draw_transfer(table)
    assert set(figures) == {"reset", "learning"}
    lines = [line.get_label() for axes in figures["reset"].axes for line in axes.get_lines()]
    assert lines
    assert probekit.ResultTable is ResultTable


def test_rows_in_their_span_have_the_same_cka():
    stream = np.random.default_rng(0)
    x, noise = stream.normal(2, 1, (20, 60)), stream.normal(size=(20, 60))
    y = x + noise

    def alike(one: np.ndarray, other: np.ndarray) -> float:
        sides = CrossMoments.of(one, one), CrossMoments.of(other, other)
        return float(debiased_cka(CrossMoments.of(one, other), *sides))

    short = cell_module.in_span(x), cell_module.in_span(y)
    assert short[0].shape == (20, 20)
    assert alike(*short) == pytest.approx(alike(x, y), abs=1e-9)
    np.testing.assert_array_equal(cell_module.in_span(x.T), x.T)


def test_a_backbone_that_falls_to_chance_in_training_mode_is_refused(tmp_path: Path):
    backbone, data = load_backbone(WORDS), "shapeworld/source,train=240,test=30,classes=3"
    transfer(backbone, data, store=tmp_path, **QUICK)
    module = load_backbone(WORDS).module
    # Statistics so wrong that nothing of the image is left of float32.
    for one in module.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.running_mean.fill_(1e12)
            one.running_var.fill_(1e24)
    lost = Backbone.from_module(module, preprocessing=backbone.preprocessing, name="lost")
    with pytest.raises(InputError, match="lost to say in training what it says in use"):
        transfer(lost, data, store=tmp_path, **QUICK)
    transfer(lost, data, store=tmp_path, batch_norm="frozen", **QUICK)
