"""Arrays kept in an .npz file: which hold pixels, targets, ids and splits; pixels are loaded when needed."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.data.sources import check_pixel_shape
from probekit.data.specs import TargetChoice
from probekit.data.targets import Target, class_order
from probekit.errors import DataError, InputError, near_names

PIXEL_KEY = "images"
_TARGET_KEYS = ("labels", "label", "targets", "target")
_TARGET_PREFIXES = ("label_", "target_")
_ID_KEYS = ("ids", "id")
_SPLIT_KEYS = ("splits", "split")
_CLASS_KEYS = ("classes", "class_names")


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """An .npz file with an array ``images``.

    Attributes:
        path: The file.
        keys: Names of its arrays.
        n: Number of images (N).
        identity: CRC-32 and size of the pixels, from the archive's directory.
    """

    path: Path
    keys: tuple[str, ...]
    n: int
    identity: str

    def column(self, key: str) -> NDArray[Any]:
        """Return an array that has one row for each image.

        Raises:
            DataError: If it cannot be read or has another length.
        """
        values = load_array(self.path, key)
        if values.ndim == 0 or len(values) != self.n:
            raise DataError(
                f"{self.n} rows in {key!r} of {self.path}", f"shape {values.shape}", "Give one row per image"
            )
        return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values

    def words(self, keys: Sequence[str]) -> list[str] | None:
        """Return the first of some arrays, as text; None if the file has none of them."""
        key = next((key for key in keys if key in self.keys), None)
        return None if key is None else [str(value) for value in self.column(key).tolist()]

    @property
    def ids(self) -> list[str]:
        """N ids, of the array ``ids`` or made from places."""
        return self.words(_ID_KEYS) or [f"{index:06d}" for index in range(self.n)]

    @property
    def splits(self) -> list[str] | None:
        """N words of the array ``split``; None if there is none."""
        return self.words(_SPLIT_KEYS)

    def targets(self, choices: Sequence[TargetChoice] | None) -> dict[str, Target]:
        """Make targets from arrays.

        Without a choice: ``labels``, ``targets`` and arrays named ``label_…`` or ``target_…``. One row of
        whole numbers, yes/no or text: class, with the names in ``classes`` if there is such an array.
        (N, C) of 0 and 1: multi-label. Other numbers: continuous.

        Raises:
            InputError: If a chosen array is not there, or arrays are joined.
            DataError: If there are none, or values do not fit the kind.
        """
        if choices is None:
            keys = [key for key in self.keys if key in _TARGET_KEYS or key.startswith(_TARGET_PREFIXES)]
            choices = [TargetChoice((key,)) for key in keys]
        if not choices:
            raise DataError(
                f"an array 'labels' or 'targets' in {self.path}",
                f"{', '.join(self.keys)}",
                "Add one, or name one by target=",
            )
        return {choice.name: self._target(choice) for choice in choices}

    def _target(self, choice: TargetChoice) -> Target:
        if len(choice.columns) > 1:
            raise InputError("one array for each target", choice.name, "Join them into one (N, K) array")
        key = choice.columns[0]
        if key not in self.keys:
            raise InputError(
                f"an array of {self.path} as target", repr(key), f"Near: {near_names(key, self.keys)}"
            )
        values = self.column(key)
        kind = choice.kind or _kind_of(values)
        if kind == "class":
            return self._class_target(key, values)
        wide = values.reshape(len(values), -1)
        names = (key,) if wide.shape[1] == 1 else tuple(f"{key}_{place}" for place in range(wide.shape[1]))
        return Target(wide, kind, names)

    def _class_target(self, key: str, values: NDArray[Any]) -> Target:
        if values.ndim != 1:
            raise DataError(f"one class per image in {key!r}", f"shape {values.shape}", "Choose another kind")
        written = [str(value) for value in values.tolist()]
        named = next((name for name in _CLASS_KEYS if name in self.keys), None)
        if named is None or values.dtype.kind not in "iu" or key not in _TARGET_KEYS:
            return Target.from_names(written, class_order(set(written)))
        classes = [str(name) for name in load_array(self.path, named).ravel().tolist()]
        return Target(values, "class", tuple(classes))


def open_arrays(path: Path) -> ArrayFile:
    """Read the directory of an .npz file and the shape of its pixels, not the pixels.

    Raises:
        DataError: If it is damaged, or has no ``images`` of a usable shape.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
            if PIXEL_KEY not in members:
                raise DataError(
                    f"an array {PIXEL_KEY!r} in {path}", ", ".join(members) or "nothing", "Rename the array"
                )
            with archive.open(members[PIXEL_KEY]) as opened:
                shape, dtype = _header(opened)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"arrays saved by numpy.savez in {path}", str(error), "Save it again") from error
    check_pixel_shape(shape, dtype.kind)
    pixels = members[PIXEL_KEY]
    return ArrayFile(path, tuple(members), shape[0], f"{pixels.CRC:08x}:{pixels.file_size}")


def _header(opened: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:  # noqa: ANN401 - a zip's member
    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(opened)
    return shape, dtype


def load_array(path: Path, key: str) -> NDArray[Any]:
    """Load one array.

    Raises:
        DataError: If it is damaged or holds Python objects.
    """
    try:
        with np.load(path) as arrays:
            return np.asarray(arrays[key])
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"numbers or text in {key!r} of {path}", str(error), "Save it again") from error


def load_pixels(path: Path, block: int) -> NDArray[Any]:
    """Load all pixels: block 0 is the only one."""
    del block
    return load_array(path, PIXEL_KEY)


def _kind_of(values: NDArray[Any]) -> str:
    if values.ndim == 1:
        return "continuous" if values.dtype.kind == "f" else "class"
    flags = values.dtype.kind in "biu" and bool(np.isin(values, (0, 1)).all())
    return "multilabel" if flags else "continuous"
