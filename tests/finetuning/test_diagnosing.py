"""The verb diagnose: answers kept, rows of states and trainings, folds never pooled, files, figures."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from typer.testing import CliRunner

from probekit import ImageSet, ResultTable, diagnose, load_backbone, open_images, transfer
from probekit.cli.main import app
from probekit.data.annotations import Boxes
from probekit.data.targets import Target
from probekit.errors import DataError, InputError
from probekit.figures import draw_diagnosis
from probekit.finetuning import cells, diagnosed
from probekit.finetuning.cell import Data, Finetuning, Trained
from probekit.finetuning.folds import fold_images
from probekit.functional.intervals import t_interval
from probekit.results.metrics import METRICS as KNOWN
from probekit.tasks import diagnosis
from probekit.tasks.detection import as_detections, as_truth, coco_scores
from probekit.tasks.diagnosis import COSTS, METRICS, SHARES

WORDS = "resnet10_w16:random@5"
DATA = "shapeworld/scenes,train=60,test=20,annotations=boxes"
QUICK: dict[str, Any] = {"trials": 2, "steps": 2, "batch_size": 8, "lr": [1e-3], "warmup": 0.0}


def summaries(table: ResultTable, metric: str, mode: str = "") -> list[dict[str, Any]]:
    """Return the rows of a metric that stand for a whole state."""
    frame = table.frame[(table.frame["metric"] == metric) & table.frame["trial_seed"].isna()]
    return [row for row in frame.to_dict("records") if json.loads(row["params"])["mode"] == mode]


def _never(*_: object, **__: object) -> None:
    raise AssertionError("judged again")


def test_answers_are_kept_in_test_order_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = QUICK | {"trials": 1}
    told = transfer(WORDS, DATA, task="detection", store=tmp_path, **settings)
    places = sorted((tmp_path / "finetuning").glob("*/answers.npz"))
    assert len(places) == 2
    images = open_images(DATA)
    with np.load(places[0]) as kept:
        assert kept["ids"].tolist() == images.ids[images.indices("test")].tolist()
        answers = kept["answers"]
    # What is kept scores as the training did.
    data = load_backbone(WORDS).preprocessing
    from probekit.tasks.choosing import find_task

    truth = find_task("detection", images).truth(images.split("test"), data)
    found = coco_scores(as_detections(answers), as_truth(truth), 20, 20)
    assert found["ap50"] == json.loads((places[0].parent / "result.json").read_text())["test"]["ap50"]
    # The verb trains nothing anew, and says what transfer said.
    monkeypatch.setattr(cells, "finetune", None)
    table = diagnose(WORDS, DATA, store=tmp_path, permutations=1, **settings)
    for metric in ("ap", "ap50", "ap75"):
        said, before = (one.where(metric=metric).frame["value"].tolist() for one in (table, told))
        assert said[:2] == before
    assert set(table.metrics) == set(METRICS) <= set(KNOWN)
    # Nor is anything judged twice: what was found stands in the store, bit for bit.
    monkeypatch.setattr(diagnosed, "measure_errors", _never)
    again = diagnose(WORDS, DATA, store=tmp_path, permutations=1, **settings)
    pd.testing.assert_frame_equal(again.frame.drop(columns="run_id"), table.frame.drop(columns="run_id"))
    for name, frame in table.attachments.items():
        pd.testing.assert_frame_equal(again.attachments[name], frame)


def test_other_tasks_keep_no_answers(tmp_path: Path):
    words = "shapeworld/source,train=60,test=30,classes=3"
    transfer(WORDS, words, store=tmp_path, **(QUICK | {"trials": 1}))
    assert not list((tmp_path / "finetuning").glob("*/answers.npz"))
    assert len(list((tmp_path / "finetuning").glob("*/result.json"))) == 2


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors that move every true box: the whole backbone's less than those of scratch."""

    def train(state: Any, data: Data, one: Finetuning, folder: Path, _keep: object) -> Trained:
        (folder / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
        draws = np.random.default_rng([one.seed, int(data.test.rows[0])])
        spread = 1.0 if state.weights == WHOLE[0] else 5.0
        answers = data.test.truth.copy()
        real = answers[:, :, 4] >= 0
        moved = answers[real]
        moved[:, :4] += draws.normal(0, spread, (len(moved), 4))
        moved[:, 2:4] = np.maximum(moved[:, 2:4], moved[:, :2] + 1)
        moved[:, 5] = draws.random(len(moved))
        answers[real] = moved
        return Trained(0.5, data.task.score(answers, data.test.truth), answers)

    monkeypatch.setattr(diagnosis, "GROUPS", 4)
    WHOLE[:] = [load_backbone(WORDS).weights]
    monkeypatch.setattr(cells, "finetune", train)


WHOLE: list[str] = []


def test_states_have_means_over_trials_and_trainings_a_jackknife(tmp_path: Path, planted: None):
    table = diagnose(WORDS, DATA, store=tmp_path, permutations=2, **(QUICK | {"trials": 3}))
    assert len(table) == len(METRICS) * 2 * (1 + 3)
    # What stands for a state comes first, so that pages begin with it.
    assert table.frame["trial_seed"].isna().tolist() == sorted(table.frame["trial_seed"].isna(), reverse=True)
    (row,) = summaries(table, "error_loc")
    single = table.frame[table.frame["trial_seed"].notna() & (table.frame["metric"] == "error_loc")]
    values = single["value"].to_numpy()[:3]
    assert row["value"] == pytest.approx(values.mean())
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(t_interval(values))
    assert row["ci_kind"] == "t,trials"
    assert single["ci_kind"].unique().tolist() == ["jackknife,groups of images"]
    assert row["null"] == pytest.approx(single["null"].to_numpy()[:3].mean())
    # The noisier boxes of scratch lose more by their place.
    (scratch,) = summaries(table, "hoiem_localisation", "random")
    (whole,) = summaries(table, "hoiem_localisation")
    assert scratch["value"] > whole["value"] + 0.1
    kinds = {key.split("/")[0] for key in table.attachments}
    assert kinds == {"detections", "classes", "ious", "curves", "cells"}
    (similar,) = summaries(table, "hoiem_similar")
    assert similar["status"] == "no classes are said to be similar"


def test_one_training_stands_for_its_state(tmp_path: Path, planted: None):
    table = diagnose(WORDS, DATA, store=tmp_path, permutations=0, **(QUICK | {"trials": 1}))
    (row,) = summaries(table, "ap50")
    assert row["ci_kind"] == "jackknife,groups of images"
    assert row["value"] == table.where(metric="ap50", trial_seed=0).frame["value"].iloc[0]
    assert table.frame["null"].isna().all()


def test_folds_are_averaged_and_never_pooled(tmp_path: Path, planted: None):
    table = diagnose(WORDS, DATA, store=tmp_path, permutations=0, folds=3, **QUICK)
    frame = table.frame[(table.frame["metric"] == "ap50") & table.frame["trial_seed"].notna()]
    told = pd.DataFrame([json.loads(one) for one in frame["params"]], index=frame.index)
    own = frame.assign(fold=told["fold"])[told["mode"] == ""]
    means = own.groupby("fold")["value"].mean().to_numpy()
    assert len(own) == 3 * 2
    (row,) = summaries(table, "ap50")
    assert row["value"] == pytest.approx(means.mean())
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(t_interval(means))
    assert (row["ci_kind"], row["n"]) == ("t,folds", 3)
    # Each training is judged on the images of its fold, and on nothing else.
    images = open_images(DATA)
    for k, one in enumerate(fold_images(images, 3)):
        frame = table.attachments[f"detections/resnet10_w16/low-mid-high_whole_0-fold{k}.parquet"]
        assert set(frame["image"]) == set(one.ids[one.indices("test")])
    assert set(draw_diagnosis(table)) == {"costs", "shares", "ious"}


def test_a_failed_training_has_its_reason(tmp_path: Path):
    settings = QUICK | {"lr": [1e30], "optimiser": "sgd", "steps": 6, "trials": 1}
    table = diagnose(WORDS, DATA, store=tmp_path, permutations=0, **settings)
    assert table.frame["value"].isna().all()
    assert table.frame["status"].str.contains("finite loss").all()
    assert draw_diagnosis(table) == {}


def results(tmp_path: Path, images: ImageSet, spread: float = 2.0) -> Path:
    """Write detections near the true boxes of test images."""
    draws = np.random.default_rng(0)
    records = []
    for row in images.indices("test"):
        one = images.targets["boxes"].values[row]
        moved = one.corners + draws.normal(0, spread, (len(one), 4))
        for (x0, y0, x1, y1), label in zip(moved, one.classes, strict=True):
            records.append(
                {
                    "image_id": str(images.ids[row]),
                    "category_id": images.targets["boxes"].classes[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": draws.random(),
                }
            )
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([*records, records[0] | {"score": float("nan")}]))
    return path


def test_detections_of_a_file_are_judged_without_training(tmp_path: Path):
    images = open_images(DATA)
    table = diagnose(detections=results(tmp_path, images), data=DATA, permutations=2)
    assert table.models == table.trained == ["mine"]
    assert len(table) == len(METRICS)
    (warning,) = table.provenance["warnings"]
    assert warning.startswith("mine.json: 1 detections without a finite score, left out, such as scenes-0-")
    assert table.where(metric="ap50").frame["value"].iloc[0] > 0.8
    assert set(draw_diagnosis(table)) == {"costs", "shares", "ious"}
    assert set(table.attachments) == {
        f"{kind}/mine/all.parquet" for kind in ("detections", "classes", "ious")
    }
    # Whole boxes of the data, in their own pixels, by another library's evaluation: the numbers are COCO's.
    exact = diagnose(detections=results(tmp_path, images, 0.0), data=DATA, permutations=0)
    assert exact.where(metric="ap").frame["value"].iloc[0] == pytest.approx(1)
    assert exact.where(metric="ap").frame["weights"].iloc[0] != table.frame["weights"].iloc[0]


def test_figures_show_the_numbers_of_the_table(tmp_path: Path, planted: None):
    table = diagnose(WORDS, DATA, store=tmp_path, permutations=0, **QUICK)
    figures = draw_diagnosis(table)
    widths: dict[str, list[float]] = {}
    for one in figures["shares"].axes[0].containers:
        widths.setdefault(one.get_label(), []).extend(bar.get_width() for bar in one)
    for place, mode in enumerate(("", "random")):
        for metric in SHARES.values():
            (row,) = summaries(table, metric, mode)
            if metric != "hoiem_similar":
                assert widths[metric][place] == pytest.approx(row["value"])
    assert np.sum(list(widths.values()), axis=0) == pytest.approx([1, 1])
    for name in ("costs", "shares"):
        FigureCanvasAgg(figures[name])
        assert figures[name].legends[0].get_window_extent().x1 <= figures[name].bbox.x1
    drawn = [one.get_label() for one in figures["costs"].axes[0].containers]
    assert set(drawn) == {COSTS[kind] for kind in ("Loc", "Cls", "Dupe", "Bkg", "Both", "Miss")}
    assert figures["ious"].axes[0].get_xlabel() == "Largest IoU with an object of the class"
    total = [stairs.get_data().values.sum() for stairs in figures["ious"].axes[0].patches]
    assert total == pytest.approx([1, 1])


def test_tables_survive_their_folder(tmp_path: Path, planted: None):
    table = diagnose(WORDS, DATA, store=tmp_path, permutations=0, **QUICK)
    table.write(tmp_path / "out")
    read = ResultTable.read(tmp_path / "out")
    pd.testing.assert_frame_equal(read.frame, table.frame)
    key = next(key for key in table.attachments if key.startswith("detections"))
    pd.testing.assert_frame_equal(read.attachments[key], table.attachments[key], check_dtype=False)


def test_another_detector_of_the_same_backbone_is_judged(tmp_path: Path):
    data = "shapeworld/scenes,train=24,test=6,annotations=boxes"
    settings = QUICK | {"trials": 1, "permutations": 1, "store": tmp_path}
    table = diagnose(WORDS, data, task="detection/c4", **settings)
    told = transfer(WORDS, data, task="detection/c4", **(QUICK | {"trials": 1, "store": tmp_path}))
    for metric in ("ap", "ap50"):
        said, before = (one.where(metric=metric).frame["value"].tolist() for one in (table, told))
        assert said[:2] == before
    assert table.provenance["settings"]["task"] == "detection/c4"


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"data": DATA}, "either models or detections; got less"),
        ({"models": WORDS}, "either models or detections; got less"),
        ({"models": WORDS, "data": DATA, "detections": "x.json"}, "either models or detections; got both"),
        ({"models": WORDS, "data": DATA, "similar": ["disc+cat"]}, "similar classes joined"),
        ({"models": WORDS, "data": DATA, "permutations": -1}, "permutations of at least 0"),
        ({"models": WORDS, "data": DATA, "folds": 1}, "2 to 80 folds"),
        ({"models": WORDS, "data": "shapeworld/scenes,train=60,test=20"}, "kind boxes for detection"),
        (
            {
                "models": WORDS,
                "data": "shapeworld/scenes,train=60,test=20,annotations=masks",
                "task": "segmentation",
            },
            "detection/c4",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_is_trained(given, part, tmp_path: Path):
    with pytest.raises(InputError, match=part):
        diagnose(**({"store": tmp_path} | given))
    assert not (tmp_path / "finetuning").exists()


@pytest.mark.parametrize("crowd", [False, True])
def test_test_images_without_a_box_that_counts_are_refused(crowd, tmp_path: Path):
    none = Boxes(np.empty((0, 4)), np.empty(0), np.empty(0))
    some = Boxes(np.array([[1, 1, 20, 20]]), np.array([0]), np.array([crowd]))
    values = np.empty(4, dtype=object)
    real = Boxes(np.array([[1, 1, 20, 20]]), np.array([1]), np.array([False]))
    values[:] = [real, real, none, some if crowd else none]
    target = Target(values, "boxes", ("a", "b"))
    splits = ["train", "train", "test", "test"]
    images = ImageSet.from_arrays("none", np.zeros((4, 48, 48, 3), np.uint8), {"boxes": target}, splits)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match="that count"):
        diagnose(detections=tmp_path / "results.json", data=images)
    with pytest.raises(DataError, match="that count"):
        diagnose(WORDS, images, store=tmp_path, **QUICK)


@pytest.mark.slow
def test_the_command_leaves_tables_figures_and_a_page(tmp_path: Path):
    asked = [
        "diagnose",
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
    table = ResultTable.read(tmp_path / "out" / "tables" / "diagnose")
    assert set(METRICS) <= set(table.metrics)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Detection errors: why are boxes wrong?" in page
    assert "true boxes of another one" in page
    assert {one.name for one in (tmp_path / "out" / "figures").glob("*.svg")} == {
        "costs.svg",
        "shares.svg",
        "ious.svg",
    }


def test_the_command_judges_a_file(tmp_path: Path):
    path = results(tmp_path, open_images(DATA))
    asked = ["diagnose", "--detections", str(path), "-d", DATA, "--smoke", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "mine" in (tmp_path / "out" / "index.html").read_text()
    assert "Example: probekit diagnose" in CliRunner().invoke(app, ["diagnose", "--help"]).output


@pytest.mark.weights
def test_real_images_are_judged_as_by_the_library_itself(shared_data: Path, tmp_path: Path):
    faster_coco_eval = pytest.importorskip("faster_coco_eval")
    archive = shared_data / "coco_mini" / "coco_mini.zip"
    with zipfile.ZipFile(archive) as opened:
        real = json.loads(opened.read("val/instances.json"))
    draws = np.random.default_rng(0)
    said = [
        {
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "bbox": [*(np.array(one["bbox"]) * draws.uniform(0.85, 1.1, 4))],
            "score": draws.random(),
        }
        for one in real["annotations"]
        for _ in range(2)
    ]
    (tmp_path / "said.json").write_text(json.dumps(said))
    table = diagnose(
        detections=tmp_path / "said.json", data=f"{archive},annotations=instances", permutations=0
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = faster_coco_eval.COCO(real)
        run = faster_coco_eval.COCOeval_faster(truth, truth.loadRes(said), iouType="bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    for place, metric in enumerate(("ap", "ap50", "ap75")):
        assert table.where(metric=metric).frame["value"].iloc[0] == pytest.approx(run.stats[place], abs=1e-6)
    assert table.where(metric="ap").frame["n"].tolist() == [85]
