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
from probekit.functional.arguments import FloatArray, IntArray, check_features
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
    size = float(np.square(one.products).sum())
    return float(hsic_from_sums(size, one.k_sum, one.l_sum, one.kl_sum, n))


def hsic_from_sums(size: ArrayLike, k: ArrayLike, l_: ArrayLike, kl: ArrayLike, n: ArrayLike) -> FloatArray:
    """Return unbiased HSIC from sums around the means; all of one shape, one result each.

    Args:
        size: ‖XᵀY‖².
        k: Σ ‖x‖².
        l_: Σ ‖y‖².
        kl: Σ ‖x‖²‖y‖².
        n: Images, at least 4.
    """
    size, k, l_, kl, n = (np.asarray(one, np.float64) for one in (size, k, l_, kl, n))
    return np.asarray((size - kl + k * l_ / ((n - 1) * (n - 2)) - 2 / (n - 2) * kl) / (n * (n - 3)))


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
    return angle_between(xy.centred().products, xx.centred().k_sum, yy.centred().k_sum)


def angle_between(cross: FloatArray, x_size: float, y_size: float) -> float:
    """Return arccos(‖C‖_*/√(x_size·y_size)) for (D, E) C = XᵀY; sizes are ‖X‖² and ‖Y‖².

    NaN where a layer is constant.
    """
    share = _ratio(float(np.linalg.svd(cross, compute_uv=False).sum()), x_size, y_size)
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

    @classmethod
    def pair(
        cls, whitened: FloatArray, x_axes: FloatArray, y_axes: FloatArray
    ) -> tuple[Canonical, Canonical]:
        """Return the correlations weighted by the first, and weighted by the second layer.

        Args:
            whitened: Λx^−½ Vxᵀ XᵀY Vy Λy^−½ of the directions kept.
            x_axes: Vx Λx^½, a column a direction of the first layer.
            y_axes: Vy Λy^½, likewise.
        """
        turn, correlations, back = np.linalg.svd(whitened, full_matrices=False)
        correlations = np.clip(correlations, 0, 1)
        dimensions = (x_axes.shape[1], y_axes.shape[1])
        # Canonical variates h_i = X Vx Λx^−½ u_i, and Σ_j |⟨h_i, x_j⟩| over features j
        left, right = np.abs(x_axes @ turn).sum(axis=0), np.abs(y_axes @ back.T).sum(axis=0)
        return cls(correlations, left, dimensions), cls(correlations, right, dimensions[::-1])


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
    x_axes, x_scale = _leading(xx.centred().products, kept)
    y_axes, y_scale = _leading(yy.centred().products, kept)
    whitened = (x_axes.T @ xy.centred().products @ y_axes) / x_scale[:, None] / y_scale
    return Canonical.pair(whitened, x_axes * x_scale, y_axes * y_scale)[0]


def leading_count(variances: FloatArray, kept: float) -> int:
    """Return how many of the (R,) falling variances hold a share of their sum, rounding left out."""
    count = int(np.searchsorted(np.cumsum(variances) / variances.sum(), kept - 1e-12)) + 1
    return min(count, int((variances > 1e-10 * variances[0]).sum()))


def _leading(scatter: FloatArray, kept: float) -> tuple[FloatArray, FloatArray]:
    """Return the axes that hold a share of the variance, and their singular values."""
    values, axes = np.linalg.eigh(scatter)
    values, axes = np.maximum(values[::-1], 0), axes[:, ::-1]
    if values[0] <= 0:
        raise InputError("layers that vary", "a constant one", "Leave out this tap")
    count = leading_count(values, kept)
    return axes[:, :count], np.sqrt(values[:count])


def representational_similarity(x: ArrayLike, y: ArrayLike) -> float:
    """Return Spearman's correlation of 1 − Pearson over all pairs of images of the two layers, −1 … 1 (RSA).

    Source: Kriegeskorte, Mur and Bandettini, Frontiers in Systems Neuroscience 2 (2008).

    Args:
        x: (N, D), N of a few thousand at most.
        y: (N, E) of the same images.
    """
    left, right = dissimilarity_ranks(x), dissimilarity_ranks(y)
    return float(np.vdot(left, right))


def dissimilarity_ranks(x: ArrayLike) -> FloatArray:
    """Return (N, N) ranks of 1 − Pearson among all pairs of images, centred, of sum of squares 1.

    The sum of products of two layers' ranks is their `representational_similarity`; rows and columns of one
    of them in another order give that of images paired anew.

    Args:
        x: (N, D), N of a few thousand at most.
    """
    rows = check_features(x).astype(np.float64)
    rows = rows - rows.mean(axis=1, keepdims=True)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    pairs = np.triu_indices(len(rows), 1)
    ranks = rankdata(1 - (rows @ rows.T)[pairs])
    ranks -= ranks.mean()
    length = np.linalg.norm(ranks)
    square = np.zeros((len(rows), len(rows)))
    # Each pair stands twice. Ranks that are all alike tell nothing: NaN, as of any correlation with them.
    square[pairs] = ranks / length / np.sqrt(2) if length > 0 else np.nan
    return np.asarray(square + square.T)


def rank_correlation_spread(left: FloatArray, right: FloatArray) -> float:
    """Return the standard deviation of RSA over all pairings of the images; its mean over them is 0.

    With S = Σ a², r_i the sums of rows, T = Σ r_i² − S (products that share one image) and U = −2S − 4T
    (those that share none), its square is 2·S·S′/n₂ + 4·T·T′/n₃ + U·U′/n₄ with n_k = n(n − 1)…(n − k + 1).
    Source: Mantel, The Detection of Disease Clustering, Cancer Research 27 (1967), appendix.

    Args:
        left: (N, N) of one layer, from `dissimilarity_ranks`; N at least 4.
        right: Of the other.
    """
    n = len(left)
    total = [float(np.square(one).sum()) for one in (left, right)]
    one_shared = [
        float(np.square(one.sum(axis=1)).sum()) - all_ for one, all_ in zip((left, right), total, strict=True)
    ]
    none_shared = [-2 * all_ - 4 * one for all_, one in zip(total, one_shared, strict=True)]
    pairs = n * (n - 1)
    parts = (
        2 * total[0] * total[1] / pairs,
        4 * one_shared[0] * one_shared[1] / (pairs * (n - 2)),
        none_shared[0] * none_shared[1] / (pairs * (n - 2) * (n - 3)),
    )
    return float(np.sqrt(sum(parts)))


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
    return shared_neighbours(centred_neighbours(x, k), centred_neighbours(y, k))


def centred_neighbours(x: ArrayLike, k: int) -> IntArray:
    """Return (N, k) places of the k nearest images by cosine of centred rows, the earlier first among equals.

    Raises:
        InputError: If there are not more than k images.
    """
    rows = check_features(x).astype(np.float64)
    if len(rows) <= k:
        raise InputError(f"more than {k} images", str(len(rows)), "Take a smaller k")
    rows -= rows.mean(axis=0)
    # Loads torch, which no other measure needs.
    from probekit.functional.neighbours import nearest_neighbours

    return nearest_neighbours(rows, rows, k=k, exclude_self=True)[0]


def shared_neighbours(left: IntArray, right: IntArray) -> float:
    """Return the mean share of (N, k) neighbours that two layers have in common, in whatever order."""
    # Numbers of image and neighbour in one, so that one set operation counts all images.
    offsets = np.arange(len(left))[:, None] * len(left)
    return float(np.isin(left + offsets, right + offsets).mean())


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
