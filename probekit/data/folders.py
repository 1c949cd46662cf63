"""Class folders, on disk or in a zip archive: which images there are, and which class and split each has."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from probekit.data.sources import FileSource, ZipSource
from probekit.data.splits import role_of
from probekit.errors import DataError, ImageUnreadable

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
)
# What folders of masks are called, beside those of images.
MASK_FOLDERS = ("masks", "mask", "labels", "semantic", "segmentation", "annotations", "SegmentationClass")
_JUNK = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_log = logging.getLogger(__name__)


class Readable(Protocol):
    """A source of images."""

    def read(self, index: int) -> Any:  # noqa: ANN401 - see probekit.data.images.Source
        """Return one image."""
        ...


@dataclass(frozen=True)
class Tree:
    """Files under one root.

    Attributes:
        root: The folder or archive.
        files: Path below the root, with forward slashes → content identity.
        folders: Paths of folders below the root, empty ones too.
    """

    root: Path
    files: Mapping[str, str]
    folders: frozenset[str]

    def source(self, names: Sequence[str]) -> Readable:
        """Return the images of some of the files."""
        if self.root.is_dir():
            return FileSource([self.root / name for name in names])
        return ZipSource(self.root, list(names))

    def read(self, name: str) -> bytes:
        """Return the bytes of one file.

        Raises:
            DataError: If it cannot be read.
        """
        try:
            if self.root.is_dir():
                return (self.root / name).read_bytes()
            with zipfile.ZipFile(self.root) as archive:
                return archive.read(name)
        except (
            OSError,
            KeyError,
            zipfile.BadZipFile,
            zlib.error,
            RuntimeError,
            NotImplementedError,
        ) as error:
            raise DataError(f"a readable file {name} in {self.root}", str(error), "Restore it") from error


def list_folder(root: Path) -> Tree:
    """List a folder; identity of a file is its path, size and time of change."""
    files: dict[str, str] = {}
    folders: set[str] = set()
    for folder, names_of_folders, names_of_files in os.walk(root, followlinks=True):
        names_of_folders[:] = [name for name in names_of_folders if not _is_junk(name)]
        here = Path(folder).relative_to(root)
        folders.update((here / name).as_posix() for name in names_of_folders)
        for name in names_of_files:
            if not _is_junk(name):
                path = (here / name).as_posix()
                files[path] = file_identity(root, path)
    return Tree(root, files, frozenset(folders))


def file_identity(root: Path, path: str) -> str:
    """Return what stands for a file's content: path below the root, size, time of change.

    A link or name that leads nowhere is left for the decoder to report.
    """
    try:
        status = (root / path).stat()
    except (OSError, ValueError):  # of a name with a null byte: ValueError
        return f"{path}:missing"
    return f"{path}:{status.st_size}:{status.st_mtime_ns}"


def list_zip(root: Path) -> Tree:
    """List an archive; identity of a member is its CRC-32 and size, read from the directory.

    Raises:
        DataError: If it is no zip archive, or encrypted.
    """
    try:
        with zipfile.ZipFile(root) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise DataError(f"a zip archive in {root}", str(error), "Copy or download it again") from error
    wanted = [one for one in members if not any(_is_junk(part) for part in one.filename.split("/"))]
    locked = next((one for one in wanted if one.flag_bits & 1), None)
    if locked:
        raise DataError("an archive without a password", f"{root}/{locked.filename}", "Unpack it first")
    files = {one.filename: f"{one.CRC:08x}:{one.file_size}" for one in wanted if not one.is_dir()}
    folders = {one.filename.rstrip("/") for one in wanted if one.is_dir()}
    folders.update(parent for name in files for parent in _parents(name))
    return Tree(root, files, frozenset(folders))


@dataclass(frozen=True)
class ClassFolders:
    """Images in class folders.

    Attributes:
        names: N paths below the tree's root.
        ids: N paths without the leading folder that all images share.
        classes: N names of class folders.
        roles: N roles named by a folder above the class folders; None where there is none.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    roles: tuple[str | None, ...]


def find_classes(tree: Tree) -> ClassFolders:
    """Read class and split off the folders of each image.

    Layouts: ``CLASS/…/image`` and ``ROLE/CLASS/…/image`` with roles train, val (valid, validation) and test.
    A leading folder that all images share is left out. Hidden files are ignored; files that are not images,
    by their suffix, are ignored and counted in the log.

    Raises:
        DataError: If there are no images, an image stands outside a class folder, a class folder is empty, or
            role folders stand beside others.
    """
    names = sorted(name for name in tree.files if _is_image(name))
    others = sorted(name for name in tree.files if not _is_image(name))
    if not names:
        raise DataError(
            f"images in {tree.root}",
            f"{len(others)} other files" if others else "an empty folder",
            f"Images end in {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    if others:
        _log.info("%s: %d files are not images, such as %s", tree.root, len(others), others[0])
    shared = _shared_folder(names)
    ids = [name[len(shared) :] for name in names]
    folders = [path[len(shared) :] for path in tree.folders if path.startswith(shared)]
    with_roles = _has_roles(ids, tree.root)
    _check_stray(ids, 2 if with_roles else 1, tree.root)
    _check_empty(ids, folders, 2 if with_roles else 1, tree.root)
    parts = [one.split("/") for one in ids]
    return ClassFolders(
        tuple(names),
        tuple(ids),
        tuple(part[1] if with_roles else part[0] for part in parts),
        tuple(role_of(part[0]) if with_roles else None for part in parts),
    )


def _shared_folder(names: Sequence[str]) -> str:
    """Return the leading folders all names share, with a slash, as long as class folders are left."""
    shared = ""
    while True:
        rest = [name[len(shared) :].split("/") for name in names]
        first = rest[0][0]
        shareable = all(parts[0] == first and len(parts) >= 3 for parts in rest)
        if not shareable or role_of(first):
            return shared
        shared += f"{first}/"


def _has_roles(ids: Iterable[str], root: Path) -> bool:
    """Return whether the first folders are splits; a class may be called train, beside other classes."""
    deep: dict[str, bool] = {}
    for one in ids:
        parts = one.split("/")
        if len(parts) > 1:
            deep[parts[0]] = deep.get(parts[0], False) or len(parts) > 2
    roles = [name for name, has_folders in deep.items() if role_of(name) and has_folders]
    others = [name for name in deep if not role_of(name)]
    if roles and others:
        raise DataError(
            f"either class folders or train, val and test in {root}",
            f"{roles[0]!r} beside {sorted(others)[0]!r}",
            "Move the other folders away, or rename a class that is called like a split",
        )
    if deep and not roles and not others:
        raise DataError(
            f"class folders inside the split folders of {root}",
            f"images directly in {sorted(deep)[0]!r}",
            "Sort them by class, or list them in a .csv with columns file, split and class",
        )
    named: dict[str, str] = {}
    for name in roles:
        role = role_of(name) or ""
        if role in named:
            raise DataError(f"one folder a split in {root}", f"{named[role]!r} and {name!r}", "Merge them")
        named[role] = name
    return bool(roles)


def _check_stray(ids: Iterable[str], depth: int, root: Path) -> None:
    stray = [one for one in ids if one.count("/") < depth]
    if stray:
        raise DataError(
            f"every image of {root} in a class folder",
            f"{len(stray)} outside, such as {', '.join(repr(one) for one in stray[:3])}",
            "Sort them into folders named by class, or list the images in a .csv with columns file and class",
        )


def _check_empty(ids: Iterable[str], folders: Iterable[str], depth: int, root: Path) -> None:
    filled = {"/".join(one.split("/")[:depth]) for one in ids}
    roles = {one.split("/")[0] for one in filled}
    empty = sorted(
        one
        for one in folders
        if one.count("/") == depth - 1 and one not in filled and (depth == 1 or one.split("/")[0] in roles)
    )
    if empty:
        raise DataError(
            f"images in every class folder of {root}",
            f"{len(empty)} empty: {', '.join(repr(one) for one in empty[:5])}",
            "Fill or remove them",
        )


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - also a zip's member


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in _JUNK


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def missing_files(names: Sequence[str], root: Path) -> ImageUnreadable:
    """Return the error for images a table lists and nobody finds."""
    return ImageUnreadable(
        f"every listed image under {root}",
        f"{len(names)} missing: {', '.join(repr(name) for name in names[:5])}",
        "Check the paths, or give the folder they start from as root=",
    )
