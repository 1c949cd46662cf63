"""Cross-validation: every image once, means of folds, nothing pooled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from probekit import ImageSet, open_images, transfer
from probekit.errors import DataError, InputError
from probekit.figures.transfer import read_states
from probekit.finetuning import cells
from probekit.finetuning.cell import Data, Finetuning, Trained
from probekit.finetuning.folds import fold_images
from probekit.finetuning.means import over_trials
from probekit.functional.intervals import t_interval
from probekit.tasks.task import Score

WORDS = "resnet10_w16:random@5"
DATA = "shapeworld/source,train=200,test=60,classes=3"
QUICK = {"trials": 2, "steps": 4, "batch_size": 8, "lr": [1e-3], "warmup": 0.0}


def test_every_image_is_tested_once_and_trained_on_in_all_other_folds():
    images = open_images("shapeworld/source,train=30,val=5,test=8,classes=3")
    folds = fold_images(images, 5, seed=1)
    tested = np.array([one.splits == "test" for one in folds])
    assert (tested.sum(axis=0) == 1).all()
    assert sorted(tested.sum(axis=1)) == sorted(len(one) for one in np.array_split(np.arange(len(images)), 5))
    assert all(set(one.splits) == {"train", "test"} for one in folds)
    assert len({one.digest for one in folds} | {images.digest}) == 6
    again, other = fold_images(images, 5, seed=1), fold_images(images, 5, seed=2)
    assert [one.digest for one in again] == [one.digest for one in folds] != [one.digest for one in other]
    assert fold_images(images, 0) == [images]
    for wrong in (-1, 1, len(images) + 1):
        with pytest.raises(InputError, match="0, or 2 to"):
            fold_images(images, wrong)


def test_images_in_other_splits_are_the_same_images():
    images = open_images(DATA)
    turned = images.with_splits(np.where(images.splits == "test", "train", "test"))
    assert turned.ids.tolist() == images.ids.tolist()
    assert turned.indices("test").tolist() == images.indices("train").tolist()
    assert turned.with_splits(images.splits).digest == images.digest != turned.digest
    with pytest.raises(DataError, match="splits"):
        images.with_splits(["train"])
    with pytest.raises(DataError, match="roles among"):
        images.with_splits(["training"] * len(images))


def test_means_over_trials_leave_out_what_failed():
    found = over_trials(np.array([[1.0, 2.0], [3.0, np.nan], [np.nan, np.nan]]))
    assert found[:2].tolist() == [1.5, 3]
    assert np.isnan(found[2])


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], int, float]]:
    """Trainings whose metric is a share of their test images' places; scratch has half of it."""
    seen: list[tuple[tuple[int, ...], int, float]] = []

    def train(state: object, data: Data, one: Finetuning, folder: Path, _keep: object) -> Trained:
        (folder / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}\n')
        seen.append((tuple(data.test.rows.tolist()), one.seed, one.optimisation.lr))
        value = (data.test.rows.mean() / len(data.images)) * (1 + one.seed / 10)
        value *= 0.5 if state.weights != PLANTED_WEIGHTS[0] else 1.0  # type: ignore[attr-defined]
        # The best rate is another in each fold.
        val = float(one.optimisation.lr == (1e-3 if data.test.rows.min() % 2 else 1e-4))
        return Trained(val, {metric: Score(value, np.empty(0)) for metric in data.task.metrics})

    from probekit import load_backbone

    PLANTED_WEIGHTS[:] = [load_backbone(WORDS).weights]
    monkeypatch.setattr(cells, "finetune", train)
    return seen


PLANTED_WEIGHTS: list[str] = []


def test_the_result_is_the_mean_of_the_folds_with_its_interval_over_them(tmp_path: Path, planted: list):
    images = open_images(DATA)
    table = transfer(WORDS, DATA, store=tmp_path, folds=4, **(QUICK | {"lr": [1e-4, 1e-3]}))
    parts = [one.indices("test") for one in fold_images(images, 4)]
    expected = np.array([part.mean() / len(images) * 1.05 for part in parts])
    frame = table.where(metric="accuracy").frame
    told = [json.loads(one) for one in frame["params"]]
    own = np.array([one["mode"] == "" for one in told])
    single = frame["trial_seed"].notna().to_numpy()
    assert (own & single).sum() == 4 * 2
    (summary,) = frame[own & ~single].to_dict("records")
    assert summary["value"] == pytest.approx(expected.mean())
    assert (summary["ci_low"], summary["ci_high"]) == pytest.approx(t_interval(expected))
    assert summary["ci_kind"] == "t,folds"
    assert summary["n"] == 4
    assert json.loads(summary["params"])["folds"] == 4
    (gain,) = table.where(metric="gain").frame.to_dict("records")
    assert gain["value"] == pytest.approx(expected.mean() / 2)
    assert gain["ci_kind"] == "t,folds"
    # Every fold chooses its rate on its own val, which it does not share with its test images.
    rates = {one["fold"]: one["lr"] for one, alone in zip(told, single, strict=True) if alone}
    assert rates == {k: (1e-3 if part.min() % 2 else 1e-4) for k, part in enumerate(parts)}
    tested = len(images.indices("test"))
    assert any(f"the {tested} of its test split" in one for one in table.provenance["warnings"])
    # The figure shows a value a fold, not one a fold and trial.
    states = read_states(table)
    assert states[states["state"] == "whole"]["value"].tolist() == pytest.approx(expected.tolist())
    # Curves of every fold, trial and state, and the trainings of every fold.
    assert len(table.attachments) == 2 * 4 * 2 + 4


def test_folds_without_a_positive_are_refused_before_anything_is_trained(tmp_path: Path):
    from probekit.data.annotations import Boxes
    from probekit.data.targets import Target

    none = Boxes(np.empty((0, 4)), np.empty(0), np.empty(0))
    values = np.empty(12, dtype=object)
    values[:] = [Boxes(np.array([[1, 1, 20, 20]]), np.array([0]), np.array([False])), *[none] * 11]
    images = ImageSet.from_arrays(
        "one",
        np.zeros((12, 48, 48, 3), np.uint8),
        {"boxes": Target(values, "boxes", ("a", "b"))},
        ["train"] * 12,
    )
    with pytest.raises(DataError, match="boxes in boxes that count; got none in"):
        transfer(WORDS, images, task="detection", folds=3, store=tmp_path, **QUICK)
    assert not (tmp_path / "finetuning").exists()


def test_folds_are_trained_on_other_images(tmp_path: Path):
    table = transfer(WORDS, DATA, store=tmp_path, folds=2, **(QUICK | {"trials": 1, "steps": 1}))
    frame = table.where(metric="accuracy").frame
    assert len(frame) == 2 * 2 + 2
    counts = frame.loc[frame["trial_seed"].notna(), "n"].tolist()[::2]
    assert sum(counts) == len(open_images(DATA))
    assert frame["value"].notna().all()
