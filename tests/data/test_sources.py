from __future__ import annotations

import io
import multiprocessing
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probekit.data.sources import BlockSource, FileSource, ZipSource, eight_bit_pixels, selection
from probekit.errors import DataError, ImageUnreadable


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (2, 2), value).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> ZipSource:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for value in range(40):
            opened.writestr(f"{value}.png", png(value))
    return ZipSource(path, [f"{value}.png" for value in range(40)])


def grey_of(source, index: int) -> int:
    return source.read(index).getpixel((0, 0))


def test_members_are_read_by_many_threads(archive):
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(partial(grey_of, archive), list(range(40)) * 10))
    assert values == list(range(40)) * 10


def test_archive_is_pickled_without_its_handle(archive):
    grey_of(archive, 0)
    assert grey_of(pickle.loads(pickle.dumps(archive)), 3) == 3


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_process_opens_the_archive_anew(archive):
    grey_of(archive, 0)
    # A copy of this lock, taken for ever, would keep a child waiting that used the parent's handle.
    with archive._archive()[1]:
        child = multiprocessing.get_context("fork").Process(target=grey_of, args=(archive, 5))
        child.start()
        child.join(20)
    child.kill()
    child.join()
    assert child.exitcode == 0


def test_damaged_member_is_named(archive):
    data = bytearray(archive.path.read_bytes())
    start = data.find(b"7.png") + 5
    data[start : start + 20] = b"\0" * 20
    archive.path.write_bytes(bytes(data))
    with pytest.raises(ImageUnreadable, match=r"images\.zip/7\.png"):
        archive.read(7)


def test_missing_member_and_file_are_named(archive, tmp_path):
    with pytest.raises(ImageUnreadable, match=r"images\.zip/no\.png"):
        ZipSource(archive.path, ["no.png"]).read(0)
    with pytest.raises(ImageUnreadable, match=r"no\.png"):
        FileSource([tmp_path / "no.png"]).read(0)


def test_blocks_load_when_needed_and_the_oldest_go():
    loaded = []

    def load(block: int) -> np.ndarray:
        loaded.append(block)
        return np.full((4, 2, 2), block, np.uint8)

    source = BlockSource(load, 4, kept=2)
    assert loaded == []
    assert [int(source.read(index)[0, 0, 0]) for index in (0, 3, 4, 9)] == [0, 0, 1, 2]
    assert loaded == [0, 1, 2]
    source.read(5)
    source.read(1)
    source.read(5)
    assert loaded == [0, 1, 2, 0]


def test_block_is_loaded_once_by_many_threads():
    loaded = []
    source = BlockSource(lambda block: loaded.append(block) or np.zeros((50, 1, 1), np.uint8), 50)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(source.read, range(50)))
    assert loaded == [0]


def test_selections_of_selections_are_flat():
    inner = selection("base", np.array([5, 6, 7]))
    outer = selection(inner, np.array([2, 0]))
    assert outer.base == "base"
    assert outer.indices.tolist() == [7, 5]


def test_pixels_of_every_dtype_become_eight_bit():
    assert eight_bit_pixels(np.array([[[0.0, 0.5, 1.0]]], np.float32))[0, 0, :, 1].tolist() == [0, 128, 255]
    assert eight_bit_pixels(np.array([[[0, 257, 65535]]], np.uint16))[0, 0, :, 2].tolist() == [0, 1, 255]
    colour = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    made = eight_bit_pixels(colour)
    assert np.array_equal(made, colour)
    assert made is not colour


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 3, 8, 8), np.uint8), "transpose"),
        (np.zeros((8, 8), np.uint8), "shape"),
        (np.zeros((0, 8, 8, 3), np.uint8), "shape"),
        (np.zeros((1, 8, 8, 3), np.int64), "uint8"),
        (np.zeros((1, 8, 8, 3), np.uint32), "uint8"),
        (np.full((1, 8, 8, 3), 255.0), "Divide"),
        (np.full((1, 8, 8, 3), np.nan), "floats"),
        (np.full((1, 8, 8, 3), -0.1), "floats"),
    ],
)
def test_impossible_pixels_are_refused(images, said):
    with pytest.raises(DataError, match=said):
        eight_bit_pixels(images)
