"""Opening data: a path or a word becomes an ImageSet.

Data are written ``SOURCE[,key=value…]``. SOURCE is

- a folder of class folders, or of ``train``, ``val`` (``valid``) and ``test`` with class folders inside;
- a ``.zip`` of such folders;
- a ``.csv`` or ``.parquet`` table with a column ``file`` or ``path``, relative to the table or to ``root=``,
  which may be a folder or a zip; ``images.zip/labels.csv`` is a table inside a zip. Columns ``id`` and
  ``split`` are optional, the others are targets (see ``probekit.data.manifests.table_targets``);
- an ``.npz`` file with ``images`` and ``labels`` or ``targets``, optionally ``ids``, ``split``, ``classes``;
- COCO's JSON (boxes, polygons, key points), PASCAL VOC, folders of images and masks, tables of key points,
  in a folder or zip: see ``probekit.data.coco``, ``voc``, ``mask_folders`` and ``keypoints``. The files tell
  which it is; ``format=`` says it where there are several, ``annotations=`` which JSON files are meant,
  ``ignore=`` which number in a mask counts for no class; ``target=present`` reads which classes masks have;
- WebDataset's tar shards, as ``shards/train-{000..003}.tar``, a pattern, or a folder of them;
- a folder that Hugging Face's ``datasets`` saved to disk (needs the extra ``[hf]``);
- ``torchvision/CLASS,root=DIR``: a data set of torchvision by its class's name, never downloaded;
- ``digits``: scikit-learn's 8 × 8 handwritten digits;
- ``shapeworld/WORLD``: rendered shapes with known factors; keys ``train``, ``val`` and ``test`` are numbers
  of images (by default 4000, 0 and 1000). ``annotations=`` ``masks``, ``boxes`` or ``keypoints`` (the parts
  of the largest object) adds where objects are.

The keys are the keywords of ``open_images``; a key in the words goes before the keyword.

Splits named by the data are kept. Without any, or with ``train`` only, 20 % become ``test``, stratified; with
``train`` and ``val`` only, ``val`` is the test split. The same id or file twice is refused; copies of an
image under two names are counted and logged where the content is known (zip, arrays).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.data.images import SEEN, ImageSet, class_values, digest_images
from probekit.data.listings import Listing, list_images
from probekit.data.sources import selection
from probekit.data.specs import DataSpec, parse_targets
from probekit.data.splits import ROLES, check_ids, complete_roles, stratified_order, warn_of_copies
from probekit.data.targets import Target
from probekit.errors import DataError, InputError, near_names
from probekit.seeds import random_stream

_YES = ("yes", "no")
_log = logging.getLogger(__name__)


def open_images(
    data: str | Path | DataSpec | ImageSet,
    *,
    name: str | None = None,
    split: str | None = None,
    role: str | None = None,
    divide: bool = True,
    target: str | Sequence[str] | None = None,
    classes: str | int | None = None,
    seed: int = 0,
    skip_unreadable: bool = False,
    seen_in_pretraining: str | None = None,
    limit: int | None = None,
) -> ImageSet:
    """Open images with their targets and splits: see the module for the words.

    Args:
        data: Words, path, DataSpec, or an ImageSet, which is returned unchanged.
        name: Short name used in tables; by default that of the file or folder, or the word.
        split: Keep this split only, after splits are completed.
        role: Give every image this split, instead of dividing data that name no splits.
        divide: Whether to hold images out where no test split is named; else what names none is ``test``.
        target: Targets to keep, in order, the first being the default: ``COLUMN[+COLUMN…][:KIND]``, several
            by commas or as a list. KIND is ``class``, ``multilabel`` or ``continuous``.
        classes: Keep images of these classes of the first class target only: names joined by ``+``, or how
            many of the first.
        seed: Seed of splits and limits; for ``shapeworld`` also of the images.
        skip_unreadable: Decode every image once, leave out those that fail, and name them in ``skipped``.
        seen_in_pretraining: ``yes``, ``no`` or ``unknown``: whether checkpoints were trained on these images.
        limit: At most this many images of each split, stratified by the first class target.

    Raises:
        InputError: If words or keywords cannot be understood.
        DataError: If data are missing, empty, contradictory, or of a single class.
        SplitOverlap: If an image stands in two splits.
        ImageUnreadable: If listed files are missing.

    Examples:
        >>> open_images("digits,limit=100")
        ImageSet 'digits': 100 train, 100 test; class (10 classes)
        >>> open_images("digits,classes=3+8").targets["class"].classes
        ('3', '8')
    """
    given = {"name": name, "split": split, "role": role, "target": target, "limit": limit, "classes": classes}
    given |= {"seen_in_pretraining": seen_in_pretraining, "divide": None if divide else False}
    if isinstance(data, ImageSet):
        if any(value is not None for value in given.values()):
            raise InputError(
                "no further settings for an open ImageSet",
                ", ".join(key for key, value in given.items() if value is not None),
                "Use its methods select and split, or open the words",
            )
        return data
    spec = data if isinstance(data, DataSpec) else DataSpec.parse(str(data))
    spec = spec.with_defaults({**given, "seed": seed or None, "skip_unreadable": skip_unreadable or None})
    skip = spec.choice("skip_unreadable", _YES) == "yes"  # before the long work
    for key in ("split", "role"):
        spec.choice(key, ROLES)
    images = _finished(list_images(spec), spec)
    if skip:
        images = images.without_unreadable()
        _check_classes(images.targets, images.splits)
    return images


def _finished(listing: Listing, spec: DataSpec) -> ImageSet:
    """Choose targets, complete splits, check both, and apply split and limit."""
    choices = parse_targets(spec.text("target"))
    targets = listing.targets
    if choices is not None:
        for choice in choices:
            if choice.name not in targets or choice.kind not in (None, targets[choice.name].kind):
                raise InputError(
                    f"targets among {', '.join(f'{key}:{one.kind}' for key, one in targets.items())}",
                    choice.name + (f":{choice.kind}" if choice.kind else ""),
                    f"Near: {near_names(choice.name, targets)}",
                )
        targets = {choice.name: targets[choice.name] for choice in choices}
    if spec.text("classes") is not None:
        listing, targets = _of_classes(listing, targets, spec)
    seed = spec.count("seed", 0)
    labels = class_values(targets)
    check_ids(listing.ids, [named or "" for named in listing.roles])
    splits = np.array(_roles(listing, spec, labels, seed), np.str_)
    contents = np.array(listing.contents, np.str_)
    name = spec.text("name") or listing.name
    _check_classes(targets, splits)
    warn_of_copies(contents.tolist(), listing.ids, splits.tolist(), name)
    for problem in listing.problems:
        _log.warning("%s: %s", name, problem)
    kept = _kept(spec, splits, targets, seed)
    columns: dict[str, Any] = {
        "ids": np.array(listing.ids, np.str_)[kept],
        "targets": {key: one.select(kept) for key, one in targets.items()},
        "splits": splits[kept],
        "contents": contents[kept],
    }
    return ImageSet(
        name=name,
        **columns,
        source=selection(listing.source, kept),
        digest=digest_images(**columns),
        seen_in_pretraining=spec.choice("seen_in_pretraining", SEEN) or "unknown",
        spec=str(spec),
        problems=listing.problems,
    )


def _of_classes(
    listing: Listing, targets: Mapping[str, Target], spec: DataSpec
) -> tuple[Listing, dict[str, Target]]:
    """Leave out images of other classes than those named, of the first class target."""
    words = spec.text("classes") or ""
    key = next((key for key, one in targets.items() if one.kind == "class"), None)
    if key is None:
        raise InputError("a class target for classes=", f"none in {spec.source}", "Leave classes= out")
    known = targets[key].classes
    # One class alone is no target, so a lone number is how many.
    names = known[: int(words)] if words.isdecimal() else tuple(words.split("+"))
    strange = [one for one in names if one not in known]
    if strange or len(set(names)) < max(2, len(names)):
        raise InputError(
            f"at least two classes of {key!r} joined by +, each once, or a number of them", repr(words),
            f"Near: {near_names(strange[0], known)}" if strange else "Name two or more",
        )  # fmt: skip
    places = np.full(len(known), -1)
    places[[known.index(one) for one in names]] = np.arange(len(names))
    kept = np.flatnonzero(places[targets[key].values] >= 0)
    chosen = {name: one.select(kept) for name, one in targets.items()}
    chosen[key] = Target(places[chosen[key].values], "class", names)
    rows = kept.tolist()
    narrowed = replace(
        listing,
        ids=[listing.ids[row] for row in rows],
        contents=[listing.contents[row] for row in rows],
        roles=[listing.roles[row] for row in rows],
        targets=chosen,
        source=selection(listing.source, kept),
    )
    return narrowed, chosen


def _roles(listing: Listing, spec: DataSpec, labels: NDArray[np.int64] | None, seed: int) -> list[str]:
    role = spec.text("role")
    if role is not None:
        if any(listing.roles):
            raise InputError(
                "role= for data that name no splits", f"splits of their own in {spec.source}", "Use split="
            )
        return [role] * len(listing.ids)
    if spec.choice("divide", _YES) == "no":
        return [named or "test" for named in listing.roles]
    return complete_roles(listing.roles, labels, seed)


def _kept(
    spec: DataSpec, splits: NDArray[np.str_], targets: dict[str, Target], seed: int
) -> NDArray[np.int64]:
    """Return the places of the images that ``split`` and ``limit`` leave, ascending."""
    kept = np.arange(len(splits))
    split = spec.text("split")
    if split is not None:
        kept = np.flatnonzero(splits == split)
        if not len(kept):
            found = ", ".join(role for role in ROLES if role in splits)
            raise DataError(
                f"images in the split {split!r} of {spec.source}", f"splits {found}", "Choose one"
            )
    if spec.text("limit") is None:
        return kept
    limit = spec.count("limit", 0, least=1)
    labels = class_values(targets)
    labels = np.zeros(len(splits), np.int64) if labels is None else labels
    chosen = []
    for role in ROLES:
        places = kept[splits[kept] == role]
        classes = len(np.unique(labels[places]))
        if min(limit, len(places)) < classes:
            raise InputError(
                f"a limit of at least {classes}, one image a class", f"limit={limit}", "Raise it"
            )
        order = stratified_order(labels[places], random_stream("limit", seed))
        chosen.append(places[order[:limit]])
    return np.sort(np.concatenate(chosen))


def _check_classes(targets: Mapping[str, Target], splits: NDArray[np.str_]) -> None:
    """Check that every class that is scored can be learnt."""
    train = splits == "train"
    if not train.any():
        return
    for name, target in targets.items():
        if target.kind != "class":
            continue
        for role in ("val", "test"):
            unknown = np.setdiff1d(target.values[splits == role], target.values[train])
            if len(unknown):
                names = ", ".join(repr(target.classes[place]) for place in unknown[:5])
                raise DataError(
                    f"training images of every class of {name!r} in the split {role!r}",
                    f"none of {len(unknown)} classes: {names}",
                    "Rename the class folders alike, or leave these classes out",
                )
