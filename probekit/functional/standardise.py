"""Means, scales and principal axes of feature matrices, without losing digits to an offset."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.errors import InputError
from probekit.functional.arguments import AnyFloats, FloatArray, check_features, check_weight
from probekit.functional.rows import row_blocks

_BLOCK_BYTES = 2**25
# A column that spreads less than this many units in its last place varies by rounding only.
_ROUNDING_UNITS = 4


def standardisation(
    features: ArrayLike, weight: ArrayLike | None = None
) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Return mean, scale and which columns vary.

    Squares are summed in float64 around the mean, in a second pass: a float32 column far from zero keeps its
    variance. A column counts as constant if its standard deviation is within 4 units in the last place
    of its root mean square, in the precision it came in.

    Args:
        features: (N, D).
        weight: (N,) row weights of at least 0; None: all alike.

    Returns:
        (D,) means; (D,) standard deviations (divided by N), 1 at constant columns; (D,) False at constant
        columns.

    Raises:
        InputError: If shapes disagree or a weight is negative.
        NonFiniteFeatures: If a feature is NaN or infinite.

    Examples:
        >>> mean, scale, kept = standardisation(np.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> mean.tolist(), scale.tolist(), kept.tolist()
        ([2.0, 5.0], [1.0, 1.0], [True, False])
    """
    rounding = _ROUNDING_UNITS * _resolution(features)
    x = check_features(features)
    share = check_weight(weight, len(x))
    shift = x[0].astype(np.float64)
    mean = shift + sum(share[rows] @ (block - shift) for rows, block in _blocks(x))
    variance = sum(share[rows] @ np.square(block - mean) for rows, block in _blocks(x))
    scale = np.sqrt(variance)
    kept = scale > rounding * np.hypot(mean, scale)
    return mean, np.where(kept, scale, 1.0), kept


def principal_axes(
    features: ArrayLike, d: int, weight: ArrayLike | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return the mean and the d orthonormal directions of largest variance.

    Args:
        features: (N, D).
        d: How many directions, from 1 to D; fewer rows than that give min(N, D) directions.
        weight: (N,) row weights of at least 0; None: all alike.

    Returns:
        (D,) mean and (D, d) columns by falling variance; the largest entry of each is positive.

    Raises:
        InputError: If d is out of range or shapes disagree.
        NonFiniteFeatures: If a feature is NaN or infinite.

    Examples:
        >>> _, axes = principal_axes(np.array([[0.0, 0.0], [0.0, 2.0], [0.1, 4.0]]), 1)
        >>> axes.round(2).ravel().tolist()
        [0.02, 1.0]
    """
    x = check_features(features)
    if not 1 <= d <= x.shape[1]:
        raise InputError(f"d from 1 to the {x.shape[1]} features", str(d), "Take fewer axes")
    share = check_weight(weight, len(x))
    mean = np.asarray(sum(share[rows] @ block for rows, block in _blocks(x)))
    scaled = (((block - mean) * np.sqrt(share[rows])[:, None]) for rows, block in _blocks(x))
    if len(x) >= x.shape[1]:
        axes = np.linalg.eigh(sum(block.T @ block for block in scaled))[1][:, ::-1]
    else:
        axes = np.linalg.svd(np.concatenate(list(scaled)), full_matrices=False)[2].T
    axes = axes[:, :d]
    # Eigenvectors are known up to sign.
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return mean, axes * np.where(largest < 0, -1.0, 1.0)


def _resolution(features: ArrayLike) -> float:
    """Return the relative spacing of the numbers the features came as; integers are exact."""
    dtype = np.asarray(features).dtype
    return float(np.finfo(dtype if np.issubdtype(dtype, np.floating) else np.float64).eps)


def _blocks(features: AnyFloats) -> Iterator[tuple[slice, FloatArray]]:
    for rows in row_blocks(len(features), features.shape[1], _BLOCK_BYTES):
        yield rows, features[rows].astype(np.float64)
