"""Data sets of torchvision by the name of their class, from files that are there: nothing is downloaded."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from probekit.data.decoding import unreadable
from probekit.data.sources import FileSource
from probekit.data.splits import role_of
from probekit.data.targets import Target
from probekit.errors import DataError, InputError, near_names
from probekit.files import digest_bytes
from probekit.progress import progress_bar

_BOXES = "its targets are boxes: use format=coco or format=voc on its files, or a manifest"
_MASKS = "its targets are masks: use format=masks on its folders"
_TEXT = "its targets are sentences"
_VIDEO = "it holds videos"
_PAIRS = "it holds pairs of images"
# Class → why it cannot be a set of images with classes, labels or numbers.
REFUSED: dict[str, str] = {
    **dict.fromkeys(("CocoDetection", "VOCDetection", "Kitti", "WIDERFace"), _BOXES),
    **dict.fromkeys(("VOCSegmentation", "SBDataset", "Cityscapes"), _MASKS),
    **dict.fromkeys(("CocoCaptions", "Flickr8k", "Flickr30k", "SBU"), _TEXT),
    **dict.fromkeys(("HMDB51", "Kinetics", "UCF101", "MovingMNIST"), _VIDEO),
    **dict.fromkeys(
        ("CREStereo", "CarlaStereo", "ETH3DStereo", "FallingThingsStereo", "FlyingChairs", "FlyingThings3D"),
        _PAIRS,
    ),
    **dict.fromkeys(
        ("HD1K", "InStereo2k", "Kitti2012Stereo", "Kitti2015Stereo", "KittiFlow", "LFWPairs"), _PAIRS
    ),
    **dict.fromkeys(
        ("Middlebury2014Stereo", "PhotoTour", "SceneFlowStereo", "Sintel", "SintelStereo"), _PAIRS
    ),
    **dict.fromkeys(("DatasetFolder", "ImageFolder", "VisionDataset"), "name the folder itself"),
    **dict.fromkeys(("LSUN", "LSUNClass"), "its databases need a library of their own: export the images"),
}
# Class → role → settings, where they do not follow from the signature.
SPLITS: dict[str, dict[str, dict[str, Any]]] = {
    "EMNIST": {"train": {"split": "balanced", "train": True}, "test": {"split": "balanced", "train": False}},
    "QMNIST": {"train": {"what": "train"}, "test": {"what": "test"}},
    "Places365": {"train": {"split": "train-standard"}, "test": {"split": "val"}},
    "INaturalist": {"train": {"version": "2021_train"}, "test": {"version": "2021_valid"}},
    # The labels of its test split were never published.
    "CLEVRClassification": {"train": {"split": "train"}, "test": {"split": "val"}},
    # Its two parts have other alphabets: one cannot test the other.
    "Omniglot": {"": {"background": True}},
}
_LABELS = ("targets", "labels", "_labels", "y")
_NAMES = ("classes", "_classes", "categories")


def read_torchvision(name: str, root: str | None) -> dict[str, Any]:
    """List a data set of torchvision.

    All splits whose files are there are read. Whole numbers become the target ``class``, attributes of
    CelebA the target ``attributes``.

    Args:
        name: The class's name, such as ``CIFAR10``.
        root: Where its files are.

    Returns:
        The fields of a listing.

    Raises:
        InputError: If there is no such class, it is of another kind, or no root is given.
        DataError: If its files are not there, or its targets are no classes.
    """
    kind = _find(name)
    if root is None:
        raise InputError(f"root= for torchvision/{name}", "none", f"Write torchvision/{name},root=FOLDER")
    parts = dict(_splits(kind, name, Path(root).expanduser()))
    ids: list[str] = []
    contents: list[str] = []
    roles: list[str | None] = []
    labels: list[NDArray[Any]] = []
    sources: list[tuple[Any, int]] = []
    for role, dataset in parts.items():
        source, identity, own = _read(dataset, kind, f"{name} {role}".strip())
        ids += [f"{role or 'all'}/{place:06d}" for place in range(len(own))]
        contents += identity
        roles += [role or None] * len(own)
        labels.append(own)
        sources.append((source, len(own)))
    return {
        "name": name,
        "ids": ids,
        "contents": contents,
        "roles": roles,
        "targets": _targets(np.concatenate(labels), next(iter(parts.values())), name),
        "source": JoinedSource(tuple(sources)),
        "problems": (),
    }


@dataclass(frozen=True)
class JoinedSource:
    """Several sources, one after the other.

    Attributes:
        parts: Each source with its number of images.
    """

    parts: tuple[tuple[Any, int], ...]

    def read(self, index: int) -> Image.Image | NDArray[np.uint8]:
        """Read one image."""
        for source, count in self.parts:
            if index < count:
                return source.read(index)  # type: ignore[no-any-return]
            index -= count
        raise IndexError(index)


@dataclass(frozen=True)
class DatasetSource:
    """Images of a torchvision data set that keeps them in memory or in one file, read one at a time.

    Attributes:
        dataset: The data set.
    """

    dataset: Any
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __getstate__(self) -> Any:  # noqa: ANN401 - the data set; a lock does not survive a process
        return self.dataset

    def __setstate__(self, dataset: Any) -> None:  # noqa: ANN401 - the data set
        object.__setattr__(self, "dataset", dataset)
        object.__setattr__(self, "lock", threading.Lock())

    def read(self, index: int) -> Image.Image:
        """Read one image.

        Raises:
            ImageUnreadable: If torchvision cannot read it.
        """
        try:
            with self.lock:
                image: Image.Image = self.dataset[index][0]
        except (OSError, ValueError, RuntimeError, SyntaxError) as error:
            raise unreadable(f"{type(self.dataset).__name__} number {index}", error) from error
        return image


def _find(name: str) -> Any:  # noqa: ANN401 - a class of torchvision's
    import torchvision.datasets
    from torchvision.datasets.vision import VisionDataset

    known = [
        one
        for one, kind in vars(torchvision.datasets).items()
        if isinstance(kind, type) and (issubclass(kind, VisionDataset) or one == "FakeData")
    ]
    if name not in known:
        raise InputError(
            "a data set of torchvision by its class's name",
            repr(name),
            f"The nearest are {near_names(name, known)}",
        )
    if name in REFUSED:
        raise InputError(
            "a data set of images with a class each", f"{name}: {REFUSED[name]}", "Use another reader"
        )
    return getattr(torchvision.datasets, name)


def _splits(kind: Any, name: str, root: Path) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Build every split whose files are there; loading is left out where the class allows it."""
    parameters = inspect.signature(kind.__init__).parameters
    common: dict[str, Any] = {"root": str(root)} if "root" in parameters else {}
    common |= {"download": False} if "download" in parameters or name in {"EMNIST", "QMNIST"} else {}
    common |= {"loader": _as_path} if "loader" in parameters else {}
    wanted = SPLITS.get(name) or _settings(parameters)
    if name == "FakeData":
        common |= {"size": 100, "image_size": (3, 32, 32)}
    missing: list[str] = []
    found = 0
    for role, settings in wanted.items():
        try:
            dataset = kind(**common, **settings)
        except ValueError as error:
            if "split" in settings and role_of(str(settings["split"])) is not None:
                continue  # it has no split of that name
            raise DataError(f"torchvision's {name} in {root}", str(error)[:120], "Check the files") from error
        except (RuntimeError, FileNotFoundError, NotADirectoryError, ModuleNotFoundError) as error:
            missing.append(str(error).splitlines()[0][:120] if str(error) else type(error).__name__)
            continue
        if len(dataset):
            found += 1
            # Twice the same part, as train and trainval would be, is taken once.
            yield role.partition(":")[0], dataset
    if not found:
        raise DataError(
            f"the files of torchvision's {name} in {root}",
            missing[0] if missing else "no images",
            f"Fetch them once: torchvision.datasets.{name}({str(root)!r}, download=True)",
        )


def _settings(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if "train" in parameters:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" not in parameters:
        return {"": {}}
    default = parameters["split"].default
    first = {"train": {"split": "trainval"}} if default == "trainval" else {"train": {"split": "train"}}
    second = {} if default == "trainval" else {"val": {"split": "val"}, "val:valid": {"split": "valid"}}
    return {**first, **second, "test": {"split": "test"}}


def _as_path(path: Any) -> Any:  # noqa: ANN401 - what torchvision hands to a loader
    return path


def _read(dataset: Any, kind: Any, label: str) -> tuple[Any, list[str], NDArray[Any]]:  # noqa: ANN401
    """Return the source, what stands for each image's content, and the labels."""
    paths: list[Path] = []
    values: list[Any] = []
    by_path = "loader" in inspect.signature(kind.__init__).parameters
    known = next(
        (getattr(dataset, one) for one in _LABELS if _fits(getattr(dataset, one, None), dataset)), None
    )
    contents: list[str] = []
    with progress_bar(len(dataset), label, "img") as bar:
        for place in range(len(dataset)):
            image, value = dataset[place]
            if by_path and isinstance(image, str | Path):
                paths.append(Path(image))
                status = paths[-1].stat()
                contents.append(f"{paths[-1].name}:{status.st_size}:{status.st_mtime_ns}:{place}")
            else:
                pixels = np.asarray(image)
                contents.append(digest_bytes(repr(pixels.shape).encode() + pixels.tobytes()))
            values.append(value)
            bar.update(1)
    labels = np.asarray([_plain(one) for one in (values if known is None else known)])
    if len(paths) == len(dataset):
        return FileSource(paths), contents, labels
    return DatasetSource(dataset), contents, labels


def _fits(values: Any, dataset: Any) -> bool:  # noqa: ANN401 - an attribute, a data set
    try:
        return values is not None and len(values) == len(dataset)
    except TypeError:
        return False


def _plain(value: Any) -> Any:  # noqa: ANN401 - a label as torchvision has it
    return np.asarray(value).tolist()


def _targets(labels: NDArray[Any], dataset: Any, name: str) -> dict[str, Target]:  # noqa: ANN401
    if labels.ndim == 1 and labels.dtype.kind in "iub":
        listed = next((getattr(dataset, one) for one in _NAMES if hasattr(dataset, one)), None)
        names = [_named(one) for one in listed] if isinstance(listed, Sequence) and listed else []
        if len(set(names)) == len(names) and len(names) > int(labels.max()) and labels.min() >= 0:
            return {"class": Target(labels.astype(np.int64), "class", tuple(names))}
        return {"class": Target.from_names([str(one) for one in labels.tolist()])}
    if labels.ndim == 1 and labels.dtype.kind in "US":
        return {"class": Target.from_names(labels.tolist())}
    if labels.ndim == 2 and np.isin(labels, (0, 1)).all():
        names = [str(one) for one in getattr(dataset, "attr_names", range(labels.shape[1]))]
        return {"attributes": Target(labels, "multilabel", tuple(names[: labels.shape[1]]))}
    raise DataError(
        f"classes or labels in torchvision's {name}",
        f"targets {labels.dtype} {labels.shape}",
        "Use a manifest",
    )


def _named(value: Any) -> str:  # noqa: ANN401 - a name, or several of one class
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
