"""ImageSet: ordered images with ids, targets and split roles, and a digest of all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from probekit.data.annotations import Problem
from probekit.data.decoding import as_rgb
from probekit.data.perturbations import Change, Views
from probekit.data.sources import ArraySource, eight_bit_pixels, selection
from probekit.data.splits import ROLES, check_ids, split_stratified
from probekit.data.targets import GROUP, Target
from probekit.data.transforms import Preprocessing
from probekit.errors import DataError, ImageUnreadable
from probekit.files import digest_bytes, digest_json
from probekit.progress import progress_bar

if TYPE_CHECKING:
    from probekit.data.kept import PixelMemory

SEEN = ("yes", "no", "unknown")
# Kinds of target that no perturbation makes untrue; places, boxes and measured factors may move with it.
_UNTOUCHED = ("class", "multilabel", GROUP)
_DECODERS = 4


class Source(Protocol):
    """Where pixels come from; safe to be read by several threads."""

    def read(self, index: int) -> Image.Image | NDArray[np.uint8]:
        """Return one image: Pillow's, of any mode, or (H, W), (H, W, 3), (H, W, 4) uint8."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Ordered images with ids, targets and split roles.

    Attributes:
        name: Short name used in tables.
        ids: (N,) unique names of the images.
        targets: Target name → Target over the N images, in order; the first is the default.
        splits: (N,) each ``train``, ``val`` or ``test``.
        source: Where the pixels come from.
        digest: 64 hexadecimal digits over ids, content identity, targets and splits.
        seen_in_pretraining: ``yes``, ``no`` or ``unknown``: whether checkpoints were trained on these images.
        skipped: Ids left out because they could not be read.
        spec: The words the set was opened with; None for live objects.
        problems: What was left out or looks wrong, for people.
        contents: What stands for the content of each image (SHA-256 of its pixels; CRC-32 and size of a
            zip's member; path, size and time of a file), or None. With it, the digest of a selection
            depends on the images selected only.
        memory: Pixels kept for the next model; see ``kept_pixels``.
        views: What these images are changed views of; None for images as they are.

    Raises:
        DataError: If lengths differ, ids repeat, or a role is unknown.

    Examples:
        >>> pixels = np.zeros((4, 8, 8, 3), np.uint8)
        >>> ImageSet.from_arrays("tiny", pixels, ["a", "b", "a", "b"], ["train", "train", "test", "test"])
        ImageSet 'tiny': 2 train, 2 test; class (2 classes)
    """

    name: str
    ids: NDArray[np.str_]
    targets: Mapping[str, Target]
    splits: NDArray[np.str_]
    source: Source
    digest: str
    seen_in_pretraining: str = "unknown"
    skipped: tuple[str, ...] = ()
    spec: str | None = None
    contents: NDArray[np.str_] | None = None
    problems: tuple[Problem, ...] = ()
    memory: PixelMemory | None = None
    views: Views | None = None

    def __post_init__(self) -> None:
        lengths = {"splits": len(self.splits), **{name: len(target) for name, target in self.targets.items()}}
        if self.contents is not None:
            lengths["contents"] = len(self.contents)
        wrong = [f"{count} {name}" for name, count in lengths.items() if count != len(self.ids)]
        if wrong:
            raise DataError(f"{len(self.ids)} values each", ", ".join(wrong), "Give one value for each image")
        check_ids(self.ids.tolist(), self.splits.tolist())
        strange = sorted(set(self.splits.tolist()) - set(ROLES))
        if strange:
            raise DataError(f"split roles among {', '.join(ROLES)}", repr(strange[0]), "Rename the split")
        if self.seen_in_pretraining not in SEEN:
            raise DataError(
                f"seen_in_pretraining among {', '.join(SEEN)}", repr(self.seen_in_pretraining), "Choose one"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        counts = [f"{count} {role}" for role in ROLES if (count := int((self.splits == role).sum()))]
        nouns = {"multilabel": "labels", "continuous": "columns", "keypoints": "points", GROUP: "groups"}
        targets = [
            f"{name} ({one.n_classes} {nouns.get(one.kind, 'classes')})" for name, one in self.targets.items()
        ]
        return f"ImageSet {self.name!r}: {', '.join(counts) or 'empty'}; {', '.join(targets) or 'no target'}"

    def indices(self, role: str) -> NDArray[np.int64]:
        """Return the places of one split's images.

        Raises:
            DataError: If there is no such role.
        """
        if role not in ROLES:
            raise DataError(f"a split role among {', '.join(ROLES)}", repr(role), "Choose one")
        return np.flatnonzero(self.splits == role).astype(np.int64)

    def split(self, role: str) -> ImageSet:
        """Return one split, empty if it has no images.

        Raises:
            DataError: If there is no such role.
        """
        return self.select(self.indices(role))

    def select(self, indices: ArrayLike) -> ImageSet:
        """Return some images, in the order asked for; a boolean mask of length N works too.

        Raises:
            DataError: If an index lies outside the set or stands twice.
        """
        chosen = np.asarray(indices)
        if chosen.dtype == np.bool_ and chosen.shape == (len(self),):
            chosen = np.flatnonzero(chosen)
        if chosen.size == 0:
            chosen = np.zeros(0, np.int64)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise DataError("a row of indices, or a mask", f"{chosen.dtype} {chosen.shape}", "Give integers")
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise DataError(
                f"indices from 0 to {len(self) - 1}", f"{chosen.min()} to {chosen.max()}", "Count from 0"
            )
        chosen = chosen.astype(np.int64)
        fields: dict[str, Any] = {
            "ids": self.ids[chosen],
            "targets": {name: target.select(chosen) for name, target in self.targets.items()},
            "splits": self.splits[chosen],
            "contents": None if self.contents is None else self.contents[chosen],
        }
        memory = None if self.memory is None else self.memory.select(chosen)
        digest = (
            digest_json([self.digest, chosen.tolist()]) if self.contents is None else digest_images(**fields)
        )
        source = selection(self.source, chosen)
        views = None if self.views is None else self.views.select(chosen)
        return replace(self, **fields, source=source, digest=digest, spec=None, memory=memory, views=views)

    def with_splits(self, splits: ArrayLike) -> ImageSet:
        """Return the same images in other splits.

        Args:
            splits: (N,) each ``train``, ``val`` or ``test``.

        Raises:
            DataError: If lengths differ, or a role is unknown.

        Examples:
            >>> pixels = np.zeros((2, 8, 8), np.uint8)
            >>> images = ImageSet.from_arrays("tiny", pixels, ["a", "b"], ["train", "train"])
            >>> images.with_splits(["train", "test"])
            ImageSet 'tiny': 1 train, 1 test; class (2 classes)
        """
        roles = np.asarray(splits, np.str_)
        if self.contents is None:
            digest = digest_json([self.digest, roles.tolist()])
        else:
            digest = digest_images(self.ids, self.targets, roles, self.contents)
        return replace(self, splits=roles, digest=digest, spec=None)

    def perturbed(self, perturbation: str, strength: float, *, seed: int = 0) -> ImageSet:
        """Return the same images, changed: same ids, same order, another digest.

        Class and label targets stay; boxes, masks, points and measured factors are left out, because the
        perturbation may move what they say.

        Args:
            perturbation: One of ``probekit.data.perturbations.PERTURBATIONS``.
            strength: In its unit.
            seed: Fixes what the strength leaves open, such as the direction of a shift.

        Raises:
            InputError: If there is no such perturbation, or the strength is out of range.
        """
        return self._changed([Change(perturbation, strength, seed)], self.ids)

    def with_views(self, changes: Sequence[Change]) -> ImageSet:
        """Return every image as it is, then all of them under each change; see ``perturbed``.

        The ids of changed images are ``ID~PERTURBATION@STRENGTH``.
        """
        every = [None, *changes]
        ids = [[one if change is None else f"{one}~{change}" for one in self.ids] for change in every]
        return self._changed(every, np.array(ids, np.str_).ravel())

    def _changed(self, changes: Sequence[Change | None], ids: NDArray[np.str_]) -> ImageSet:
        count, times = len(self), len(changes)
        told = [None if one is None else [one.perturbation, one.strength, one.seed] for one in changes]
        contents = None
        if self.contents is not None:
            contents = np.array(
                [
                    content if one is None else digest_json([content, one])
                    for one in told
                    for content in self.contents.tolist()
                ],
                np.str_,
            )
        rows = np.tile(np.arange(count), times)
        kept = {name: one for name, one in self.targets.items() if one.kind in _UNTOUCHED}
        return replace(
            self,
            ids=ids,
            targets={name: one.select(rows) for name, one in kept.items()},
            splits=np.tile(self.splits, times),
            source=selection(self.source, rows),
            digest=digest_json([self.digest, told]),
            spec=None,
            contents=contents,
            # Kept pixels would be those of the unchanged images; the base has them.
            memory=None,
            views=Views(self, rows, tuple(one for one in changes for _ in range(count))),
        )

    def image(self, index: int) -> Image.Image:
        """Return one image in RGB: see ``probekit.data.decoding.as_rgb`` for the rules.

        Raises:
            ImageUnreadable: If it cannot be decoded; the message holds its path.
        """
        if self.views is not None:
            return self.views.image(index)
        return as_rgb(self.source.read(index), f"{self.name}: {self.ids[index]}")

    def pixels(self, index: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        """Return one image as a backbone takes it, before normalisation: (size, size, 3).

        Raises:
            ImageUnreadable: If it cannot be decoded.
        """
        if self.memory is not None:
            return self.memory.pixels(self, index, preprocessing)
        return self.fresh_pixels(index, preprocessing)

    def fresh_pixels(self, index: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        """Return what ``pixels`` returns, made anew.

        Raises:
            ImageUnreadable: If it cannot be decoded.
        """
        if self.views is not None:
            return self.views.pixels(index, preprocessing)
        return preprocessing.pixels(self.image(index))

    def without_unreadable(self) -> ImageSet:
        """Decode every image once; leave out those that fail and name them in ``skipped``.

        Raises:
            DataError: If no image is left.
        """

        def readable(index: int) -> bool:
            try:
                self.image(index)
            except ImageUnreadable:
                return False
            return True

        kept = np.ones(len(self), np.bool_)
        with (
            progress_bar(len(self), f"Checking {self.name}", "img") as bar,
            ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode") as decoders,
        ):
            for index, fine in enumerate(decoders.map(readable, range(len(self)))):
                kept[index] = fine
                bar.update(1)
        if kept.all():
            return self
        if not kept.any():
            raise DataError(f"readable images in {self.name}", "none", "Look at one of the files")
        return replace(self.select(kept), skipped=(*self.skipped, *self.ids[~kept].tolist()), spec=self.spec)

    @classmethod
    def from_arrays(
        cls,
        name: str,
        images: NDArray[Any],
        targets: Mapping[str, Target] | Target | Sequence[str] | NDArray[Any],
        splits: Sequence[str] | NDArray[np.str_] | None = None,
        ids: Sequence[str] | NDArray[np.str_] | None = None,
        *,
        seed: int = 0,
        seen_in_pretraining: str = "unknown",
    ) -> ImageSet:
        """Make a set from pixels in memory.

        Args:
            name: Short name used in tables.
            images: (N, H, W, 3) or grey (N, H, W): uint8, uint16 or float in [0, 1].
            targets: Target name → Target, or one Target, or one class (text or number) per image, which
                becomes the target ``class``.
            splits: Role of each image; by default 80 % train and 20 % test, stratified by the first target.
            ids: Unique names; by default ``000000``, ``000001``, ….
            seed: Seed of the default split.
            seen_in_pretraining: ``yes``, ``no`` or ``unknown``.

        Raises:
            DataError: If the arrays do not fit each other or hold impossible values.
        """
        pixels = eight_bit_pixels(np.asarray(images))
        named = as_targets(targets)
        if splits is None:
            splits = split_stratified(class_values(named), len(pixels), seed)
        columns: dict[str, Any] = {
            "ids": np.array([f"{i:06d}" for i in range(len(pixels))] if ids is None else list(ids), np.str_),
            "targets": named,
            "splits": np.array(list(splits), np.str_),
            "contents": np.array(
                [digest_bytes(repr(one.shape).encode() + one.tobytes()) for one in pixels], np.str_
            ),
        }
        return cls(
            name=name,
            **columns,
            source=ArraySource(pixels),
            digest=digest_images(**columns),
            seen_in_pretraining=seen_in_pretraining,
        )


def digest_images(
    ids: NDArray[np.str_], targets: Mapping[str, Target], splits: NDArray[np.str_], contents: NDArray[np.str_]
) -> str:
    """Return 64 hexadecimal digits over ids, content identity, targets and splits."""
    described = [[name, target.facts(), target.content()] for name, target in targets.items()]
    return digest_json([ids.tolist(), contents.tolist(), splits.tolist(), described])


def class_values(targets: Mapping[str, Target]) -> NDArray[np.int64] | None:
    """Return the values of the first class target, by which splits are stratified; None if there is none."""
    return next((target.values for target in targets.values() if target.kind == "class"), None)


def as_targets(
    targets: Mapping[str, Target] | Target | Sequence[str] | NDArray[Any],
) -> dict[str, Target]:
    """Return targets by name; a single one, or bare classes, become the target ``class``."""
    if isinstance(targets, Mapping):
        return dict(targets)
    if isinstance(targets, Target):
        return {"class": targets}
    return {"class": Target.from_names([str(name) for name in np.asarray(targets).tolist()])}
