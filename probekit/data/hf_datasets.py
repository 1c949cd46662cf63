"""Folders that the library ``datasets`` of Hugging Face saved to disk."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from probekit.data.decoding import decode, unreadable
from probekit.data.manifests import table_targets
from probekit.data.specs import TargetChoice
from probekit.data.splits import role_of
from probekit.data.torchvision_sets import JoinedSource
from probekit.errors import DataError, InputError
from probekit.files import digest_bytes
from probekit.progress import progress_bar


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    )


def read_saved_dataset(path: Path, choices: tuple[TargetChoice, ...] | None) -> dict[str, Any]:
    """List a saved data set: its splits, its column of images, and its other columns as targets.

    Classes keep their names. Images are stored as bytes and decoded by probekit's own rules.

    Returns:
        The fields of a listing.

    Raises:
        InputError: If the library ``datasets`` is not installed.
        DataError: If the folder is damaged, or has not exactly one column of images.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "the library datasets, to read a folder that it saved",
            "none installed",
            "pip install probekit-vision[hf]",
        ) from error
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"a folder saved by datasets in {path}", str(error)[:120], "Save it again") from error
    parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    roles: list[str | None] = []
    ids: list[str] = []
    contents: list[str] = []
    columns: dict[str, list[str]] = {}
    sources: list[tuple[Any, int]] = []
    for split, part in parts.items():
        column = _image_column(part, path)
        plain = part.cast_column(column, datasets.Image(decode=False))
        named = {
            name: part.features[name].names
            for name in part.column_names
            if isinstance(part.features[name], datasets.ClassLabel)
        }
        with progress_bar(len(plain), f"{path.name} {split}".strip(), "img") as bar:
            for place in range(len(plain)):
                row = plain[place]
                contents.append(digest_bytes(_bytes(row[column], f"{path} {split} {place}")))
                for name, value in row.items():
                    if name != column and isinstance(value, str | int | float):
                        cell = named[name][value] if name in named else str(value)
                        columns.setdefault(name, []).append(cell)
                bar.update(1)
        ids += [f"{split or 'all'}/{place:06d}" for place in range(len(plain))]
        roles += [role_of(split) if split else None] * len(plain)
        sources.append((SavedSource(plain, column, f"{path} {split}".strip()), len(plain)))
    whole = {name: cells for name, cells in columns.items() if len(cells) == len(ids)}
    return {
        "name": path.resolve().name,
        "ids": ids,
        "contents": contents,
        "roles": roles,
        "targets": table_targets({"file": ids, **whole}, choices),
        "source": JoinedSource(tuple(sources)),
        "problems": (),
    }


@dataclass(frozen=True)
class SavedSource:
    """Images of one saved split.

    Attributes:
        rows: The data set, images not decoded.
        column: The column of images.
        where: How an error names it.
    """

    rows: Any
    column: str
    where: str

    def read(self, index: int) -> Image.Image:
        """Decode one image.

        Raises:
            ImageUnreadable: If it is damaged or its file is gone.
        """
        where = f"{self.where} {index}"
        return decode(io.BytesIO(_bytes(self.rows[index][self.column], where)), where)


def _image_column(part: Any, path: Path) -> str:  # noqa: ANN401 - a data set
    import datasets

    found = [name for name, kind in part.features.items() if isinstance(kind, datasets.Image)]
    if len(found) != 1:
        raise DataError(
            f"one column of images in {path}", f"{len(found)}: {', '.join(found)}", "Remove the others"
        )
    return str(found[0])


def _bytes(value: Any, where: str) -> bytes:  # noqa: ANN401 - a cell of a column of images
    data = value.get("bytes") if isinstance(value, dict) else None
    if data is not None:
        return bytes(data)
    try:
        return Path(value["path"]).read_bytes()
    except (OSError, TypeError, KeyError) as error:
        raise unreadable(where, error) from error
