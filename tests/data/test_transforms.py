from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from probekit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from probekit.errors import InputError

timm_data = pytest.importorskip("timm.data")

SIZES = [
    (32, 32),
    (33, 47),
    (47, 33),
    (31, 500),
    (500, 31),
    (256, 256),
    (257, 255),
    (64, 91),
    (1, 3),
    (224, 300),
]


def noise(width: int, height: int) -> Image.Image:
    stream = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(stream.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("size", "crop_pct"), [(32, 1.0), (31, 0.875), (224, 0.875), (48, 0.9), (64, 0.95)])
def test_pixels_equal_those_of_timm(size, crop_pct, interpolation):
    preprocessing = Preprocessing(size, math.floor(size / crop_pct), interpolation=interpolation)
    theirs = timm_data.create_transform(
        (3, size, size), crop_pct=crop_pct, interpolation=interpolation, is_training=False
    )
    # Pixels before ToTensor and Normalize, which the device does.
    resized_and_cropped = theirs.transforms[:2]
    for width, height in SIZES:
        image = noise(width, height)
        wanted = image
        for step in resized_and_cropped:
            wanted = step(wanted)
        assert np.array_equal(preprocessing.pixels(image), np.asarray(wanted)), (width, height)


def test_normalised_values_equal_those_of_timm():
    theirs = timm_data.create_transform((3, 32, 32), crop_pct=1.0, is_training=False)
    image = noise(45, 61)
    pixels = Preprocessing(32, 32, interpolation="bilinear").pixels(image)
    ours = (pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD
    assert np.abs(theirs(image).numpy() - ours.transpose(2, 0, 1)).max() < 1e-6


def test_image_of_the_right_size_is_untouched():
    image = noise(32, 32)
    assert np.array_equal(Preprocessing(32, 32).pixels(image), np.asarray(image))


def test_facts_rebuild_it():
    made = Preprocessing(32, 36, (0.5,) * 3, (0.25,) * 3, "bilinear")
    facts = made.facts()
    assert facts["mean"] == [0.5, 0.5, 0.5]
    assert Preprocessing(**{**facts, "mean": tuple(facts["mean"]), "std": tuple(facts["std"])}) == made


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0, "resize": 0},
        {"size": 32, "resize": 31},
        {"size": 32, "resize": 32, "interpolation": "cubic"},
        {"size": 32, "resize": 32, "std": (1.0, 0.0, 1.0)},
        {"size": 32, "resize": 32, "mean": (0.5,)},
    ],
)
def test_impossible_facts_are_refused(wrong):
    with pytest.raises(InputError):
        Preprocessing(**wrong)
