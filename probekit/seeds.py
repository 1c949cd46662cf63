"""Named, independent random streams: one per use, so that adding a use never shifts another."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def named_seed(name: str, *keys: int | str) -> int:
    """Return a 63-bit seed for one use of randomness.

    Args:
        name: What the randomness is for, such as ``"validation split"``.
        *keys: What sets this stream apart from others of that name (seed, trial, shots).

    Examples:
        >>> named_seed("bootstrap", 0) == named_seed("bootstrap", 0)
        True
        >>> named_seed("bootstrap", 0) == named_seed("bootstrap", 1)
        False
    """
    text = "\x1f".join([name, *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def random_stream(name: str, *keys: int | str) -> np.random.Generator:
    """Return the NumPy generator of one named stream (PCG64).

    Examples:
        >>> float(random_stream("example", 1).random()) == float(random_stream("example", 1).random())
        True
    """
    return np.random.Generator(np.random.PCG64(named_seed(name, *keys)))


def draw_rows(count: int, most: int, seed: int) -> NDArray[np.intp]:
    """Return all row numbers, or the same ``most`` of them for every layer, in order.

    Examples:
        >>> draw_rows(3, 5, seed=0).tolist(), len(draw_rows(100, 5, seed=0))
        ([0, 1, 2], 5)
    """
    if count <= most:
        return np.arange(count)
    return np.sort(random_stream("subsample", seed, count, most).choice(count, most, replace=False))
