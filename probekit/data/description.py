"""What a set of images holds: counts, sizes, modes, targets, and what looks wrong."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from probekit.data.annotations import Boxes, Points, Problem
from probekit.data.decoding import as_rgb
from probekit.data.images import ImageSet
from probekit.data.splits import ROLES
from probekit.data.targets import GROUP, Target
from probekit.errors import ImageUnreadable
from probekit.progress import progress_bar

# Up to so many images are all looked at; of more, so many spread evenly.
SAMPLE = 2000
COLOUR_SAMPLE = 500
FEW = 5
RGB = "RGB"
# Mode of a file, as Pillow calls it → in words.
MODES = {"L": "grey", "1": "black and white", "P": "palette", "CMYK": "CMYK", "RGBA": "with transparency"}
MODES |= {"LA": "grey with transparency", "I": "32-bit grey", "I;16": "16-bit grey", "F": "float grey"}


@dataclass(frozen=True)
class DataFacts:
    """What a set of images holds.

    Attributes:
        name: Its name.
        spec: The words it was opened with; empty for live objects.
        images: Split → how many images.
        targets: Target → kind, number of classes, and what is known of their counts.
        sampled: How many images were looked at.
        widths: Smallest, median and largest width of these, in pixels.
        heights: The same of heights.
        modes: Kind of file → how many.
        mean: Mean of red, green and blue, from 0 to 1; empty if nothing could be read.
        std: Their standard deviations.
        problems: What looks wrong.
        seen_in_pretraining: ``yes``, ``no`` or ``unknown``.
    """

    name: str
    spec: str
    images: Mapping[str, int]
    targets: Mapping[str, Mapping[str, Any]]
    sampled: int
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    modes: Mapping[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    problems: tuple[Problem, ...]
    seen_in_pretraining: str

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "name": self.name,
            "spec": self.spec,
            "images": dict(self.images),
            "targets": {name: dict(one) for name, one in self.targets.items()},
            "sampled": self.sampled,
            "widths": list(self.widths),
            "heights": list(self.heights),
            "modes": dict(self.modes),
            "mean": list(self.mean),
            "std": list(self.std),
            "problems": [
                {"what": one.what, "count": one.count, "examples": list(one.examples)}
                for one in self.problems
            ],
            "seen_in_pretraining": self.seen_in_pretraining,
        }

    def __str__(self) -> str:
        """Say it for people, one fact a line."""
        total = sum(self.images.values())
        lines = [
            ("images", f"{total}: " + ", ".join(f"{count} {role}" for role, count in self.images.items()))
        ]
        lines += [("target", f"{name}: {_in_words(one)}") for name, one in self.targets.items()]
        sizes = f"{_range(self.widths)} wide, {_range(self.heights)} high"
        looked = "all looked at" if self.sampled == total else f"{self.sampled} looked at"
        lines += [("pixels", f"{sizes} ({looked})")]
        lines += [("files", ", ".join(f"{count} {kind}" for kind, count in self.modes.items()))]
        if self.mean:
            mean, std = ("/".join(f"{one:.3f}" for one in triple) for triple in (self.mean, self.std))
            lines += [("colour", f"mean {mean}, std {std}")]
        lines += [("seen in pretraining", self.seen_in_pretraining)]
        lines += [("problem" if not place else "", str(one)) for place, one in enumerate(self.problems)]
        lines += [("problem", "none found")] if not self.problems else []
        lines += [("next", f"--data {self.spec}")] if self.spec else []
        width = max(len(word) for word, _ in lines)
        return "\n".join([self.name, *(f"  {word:<{width}}  {text}" for word, text in lines)])


def describe_images(images: ImageSet) -> DataFacts:
    """Look at a set of images as a careful reader would before using it.

    Up to 2,000 images are decoded, all of them if there are no more; an image that cannot be read is a
    problem, not an error.

    Examples:
        >>> pixels = np.zeros((4, 8, 9, 3), np.uint8)
        >>> tiny = ImageSet.from_arrays("tiny", pixels, ["a", "b", "a", "b"], ["train"] * 3 + ["test"])
        >>> facts = describe_images(tiny)
        >>> facts.images, facts.widths, facts.targets["class"]["counts"]
        ({'train': 3, 'test': 1}, (9, 9, 9), {'a': 2, 'b': 2})
    """
    places = np.unique(np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(np.int64)).tolist()
    look = _Look(images, places)
    problems = [*images.problems, *look.problems()]
    problems += _copies(images)
    for name, target in images.targets.items():
        problems += _odd(images, name, target)
    return DataFacts(
        images.name,
        images.spec or "",
        {role: count for role in ROLES if (count := int((images.splits == role).sum()))},
        {name: _target_facts(target) for name, target in images.targets.items()},
        len(places),
        _middle([size[0] for size in look.sizes]),
        _middle([size[1] for size in look.sizes]),
        dict(look.modes.most_common()),
        *look.colour(),
        tuple(problems),
        images.seen_in_pretraining,
    )


class _Look:
    """What a pass over some images shows."""

    def __init__(self, images: ImageSet, places: Sequence[int]) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.modes: Counter[str] = Counter()
        self._unreadable: list[str] = []
        self._turned: list[str] = []
        self._moments: list[np.ndarray[Any, np.dtype[np.float64]]] = []
        every = max(1, len(places) // COLOUR_SAMPLE)
        with progress_bar(len(places), f"Looking at {images.name}", "img") as bar:
            for number, place in enumerate(places):
                self._add(images, place, number % every == 0)
                bar.update(1)

    def _add(self, images: ImageSet, place: int, colour: bool) -> None:
        name = str(images.ids[place])
        try:
            found = images.source.read(place)
            shown = as_rgb(found, name) if colour or not isinstance(found, Image.Image) else None
        except ImageUnreadable:
            self._unreadable.append(name)
            return
        if isinstance(found, Image.Image):
            turn = found.getexif().get(ExifTags.Base.Orientation, 1)
            if turn != 1:
                self._turned.append(name)
            self.sizes.append(found.size[::-1] if turn in {5, 6, 7, 8} else found.size)
            self.modes[MODES.get(found.mode, found.mode)] += 1
        else:
            self.sizes.append((found.shape[1], found.shape[0]))
            self.modes[RGB if found.shape[-1] == 3 else "array"] += 1
        if colour and shown is not None:
            pixels = np.asarray(shown, np.float64).reshape(-1, 3) / 255
            self._moments.append(np.stack([pixels.mean(0), (pixels**2).mean(0)]))

    def problems(self) -> list[Problem]:
        """Return what could not be read, and what is turned."""
        found = {
            "images that cannot be read": self._unreadable,
            "images turned by EXIF, shown turned": self._turned,
        }
        return [Problem(what, len(names), tuple(names[:FEW])) for what, names in found.items() if names]

    def colour(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of the channels over images of equal weight."""
        if not self._moments:
            return (), ()
        mean, square = np.mean(self._moments, axis=0)
        return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(square - mean**2, 0)).tolist())


def _copies(images: ImageSet) -> list[Problem]:
    """Find images with the same content in two splits, where the content is known."""
    if images.contents is None:
        return []
    roles: dict[str, set[str]] = {}
    for content, role in zip(images.contents.tolist(), images.splits.tolist(), strict=True):
        roles.setdefault(content, set()).add(role)
    both = [
        name
        for name, content in zip(images.ids.tolist(), images.contents.tolist(), strict=True)
        if len(roles[content]) > 1
    ]
    return [Problem("images that stand in two splits", len(both), tuple(both[:FEW]))] if both else []


def _target_facts(target: Target) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": target.kind, "n_classes": target.n_classes}
    counts = _counts(target)
    if counts is not None:
        facts["counts"] = dict(zip(target.classes, counts, strict=True))
    if target.kind == "boxes":
        facts["boxes"] = sum(map(len, target.values))
        facts["images_without"] = sum(not len(one) for one in target.values)
    if target.kind == "continuous":
        facts["low"], facts["high"] = target.values.min(0).tolist(), target.values.max(0).tolist()
    return facts


def _counts(target: Target) -> list[int] | None:
    """Return how often each class stands; None where that would take a pass over files, or has no sense."""
    if target.kind in ("class", GROUP):
        return [int(one) for one in np.bincount(target.values, minlength=target.n_classes)]
    if target.kind == "multilabel":
        return [int(one) for one in target.values.sum(0)]
    if target.kind == "boxes":
        found = Counter(itertools.chain.from_iterable(one.classes.tolist() for one in target.values))
        return [found[place] for place in range(target.n_classes)]
    if target.kind == "keypoints":
        return [int(one) for one in np.sum([one.visible for one in target.values], axis=0)]
    return None


def _odd(images: ImageSet, name: str, target: Target) -> list[Problem]:
    """Find classes that cannot be learnt or tested, and annotations that leave their image."""
    problems = []
    train = images.splits == "train"
    if target.kind == "class" and train.any() and not train.all():
        learnt = set(np.unique(target.values[train]).tolist())
        new = [target.classes[one] for one in np.unique(target.values[~train]) if one not in learnt]
        problems.append(Problem(f"classes of {name} that training lacks", len(new), tuple(new[:FEW])))
    counts = _counts(target)
    if counts is not None and target.kind not in ("keypoints", GROUP):
        rare = [one for one, count in zip(target.classes, counts, strict=True) if 0 < count < FEW]
        absent = [one for one, count in zip(target.classes, counts, strict=True) if not count]
        problems.append(Problem(f"classes of {name} with fewer than {FEW}", len(rare), tuple(rare[:FEW])))
        problems.append(Problem(f"classes of {name} with none", len(absent), tuple(absent[:FEW])))
    if target.kind in {"boxes", "keypoints"}:
        outside = [str(images.ids[row]) for row, one in enumerate(target.values) if _lowest(one) < -1]
        problems.append(Problem(f"images whose {name} leave them", len(outside), tuple(outside[:FEW])))
    return [one for one in problems if one.count]


def _lowest(one: Boxes | Points) -> float:
    values = one.corners if isinstance(one, Boxes) else one.positions[one.visible]
    return float(values.min()) if values.size else 0.0


def _middle(values: Sequence[int]) -> tuple[int, int, int]:
    return (min(values), int(np.median(values)), max(values)) if values else (0, 0, 0)


def _range(three: tuple[int, int, int]) -> str:
    low, middle, high = three
    return f"{low}" if low == high else f"{low} to {high} (median {middle})"


def _in_words(facts: Mapping[str, Any]) -> str:
    kind, count = facts["kind"], facts["n_classes"]
    counts = facts.get("counts") or {}
    if kind == "continuous":
        return f"{count} numbers an image"
    if kind == "keypoints":
        return f"{count} points an image"
    words = f"{count} {({'multilabel': 'labels', GROUP: 'groups'}).get(kind, 'classes')}"
    if kind == "boxes":
        words = f"{facts['boxes']} boxes of {words}, {facts['images_without']} images without"
    if kind == "masks":
        return f"masks of {words}"
    numbers = sorted(counts.values())
    if not numbers:
        return words
    rarest = min(counts, key=counts.__getitem__)
    return f"{words}, {numbers[0]} ({rarest}) to {numbers[-1]} each, median {int(np.median(numbers))}"
