"""Nearest neighbours by cosine similarity, and their votes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from probekit.errors import InputError
from probekit.functional.arguments import (
    AnyFloats,
    FloatArray,
    IntArray,
    check_features,
    check_labels,
)
from probekit.functional.rows import empty_rows, row_blocks

# Bytes of one block of similarities.
_BLOCK_BYTES = 2**26


def nearest_neighbours(
    train: ArrayLike,
    queries: ArrayLike,
    *,
    k: int,
    exclude_self: bool = False,
    device: str | torch.device = "cpu",
) -> tuple[IntArray, NDArray[np.float32]]:
    """Find the k rows most like each query by cosine similarity.

    A row of zeros is like nothing: its similarities are 0. Of equally similar rows the earlier ones are
    taken first, on every machine and for every block size.

    Args:
        train: (N, D) rows to choose from.
        queries: (M, D) rows to find neighbours of.
        k: How many, at most N (N − 1 with ``exclude_self``).
        exclude_self: Whether queries are the training rows in the same order, and no row may be its own
            neighbour.
        device: Where to compute.

    Returns:
        (M, k) row numbers by falling similarity, and (M, k) similarities from −1 to 1.

    Raises:
        InputError: If k is out of range, or widths differ.
        NonFiniteFeatures: If a value is NaN or infinite.

    Examples:
        >>> places, similarities = nearest_neighbours([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0]], k=2)
        >>> places.tolist(), similarities.round(2).tolist()
        ([[0, 1]], [[0.8899999856948853, 0.44999998807907104]])
    """
    x, q = check_features(train, "training rows"), check_features(queries, "queries")
    _check_sizes(x, q, k, exclude_self)
    gallery = _unit_gallery(x).to(device)
    size = max(1, _BLOCK_BYTES // (4 * len(x)))
    places, similarities = np.empty((len(q), k), np.int64), np.empty((len(q), k), np.float32)
    for start in range(0, len(q), size):
        block = _unit_rows(q[start : start + size]).to(device) @ gallery.T
        block.clamp_(-1, 1)
        if exclude_self:
            own = torch.arange(len(block), device=block.device)
            block[own, start + own] = -torch.inf
        near, at = _leading(block, k)
        places[start : start + size], similarities[start : start + size] = (
            at.cpu().numpy(),
            near.cpu().numpy(),
        )
    return places, similarities


def vote(
    labels: ArrayLike, similarities: ArrayLike, *, n_classes: int, temperature: float = 0.07
) -> FloatArray:
    """Sum the votes of neighbours, each of weight exp(similarity/T).

    Source: Wu et al., Unsupervised feature learning via non-parametric instance discrimination (CVPR 2018),
    section 3.4, with T = 0.07.

    Args:
        labels: (M, k) class of each neighbour.
        similarities: (M, k) from −1 to 1.
        n_classes: C.
        temperature: T; infinite counts every neighbour alike.

    Returns:
        (M, C) scores, each row of sum 1.

    Raises:
        InputError: If shapes disagree, a label is out of range or the temperature is not positive.
    """
    near = np.asarray(similarities, np.float64)
    if not temperature > 0:
        raise InputError("a temperature above 0", str(temperature), "0.07 is customary")
    classes = check_labels(labels, near.shape[-1], n_classes, "labels of neighbours")
    if classes.shape != near.shape:
        raise InputError("a label for each similarity", f"{classes.shape} and {near.shape}", "Align them")
    # The largest is taken out before the exponential: exp(1/T) overflows at a low temperature.
    weight = np.exp((near - near.max(axis=1, keepdims=True)) / temperature)
    places = classes + n_classes * np.arange(len(classes))[:, None]
    scores = np.bincount(places.ravel(), weight.ravel(), minlength=n_classes * len(classes))
    return np.asarray(scores.reshape(-1, n_classes) / weight.sum(axis=1, keepdims=True))


def vote_neighbours(
    train: ArrayLike,
    train_labels: ArrayLike,
    queries: ArrayLike,
    *,
    k: int | tuple[int, ...],
    n_classes: int,
    temperature: float = 0.07,
    exclude_self: bool = False,
    device: str | torch.device = "cpu",
) -> FloatArray:
    """Classify queries by the weighted votes of their k nearest training rows.

    Cosine similarity, each neighbour of weight exp(similarity/T) (Wu et al., CVPR 2018, section 3.4).

    Args:
        train: (N, D).
        train_labels: (N,) integers from 0 to C − 1.
        queries: (M, D).
        k: How many neighbours vote; a tuple gives several answers from one pass.
        n_classes: C.
        temperature: T.
        exclude_self: Whether queries are the training rows, none of which may vote for itself.
        device: Where to compute.

    Returns:
        (M, C) scores, each row of sum 1; (len(k), M, C) for a tuple.

    Raises:
        InputError: If shapes disagree, or a label, k or temperature is out of range.
        NonFiniteFeatures: If a value is NaN or infinite.

    Examples:
        >>> train, labels = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], [0, 0, 1]
        >>> vote_neighbours(train, labels, [[0.1, 1.0]], k=(1, 3), n_classes=2).argmax(axis=2).tolist()
        [[1], [1]]
    """
    x = check_features(train, "training rows")
    y = check_labels(train_labels, len(x), n_classes)
    several = k if isinstance(k, tuple) else (k,)
    if not several or min(several) < 1:
        raise InputError("k of at least 1", repr(k), "20 is customary")
    places, near = nearest_neighbours(x, queries, k=max(several), exclude_self=exclude_self, device=device)
    scores = np.stack(
        [
            vote(y[places[:, :one]], near[:, :one], n_classes=n_classes, temperature=temperature)
            for one in several
        ]
    )
    return scores if isinstance(k, tuple) else np.asarray(scores[0])


def _check_sizes(train: AnyFloats, queries: AnyFloats, k: int, exclude_self: bool) -> None:
    if train.shape[1] != queries.shape[1]:
        raise InputError(
            f"queries of {train.shape[1]} features, as many as the training rows", f"{queries.shape[1]}",
            "Read both at the same tap",
        )  # fmt: skip
    if exclude_self and len(train) != len(queries):
        raise InputError(
            "the training rows themselves as queries", f"{len(queries)} queries for {len(train)} rows",
            "Leave out `exclude_self`",
        )  # fmt: skip
    most = len(train) - exclude_self
    if not 1 <= k <= most:
        raise InputError(f"k from 1 to the {most} rows to choose from", str(k), "Take fewer neighbours")


def _unit_gallery(rows: AnyFloats) -> torch.Tensor:
    unit = empty_rows(rows.shape, np.float32)
    for part in row_blocks(*rows.shape):
        unit[part] = _unit_rows(rows[part])
    return torch.from_numpy(unit)


def _unit_rows(rows: AnyFloats) -> torch.Tensor:
    """Return float32 rows of length 1; rows of zeros stay."""
    # Scaled by the largest entry first: squares of very large or small values leave float32.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    scaled = rows / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return torch.from_numpy((scaled / np.where(length > 0, length, 1)).astype(np.float32))


def _leading(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest of each row and their places, the earlier place first among equals."""
    if k == values.shape[1]:
        return torch.sort(values, dim=1, descending=True, stable=True)
    found = torch.topk(values, k + 1, dim=1)
    # topk may take any of several equals; it matters only where the k-th and the next are equal.
    tied = torch.nonzero(found.values[:, k - 1] == found.values[:, k])[:, 0]
    near, at = found.values[:, :k], found.indices[:, :k]
    by_place = torch.sort(at, dim=1)
    near, order = torch.sort(near.gather(1, by_place.indices), dim=1, descending=True, stable=True)
    at = by_place.values.gather(1, order)
    if len(tied):
        whole = torch.sort(values[tied], dim=1, descending=True, stable=True)
        near[tied], at[tied] = whole.values[:, :k], whole.indices[:, :k]
    return near, at
