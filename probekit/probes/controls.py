"""Nulls: what a probe scores when there is nothing to find."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.seeds import random_stream


def permute_rows(count: int, draws: int, *, seed: int, name: str) -> NDArray[np.intp]:
    """Draw row orders that break the tie between features and targets.

    Args:
        count: n rows.
        draws: B orders.
        seed: Seed of the named stream.
        name: What is permuted; every data set and target has a stream of its own.

    Returns:
        (B, n) row numbers.
    """
    orders = list(each_order(count, draws, seed=seed, name=name))
    return np.stack(orders) if draws else np.empty((0, count), np.intp)


def each_order(count: int, draws: int, *, seed: int, name: str) -> Iterator[NDArray[np.intp]]:
    """Yield the orders of `permute_rows` one at a time: all of them may be large."""
    stream = random_stream(f"permuted {name}", seed)
    for _ in range(draws):
        yield stream.permutation(count)


def with_permuted(labels: NDArray[np.int64], draws: int, *, seed: int, name: str) -> NDArray[np.integer[Any]]:
    """Return (1 + B, n) labels, as they are and in the orders of `permute_rows`, no wider than they need."""
    narrow = np.int16 if labels.max(initial=0) <= np.iinfo(np.int16).max else np.int64
    rows = np.empty((1 + draws, len(labels)), narrow)
    rows[0] = labels
    for own, order in zip(rows[1:], each_order(len(labels), draws, seed=seed, name=name), strict=True):
        own[:] = labels[order]
    return rows


def permute_within(groups: NDArray[np.int64], draws: int, *, seed: int, name: str) -> NDArray[np.intp]:
    """Draw row orders that move every row only within its group.

    A factor permuted within class keeps what the class says of it, so that its null is what a probe
    can get from the class alone.

    Args:
        groups: (n,) group of each row.
        draws: B orders.
        seed: Seed of the named stream.
        name: What is permuted.

    Returns:
        (B, n) row numbers.
    """
    stream = random_stream(f"permuted within class {name}", seed)
    orders = np.tile(np.arange(len(groups)), (draws, 1))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        for order in orders:
            order[rows] = stream.permutation(rows)
    return orders


def null_columns(values: NDArray[np.float64]) -> dict[str, float | str]:
    """Return the null columns of a row from the B scores under permuted targets: mean and range.

    Examples:
        >>> null_columns(np.array([0.1, 0.3]))
        {'null': 0.2, 'null_low': 0.1, 'null_high': 0.3, 'null_kind': 'permuted,2'}
    """
    if len(values) == 0:
        return {}
    return {
        "null": float(np.mean(values)),
        "null_low": float(np.min(values)),
        "null_high": float(np.max(values)),
        "null_kind": f"permuted,{len(values)}",
    }
