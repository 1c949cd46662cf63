"""Tables that list images: which column is the file, which are targets, and of which kind."""

from __future__ import annotations

import csv
import io
import logging
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from probekit.data.folders import Tree, file_identity, list_zip, missing_files
from probekit.data.specs import TargetChoice
from probekit.data.targets import Target, class_order
from probekit.errors import DataError, InputError, near_names

FILE_COLUMNS = ("file", "path")
_FACT_COLUMNS = (*FILE_COLUMNS, "id", "split")
_LABEL_PREFIX = "label_"
_WHOLE = re.compile(r"[+-]?[0-9]+")
_YES_NO = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}
_log = logging.getLogger(__name__)

Columns = Mapping[str, Sequence[str]]


def read_columns(path: Path) -> dict[str, list[str]]:
    """Read a table as text: a .csv or .parquet file, or a .csv inside a zip (``images.zip/labels.csv``).

    Returns:
        Column name → N cells. An empty cell is "".

    Raises:
        DataError: If the file cannot be read, is ragged, empty, or names a column twice.
    """
    archive = inside_zip(path)
    if archive is not None:
        text = _zipped_text(*archive)
    elif path.suffix.lower() == ".parquet":
        return _parquet_columns(path)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"a UTF-8 text table in {path}", str(error), "Save it as UTF-8 CSV") from error
    return _csv_columns(text, path)


def inside_zip(path: Path) -> tuple[Path, str] | None:
    """Divide ``folder/images.zip/labels.csv`` into archive and member; None if no parent is an archive.

    Examples:
        >>> inside_zip(Path("no/such/folder/labels.csv")) is None
        True
    """
    for parent in path.parents:
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def locate(columns: Columns, table: Path, root: str | None) -> tuple[Tree, list[str]]:
    """Find the listed files.

    Args:
        columns: The table, with a column ``file`` or ``path``.
        table: Where it stands; paths start from its folder.
        root: Another folder or zip archive the paths start from.

    Returns:
        The tree that holds the files, and N names in it.

    Raises:
        DataError: If there is no such column or folder.
        ImageUnreadable: If files are missing; the first five are named.
    """
    key = next((name for name in FILE_COLUMNS if name in columns), None)
    if key is None:
        raise DataError(
            f"a column 'file' or 'path' in {table}", f"columns {', '.join(columns)}", "Rename the column"
        )
    base = table.parent if root is None else Path(root).expanduser()
    archive = (base, "") if base.suffix.lower() == ".zip" and base.is_file() else inside_zip(base)
    files = [PurePosixPath(name).as_posix() for name in columns[key]]  # ./a.png is a.png
    if archive is not None:
        tree = list_zip(archive[0])
        names = [(PurePosixPath(archive[1]) / name).as_posix() for name in files]
        absent = [name for name in names if name not in tree.files]
    elif base.is_dir():
        identities = {name: file_identity(base, name) for name in files}
        tree = Tree(base, identities, frozenset())
        names = files
        absent = [name for name in names if not (base / name).is_file()]
    else:
        raise DataError("a folder or zip archive as root", repr(str(base)), "Correct root=")
    if absent:
        raise missing_files(absent, base)
    return tree, names


def table_targets(columns: Columns, choices: Sequence[TargetChoice] | None) -> dict[str, Target]:
    """Make targets from columns.

    Without a choice every column becomes a target of its own, but for file, path, id and split:

    - whole numbers or text: class; left out if all values are equal or all differ;
    - other numbers: continuous;
    - columns ``label_…`` that hold 0 and 1: one multi-label target ``label``;
    - a text column ``labels`` with ``;`` between labels: multi-label.

    A chosen target may join columns, ``x+y:continuous``, and state its kind.

    Raises:
        InputError: If a chosen column is not there, or columns cannot be joined.
        DataError: If values do not fit the kind, cells are empty, or nothing can be a target.
    """
    if choices is not None:
        return {choice.name: _chosen_target(columns, choice) for choice in choices}
    targets: dict[str, Target] = {}
    left_out = []
    labels = _label_columns(columns)
    for name, cells in columns.items():
        if name in _FACT_COLUMNS:
            continue
        if name in labels:
            if "label" not in targets:
                targets["label"] = _multilabel(columns, labels)
            continue
        kind = _kind_of(name, cells)
        different = len(set(cells))
        if kind == "class" and "" not in cells and (different < 2 or different == len(cells)):
            left_out.append(f"{name} ({'all values differ' if different > 1 else 'one value'})")
            continue
        targets[name] = _made(columns, (name,), kind)
    if left_out:
        _log.info("columns that are no target unless named by target=: %s", ", ".join(left_out))
    if not targets:
        raise DataError(
            "a column that can be a target",
            f"{', '.join(left_out) or 'no further column'}",
            "Add a column, or name one by target=",
        )
    return targets


def _chosen_target(columns: Columns, choice: TargetChoice) -> Target:
    labels = _label_columns(columns)
    if choice.columns == ("label",) and "label" not in columns and labels:
        return _multilabel(columns, labels)
    for name in choice.columns:
        if name not in columns:
            raise InputError(
                "a column of the table as target", repr(name), f"Near: {near_names(name, columns)}"
            )
    kind = choice.kind
    if kind is None:
        kinds = {_kind_of(name, columns[name]) for name in choice.columns}
        if len(choice.columns) == 1:
            kind = kinds.pop()
        else:
            kind = "multilabel" if _are_flags(columns, choice.columns) else "continuous"
    if kind == "class" and len(choice.columns) > 1:
        raise InputError("one column for a class target", choice.name, "Choose one, or make them continuous")
    return _made(columns, choice.columns, kind)


def _made(columns: Columns, names: tuple[str, ...], kind: str) -> Target:
    for name in names:
        empty = [row for row, cell in enumerate(columns[name]) if cell == ""]
        if empty and not (kind == "multilabel" and len(names) == 1):
            raise DataError(
                f"a value in every row of column {name!r}",
                f"{len(empty)} empty cells, first in row {empty[0] + 1}",
                "Fill them in, leave those images out, or name other columns by target=",
            )
    if kind == "class":
        return Target.from_names(columns[names[0]])
    if kind == "continuous":
        values = np.stack([_numbers(name, columns[name]) for name in names], axis=1)
        return Target(values, "continuous", names)
    if len(names) == 1 and not _are_flags(columns, names):
        return _listed_labels(columns[names[0]])
    return _multilabel(columns, names)


def _kind_of(name: str, cells: Sequence[str]) -> str:
    if name == "labels" and any(";" in cell for cell in cells):
        return "multilabel"
    if all(_WHOLE.fullmatch(cell) for cell in cells if cell):
        return "class"
    return "continuous" if all(_is_number(cell) for cell in cells if cell) else "class"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(name: str, cells: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    wrong = [(row, cell) for row, cell in enumerate(cells) if not _is_number(cell)]
    if wrong:
        raise DataError(
            f"numbers in column {name!r}",
            f"{wrong[0][1]!r} in row {wrong[0][0] + 1}, {len(wrong)} such cells",
            f"Correct them, or use {name}:class",
        )
    return np.array([float(cell) for cell in cells], dtype=np.float64)


def _label_columns(columns: Columns) -> tuple[str, ...]:
    names = tuple(name for name in columns if name.startswith(_LABEL_PREFIX))
    return names if len(names) > 1 and _are_flags(columns, names) else ()


def _are_flags(columns: Columns, names: Sequence[str]) -> bool:
    return all(cell.lower() in _YES_NO for name in names for cell in columns[name])


def _multilabel(columns: Columns, names: Sequence[str]) -> Target:
    for name in names:
        wrong = next((cell for cell in columns[name] if cell.lower() not in _YES_NO), None)
        if wrong is not None:
            raise DataError(f"0 or 1 in column {name!r}", repr(wrong), "Correct it, or choose another kind")
    values = np.array([[_YES_NO[cell.lower()] for cell in columns[name]] for name in names]).T
    return Target(values, "multilabel", tuple(name.removeprefix(_LABEL_PREFIX) for name in names))


def _listed_labels(cells: Sequence[str]) -> Target:
    lists = [{label.strip() for label in cell.split(";")} - {""} for cell in cells]
    classes = class_order(set().union(*lists))
    values = np.array([[label in found for label in classes] for found in lists], dtype=np.bool_)
    return Target(values.reshape(len(cells), len(classes)), "multilabel", tuple(classes))


def _zipped_text(archive: Path, member: str) -> str:
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.read(member).decode("utf-8-sig")
    except (KeyError, zipfile.BadZipFile, OSError, UnicodeDecodeError, RuntimeError) as error:
        raise DataError(f"a UTF-8 table {member!r} in {archive}", str(error), "Check the name") from error


def _csv_columns(text: str, path: Path) -> dict[str, list[str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise DataError(f"comma-separated values in {path}", str(error), "Save it as CSV again") from error
    if len(rows) < 2:
        raise DataError(f"a header and at least one row in {path}", f"{len(rows)} rows", "List images in it")
    header = [name.strip() for name in rows[0]]
    ragged = next((number for number, row in enumerate(rows) if len(row) != len(header)), None)
    if ragged is not None:
        raise DataError(
            f"{len(header)} cells in every row of {path}",
            f"{len(rows[ragged])} in row {ragged}",
            "Quote cells that hold commas",
        )
    if len(set(header)) < len(header) or "" in header:
        raise DataError(f"column names that differ in {path}", ", ".join(header), "Rename columns")
    return {name: [row[place].strip() for row in rows[1:]] for place, name in enumerate(header)}


def _parquet_columns(path: Path) -> dict[str, list[str]]:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path).to_pydict()
    except (ArrowException, OSError) as error:
        said = str(error).split("\n")[0]
        raise DataError(f"a Parquet table in {path}", said, "Write it again") from error
    write: Callable[[object], str] = _cell
    columns = {str(name): [write(cell) for cell in cells] for name, cells in table.items()}
    if not columns or not next(iter(columns.values())):
        raise DataError(f"at least one row in {path}", "none", "List images in it")
    return columns


def _cell(value: object) -> str:
    """Write a Parquet cell as a CSV would hold it.

    Examples:
        >>> _cell(None), _cell(1.0), _cell(["cat", "dog"])
        ('', '1.0', 'cat;dog')
    """
    if value is None or value != value:  # NaN is the one value that differs from itself
        return ""
    if isinstance(value, list):
        return ";".join(str(one) for one in value)
    return str(value)
