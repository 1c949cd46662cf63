"""Where the images of a set come from: files of a folder, members of a zip, arrays made when first needed.

Every source may be read by several threads and survives pickling and forking.
"""

from __future__ import annotations

import io
import os
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from probekit.data.decoding import decode, unreadable
from probekit.errors import DataError

# UnicodeDecodeError, of a member's name, is a ValueError.
_ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, RuntimeError, ValueError)


@dataclass(frozen=True)
class FileSource:
    """Image files.

    Attributes:
        paths: N paths.
    """

    paths: Sequence[Path]

    def read(self, index: int) -> Image.Image:
        """Decode one file.

        Raises:
            ImageUnreadable: If it is missing or damaged; the message holds the path.
        """
        return decode(self.paths[index], str(self.paths[index]))


class ZipSource:
    """Members of a zip archive, which is opened once in each process.

    Args:
        path: The archive.
        members: N names of members.
    """

    def __init__(self, path: Path, members: Sequence[str]) -> None:
        self.path, self.members = path, members
        # Process, archive, lock: a forked process must not share the file's position with its parent.
        self._opened: tuple[int, zipfile.ZipFile, threading.Lock] | None = None
        self._opening = threading.Lock()

    def __getstate__(self) -> tuple[Path, Sequence[str]]:
        return self.path, self.members

    def __setstate__(self, state: tuple[Path, Sequence[str]]) -> None:
        self.__init__(*state)  # type: ignore[misc] # the documented way to start again from arguments

    def read(self, index: int) -> Image.Image:
        """Decode one member.

        Raises:
            ImageUnreadable: If it is missing or damaged; the message holds archive and member.
        """
        where = f"{self.path}/{self.members[index]}"
        try:
            archive, lock = self._archive()
            with lock:
                data = archive.read(self.members[index])
        except _ZIP_DAMAGE as error:
            raise unreadable(where, error) from error
        return decode(io.BytesIO(data), where)

    def _archive(self) -> tuple[zipfile.ZipFile, threading.Lock]:
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            with self._opening:
                opened = self._opened
                if opened is None or opened[0] != os.getpid():
                    opened = self._opened = (os.getpid(), zipfile.ZipFile(self.path), threading.Lock())
        return opened[1], opened[2]


class BlockSource:
    """Pixels made or loaded a block at a time, when first needed; the last few blocks are kept.

    Args:
        load: Number of a block → (n, H, W), (n, H, W, 1), (n, H, W, 3) or (n, H, W, 4) pixels, uint8 or
            float in [0, 1], where n = ``length`` but for the last block.
        length: Images a block.
        kept: Blocks kept in memory.
    """

    def __init__(self, load: Callable[[int], NDArray[Any]], length: int, kept: int = 16) -> None:
        self._load, self._length, self._kept = load, max(1, length), kept
        self._blocks: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[Any, int, int]:
        return self._load, self._length, self._kept

    def __setstate__(self, state: tuple[Any, int, int]) -> None:
        self.__init__(*state)  # type: ignore[misc] # the documented way to start again from arguments

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels of one image, (H, W, 3) or (H, W, 4)."""
        number, place = divmod(index, self._length)
        with self._lock:
            if number not in self._blocks:
                self._blocks[number] = eight_bit_pixels(self._load(number))
                while len(self._blocks) > self._kept:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(number)
            block = self._blocks[number]
        return block[place]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ArraySource:
    """Pixels in memory.

    Attributes:
        pixels: (N, H, W, 3) or (N, H, W, 4).
    """

    pixels: NDArray[np.uint8]

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels of one image, (H, W, 3) or (H, W, 4)."""
        return self.pixels[index]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Selection:
    """Some images of another source, in any order.

    Attributes:
        base: The other source.
        indices: (N,) places in it.
    """

    base: Any
    indices: NDArray[np.int64]

    def read(self, index: int) -> Image.Image | NDArray[np.uint8]:
        """Read image ``index`` of the selection."""
        return self.base.read(int(self.indices[index]))  # type: ignore[no-any-return]


def selection(base: object, indices: NDArray[np.int64]) -> Selection:
    """Select from a source; a selection of a selection is one selection.

    Examples:
        >>> inner = selection(None, np.array([4, 5, 6]))
        >>> selection(inner, np.array([2, 0])).indices.tolist()
        [6, 4]
    """
    if isinstance(base, Selection):
        return Selection(base.base, base.indices[indices])
    return Selection(base, indices)


def check_pixel_shape(shape: Sequence[int], kind: str) -> None:
    """Check the shape and dtype kind of an array of images before it is loaded.

    Raises:
        DataError: If it cannot be an array of images with the channels last.
    """
    grey, colour = len(shape) == 3, len(shape) == 4 and shape[-1] in (1, 3, 4)
    if not (grey or colour) or 0 in shape:
        first = len(shape) == 4 and shape[1] in (1, 3, 4)
        raise DataError(
            "images of shape (N, H, W, 3) or (N, H, W)",
            f"shape {tuple(shape)}",
            "Move the channels to the end: images.transpose(0, 2, 3, 1)" if first else "Reshape the array",
        )
    if kind not in "uf":
        raise DataError("uint8 pixels, or floats in [0, 1]", f"dtype kind {kind!r}", "Convert the array")


def eight_bit_pixels(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn an array of images into (N, H, W, 3) or (N, H, W, 4) uint8.

    Floats in [0, 1] are scaled by 255 and rounded, uint16 divided by 257 and rounded; grey is repeated.

    Raises:
        DataError: If shape, dtype or range is another.

    Examples:
        >>> eight_bit_pixels(np.array([[[0.0, 1.0]]])).tolist()
        [[[[0, 0, 0], [255, 255, 255]]]]
    """
    check_pixel_shape(images.shape, images.dtype.kind)
    if images.dtype.kind == "f":
        # NaN fails both comparisons.
        if not (float(images.min()) >= 0 and float(images.max()) <= 1):
            raise DataError(
                "floats in [0, 1]", f"values from {images.min()} to {images.max()}", "Divide them by 255"
            )
        images = np.round(images * 255)
    elif images.dtype == np.uint16:
        images = (images.astype(np.uint32) + 128) // 257
    elif images.dtype != np.uint8:
        raise DataError("uint8 pixels, or floats in [0, 1]", str(images.dtype), "Convert the array")
    pixels = images.astype(np.uint8)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
