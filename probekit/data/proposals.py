"""Regions of images: true boxes, and copies moved and scaled until they overlap their box by so much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from probekit.data.annotations import clip_corners
from probekit.data.images import ImageSet
from probekit.data.regions import each_image
from probekit.data.transforms import Preprocessing
from probekit.errors import DataError
from probekit.files import digest_bytes
from probekit.functional.detection import paired_iou
from probekit.seeds import draw_rows, random_stream

# Each bin of the IoU holds its lower end; a true box is in none of them.
IOU_BINS = ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0))
TRUE_BOX = -1
# A box with less of a side, in pixels of its image, shows nothing.
LEAST_SIDE = 1.0
# Directions tried for each region: some lead nowhere, such as to grow a box that fills its image.
_TRIES = 16
# How far along its direction, in sides of the box and factors of e, a region may go; halvings on the way.
_FAR, _HALVINGS = 8.0, 48


@dataclass(frozen=True, eq=False)
class Proposals:
    """R regions of images, in the order of the images: for each box itself, then one a bin of the IoU.

    Attributes:
        images: (R,) place of each one's image.
        boxes: (R, 4) its corners in pixels of the image, within it.
        truth: (R, 4) corners of the true box it was made of.
        classes: (R,) class of that box.
        bins: (R,) place in ``IOU_BINS``, ``TRUE_BOX`` for the true box itself.
        sizes: (N, 2) width and height of every image.
        left_out: Why → how many boxes have no region.
    """

    images: NDArray[np.int64]
    boxes: NDArray[np.float64]
    truth: NDArray[np.float64]
    classes: NDArray[np.int64]
    bins: NDArray[np.int64]
    sizes: NDArray[np.int64]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits over images and regions."""
        return digest_bytes(b"|".join(one.tobytes() for one in (self.images, self.boxes, self.bins)))

    def in_input(self, preprocessing: Preprocessing) -> NDArray[np.float64]:
        """Return (R, 4) corners in pixels of the input in which images are shown whole.

        IoU and offsets are the same there as in the image: each axis is scaled as a whole.
        """
        found = np.empty_like(self.boxes)
        for row in np.unique(self.images):
            own = self.images == row
            width, height = self.sizes[row].tolist()
            places = preprocessing.places_whole(self.boxes[own].reshape(-1, 2), width, height)
            found[own] = places.reshape(-1, 4).astype(np.float64) * preprocessing.size
        return found


def draw_proposals(images: ImageSet, target: str, most: int, seed: int = 0) -> tuple[ImageSet, Proposals]:
    """Draw regions from the true boxes of a data set.

    Each of the boxes drawn gives itself and, for each bin of ``IOU_BINS``, a copy of which the IoU with it is
    drawn evenly from the bin: shift and scale go in a random direction until that IoU is met, cut at the
    edges of the image. So bins are balanced for every box, class and image. What is drawn for a box does not
    depend on other boxes.

    Crowd boxes are left out, and so are boxes that have less than a pixel within their image.

    Args:
        images: The data set.
        target: Its boxes.
        most: Most boxes that are taken, drawn from all.
        seed: Fixes which boxes, and the regions.

    Returns:
        The images with a box that was taken, and the regions, which count these images.

    Raises:
        DataError: If no box is left.
        ImageUnreadable: If an image cannot be decoded.
    """
    values = images.targets[target].values
    left = {"crowd": int(sum(one.crowd.sum() for one in values))}
    every = [(row, place) for row, one in enumerate(values) for place in np.flatnonzero(~one.crowd)]
    chosen = np.array(every, np.int64).reshape(-1, 2)[draw_rows(len(every), most, seed)]
    rows, truth, sizes, inside = _within(images, target, chosen)
    left["outside or thinner than a pixel"] = int((~inside).sum())
    ids = images.ids[chosen[:, 0]]
    regions, met = _jittered(truth, sizes, [*zip(ids.tolist(), chosen[:, 1].tolist(), strict=True)], seed)
    left["without a region of every overlap"] = int((inside & ~met).sum())
    kept = inside & met
    if not kept.any():
        raise DataError(
            f"boxes in {target} of {images.name}",
            f"none that can be used ({', '.join(f'{count} {why}' for why, count in left.items())})",
            "Look at the annotations",
        )
    some, places = np.unique(rows[kept], return_inverse=True)
    order = np.argsort(places, kind="stable")
    each = 1 + len(IOU_BINS)
    classes = np.array([values[row].classes[place] for row, place in chosen[kept]], np.int64)
    boxes = np.concatenate([truth[:, None], regions], axis=1)[kept][order]
    _, first = np.unique(rows, return_index=True)
    by_row = dict(zip(rows[first].tolist(), sizes[first], strict=True))
    return images.select(some), Proposals(
        images=np.repeat(places[order], each),
        boxes=boxes.reshape(-1, 4),
        truth=np.repeat(truth[kept][order], each, axis=0),
        classes=np.repeat(classes[order], each),
        bins=np.tile(np.arange(TRUE_BOX, len(IOU_BINS)), int(kept.sum())),
        sizes=np.stack([by_row[row] for row in some.tolist()]),
        left_out=left,
    )


def bin_names() -> tuple[str, ...]:
    """Return what the bins of the IoU are called.

    Examples:
        >>> bin_names()[0]
        'IoU 0.1 to 0.3'
    """
    return tuple(f"IoU {low:g} to {high:g}" for low, high in IOU_BINS)


def _within(
    images: ImageSet, target: str, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return image, corners cut at its edges, its size, and whether enough is left, of each box chosen."""
    values, rows = images.targets[target].values, chosen[:, 0]
    if not len(rows):
        return rows, np.empty((0, 4)), np.empty((0, 2), np.int64), np.empty(0, np.bool_)
    some, places = np.unique(rows, return_inverse=True)
    few = images.select(some)
    sizes = each_image(few, lambda row: np.array(few.image(row).size, np.int64), "Sizes of")[places]
    cut = [
        clip_corners(values[row].corners[place], *size.tolist())[0][0]
        for (row, place), size in zip(chosen, sizes, strict=True)
    ]
    truth = np.array(cut, np.float64)
    enough = (truth[:, 2:] - truth[:, :2] >= LEAST_SIDE).all(axis=1)
    return rows, truth, np.asarray(sizes, np.int64), np.asarray(enough)


def _jittered(
    truth: NDArray[np.float64], sizes: NDArray[np.int64], names: list[tuple[str, int]], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return (n, bins, 4) regions around (n, 4) boxes, and (n,) whether the IoU of all of them is met."""
    low, high = np.array(IOU_BINS).T
    draws, directions = np.empty((len(truth), len(low))), np.empty((len(truth), len(low), _TRIES, 4))
    for box, (name, place) in enumerate(names):
        stream = random_stream("regions around a box", seed, name, place)
        draws[box] = stream.random(len(low))
        directions[box] = stream.normal(size=directions.shape[1:])
    directions /= np.maximum(np.linalg.norm(directions, axis=-1, keepdims=True), 1e-12)
    # Off the very ends of a bin, where rounding would decide.
    wanted = (low + (high - low) * (0.001 + 0.998 * draws))[..., None]
    boxes, edges = truth[:, None, None], np.tile(sizes, 2)[:, None, None].astype(np.float64)

    def moved(steps: NDArray[np.float64]) -> NDArray[np.float64]:
        return _moved(boxes, steps[..., None] * directions, edges)

    # IoU is 1 where nothing is moved: halving finds a step with the IoU wanted if it is below that far out.
    near, far = np.zeros(directions.shape[:3]), np.full(directions.shape[:3], _FAR)
    found = paired_iou(boxes, moved(far)) < wanted
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        above = paired_iou(boxes, moved(middle)) > wanted
        near, far = np.where(above, middle, near), np.where(above, far, middle)
    first = found.argmax(axis=2)
    regions = np.take_along_axis(moved(near), first[..., None, None], axis=2)[:, :, 0]
    return regions, found.any(axis=2).all(axis=1)


def _moved(
    boxes: NDArray[np.float64], change: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Shift boxes by shares of their sides, scale these by powers of e, cut at the edges of the image."""
    centres, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    centres = centres + change[..., :2] * sides
    half = sides * np.exp(change[..., 2:]) / 2
    return np.asarray(np.clip(np.concatenate([centres - half, centres + half], axis=-1), 0, edges))
