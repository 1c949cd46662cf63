"""Pixels kept for the next model are those that would be decoded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probekit import ImageSet, Preprocessing
from probekit.data import kept
from probekit.data.kept import kept_pixels

SMALL, LARGE = Preprocessing(8, 10), Preprocessing(12, 12, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Counted:
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.reads = pixels, []

    def read(self, index: int):
        self.reads.append(index)
        return self.pixels[index]


@pytest.fixture
def source() -> Counted:
    return Counted(np.random.default_rng(0).integers(0, 256, (9, 16, 14, 3), dtype=np.uint8))


@pytest.fixture
def images(source: Counted) -> ImageSet:
    plain = ImageSet.from_arrays("some", source.pixels, list("ababababa"), splits=["train"] * 9)
    return replace(plain, source=source)


def test_a_second_reading_decodes_nothing_and_gives_the_same(
    images: ImageSet, source: Counted, tmp_path: Path
):
    expected = {one: [images.pixels(i, one) for i in range(9)] for one in (SMALL, LARGE)}
    source.reads.clear()
    with kept_pixels(images, tmp_path) as shared, ThreadPoolExecutor(4) as threads:
        assert shared.digest == images.digest
        for _ in range(2):
            for one, pixels in expected.items():
                found = list(threads.map(lambda i, one=one: shared.pixels(i, one), range(9)))
                np.testing.assert_array_equal(found, pixels)
        assert len(source.reads) == 18
        # Normalisation is not part of the pixels; a selection knows the places of its images.
        other = replace(LARGE, mean=(0.1, 0.2, 0.3))
        np.testing.assert_array_equal(shared.pixels(3, other), expected[LARGE][3])
        np.testing.assert_array_equal(shared.select([7, 2]).pixels(0, SMALL), expected[SMALL][7])
        assert len(source.reads) == 18
    assert list(tmp_path.iterdir()) == []


def test_a_selection_may_be_read_before_the_whole(images: ImageSet, source: Counted, tmp_path: Path):
    expected = [images.pixels(i, SMALL) for i in range(9)]
    source.reads.clear()
    with kept_pixels(images, tmp_path) as shared:
        np.testing.assert_array_equal(shared.select([8, 3]).pixels(0, SMALL), expected[8])
        for i in range(9):
            np.testing.assert_array_equal(shared.pixels(i, SMALL), expected[i])
    assert source.reads == [8, 0, 1, 2, 3, 4, 5, 6, 7]


def test_a_full_disk_costs_the_memory_and_not_the_run(
    images: ImageSet, source: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.os, "pwrite", full)
    with kept_pixels(images, tmp_path) as shared:
        for _ in range(2):
            np.testing.assert_array_equal(shared.pixels(4, SMALL), images.pixels(4, SMALL))


def test_what_would_take_too_much_room_is_not_kept(
    images: ImageSet, source: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kept, "MOST_BYTES", 9 * 8 * 8 * 3 - 1)
    with kept_pixels(images, tmp_path) as shared:
        for _ in range(2):
            shared.pixels(0, SMALL)
        assert source.reads == [0, 0]
