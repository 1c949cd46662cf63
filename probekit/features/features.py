"""Features: what one tap says of every image, kept on disk and read by parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray

from probekit.data.targets import Target
from probekit.errors import FeatureError, StoreDamaged
from probekit.files import digest_file, replacing
from probekit.functional.rows import empty_rows
from probekit.remote import fetch_whole

# Status of a tap that no measure can be taken of.
DEAD = "dead at initialisation: every feature is constant"


@dataclass(frozen=True)
class Part:
    """One immutable file of consecutive rows.

    Attributes:
        path: Where it lies.
        start: Row number of its first row.
        rows: How many rows it holds.
        sha256: Digest of the file's bytes; None where the rows were made in this process.
    """

    path: Path
    start: int
    rows: int
    sha256: str | None = None


class PartedRows:
    """Rows of one tap over several files, memory-mapped; behaves like a read-only array along its first axis.

    Each part is compared with its checksum when it is first touched; from object storage it is brought then.
    """

    def __init__(self, parts: Sequence[Part], shape: tuple[int, ...], dtype: str) -> None:
        self.parts = tuple(parts)
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._opened: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, number: int) -> NDArray[Any]:
        """Return the rows of one part, memory-mapped.

        Raises:
            StoreDamaged: If the file is missing or its bytes are not those that were written.
        """
        if number not in self._opened:
            part = self.parts[number]
            advice = "Delete the folder of this tap and run again"
            if part.sha256 is not None:
                fetch_whole(part.path, part.sha256, part.path.parent)
            if not part.path.is_file():
                raise StoreDamaged(f"the part {part.path}", "no such file", advice)
            if part.sha256 is not None and digest_file(part.path) != part.sha256:
                raise StoreDamaged(f"the bytes that were written to {part.path}", "other bytes", advice)
            self._opened[number] = np.load(part.path, mmap_mode="r", allow_pickle=False)
        return self._opened[number]

    def take(self, rows: NDArray[np.intp], dtype: DTypeLike | None = None) -> NDArray[Any]:
        """Return chosen rows, in the order given, as one array, of another type if one is given."""
        taken = empty_rows((len(rows), *self.shape[1:]), self.dtype if dtype is None else dtype)
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], [part.start for part in self.parts] + [len(self)])
        for number, part in enumerate(self.parts):
            inside = order[bounds[number] : bounds[number + 1]]
            if len(inside):
                taken[inside] = self.part(number)[rows[inside] - part.start]
        return taken

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: ANN401
        taken = self.take(np.arange(len(self)))
        return taken if dtype is None else taken.astype(dtype)


@dataclass(frozen=True, eq=False)
class Features:
    """What one tap says of every image of an image set.

    Attributes:
        values: (N, …) rows in the order of ``ids``.
        axes: Names of the axes: ``"N D"``, ``"N T D"`` or ``"N D H W"``.
        ids: (N,) image ids.
        splits: (N,) ``train``, ``val`` or ``test``.
        targets: Target name → Target over the same N images.
        tap: The tap as written in tables.
        facts: What is known of the tap: block, level, depth, readout, layout.
        provenance: Weights, transform, data and engine that made the values.
    """

    values: PartedRows | NDArray[Any]
    axes: str
    ids: NDArray[np.str_]
    splits: NDArray[np.str_]
    targets: Mapping[str, Target]
    tap: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``values``."""
        return tuple(self.values.shape)

    def rows(self, role: str) -> NDArray[np.intp]:
        """Return the row numbers of one split."""
        return np.flatnonzero(self.splits == role)

    def matrix(self, rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Return features as (N, D) float32; large ones lie in a temporary file.

        Args:
            rows: Row numbers to read; None reads all.

        Raises:
            FeatureError: If the features have more axes than ``N D``: which of them to keep, average or
                flatten is a choice of readout and is not guessed.
        """
        if self.axes != "N D":
            raise FeatureError(
                "features with axes N D",
                f"axes {self.axes} at {self.tap}",
                "Extract with a readout that gives vectors, such as gap, cls or grid(2)",
            )
        chosen = np.arange(len(self)) if rows is None else rows
        if isinstance(self.values, PartedRows):
            return self.values.take(chosen, np.float32)
        return np.asarray(self.values[chosen], np.float32)

    @cached_property
    def index(self) -> pd.DataFrame:
        """Ids, splits and targets as a table with one row an image."""
        columns: dict[str, Any] = {"id": self.ids, "split": self.splits}
        for name, target in self.targets.items():
            if target.kind == "class":
                columns[name] = np.asarray(target.classes)[target.values]
            else:
                columns |= {f"{name}.{part}": target.values[:, k] for k, part in enumerate(target.classes)}
        return pd.DataFrame(columns)

    def to_npz(self, path: Path) -> None:
        """Write values, ids and splits as one ``.npz`` file."""
        with replacing(path) as temporary, temporary.open("wb") as opened:
            np.savez(opened, values=np.asarray(self.values), ids=self.ids, splits=self.splits)

    def to_parquet(self, path: Path) -> None:
        """Write the index and one column a feature as Parquet.

        Raises:
            FeatureError: If the features are not vectors.
        """
        matrix = self.matrix()
        columns = {f"{self.tap}.{k}": matrix[:, k] for k in range(matrix.shape[1])}
        with replacing(path) as temporary:
            pd.concat([self.index, pd.DataFrame(columns)], axis=1).to_parquet(temporary)

    def __repr__(self) -> str:
        return f"Features({self.tap!r}, {self.axes}, shape {self.shape})"
