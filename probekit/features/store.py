"""The feature store: directories of immutable ``.npy`` parts that survive any interruption.

Layout, each file written to a temporary name and moved into place::

    STORE/features/<key>/manifest.json        what the features depend on, and the engine that makes them
    STORE/features/<key>/index.parquet        ids and splits, in row order
    STORE/features/<key>/<tap>/tap.json       shape, dtype, part length, in a fused store the tap's pass
    STORE/features/<key>/<tap>/part-00000.npy whole batches of rows
    STORE/features/<key>/<tap>/journal.jsonl  one line a finished part, with its checksum; one journal a rank

Manifest, index and tap files are written once, before the first part, and never changed; whatever appends
later obeys them. No time, host or process number stands in any of these files.

Several processes fill one store without talking to each other: rows are divided into chunks of
``CHUNK_BATCHES`` batches, every tap's parts divide a chunk, and a rank takes every so many-th chunk. Whoever
comes first writes manifest and tap files; the others obey.

On object storage nothing can be appended: there each part has a journal of its own, sent after the part as
``journal-part-00000.jsonl``. The folder here is a cache of it: ``refresh`` makes the two agree, but for
parts, which are brought when they are read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probekit.errors import InputError, NonFiniteFeatures, StoreDamaged
from probekit.features.features import Part, PartedRows
from probekit.files import (
    append_line,
    canonical_json,
    digest_file,
    digest_json,
    read_json,
    read_lines,
    replacing,
    safe_name,
    write_json_once,
    write_text,
)
from probekit.remote import address_of, fetch, fetch_small, listing, send, settle

FORMAT = 2
MANIFEST, INDEX, TAP = "manifest.json", "index.parquet", "tap.json"
# A chunk is what a rank takes, and what an interruption costs at most.
CHUNK_BATCHES = 16
# Parts of wide taps are shorter than a chunk.
PART_BYTES = 64 << 20


def check_format(facts: Mapping[str, Any], path: Path) -> None:
    """Refuse a file of another format number by name.

    Raises:
        StoreDamaged: If the number is missing or unknown.
    """
    if facts.get("format") != FORMAT:
        raise StoreDamaged(
            f"format {FORMAT} in {path}",
            f"format {facts.get('format')!r}",
            "Read it with the version of probekit that wrote it, or delete its folder",
        )


def read_facts(path: Path) -> dict[str, Any]:
    """Read a manifest or tap file, and check its format and that it is as it was written.

    Raises:
        StoreDamaged: If it is not.
    """
    facts: dict[str, Any] = read_json(path)
    if not isinstance(facts, dict):
        raise StoreDamaged(f"facts in {path}", type(facts).__name__, "Delete its folder")
    check_format(facts, path)
    # Stores of earlier versions have no digest.
    digest = facts.pop("digest", None)
    if digest is not None and digest != digest_json(facts):
        raise StoreDamaged(f"{path} as it was written", "other content", "Delete its folder")
    return facts


def _write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a manifest or tap file with its digest, unless another process was there first."""
    whole = {"format": FORMAT, **facts}
    write_json_once(path, {**whole, "digest": digest_json(whole)})
    settle(path)


def open_store(
    folder: Path, key_facts: Mapping[str, Any], engine: Mapping[str, Any], index: pd.DataFrame
) -> Path:
    """Return the directory of one key, writing manifest and index if they are not there yet.

    Args:
        folder: The store.
        key_facts: What the features depend on: weights, arch, branch, transform, index.
        engine: How they are to be computed; only written if there is no manifest yet.
        index: Columns ``id`` and ``split``, in row order.

    Raises:
        StoreDamaged: If the directory holds features of something else.
    """
    place = store_place(folder, key_facts)
    manifest = place / MANIFEST
    if manifest.exists():
        if read_facts(manifest)["key"] != dict(key_facts):
            raise StoreDamaged(f"the key of {place.name} in {manifest}", "another key", "Delete this folder")
        return place
    place.mkdir(parents=True, exist_ok=True)
    with replacing(place / INDEX) as temporary:
        index.to_parquet(temporary)
    send(place / INDEX)
    # Last, so that a manifest is proof that the index is whole.
    _write_facts(manifest, {"key": dict(key_facts), "engine": dict(engine), "rows": len(index)})
    return place


def store_place(folder: Path, key_facts: Mapping[str, Any]) -> Path:
    """Return where the features of one key lie."""
    return folder / "features" / digest_json(dict(key_facts))[:24]


def refresh(place: Path) -> None:
    """Make the folder of one key agree with its objects, where it stands for some.

    Facts and journals are brought; parts that were finished here but never got there are sent; what was begun
    here under another manifest, or deleted there, is forgotten.

    Raises:
        RemoteUnreachable: If objects cannot be read or written.
    """
    if address_of(place) is None:
        return
    there, manifest = listing(place), place / MANIFEST
    if manifest in there:
        begun = manifest.read_bytes() if manifest.exists() else None
        fetch(manifest)
        if begun is not None and begun != manifest.read_bytes():
            shutil.rmtree(place)
            fetch(manifest)
    elif manifest.exists():
        send(place / INDEX)
        settle(manifest)
    facts = [path for path in there if path.name == TAP]
    journals = [path for path in there if path.match("journal-*.jsonl") and not path.exists()]
    fetch_small(facts + journals)
    for path in sorted(place.glob(f"*/{TAP}")):
        if path not in there:
            settle(path)
        _send_missing(path.parent, there)


def _send_missing(folder: Path, there: Mapping[Path, int]) -> None:
    """Send finished parts of a tap that are not there, and forget those that are nowhere."""
    for journal in sorted(folder.glob("journal-*.jsonl")):
        record = _read_record(journal)
        if record is None and journal in there:
            journal.unlink()  # else it would be read again once the object is deleted
            raise StoreDamaged(
                f"the record of a part in {address_of(journal)}",
                "something else",
                f"Delete {address_of(folder)} there and run again",
            )
        part = folder / (record["part"] if record else "")
        arrived = record is not None and there.get(part) == record["bytes"]
        if arrived and journal in there:
            continue
        if record is not None and part.is_file() and digest_file(part) == record["sha256"]:
            if not arrived:
                send(part)
            send(journal)
        elif journal not in there:
            journal.unlink()


def _read_record(journal: Path) -> dict[str, Any] | None:
    """Return what a journal of object storage says of the part it is named after; None if it is damaged."""
    try:
        lines = read_lines(journal)
    except InputError:
        lines = []
    whole = len(lines) == 1 and _is_record(lines[0])
    return lines[0] if whole and journal == _journal_of(journal.parent / lines[0]["part"]) else None


def _is_record(line: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Say whether a line of a journal tells of a part in the journal's own folder."""
    kinds = {"part": str, "start": int, "rows": int, "bytes": int, "sha256": str}
    return (
        isinstance(line, dict)
        and all(type(line.get(name)) is kind for name, kind in kinds.items())
        and Path(line["part"]).name == line["part"]
    )


def _journal_of(part: Path) -> Path:
    """Return where the journal of a part lies on object storage, beside it."""
    return part.with_name(f"journal-{part.stem}.jsonl")


@dataclass(frozen=True)
class TapFolder:
    """The folder of one tap inside the directory of one key."""

    path: Path

    @classmethod
    def of(cls, place: Path, tap: str, dtype: str) -> TapFolder:
        """Name the folder of one tap and storage type."""
        return cls(place / safe_name(f"{tap}.{dtype}"))

    def declare(self, facts: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
        """Write the tap's facts once, with the part length that follows, and return what stands there.

        Args:
            facts: ``tap``, ``axes``, ``shape`` (per image), ``dtype`` and whatever tables need.
            batch_size: Parts hold whole batches, so that a resumed run replays the same ones.
        """
        path = self.path / TAP
        if not path.exists():
            row_bytes = int(np.prod(facts["shape"], dtype=np.int64)) * np.dtype(facts["dtype"]).itemsize
            rows = _part_rows(row_bytes, batch_size)
            _write_facts(path, {"part_rows": rows, **facts})
        return read_facts(path)

    def facts(self) -> dict[str, Any] | None:
        """Return the tap's facts, or None if nothing was declared yet."""
        path = self.path / TAP
        return read_facts(path) if path.exists() else None

    def parts(self) -> list[Part]:
        """Return the finished parts in row order; those in between may be missing.

        Raises:
            StoreDamaged: If a journal says no such thing as a part, or journals contradict each other.
        """
        by_start: dict[int, dict[str, Any]] = {}
        for journal in sorted(self.path.glob("journal*.jsonl")):
            for line in read_lines(journal):
                if not _is_record(line):
                    found = canonical_json(line)[:80]
                    raise StoreDamaged(f"records of parts in {journal}", found, "Delete this folder")
                known = by_start.setdefault(line["start"], line)
                if canonical_json(known) != canonical_json(line):
                    raise StoreDamaged(
                        f"one line for row {line['start']} in {journal}", "two", "Delete this folder"
                    )
        # On object storage a journal is proof of its part, which may never have been here.
        remote, parts = address_of(self.path) is not None, []
        for start, line in sorted(by_start.items()):
            path = self.path / line["part"]
            if remote or (path.is_file() and path.stat().st_size == line["bytes"]):
                parts.append(Part(path, start, line["rows"], line["sha256"]))
        return parts

    def finished(self) -> dict[int, Part]:
        """Return the finished parts by their first row.

        The last part of all is read back and compared with its checksum, because a machine that went down may
        have lost the end of what it wrote. What was sent was whole.
        """
        parts = self.parts()
        if parts and address_of(self.path) is None:
            PartedRows(parts, (0,), "float32").part(len(parts) - 1)
        return {part.start: part for part in parts}

    def values(self, rows: int) -> PartedRows | None:
        """Return the tap's rows if all of them are finished, else None."""
        facts, parts = self.facts(), self.parts()
        # Parts start at multiples of their length, so that none is missing if the rows add up.
        if facts is None or sum(part.rows for part in parts) != rows:
            return None
        return PartedRows(parts, (rows, *facts["shape"]), facts["dtype"])


def _part_rows(row_bytes: int, batch_size: int) -> int:
    batches = CHUNK_BATCHES
    while batches > 1 and batches * batch_size * row_bytes > PART_BYTES:
        batches //= 2
    return batches * batch_size


class PartWriter:
    """Writes one tap's rows as parts, each finished atomically and then entered in the rank's journal.

    Rows go straight to the file, so memory does not grow with the length of a part.
    """

    def __init__(self, folder: TapFolder, total: int, rank: int = 0) -> None:
        facts = folder.facts()
        if facts is None:
            raise StoreDamaged(f"{folder.path / TAP}", "no such file", "Run the extraction again")
        self.folder, self.total = folder, total
        self.shape, self.dtype = tuple(facts["shape"]), np.dtype(facts["dtype"])
        self.part_rows: int = facts["part_rows"]
        self._finished = set(folder.finished())
        self._journal = folder.path / ("journal.jsonl" if rank == 0 else f"journal-{rank}.jsonl")
        self._file: BinaryIO | None = None
        self._row = self._end = 0

    def wants(self, row: int) -> bool:
        """Say whether the part that holds a row is still to be written."""
        return row // self.part_rows * self.part_rows not in self._finished

    def append(self, row: int, values: NDArray[Any], ids: NDArray[np.str_]) -> None:
        """Append a batch of rows; the batches of a part follow each other.

        Args:
            row: Number of the first row.
            values: (n, …) rows of the tap's shape.
            ids: (n,) their image ids, for error messages.

        Raises:
            NonFiniteFeatures: If a row holds NaN or infinity, or overflows the storage type.
        """
        with np.errstate(over="ignore"):  # overflow is reported below, with the image's id
            stored = np.ascontiguousarray(values, self.dtype)
        finite = np.isfinite(stored.reshape(len(stored), -1)).all(axis=1)
        if not finite.all():
            first = int(np.flatnonzero(~finite)[0])
            exact = np.isfinite(values[first]).all()
            raise NonFiniteFeatures(
                f"finite features at {self.folder.path.name}",
                f"{'overflow' if exact else 'NaN or infinity'} in {self.dtype.name} for image {ids[first]!r}",
                "Store float32" if exact else "Check the checkpoint and this image",
            )
        if self._file is None:
            self._begin(row)
        assert row == self._row
        self._write(stored.tobytes())
        self._row += len(stored)
        if self._row == self._end:
            self._finish()

    def _begin(self, row: int) -> None:
        assert row % self.part_rows == 0
        self._start = self._row = row
        self._end = min(row + self.part_rows, self.total)
        self._name = f"part-{self._start // self.part_rows:05d}.npy"
        self._temporary = self.folder.path / f".{self._name}.{os.getpid()}.tmp"
        self._hasher = hashlib.sha256()
        self._file = self._temporary.open("wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self._end - self._start, *self.shape),
        }
        np.lib.format.write_array_header_1_0(_Hashed(self), header)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._hasher.update(data)

    def _finish(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        self._file = None
        self._temporary.replace(self.folder.path / self._name)
        self._enter(
            {
                "part": self._name,
                "start": self._start,
                "rows": self._end - self._start,
                "bytes": size,
                "sha256": self._hasher.hexdigest(),
            }
        )
        self._finished.add(self._start)

    def _enter(self, record: Mapping[str, Any]) -> None:
        """Write down that a part is finished; on object storage, after it was sent."""
        part = self.folder.path / self._name
        if address_of(part) is None:
            append_line(self._journal, record)
            return
        # Whole here before anything is sent: what cannot be sent now is sent by the next run.
        journal = _journal_of(part)
        write_text(journal, canonical_json(dict(record)) + "\n")
        send(part)
        send(journal)

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


class _Hashed:
    """What NumPy's header writer needs of a file, passed on to a part."""

    def __init__(self, writer: PartWriter) -> None:
        self.write = writer._write
