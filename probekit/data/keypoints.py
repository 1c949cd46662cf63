"""Key points in a table: ``file[,group],x0,y0,x1,y1,…`` in pixels, one table a split."""

from __future__ import annotations

import csv
import io
import math
import re
from typing import Any

import numpy as np
from PIL import Image

from probekit.data.annotations import Points, Problem, stack
from probekit.data.folders import Tree, missing_files
from probekit.data.splits import role_of
from probekit.data.targets import GROUP, Target
from probekit.errors import DataError, SplitOverlap

_POINT = re.compile(r"([xy])(\d+)")


def find_keypoints(tree: Tree) -> dict[str, str | None]:
    """Find tables whose columns are ``file`` and pairs x0, y0, …, and the split each is for."""
    found = {}
    for path in sorted(tree.files):
        if path.endswith(".csv"):
            columns = tree.read(path)[:100_000].decode("utf-8-sig", "replace").splitlines()[:1]
            words = columns[0].split(",") if columns else []
            if "file" in words and {"x0", "y0"} <= set(words):
                parts = path.removesuffix(".csv").replace("/", "_").split("_")
                found[path] = next((role for part in parts if (role := role_of(part))), None)
    return found


def read_keypoints(tree: Tree, tables: dict[str, str | None]) -> dict[str, Any]:
    """Read key points; an empty or non-finite pair is a point that is not there.

    A column that is neither the file nor a position names groups, such as a person: a group in two splits
    would make a test a memory and is refused.

    Returns:
        ``names``, ``roles``, ``targets`` (``keypoints``; ``points``: positions as shares of the sides,
        for a probe, where all points are there; each column of groups) and ``problems``.

    Raises:
        DataError: If rows do not fit their columns.
        ImageUnreadable: If an image is missing.
        SplitOverlap: If a group stands in two splits.
    """
    names, roles, points, missing = [], [], [], []
    groups: dict[tuple[str, str], str] = {}
    members: dict[str, list[str]] = {}
    counts: set[int] = set()
    for table, role in tables.items():
        reader = csv.DictReader(io.StringIO(tree.read(table).decode("utf-8-sig", "replace"), newline=""))
        count, others = _columns(reader.fieldnames or [], table)
        counts.add(count)
        for row in reader:
            name = _locate(tree, table, row["file"])
            if name is None:
                missing.append(str(row["file"]))
                continue
            for column in others:
                value = str(row[column])
                if role is not None and groups.setdefault((column, value), role) != role:
                    raise SplitOverlap(
                        f"every {column} in one split",
                        f"{value} in {groups[column, value]} and {role}",
                        "Move it",
                    )
                members.setdefault(column, []).append(value)
            names.append(name)
            roles.append(role)
            points.append(_points(row, count, table))
    if missing:
        raise missing_files(missing, tree.root)
    if len(counts) != 1:
        raise DataError("as many points in every table", f"{sorted(counts)}", "Make the tables alike")
    target = Target(stack(points), "keypoints", tuple(f"point {place}" for place in range(counts.pop())))
    absent = [name for name, one in zip(names, points, strict=True) if not one.visible.all()]
    targets = {"keypoints": target}
    if not absent:
        targets["points"] = _shares(tree, names, points)
    for column, values in members.items():
        if len(values) == len(names) and len(set(values)) > 1:
            own = Target.from_names(values)
            targets[column] = Target(own.values, GROUP, own.classes)
    problems = (
        (Problem("images with points that are not there", len(absent), tuple(absent[:5])),) if absent else ()
    )
    return {"names": names, "roles": roles, "targets": targets, "problems": problems}


def _columns(fields: Any, table: str) -> tuple[int, list[str]]:  # noqa: ANN401 - names of columns
    numbers = sorted(
        int(found[2]) for field in fields if (found := _POINT.fullmatch(field)) and found[1] == "x"
    )
    whole = numbers == list(range(len(numbers))) and all(f"y{number}" in fields for number in numbers)
    if not numbers or not whole or len(set(fields)) < len(fields):
        raise DataError(
            f"columns file, x0, y0, x1, y1, … in {table}", f"{', '.join(fields[:6])}", "Rename them"
        )
    return len(numbers), [field for field in fields if field != "file" and not _POINT.fullmatch(field)]


def _locate(tree: Tree, table: str, file: str | None) -> str | None:
    folder = table.rpartition("/")[0]
    for start in (f"{folder}/images/", f"{folder}/", "images/", ""):
        path = f"{start}{file}".lstrip("/")
        if path in tree.files:
            return path
    return None


def _points(row: dict[str, Any], count: int, table: str) -> Points:
    positions = np.zeros((count, 2), np.float32)
    visible = np.ones(count, np.bool_)
    for place in range(count):
        for axis, letter in enumerate("xy"):
            text = row.get(f"{letter}{place}")
            try:
                value = float(text) if text not in (None, "") else math.nan
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"numbers in {table}", f"{text!r} for {row.get('file')}", "Correct it"
                ) from error
            visible[place] &= math.isfinite(value) and abs(value) < 1e9
            positions[place, axis] = value if visible[place] else 0
    return Points(positions, visible)


def _shares(tree: Tree, names: list[str], points: list[Points]) -> Target:
    """Return positions as shares of the image's sides, from the headers of the files."""
    source, rows = tree.source(names), []
    for place, one in enumerate(points):
        image: Image.Image = source.read(place)
        rows.append((one.positions / np.array(image.size, np.float32)).ravel())
    columns = tuple(f"{letter}{place}" for place in range(len(points[0])) for letter in "xy")
    return Target(np.array(rows, np.float64), "continuous", columns)
