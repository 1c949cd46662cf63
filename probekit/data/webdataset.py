"""WebDataset: tar shards whose files belong together by name: ``key.jpg`` and ``key.cls``, ``.txt`` or so.

The headers are read once; images are then read where they lie, without unpacking anything. What is no plain
file, or has a path that leads out, is passed over and counted.
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from probekit.data.coco import Problems
from probekit.data.decoding import decode, unreadable
from probekit.data.folders import IMAGE_SUFFIXES, file_identity
from probekit.data.manifests import table_targets
from probekit.data.specs import TargetChoice
from probekit.data.splits import role_of
from probekit.errors import DataError

TAR = ".tar"
BLOCK = 512
LABELS = (".cls", ".txt", ".json")


@dataclass(frozen=True)
class Member:
    """One image within a shard.

    Attributes:
        path: The shard.
        offset: Where its bytes begin.
        size: How many there are.
        name: Its name in the shard.
    """

    path: Path
    offset: int
    size: int
    name: str


@dataclass(frozen=True)
class TarSource:
    """Images within tar files, read by offset.

    Attributes:
        members: N of them.
    """

    members: Sequence[Member]

    def read(self, index: int) -> Image.Image:
        """Decode one image.

        Raises:
            ImageUnreadable: If it is damaged or the shard is gone; the message holds shard and name.
        """
        one = self.members[index]
        where = f"{one.path}/{one.name}"
        try:
            with one.path.open("rb") as opened:
                opened.seek(one.offset)
                data = opened.read(one.size)
        except OSError as error:
            raise unreadable(where, error) from error
        return decode(io.BytesIO(data), where)


def find_shards(source: str) -> list[Path]:
    """Return the tar files that words name: one, a pattern with ``{000..003}`` or ``*``, or a folder's.

    Examples:
        >>> find_shards("flowers/")
        []
    """
    place = Path(source).expanduser()
    if place.is_dir():
        inside = sorted(one for one in place.iterdir() if one.suffix.lower() == TAR)
        return inside if inside and all(one.is_file() for one in inside) else []
    if not source.lower().endswith(TAR):
        return []
    found = [Path(one) for text in expand_braces(str(place)) for one in sorted(glob.glob(text))]  # noqa: PTH207 - any part may be a pattern
    if not found:
        raise DataError(f"tar files named {source}", "none", "Check the path and the numbers in braces")
    return found


def expand_braces(text: str) -> Iterator[str]:
    """Write out ``{000..003}`` and ``{a,b}``.

    Examples:
        >>> list(expand_braces("x-{08..10}.tar"))
        ['x-08.tar', 'x-09.tar', 'x-10.tar']
    """
    pieces: list[list[str]] = []
    for piece in re.split(r"(\{[^{}]*\})", text):
        numbers = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece)
        if numbers:
            first, last = numbers.groups()
            pieces.append([str(one).zfill(len(first)) for one in range(int(first), int(last) + 1)])
        elif piece.startswith("{") and piece.endswith("}"):
            pieces.append(piece[1:-1].split(","))
        else:
            pieces.append([piece])
    for parts in itertools.product(*pieces):
        yield "".join(parts)


def read_shards(
    source: str, shards: Sequence[Path], choices: tuple[TargetChoice, ...] | None
) -> dict[str, Any]:
    """List the samples of tar shards.

    Splits come from the shards' names (train, val, test) where all have one. ``.cls`` and ``.txt`` are the
    target ``class``, fields of ``.json`` targets by their names.

    Returns:
        The fields of a listing.

    Raises:
        DataError: If a shard is damaged or packed, a sample has two images, or no sample has an image.
    """
    problems = Problems()
    rows: list[dict[str, str]] = []
    members: list[Member] = []
    roles: list[str | None] = []
    contents: list[str] = []
    for shard in shards:
        identity = file_identity(shard.parent, shard.name)
        for key, files in _samples(shard, problems).items():
            images = [one for suffix, one in files.items() if suffix in IMAGE_SUFFIXES]
            if len(images) != 1:
                problems.add("samples without exactly one image, left out", f"{shard.name}/{key}")
                continue
            members.append(images[0])
            rows.append({"file": f"{shard.stem}/{key}", **_fields(files, shard)})
            roles.append(_role(shard))
            contents.append(f"{identity}:{images[0].offset}:{images[0].size}")
    if not rows:
        raise DataError(f"samples with an image in {source}", "none", "Name them key.jpg, key.cls")
    named = roles if all(role is not None for role in roles) else [None] * len(roles)
    common = [column for column in rows[0] if all(column in row for row in rows)]
    columns = {column: [row[column] for row in rows] for column in common}
    left = sorted({column for row in rows for column in row} - set(common))
    if left:
        problems.add("fields that some samples lack, left out", ", ".join(left))
    return {
        "name": Path(re.sub(r"[-_]?[{*?\[].*", "", source)).stem or shards[0].stem,
        "ids": columns["file"],
        "contents": contents,
        "roles": named,
        "targets": table_targets(columns, choices),
        "source": TarSource(members),
        "problems": problems.listed(),
    }


def _samples(shard: Path, problems: Problems) -> dict[str, dict[str, Member]]:
    """Read the headers of one shard: key → suffix → member, in order."""
    found: dict[str, dict[str, Member]] = {}
    try:
        _check_end(shard)
        with tarfile.open(shard, "r:") as archive:
            for one in archive:
                path = PurePosixPath(one.name)
                if one.isdir():
                    continue
                if not one.isreg() or path.is_absolute() or ".." in path.parts:
                    problems.add(
                        "links, devices and paths that lead out, passed over", f"{shard.name}/{one.name}"
                    )
                    continue
                key, dot, suffix = path.name.partition(".")
                whole = (path.parent / key).as_posix()
                files = found.setdefault(whole, {})
                if f"{dot}{suffix.lower()}" in files:
                    raise DataError(f"each name once in {shard}", one.name, "Remove one")
                files[f"{dot}{suffix.lower()}"] = Member(shard, one.offset_data, one.size, one.name)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        packed = shard.is_file() and _first_bytes(shard) == b"\x1f\x8b"
        todo = (
            "Unpack it with gunzip: packed shards cannot be read out of order" if packed else "Copy it again"
        )
        raise DataError(f"a whole tar file in {shard}", str(error)[:80], todo) from error
    return found


def _check_end(shard: Path) -> None:
    """Refuse a shard that is cut short: tarfile would end at the cut without a word.

    Raises:
        tarfile.TarError: If it does not end in a block of zeros, as every archive does.
    """
    size = shard.stat().st_size
    with shard.open("rb") as opened:
        opened.seek(max(0, size - BLOCK))
        last = opened.read()
    if size % BLOCK or last.strip(b"\0"):
        raise tarfile.TarError("it ends without its closing block")


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as opened:
        return opened.read(2)


def _fields(files: dict[str, Member], shard: Path) -> dict[str, str]:
    fields: dict[str, str] = {}
    for suffix in LABELS:
        one = files.get(suffix)
        if one is None:
            continue
        with one.path.open("rb") as opened:
            opened.seek(one.offset)
            data = opened.read(one.size)
        try:
            text = data.decode("utf-8").strip()
            found = json.loads(text) if suffix == ".json" else {"class": text}
        except (ValueError, RecursionError) as error:
            raise DataError(f"text in {shard}/{one.name}", str(error)[:60], "Write it anew") from error
        if not isinstance(found, dict):
            raise DataError(
                f"a JSON object in {shard}/{one.name}", type(found).__name__, "Write {name: value}"
            )
        fields |= {
            str(name): str(value)
            for name, value in found.items()
            if isinstance(value, str | int | float) and name not in {"file", "id", "split"}
        }
    return fields


def _role(shard: Path) -> str | None:
    return next((role for part in re.split(r"[-_.]", shard.stem) if (role := role_of(part))), None)
