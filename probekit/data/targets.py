"""What is known of each image: a class, labels or numbers for a probe; boxes, masks or key points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.data.annotations import Boxes, Mask, Points
from probekit.errors import DataError
from probekit.files import digest_bytes

# One value an image, which a probe can be asked for.
KINDS = ("class", "multilabel", "continuous")
# Kind → what stands for one image.
# Like a class, but no target of a probe: splits may be kept apart by it.
GROUP = "group"
STRUCTURED: dict[str, type] = {"boxes": Boxes, "masks": Mask, "keypoints": Points}


@dataclass(frozen=True, eq=False)
class Target:
    """The values of one target for N images; they are copied, checked and read-only.

    Attributes:
        values: kinds ``class`` and ``group``: (N,) int64, places in ``classes``. kind ``multilabel``: (N, C)
            bool. kind ``continuous``: (N, K) float64; (N,) is taken as one column. kinds ``boxes``, ``masks``
            and ``keypoints``: (N,) of ``Boxes``, ``Mask`` and ``Points``.
        kind: ``class``, ``multilabel`` or ``continuous``; ``group``, which is like a class but may be kept
            apart by the splits, such as a person, so that no probe is fitted to it; ``boxes``, ``masks`` or
            ``keypoints``.
        classes: Names of the C classes or labels, of the K columns, or of the K points; unique.

    Raises:
        DataError: If values do not fit their kind, are not finite, or there are fewer than two classes.

    Examples:
        >>> Target([0, 1, 1], "class", ("cat", "dog")).n_classes
        2
    """

    values: NDArray[Any]
    kind: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        classes = tuple(str(name) for name in self.classes)
        _check_names(self.kind, classes)
        read = {
            "class": _class_values,
            GROUP: _class_values,
            "multilabel": _label_values,
            "continuous": _continuous_values,
        }
        values = (
            _annotations(self.kind, self.values, classes)
            if self.kind in STRUCTURED
            else read[self.kind](np.asarray(self.values), classes)
        )
        values.setflags(write=False)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "classes", classes)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Target({self.kind}, {len(self)} images, {_names_in_short(self.classes)})"

    @property
    def n_classes(self) -> int:
        """Number of classes (C), labels (C) or continuous columns (K)."""
        return len(self.classes)

    def select(self, indices: ArrayLike) -> Target:
        """Return the target of some images, in the order of ``indices``; no class is forgotten."""
        return Target(self.values[np.asarray(indices, dtype=np.int64)], self.kind, self.classes)

    def content(self) -> str:
        """Return 64 hexadecimal digits over the values."""
        if self.kind in STRUCTURED:
            return digest_bytes("".join(one.content() for one in self.values).encode())
        return digest_bytes(np.ascontiguousarray(self.values).tobytes())

    def facts(self) -> dict[str, Any]:
        """Return kind and classes as JSON values, for provenance."""
        return {"kind": self.kind, "classes": list(self.classes)}

    @classmethod
    def from_names(cls, names: Sequence[str], classes: Sequence[str] | None = None) -> Target:
        """Make a class target from one class name per image.

        Args:
            names: Class of each of the N images, as text.
            classes: All classes in order; by default those that occur, see ``class_order``.

        Raises:
            DataError: If a name is not among ``classes``, or there are fewer than two.

        Examples:
            >>> Target.from_names(["10", "9", "10"]).classes
            ('9', '10')
        """
        order = tuple(class_order(set(names)) if classes is None else classes)
        place = {name: index for index, name in enumerate(order)}
        unknown = sorted({name for name in names if name not in place})
        if unknown:
            raise DataError(
                f"classes among {_names_in_short(order)}",
                ", ".join(repr(name) for name in unknown[:5]),
                "Correct the names or list every class",
            )
        return cls(np.array([place[name] for name in names], dtype=np.int64), "class", order)


def class_order(names: set[str]) -> list[str]:
    """Sort class names: by value if all are whole numbers, else alphabetically (as torchvision does).

    Examples:
        >>> class_order({"10", "9"}), class_order({"b", "a10", "a9"})
        (['9', '10'], ['a10', 'a9', 'b'])
    """
    if all(name.isascii() and name.lstrip("+-").isdigit() for name in names):
        return sorted(names, key=lambda name: (_whole_number(name), name))
    return sorted(names)


def _whole_number(name: str) -> int:
    sign = -1 if name.startswith("-") else 1
    return sign * int(name.lstrip("+-"))


def _check_names(kind: str, classes: tuple[str, ...]) -> None:
    known = (*KINDS, GROUP, *STRUCTURED)
    if kind not in known:
        raise DataError(f"a kind among {', '.join(known)}", repr(kind), "Choose one")
    least = 2 if kind in ("class", GROUP) else 1
    if len(classes) < least:
        raise DataError(
            f"at least {least} {'columns' if kind == 'continuous' else 'classes'}",
            _names_in_short(classes),
            "A probe needs something to tell apart",
        )
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise DataError("class names that differ", f"{twice[0]!r} twice", "Rename or merge them")


def _annotations(kind: str, values: Any, classes: tuple[str, ...]) -> NDArray[Any]:  # noqa: ANN401
    """Check annotations, one an image, against the kind and the number of classes or points."""
    annotations = list(values)
    wrong = next((one for one in annotations if not isinstance(one, STRUCTURED[kind])), None)
    if wrong is not None:
        raise DataError(f"{STRUCTURED[kind].__name__} for every image", type(wrong).__name__, "Convert it")
    for one in annotations:
        if (
            isinstance(one, Boxes)
            and len(one)
            and not 0 <= one.classes.min() <= one.classes.max() < len(classes)
        ):
            raise DataError(
                f"boxes of classes 0 to {len(classes) - 1}",
                f"{one.classes.min()} to {one.classes.max()}",
                "List every class",
            )
        if isinstance(one, Points) and len(one) != len(classes):
            raise DataError(f"{len(classes)} points an image", str(len(one)), "Mark absent ones as such")
    stacked = np.empty(len(annotations), dtype=object)
    stacked[:] = annotations
    return stacked


def _class_values(values: NDArray[Any], classes: tuple[str, ...]) -> NDArray[np.int64]:
    if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
        raise DataError(
            "class indices: whole numbers of shape (N,)",
            f"{values.dtype} of shape {values.shape}",
            "For class names use Target.from_names",
        )
    if len(values) and not (int(values.min()) >= 0 and int(values.max()) < len(classes)):
        raise DataError(
            f"class indices from 0 to {len(classes) - 1}",
            f"{int(values.min())} to {int(values.max())}",
            "Number the classes from 0, in the order of their names",
        )
    return values.astype(np.int64)


def _label_values(values: NDArray[Any], classes: tuple[str, ...]) -> NDArray[np.bool_]:
    if values.ndim != 2 or values.shape[1] != len(classes):
        raise DataError(
            f"labels of shape (N, {len(classes)})", f"shape {values.shape}", "Give one column per label"
        )
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise DataError("labels that are 0 or 1", f"other values ({values.dtype})", "Use 1 for present")
    return values.astype(np.bool_)


def _continuous_values(values: NDArray[Any], classes: tuple[str, ...]) -> NDArray[np.float64]:
    columns = values[:, None] if values.ndim == 1 else values
    if columns.ndim != 2 or columns.shape[1] != len(classes):
        raise DataError(
            f"values of shape (N, {len(classes)})", f"shape {values.shape}", "Name every column once"
        )
    if columns.dtype.kind not in "biuf":
        raise DataError("numbers", f"{columns.dtype}", "Convert the target, or make it a class target")
    columns = columns.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(columns).all(axis=1))
    if len(bad):
        raise DataError(
            "finite target values",
            f"NaN or infinite values for {len(bad)} images, first at row {int(bad[0])}",
            "Leave those images out",
        )
    return cast("NDArray[np.float64]", columns)


def _names_in_short(names: Sequence[str]) -> str:
    """List up to four names and count all of them."""
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return f"{len(names)} ({shown})" if names else "none"
