"""Tasks: heads, losses and metrics, against counts by hand and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, jaccard_score

from probekit import ImageSet, Preprocessing, open_images
from probekit.data.annotations import Points
from probekit.data.targets import Target
from probekit.errors import DataError, InputError
from probekit.tasks.choosing import find_task
from probekit.tasks.classification import Classification
from probekit.tasks.landmarks import Landmarks, mean_shape
from probekit.tasks.segmentation import Segmentation

CLASSES = ("a", "b", "c")


def pointed(points: list[Points], width: int = 20, height: int = 10) -> ImageSet:
    pixels = np.zeros((len(points), height, width, 3), np.uint8)
    target = Target(np.array(points, dtype=object), "keypoints", ("left", "right", "low"))
    return ImageSet.from_arrays("pointed", pixels, {"points": target}, ["train"] * len(points))


def test_classification_counts_what_it_says():
    task = Classification("class", CLASSES)
    truth, said = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    found = task.score(said, truth)
    assert found["accuracy"].value == 0.75
    assert found["accuracy"].units.tolist() == [1, 1, 0, 1]
    assert found["balanced_accuracy"].value == pytest.approx(balanced_accuracy_score(truth, said))
    assert task.baseline(truth, np.array([0, 1, 2]))["accuracy"] == pytest.approx(1 / 3)


def test_a_classification_head_does_not_see_the_scale_of_features():
    task = Classification("class", CLASSES)
    head = task.head((8,), np.array([0]), 8)
    x = torch.randn(16, 8)
    torch.testing.assert_close(head(x), head(1000 * x), atol=1e-3, rtol=1e-3)


def test_positions_follow_resize_and_crop():
    # 40 × 20 is resized to 20 × 10, of which the middle 10 × 10 are cropped.
    places = Preprocessing(10, 10).places(np.array([[20.0, 10.0], [0.0, 0.0]]), 40, 20)
    np.testing.assert_allclose(places, [[0.5, 0.5], [-0.5, 0.0]])


@settings(max_examples=25, deadline=None)
@given(st.integers(12, 60), st.integers(12, 60), st.floats(0.2, 0.8), st.floats(0.2, 0.8))
def test_a_bright_spot_is_where_its_position_is_said_to_be(width, height, across, down):
    x, y = round(across * width), round(down * height)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y, x] = 255
    preprocessing = Preprocessing(48, 48, interpolation="bilinear")
    image = preprocessing.pixels(Image.fromarray(pixels)).astype(float)[..., 0]
    (place,) = preprocessing.places(np.array([[x + 0.5, y + 0.5]]), width, height) * 48
    if image.sum() == 0 or not (place.min() > 3 and place.max() < 45):
        return
    rows, columns = np.indices(image.shape) + 0.5
    centre = (columns * image).sum() / image.sum(), (rows * image).sum() / image.sum()
    np.testing.assert_allclose(centre, place, atol=0.6)


def test_landmark_error_by_hand():
    task = Landmarks("points", ("left", "right", "low"))
    # Two points at the corners of a box of 0.4 × 0.1, the third is not there.
    truth = np.array([[[0.1, 0.2, 1], [0.5, 0.3, 1], [0.9, 0.9, 0]]], np.float32)
    said = np.array([[[0.1, 0.2], [0.5, 0.33], [0.0, 0.0]]])
    found = task.score(said, truth)["normalised_error"]
    assert found.value == pytest.approx(0.015 / 0.2, rel=1e-5)
    loss = task.loss(torch.tensor(said).reshape(1, -1).float(), torch.tensor(truth))
    assert float(loss) == pytest.approx(0.03 / 4, rel=1e-5)


def test_images_without_a_size_are_not_scored_and_points_never_seen_are_expected_in_the_middle():
    task = Landmarks("points", ("left", "right", "low"))
    truth = np.zeros((2, 3, 3), np.float32)
    truth[0, :2] = [[0.2, 0.2, 1], [0.4, 0.4, 1]]
    truth[1, 0] = [0.9, 0.9, 1]
    assert len(task.score(truth[:, :, :2], truth)["normalised_error"].units) == 1
    np.testing.assert_allclose(mean_shape(truth), [[0.55, 0.55], [0.4, 0.4], [0.5, 0.5]])


def test_a_landmark_head_starts_at_the_mean_shape():
    task = Landmarks("points", ("left", "right", "low"))
    truth = np.random.default_rng(0).random((5, 3, 3)).astype(np.float32)
    truth[:, :, 2] = 1
    answer = task.answer(task.head((9,), truth, 8)(torch.randn(4, 9)).detach())
    np.testing.assert_allclose(answer, np.broadcast_to(truth[:, :, :2].mean(0), (4, 3, 2)), rtol=1e-5)
    assert task.baseline(truth, truth)["normalised_error"] > 0


def test_truth_of_landmarks_is_in_shares_of_the_input():
    points = Points(np.array([[10, 5], [15, 5], [0, 0]]), np.array([True, True, False]))
    odd = Points(np.array([[5, 0], [15, 10], [10, 5]]), np.array([True, True, True]))
    images = pointed([points, odd])
    truth = Landmarks("points", ("left", "right", "low")).truth(images, Preprocessing(10, 10))
    np.testing.assert_allclose(truth[0], [[0.5, 0.5, 1], [1.0, 0.5, 1], [-0.5, 0.0, 0]])
    np.testing.assert_allclose(truth[1], [[0.0, 0.0, 1], [1.0, 1.0, 1], [0.5, 0.5, 1]])


def test_points_that_span_no_size_anywhere_are_refused():
    lone = Points(np.array([[10, 5], [0, 0], [0, 0]]), np.array([True, False, False]))
    with pytest.raises(DataError, match="span a box"):
        Landmarks("points", ("left", "right", "low")).truth(pointed([lone]), Preprocessing(10, 10))


def test_mean_iou_is_that_of_scikit_learn():
    draws = np.random.default_rng(0)
    task = Segmentation("masks", CLASSES)
    truth = draws.integers(0, 2, (4, 6, 6)).astype(np.uint8)
    said = draws.integers(0, 3, (4, 6, 6)).astype(np.uint8)
    truth[draws.random(truth.shape) < 0.2] = 255
    known = truth != 255
    # Class 2 does not occur, so it has no share in the mean.
    expected = jaccard_score(truth[known], said[known], labels=[0, 1], average="macro")
    assert task.score(said, truth)["mean_iou"].value == pytest.approx(expected)


def test_pixels_without_a_class_are_not_learnt():
    task = Segmentation("masks", CLASSES)
    truth = torch.tensor([[[0, 255], [1, 255]]])
    outputs = torch.zeros(1, 3, 2, 2)
    assert float(task.loss(outputs, truth)) == pytest.approx(np.log(3), rel=1e-5)
    outputs[:, 2, :, 1] = 100.0
    assert float(task.loss(outputs, truth)) == pytest.approx(np.log(3), rel=1e-5)
    assert float(task.loss(outputs, torch.full((1, 2, 2), 255))) == 0


@pytest.mark.parametrize(("decoder", "layers"), [("linear", 3), ("one-layer", 6)])
def test_segmentation_heads_answer_at_the_size_of_the_input(decoder, layers):
    task = Segmentation("masks", CLASSES, decoder)
    head = task.head((8, 3, 3), np.zeros((2, 24, 24), np.uint8), 24)
    assert len(head) == layers
    assert head(torch.randn(2, 8, 3, 3)).shape == (2, 3, 24, 24)


def test_masks_are_resized_without_inventing_classes():
    mask = np.zeros((20, 40), np.uint8)
    mask[:, 20:] = 7
    found = Preprocessing(10, 10).places_of_classes(mask)
    assert found.shape == (10, 10)
    assert set(np.unique(found)) == {0, 7}
    assert (found[:, :5] == 0).all()


def test_a_task_is_found_by_its_word_and_the_kind_of_target():
    images = open_images("shapeworld/source,train=20,test=10,annotations=masks")
    task = find_task("segmentation/one-layer", images)
    assert isinstance(task, Segmentation)
    assert (task.target, task.decoder) == ("masks", "one-layer")
    with pytest.raises(InputError, match="nearest is landmarks"):
        find_task("landmark", images)
    with pytest.raises(InputError, match=r"kind keypoints for landmarks.*none among"):
        find_task("landmarks", open_images("digits"))
    with pytest.raises(InputError, match="a task among"):
        find_task("classification/linear", images)
    with pytest.raises(InputError, match="kind class for classification"):
        find_task("classification", images, "masks")
