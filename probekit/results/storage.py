"""A result table as a folder: atomic files, digests for all of them, attachments read when asked for."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from probekit.errors import InputError, SchemaMismatch, near_names
from probekit.files import digest_file, read_json, replacing, write_json
from probekit.remote import address_of, fetch, fetch_whole, send
from probekit.results.fitted import read_arrays, write_arrays
from probekit.results.schema import SCHEMA_VERSION, validate

FORMAT = 1
TABLE, CSV, PROVENANCE = "table.parquet", "table.csv", "provenance.json"
# Text of more bytes is compressed: pandas reads it by its name, and a table of many perturbations or pairs of
# layers would be several megabytes.
PACKED_CSV, MOST_PLAIN_BYTES = "table.csv.gz", 1 << 20
_RESERVED = ("schema_version", "files")


class StoredAttachments(Mapping[str, Any]):
    """The attachments of a written table: each is read, and its digest checked, at every access.

    Those of a table on object storage are brought then.
    """

    def __init__(self, folder: Path, digests: Mapping[str, str]) -> None:
        self._folder, self._digests = folder, dict(digests)

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - whatever its suffix stands for
        path = self._folder / key
        fetch_whole(path, self._digests[key], self._folder)
        check_digest(path, self._digests[key])
        return _READERS[PurePosixPath(key).suffix](path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)


def write_folder(
    folder: Path, frame: pd.DataFrame, provenance: Mapping[str, Any], attachments: Mapping[str, Any]
) -> None:
    """Write a table; ``provenance.json`` comes last and holds the digests of all other files.

    The text of a large table is ``table.csv.gz`` in place of ``table.csv``.

    Raises:
        InputError: If an attachment's key is not a relative path with a known suffix, or its value
            is not what the suffix stands for.
    """
    for key in attachments:
        check_key(key)
    digests = {}
    for key in attachments:
        _write_attachment(folder, key, attachments[key])
        digests[key] = digest_file(folder / key)
    text = frame.to_csv(index=False, lineterminator="\n").encode()
    packed = len(text) > MOST_PLAIN_BYTES
    name, other = (PACKED_CSV, CSV) if packed else (CSV, PACKED_CSV)
    with replacing(folder / name) as temporary:
        # No time in it, so that the same table gives the same bytes.
        temporary.write_bytes(gzip.compress(text, mtime=0) if packed else text)
    (folder / other).unlink(missing_ok=True)
    with replacing(folder / TABLE) as temporary:
        frame.to_parquet(temporary, index=False)
    digests |= {one: digest_file(folder / one) for one in (name, TABLE)}
    stored = {"format": FORMAT, **provenance, "schema_version": SCHEMA_VERSION, "files": digests}
    write_json(folder / PROVENANCE, stored)


def read_folder(folder: Path) -> tuple[pd.DataFrame, dict[str, Any], StoredAttachments]:
    """Read what ``write_folder`` wrote.

    Raises:
        InputError: If a file is missing, altered, or of a format this version does not know.
        SchemaMismatch: If the stored frame does not follow the schema.
    """
    stored = _read_provenance(folder)
    digests = stored["files"]
    check_digest(folder / TABLE, digests[TABLE])
    frame = pd.read_parquet(folder / TABLE)
    attachments = {key: value for key, value in digests.items() if key not in (CSV, PACKED_CSV, TABLE)}
    for key in attachments:
        check_key(key)
    provenance = {key: value for key, value in stored.items() if key not in _RESERVED}
    return validate(frame), provenance, StoredAttachments(folder, attachments)


def send_table(folder: Path) -> None:
    """Send what ``write_folder`` wrote to the object storage that its folder stands for, provenance last.

    Raises:
        RemoteUnreachable: If something cannot be sent; the table stays here.
    """
    for name in _read_provenance(folder)["files"]:
        send(folder / name)
    send(folder / PROVENANCE)


def fetch_table(folder: Path) -> None:
    """Bring a table from the object storage that its folder stands for; attachments when they are asked for.

    Raises:
        InputError: If there is none.
        StoreDamaged: If it is not as it was written.
        RemoteUnreachable: If it cannot be fetched.
    """
    if not fetch(folder / PROVENANCE):
        there = address_of(folder)
        raise InputError(
            f"a written result table with {there}/{PROVENANCE}", "none", "Name the folder that holds it"
        )
    fetch_whole(folder / TABLE, _read_provenance(folder)["files"][TABLE], folder)


def check_key(key: str) -> None:
    """Refuse keys that are not plain relative paths with a known suffix.

    Raises:
        InputError: If so.

    Examples:
        >>> check_key("scores/a/layer1/class.parquet")
    """
    path = PurePosixPath(key)
    plain = not path.is_absolute() and ".." not in path.parts and "\\" not in key and str(path) == key
    if not plain or key in (TABLE, CSV, PACKED_CSV, PROVENANCE):
        raise InputError(
            "an attachment named by a relative path with forward slashes", repr(key), "Rename it"
        )
    if path.suffix not in _READERS:
        raise InputError(
            f"an attachment ending in {', '.join(_READERS)}", repr(key), "Give it the suffix of what it holds"
        )


def check_digest(path: Path, digest: str) -> None:
    """Refuse a file that is missing or not the one that was written.

    Raises:
        InputError: If so.
    """
    if not path.is_file():
        raise InputError(f"the file {path}", "nothing there", "Restore it or run the analysis again")
    if digest_file(path) != digest:
        raise InputError(
            f"{path} as {PROVENANCE} describes it",
            "other content: it was edited, or the run was interrupted while writing",
            "Restore it or run the analysis again",
        )


def _read_provenance(folder: Path) -> dict[str, Any]:
    path = folder / PROVENANCE
    if not path.is_file():
        beside = [one.name for one in sorted(folder.iterdir())] if folder.is_dir() else []
        inside = f"{near_names(PROVENANCE, beside)} there" if beside else "nothing there"
        raise InputError(f"a written result table with {path}", inside, "Name the folder that holds it")
    stored = read_json(path)
    if (
        not isinstance(stored, dict)
        or not isinstance(stored.get("files"), dict)
        or TABLE not in stored["files"]
    ):
        raise InputError(f"the provenance of a result table in {path}", "other JSON", "Restore the file")
    if stored.get("format") != FORMAT or stored.get("schema_version") != SCHEMA_VERSION:
        raise SchemaMismatch(
            f"result format {FORMAT} with schema version {SCHEMA_VERSION} in {path}",
            f"format {stored.get('format')} with schema version {stored.get('schema_version')}",
            "Use the probekit version that wrote it",
        )
    return stored


def _write_attachment(folder: Path, key: str, value: Any) -> None:  # noqa: ANN401 - checked by its writer
    try:
        _WRITERS[PurePosixPath(key).suffix](folder / key, value)
    except (TypeError, AttributeError, ValueError, pa.ArrowInvalid) as error:
        raise InputError(
            f"a value for the attachment {key!r} that fits its suffix",
            f"{type(value).__name__} ({error})",
            "See `ResultTable`",
        ) from error


def _write_frame(path: Path, value: pd.DataFrame) -> None:
    with replacing(path) as temporary:
        value.to_parquet(temporary)


def _write_array(path: Path, value: np.ndarray[Any, Any]) -> None:
    held = io.BytesIO()
    np.save(held, np.asarray(value), allow_pickle=False)
    _write_bytes(path, held.getvalue())


def _write_bytes(path: Path, value: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(value)


def _read_array(path: Path) -> Any:  # noqa: ANN401 - an array
    return np.load(path, allow_pickle=False)


def _read_any_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    return json.loads(path.read_text(encoding="utf-8"))


_WRITERS: dict[str, Callable[[Path, Any], None]] = {
    ".parquet": _write_frame,
    ".npz": write_arrays,
    ".npy": _write_array,
    ".png": _write_bytes,
    ".svg": _write_bytes,
    ".pth": _write_bytes,
    ".json": write_json,
}
_READERS: dict[str, Callable[[Path], Any]] = {
    ".parquet": pd.read_parquet,
    ".pth": Path.read_bytes,
    ".npz": read_arrays,
    ".npy": _read_array,
    ".png": Path.read_bytes,
    ".svg": Path.read_bytes,
    ".json": _read_any_json,
}
