"""Calibration error and bits: worked examples, planted calibration, scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from probekit.errors import InputError
from probekit.functional import cross_entropy_bits, expected_calibration_error
from probekit.functional.calibration import confidence_bins


def two(confidences):
    """Probabilities of two classes of which the first has the given one."""
    return np.stack([confidences, 1 - np.asarray(confidences)], axis=1)


def test_error_by_hand():
    # Bins of a tenth. Two at 0.95 (one right): |0.5 − 0.95|·2/4; two at 0.65 (both right): |1 − 0.65|·2/4.
    p, labels = two([0.95, 0.95, 0.65, 0.65]), np.array([0, 1, 0, 0])
    assert expected_calibration_error(p, labels, bins=10) == pytest.approx(0.225 + 0.175)


def test_bins_are_closed_above():
    assert confidence_bins(two([0.6, 0.6001, 1.0]), [0, 0, 0], bins=10)[2].tolist() == [5, 6, 9]


def test_hits_and_confidences():
    confidence, hit, _ = confidence_bins([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2]], [1, 2])
    assert confidence.tolist() == [0.7, 0.5]
    assert hit.tolist() == [True, False]


def test_planted_calibration_is_found():
    stream = np.random.default_rng(0)
    confidence = stream.uniform(0.5, 1, 100_000)
    right = stream.random(100_000) < confidence
    assert expected_calibration_error(two(confidence), 1 - right) < 0.01
    # Accuracy 0.2 below what is said
    over = stream.random(100_000) < confidence - 0.2
    assert expected_calibration_error(two(confidence), 1 - over) == pytest.approx(0.2, abs=0.01)


def test_order_of_images_and_classes_does_not_count(planted):
    stream = np.random.default_rng(1)
    p, labels = softmax(stream.normal(size=(200, 4)), axis=1), stream.integers(4, size=200)
    one, rows, classes = (
        expected_calibration_error(p, labels),
        stream.permutation(200),
        np.array([2, 0, 3, 1]),
    )
    assert expected_calibration_error(p[rows], labels[rows]) == pytest.approx(one)
    assert expected_calibration_error(p[:, classes], np.argsort(classes)[labels]) == pytest.approx(one)


def test_bits_agree_with_scikit_learn_and_with_counting():
    stream = np.random.default_rng(2)
    z, labels = stream.normal(size=(50, 4)), stream.integers(4, size=50)
    assert cross_entropy_bits(z, labels).mean() == pytest.approx(log_loss(labels, softmax(z, 1)) / np.log(2))
    np.testing.assert_allclose(cross_entropy_bits(np.zeros((3, 8)), [0, 1, 7]), 3)
    assert cross_entropy_bits([[1e4, 0.0]], [0]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: expected_calibration_error([[2.0, 1.0]], [0]), "rows of sum 1"),
        (lambda: expected_calibration_error([[1.5, -0.5]], [0]), "rows of sum 1"),
        (lambda: expected_calibration_error([[0.5, 0.5]], [0], bins=0), "1 bin"),
        (lambda: expected_calibration_error([[0.5, 0.5]], [2]), "from 0 to 1"),
        (lambda: expected_calibration_error([0.5, 0.5], [0]), r"\(N, C\)"),
        (lambda: cross_entropy_bits([[np.nan, 0.0]], [0]), "finite logits"),
    ],
)
def test_says_what_is_wrong(call, said):
    with pytest.raises(InputError, match=said):
        call()
