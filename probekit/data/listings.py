"""Listing: which images a path or word names, with what is known of them, before targets are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.data import manifests
from probekit.data.annotations import IGNORE, Boxes, Mask, Points, Problem, stack
from probekit.data.arrays import load_pixels, open_arrays
from probekit.data.coco import find_coco, is_coco, read_coco
from probekit.data.folders import Tree, find_classes, list_folder, list_zip
from probekit.data.hf_datasets import is_saved_dataset, read_saved_dataset
from probekit.data.images import Source
from probekit.data.keypoints import find_keypoints, read_keypoints
from probekit.data.mask_folders import find_masks, read_masks
from probekit.data.regions import BACKGROUND
from probekit.data.shapeworld import WORLDS
from probekit.data.sources import ArraySource, BlockSource
from probekit.data.specs import DataSpec, parse_targets
from probekit.data.splits import ROLES, check_ids, role_of
from probekit.data.targets import Target
from probekit.data.torchvision_sets import read_torchvision
from probekit.data.voc import is_voc, read_voc
from probekit.data.webdataset import find_shards, read_shards
from probekit.errors import DataError, InputError, near_names
from probekit.files import digest_bytes

WORDS = ("digits", *(f"shapeworld/{world}" for world in WORLDS))
SHAPEWORLD_COUNTS = {"train": 4000, "val": 0, "test": 1000}
# Image numbers of a split start here, so that a longer training split leaves the test images as they are.
_SHAPEWORLD_STARTS = {"train": 0, "val": 10**9, "test": 2 * 10**9}
_SHAPEWORLD_BLOCK = 8  # as fast an image as longer ones, and less waste when few images are read
COMMON_KEYS = (
    "name",
    "split",
    "role",
    "divide",
    "target",
    "classes",
    "seed",
    "limit",
    "skip_unreadable",
    "seen_in_pretraining",
)
# More JSON files than this are notes on single images: they are not read to tell the format.
MOST_JSON = 20
FORMATS = ("class_folders", "coco", "voc", "masks", "keypoints")


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
        problems: What was left out or looks wrong.
    """

    name: str
    ids: Sequence[str]
    contents: Sequence[str]
    roles: Sequence[str | None]
    targets: dict[str, Target]
    source: Source
    problems: tuple[Problem, ...] = ()


def list_images(spec: DataSpec) -> Listing:
    """Find what the words name.

    Raises:
        InputError: If the words cannot be understood.
        DataError: If data are missing, empty or contradictory.
    """
    source = spec.source
    if source == "digits":
        spec.check_keys(COMMON_KEYS)
        return _digits()
    if source == "shapeworld" or source.startswith("shapeworld/"):
        spec.check_keys((*COMMON_KEYS, *SHAPEWORLD_COUNTS, "annotations"))
        return _shapeworld(spec)
    path = Path(source).expanduser()
    if path.is_dir() and is_saved_dataset(path):
        spec.check_keys(COMMON_KEYS)
        return Listing(**read_saved_dataset(path, parse_targets(spec.text("target"))))
    shards = find_shards(source)
    if shards:
        spec.check_keys(COMMON_KEYS)
        return Listing(**read_shards(source, shards, parse_targets(spec.text("target"))))
    if source.startswith("torchvision/"):
        spec.check_keys((*COMMON_KEYS, "root"))
        return Listing(**read_torchvision(source.partition("/")[2], spec.text("root")))
    if path.is_dir():
        return _tree(list_folder(path), path.resolve().name, spec)
    table = path.suffix.lower() in (".csv", ".parquet")
    if table and (path.is_file() or manifests.inside_zip(path)):
        spec.check_keys((*COMMON_KEYS, "root"))
        return _manifest(path, spec)
    if path.is_file() and path.suffix.lower() == ".zip":
        return _tree(list_zip(path), path.stem, spec)
    if path.is_file() and path.suffix.lower() == ".json":
        spec.check_keys((*COMMON_KEYS, "root"))
        tree, files = _one_file(path, spec)
        return _annotated(tree, path.stem, lambda one: read_coco(one, files))
    if path.is_file() and path.suffix.lower() == ".npz":
        spec.check_keys(COMMON_KEYS)
        return _npz(path, spec)
    raise _not_data(source, path)


def coco_files(spec: DataSpec) -> tuple[Tree, dict[str, str | None]] | None:
    """Return the COCO files that the words of a data set name, and where they lie; None for other data.

    Raises:
        DataError: If a folder or archive cannot be read.
    """
    path = Path(spec.source).expanduser()
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".json":
        return _one_file(path, spec)
    if not path.is_dir() and not (path.is_file() and suffix == ".zip"):
        return None
    tree = list_folder(path) if path.is_dir() else list_zip(path)
    wanted = spec.text("annotations")
    is_of_coco = wanted is not None or (spec.text("format") or _only_format(tree)) == "coco"
    return (tree, find_coco(tree, wanted)) if is_of_coco else None


def _one_file(path: Path, spec: DataSpec) -> tuple[Tree, dict[str, str | None]]:
    """Return a lone file of annotations and the folder of its images."""
    root = Path(spec.text("root") or path.parent).expanduser()
    annotations = path.resolve().relative_to(root.resolve()).as_posix() if _is_below(path, root) else ""
    return list_folder(root), {annotations: None}


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


def _tree(tree: Tree, name: str, spec: DataSpec) -> Listing:
    """Read a folder or zip by what it holds, or as ``format`` says."""
    spec.check_keys((*COMMON_KEYS, "format", "annotations", "ignore"))
    stated = spec.choice("format", FORMATS)
    annotations = spec.text("annotations")
    kind = stated or ("coco" if annotations is not None else _only_format(tree))
    if kind == "coco":
        return _annotated(tree, name, lambda one: read_coco(one, find_coco(one, annotations)))
    if kind == "voc":
        return _annotated(tree, name, read_voc)
    if kind == "masks":
        ignore = None if spec.text("ignore") is None else spec.count("ignore", 0)
        wanted = {one.name for one in parse_targets(spec.text("target")) or ()}
        return _annotated(tree, name, lambda one: read_masks(one, ignore, present="present" in wanted))
    if kind == "keypoints":
        return _annotated(tree, name, lambda one: read_keypoints(one, find_keypoints(one)))
    return _class_folders(tree, name)


def _only_format(tree: Tree) -> str:
    """Tell the format of a folder or zip from its files.

    Raises:
        InputError: If there are the files of several.
    """
    texts = [path for path in tree.files if path.endswith(".json")]
    found = [
        name
        for name, there in {
            "coco": len(texts) <= MOST_JSON and any(is_coco(tree, path) for path in texts),
            "voc": is_voc(tree),
            "masks": bool(find_masks(tree)),
            "keypoints": bool(find_keypoints(tree)),
        }.items()
        if there
    ]
    if len(found) > 1:
        raise InputError(
            f"format= where {tree.root} holds several",
            ", ".join(found),
            f"Write format={found[0]}, for example",
        )
    return found[0] if found else "class_folders"


def _annotated(tree: Tree, name: str, read: Callable[[Tree], dict[str, Any]]) -> Listing:
    found = read(tree)
    names = found["names"]
    return Listing(
        name=name,
        ids=names,
        contents=[tree.files[one] for one in names],
        roles=found["roles"],
        targets=found["targets"],
        source=tree.source(names),
        problems=found["problems"],
    )


def _is_below(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


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
    asked = spec.choice("annotations", tuple(_WORLD_MARKS))
    if asked is not None:
        targets[asked] = _WORLD_MARKS[asked](world, seed, numbers, classes, identity)
    return Listing(
        name=spec.source.replace("/", "-"),
        ids=[f"{world}-{seed}-{number}" for number in numbers.tolist()],
        contents=[f"{identity}:{number}" for number in numbers.tolist()],
        roles=[role for role, count in counts.items() for _ in range(count)],
        targets=targets,
        source=BlockSource(partial(_render_block, world, seed, numbers), _SHAPEWORLD_BLOCK),
    )


def _world_masks(
    world: str, seed: int, numbers: NDArray[np.int64], classes: Sequence[str], identity: str
) -> Target:
    source = WorldMasks(world, seed, numbers)
    places = np.full(IGNORE + 1, IGNORE, np.uint8)
    places[: 1 + len(classes)] = np.arange(1 + len(classes))
    masks = [
        Mask(source, place, places, f"{identity}:{number}") for place, number in enumerate(numbers.tolist())
    ]
    return Target(stack(masks), "masks", (BACKGROUND, *classes))


def _world_boxes(
    world: str, seed: int, numbers: NDArray[np.int64], classes: Sequence[str], _identity: str
) -> Target:
    from probekit.data.shapeworld import annotate

    found = annotate(world, numbers, seed=seed)
    boxes = []
    for labels, corners in zip(found.labels, found.boxes, strict=True):
        # An object that is hidden whole has a box without an area.
        seen = (labels >= 0) & (corners[:, 2:] > corners[:, :2]).all(axis=1)
        boxes.append(Boxes(corners[seen], labels[seen], np.zeros(int(seen.sum()), np.bool_)))
    return Target(stack(boxes), "boxes", tuple(classes))


def _world_keypoints(
    world: str, seed: int, numbers: NDArray[np.int64], _classes: Sequence[str], _identity: str
) -> Target:
    """Return the parts of the largest object of each image."""
    from probekit.data.shapes import KEYPOINTS
    from probekit.data.shapeworld import annotate

    found = annotate(world, numbers, seed=seed)
    points = [
        Points(positions, visible)
        for positions, visible in zip(found.keypoints[:, 0], found.visible[:, 0], strict=True)
    ]
    return Target(stack(points), "keypoints", KEYPOINTS)


_WORLD_MARKS = {"masks": _world_masks, "boxes": _world_boxes, "keypoints": _world_keypoints}


@dataclass(frozen=True, eq=False)
class WorldMasks:
    """Maps of classes of a ShapeWorld, drawn when they are asked for: 0 for the background, then its classes.

    Attributes:
        world: One of its worlds.
        seed: Seed of the world.
        numbers: N numbers of images.
    """

    world: str
    seed: int
    numbers: NDArray[np.int64]

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return (48, 48) class numbers of one image, those of what lies in front."""
        from probekit.data.shapeworld import annotate

        found = annotate(self.world, self.numbers[index : index + 1], seed=self.seed)
        # Places of objects → classes, the empty place −1 and the background both 0.
        return np.asarray(np.append(0, found.labels[0] + 1)[found.masks[0]], np.uint8)


def _render_block(world: str, seed: int, numbers: NDArray[np.int64], block: int) -> NDArray[np.uint8]:
    from probekit.data.shapeworld import render

    wanted = numbers[block * _SHAPEWORLD_BLOCK : (block + 1) * _SHAPEWORLD_BLOCK]
    return render(world, wanted, seed=seed)
