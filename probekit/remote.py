"""Object storage through fsspec: a folder of the cache stands for a URL, and each file in it for an object.

``s3://bucket/prefix`` lies here under ``CACHE/remote/s3%3A%2F%2Fbucket/prefix``, so that every process tells
from a path which object it stands for. All code reads and writes files in that folder; what is finished is
sent whole, and what proves it (a journal, a seal, a provenance) is sent last. An object is there whole or not
at all, but there are no locks and no renaming: of two machines that send the same, the last one stays.

A path that stands for no object is left alone by all functions, and fsspec is not imported.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from probekit.errors import InputError, ProbekitError, RemoteUnreachable, StoreDamaged
from probekit.files import SEAL, cache_folder, check_folder, digest_file, read_json, replacing

_SIGN = "://"
_ESCAPED = quote(_SIGN, safe="")
# Written where a store is opened: what cannot be written is known before long work.
_MARKER = ".probekit"


def is_url(place: str | Path) -> bool:
    """Say whether a place is a URL of object storage.

    Examples:
        >>> is_url("s3://bucket/store"), is_url("runs/flowers")
        (True, False)
    """
    return isinstance(place, str) and _SIGN in place


def local_folder(place: str | Path) -> Path:
    """Return the folder of a path, or the one that stands for a URL here; no object is asked for.

    Raises:
        InputError: If it is a URL of no known kind, or one that pathlib has cut.
    """
    if not is_url(place):
        if re.match(r"[A-Za-z][\w+.-]+:/", str(place)):
            raise InputError("a URL as text", f"the path {place}", "Write it in quotes, without Path()")
        return Path(place)
    protocol, _, rest = str(place).partition(_SIGN)
    root, _, inside = rest.partition("/")
    if not re.fullmatch(r"[A-Za-z][\w+.-]*", protocol) or not rest.strip("/") or ".." in inside.split("/"):
        raise InputError("a URL such as s3://bucket/folder", repr(place), "See docs/cluster.md")
    with _asking(str(place)):
        pass
    return cache_folder() / "remote" / quote(f"{protocol}{_SIGN}{root}", safe="") / inside.strip("/")


def store_folder(store: str | Path | None) -> Path:
    """Return the folder of a store: that of a path, of a URL that can be written, or the user's cache.

    Raises:
        InputError: If it is a URL of no known kind.
        RemoteUnreachable: If nothing can be written there.
    """
    if store is None:
        return cache_folder()
    folder = local_folder(store)
    if address := address_of(folder):
        with _asking(f"{address}/{_MARKER}") as (system, name):
            system.pipe_file(name, b"")
    return folder


def address_of(path: Path) -> str | None:
    """Return the URL that a local path stands for; None if it stands for none.

    Examples:
        >>> address_of(Path("cache/remote/s3%3A%2F%2Fbucket/store/a.json"))
        's3://bucket/store/a.json'
    """
    if _ESCAPED not in str(path):
        return None
    number = next(k for k, part in enumerate(path.parts) if _ESCAPED in part)
    return "/".join([unquote(path.parts[number]), *path.parts[number + 1 :]])


def send(path: Path) -> None:
    """Send a file whole; an object that is there already is replaced.

    Raises:
        RemoteUnreachable: If it cannot be sent; the file stays.
    """
    if address := address_of(path):
        with _asking(address) as (system, name):
            system.put_file(str(path), name)


def settle(path: Path) -> None:
    """Send a small file, unless an object is there already: that takes the file's place.

    Raises:
        RemoteUnreachable: If it can be neither sent nor fetched.
    """
    address = address_of(path)
    if address is None or fetch(path):
        return
    with _asking(address) as (system, name), suppress(FileExistsError):
        system.pipe_file(name, path.read_bytes(), mode="create")
        return
    fetch(path)


def fetch(path: Path) -> bool:
    """Bring the object that a path stands for; False where there is none.

    Raises:
        RemoteUnreachable: If it cannot be fetched.
    """
    address = address_of(path)
    if address is not None:
        with _asking(address) as (system, name), suppress(FileNotFoundError):
            with replacing(path) as temporary:
                system.get_file(name, str(temporary))
            return True
    return False


def fetch_whole(path: Path, digest: str, whole: Path) -> None:
    """Bring an object whose content is known, unless it is here whole already.

    Args:
        path: Stands for the object.
        digest: Its SHA-256.
        whole: The folder that has to be made again where the object is damaged.

    Raises:
        StoreDamaged: If there is no such object, or it holds other bytes.
        RemoteUnreachable: If it cannot be fetched.
    """
    if address_of(path) is not None and not (path.is_file() and digest_file(path) == digest):
        _download(path, digest, whole, path)


def fetch_small(paths: Iterable[Path]) -> None:
    """Bring many small objects at once; one that is gone meanwhile is left out.

    Raises:
        RemoteUnreachable: If one cannot be fetched.
    """
    for path, content in read_small(list(paths)).items():
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def read_small(paths: Sequence[Path]) -> dict[Path, bytes]:
    """Return the content of many small objects at once; those that are not there are left out.

    Raises:
        RemoteUnreachable: If one cannot be read.
    """
    addresses = {path: address for path in paths if (address := address_of(path))}
    if not addresses:
        return {}
    with _asking(next(iter(addresses.values()))) as (system, _):
        names = {path: _open(address)[1] for path, address in addresses.items()}
        found = system.cat(list(names.values()), on_error="return")
        read = {path: found[name] for path, name in names.items()}
        for one in read.values():
            if isinstance(one, Exception) and not isinstance(one, FileNotFoundError):
                raise one
    return {path: one for path, one in read.items() if isinstance(one, bytes)}


def listing(folder: Path) -> dict[Path, int]:
    """Return path → bytes of all objects under the folder that a path stands for.

    Raises:
        RemoteUnreachable: If they cannot be listed.
    """
    address = address_of(folder)
    if address is None:
        return {}
    with _asking(address) as (system, name):
        system.invalidate_cache()  # another machine may have sent something since
        found = system.find(name, detail=True)
        return {
            folder / PurePosixPath(one).relative_to(name): int(facts["size"]) for one, facts in found.items()
        }


def share_folders(places: Sequence[Path]) -> None:
    """Bring finished folders that are only there, and send those that are only here, the seal last.

    Args:
        places: Folders of ``finish_folder``; those that are not finished anywhere are left alone.

    Raises:
        InputError: If one that is only here is not as it was written.
        StoreDamaged: If one that is only there is not.
        RemoteUnreachable: If one can be neither sent nor fetched.
    """
    seals = read_small([place / SEAL for place in places])
    for place in places:
        if address_of(place) is None:
            continue
        seal = seals.get(place / SEAL)
        if seal is None and place.is_dir():
            check_folder(place)
            for name in read_json(place / SEAL)["files"]:
                send(place / name)
            send(place / SEAL)
        elif seal is not None and not place.is_dir():
            _fetch_folder(place, seal)


def _fetch_folder(place: Path, seal: bytes) -> None:
    """Bring a finished folder, which gets its name once all of it is here."""
    digests = _sealed_files(seal, place)
    unfinished = place.with_name(f".{place.name}.{os.getpid()}.fetched")
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        for name, digest in digests.items():
            _download(place / name, digest, place, unfinished / name)
        (unfinished / SEAL).write_bytes(seal)
        try:
            unfinished.rename(place)
        except OSError:
            if not place.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _sealed_files(seal: bytes, place: Path) -> dict[str, str]:
    """Return file → digest of a seal; what comes from elsewhere must not name files outside its folder."""
    try:
        files = dict(json.loads(seal)["files"])
        inside = all(not name.startswith("/") and ".." not in name.split("/") for name in files)
    except (ValueError, KeyError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise StoreDamaged(
            f"digests of the folder's files in {address_of(place / SEAL)}",
            "something else",
            f"Delete {address_of(place)} there and run again",
        )
    return files


def _download(path: Path, digest: str, whole: Path, into: Path) -> None:
    """Bring the object that a path stands for into a file, and compare it with its digest."""
    address = str(address_of(path))
    advice = f"Delete {address_of(whole)} there and run again"
    with _asking(address) as (system, name), suppress(FileNotFoundError):
        with replacing(into) as temporary:
            system.get_file(name, str(temporary))
            if digest_file(temporary) != digest:
                raise StoreDamaged(f"the bytes that were written to {address}", "other bytes", advice)
        return
    raise StoreDamaged(f"the object {address}", "none", advice)


@contextmanager
def _asking(address: str) -> Iterator[tuple[Any, str]]:
    """Yield a file system and the name an object has in it; what goes wrong there is said with its URL."""
    try:
        yield _open(address)
    except ProbekitError:
        raise
    except Exception as error:
        raise RemoteUnreachable(
            f"to read and write {address}",
            f"{type(error).__name__}: {error}",
            "Check address, credentials and network; what is finished is kept and sent by the next run",
        ) from error


def _open(address: str) -> tuple[Any, str]:
    """Return the file system of a URL and the name it has there."""
    protocol = address.partition(_SIGN)[0]
    # Folders are no objects, but where files are the storage there must be some.
    options = {"auto_mkdir": True} if protocol in ("file", "local") else {}
    try:
        from fsspec.core import url_to_fs

        system, name = url_to_fs(address, **options)
    except ImportError as error:
        raise InputError(
            f"the package that opens {protocol}{_SIGN}", str(error), "pip install 'probekit-vision[remote]'"
        ) from error
    except ValueError as error:
        raise InputError("a URL of a kind that fsspec knows", f"{address} ({error})", "Check it") from error
    return system, str(name)
