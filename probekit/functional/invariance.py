"""How little features move when an image is changed: distances, variance, ranks and units.

Letters: N images, D features, V views (an image and its changed copies), m and S mean and covariance of the
features of unchanged images, f and f′ the features of an image and of a changed copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh

from probekit.errors import InputError
from probekit.functional.arguments import AnyFloats, FloatArray, IntArray, check_features, check_labels
from probekit.functional.class_geometry import Classes, Estimate, intraclass_correlation
from probekit.functional.moments import Moments
from probekit.functional.spectrum import effective_rank

# LiDAR's δ, here relative to the mean variance inside images.
LIDAR_DELTA = 1e-4
# Variance below this share of the total is rounding.
_ROUNDING = 1e-12
# Units of a target: ten, or an eighth of few; images of a class in each half.
TOP_UNITS = 10
_TOP_SHARE = 8
LEAST_IN_HALF = 2
_UNIT_DRAWS = 5


def row_cosines(x: ArrayLike, y: ArrayLike) -> FloatArray:
    """Return the cosine of each row with its partner, −1 … 1; 0 where a row is zero.

    Of whitened features, f ↦ S^(−1/2)(f − m), this is the similarity of Ericsson, Gouk and Hospedales, Why
    Do Self-Supervised Models Transfer? On the Impact of Invariance (BMVC 2022), section 3: whitening keeps a
    common direction, such as that of features behind a ReLU, from making all images look alike.

    Args:
        x: (N, D).
        y: (N, D).

    Returns:
        (N,) cosines.

    Raises:
        InputError: If the shapes differ.
        NonFiniteFeatures: If a feature is NaN or infinite.

    Examples:
        >>> row_cosines([[1.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [3.0, 0.0]]).tolist()
        [1.0, 0.0]
    """
    a, b = _partners(x, y)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.einsum("nd,nd->n", a, b) / np.where(norms > 0, norms, 1))


def row_distances(x: ArrayLike, y: ArrayLike) -> FloatArray:
    """Return the Euclidean distance of each row from its partner; of whitened features it is Mahalanobis's.

    √((f − f′)ᵀ S⁻¹ (f − f′)), about √(2D) for two unrelated images. Source: as for ``row_cosines``.

    Args:
        x: (N, D).
        y: (N, D).

    Returns:
        (N,) distances, at least 0.

    Raises:
        InputError: If the shapes differ.
        NonFiniteFeatures: If a feature is NaN or infinite.
    """
    a, b = _partners(x, y)
    return np.asarray(np.linalg.norm(a - b, axis=1))


def _partners(x: ArrayLike, y: ArrayLike) -> tuple[AnyFloats, AnyFloats]:
    a, b = check_features(x), check_features(y)
    if a.shape != b.shape:
        raise InputError("two feature matrices of one shape", f"{a.shape} and {b.shape}", "Align them by id")
    return a, b


def perturbation_variance(images: Classes) -> Estimate:
    """Return the share of the variance that the perturbation makes, 0 (invariant) … 1 (images are lost).

    Var(perturbation)/Var(total) = 1 − ICC(1), with each image, at all its strengths, as a class. It is not
    biased by the number of strengths; the interval leaves out one image at a time. Source: Shrout and Fleiss,
    Intraclass Correlations, Psychological Bulletin 86 (1979), case 1, summed over features.

    Args:
        images: Statistics with one class an image.

    Examples:
        >>> moments = Moments.of([[0.0], [0.1], [1.0], [1.1], [3.0], [2.9]], [0, 0, 1, 1, 2, 2], n_classes=3)
        >>> perturbation_variance(Classes.of(moments)).value < 0.01
        True
    """
    found = intraclass_correlation(images)
    return Estimate(1 - found.value, 1 - found.high, 1 - found.low, found.status)


def lidar(images: Moments, delta: float = LIDAR_DELTA) -> float:
    """Return LiDAR: in how many directions images differ by more than changes of an image do, 1 … N − 1.

    exp of the entropy of λ/Σλ, λ the eigenvalues of (Σ_W + δI)^(−1/2) Σ_B (Σ_W + δI)^(−1/2), Σ_B the
    covariance of image means and Σ_W that of views around their image's mean. Here δ is relative to the mean
    of Σ_W's eigenvalues, so that the scale of the features does not matter. Source: Thilak et al., LiDAR:
    Sensing Linear Probing Performance in Joint Embedding SSL Architectures (ICLR 2024), section 4.

    Args:
        images: Statistics with products and one class an image.
        delta: δ.

    Returns:
        NaN with fewer than two images, or where no change moves a feature.

    Raises:
        InputError: If the statistics hold no products.
    """
    within = images.within_scatter / max(images.count - len(images.counts), 1)
    size = float(np.trace(within)) / len(within)
    total = float(np.trace(images.total_scatter)) / images.count / len(within)
    if (images.counts > 0).sum() < 2 or size <= _ROUNDING * total:
        return float("nan")
    values = eigh(
        images.between_scatter / images.count, within + delta * size * np.eye(len(within)), eigvals_only=True
    )
    kept = np.maximum(values, 0)
    return effective_rank(kept) if kept.any() else float("nan")


@dataclass(frozen=True)
class TargetInvariance:
    """What units do for the images of their best target.

    Attributes:
        by_class: (C,) how often the top units of a class fire for its views, 0 … 1; NaN for a class with too
            few images.
        by_chance: (C,) how often they fire for any view.
    """

    by_class: FloatArray
    by_chance: FloatArray


def target_invariance(
    views: ArrayLike,
    labels: ArrayLike,
    images: ArrayLike,
    *,
    n_classes: int,
    width: int,
    stream: np.random.Generator,
) -> TargetInvariance:
    """Find units that fire for whatever is done to the images of one class.

    A unit, or its negative, fires above the threshold that it passes in a share P(y) of all views. The best
    units, which fire most often for the views of class y in one half of its images, are scored on the other
    half, and the other way round: chosen and scored on the same images, noise would look invariant. ``width``
    units are drawn five times, because the best of many are better than the best of few. Source:
    Purushwalkam and Gupta, Demystifying Contrastive Self-Supervised Learning (NeurIPS 2020), section 4, after
    Goodfellow et al. (NeurIPS 2009); they divide by P(y).

    Args:
        views: (V, D) features.
        labels: (V,) class of each view.
        images: (V,) number of the image each is a view of.
        n_classes: C.
        width: Units compared, the same for all layers; at most D.
        stream: Draws halves and units.

    Raises:
        InputError: If shapes disagree, a label is out of range, or ``width`` is above D.
        NonFiniteFeatures: If a feature is NaN or infinite.
    """
    x = check_features(views)
    y = check_labels(labels, len(x), n_classes)
    if not 1 <= width <= x.shape[1]:
        raise InputError(f"1 to {x.shape[1]} units", str(width), "Take the narrowest layer's width")
    _, first, place = np.unique(np.asarray(images), return_index=True, return_inverse=True)
    half = _halves(y[first], n_classes, stream)[place]
    classes = np.flatnonzero(np.bincount(y[first], minlength=n_classes) >= 2 * LEAST_IN_HALF)
    hits, chance = np.full(n_classes, np.nan), np.full(n_classes, np.nan)
    if len(classes):
        draws = [stream.choice(x.shape[1], width, replace=False) for _ in range(_UNIT_DRAWS)]
        scores = [_score_units(x[:, units], y, half == side, classes) for units in draws for side in (0, 1)]
        hits[classes], chance[classes] = np.mean(scores, axis=0)
    return TargetInvariance(hits, chance)


def top_units(width: int) -> int:
    """Return how many of so many units count as the best of a class.

    Examples:
        >>> top_units(16), top_units(2048)
        (2, 10)
    """
    return max(1, min(TOP_UNITS, width // _TOP_SHARE))


def _halves(labels: IntArray, n_classes: int, stream: np.random.Generator) -> IntArray:
    """Return 0 or 1 for each image, so that the images of every class fall into equal halves."""
    half = np.zeros(len(labels), np.int64)
    for one in range(n_classes):
        rows = stream.permutation(np.flatnonzero(labels == one))
        half[rows[len(rows) // 2 :]] = 1
    return half


def _score_units(x: AnyFloats, y: IntArray, choosing: NDArray[np.bool_], classes: IntArray) -> FloatArray:
    """Return (2, C) firing shares, of a class's views and of all, of units chosen in the other half."""
    chosen, scored = x[choosing], x[~choosing]
    ordered, fallen = _sorted(chosen), _sorted(-chosen)
    top = top_units(x.shape[1])
    found = np.empty((2, len(classes)))
    for place, one in enumerate(classes):
        of_class, scored_class = y[choosing] == one, y[~choosing] == one
        share = float(of_class.mean())
        best = []
        for sign, threshold in ((1, _exceeded(ordered, share)), (-1, _exceeded(fallen, share))):
            rate = (sign * chosen[of_class] > threshold).mean(axis=0)
            best += [
                (rate[unit], sign, unit, threshold[unit]) for unit in np.argsort(-rate, kind="stable")[:top]
            ]
        best = sorted(best, key=lambda unit: -unit[0])[:top]
        fires = np.stack([sign * scored[:, unit] > threshold for _, sign, unit, threshold in best])
        found[:, place] = fires[:, scored_class].mean(), fires.mean()
    return found


def _sorted(rows: AnyFloats) -> FloatArray:
    return np.asarray(np.sort(rows, axis=0), np.float64)


def _exceeded(ordered: FloatArray, share: float) -> FloatArray:
    """Return what new rows exceed with this probability on average, of each column of ascending rows.

    A new value exceeds the k-th largest of n with probability k/(n + 1): Weibull's plotting position.
    """
    n = len(ordered)
    k = min(max(share * (n + 1), 1.0), n - 1e-9)
    place, part = n - int(k), k - int(k)
    return np.asarray((1 - part) * ordered[place] + part * ordered[place - 1])
