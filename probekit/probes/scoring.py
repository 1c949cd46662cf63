"""Predictions on the test split → rows: value, interval over test units, null.

Every score of class probabilities is a function of sums over images (hits, bits, hits a class, images a
class, confidence gaps a bin). So one set of resampled sums gives the intervals of all of them, and the same
function gives values and nulls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax, stdtrit

from probekit.functional.calibration import BINS, confidence_bins
from probekit.functional.intervals import bootstrap_statistic, resampled_sums
from probekit.functional.rows import empty_rows
from probekit.probes.controls import null_columns
from probekit.probes.protocol import Protocol
from probekit.seeds import random_stream

CI_KIND = "bootstrap,test units"
# Probabilities below this count as this: one impossible answer must not make a mean infinite.
LEAST_PROBABILITY = 1e-12
# Average precision compares pairs of images: drawn with replacement, copies of an image would rank it against
# itself. So groups of images are left out in turn.
AP_GROUPS = 20
AP_KIND = "jackknife,test units"

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ClassScores:
    """Scores of class probabilities, one entry per resample or labelling (B of them).

    Attributes:
        metrics: Metric → (B,).
        recalls: (B, C) share of hits in each class; NaN where a class was not drawn.
    """

    metrics: dict[str, FloatArray]
    recalls: FloatArray

    @classmethod
    def of(cls, sums: FloatArray, n_classes: int) -> ClassScores:
        """Compute them from (B, 3 + 2C + bins) sums of ``_tallies``."""
        count, hits, bits = sums[:, 0], sums[:, 1], sums[:, 2]
        found, present, gaps = np.split(sums[:, 3:], [n_classes, 2 * n_classes], axis=1)
        recalls = np.divide(found, present, out=np.full_like(found, np.nan), where=present > 0)
        metrics = {
            "accuracy": hits / count,
            "balanced_accuracy": np.nanmean(recalls, axis=1),
            "bits": bits / count,
            # ECE = Σ_b |Σ (hit − confidence)| / n
            "calibration_error": np.abs(gaps).sum(axis=1) / count,
        }
        return cls(metrics, recalls)


def class_rows(
    probabilities: FloatArray,
    truth: NDArray[np.int64],
    classes: Sequence[str],
    null_logits: NDArray[np.floating[Any]],
    protocol: Protocol,
    name: str,
) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """Score class probabilities.

    Args:
        probabilities: (n, C).
        truth: (n,) class of each test image.
        classes: C names.
        null_logits: (B, n, C) logits of probes fitted to permuted labels.
        protocol: Shared settings.
        name: Target, which names the random stream.

    Returns:
        Rows for accuracy, balanced accuracy, bits, calibration error and the recall of each class; and
        metric → (n,) per-image scores.
    """
    tallies = _tallies(probabilities, truth)
    drawn = resampled_sums(tallies, draws=protocol.bootstrap_draws, stream=_stream(name, protocol))
    null_sums = np.array([_tallies(softmax(one, axis=1), truth).sum(axis=0) for one in null_logits])
    null_sums = null_sums.reshape(-1, tallies.shape[1])
    value, resampled, null = (
        ClassScores.of(sums, len(classes)) for sums in (tallies.sum(axis=0)[None], drawn, null_sums)
    )
    rows: list[dict[str, Any]] = [
        {"metric": metric, "value": float(one[0]), **_ends(resampled.metrics[metric])}
        | null_columns(null.metrics[metric])
        for metric, one in value.metrics.items()
    ]
    for place, label in enumerate(classes):
        row: dict[str, Any] = {"metric": "class_recall", "n": int((truth == place).sum())}
        row["params"] = {"class": label}
        if row["n"]:
            row |= {"value": float(value.recalls[0, place]), **_ends(resampled.recalls[:, place])}
            row |= null_columns(null.recalls[:, place])
        else:
            row["status"] = "no test image of this class"
        rows.append(row)
    images = {"target": truth, "prediction": probabilities.argmax(axis=1)}
    return rows, images | {"accuracy": tallies[:, 1], "bits": tallies[:, 2]}


def _tallies(probabilities: NDArray[np.floating[Any]], truth: NDArray[np.int64]) -> FloatArray:
    """Return (n, 3 + 2C + bins) columns: 1, hit, bits, hit by class, 1 by class, hit − confidence by bin."""
    count, classes = probabilities.shape
    columns = empty_rows((count, 3 + 2 * classes + BINS), np.float64)
    columns[:] = 0
    confidence, hit, place = confidence_bins(probabilities, truth)
    rows = np.arange(count)
    likely = probabilities[rows, truth].astype(np.float64)
    columns[:, 0], columns[:, 1] = 1, hit
    columns[:, 2] = -np.log2(np.maximum(likely, LEAST_PROBABILITY))
    columns[rows, 3 + truth] = hit
    columns[rows, 3 + classes + truth] = 1
    columns[rows, 3 + 2 * classes + place] = hit - confidence
    return columns


def accuracy_row(metric: str, hits: FloatArray, protocol: Protocol, name: str) -> dict[str, Any]:
    """Return the row of a share of hits; ``hits`` is (n,) of 0 and 1."""
    columns = np.stack([hits, np.ones_like(hits)], axis=1)
    value = float(hits.mean())
    return {"metric": metric, "value": value} | _interval(columns, _mean, protocol, name)


def r2_score(predicted: FloatArray, truth: FloatArray) -> float:
    """Return 1 − SSE/SST over all columns together; NaN if the truth does not vary.

    Examples:
        >>> r2_score(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]))
        1.0
    """
    spread = float(((truth - truth.mean(axis=0)) ** 2).sum())
    return 1 - float(((truth - predicted) ** 2).sum()) / spread if spread > 0 else float("nan")


def r2_row(
    predicted: FloatArray, truth: FloatArray, nulls: FloatArray, protocol: Protocol, name: str
) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    """Score predictions of a continuous target.

    Args:
        predicted: (n, K).
        truth: (n, K).
        nulls: (n, B, K) predictions of probes fitted to permuted targets.
        protocol: Shared settings.
        name: Target, which names the random stream.

    Returns:
        One row, and ``r2`` → (n,) parts 1 − n·e²/SST whose mean is the value.
    """
    value = r2_score(predicted, truth)
    if not np.isfinite(value):
        return {"metric": "r2", "status": "the target does not vary over the test images"}, {}
    error = ((truth - predicted) ** 2).sum(axis=1)
    # Sums of 1, e², y², y give R² of any resample; around the mean, so that no digit is lost.
    centred = truth - truth.mean(axis=0)
    square = (centred**2).sum(axis=1)
    columns = np.concatenate([np.stack([np.ones(len(truth)), error, square], axis=1), centred], axis=1)
    row = {"metric": "r2", "value": value} | _interval(columns, _r2_of_sums, protocol, name)
    row |= null_columns(np.array([r2_score(nulls[:, draw], truth) for draw in range(nulls.shape[1])]))
    return row, {"r2": 1 - len(truth) * error / square.sum()}


def mean_average_precision(scores: NDArray[np.floating[Any]], truth: NDArray[np.bool_]) -> float:
    """Return average precision averaged over the labels that occur; NaN if none does.

    Args:
        scores: (n, C), higher means more likely.
        truth: (n, C) whether each label holds.
    """
    found = average_precisions(scores, truth)
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def average_precisions(scores: NDArray[np.floating[Any]], truth: NDArray[np.bool_]) -> FloatArray:
    """Return the average precision of each label, (C,); NaN for one that does not occur."""
    from sklearn.metrics import average_precision_score  # slow to import, and rarely needed

    found = np.full(truth.shape[1], np.nan)
    for label in np.flatnonzero(truth.any(axis=0)):
        found[label] = average_precision_score(truth[:, label], scores[:, label])
    return found


def label_rows(
    probabilities: FloatArray,
    truth: NDArray[np.bool_],
    nulls: NDArray[np.floating[Any]],
    protocol: Protocol,
    name: str,
) -> list[dict[str, Any]]:
    """Score label probabilities (n, C) by mean average precision; ``nulls`` is (B, n, C)."""
    value = mean_average_precision(probabilities, truth)
    if not np.isfinite(value):
        return [{"metric": "mean_ap", "status": "no label occurs among the test images"}]
    null = np.array([mean_average_precision(one, truth) for one in nulls])
    low, high = _jackknife(probabilities, truth, _stream(name, protocol))
    interval = {"ci_low": low, "ci_high": high, "ci_kind": AP_KIND}
    return [{"metric": "mean_ap", "value": value, **interval, **null_columns(null)}]


def _jackknife(
    scores: FloatArray, truth: NDArray[np.bool_], stream: np.random.Generator
) -> tuple[float, float]:
    """Return the 95 % interval of the mean average precision from leaving out each of 20 groups of images.

    A label whose images all stand in one group keeps its value where that group is left out. Source: Efron
    and Tibshirani, An Introduction to the Bootstrap (1993), section 11.5.
    """
    whole = average_precisions(scores, truth)
    groups = np.array_split(stream.permutation(len(truth)), min(AP_GROUPS, len(truth)))
    if len(groups) < 2:
        return float("nan"), float("nan")
    left: list[float] = []
    for group in groups:
        kept = np.delete(np.arange(len(truth)), group)
        part = average_precisions(scores[kept], truth[kept])
        left.append(float(np.nanmean(np.where(np.isnan(part), whole, part))))
    count = len(groups)
    # SE² = (G − 1)/G · Σ (θ₋ᵢ − mean θ₋)²
    error = np.sqrt((count - 1) / count * np.square(np.array(left) - np.mean(left)).sum())
    half = stdtrit(count - 1, 0.975) * error
    value = float(np.nanmean(whole))
    return max(0.0, value - half), min(1.0, value + half)


def _mean(sums: FloatArray) -> FloatArray:
    means: FloatArray = sums[:, 0] / sums[:, 1]
    return means


def _r2_of_sums(sums: FloatArray) -> FloatArray:
    count, error, square, moved = sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3:]
    # SST = Σy² − (Σy)²/n, per column
    total = square - (moved**2).sum(axis=1) / count
    scores: FloatArray = 1 - error / np.maximum(total, np.finfo(float).tiny)
    return scores


def _stream(name: str, protocol: Protocol) -> np.random.Generator:
    """Every metric and tap of a target resamples the same units."""
    return random_stream(f"bootstrap {name}", protocol.seed)


def _interval(
    columns: FloatArray, statistic: Callable[[FloatArray], FloatArray], protocol: Protocol, name: str
) -> dict[str, Any]:
    stream = _stream(name, protocol)
    low, high = bootstrap_statistic(columns, statistic, draws=protocol.bootstrap_draws, stream=stream)
    return {"ci_low": low, "ci_high": high, "ci_kind": CI_KIND}


def _ends(resampled: FloatArray) -> dict[str, Any]:
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return {"ci_low": float(low), "ci_high": float(high), "ci_kind": CI_KIND}
