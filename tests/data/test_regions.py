"""What is marked of an image, in the pixels that a backbone is given."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from probekit import ImageSet, Preprocessing
from probekit.data.annotations import IGNORE, Boxes, Mask, stack
from probekit.data.regions import foreground_classes, region, region_target
from probekit.data.targets import Target
from probekit.errors import DataError

WHOLE = Preprocessing(8, 8)


class Maps:
    def __init__(self, *maps: np.ndarray) -> None:
        self.maps = maps

    def read(self, index: int) -> np.ndarray:
        return self.maps[index]


def masked(
    *maps: np.ndarray, classes: tuple[str, ...] = ("background", "cat", "dog"), side: int = 8
) -> ImageSet:
    places = np.full(256, IGNORE, np.uint8)
    places[: len(classes)] = np.arange(len(classes))
    source = Maps(*maps)
    values = stack([Mask(source, place, places) for place in range(len(maps))])
    pixels = np.zeros((len(maps), side, side, 3), np.uint8)
    return ImageSet.from_arrays(
        "masked", pixels, {"masks": Target(values, "masks", classes)}, ["test"] * len(maps)
    )


def test_a_class_of_a_mask_is_apart_from_the_others():
    classes = np.zeros((8, 8), np.uint8)
    classes[:2], classes[2:4], classes[4:5] = 1, 2, IGNORE
    images = masked(classes)
    assert region_target(images) == "masks"
    np.testing.assert_array_equal(region(images, 0, "masks", WHOLE, [1]) == 255, classes == 1)
    np.testing.assert_array_equal(region(images, 0, "masks", WHOLE, [2]) == 255, classes == 2)
    np.testing.assert_array_equal(region(images, 0, "masks", WHOLE) == 255, (classes == 1) | (classes == 2))
    assert not region(images, 0, "masks", WHOLE, [IGNORE]).any()


def test_boxes_of_other_classes_are_left_out_and_groups_count():
    boxes = Boxes(
        np.array([[0, 0, 2, 8], [4, 0, 6, 8], [7, 0, 8, 8]]), np.array([0, 1, 1]), np.array([0, 0, 1])
    )
    target = Target(stack([boxes]), "boxes", ("cat", "dog"))
    images = ImageSet.from_arrays("boxed", np.zeros((1, 8, 8, 3), np.uint8), {"boxes": target}, ["test"])
    assert np.flatnonzero(region(images, 0, "boxes", WHOLE, [0])[0]).tolist() == [0, 1]
    assert np.flatnonzero(region(images, 0, "boxes", WHOLE, [1])[0]).tolist() == [4, 5, 7]
    assert np.flatnonzero(region(images, 0, "boxes", WHOLE)[0]).tolist() == [0, 1, 4, 5, 7]


def test_marks_move_as_the_image_does():
    """Of an image that is black but for the object, pixels and mark are the same picture."""
    classes = np.zeros((20, 30), np.uint8)
    classes[5:15, 8:20] = 1
    pixels = np.repeat(np.where(classes, 255, 0).astype(np.uint8)[None, ..., None], 3, axis=3)
    made = masked(classes)
    images = ImageSet.from_arrays("one", pixels, dict(made.targets), ["test"])
    preprocessing = Preprocessing(9, 12)
    np.testing.assert_array_equal(
        region(images, 0, "masks", preprocessing, [1]),
        preprocessing.pixels(Image.fromarray(pixels[0]))[..., 0],
    )


def test_a_mask_of_another_size_than_its_image_is_refused():
    images = masked(np.zeros((4, 8), np.uint8))
    with pytest.raises(DataError, match="a mask of the size of its image, 8×8, came 8×4|8×8"):
        region(images, 0, "masks", WHOLE)


def test_what_is_called_background_is_none():
    assert foreground_classes(("background", "a", "b")) == [1, 2]
    assert foreground_classes(("a", "b")) == [0, 1]
