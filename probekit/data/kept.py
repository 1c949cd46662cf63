"""Pixels kept for the next model: decoded once, read again from one file."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing

log = logging.getLogger(__name__)

# What kept pixels may take of a disk: so many bytes, and no more than this share of what is free.
MOST_BYTES, MOST_SHARE = 8 << 30, 0.25


@contextmanager
def kept_pixels(images: ImageSet, folder: Path) -> Iterator[ImageSet]:
    """Yield the same images; pixels asked for a second time are read instead of decoded.

    The pixels of a preprocessing lie in a file without a name under ``folder``, which is gone at the end,
    even if the process is killed. Where they would take too much room, nothing is kept.

    Args:
        images: Digest, ids and order stay what they are.
        folder: Where to keep them; made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    memory = PixelMemory(folder, np.arange(len(images)), len(images))
    try:
        yield replace(images, memory=memory)
    finally:
        memory.close()


@dataclass(eq=False)
class PixelMemory:
    """Pixels of images by what was done to them; several threads may read and write.

    Attributes:
        folder: Where the files are.
        places: (N,) place of each image in the files.
        count: How many places a file has.
    """

    folder: Path
    places: NDArray[np.int64]
    count: int
    _kept: dict[tuple[int, int, str], _Pixels | None] = field(default_factory=dict)
    _opening: threading.Lock = field(default_factory=threading.Lock)

    def select(self, chosen: NDArray[np.int64]) -> PixelMemory:
        """Return the memory of some of the images, sharing the files."""
        return replace(self, places=self.places[chosen])

    def pixels(self, images: ImageSet, index: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        """Return (size, size, 3) pixels of one image, decoding them if they are not there yet."""
        geometry = preprocessing.resize, preprocessing.size, preprocessing.interpolation
        with self._opening:
            if geometry not in self._kept:
                self._kept[geometry] = self._open(preprocessing.size)
        kept = self._kept[geometry]
        place = int(self.places[index])
        if kept is not None and kept.there[place]:
            return kept.read(place)
        pixels = images.fresh_pixels(index, preprocessing)
        if kept is not None:
            kept.write(place, pixels)
        return pixels

    def _open(self, size: int) -> _Pixels | None:
        wanted = self.count * size * size * 3
        if not hasattr(os, "pread") or wanted > min(
            MOST_BYTES, MOST_SHARE * shutil.disk_usage(self.folder).free
        ):
            log.info("%.1f GB of pixels are not kept: they are decoded for every model", wanted / 1e9)
            return None
        file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - closed by close()
        return _Pixels(file, size, np.zeros(self.count, np.bool_))

    def close(self) -> None:
        """Forget everything."""
        for kept in self._kept.values():
            if kept is not None:
                kept.file.close()
        self._kept.clear()


@dataclass(frozen=True, eq=False)
class _Pixels:
    """One file of N images of one size, and which of them are there."""

    file: BinaryIO
    size: int
    there: NDArray[np.bool_]

    def read(self, index: int) -> NDArray[np.uint8]:
        length = self.size * self.size * 3
        data = os.pread(self.file.fileno(), length, index * length)
        return np.frombuffer(data, np.uint8).reshape(self.size, self.size, 3)

    def write(self, index: int, pixels: NDArray[np.uint8]) -> None:
        data = pixels.tobytes()
        try:
            written = os.pwrite(self.file.fileno(), data, index * len(data))
        except OSError as error:  # a full disk costs the memory, not the run
            log.info("pixels are not kept: %s", error)
            return
        self.there[index] = written == len(data)
