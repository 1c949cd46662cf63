"""Exact statistics of features in one pass: merged by ``+``, saved and restored, no larger for more images.

Sums are taken in float64 around a shift, so that features far from zero lose no digits; merging moves one
shift to the other. Everything that depends on class means, scatters and the covariance follows from them.

Letters: N rows, D features, C classes, E features of the other layer.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array

from probekit.errors import InputError
from probekit.files import replacing
from probekit.functional.arguments import AnyFloats, FloatArray, IntArray, check_features, check_labels
from probekit.functional.rows import row_blocks

FORMAT = 1
_BLOCK_BYTES = 2**26
Own = TypeVar("Own", "Moments", "CrossMoments")


@dataclass(frozen=True, eq=False)
class Moments:
    """What is kept of rows with class labels.

    Attributes:
        shift: (D,) what is subtracted from every row before it is summed.
        counts: (C,) rows of each class.
        sums: (C, D) Σ (x − shift).
        squares: (C,) Σ ‖x − shift‖².
        products: (D, D) Σ (x − shift)(x − shift)ᵀ over all classes; None where it was not asked for.
    """

    shift: FloatArray
    counts: IntArray
    sums: FloatArray
    squares: FloatArray
    products: FloatArray | None

    @classmethod
    def of(
        cls,
        features: ArrayLike,
        labels: ArrayLike | None = None,
        *,
        n_classes: int = 1,
        products: bool = True,
        shift: ArrayLike | None = None,
    ) -> Moments:
        """Sum (N, D) features by their labels.

        Args:
            features: (N, D); may be memory-mapped.
            labels: (N,) integers from 0 to C − 1; None: one class.
            n_classes: C.
            products: Whether to keep the (D, D) products as well.
            shift: (D,); None takes the first row. Any will do: the nearer to the mean, the more digits.

        Raises:
            InputError: If shapes disagree or a label is out of range.
            NonFiniteFeatures: If a feature is NaN or infinite.

        Examples:
            >>> kept = Moments.of([[1.0, 2.0], [3.0, 2.0], [5.0, 5.0]], [0, 0, 1], n_classes=2)
            >>> kept.counts.tolist(), kept.means.tolist()
            ([2, 1], [[2.0, 2.0], [5.0, 5.0]])
        """
        x = check_features(features)
        y = np.zeros(len(x), np.int64) if labels is None else check_labels(labels, len(x), n_classes)
        about = x[0].astype(np.float64) if shift is None else np.asarray(shift, np.float64)
        if about.shape != x.shape[1:]:
            raise InputError(f"a shift of {x.shape[1]} numbers", f"shape {about.shape}", "Give one a feature")
        sums, squares = np.zeros((n_classes, x.shape[1])), np.zeros(n_classes)
        outer = np.zeros((x.shape[1],) * 2) if products else None
        for rows in _blocks(x):
            block, own = np.subtract(x[rows], about, dtype=np.float64), y[rows]
            # (C, n) ones where a row is of a class
            member = csr_array((np.ones(len(own)), (own, np.arange(len(own)))), shape=(n_classes, len(own)))
            sums += member @ block
            squares += np.bincount(own, np.einsum("nd,nd->n", block, block), n_classes)
            if outer is not None:
                outer += block.T @ block
        return cls(about, np.bincount(y, minlength=n_classes), sums, squares, outer)

    def __add__(self, other: Moments) -> Moments:
        """Merge with the statistics of other rows.

        Raises:
            InputError: If width, classes or what is kept differ.
        """
        if self.sums.shape != other.sums.shape or (self.products is None) != (other.products is None):
            raise InputError(
                f"statistics of shape {self.sums.shape}, with products alike",
                f"shape {other.sums.shape}",
                "Merge statistics of one tap and one set of classes",
            )
        moved = other.moved_to(self.shift)
        return replace(
            self,
            counts=self.counts + moved.counts,
            sums=self.sums + moved.sums,
            squares=self.squares + moved.squares,
            products=None if self.products is None else self.products + _given(moved.products),
        )

    def moved_to(self, shift: FloatArray) -> Moments:
        """Return the same statistics around another shift.

        x − b = (x − a) + δ with δ = a − b.
        """
        step = self.shift - shift
        if not step.any():
            return self
        products = self.products
        if products is not None:
            total = self.sums.sum(axis=0)
            cross = np.outer(total, step)
            products = products + cross + cross.T + self.counts.sum() * np.outer(step, step)
        return Moments(
            np.asarray(shift, np.float64),
            self.counts,
            self.sums + self.counts[:, None] * step,
            self.squares + 2 * self.sums @ step + self.counts * (step @ step),
            products,
        )

    def of_classes(self, places: ArrayLike) -> Moments:
        """Return the statistics of some classes; the products, kept over all classes, are left out."""
        chosen = np.asarray(places, np.intp)
        return replace(
            self,
            counts=self.counts[chosen],
            sums=self.sums[chosen],
            squares=self.squares[chosen],
            products=None,
        )

    @property
    def count(self) -> int:
        """N."""
        return int(self.counts.sum())

    @property
    def mean(self) -> FloatArray:
        """(D,) mean of all rows."""
        return np.asarray(self.shift + self.sums.sum(axis=0) / self.count)

    @property
    def means(self) -> FloatArray:
        """(C, D) class means; a class without a row stands at the shift."""
        return np.asarray(self.shift + self.sums / np.maximum(self.counts, 1)[:, None])

    @property
    def scatters(self) -> FloatArray:
        """(C,) Σ ‖x − μ_c‖², not below 0."""
        inner = np.einsum("cd,cd->c", self.sums, self.sums) / np.maximum(self.counts, 1)
        return np.asarray(np.maximum(self.squares - inner, 0.0))

    @property
    def total_scatter(self) -> FloatArray:
        """(D, D) Σ (x − μ)(x − μ)ᵀ.

        Raises:
            InputError: If the products were not kept.
        """
        total = self.sums.sum(axis=0)
        return np.asarray(_given(self.products) - np.outer(total, total) / self.count)

    @property
    def between_scatter(self) -> FloatArray:
        """(D, D) Σ_c n_c (μ_c − μ)(μ_c − μ)ᵀ."""
        centred = self.sums / np.maximum(self.counts, 1)[:, None] - self.sums.sum(axis=0) / self.count
        return np.asarray((centred.T * self.counts) @ centred)

    @property
    def within_scatter(self) -> FloatArray:
        """(D, D) Σ_c Σ (x − μ_c)(x − μ_c)ᵀ.

        Raises:
            InputError: If the products were not kept.
        """
        return np.asarray(self.total_scatter - self.between_scatter)

    def save(self, path: str | Path) -> None:
        """Write the statistics to a ``.npz`` file, whole or not at all."""
        _save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read statistics written by ``save``.

        Raises:
            InputError: If the file holds something else, or was cut off.
        """
        return _load(cls, path)


@dataclass(frozen=True, eq=False)
class CrossMoments:
    """What is kept of two layers over the same rows, enough for exact similarity, debiased included.

    Letters: x and y are rows of the two layers, each less its shift; k = ‖x‖², l = ‖y‖².

    Attributes:
        x_shift: (D,).
        y_shift: (E,).
        count: N.
        x_sum: (D,) Σ x.
        y_sum: (E,) Σ y.
        products: (D, E) Σ x yᵀ.
        k_sum: Σ k.
        l_sum: Σ l.
        kl_sum: Σ k·l.
        ky: (E,) Σ k·y.
        lx: (D,) Σ l·x.
    """

    x_shift: FloatArray
    y_shift: FloatArray
    count: int
    x_sum: FloatArray
    y_sum: FloatArray
    products: FloatArray
    k_sum: float
    l_sum: float
    kl_sum: float
    ky: FloatArray
    lx: FloatArray

    @classmethod
    def of(
        cls,
        x: ArrayLike,
        y: ArrayLike,
        *,
        x_shift: ArrayLike | None = None,
        y_shift: ArrayLike | None = None,
    ) -> CrossMoments:
        """Sum the rows of two layers.

        Args:
            x: (N, D) features of one layer; may be memory-mapped.
            y: (N, E) features of the other, of the same images in the same order.
            x_shift: (D,); None takes the first row.
            y_shift: (E,); None takes the first row.

        Raises:
            InputError: If the numbers of rows differ.
            NonFiniteFeatures: If a feature is NaN or infinite.

        Examples:
            >>> kept = CrossMoments.of([[0.0], [1.0], [3.0]], [[1.0], [1.0], [2.0]])
            >>> kept.count, kept.products.tolist()
            (3, [[3.0]])
        """
        left, right = check_features(x), check_features(y)
        if len(left) != len(right):
            raise InputError(
                "two layers over the same images", f"{len(left)} and {len(right)} rows", "Align them by id"
            )
        a = left[0].astype(np.float64) if x_shift is None else np.asarray(x_shift, np.float64)
        b = right[0].astype(np.float64) if y_shift is None else np.asarray(y_shift, np.float64)
        parts = [_cross(left[rows] - a, right[rows] - b, a, b) for rows in _blocks(left)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def __add__(self, other: CrossMoments) -> CrossMoments:
        """Merge with the statistics of other rows of the same two layers.

        Raises:
            InputError: If the widths differ.
        """
        if self.products.shape != other.products.shape:
            raise InputError(
                f"statistics of shape {self.products.shape}", f"shape {other.products.shape}",
                "Merge statistics of the same two layers",
            )  # fmt: skip
        moved = other.moved_to(self.x_shift, self.y_shift)
        own = {
            one.name: getattr(self, one.name) + getattr(moved, one.name)
            for one in fields(self)
            if not one.name.endswith("_shift")
        }
        return CrossMoments(self.x_shift, self.y_shift, **own)

    def __sub__(self, other: CrossMoments) -> CrossMoments:
        """Take away the statistics of some of the rows.

        Raises:
            InputError: If the widths differ.
        """
        taken = {
            one.name: -getattr(other, one.name) for one in fields(other) if not one.name.endswith("_shift")
        }
        return self + replace(other, **taken)

    def moved_to(self, x_shift: FloatArray, y_shift: FloatArray) -> CrossMoments:
        """Return the same statistics around other shifts.

        With x′ = x + δ, y′ = y + ε:  k′ = k + 2x·δ + δ·δ,  l′ = l + 2y·ε + ε·ε.
        """
        d, e = self.x_shift - x_shift, self.y_shift - y_shift
        if not (d.any() or e.any()):
            return self
        n, dd, ee = self.count, float(d @ d), float(e @ e)
        xd, ye = float(self.x_sum @ d), float(self.y_sum @ e)
        pe, pd = self.products @ e, self.products.T @ d
        # Σ l x and Σ k y around the new shift of the other layer, the row itself still around its own.
        lx = self.lx + 2 * pe + ee * self.x_sum
        ky = self.ky + 2 * pd + dd * self.y_sum
        l_sum, k_sum = self.l_sum + 2 * ye + n * ee, self.k_sum + 2 * xd + n * dd
        kl = self.kl_sum + 2 * float(self.ky @ e) + ee * self.k_sum
        kl += 2 * float(lx @ d) + dd * l_sum
        return CrossMoments(
            np.asarray(x_shift, np.float64),
            np.asarray(y_shift, np.float64),
            n,
            self.x_sum + n * d,
            self.y_sum + n * e,
            self.products + np.outer(self.x_sum, e) + np.outer(d, self.y_sum) + n * np.outer(d, e),
            k_sum,
            l_sum,
            kl,
            ky + k_sum * e,
            lx + l_sum * d,
        )

    def centred(self) -> CrossMoments:
        """Return the same statistics around the means of both layers."""
        return self.moved_to(self.x_shift + self.x_sum / self.count, self.y_shift + self.y_sum / self.count)

    def save(self, path: str | Path) -> None:
        """Write the statistics to a ``.npz`` file, whole or not at all."""
        _save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> CrossMoments:
        """Read statistics written by ``save``.

        Raises:
            InputError: If the file holds something else, or was cut off.
        """
        return _load(cls, path)


def merge(parts: Sequence[Own]) -> Own:
    """Merge statistics of parts of the rows, in pairs: rounding grows with the logarithm of their number.

    Raises:
        InputError: If there is none, or they do not fit together.
    """
    if not parts:
        raise InputError("at least one part", "none", "Sum some rows first")
    rest = list(parts)
    while len(rest) > 1:
        pairs = [rest[place] + rest[place + 1] for place in range(0, len(rest) - 1, 2)]
        rest = pairs + rest[len(pairs) * 2 :]
    return rest[0]


def _cross(x: FloatArray, y: FloatArray, x_shift: FloatArray, y_shift: FloatArray) -> CrossMoments:
    x, y = x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
    k, l_ = np.einsum("nd,nd->n", x, x), np.einsum("nd,nd->n", y, y)
    return CrossMoments(
        x_shift, y_shift, len(x), x.sum(axis=0), y.sum(axis=0), x.T @ y,
        float(k.sum()), float(l_.sum()), float(k @ l_), k @ y, l_ @ x,
    )  # fmt: skip


def _given(products: FloatArray | None) -> FloatArray:
    if products is None:
        raise InputError("statistics with products", "those of class sums alone", "Ask for `products=True`")
    return products


def _blocks(features: AnyFloats) -> list[slice]:
    return row_blocks(len(features), features.shape[1], _BLOCK_BYTES)


def _save(kept: Moments | CrossMoments, path: str | Path) -> None:
    held: dict[str, Any] = {"format": FORMAT, "kind": type(kept).__name__}
    held |= {one.name: value for one in fields(kept) if (value := getattr(kept, one.name)) is not None}
    with replacing(Path(path)) as temporary, Path(temporary).open("wb") as file:
        np.savez(file, **held)
        file.flush()
        os.fsync(file.fileno())


def _load(kind: type[Own], path: str | Path) -> Own:
    wanted = f"statistics written by {kind.__name__}.save"
    try:
        with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(wanted, f"{path}: {error}", "Sum the rows again") from error
    if str(held.pop("kind", "")) != kind.__name__ or int(held.pop("format", 0)) != FORMAT:
        raise InputError(wanted, f"{path}, which holds something else", "Name another file")
    needed = {one.name for one in fields(kind)} - {"products"}
    if not needed <= set(held):
        raise InputError(
            wanted, f"{path} without {', '.join(sorted(needed - set(held)))}", "Sum the rows again"
        )
    values = {name: value if value.ndim else value.item() for name, value in held.items()}
    return kind(**{"products": None, **values})
