"""Two augmented views of the images of a step: equal steps give equal views, for every arm."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probekit.compute import cores, rank
from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError
from probekit.pretraining.arms import Views
from probekit.progress import progress_bar
from probekit.seeds import random_stream
from probekit.training.augmentation import Augmentation, augment

# Pixels beyond this lie in a file, not in memory.
MOST_BYTES = 2 << 30
# Where images are larger than their views, they are kept this much larger: 256 px for 224.
_MARGIN = 8 / 7


@contextmanager
def training_pixels(images: ImageSet, size: int, folder: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of all images, (N, R, R, 3): R is ``size``, or 8/7 of it where images are larger.

    Raises:
        ImageUnreadable: If an image cannot be decoded.
    """
    width, height = images.image(0).size
    side = size if min(width, height) <= size else round(size * _MARGIN)
    preprocessing = Preprocessing(side, side)
    shape = (len(images), side, side, 3)
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f".pixels-{images.digest[:12]}-{side}-{rank()[0]}.raw"
    large = int(np.prod(shape)) > MOST_BYTES
    try:
        pixels = np.memmap(place, np.uint8, "w+", shape=shape) if large else np.empty(shape, np.uint8)
        with (
            progress_bar(len(images), f"Reading {images.name}", "img") as bar,
            ThreadPoolExecutor(max(2, cores()), thread_name_prefix="decode") as decoders,
        ):
            found = decoders.map(lambda row: images.pixels(row, preprocessing), range(len(images)))
            for row, one in enumerate(found):
                pixels[row] = one
                bar.update()
        yield pixels
    finally:
        place.unlink(missing_ok=True)


def check_batch(batch_size: int, groups: int, count: int) -> None:
    """Refuse batches that cannot be made of so many images.

    Raises:
        InputError: If a group would have one image, groups would differ, or there are fewer images.
    """
    if batch_size < 2 * groups or batch_size % groups:
        raise InputError(
            f"batches of at least two images for each of {groups} groups, and a multiple of that",
            str(batch_size), "256 images in 2 groups is the default",
        )  # fmt: skip
    if count < batch_size:
        raise InputError(f"at least one batch of {batch_size} images", str(count), "Lower batch_size")


@dataclass(frozen=True, eq=False)
class TwoViews:
    """The batches of one training, by step.

    Attributes:
        pixels: (N, R, R, 3) of the training images.
        labels: (N,) their classes, or one number throughout where there are none.
        augmentation: What is done to every view.
        preprocessing: Side of the views, mean and std.
        batch_size: Images a step, over all processes.
        groups: G parts of a batch, each augmented by itself, so that any number of processes that divides G
            sees the same views.
        seed: Of the training.
        device: Where views go.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    augmentation: Augmentation
    preprocessing: Preprocessing
    batch_size: int
    groups: int
    seed: int
    device: torch.device

    @property
    def steps_an_epoch(self) -> int:
        """Whole batches in one pass over the images."""
        return len(self.pixels) // self.batch_size

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the images of a step, over all processes; an epoch visits every image at most once."""
        epoch, place = divmod(step, self.steps_an_epoch)
        order = random_stream("order of images", self.seed, epoch).permutation(len(self.pixels))
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def __call__(self, step: int) -> Views:
        """Return this process's part of a step."""
        number, world = rank()
        own = self.groups // world
        parts = np.split(self.rows(step), self.groups)[number * own : (number + 1) * own]
        numbers = range(number * own, (number + 1) * own)
        first, second = (
            torch.cat([self._view(rows, step, g, view) for g, rows in zip(numbers, parts, strict=True)])
            for view in (0, 1)
        )
        labels = torch.from_numpy(self.labels[np.concatenate(parts)]).to(self.device)
        return Views(first, second, labels)

    def _view(self, rows: NDArray[np.int64], step: int, group: int, view: int) -> Tensor:
        pixels = torch.from_numpy(self.pixels[rows]).to(self.device)
        size = self.preprocessing.size
        made = augment(pixels, self.augmentation, size, self.seed, step, view, group)
        return normalised(made, self.preprocessing)


def normalised(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return (value − mean) / std of images in [0, 1], channels last in memory."""
    mean, std = (
        torch.tensor(triple, device=images.device).view(1, 3, 1, 1)
        for triple in (preprocessing.mean, preprocessing.std)
    )
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)
