"""Matrices with a row an image: read in blocks, and kept in a file where they are too large for memory."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

# Larger arrays lie in a file without a name in the folder of temporary files, and are read through the page
# cache: the system takes that back when it needs it.
MEMORY_BYTES = 2**27
_BLOCK_BYTES = 2**25


def empty_rows(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array to be filled: in memory, or in a file without a name where it is too large for that.

    Examples:
        >>> empty_rows((3, 2), np.float32).shape
        (3, 2)
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size > MEMORY_BYTES:
        with tempfile.TemporaryFile() as file:
            if _reserved(file.fileno(), size):
                # As a plain array, which keeps the map alive.
                return np.asarray(np.memmap(file, kind, "r+", shape=tuple(shape)))
    return np.empty(shape, kind)


def row_blocks(count: int, width: int, block_bytes: int | None = None) -> list[slice]:
    """Return slices of ``count`` rows, each small in float64.

    Args:
        count: Rows.
        width: Numbers a row.
        block_bytes: Most of a block; None takes 32 MiB.

    Examples:
        >>> row_blocks(5, 2**21)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(1, (block_bytes or _BLOCK_BYTES) // (8 * max(1, width)))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _reserved(file: int, size: int) -> bool:
    """Take the room on the disk, so that a full one shows here and not when the map is written to."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.truncate(file, size)
    except OSError:
        # Memory may have the room that the disk has not.
        return False
    return True
