"""Whole images reach a backbone pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from probekit import ImageSet, Preprocessing
from probekit.data.whole import show_whole, uncropped


@pytest.fixture
def images() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 30, 50, 3), dtype=np.uint8)
    return ImageSet.from_arrays("noise", pixels, ["a", "b", "a", "b"], ["train", "test", "test", "train"])


def test_pixels_are_those_of_the_whole_image(images: ImageSet):
    preprocessing = Preprocessing(24, 28)
    shown, taken = show_whole(images, preprocessing), uncropped(preprocessing)
    for row in range(4):
        np.testing.assert_array_equal(shown.pixels(row, taken), preprocessing.whole(images.image(row)))
    assert shown.ids.tolist() == images.ids.tolist()
    assert shown.splits.tolist() == images.splits.tolist()
    assert not shown.targets


def test_another_size_or_colour_is_another_set(images: ImageSet):
    digests = {
        images.digest,
        *(
            show_whole(images, one).digest
            for one in (Preprocessing(24, 24), Preprocessing(20, 20), Preprocessing(24, 24, (0, 0, 0)))
        ),
    }
    assert len(digests) == 4
    assert show_whole(images, Preprocessing(24, 24)).digest in digests


def test_a_selection_shows_its_own_images(images: ImageSet):
    preprocessing = Preprocessing(24, 24)
    shown = show_whole(images.select([2, 0]), preprocessing)
    np.testing.assert_array_equal(shown.pixels(0, preprocessing), preprocessing.whole(images.image(2)))
