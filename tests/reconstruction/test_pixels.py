"""What is read back: cells, frequencies, foreground."""

from __future__ import annotations

import numpy as np
import pytest

from probekit import ImageSet, Preprocessing
from probekit.data.annotations import Boxes
from probekit.data.regions import region_target
from probekit.data.targets import Target
from probekit.reconstruction.pixels import (
    BANDS,
    band_columns,
    cell_means,
    foreground,
    frequencies,
    from_frequencies,
    low_resolution,
)


def test_cells_are_means_of_blocks():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = pixels.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(cell_means(pixels), expected, atol=1e-4)


def test_images_are_read_as_backbones_take_them():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    images = ImageSet.from_arrays("five", pixels, np.arange(5) % 2, np.full(5, "train"))
    found = low_resolution(images, Preprocessing(32, 40))
    assert found.shape == (5, 8, 8, 3)
    expected = pixels[:, 4:36, 4:36].reshape(5, 8, 4, 8, 4, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_bands_hold_all_squares_and_waves_fall_into_theirs():
    values = np.random.default_rng(0).normal(size=(7, 192))
    found = frequencies(values)
    np.testing.assert_allclose(np.square(found).sum(axis=1), np.square(values).sum(axis=1))
    np.testing.assert_allclose(from_frequencies(found), values, atol=1e-12)
    columns = band_columns()
    assert list(columns) == list(BANDS)
    assert sorted(np.concatenate(list(columns.values()))) == list(range(192))
    place = (np.arange(8) + 0.5) / 8
    for k, band in ((0, "mean"), (1, "coarse"), (3, "middle"), (6, "fine")):
        wave = np.broadcast_to(np.cos(np.pi * k * place)[:, None, None], (8, 8, 3)).reshape(1, -1)
        sizes = {name: float(np.square(frequencies(wave)[:, one]).sum()) for name, one in columns.items()}
        assert max(sizes, key=sizes.__getitem__) == band
        assert sum(sizes.values()) == pytest.approx(sizes[band])


def test_boxes_become_shares_of_cells_resized_and_cropped_as_images_are():
    box = Boxes(np.array([[0, 0, 20, 40]]), np.array([0]), np.array([False]))
    none = Boxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    values = np.empty(2, object)
    values[:] = [box, none]
    images = ImageSet.from_arrays(
        "boxes",
        np.zeros((2, 40, 40, 3), np.uint8),
        {"objects": Target(values, "boxes", ("thing",))},
        np.full(2, "test"),
    )
    assert region_target(images) == "objects"
    found = foreground(images, Preprocessing(32, 40), "objects")
    assert found[1].max() == 0
    np.testing.assert_allclose(found[0, :, :4], 1)
    np.testing.assert_allclose(found[0, :, 4:], 0)


def test_images_without_masks_or_boxes_have_no_foreground():
    images = ImageSet.from_arrays("plain", np.zeros((2, 8, 8, 3), np.uint8), ["a", "b"], np.full(2, "train"))
    assert region_target(images) is None
