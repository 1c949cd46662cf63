"""Detections: IoU and average precision by hand, errors equal to tidecv's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou as torchvision_iou

from probekit.errors import InputError
from probekit.functional.detection import (
    ERRORS,
    Marks,
    average_precision,
    box_iou,
    box_offsets,
    diagnose_detections,
    error_weights,
    paired_iou,
)


def random_case(seed: int, images: int = 6, classes: int = 3) -> tuple[Marks, Marks]:
    """Return detections, most of them near a true box, and true boxes; every class has one."""
    draws = np.random.default_rng(seed)
    count = draws.integers(classes + 2, 20)
    corner = draws.uniform(0, 60, (count, 2))
    boxes = np.hstack([corner, corner + draws.uniform(8, 40, (count, 2))])
    labels = np.concatenate([np.arange(classes), draws.integers(0, classes, count - classes)])
    where = draws.integers(0, images, count)
    source = draws.integers(0, count, 4 * count)
    near = boxes[source] + draws.normal(0, draws.choice([1.0, 5.0, 15.0], (len(source), 1)), (len(source), 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    named = np.where(draws.random(len(source)) < 0.7, labels[source], draws.integers(0, classes, len(source)))
    at = np.where(draws.random(len(source)) < 0.9, where[source], draws.integers(0, images, len(source)))
    return Marks.of(at, named, near, draws.random(len(source))), Marks.of(where, labels, boxes)


def by_tidecv(detections: Marks, truth: Marks):
    tidecv = pytest.importorskip(
        "tidecv", exc_type=ImportError, reason="the oracle of detection errors is not installed"
    )
    real, said = tidecv.Data("truth"), tidecv.Data("said")
    # It looks at no image that it has not been told of.
    for image in np.union1d(detections.images, truth.images).tolist():
        real.add_image(image, str(image))
    for image, label, box in zip(truth.images, truth.classes, truth.boxes, strict=True):
        real.add_ground_truth(int(image), int(label), box=[*box[:2], *(box[2:] - box[:2])])
    for image, label, box, score in zip(
        detections.images, detections.classes, detections.boxes, detections.scores, strict=True
    ):
        said.add_detection(int(image), int(label), float(score), box=[*box[:2], *(box[2:] - box[:2])])
    tide = tidecv.TIDE()
    run = tide.evaluate(real, said, mode=tidecv.TIDE.BOX)
    errors = tide.get_all_errors()
    counts = {kind.short_name: count for kind, count in run.count_errors().items()}
    return run.ap, counts, next(iter(errors["main"].values())), next(iter(errors["special"].values()))


@pytest.mark.parametrize("seed", range(40))
def test_errors_and_their_weights_are_tidecvs(seed):
    detections, truth = random_case(seed)
    ap, counts, main, special = by_tidecv(detections, truth)
    kept, told = diagnose_detections(detections, truth)
    own = {kind: int((told.kind == kind).sum()) for kind in ERRORS[:-1]} | {"Miss": int(told.missed.sum())}
    assert own == counts
    weights = error_weights(kept, truth, told)
    assert weights["AP"] * 100 == pytest.approx(ap, abs=1e-9)
    for kind in ERRORS:
        # It tells no rise below 0.
        assert max(weights[kind], 0) * 100 == pytest.approx(main[kind], abs=1e-9), kind
    for kind, value in special.items():
        assert weights[kind] * 100 == pytest.approx(value, abs=1e-9), kind


def one_image(boxes, labels, scores):
    return Marks.of(np.zeros(len(labels)), labels, boxes, scores)


TRUTH = one_image([[0, 0, 10, 10], [20, 0, 30, 10]], [0, 1], None)


@pytest.mark.parametrize(
    ("box", "label", "kind"),
    [
        ([0, 0, 10, 9], 0, "right"),
        ([4, 0, 14, 10], 0, "Loc"),  # IoU 6/14
        ([0, 0, 10, 10], 1, "Cls"),
        ([40, 40, 50, 50], 0, "Bkg"),
        ([4, 0, 14, 10], 1, "Both"),
        ([9.8, 0, 19.8, 10], 0, "Bkg"),  # IoU 0.2/19.8
    ],
)
def test_each_type_by_hand(box, label, kind):
    _, told = diagnose_detections(one_image([box], [label], [0.5]), TRUTH)
    assert told.kind.tolist() == [kind]


def test_the_second_box_on_one_object_is_a_duplicate_and_the_better_score_finds_it():
    said = one_image([[0, 0, 10, 10], [0, 0, 10, 9.5]], [0, 0], [0.6, 0.9])
    kept, told = diagnose_detections(said, TRUTH)
    assert kept.scores.tolist() == [0.9, 0.6]
    assert told.kind.tolist() == ["right", "Dupe"]
    assert told.found.tolist() == [True, False]
    assert told.missed.tolist() == [False, True]


def test_of_two_errors_about_one_box_the_better_score_mends_it():
    said = one_image([[4, 0, 14, 10], [5, 0, 15, 10]], [0, 0], [0.4, 0.8])
    kept, told = diagnose_detections(said, TRUTH)
    assert told.kind.tolist() == ["Loc", "Loc"]
    assert told.mends.tolist() == [True, False]
    weights = error_weights(kept, TRUTH, told)
    # Of class 0 the only box is found once Loc is put right; class 1 has no detection.
    assert weights["AP"] == 0
    assert weights["Loc"] == pytest.approx(0.5)
    assert weights["Miss"] == 0.0


def test_what_lies_in_a_crowd_is_ignored_and_a_crowd_is_not_missed():
    truth = Marks.of([0, 0], [0, 0], [[0, 0, 10, 10], [20, 0, 60, 40]], crowd=[False, True])
    said = one_image([[0, 0, 10, 10], [25, 5, 35, 15]], [0, 0], [0.5, 0.9])
    kept, told = diagnose_detections(said, truth)
    assert told.kind.tolist() == ["ignored", "right"]
    assert not told.missed.any()
    assert error_weights(kept, truth, told)["AP"] == 1


def test_average_precision_by_hand():
    # Precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1: 51 points at 1 and 50 at 2/3.
    expected = (51 + 50 * 2 / 3) / 101
    assert average_precision([0.9, 0.8, 0.7], [True, False, True], 2) == pytest.approx(expected)
    assert average_precision([], [], 3) == 0
    assert np.isnan(average_precision([0.5], [False], 0))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_putting_everything_right_leaves_nothing_to_gain(seed):
    detections, truth = random_case(seed)
    _, told = diagnose_detections(detections, truth)
    assert set(told.kind) <= {*ERRORS, "right", "ignored"}
    assert (told.kind == "right").sum() == told.found.sum()
    assert not (told.found & told.missed).any()
    # Detections that are the true boxes themselves have no error.
    _, perfect = diagnose_detections(
        Marks.of(truth.images, truth.classes, truth.boxes, np.random.default_rng(seed).random(len(truth))),
        truth,
    )
    assert not perfect.missed.any()
    assert (perfect.kind == "right").sum() == perfect.found.sum()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 4.0), st.floats(-50, 50))
def test_iou_does_not_change_with_scale_or_place(seed, factor, shift):
    detections, truth = random_case(seed)
    one = box_iou(detections.boxes, truth.boxes)
    other = box_iou(factor * detections.boxes + shift, factor * truth.boxes + shift)
    np.testing.assert_allclose(one, other, atol=1e-9)
    assert ((one >= 0) & (one <= 1 + 1e-12)).all()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"boxes": [[0, 0, 0, 5]]}, "x0 < x1"),
        ({"boxes": [[0, 0, np.nan, 5]]}, "finite boxes"),
        ({"scores": [np.inf]}, "finite scores"),
        ({"classes": [0, 1]}, "one image, class, box and score"),
    ],
)
def test_boxes_that_are_none_are_refused(arguments, part):
    with pytest.raises(InputError, match=part):
        Marks.of(**({"images": [0], "classes": [0], "boxes": [[0, 0, 5, 5]], "scores": [0.5]} | arguments))


def test_no_detection_and_no_truth():
    none = Marks.of([], [], [], [])
    kept, told = diagnose_detections(none, TRUTH)
    assert told.missed.all()
    assert error_weights(kept, TRUTH, told)["AP"] == 0
    kept, told = diagnose_detections(one_image([[0, 0, 5, 5]], [0], [0.5]), none)
    assert told.kind.tolist() == ["Bkg"]
    assert np.isnan(error_weights(kept, none, told)["AP"])
    with pytest.raises(InputError, match="background < found"):
        diagnose_detections(none, none, found=0.1, background=0.5)


def test_paired_iou_is_the_diagonal_of_torchvisions():
    one, other = random_case(5)
    count = len(other)
    left = one.boxes[:count]
    expected = torchvision_iou(torch.tensor(left), torch.tensor(other.boxes)).diagonal().numpy()
    np.testing.assert_allclose(paired_iou(left, other.boxes), expected, atol=1e-12)
    assert paired_iou([3, 3, 2, 5], [0, 0, 9, 9]) == 0


def test_box_offsets_are_those_of_torchvisions_coder():
    one, other = random_case(6)
    regions, truth = one.boxes[: len(other)], other.boxes
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    expected = coder.encode_single(torch.tensor(truth), torch.tensor(regions)).numpy()
    np.testing.assert_allclose(box_offsets(regions, truth), expected, atol=1e-12)
    assert not box_offsets(truth, truth).any()
