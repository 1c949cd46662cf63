"""Pairs of images and classes, what is marked of them, and what baselines score."""

from __future__ import annotations

import numpy as np
import pytest

from probekit import ImageSet, Preprocessing
from probekit.attribution.marked import (
    LEAST_IMAGES,
    METRICS,
    find_pairs,
    find_targets,
    image_means,
    mark_pairs,
)
from probekit.data.annotations import Boxes, stack
from probekit.data.targets import Target
from probekit.errors import DataError, InputError
from probekit.probes.protocol import Protocol, assign_roles
from tests.attribution.spots import PIXELS, SIDE, SPOT, several, spots


def boxed(values: list[Boxes], labels: Target, classes: tuple[str, ...], n: int) -> ImageSet:
    splits = np.where(np.arange(n) < n * 2 // 3, "train", "test")
    targets = {"class": labels, "boxes": Target(stack(values), "boxes", classes)}
    return ImageSet.from_arrays("boxed", np.zeros((n, SIDE, SIDE, 3), np.uint8), targets, splits)


def box(x0: float, y0: float, x1: float, y1: float, place: int = 0) -> Boxes:
    return Boxes(np.array([[x0, y0, x1, y1]]), np.array([place]), np.array([False]))


def marked_of(images: ImageSet, most: int = 1000, preprocessing: Preprocessing = PIXELS):
    name, marks = find_targets(images, None)
    roles = assign_roles(images, Protocol())
    rows, pairs = find_pairs(images, name, marks, roles, most, 0)
    return mark_pairs(images, marks, rows, pairs, preprocessing)


def test_each_image_is_marked_where_its_class_is():
    images = spots(60)
    marked = marked_of(images)
    test = images.split("test")
    assert marked.images.ids.tolist() == test.ids.tolist()
    assert marked.outputs.tolist() == test.targets["class"].values.tolist()
    assert marked.rows.tolist() == list(range(20))
    assert not marked.any_class
    for i, boxes in enumerate(test.targets["boxes"].values):
        x0, y0, x1, y1 = boxes.corners[0].astype(int)
        expected = np.zeros((SIDE, SIDE), np.uint8)
        expected[y0:y1, x0:x1] = 255
        np.testing.assert_array_equal(marked.inside[i], expected)


def test_an_image_has_a_pair_for_each_of_its_labels_with_that_labels_boxes():
    images = several(90)
    marked = marked_of(images)
    present = images.split("test").targets["present"].values
    assert list(zip(marked.rows.tolist(), marked.outputs.tolist(), strict=True)) == [
        (row, place) for row, labels in enumerate(present) for place in np.flatnonzero(labels)
    ]
    assert ((marked.inside == 255).sum(axis=(1, 2)) == SPOT**2).all()


def test_fewer_images_are_the_same_for_everybody():
    images = spots(90)
    one, again = marked_of(images, 7), marked_of(images, 7)
    assert len(one.images) == 7
    assert one.images.ids.tolist() == again.images.ids.tolist()


def test_baselines_are_the_area_and_a_gaussian_in_the_middle():
    n = 60
    labels = Target(np.arange(n) % 2, "class", ("a", "b"))
    middle = [box(4, 4, 8, 8, i % 2) for i in range(n)]
    found = marked_of(boxed(middle, labels, ("a", "b"), n)).baselines(0.0)
    np.testing.assert_allclose(found["uniform"], np.full((20, 4), 16 / 144))
    gaussian = dict(zip(METRICS, found["centred Gaussian"].T, strict=True))
    assert (gaussian["pointing_game"] == 1).all()
    assert (gaussian["relevance_rank"] > 0.7).all()


def test_one_kind_of_mark_counts_for_every_class():
    n = 60
    labels = Target(np.arange(n) % 2, "class", ("sparrow", "finch"))
    marked = marked_of(boxed([box(0, 0, 6, 6)] * n, labels, ("bird",), n))
    assert marked.any_class
    assert len(marked.rows) == 20


def test_classes_of_few_images_and_marks_outside_of_the_crop_are_left_out():
    n = 60
    values = np.arange(n) % 2
    values[: LEAST_IMAGES - 1], values[40:44] = 2, 2
    labels = Target(values, "class", ("a", "b", "rare"))
    places = [
        box(0, 0, 2, 12, place) if i % 4 == 0 else box(4, 4, 8, 8, place) for i, place in enumerate(values)
    ]
    images = boxed(places, labels, ("a", "b", "rare"), n)
    # Two columns at each side are cropped away.
    marked = marked_of(images, preprocessing=Preprocessing(8, 12))
    assert 2 not in marked.outputs
    assert marked.left_out == 4
    assert len(marked.images) == 20 - 4 - 4
    assert sorted(set(marked.rows.tolist())) == list(range(len(marked.images)))


def test_means_over_images_leave_out_what_is_undefined():
    scores = np.array([[1.0], [np.nan], [0.5], [np.nan]])
    found = image_means(scores, np.array([0, 0, 1, 2]), 3)
    np.testing.assert_array_equal(found[:, 0], [1.0, 0.5, np.nan])


def test_what_is_missing_is_named():
    n = 30
    labels = Target(np.arange(n) % 2, "class", ("a", "b"))
    plain = ImageSet.from_arrays("plain", np.zeros((n, 8, 8, 3), np.uint8), {"class": labels})
    with pytest.raises(DataError, match=r"masks or boxes in plain.*annotations=masks"):
        find_targets(plain, None)
    with pytest.raises(InputError, match=r"'clas'.*class"):
        find_targets(spots(30), "clas")
    only = ImageSet.from_arrays("only", np.zeros((3, 8, 8, 3), np.uint8), {
        "boxes": Target(stack([box(0, 0, 2, 2)] * 3), "boxes", ("a",))}, ["test"] * 3)  # fmt: skip
    with pytest.raises(InputError, match="a target of classes or labels in only"):
        find_targets(only, None)
    strange = boxed([box(0, 0, 6, 6, i % 2) for i in range(n)], labels, ("x", "y"), n)
    with pytest.raises(DataError, match="names of the classes of class, such as 'a'"):
        marked_of(strange)
    empty = Boxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    unmarked = boxed([empty] * n, labels, ("a", "b"), n)
    with pytest.raises(DataError, match="boxes of boxed that lie in the images"):
        marked_of(unmarked)
    few = boxed([box(0, 0, 6, 6)] * 6, Target(np.arange(6) % 2, "class", ("a", "b")), ("a", "b"), 6)
    with pytest.raises(DataError, match="that 5 fitting images have"):
        marked_of(few)
