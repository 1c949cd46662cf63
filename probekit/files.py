"""Atomic writes, journals, digests and the cache folder: everything probekit asks of a file system."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probekit.errors import InputError

CHUNK_BYTES = 1 << 20
SEAL, SEAL_FORMAT = "seal.json", 1


def cache_folder() -> Path:
    """Return where features are kept by default.

    ``PROBEKIT_CACHE`` if set, else ``probekit`` under ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    named = os.environ.get("PROBEKIT_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "probekit"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place, flushed to disk, if all went well.

    A reader sees the old file or the whole new one, never a part. After an error the temporary
    file is gone and ``path`` is untouched. So it is if it held the same bytes already: flushing takes longer
    than looking, and a repeated run writes dozens of files again.

    Examples:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if not _hold_the_same(temporary, path):
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _hold_the_same(one: Path, other: Path) -> bool:
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as left, other.open("rb") as right:
        while chunk := left.read(CHUNK_BYTES):
            if chunk != right.read(CHUNK_BYTES):
                return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def canonical_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return JSON text that is equal for equal values: sorted keys, no spaces, no NaN.

    Examples:
        >>> canonical_json({"b": 1, "a": [1.5, None]})
        '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write indented JSON with sorted keys atomically."""
    write_text(path, json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_json_once(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write indented JSON with sorted keys, unless another process was there first: then its file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        whole = Path(folder) / path.name
        write_json(whole, value)
        try:
            os.link(whole, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links: as good as it gets there
            if not path.exists():
                whole.replace(path)


def read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Read a JSON file.

    Raises:
        InputError: If the file is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"valid JSON in {path}", str(error), "Restore the file or delete it") from error


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return the SHA-256 of a value's canonical JSON."""
    return digest_bytes(canonical_json(value).encode())


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, read in pieces."""
    hasher = hashlib.sha256()
    with path.open("rb") as opened:
        while piece := opened.read(CHUNK_BYTES):
            hasher.update(piece)
    return hasher.hexdigest()


def finish_folder(unfinished: Path, place: Path) -> None:
    """Give a folder its name once it is whole, with the digests of all its files in ``seal.json``.

    Args:
        unfinished: Folder on the same file system; is gone afterwards.
        place: Must not exist, or be empty.
    """
    files = sorted(path for path in unfinished.rglob("*") if path.is_file() and path.name != SEAL)
    digests = {path.relative_to(unfinished).as_posix(): digest_file(path) for path in files}
    write_json(unfinished / SEAL, {"format": SEAL_FORMAT, "files": digests})
    unfinished.rename(place)


@contextmanager
def making_folder(place: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``place`` that takes its name, as by ``finish_folder``, if all went well.

    What an interruption leaves of it is thrown away by the next that makes the same.
    """
    unfinished = place.with_name(f".{place.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    finish_folder(unfinished, place)


def check_folder(place: Path) -> None:
    """Refuse a folder of ``finish_folder`` in which a file is missing or not as it was written.

    Raises:
        InputError: If so.
    """
    advice = "Delete this folder: it is made again"
    if not (place / SEAL).is_file():
        raise InputError(f"the file {SEAL} in {place}", "nothing there", advice)
    seal = read_json(place / SEAL)
    facts = seal if isinstance(seal, dict) else {}
    if facts.get("format") != SEAL_FORMAT or not isinstance(facts.get("files"), dict):
        found = f"format {facts.get('format')!r}, or no files"
        raise InputError(f"format {SEAL_FORMAT} and files in {place / SEAL}", found, advice)
    for name, digest in seal["files"].items():
        if not (place / name).is_file():
            raise InputError(f"the file {place / name}", "nothing there", advice)
        if digest_file(place / name) != digest:
            raise InputError(f"{place / name} as it was written", "other content", advice)


def file_identity(path: Path) -> list[int | str]:
    """Return what changes when a file is replaced or edited: path, inode, size, both times."""
    status = path.stat()
    return [str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line to a journal and flush it to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
    with path.open("ab") as journal:
        journal.truncate(whole)  # an interrupted write may have left half a line
        journal.write((canonical_json(dict(record)) + "\n").encode())
        journal.flush()
        os.fsync(journal.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a journal; a last line torn by an interruption is left out.

    Raises:
        InputError: If a line other than the last is not valid JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            # Every whole line ends in a newline, so only a torn one can stand at the very end.
            if number == len(lines) - 1:
                break
            raise InputError(
                f"a JSON record on line {number + 1} of {path}",
                repr(line[:60]),
                "Delete the journal's folder",
            ) from error
    return records


def safe_name(text: str) -> str:
    """Turn any text into a readable file name that no other text shares.

    Examples:
        >>> safe_name("layer1")
        'layer1'
        >>> safe_name("a/b").startswith("a_b-")
        True
    """
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in text)[:80].lstrip(
        "."
    )
    return plain if plain == text and plain else f"{plain}-{digest_bytes(text.encode())[:8]}"
