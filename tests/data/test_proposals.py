"""Regions overlap their boxes by what is asked, lie within the image, and depend on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from probekit.data.annotations import Boxes
from probekit.data.proposals import IOU_BINS, TRUE_BOX, draw_proposals
from probekit.data.transforms import Preprocessing
from probekit.errors import DataError
from probekit.functional.detection import box_offsets
from probekit.tasks.detection import Detection
from tests.data.boxed import CLASSES, boxed, boxes, scattered


def overlaps(regions: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The IoU of each pair, by torchvision."""
    return box_iou(torch.tensor(regions), torch.tensor(truth)).diagonal().numpy()


def test_each_box_has_itself_and_one_region_in_every_bin():
    images = boxed(scattered(40))
    few, found = draw_proposals(images, "boxes", 1000)
    count = sum(len(one) for one in images.targets["boxes"].values)
    assert len(found) == count * (1 + len(IOU_BINS))
    assert np.bincount(found.bins + 1).tolist() == [count] * (1 + len(IOU_BINS))
    iou = overlaps(found.boxes, found.truth)
    true = found.bins == TRUE_BOX
    np.testing.assert_array_equal(found.boxes[true], found.truth[true])
    low, high = np.array(IOU_BINS)[found.bins[~true]].T
    assert ((iou[~true] >= low) & (iou[~true] < high)).all()
    # Evenly within a bin, not at one of its ends.
    assert abs(((iou[~true] - low) / (high - low)).mean() - 0.5) < 0.06
    assert (found.boxes[:, :2] >= 0).all()
    assert (found.boxes[:, 2:] <= [80, 40]).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (np.diff(found.images) >= 0).all()
    assert len(few) == len(images)


def test_regions_are_moved_and_scaled_to_all_sides():
    _, found = draw_proposals(boxed([boxes((30, 15, 50, 25))] * 200), "boxes", 1000)
    middle = (found.bins == 2) | (found.bins == 3)
    offsets = box_offsets(found.boxes[middle], found.truth[middle])
    assert (np.abs(np.median(offsets, axis=0)) < 0.05).all()
    assert (offsets.std(axis=0) > 0.08).all()


def test_a_seed_fixes_all_and_another_one_changes_it():
    images = boxed(scattered(10))
    one, same, other = (draw_proposals(images, "boxes", 100, seed)[1] for seed in (3, 3, 4))
    assert one.digest == same.digest != other.digest
    np.testing.assert_array_equal(one.boxes, same.boxes)


def test_what_is_drawn_for_a_box_does_not_depend_on_other_boxes():
    alone = boxed([boxes((10, 10, 30, 25)), boxes((5, 5, 20, 20))])
    among = boxed([boxes((10, 10, 30, 25), (40, 2, 60, 30), (0, 0, 70, 40)), boxes((5, 5, 20, 20))])
    few = draw_proposals(alone, "boxes", 100)[1]
    many = draw_proposals(among, "boxes", 100)[1]
    np.testing.assert_array_equal(few.boxes[:6], many.boxes[:6])
    np.testing.assert_array_equal(few.boxes[-6:], many.boxes[-6:])


def test_a_box_that_fills_its_image_has_regions_too():
    _, found = draw_proposals(boxed([boxes((0, 0, 80, 40))] * 3), "boxes", 100)
    assert found.left_out["without a region of every overlap"] == 0
    iou = overlaps(found.boxes, found.truth)
    assert (iou[found.bins == 0] < 0.3).all()


def test_crowds_and_boxes_outside_are_left_out_and_counted():
    inside, crowd = boxes((0, 0, 90, 20)), boxes((0, 0, 20, 20), crowd=True)
    images = boxed([inside, crowd, boxes((79.5, 0, 120, 30), (100, 0, 120, 30))])
    few, found = draw_proposals(images, "boxes", 100)
    assert found.left_out == {
        "crowd": 1,
        "outside or thinner than a pixel": 2,
        "without a region of every overlap": 0,
    }
    assert few.ids.tolist() == images.ids[:1].tolist()
    # Cut at the edge of the image.
    np.testing.assert_array_equal(found.truth[0], [0, 0, 80, 20])
    for useless in ([crowd], [boxes()], [boxes((100, 0, 120, 30))]):
        with pytest.raises(DataError, match="boxes in boxes of boxed"):
            draw_proposals(boxed(useless), "boxes", 100)


def test_no_more_boxes_than_asked_and_images_without_one_are_dropped():
    images = boxed(scattered(40))
    few, found = draw_proposals(images, "boxes", 7)
    assert (found.bins == TRUE_BOX).sum() == 7
    assert len(few) == len(np.unique(found.images)) <= 7
    values = few.targets["boxes"].values
    for row, corners, label in zip(found.images, found.truth, found.classes, strict=True):
        own: Boxes = values[row]
        at = np.flatnonzero((own.corners == corners.astype(np.float32)).all(axis=1))
        assert own.classes[at].tolist() == [label]


def test_places_in_the_input_are_those_of_the_detection_task():
    images, preprocessing = boxed(scattered(12)), Preprocessing(48, 64)
    _, found = draw_proposals(images, "boxes", 100)
    placed = found.in_input(preprocessing)
    truth = Detection("boxes", CLASSES).truth(images, preprocessing)
    true = found.bins == TRUE_BOX
    real = truth[truth[:, :, 4] >= 0]
    np.testing.assert_allclose(placed[true], real[:, :4], atol=1e-4)
    # The input is 48 × 24: both the overlap and the offsets stay what they were.
    before, after = overlaps(found.boxes, found.truth), overlaps(placed, np.repeat(placed[true], 6, axis=0))
    np.testing.assert_allclose(after, before, atol=1e-5)
