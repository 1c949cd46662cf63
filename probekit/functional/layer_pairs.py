"""Layers in their principal axes: what similarity needs of one layer, found once for all its comparisons.

CKA, Procrustes and canonical correlations do not change when a layer is turned. In principal axes the
leading component is the first column, canonical correlations need no further decomposition, and what a group
of images adds follows from sums over that group. Values are those of `probekit.functional.similarity`.

Letters: N images, D features, R and S directions of the two layers, G groups of images left out one at a
time, X and Y the layers' centred rows, C = XᵀY.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from probekit.errors import InputError
from probekit.functional.arguments import FloatArray, IntArray, check_features
from probekit.functional.similarity import VARIANCE_KEPT, Canonical, hsic_from_sums, leading_count

# Axes whose variance is below this share of the largest carry rounding.
_RANK_TOLERANCE = 1e-14
# Features that differ by no more than this share of the largest are constant.
_CONSTANT = 1e-12


@dataclass(frozen=True, eq=False)
class PrincipalRows:
    """One layer along its principal axes.

    Attributes:
        rows: (N, R) centred, by falling variance; R is the rank.
        scale: (R,) singular values of X.
        leading: (D, L) axes of the first columns, as many as hold `VARIANCE_KEPT` of the variance.
    """

    rows: FloatArray
    scale: FloatArray
    leading: FloatArray

    @classmethod
    def of(cls, features: ArrayLike) -> PrincipalRows:
        """Turn (N, D) features.

        Raises:
            InputError: If the layer is constant.
            NonFiniteFeatures: If a feature is NaN or infinite.

        Examples:
            >>> turned = PrincipalRows.of([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
            >>> turned.rows.shape, turned.scale.round(6).tolist()
            ((3, 1), [2.0])
        """
        x = check_features(features).astype(np.float64)
        if constant(x):
            raise InputError("layers that vary", "a constant one", "Leave out this tap")
        x, basis = x - x.mean(axis=0), None
        if len(x) < x.shape[1]:
            # Rows span no more than N directions: Xᵀ = QT, and T is square.
            basis, turned = np.linalg.qr(x.T)
            x = turned.T
        values, axes = np.linalg.eigh(x.T @ x)
        values, axes = np.maximum(values[::-1], 0), axes[:, ::-1]
        axes = np.ascontiguousarray(axes[:, values > _RANK_TOLERANCE * values[0]])
        some = axes[:, : leading_count(values, VARIANCE_KEPT)]
        scale = np.sqrt(values[: axes.shape[1]])
        return cls(x @ axes, scale, some.copy() if basis is None else basis @ some)


def constant(x: FloatArray) -> bool:
    """Return whether (N, D) features differ by no more than rounding."""
    return bool(np.ptp(x, axis=0).max() <= _CONSTANT * np.abs(x).max())


def correlate(x: PrincipalRows, y: PrincipalRows, cross: FloatArray) -> tuple[Canonical, Canonical]:
    """Return canonical correlations of the leading directions, weighted by the first and by the second layer.

    Args:
        x: One layer.
        y: The other, over the same images.
        cross: (R, S) C, or that of images paired anew; the leading directions of both are enough.
    """
    left, right = x.leading.shape[1], y.leading.shape[1]
    # Λx^−½ C Λy^−½
    whitened = cross[:left, :right] / x.scale[:left, None] / y.scale[:right]
    return Canonical.pair(whitened, x.leading * x.scale[:left], y.leading * y.scale[:right])


@dataclass(frozen=True, eq=False)
class GroupsLeftOut:
    """What one layer adds to statistics of all images, and of all but one group.

    Attributes:
        rows: (N, R) centred.
        groups: Places of the G groups' images.
        lengths: (1 + G, N) ‖x − mean‖² around the mean of the images that are left, 0 for those left out.
        sums: (G, R) Σ x over each group.
        grams: Of each group, the products of its rows.
    """

    rows: FloatArray
    groups: Sequence[IntArray]
    lengths: FloatArray
    sums: FloatArray
    grams: Sequence[FloatArray]

    @classmethod
    def of(cls, rows: FloatArray, groups: Sequence[IntArray]) -> GroupsLeftOut:
        """Sum centred rows.

        Raises:
            InputError: If fewer than four images are left without one of the groups.
        """
        left = np.array([len(rows) - len(one) for one in groups])
        if left.min() < 4:
            raise InputError("at least 4 images", str(int(left.min())), "Compare layers over more images")
        sums = np.stack([rows[one].sum(axis=0) for one in groups])
        # Without a group the mean is −t/m, t its sum and m the images left:
        # ‖x + t/m‖² = ‖x‖² + 2x·t/m + ‖t‖²/m²
        moved = sums / left[:, None]
        lengths = np.empty((1 + len(groups), len(rows)))
        lengths[0] = np.einsum("nr,nr->n", rows, rows)
        lengths[1:] = lengths[0] + 2 * moved @ rows.T + np.square(moved).sum(axis=1)[:, None]
        for place, one in enumerate(groups, start=1):
            lengths[place, one] = 0
        return cls(rows, groups, lengths, sums, [rows[one] @ rows[one].T for one in groups])

    @property
    def left(self) -> IntArray:
        """(1 + G,) how many images are left."""
        return np.array([len(self.rows), *(len(self.rows) - len(one) for one in self.groups)])


def sizes_left_out(
    x: GroupsLeftOut, y: GroupsLeftOut, cross: FloatArray, by_image: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return ‖XᵀY‖² and unbiased HSIC of all images, then without each group.

    With m images left, A = Σ x yᵀ over the group and s, t its sums:  C₋ = C − A − s tᵀ/m, so
    ‖C₋‖² = ‖C‖² + ‖A‖² + ‖s‖²‖t‖²/m² − 2⟨C, A⟩ − 2sᵀCt/m + 2sᵀAt/m.

    Args:
        x: One layer.
        y: The other, with the same groups.
        cross: (R, S) C.
        by_image: (N,) xᵀCy of each image.

    Returns:
        Twice (1 + G,) values.
    """
    m, whole = x.left[1:], float(by_image.sum())
    # ‖A‖² = ⟨K, L⟩ and sᵀAt = K1 · L1 with the group's kernels K = X Xᵀ, L = Y Yᵀ
    pairs = list(zip(x.grams, y.grams, strict=True))
    inner = np.array([np.vdot(one, other) for one, other in pairs])
    edges = np.array([one.sum(axis=0) @ other.sum(axis=0) for one, other in pairs])
    own = np.array([by_image[one].sum() for one in x.groups])
    lengths = np.square(x.sums).sum(axis=1) * np.square(y.sums).sum(axis=1)
    across = np.einsum("gs,gs->g", x.sums @ cross, y.sums)
    without = whole + inner + lengths / m**2 - 2 * own - 2 * across / m + 2 * edges / m
    sizes = np.array([whole, *without])
    k, l_ = x.lengths.sum(axis=1), y.lengths.sum(axis=1)
    kl = np.einsum("gn,gn->g", x.lengths, y.lengths)
    return sizes, hsic_from_sums(sizes, k, l_, kl, x.left)


def sums_by_image(x: FloatArray, y: FloatArray, cross: FloatArray) -> FloatArray:
    """Return (N,) xᵀCy of each image; their sum is ‖C‖²."""
    return np.asarray(np.einsum("ns,ns->n", x @ cross, y))


def without_first(by_image: FloatArray, x: FloatArray, y: FloatArray, cross: FloatArray) -> FloatArray:
    """Return (N,) xᵀCy of each image without the first column of both layers.

    xᵀCy = x₁(c·y) + (x₋·d)y₁ + the rest, with c the first row of C, d its first column below that, and x₋ all
    of x but x₁.
    """
    first = x[:, 0] * (y @ cross[0])
    second = (x[:, 1:] @ cross[1:, 0]) * y[:, 0]
    return np.asarray(by_image - first - second)
