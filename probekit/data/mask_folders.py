"""Masks: an image of class numbers beside every image, under the same name in another folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.data.annotations import IGNORE, Mask, Problem, stack
from probekit.data.folders import IMAGE_SUFFIXES, MASK_FOLDERS, Tree
from probekit.data.splits import role_of
from probekit.data.targets import Target
from probekit.errors import DataError

IMAGE_FOLDERS = ("images", "image", "img", "JPEGImages")
# What a class is called whose pixels count for none.
VOID = re.compile(r"void|ignore|unlabel(l)?ed|background_ignore")


def find_masks(tree: Tree) -> dict[str, str]:
    """Return the mask of every image that has one: path of the image → path of the mask."""
    masks: dict[tuple[str, str], str] = {}
    images: list[tuple[tuple[str, str], str]] = []
    for name in sorted(tree.files):
        folder, _, file = name.rpartition("/")
        stem, _, suffix = file.rpartition(".")
        above, _, kind = folder.rpartition("/")
        if f".{suffix.lower()}" not in IMAGE_SUFFIXES:
            continue
        if kind in MASK_FOLDERS and suffix.lower() in {"png", "bmp", "gif", "tif", "tiff"}:
            masks[above, stem] = name
        elif kind in IMAGE_FOLDERS:
            images.append(((above, stem), name))
    return {name: masks[key] for key, name in images if key in masks}


def read_masks(tree: Tree, ignore: int | None, *, present: bool = False) -> dict[str, Any]:
    """Read images with masks, ``ROLE/images`` beside ``ROLE/masks``, or without roles.

    Classes come from ``classes.json`` (a list, or numbers → names) at the root or in the split; without it
    they are the numbers found in a pass over all masks. A class called void or unlabelled, or
    the number ``ignore``, counts for none.

    Args:
        tree: The files.
        ignore: A number that counts for no class.
        present: Also read every mask and say which classes it has, as labels for a probe.

    Returns:
        ``names``, ``roles``, ``targets`` and ``problems``.

    Raises:
        DataError: If there are no masks, or the classes contradict each other.
    """
    pairs = find_masks(tree)
    if not pairs:
        raise DataError(
            f"folders images and masks in {tree.root}", "none", "Check the folder, or say format="
        )
    source = tree.source(list(pairs.values()))
    named = _named_classes(tree)
    numbers = named if named is not None else _numbers_used(source, len(pairs))
    kept = {
        number: name
        for number, name in sorted(numbers.items())
        if number != ignore and not (named is not None and VOID.fullmatch(name.lower()))
    }
    if not kept or len(kept) >= IGNORE or len(set(kept.values())) < len(kept):
        raise DataError(
            f"1 to {IGNORE - 1} classes with names that differ", f"{len(kept)}", "Check classes.json"
        )
    places = _places(kept, max([*numbers, ignore or 0, 255]))
    maps = [
        Mask(source, place, places, f"{name}:{tree.files[name]}") for place, name in enumerate(pairs.values())
    ]
    lonely = [name for name in tree.files if _is_lonely(name, pairs)]
    problems = (
        (Problem("images without a mask, left out", len(lonely), tuple(sorted(lonely)[:5])),)
        if lonely
        else ()
    )
    target = Target(stack(maps), "masks", tuple(kept.values()))
    return {
        "names": list(pairs),
        "roles": [_role(name) for name in pairs],
        "targets": {"masks": target, **({"present": _present(target)} if present else {})},
        "problems": problems,
    }


def _role(name: str) -> str | None:
    return next((role for part in name.split("/")[:-1] if (role := role_of(part))), None)


def _present(target: Target) -> Target:
    """Return which classes each mask has, as labels: a pass over all of them."""
    present = np.zeros((len(target), target.n_classes), np.bool_)
    for row, mask in enumerate(target.values):
        found = np.unique(mask.read())
        present[row, found[found < target.n_classes]] = True
    return Target(present, "multilabel", target.classes)


def _is_lonely(name: str, pairs: Mapping[str, str]) -> bool:
    folder, _, file = name.rpartition("/")
    is_image = f".{file.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES
    return is_image and folder.rpartition("/")[2] in IMAGE_FOLDERS and name not in pairs


def _places(kept: Mapping[int, str], largest: int) -> NDArray[np.uint8]:
    places = np.full(largest + 1, IGNORE, np.uint8)
    for place, number in enumerate(kept):
        places[number] = place
    return places


def _named_classes(tree: Tree) -> dict[int, str] | None:
    """Read the classes from the JSON files that list them; all must agree."""
    found: dict[int, str] | None = None
    for path in sorted(tree.files):
        if not path.rpartition("/")[2].endswith("classes.json"):
            continue
        try:
            content = json.loads(tree.read(path))
            listed = (
                {place: str(name) for place, name in enumerate(content)}
                if isinstance(content, list)
                else {int(number): str(name) for number, name in content.items()}
            )
        except (ValueError, AttributeError, RecursionError) as error:
            raise DataError(
                f"a list of classes, or numbers → names, in {path}", str(error)[:60], "Restore it"
            ) from error
        if not listed or min(listed) < 0 or max(listed) > 65535 or (found is not None and found != listed):
            raise DataError("the same classes, numbered from 0, in every list", path, "Make them agree")
        found = listed
    return found


def _numbers_used(source: Any, count: int) -> dict[int, str]:  # noqa: ANN401 - a source of images
    whole = np.arange(65536)
    used: set[int] = set()
    for place in range(count):
        values = np.unique(np.asarray(source.read(place)))
        if values.min() < 0 or values.max() >= len(whole):
            raise DataError(
                "class numbers from 0 to 65535", f"{values.min()} to {values.max()}", "Convert the masks"
            )
        used.update(values.tolist())
    return {number: str(number) for number in sorted(used) if number != IGNORE}
