"""Diagnoses of detections: values against their functions, intervals, nulls, frames of single boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probekit.errors import InputError
from probekit.functional.detection import Marks, diagnose_detections, error_weights
from probekit.functional.detection_breakdown import localisation_split
from probekit.tasks import diagnosis
from probekit.tasks.detection import coco_scores
from probekit.tasks.diagnosis import (
    COSTS,
    JACKKNIFE,
    MENDED,
    METRICS,
    NO_GROUPS,
    NOTHING_MISPLACED,
    SHARES,
    Detected,
    Judged,
    class_frame,
    detection_frame,
    iou_frame,
    metric_rows,
    similar_groups,
)

CLASSES = ("a", "b", "c")


def random_case(seed: int, images: int = 12, noise: float = 4.0) -> Detected:
    """Return detections of which most lie near a true box."""
    draws = np.random.default_rng(seed)
    count = 3 * images
    corner = draws.uniform(0, 60, (count, 2))
    boxes = np.hstack([corner, corner + draws.uniform(10, 40, (count, 2))])
    truth = Marks.of(np.arange(count) % images, np.arange(count) // images, boxes)
    source = draws.integers(0, count, 4 * count)
    near = boxes[source] + draws.normal(
        0, draws.choice([1.0, noise, 12.0], (len(source), 1)), (len(source), 4)
    )
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    named = np.where(
        draws.random(len(source)) < 0.7, truth.classes[source], draws.integers(0, 3, len(source))
    )
    said = Marks.of(truth.images[source], named, near, draws.random(len(source)))
    return Detected(said, truth, np.array([f"image {one}" for one in range(images)]), CLASSES)


def rows_of(found: Detected, permutations: int = 0) -> dict[str, dict[str, Any]]:
    return {one["metric"]: one for one in metric_rows(Judged.judge(found), permutations, 0)}


@pytest.fixture(scope="module")
def case() -> Detected:
    return random_case(0)


def test_values_are_those_of_their_functions(case: Detected):
    rows = rows_of(case, 2)
    assert list(rows) == list(METRICS)
    kept, told = diagnose_detections(case.said, case.truth)
    weights = error_weights(kept, case.truth, told)
    for kind, metric in COSTS.items():
        assert rows[metric]["value"] == weights[kind], kind
    found = coco_scores(case.said, case.truth, 12, 3)
    assert {name: rows[name]["value"] for name in found} == found
    assert found["ap50"] == pytest.approx(weights["AP"], abs=1e-6)
    shares = [rows[metric]["value"] or 0 for metric in SHARES.values()]
    assert sum(shares) == pytest.approx(1)
    assert rows["hoiem_similar"] == {"metric": "hoiem_similar", "n": 12, "value": None, "status": NO_GROUPS}


@pytest.mark.parametrize("seed", range(5))
def test_leaving_images_out_is_judging_the_others(seed):
    found = random_case(seed)
    out = np.array([1, 5, 11])
    left = Judged.judge(found).without(out)
    keep = [~np.isin(one.images, out) for one in (found.said, found.truth)]
    anew = Judged.judge(
        Detected(found.said.select(keep[0]), found.truth.select(keep[1]), found.ids, CLASSES, found.groups)
    )
    assert left.measure() == pytest.approx(anew.measure(), nan_ok=True)
    for name in ("kind", "match", "mends", "missed", "found"):
        np.testing.assert_array_equal(getattr(left.told, name), getattr(anew.told, name))
    np.testing.assert_array_equal(left.near.match, anew.near.match)


def test_intervals_hold_the_value_and_nulls_fall_to_chance(case: Detected):
    rows = rows_of(case, 3)
    for metric in ("ap", "ap50", "error_loc", "hoiem_right"):
        row = rows[metric]
        assert row["ci_low"] < row["value"] < row["ci_high"]
        assert row["ci_kind"] == JACKKNIFE
        assert row["null_low"] <= row["null"] <= row["null_high"]
        assert row["null_kind"] == "boxes of other images,3"
    assert rows["ap50"]["null_high"] < 0.5 * rows["ap50"]["value"]
    assert rows["hoiem_right"]["null_high"] < 0.5 * rows["hoiem_right"]["value"]


def test_one_image_has_neither_interval_nor_null():
    found = random_case(0, images=1)
    (row,) = [one for one in metric_rows(Judged.judge(found), 3, 0) if one["metric"] == "ap50"]
    assert not {"null", "ci_low"} & set(row)


@pytest.mark.slow
def test_intervals_hold_what_more_images_would_say(monkeypatch: pytest.MonkeyPatch):
    # The library takes most of the time.
    monkeypatch.setattr(diagnosis, "coco_scores", lambda *_: {})
    found = [rows_of(random_case(seed, 24)) for seed in range(40)]
    for metric in ("error_loc", "error_miss", "hoiem_right", "repaired_centre"):
        mean = np.mean([rows[metric]["value"] for rows in found])
        held = sum(rows[metric]["ci_low"] <= mean <= rows[metric]["ci_high"] for rows in found)
        # Of 40 intervals of 95 %, fewer than 33 hold the mean once in 2000 times.
        assert held >= 33, (metric, held)


def test_a_perfect_detector_has_nothing_to_mend(case: Detected):
    truth = case.truth
    said = Marks.of(truth.images, truth.classes, truth.boxes, np.linspace(0.9, 0.1, len(truth)))
    rows = rows_of(Detected(said, truth, case.ids, CLASSES))
    assert rows["ap"]["value"] == pytest.approx(1)
    assert all(rows[metric]["value"] == pytest.approx(0) for metric in COSTS.values())
    assert rows["hoiem_right"]["value"] == 1
    assert rows["repaired_scale"]["value"] is None
    assert rows["repaired_scale"]["status"] == NOTHING_MISPLACED
    assert rows["repaired_scale"]["n"] == 0


def test_no_detection_and_a_class_that_is_absent(case: Detected):
    # No box of class c is true, and nothing is said.
    truth = case.truth.select(case.truth.classes < 2)
    none = Marks.of([], [], [], [])
    rows = rows_of(Detected(none, truth, case.ids, CLASSES), 2)
    assert rows["ap"]["value"] == 0
    assert rows["hoiem_none"]["value"] == 1
    judged = Judged.judge(Detected(none, truth, case.ids, CLASSES))
    assert class_frame(judged)["class"].tolist() == ["a", "b"]
    frame = detection_frame(judged)
    assert set(frame["kind"]) == {"Miss"}
    assert len(frame) == len(truth)
    assert iou_frame(judged)[["all", "top"]].sum().tolist() == [0, 0]


def test_every_detection_and_missed_box_has_its_row(case: Detected):
    judged = Judged.judge(case)
    frame = detection_frame(judged)
    assert len(frame) == len(case.said) + int(judged.told.missed.sum())
    assert frame["kind"].value_counts()["right"] == int(judged.told.found.sum())
    wrong = frame[frame["kind"] == "Loc"]
    assert len(wrong)
    corners = ["x0", "y0", "x1", "y1"]
    true = wrong[[f"true_{one}" for one in corners]].to_numpy()
    place = localisation_split(wrong[corners].to_numpy(), true)
    np.testing.assert_allclose(wrong["offset"], place.offset)
    np.testing.assert_allclose(wrong[list(MENDED.values())], place.repaired)
    assert (wrong["class"] == wrong["true_class"]).all()
    assert wrong["iou"].between(0.1, 0.5).all()
    assert frame.loc[frame["kind"] != "Loc", "offset"].isna().all()
    named = frame[frame["kind"] == "Cls"]
    assert (named["class"] != named["true_class"]).all()
    assert (named["iou"] >= 0.5).all()
    top = frame[frame["top"].astype(bool) & (frame["kind"] == "Loc")]
    rows = rows_of(case)
    assert rows["repaired_centre"]["value"] == pytest.approx(top["repaired_centre"].mean())
    assert rows["repaired_centre"]["n"] == len(top)
    counts = iou_frame(judged)
    assert counts["all"].sum() == len(case.said)
    assert counts["top"].sum() == frame["top"].sum()
    assert set(frame["image"]) <= set(case.ids)


def test_shares_of_classes_average_to_those_of_the_table(case: Detected):
    judged = Judged.judge(case)
    frame = class_frame(judged)
    rows = rows_of(case)
    assert frame["boxes"].tolist() == [12, 12, 12]
    assert frame["right"].mean() == pytest.approx(rows["hoiem_right"]["value"])
    assert frame["ap50"].mean() == pytest.approx(rows["ap50"]["value"], abs=1e-6)


def test_similar_classes_are_named_once():
    groups = similar_groups(["a+c"], CLASSES)
    assert groups is not None
    assert groups.tolist() == [0, 1, 0]
    assert similar_groups([], CLASSES) is None
    for words in (["a+d"], ["a+b", "b+c"]):
        with pytest.raises(InputError, match=r"similar classes joined by \+"):
            similar_groups(words, CLASSES)


def test_similar_classes_take_from_the_others(case: Detected):
    def shares(groups):
        found = Judged.judge(Detected(case.said, case.truth, case.ids, CLASSES, groups)).measure()
        return found["hoiem_similar"], found["hoiem_other"]

    (_, alone), (similar, other) = shares(None), shares(similar_groups(["a+b+c"], CLASSES))
    assert other == 0
    assert similar == pytest.approx(alone) != 0
