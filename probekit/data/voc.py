"""PASCAL VOC: one XML file an image, and lists of images for each split.

Corners count pixels from 1 and include the last one, so that a box from 1 to 10 covers ten pixels: here
x0 = xmin − 1 and x1 = xmax. Objects marked as difficult are crowd. Source: development kit of VOC 2007,
sections 4 and 7.
"""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np

from probekit.data.annotations import Boxes, clip_corners, stack
from probekit.data.coco import Problems, classes_present
from probekit.data.folders import IMAGE_SUFFIXES, Tree, missing_files
from probekit.data.splits import role_of
from probekit.data.targets import Target, class_order
from probekit.errors import DataError, SplitOverlap

_ANNOTATION = re.compile(r"(.*/|)Annotations/([^/]+)\.xml")


def is_voc(tree: Tree) -> bool:
    """Whether a tree has a folder Annotations with XML files."""
    return any(_ANNOTATION.fullmatch(name) for name in tree.files)


def read_voc(tree: Tree) -> dict[str, Any]:
    """Read annotations and splits.

    Images that no list of ``ImageSets/Main`` names keep no split; without lists none has one.

    Returns:
        ``names`` (paths of N images), ``roles``, ``targets`` and ``problems``.

    Raises:
        DataError: If an annotation is no XML of this form, or declares entities.
        ImageUnreadable: If an image is missing.
        SplitOverlap: If lists of two splits name one image.
    """
    found = {one[2]: name for name in sorted(tree.files) if (one := _ANNOTATION.fullmatch(name))}
    images = {
        name.rpartition("/")[2].rpartition(".")[0]: name
        for name in sorted(tree.files)
        if "/JPEGImages/" in f"/{name}" and f".{name.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES
    }
    missing = [stem for stem in found if stem not in images]
    if missing:
        raise missing_files([f"JPEGImages/{stem}.jpg" for stem in missing], tree.root)
    roles = _listed_roles(tree)
    problems = Problems()
    read = {stem: _objects(tree, path, problems) for stem, path in found.items()}
    classes = tuple(class_order({name for objects in read.values() for name, _, _ in objects}))
    if not classes:
        raise DataError(f"objects in the annotations of {tree.root}", "none", "Check the folder")
    places = {name: place for place, name in enumerate(classes)}
    boxes = [
        Boxes(
            np.array([corners for _, corners, _ in objects], np.float32).reshape(-1, 4),
            np.array([places[name] for name, _, _ in objects], np.int64),
            np.array([difficult for _, _, difficult in objects], np.bool_),
        )
        for objects in read.values()
    ]
    return {
        "names": [images[stem] for stem in found],
        "roles": [roles.get(stem) for stem in found],
        "targets": {
            "boxes": Target(stack(boxes), "boxes", classes),
            "present": Target(classes_present(boxes, len(classes)), "multilabel", classes),
        },
        "problems": problems.listed(),
    }


def _listed_roles(tree: Tree) -> dict[str, str]:
    """Read ImageSets/Main/train.txt, val.txt and test.txt; lists of single classes are passed over."""
    roles: dict[str, str] = {}
    for path in sorted(tree.files):
        where, _, file = path.rpartition("/")
        role = role_of(file.removesuffix(".txt"))
        if not (f"/{where}".endswith("/ImageSets/Main") and file.endswith(".txt") and role):
            continue
        for line in tree.read(path).decode("utf-8", "replace").splitlines():
            stem = line.split()[0] if line.split() else ""
            if stem and roles.setdefault(stem, role) != role:
                raise SplitOverlap(
                    "each image in one split", f"{stem} in {roles[stem]} and {role}", "Remove one"
                )
    return roles


def _objects(tree: Tree, path: str, problems: Problems) -> list[tuple[str, list[float], bool]]:
    root = _parse(tree, path)
    width, height = (_number(root.findtext(f"size/{key}")) for key in ("width", "height"))
    size = (width, height) if width and height else (None, None)
    objects = []
    for one in root.iter("object"):
        name = (one.findtext("name") or "").strip()
        corners = [_number(one.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
        if not name:
            raise DataError(f"a name for every object of {path}", "none", "Add it")
        if any(value is None for value in corners):
            problems.add("objects without a box of four numbers, left out", path)
            continue
        x0, y0, x1, y1 = (float(value) for value in corners if value is not None)
        if x1 <= x0 or y1 <= y0:
            problems.add("boxes without an area, left out", path)
            continue
        cut, inside, clipped = clip_corners([[x0 - 1, y0 - 1, x1, y1]], *size)
        if not inside[0]:
            problems.add("boxes outside their image, left out", path)
            continue
        if clipped[0]:
            problems.add("boxes that reached over the edge, cut", path)
        difficult = _number(one.findtext("difficult")) == 1
        objects.append((name, cut[0].tolist(), difficult))
    return objects


def _parse(tree: Tree, path: str) -> ElementTree.Element:
    text = tree.read(path)
    # An entity can grow without bound, or name a file; none of these annotations needs one.
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE) or b"\x00" in text:
        raise DataError(f"plain XML in {path}", "declarations of entities or another encoding", "Remove them")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"XML in {path}", str(error)[:80], "Restore the file") from error


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < 1e9 else None
