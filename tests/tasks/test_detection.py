"""The detection task: whole images, boxes where they are, scores of a library, a head that learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probekit import ImageSet, Preprocessing, open_images
from probekit.data.annotations import Boxes
from probekit.data.targets import Target
from probekit.errors import DataError
from probekit.functional.detection import Marks, diagnose_detections, error_weights
from probekit.tasks.choosing import find_task
from probekit.tasks.detection import Detection, as_detections, as_truth, coco_scores
from probekit.tasks.one_stage import OneStage

CLASSES = ("a", "b")
S48 = Preprocessing(48, 48)


def boxed(boxes: list[Boxes], width: int = 80, height: int = 40) -> ImageSet:
    pixels = np.zeros((len(boxes), height, width, 3), np.uint8)
    target = Target(np.array([*boxes, None], dtype=object)[:-1], "boxes", CLASSES)
    return ImageSet.from_arrays("boxed", pixels, {"boxes": target}, ["train"] * len(boxes))


def boxes(*corners: tuple[float, float, float, float], crowd: bool = False) -> Boxes:
    count = len(corners)
    return Boxes(np.array(corners), np.arange(count) % 2, np.full(count, crowd))


def test_images_are_shown_whole_and_boxes_follow():
    images = boxed([boxes((0, 0, 80, 40), (40, 20, 80, 40)), boxes()])
    task = Detection("boxes", CLASSES)
    shown = task.pixels(images, 0, S48)
    mean = np.round(np.array(S48.mean) * 255)
    assert shown.shape == (48, 48, 3)
    assert not shown[:24].any()
    np.testing.assert_array_equal(shown[30, 10], mean)
    truth = task.truth(images, S48)
    np.testing.assert_allclose(truth[0], [[0, 0, 48, 24, 0, 0], [24, 12, 48, 24, 1, 0]], atol=1e-4)
    assert (truth[1] == -1).all()


def test_boxes_outside_are_cut_and_those_without_area_left_out():
    images = boxed([boxes((60, 10, 200, 30), (100, 50, 120, 60))])
    truth = Detection("boxes", CLASSES).truth(images, S48)
    np.testing.assert_allclose(truth[0, 0, :4], [36, 6, 48, 18], atol=1e-4)
    assert truth[0, 1, 4] == -1
    with pytest.raises(DataError, match="boxes in boxes that count"):
        Detection("boxes", CLASSES).truth(boxed([boxes()]), S48)


@pytest.mark.parametrize(("size", "side"), [(48, 12), (96, 12), (160, 20), (256, 16)])
def test_the_level_has_about_a_sixteenth_of_the_side(size, side):
    head = OneStage(8, 2, size)
    found = head(torch.randn(2, 8, 3, 3))
    assert found["places"] == side**2
    assert found["made"]["cls_logits"].shape == (2, side**2, 2)
    centres = (found["anchors"][0][:, :2] + found["anchors"][0][:, 2:]) / 2
    assert float(centres.min()) >= 0
    assert float(centres.max()) <= size


def test_a_head_learns_where_things_are():
    torch.manual_seed(0)
    task = Detection("boxes", CLASSES)
    truth = np.full((8, 2, 6), -1, np.float32)
    for row in range(8):
        x = 4.0 + 3 * row
        truth[row, 0] = [x, 8, x + 16, 28, row % 2, 0]
    # Each image has a map of its own.
    maps = torch.randn(8, 16, 6, 6)
    head = task.head((16, 6, 6), truth, 48)
    optimiser = torch.optim.AdamW(head.parameters(), 5e-4)
    first = None
    for _ in range(120):
        loss = task.loss(head(maps), torch.tensor(truth))
        first = float(loss.detach()) if first is None else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.7 * first
    head.eval()
    with torch.no_grad():
        found = task.score(task.answer(head(maps)), truth)
    assert found["ap50"].value > 0.9
    assert found["ap"].value <= found["ap50"].value


def test_images_without_boxes_and_crowds_can_be_trained_on():
    task = Detection("boxes", CLASSES)
    head = task.head((8, 3, 3), np.empty(0), 48)
    truth = torch.full((2, 1, 6), -1.0)
    truth[0, 0] = torch.tensor([0, 0, 20, 20, 1, 1])
    loss = task.loss(head(torch.randn(2, 8, 3, 3)), truth)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("seed", range(5))
def test_ap50_of_the_library_is_that_of_the_diagnosis(seed):
    draws = np.random.default_rng(seed)
    corner = draws.uniform(0, 60, (12, 2))
    real = Marks.of(draws.integers(0, 4, 12), np.arange(12) % 2, np.hstack([corner, corner + 20]))
    source = draws.integers(0, 12, 40)
    near = real.boxes[source] + draws.normal(0, 4, (40, 4))
    said = Marks.of(real.images[source], real.classes[source], near, draws.random(40))
    kept, told = diagnose_detections(said, real)
    found = coco_scores(said, real, 4, 2)
    assert found["ap50"] == pytest.approx(error_weights(kept, real, told)["AP"], abs=1e-6)


def test_padded_arrays_and_marks_are_the_same_boxes():
    images = open_images("shapeworld/scenes,train=80,test=10,annotations=boxes")
    task = find_task("detection", images)
    truth = task.truth(images, S48)
    marks = as_truth(truth)
    assert len(marks) == sum(len(one) for one in images.targets["boxes"].values)
    answers = truth.copy()
    answers[:, :, 5] = np.where(truth[:, :, 4] >= 0, 0.5, -1)
    assert task.score(answers, truth)["ap"].value == pytest.approx(1)
    assert len(as_detections(answers)) == len(marks)
    assert task.score(np.full((90, 3, 6), -1, np.float32), truth)["ap"].value == 0
