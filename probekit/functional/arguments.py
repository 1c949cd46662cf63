"""What every function here asks of its arrays, checked once and said alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.errors import InputError, NonFiniteFeatures

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
AnyFloats = NDArray[np.float32] | NDArray[np.float64]


def check_features(features: ArrayLike, name: str = "features") -> AnyFloats:
    """Return finite features as a (N, D) array of float32, where they came as that, or float64.

    Raises:
        InputError: If they are not a matrix with a row and a column.
        NonFiniteFeatures: If they hold NaN or infinity.
    """
    array = np.asarray(features)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{name} of shape (N, D), at least 1 by 1", f"shape {array.shape}", "Pool or flatten them first"
        )
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} that are real numbers", f"dtype {array.dtype}", "Convert them first")
    # float16, integers and bool are widened: half precision overflows in the first product.
    floats = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    # The sum over a row is finite unless a value is not (or the sum overflows, which is as unusable).
    with np.errstate(over="ignore", invalid="ignore"):
        bad = np.flatnonzero(~np.isfinite(floats.sum(axis=1)))
    if len(bad):
        raise NonFiniteFeatures(
            f"finite {name}",
            f"NaN or infinity in {len(bad)} of {len(floats)} rows, first row {bad[0]}",
            "Look at that image and at the precision of the forward pass",
        )
    return floats


def check_labels(labels: ArrayLike, count: int, n_classes: int, name: str = "labels") -> IntArray:
    """Return (…, N) labels as int64 after checking their number and range.

    Raises:
        InputError: If their last axis is not ``count`` long, or one lies outside 0 … C − 1.
    """
    array = np.asarray(labels)
    if array.ndim == 0 or array.shape[-1] != count:
        raise InputError(f"{count} {name}, one a row of the features", f"shape {array.shape}", "Align them")
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"{name} that are integers", f"dtype {array.dtype}", "Encode class names as 0 … C − 1"
        )
    if array.size and (array.min() < 0 or array.max() >= n_classes):
        raise InputError(
            f"{name} from 0 to {n_classes - 1}",
            f"from {array.min()} to {array.max()}",
            "Check `n_classes` and the encoding",
        )
    return array.astype(np.int64)


def check_weight(sample_weight: ArrayLike | None, count: int) -> FloatArray:
    """Return (N,) row weights that sum to 1; None weighs all rows alike.

    Raises:
        InputError: If a weight is negative or not finite, or none is positive.
    """
    if sample_weight is None:
        return np.full(count, 1.0 / count)
    weight = np.asarray(sample_weight, np.float64)
    if weight.shape != (count,):
        raise InputError(f"{count} sample weights", f"shape {weight.shape}", "Give one a row")
    if not np.isfinite(weight).all() or weight.min() < 0 or weight.max() <= 0:
        raise InputError(
            "finite sample weights of at least 0, one of them positive",
            f"from {weight.min()} to {weight.max()}",
            "Use 0 to leave a row out",
        )
    # Scaled before the sum, which could overflow.
    weight = weight / weight.max()
    return np.asarray(weight / weight.sum())


def check_penalties(penalties: ArrayLike) -> FloatArray:
    """Return (P,) positive penalties.

    Raises:
        InputError: If there is none, or one is not positive and finite.
    """
    array = np.atleast_1d(np.asarray(penalties, np.float64))
    if array.ndim != 1 or not array.size or not np.isfinite(array).all() or array.min() <= 0:
        raise InputError(
            "a list of positive penalties",
            repr(penalties),
            "Take a grid such as 10.0 ** np.arange(1, -6, -1)",
        )
    return array


def check_gaps(gap: ArrayLike, count: int, max_iterations: int) -> tuple[FloatArray, int]:
    """Return (P,) relative gaps, of one for all or one each, and a number of iterations of at least 1.

    Raises:
        InputError: If either is out of range, or there is another number of gaps.
    """
    gaps = np.asarray(gap, np.float64)
    if gaps.shape not in ((), (count,)):
        raise InputError(f"one gap, or {count}", f"shape {gaps.shape}", "Give one a penalty")
    if not ((gaps > 0) & (gaps < 1)).all():
        raise InputError("a relative gap between 0 and 1", str(gap), "1e-4 is the default")
    if max_iterations < 1:
        raise InputError("at least 1 iteration", str(max_iterations), "1000 is the default")
    return np.broadcast_to(gaps, (count,)).copy(), max_iterations
