"""Detections of any detector, as COCO's evaluation takes them: one JSON list for all images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.data.annotations import Problem
from probekit.data.coco import Problems, read_ids, read_numbers
from probekit.data.images import ImageSet
from probekit.data.listings import coco_files
from probekit.data.specs import DataSpec
from probekit.errors import DataError
from probekit.functional.detection import Marks

_FORMAT = "Write a list, as COCO's results format"
_KEYS = ("image_id", "category_id", "bbox", "score")
Names = Mapping[int | str, int]


def read_results(
    path: str | Path, images: ImageSet, target: str, rows: NDArray[np.int64]
) -> tuple[Marks, tuple[Problem, ...]]:
    """Read detections of some images of a data set.

    The file is a list of ``{"image_id": …, "category_id": …, "bbox": [x, y, width, height], "score": …}`` in
    pixels of the images, as the results format of cocodataset.org. An image is called as in the COCO file the
    data were opened from, or by its id in the data set, its file name, or that without the suffix; a category
    as in the COCO file, or by its name. Boxes stay as they are, also where they reach over the edge.

    Args:
        path: The file.
        images: The data set.
        target: Name of its boxes.
        rows: (N,) places of the images that are scored.

    Returns:
        Detections, images counted along ``rows``; what was left out: detections without a finite score or a
        box with an area, and those of images that are not scored.

    Raises:
        DataError: If it is no such file, names unknown images or categories, or holds detections of which
            none can be used.
    """
    path = Path(path)
    records = _load(path)
    image_names, class_names = _names(images, images.targets[target].classes, rows)
    scored = {int(row): place for place, row in enumerate(rows)}
    problems, strange = Problems(), Problems()
    found: list[tuple[int, int, list[float], float]] = []
    for record in records:
        image = _known(image_names, record["image_id"])
        label = _known(class_names, record["category_id"])
        if image is None:
            strange.add("image_id", repr(record["image_id"]))
        if label is None:
            strange.add("category_id", repr(record["category_id"]))
        if image is None or label is None:
            continue
        where = str(images.ids[image])
        box, score = read_numbers(record["bbox"], 4), read_numbers([record["score"]], 1)
        if image not in scored:
            problems.add("detections of images that are not scored, left out", where)
        elif score is None:
            problems.add("detections without a finite score, left out", where)
        elif box is None or min(box[2:]) <= 0:
            problems.add("detections without a box with an area, left out", where)
        else:
            x, y, width, height = box
            found.append((scored[image], label, [x, y, x + width, y + height], score[0]))
    _refuse(strange.listed(), path, images, image_names, class_names)
    if records and not found:
        raise DataError(
            f"detections of the {len(rows)} images scored in {path}",
            str(problems.listed()[0]),
            "Check the file",
        )
    numbers, labels, boxes, scores = zip(*found, strict=True) if found else ((), (), (), ())
    return Marks.of(numbers, labels, boxes, scores), problems.listed()


def _load(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise DataError("a file of detections", f"{path}, which does not exist", "Check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"JSON in {path}", str(error)[:80], "Restore the file") from error
    if not isinstance(content, list):
        raise DataError(
            f"a list of detections in {path}", type(content).__name__, "Write COCO's results format"
        )
    for number, record in enumerate(content):
        missing = [key for key in _KEYS if not isinstance(record, dict) or key not in record]
        if missing:
            raise DataError(
                f"{', '.join(_KEYS)} of every detection in {path}",
                f"no {missing[0]} in number {number}",
                _FORMAT,
            )
    return content


def _names(images: ImageSet, classes: Sequence[str], rows: NDArray[np.int64]) -> tuple[Names, Names]:
    """Return what images and classes may be called → their places.

    What several of the scored images are called stands for none; what one of them and others are called,
    for that one.
    """
    ids = images.ids.tolist()
    called: list[Sequence[int | str]] = [
        ids, [PurePosixPath(one).name for one in ids], [PurePosixPath(one).stem for one in ids]
    ]  # fmt: skip
    labels: dict[int | str, int] = {name: place for place, name in enumerate(classes)}
    files = coco_files(DataSpec.parse(images.spec)) if images.spec else None
    if files is not None:
        numbers, categories = read_ids(*files)
        called.append([numbers[one] for one in ids])
        labels |= {number: labels[name] for number, name in categories.items() if name in labels}
    others = np.setdiff1d(np.arange(len(images)), rows)
    found: dict[int | str, int] = {}
    for part in (rows.tolist(), others.tolist()):
        for names in called:
            counts = Counter(names[row] for row in part)
            for row in part:
                if counts[names[row]] == 1:
                    found.setdefault(names[row], row)
    return found, labels


def _known(names: Names, given: Any) -> int | None:  # noqa: ANN401 - as the file has it
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    return names.get(given) if isinstance(given, int | str) and not isinstance(given, bool) else None


def _refuse(
    strange: Sequence[Problem], path: Path, images: ImageSet, image_names: Names, class_names: Names
) -> None:
    for one in strange:
        known = image_names if one.what == "image_id" else class_names
        raise DataError(
            f"{one.what} among those of {images.name}, such as {_examples(known)}",
            f"{one.count} detections with others in {path}, such as {', '.join(one.examples[:3])}",
            "Name the images and classes as the data do, or open the COCO file that the detector was given",
        )


def _examples(names: Names) -> str:
    """Show the first name and the last one: a word and, where there are any, a number."""
    listed = list(names)
    return ", ".join(repr(one) for one in dict.fromkeys([listed[0], listed[-1]]))
