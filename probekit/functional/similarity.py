"""How alike two layers are, over the same images: measures of representations, each with its null.

Linear CKA, Procrustes and canonical correlations follow from one pass over both layers (`CrossMoments`); RSA
and neighbour overlap compare images in pairs. High values are no evidence by themselves: with fewer images
than features, independent layers look alike to most of them.

Letters: N images, D and E features of the two layers, X and Y their centred rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from probekit.errors import InputError
from probekit.functional.arguments import AnyFloats, FloatArray, check_features
from probekit.functional.moments import CrossMoments

# What each measure does not change under, of either layer by itself.
INVARIANCES: dict[str, frozenset[str]] = {
    "cka": frozenset({"rotation", "scaling", "shift", "permutation"}),
    "cka_debiased": frozenset({"rotation", "scaling", "shift", "permutation"}),
    "procrustes": frozenset({"rotation", "scaling", "shift", "permutation"}),
    "svcca": frozenset({"rotation", "scaling", "shift", "permutation"}),
    "pwcca": frozenset({"scaling", "shift", "permutation"}),
    "rsa": frozenset({"scaling", "permutation"}),
    "mutual_knn": frozenset({"rotation", "scaling", "shift", "permutation"}),
}
VARIANCE_KEPT = 0.99


def linear_cka(xy: CrossMoments, xx: CrossMoments, yy: CrossMoments) -> float:
    """Return linear CKA ‖XᵀY‖²/(‖XᵀX‖·‖YᵀY‖), 0 … 1, biased upwards by few images.

    Source: Kornblith, Norouzi, Lee and Hinton, Similarity of Neural Network Representations Revisited
    (ICML 2019), section 3.

    Args:
        xy: Statistics of both layers.
        xx: Of the first layer and itself.
        yy: Of the second layer and itself.

    Returns:
        NaN where a layer is constant.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(30, 4))
        >>> own = CrossMoments.of(x, x)
        >>> round(linear_cka(own, own, own), 6)
        1.0
    """
    sizes = [float(np.square(one.centred().products).sum()) for one in (xy, xx, yy)]
    return _ratio(sizes[0], sizes[1], sizes[2])


def linear_cka_null(xx: CrossMoments, yy: CrossMoments) -> float:
    """Return the mean of linear CKA over all pairings of the images of one layer with those of the other.

    E‖XᵀPY‖² = tr(XᵀX)·tr(YᵀY)/(N − 1) over permutations P, exactly. For independent normal features about
    √(DE/((N + D)(N + E))).
    """
    left, right = (one.centred() for one in (xx, yy))
    top = left.k_sum * right.k_sum / (left.count - 1)
    return _ratio(top, *(float(np.square(one.products).sum()) for one in (left, right)))


def debiased_cka(xy: CrossMoments, xx: CrossMoments, yy: CrossMoments) -> float:
    """Return CKA from unbiased HSIC: 0 on average for unrelated layers, at times a little below.

    Source: Song, Smola, Gretton, Bedo and Borgwardt, Feature Selection via Dependence Maximization, JMLR 13
    (2012), equation 5, from sums over images instead of N × N kernels.

    Raises:
        InputError: With fewer than four images.
    """
    return _ratio(unbiased_hsic(xy), unbiased_hsic(xx), unbiased_hsic(yy))


def unbiased_hsic(xy: CrossMoments) -> float:
    """Return the unbiased estimate of HSIC with linear kernels K = XXᵀ, L = YYᵀ.

    With zeros on the diagonals of K and L, written K̃ and L̃:
    tr K̃L̃ = ‖XᵀY‖² − Σkl,  1ᵀK̃1 = ‖Σx‖² − Σk,  1ᵀK̃L̃1 = Σxᵀ XᵀY Σy − (Σky)·Σy − (Σlx)·Σx + Σkl.
    Around the means Σx and Σy are 0.

    Raises:
        InputError: With fewer than four images.
    """
    one = xy.centred()
    n = one.count
    if n < 4:
        raise InputError("at least 4 images", str(n), "Compare layers over more images")
    trace = float(np.square(one.products).sum()) - one.kl_sum
    return (trace + one.k_sum * one.l_sum / ((n - 1) * (n - 2)) - 2 / (n - 2) * one.kl_sum) / (n * (n - 3))


def minibatch_cka(x: ArrayLike, y: ArrayLike, batch_size: int) -> float:
    """Return debiased CKA from means of unbiased HSIC over batches, divided once at the end.

    Averaging the ratios of batches instead is biased. Source: Nguyen, Raghu and Kornblith, Do Wide and Deep
    Networks Learn the Same Things? (ICLR 2021), section 3.

    Args:
        x: (N, D).
        y: (N, E) of the same images.
        batch_size: At least 4; images of a last, smaller batch are left out.

    Raises:
        InputError: If no batch is full, or batches have fewer than four images.
    """
    left, right = check_features(x), check_features(y)
    starts = range(0, len(left) - batch_size + 1, batch_size)
    if not len(starts):
        raise InputError(f"at least {batch_size} images", str(len(left)), "Take smaller batches")
    parts = []
    for start in starts:
        a, b = left[start : start + batch_size], right[start : start + batch_size]
        pairs = ((a, b), (a, a), (b, b))
        parts.append([unbiased_hsic(CrossMoments.of(one, other)) for one, other in pairs])
    return _ratio(*np.mean(parts, axis=0))


def procrustes_angle(xy: CrossMoments, xx: CrossMoments, yy: CrossMoments) -> float:
    """Return the angle arccos(‖XᵀY‖_*/(‖X‖·‖Y‖)) between layers, 0 … π/2 radians, over all rotations.

    A metric. Source: Williams, Kunz, Kornblith and Linderman, Generalized Shape Metrics on Neural
    Representations (NeurIPS 2021), section 2.
    """
    nuclear = float(np.linalg.svd(xy.centred().products, compute_uv=False).sum())
    share = _ratio(nuclear, xx.centred().k_sum, yy.centred().k_sum)
    return float(np.arccos(min(1.0, share))) if np.isfinite(share) else float("nan")


@dataclass(frozen=True, eq=False)
class Canonical:
    """Canonical correlations of two layers, each cut to the directions that hold most of its variance.

    Attributes:
        correlations: (K,) falling, 0 … 1.
        weights: (K,) how much of the first layer each canonical direction accounts for.
        dimensions: How many directions of each layer were kept.
    """

    correlations: FloatArray
    weights: FloatArray
    dimensions: tuple[int, int]

    @property
    def svcca(self) -> float:
        """Mean correlation. Source: Raghu, Gilmer, Yosinski and Sohl-Dickstein, SVCCA (NeurIPS 2017)."""
        return float(self.correlations.mean())

    @property
    def pwcca(self) -> float:
        """Mean correlation weighted by what the first layer uses.

        Source: Morcos, Raghu and Bengio, Insights on Representational Similarity (NeurIPS 2018), section 2.
        """
        return float(self.weights @ self.correlations / self.weights.sum())


def canonical_correlations(
    xy: CrossMoments, xx: CrossMoments, yy: CrossMoments, kept: float = VARIANCE_KEPT
) -> Canonical:
    """Return canonical correlations of the leading directions of two layers.

    Uncut, they run to 1 as N falls to D + E. What is left still wants ten images a direction: compare with
    the null.

    Args:
        xy: Statistics of both layers.
        xx: Of the first layer and itself.
        yy: Of the second layer and itself.
        kept: Share of each layer's variance to keep.

    Raises:
        InputError: If a layer is constant.
    """
    left, x_axes, x_scale = _leading(xx.centred().products, kept)
    right, y_axes, y_scale = _leading(yy.centred().products, kept)
    # Λx^−½ Vxᵀ XᵀY Vy Λy^−½ = U P Wᵀ
    whitened = (x_axes.T @ xy.centred().products @ y_axes) / x_scale[:, None] / y_scale
    turn, correlations, _ = np.linalg.svd(whitened, full_matrices=False)
    # Canonical variates h_i = X Vx Λx^−½ u_i, and Σ_j |⟨h_i, x_j⟩| over features j
    weights = np.abs((x_axes * x_scale) @ turn).sum(axis=0)
    return Canonical(np.clip(correlations, 0, 1), weights, (left, right))


def _leading(scatter: FloatArray, kept: float) -> tuple[int, FloatArray, FloatArray]:
    """Return how many axes hold a share of the variance, these axes, and their singular values."""
    values, axes = np.linalg.eigh(scatter)
    values, axes = np.maximum(values[::-1], 0), axes[:, ::-1]
    if values[0] <= 0:
        raise InputError("layers that vary", "a constant one", "Leave out this tap")
    count = int(np.searchsorted(np.cumsum(values) / values.sum(), kept - 1e-12)) + 1
    count = min(count, int((values > 1e-10 * values[0]).sum()))
    return count, axes[:, :count], np.sqrt(values[:count])


def representational_similarity(x: ArrayLike, y: ArrayLike) -> float:
    """Return Spearman's correlation of 1 − Pearson over all pairs of images of the two layers, −1 … 1 (RSA).

    Source: Kriegeskorte, Mur and Bandettini, Frontiers in Systems Neuroscience 2 (2008).

    Args:
        x: (N, D), N of a few thousand at most.
        y: (N, E) of the same images.
    """
    left, right = (_dissimilarities(check_features(one)) for one in (x, y))
    return float(np.corrcoef(rankdata(left), rankdata(right))[0, 1])


def _dissimilarities(x: AnyFloats) -> FloatArray:
    rows = x.astype(np.float64)
    rows = rows - rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray(1 - (rows @ rows.T)[np.triu_indices(len(rows), 1)])


def mutual_neighbours(x: ArrayLike, y: ArrayLike, k: int = 10) -> float:
    """Return the mean share of the k nearest images, by cosine of centred rows, that two layers share.

    Chance is k/(N − 1). Source: Huh, Cheung, Wang and Isola, The Platonic Representation Hypothesis
    (ICML 2024), equation 9.

    Args:
        x: (N, D), N of a few thousand at most.
        y: (N, E) of the same images.
        k: How many, below N.

    Raises:
        InputError: If there are not more than k images.
    """
    left, right = check_features(x), check_features(y)
    if len(left) <= k:
        raise InputError(f"more than {k} images", str(len(left)), "Take a smaller k")
    near = [_neighbours(one, k) for one in (left, right)]
    return float((near[0] & near[1]).sum() / (k * len(left)))


def _neighbours(x: AnyFloats, k: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Return (N, N) whether an image is among the k nearest of another."""
    rows = x.astype(np.float64)
    rows = rows - rows.mean(axis=0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    similar = rows @ rows.T
    np.fill_diagonal(similar, -np.inf)
    near = np.zeros((len(rows), len(rows)), np.bool_)
    places = np.argsort(-similar, axis=1, kind="stable")[:, :k]
    np.put_along_axis(near, places, True, axis=1)
    return near


def without_leading_component(x: ArrayLike) -> FloatArray:
    """Return centred rows without their direction of largest variance, which alone can decide CKA.

    Source: Davari, Horoi, Natik, Lajoie, Wolf and Belilovsky, Reliability of CKA (ICLR 2023).
    """
    rows = check_features(x).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    axis = np.linalg.eigh(rows.T @ rows)[1][:, -1]
    return np.asarray(rows - np.outer(rows @ axis, axis))


def _ratio(top: float, left: float, right: float) -> float:
    """Return top/√(left·right), NaN where the product is not above 0."""
    below = left * right
    return float(top / np.sqrt(below)) if left > 0 and right > 0 else float("nan")
