"""COCO's JSON: boxes, polygons, run-length codes and key points, one file a split.

Positions are in pixels of the image as it is shown (see ``probekit.data.annotations``). Images without
annotations stay in. Boxes are cut at the edges of the image; what has no area there is left out and counted.
Source: the data format page of cocodataset.org; its run-length code counts down the columns, from 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from probekit.data.annotations import Boxes, Outline, Points, Problem, clip_corners, stack
from probekit.data.folders import MASK_FOLDERS, Tree, missing_files
from probekit.data.splits import role_of
from probekit.data.targets import Target
from probekit.errors import DataError

Record = Mapping[str, Any]


def read_coco(tree: Tree, files: Mapping[str, str | None]) -> dict[str, Any]:
    """Read the annotations of one or more splits.

    Args:
        tree: The files.
        files: Path of each JSON file below the root → its split, None if it names none.

    Returns:
        ``names`` (paths of N images), ``roles``, ``targets`` and ``problems``.

    Raises:
        DataError: If a file is no COCO annotation, contradicts itself, or names images that are not there.
    """
    read = {path: _load(tree, path) for path in files}
    categories = _categories(read)
    names: list[str] = []
    roles: list[str | None] = []
    boxes: list[Boxes] = []
    points: list[Points | None] = []
    problems = Problems()
    key_names = _key_names(read)
    for path, content in read.items():
        by_image = _by_image(content, path)
        finder = _Finder(tree, path)
        for image in _records(content, "images", path):
            names.append(finder.find(image))
            roles.append(files[path])
            own = by_image.pop(_identity(image, "id", path), [])
            boxes.append(_boxes(own, image, categories, problems, path))
            points.append(_points(own, len(key_names), path))
        for left in by_image:
            raise DataError(f"annotations of images listed in {path}", f"image_id {left}", "List the image")
        finder.refuse_missing()
    _check_twice(names)
    classes = tuple(categories.values())
    targets = {
        "boxes": Target(stack(boxes), "boxes", classes),
        "present": Target(classes_present(boxes, len(classes)), "multilabel", classes),
    }
    if key_names and all(one is not None for one in points):
        targets["keypoints"] = Target(
            stack([one for one in points if one is not None]), "keypoints", key_names
        )
    return {"names": names, "roles": roles, "targets": targets, "problems": problems.listed()}


def read_ids(
    tree: Tree, files: Mapping[str, str | None]
) -> tuple[dict[str, int | str], dict[int | str, str]]:
    """Return what images and categories are called in one or more files.

    Args:
        tree: The files.
        files: As of ``read_coco``.

    Returns:
        Path of each image → its id; id of each category → its name.

    Raises:
        DataError: As ``read_coco``.
    """
    read = {path: _load(tree, path) for path in files}
    images: dict[str, int | str] = {}
    for path, content in read.items():
        finder = _Finder(tree, path)
        for image in _records(content, "images", path):
            images[finder.find(image)] = _identity(image, "id", path)
        finder.refuse_missing()
    return images, _categories(read)


def find_coco(tree: Tree, wanted: str | None) -> dict[str, str | None]:
    """Find COCO files and the split each is for: from its folder, or the end of its name.

    Args:
        tree: The files.
        wanted: Part of the file's name, where there are several kinds; None takes the only kind.

    Raises:
        DataError: If there is none, or several kinds and none is wanted.
    """
    found = {
        path: path.rpartition("/")[2].removesuffix(".json")
        for path in tree.files
        if path.endswith(".json")
        and (wanted is None or wanted.removesuffix(".json") in path)
        and is_coco(tree, path)
    }
    kinds: dict[str, list[str]] = {}
    for path, stem in found.items():
        kinds.setdefault(_kind(stem), []).append(path)
    if wanted is not None and wanted.removesuffix(".json") in kinds:
        kinds = {wanted: kinds[wanted.removesuffix(".json")]}
    if len(kinds) != 1:
        raise DataError(
            f"one kind of COCO annotations in {tree.root}",
            f"{len(kinds)}: {', '.join(sorted(kinds)) or 'none'}",
            f"Choose with annotations=, such as annotations={min(kinds)}" if kinds else "Check the folder",
        )
    (paths,) = kinds.values()
    return {path: _split(path) for path in sorted(paths)}


def decode_runs(counts: str | bytes) -> tuple[int, ...]:
    """Decode COCO's compressed run lengths: six bits a character, differences from the run two before.

    Raises:
        DataError: If it is no such code.

    Examples:
        >>> decode_runs("42")
        (4, 2)
    """
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    runs: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        more = True
        while more:
            if place >= len(text) or not 48 <= text[place] < 112 or shift > 60:
                raise DataError("COCO's compressed run lengths", repr(text[:20]), "Write them uncompressed")
            six = text[place] - 48
            value |= (six & 0x1F) << shift
            more = bool(six & 0x20)
            place, shift = place + 1, shift + 5
            if not more and six & 0x10:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    if any(run < 0 for run in runs):
        raise DataError("run lengths of at least 0", str(min(runs)), "Write them anew")
    return tuple(runs)


class Problems:
    """What is left out, counted by what it is."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, what: str, where: str) -> None:
        """Count one more, at an image or file."""
        self._found.setdefault(what, []).append(where)

    def listed(self) -> tuple[Problem, ...]:
        """Return what was counted."""
        return tuple(
            Problem(what, len(where), tuple(dict.fromkeys(where))[:5]) for what, where in self._found.items()
        )


class _Finder:
    """Where the images that a file lists lie: named from the file's folder, the root, or by name alone."""

    def __init__(self, tree: Tree, path: str) -> None:
        self._tree, self._path = tree, path
        self._folder = path.rpartition("/")[0]
        self._by_name: dict[str, list[str]] = {}
        for name in tree.files:
            if set(name.split("/")[:-1]) & set(MASK_FOLDERS):
                continue  # masks bear the names of their images
            self._by_name.setdefault(name.rpartition("/")[2], []).append(name)
        self._missing: list[str] = []

    def find(self, image: Record) -> str:
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(f"a file_name for every image of {self._path}", repr(name), "Add it")
        known = self._by_name.get(name.rpartition("/")[2], [])
        fitting = [one for one in known if one == name or one.endswith(f"/{name}")]
        near = [one for one in fitting if one.startswith(f"{self._folder}/")] or fitting
        split = _split(self._path)
        of_split = [
            one
            for one in near
            if split is not None and any(role_of(part) == split for part in one.split("/"))
        ]
        chosen = of_split if len(of_split) == 1 else near
        if not chosen:
            self._missing.append(name)
            return name
        if len(chosen) > 1:
            raise DataError(
                f"one file {name}", f"{len(chosen)}: {', '.join(chosen[:2])}", "Write its whole path"
            )
        return chosen[0]

    def refuse_missing(self) -> None:
        if self._missing:
            raise missing_files(self._missing, self._tree.root)


def _load(tree: Tree, path: str) -> Record:
    try:
        content = json.loads(tree.read(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"JSON in {path}", str(error)[:80], "Restore the file") from error
    if not isinstance(content, dict) or "images" not in content or "annotations" not in content:
        raise DataError(f"COCO annotations in {path}", "no images and annotations", "Check format=")
    return content


def is_coco(tree: Tree, path: str) -> bool:
    """Whether a file looks like COCO annotations."""
    head = tree.read(path)
    return b'"images"' in head and b'"annotations"' in head


def _kind(stem: str) -> str:
    """Leave the split out of a file's name: instances_val2017 is one of the kind instances."""
    words = stem.split("_")
    return "_".join(word for word in words if role_of(word.rstrip("0123456789")) is None) or stem


def _split(path: str) -> str | None:
    parts = path.removesuffix(".json").replace("/", "_").split("_")
    return next((role for part in reversed(parts) if (role := role_of(part.rstrip("0123456789")))), None)


def _records(content: Record, key: str, path: str) -> Iterator[Record]:
    listed = content.get(key)
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise DataError(f"a list of records under {key} in {path}", type(listed).__name__, "Restore the file")
    yield from listed


def _identity(record: Record, key: str, path: str) -> int | str:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"a number under {key} in {path}", repr(value)[:60], "Restore the file")
    return value


def _categories(read: Mapping[str, Record]) -> dict[int | str, str]:
    """Return the names of all categories by id, in the order of the ids; ids may have gaps."""
    found: dict[int | str, str] = {}
    for path, content in read.items():
        for one in _records(content, "categories", path):
            number, name = _identity(one, "id", path), str(one.get("name"))
            if found.setdefault(number, name) != name:
                raise DataError(
                    f"one name for category {number}", f"{found[number]} and {name}", "Rename one"
                )
    if not found or len(set(found.values())) < len(found):
        raise DataError("categories with names that differ", f"{len(found)} categories", "Rename them")
    order = sorted(found, key=lambda number: (isinstance(number, str), number))
    return {number: found[number] for number in order}


def _by_image(content: Record, path: str) -> dict[int | str, list[Record]]:
    seen: set[int | str] = set()
    for image in _records(content, "images", path):
        number = _identity(image, "id", path)
        if number in seen:
            raise DataError(f"each image once in {path}", f"id {number} twice", "Remove one")
        seen.add(number)
    by_image: dict[int | str, list[Record]] = {}
    for one in _records(content, "annotations", path):
        by_image.setdefault(_identity(one, "image_id", path), []).append(one)
    return {number: own for number, own in by_image.items() if number in seen or own}


def _boxes(
    own: Sequence[Record], image: Record, categories: Mapping[int | str, str], problems: Problems, path: str
) -> Boxes:
    places = {number: place for place, number in enumerate(categories)}
    where = str(image.get("file_name"))
    width, height = (_side(image.get(key)) for key in ("width", "height"))
    corners, classes, crowd, outlines = [], [], [], []
    for one in own:
        number = _identity(one, "category_id", path)
        if number not in places:
            raise DataError(f"categories listed in {path}", f"category_id {number}", "List the category")
        box = read_numbers(one.get("bbox"), 4)
        if box is None:
            problems.add("annotations without a box of four numbers, left out", where)
            continue
        x, y, w, h = box
        cut, inside, clipped = clip_corners([[x, y, x + w, y + h]], width, height)
        if not inside[0]:
            problems.add("boxes without an area in their image, left out", where)
            continue
        if clipped[0]:
            problems.add("boxes that reached over the edge, cut", where)
        corners.append(cut[0])
        classes.append(places[number])
        crowd.append(bool(one.get("iscrowd", 0)))
        outlines.append(_outline(one.get("segmentation"), path))
    known = all(one is not None for one in outlines)
    shapes = tuple(one for one in outlines if one is not None) if known else ()
    return Boxes(
        np.array(corners, np.float32).reshape(-1, 4),
        np.array(classes, np.int64),
        np.array(crowd, bool),
        shapes,
    )


def _side(value: Any) -> float | None:  # noqa: ANN401 - as the file has it
    number = (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    )
    return float(value) if number else None


def read_numbers(value: Any, count: int | None) -> list[float] | None:  # noqa: ANN401 - as the file has it
    """Return a list of numbers, as many as asked for; None for anything else, NaN and infinity among it."""
    if not isinstance(value, list) or (count is not None and len(value) != count):
        return None
    numbers = [one for one in value if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) != len(value):
        return None
    try:
        floats = [float(one) for one in numbers]
    except OverflowError:
        return None
    return floats if all(abs(one) < 1e9 for one in floats) else None


def _outline(shape: Any, path: str) -> Outline | None:  # noqa: ANN401 - as the file has it
    """Read polygons, or run lengths in either form; None where there is no shape."""
    if isinstance(shape, list) and shape:
        polygons = [read_numbers(one, None) for one in shape]
        if all(one is not None and len(one) >= 6 and len(one) % 2 == 0 for one in polygons):
            return Outline(tuple(np.array(one, np.float32).reshape(-1, 2) for one in polygons))
        return None
    if isinstance(shape, dict):
        size, counts = read_numbers(shape.get("size"), 2), shape.get("counts")
        runs = (
            decode_runs(counts)
            if isinstance(counts, str | bytes)
            else tuple(int(one) for one in read_numbers(counts, None) or ())
        )
        if (
            size is None
            or not runs
            or any(run < 0 for run in runs)
            or sum(runs) != int(size[0]) * int(size[1])
        ):
            raise DataError(
                f"run lengths that fill their size in {path}", repr(shape)[:60], "Write them anew"
            )
        return Outline(runs=runs, size=(int(size[0]), int(size[1])))
    return None


def _key_names(read: Mapping[str, Record]) -> tuple[str, ...]:
    """Return the names of key points, where one category has them."""
    for path, content in read.items():
        for one in _records(content, "categories", path):
            names = one.get("keypoints")
            if isinstance(names, list) and names and len(set(map(str, names))) == len(names):
                return tuple(map(str, names))
    return ()


def _points(own: Sequence[Record], count: int, path: str) -> Points | None:
    """Return the key points of the only object that has any; None for none or several."""
    marked = [one for one in own if isinstance(one.get("keypoints"), list)]
    if not count or len(marked) != 1:
        return None
    values = read_numbers(marked[0]["keypoints"], 3 * count)
    if values is None:
        raise DataError(f"{count} key points of x, y and visibility in {path}", "another list", "Restore it")
    table = np.array(values, np.float32).reshape(count, 3)
    return Points(table[:, :2], table[:, 2] > 0)


def classes_present(boxes: Sequence[Boxes], classes: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which classes each image has, (N, C)."""
    present = np.zeros((len(boxes), classes), np.bool_)
    for row, one in enumerate(boxes):
        present[row, one.classes] = True
    return present


def _check_twice(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(
                "each image file once", f"{name} twice", "Remove one, or choose with annotations="
            )
        seen.add(name)
