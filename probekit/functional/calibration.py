"""Does a stated probability hold as often as it says, and how much does it leave open?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.errors import InputError
from probekit.functional.arguments import FloatArray, IntArray, check_labels

BINS = 15


def confidence_bins(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS
) -> tuple[FloatArray, NDArray[np.bool_], IntArray]:
    """Sort predictions into bins by the probability of the top class.

    Bins have equal width and are closed above, as in Guo et al. (ICML 2017). Bins of equal mass vary less,
    but their edges move with every resample, so that no sums per image would give the error of a resample.

    Args:
        probabilities: (N, C), rows sum to 1.
        labels: (N,) true classes.
        bins: Bins on [0, 1].

    Returns:
        (N,) confidence, (N,) whether the top class was right, (N,) bin from 0 to ``bins`` − 1.

    Raises:
        InputError: If rows do not sum to 1, a label is out of range, or there is no bin.
    """
    p, y = _check_probabilities(probabilities, labels)
    if bins < 1:
        raise InputError("at least 1 bin", str(bins), f"{BINS} is customary")
    confidence = np.minimum(p.max(axis=1), 1.0)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return confidence, p.argmax(axis=1) == y, place


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> float:
    """Return the mean distance between stated confidence and accuracy of the top class.

    ECE = Σ_b (n_b/N)·|accuracy(b) − confidence(b)|, Guo et al., On calibration of modern neural networks
    (ICML 2017), equation 3, 15 bins of equal width. It is biased upwards where bins hold few images: even a
    calibrated probe is not at 0.

    Args:
        probabilities: (N, C), rows sum to 1.
        labels: (N,) true classes.
        bins: Bins on [0, 1].

    Returns:
        A share from 0, calibrated, to 1.

    Raises:
        InputError: If rows do not sum to 1, a label is out of range, or there is no bin.

    Examples:
        >>> expected_calibration_error([[0.75, 0.25]] * 4, [0, 0, 0, 1])
        0.0
    """
    confidence, hit, place = confidence_bins(probabilities, labels, bins)
    gaps = np.bincount(place, hit - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def cross_entropy_bits(logits: ArrayLike, labels: ArrayLike) -> FloatArray:
    """Return the bits each image costs under softmax(logits): −log₂ of the probability of its class.

    Logits rather than probabilities, so that no probability is rounded to 0.

    Args:
        logits: (N, C).
        labels: (N,) true classes.

    Returns:
        (N,) bits of at least 0; their mean is the cross-entropy.

    Raises:
        InputError: If shapes disagree or a label is out of range.

    Examples:
        >>> cross_entropy_bits([[0.0, 0.0, 0.0, 0.0], [2000.0, 0.0, 0.0, 0.0]], [0, 1]).round(1).tolist()
        [2.0, 2885.4]
    """
    z, y = _check_rows(logits, labels, "logits")
    above = z - z.max(axis=1, keepdims=True)
    nats = np.log(np.exp(above).sum(axis=1)) - above[np.arange(len(y)), y]
    return np.asarray(nats / np.log(2))


def _check_rows(values: ArrayLike, labels: ArrayLike, name: str) -> tuple[FloatArray, IntArray]:
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name} of shape (N, C)", f"shape {array.shape}", "Give one row an image")
    if not np.isfinite(array).all():
        raise InputError(f"finite {name}", "NaN or infinity", "Look at the probe that gave them")
    return array, check_labels(labels, len(array), array.shape[1])


def _check_probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    p, y = _check_rows(probabilities, labels, "probabilities")
    if p.min() < 0 or np.abs(p.sum(axis=1) - 1).max() > 1e-3:
        raise InputError("probabilities, rows of sum 1", "others", "Take the softmax of logits first")
    return p, y
