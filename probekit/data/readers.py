"""Opening data: a path or a word becomes an ImageSet.

Data are written ``SOURCE[,key=value…]``. SOURCE is

- a folder of class folders, or of ``train``, ``val`` (``valid``) and ``test`` with class folders inside;
- a ``.zip`` of such folders;
- a ``.csv`` or ``.parquet`` table with a column ``file`` or ``path``, relative to the table or to ``root=``,
  which may be a folder or a zip; ``images.zip/labels.csv`` is a table inside a zip. Columns ``id`` and
  ``split`` are optional, the others are targets (see ``probekit.data.manifests.table_targets``);
- an ``.npz`` file with ``images`` and ``labels`` or ``targets``, optionally ``ids``, ``split``, ``classes``;
- ``digits``: scikit-learn's 8 × 8 handwritten digits;
- ``shapeworld/WORLD``: rendered shapes with known factors; keys ``train``, ``val`` and ``test`` are numbers
  of images (by default 4000, 0 and 1000).

The keys are the keywords of ``open_images``; a key in the words goes before the keyword.

Splits named by the data are kept. Without any, or with ``train`` only, 20 % become ``test``, stratified; with
``train`` and ``val`` only, ``val`` is the test split. The same id or file twice is refused; copies of an
image under two names are counted and logged where the content is known (zip, arrays).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.data import manifests
from probekit.data.arrays import load_pixels, open_arrays
from probekit.data.folders import Tree, find_classes, list_folder, list_zip
from probekit.data.images import SEEN, ImageSet, Source, class_values, digest_images
from probekit.data.sources import ArraySource, BlockSource, selection
from probekit.data.specs import DataSpec, parse_targets
from probekit.data.splits import ROLES, check_ids, complete_roles, role_of, stratified_order, warn_of_copies
from probekit.data.targets import Target
from probekit.errors import DataError, InputError, near_names
from probekit.files import digest_bytes
from probekit.seeds import random_stream

WORDS = ("digits", "shapeworld/source", "shapeworld/unseen", "shapeworld/shifted", "shapeworld/scenes")
SHAPEWORLD_COUNTS = {"train": 4000, "val": 0, "test": 1000}
# Image numbers of a split start here, so that a longer training split leaves the test images as they are.
_SHAPEWORLD_STARTS = {"train": 0, "val": 10**9, "test": 2 * 10**9}
_SHAPEWORLD_BLOCK = 8  # as fast an image as longer ones, and less waste when few images are read
_COMMON_KEYS = (
    "name",
    "split",
    "role",
    "divide",
    "target",
    "seed",
    "limit",
    "skip_unreadable",
    "seen_in_pretraining",
)
_YES = ("yes", "no")


@dataclass(frozen=True, eq=False)
class Listing:
    """What a reader finds: N images before targets are chosen and splits are completed.

    Attributes:
        name: Name of the set, unless another is given.
        ids: N unique ids.
        contents: N texts that stand for the content of the images.
        roles: N roles as far as the data name them.
        targets: Target name → Target.
        source: Where the pixels come from.
    """

    name: str
    ids: Sequence[str]
    contents: Sequence[str]
    roles: Sequence[str | None]
    targets: dict[str, Target]
    source: Source


def open_images(
    data: str | Path | DataSpec | ImageSet,
    *,
    name: str | None = None,
    split: str | None = None,
    role: str | None = None,
    divide: bool = True,
    target: str | Sequence[str] | None = None,
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
        divide: Whether to divide data that name no splits; else all of them are ``test``.
        target: Targets to keep, in order, the first being the default: ``COLUMN[+COLUMN…][:KIND]``, several
            by commas or as a list. KIND is ``class``, ``multilabel`` or ``continuous``.
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
    """
    given = {"name": name, "split": split, "role": role, "target": target, "limit": limit}
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
    images = _finished(_listing(spec), spec)
    if skip:
        images = images.without_unreadable()
        _check_classes(images.targets, images.splits)
    return images


def _listing(spec: DataSpec) -> Listing:
    source = spec.source
    if source == "digits":
        spec.check_keys(_COMMON_KEYS)
        return _digits()
    if source == "shapeworld" or source.startswith("shapeworld/"):
        spec.check_keys((*_COMMON_KEYS, *SHAPEWORLD_COUNTS))
        return _shapeworld(spec)
    path = Path(source).expanduser()
    if path.is_dir():
        spec.check_keys(_COMMON_KEYS)
        return _class_folders(list_folder(path), path.resolve().name)
    table = path.suffix.lower() in (".csv", ".parquet")
    if table and (path.is_file() or manifests.inside_zip(path)):
        spec.check_keys((*_COMMON_KEYS, "root"))
        return _manifest(path, spec)
    if path.is_file() and path.suffix.lower() == ".zip":
        spec.check_keys(_COMMON_KEYS)
        return _class_folders(list_zip(path), path.stem)
    if path.is_file() and path.suffix.lower() == ".npz":
        spec.check_keys(_COMMON_KEYS)
        return _npz(path, spec)
    raise _not_data(source, path)


def _not_data(source: str, path: Path) -> InputError:
    if path.exists():
        came, near = f"the file {source!r}", "Convert it, or list its images in a .csv"
    else:
        beside = sorted(one.name for one in path.parent.iterdir()) if path.parent.is_dir() else []
        close = near_names(path.name, [*beside, *WORDS], 3)
        came, near = f"{source!r}, which is not there", f"Check the path; near: {close}"
    return InputError(
        f"a folder, .zip, .csv, .parquet or .npz file, or a word among {', '.join(WORDS)}", came, near
    )


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
    seed = spec.count("seed", 0)
    labels = class_values(targets)
    check_ids(listing.ids, [named or "" for named in listing.roles])
    splits = np.array(_roles(listing, spec, labels, seed), np.str_)
    contents = np.array(listing.contents, np.str_)
    name = spec.text("name") or listing.name
    _check_classes(targets, splits)
    warn_of_copies(contents.tolist(), listing.ids, splits.tolist(), name)
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
    )


def _roles(listing: Listing, spec: DataSpec, labels: NDArray[np.int64] | None, seed: int) -> list[str]:
    role = spec.text("role")
    if role is not None:
        if any(listing.roles):
            raise InputError(
                "role= for data that name no splits", f"splits of their own in {spec.source}", "Use split="
            )
        return [role] * len(listing.ids)
    if spec.choice("divide", ("yes", "no")) == "no" and not any(listing.roles):
        return ["test"] * len(listing.ids)
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


def _class_folders(tree: Tree, name: str) -> Listing:
    found = find_classes(tree)
    if len(set(found.classes)) < 2:
        raise DataError(
            f"at least two class folders in {tree.root}", repr(found.classes[0]), "Add another class"
        )
    return Listing(
        name=name,
        ids=found.ids,
        contents=[tree.files[one] for one in found.names],
        roles=found.roles,
        targets={"class": Target.from_names(found.classes)},
        source=tree.source(found.names),
    )


def _manifest(path: Path, spec: DataSpec) -> Listing:
    columns = manifests.read_columns(path)
    targets = manifests.table_targets(columns, parse_targets(spec.text("target")))
    tree, names = manifests.locate(columns, path, spec.text("root"))
    roles = _named_roles(columns.get("split"), len(names), path)
    check_ids(names, [named or "" for named in roles])
    return Listing(
        name=path.stem,
        ids=columns.get("id", names),
        contents=[tree.files[one] for one in names],
        roles=roles,
        targets=targets,
        source=tree.source(names),
    )


def _named_roles(words: Sequence[str] | None, n: int, path: Path) -> list[str | None]:
    return [None] * n if words is None else [_named_role(word, path) for word in words]


def _named_role(word: str, path: Path) -> str | None:
    role = role_of(word)
    if role is None and word.strip():
        raise DataError(f"splits among {', '.join(ROLES)} in {path}", repr(word), "Rename the split")
    return role


def _npz(path: Path, spec: DataSpec) -> Listing:
    arrays = open_arrays(path)
    return Listing(
        name=path.stem,
        ids=arrays.ids,
        contents=[f"{arrays.identity}:{place}" for place in range(arrays.n)],
        roles=_named_roles(arrays.splits, arrays.n, path),
        targets=arrays.targets(parse_targets(spec.text("target"))),
        source=BlockSource(partial(load_pixels, path), arrays.n),
    )


def _digits() -> Listing:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Ink is stored as 0 to 16.
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    return Listing(
        name="digits",
        ids=[f"digit-{place:04d}" for place in range(len(pixels))],
        contents=[digest_bytes(one.tobytes()) for one in pixels],
        roles=[None] * len(pixels),
        targets={"class": Target(digits.target, "class", tuple("0123456789"))},
        source=ArraySource(pixels),
    )


def _shapeworld(spec: DataSpec) -> Listing:
    from probekit.data.shapeworld import class_names, content_digest, sample

    world = spec.source.partition("/")[2]
    classes = class_names(world)
    seed = spec.count("seed", 0)
    counts = {role: spec.count(role, default) for role, default in SHAPEWORLD_COUNTS.items()}
    if not any(counts.values()):
        raise InputError("some images", "train=0, val=0, test=0", "Ask for images in one split")
    samples = [
        sample(world, count, seed=seed, start=_SHAPEWORLD_STARTS[role])
        for role, count in counts.items()
        if count
    ]
    numbers = np.concatenate([one.start + np.arange(len(one.labels)) for one in samples])
    targets = {"class": Target(np.concatenate([one.labels for one in samples]), "class", classes)}
    for factor in samples[0].factors:
        values = np.concatenate([one.factors[factor] for one in samples])
        columns = (factor,) if values.shape[1] == 1 else (f"{factor}_sine", f"{factor}_cosine")
        targets[factor] = Target(values, "continuous", columns)
    identity = content_digest(world, 0, seed)
    return Listing(
        name=spec.source.replace("/", "-"),
        ids=[f"{world}-{seed}-{number}" for number in numbers.tolist()],
        contents=[f"{identity}:{number}" for number in numbers.tolist()],
        roles=[role for role, count in counts.items() for _ in range(count)],
        targets=targets,
        source=BlockSource(partial(_render_block, world, seed, numbers), _SHAPEWORLD_BLOCK),
    )


def _render_block(world: str, seed: int, numbers: NDArray[np.int64], block: int) -> NDArray[np.uint8]:
    from probekit.data.shapeworld import render

    wanted = numbers[block * _SHAPEWORLD_BLOCK : (block + 1) * _SHAPEWORLD_BLOCK]
    return render(world, wanted, seed=seed)
