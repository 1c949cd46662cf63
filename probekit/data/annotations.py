"""What is marked in an image: boxes, a map of classes, points. Pixels are those of the image as it is shown.

Where a file states a rotation in EXIF, that is after turning. Positions are in pixels from the upper left
corner, x to the right and y down; a box that covers one whole pixel is 1 wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.errors import DataError
from probekit.files import digest_bytes

# Value of a pixel that counts for no class.
IGNORE = 255


@dataclass(frozen=True)
class Problem:
    """Something in a data set that was left out or looks wrong.

    Attributes:
        what: In words.
        count: How often.
        examples: Up to five ids or files.
    """

    what: str
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = f", such as {', '.join(self.examples[:2])}" if self.examples else ""
        return f"{self.count} {self.what}{shown}"


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of one image; there may be none.

    Attributes:
        corners: (K, 4) float32: x0, y0, x1, y1 in pixels, with x0 < x1 and y0 < y1.
        classes: (K,) int64, places in the target's classes.
        crowd: (K,) bool: a group of objects, or one marked as difficult; it neither counts nor is missed.
        outlines: K outlines, or empty: polygons as (P, 2) arrays of x, y, or a run-length code.

    Raises:
        DataError: If the fields do not fit each other, or a box has no area.
    """

    corners: NDArray[np.float32]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    outlines: tuple[Outline, ...] = ()

    def __post_init__(self) -> None:
        corners = np.asarray(self.corners, np.float32).reshape(-1, 4)
        classes, crowd = np.asarray(self.classes, np.int64), np.asarray(self.crowd, np.bool_)
        lengths = {len(corners), len(classes), len(crowd), *([len(self.outlines)] if self.outlines else [])}
        if len(lengths) != 1 or classes.ndim != 1 or crowd.ndim != 1:
            raise DataError("one class and one flag a box", f"lengths {sorted(lengths)}", "Align them")
        if not (np.isfinite(corners).all() and (corners[:, 2:] > corners[:, :2]).all()):
            raise DataError("boxes with an area, x0 < x1 and y0 < y1", "one without", "Leave it out")
        _freeze(self, corners=corners, classes=classes, crowd=crowd)

    def __len__(self) -> int:
        return len(self.classes)

    def mask(self, index: int, height: int, width: int) -> NDArray[np.bool_]:
        """Return the pixels of one object, (height, width).

        Raises:
            DataError: If its outline is not known, or was made for another size.
        """
        if not self.outlines:
            raise DataError("outlines of the objects", "boxes alone", "Open annotations with polygons")
        return self.outlines[index].mask(height, width)

    def content(self) -> str:
        """Return what stands for these boxes in a digest."""
        parts = [self.corners.tobytes(), self.classes.tobytes(), self.crowd.tobytes()]
        return digest_bytes(b"|".join(parts) + "".join(one.content() for one in self.outlines).encode())


@dataclass(frozen=True, eq=False)
class Outline:
    """The shape of one object.

    Attributes:
        polygons: Each (P, 2) float32, x and y of P corners.
        runs: Lengths of runs of pixels outside and inside in turn, down the columns; empty for polygons.
        size: Height and width that the runs fill.
    """

    polygons: tuple[NDArray[np.float32], ...] = ()
    runs: tuple[int, ...] = ()
    size: tuple[int, int] = (0, 0)

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """Return its pixels, (height, width).

        Raises:
            DataError: If runs were made for another size.
        """
        if self.runs:
            if self.size != (height, width):
                raise DataError(
                    f"a mask of {height} × {width}", f"one of {self.size[0]} × {self.size[1]}", "Rescale it"
                )
            inside = np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs)
            return inside.reshape(width, height).T
        from PIL import Image, ImageDraw

        drawn = Image.new("1", (width, height))
        for polygon in self.polygons:
            # Pillow draws through pixel centres, and counts pixels from their upper left corner.
            ImageDraw.Draw(drawn).polygon([(x - 0.5, y - 0.5) for x, y in polygon.tolist()], fill=1)
        return np.asarray(drawn, np.bool_)

    def content(self) -> str:
        """Return what stands for this outline in a digest."""
        return digest_bytes(b"|".join(one.tobytes() for one in self.polygons) + repr(self.runs).encode())


@dataclass(frozen=True, eq=False)
class Points:
    """The key points of one image.

    Attributes:
        positions: (K, 2) float32: x, y in pixels; of points that are not there 0.
        visible: (K,) bool: whether a point is there.

    Raises:
        DataError: If the fields do not fit each other, or a visible point has no finite position.
    """

    positions: NDArray[np.float32]
    visible: NDArray[np.bool_]

    def __post_init__(self) -> None:
        positions, visible = np.asarray(self.positions, np.float32), np.asarray(self.visible, np.bool_)
        if positions.shape != (len(visible), 2) or visible.ndim != 1:
            raise DataError(
                "(K, 2) positions and (K,) flags", f"{positions.shape} and {visible.shape}", "Align them"
            )
        if not np.isfinite(positions[visible]).all():
            raise DataError("finite positions of visible points", "NaN or infinity", "Mark them as absent")
        _freeze(self, positions=np.where(visible[:, None], positions, np.float32(0)), visible=visible)

    def __len__(self) -> int:
        return len(self.visible)

    def content(self) -> str:
        """Return what stands for these points in a digest."""
        return digest_bytes(self.positions.tobytes() + self.visible.tobytes())


class _Images(Protocol):
    def read(self, index: int) -> Any: ...  # noqa: ANN401 - see probekit.data.images.Source


@dataclass(frozen=True, eq=False)
class Mask:
    """A map of classes, read when it is needed.

    Attributes:
        source: Where the maps of a data set come from.
        index: Which of them.
        places: Value of a pixel → place in the target's classes, as (256,) or longer; ``IGNORE`` for none.
        identity: What stands for the file's content.
    """

    source: _Images
    index: int
    places: NDArray[np.uint8] = field(repr=False)
    identity: str = ""

    def read(self) -> NDArray[np.uint8]:
        """Return (H, W) places in the classes; ``IGNORE`` (255) counts for none.

        Raises:
            DataError: If it is no map of one whole number a pixel, or holds a value without a class.
            ImageUnreadable: If the file cannot be decoded.
        """
        image = self.source.read(self.index)
        if getattr(image, "mode", "L") not in {"L", "P", "1", "I", "I;16"}:
            raise DataError(
                "a mask with one class number a pixel", f"mode {image.mode} in {self.identity}", "Convert it"
            )
        values = np.asarray(image).astype(np.int64)
        if values.ndim != 2 or values.min() < 0 or values.max() >= len(self.places):
            raise DataError(
                f"class numbers from 0 to {len(self.places) - 1}",
                f"{values.min()} to {values.max()} in {self.identity}",
                "List every class",
            )
        return self.places[values]

    def content(self) -> str:
        """Return what stands for this map in a digest."""
        return digest_bytes(self.identity.encode() + self.places.tobytes())


Annotation = Boxes | Points | Mask


def stack(annotations: Sequence[Annotation]) -> NDArray[Any]:
    """Return annotations as (N,) values of a target."""
    values = np.empty(len(annotations), dtype=object)
    values[:] = list(annotations)
    return values


def clip_corners(
    corners: ArrayLike, width: float | None, height: float | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Cut boxes at the edges of the image.

    Returns:
        (K, 4) corners, (K,) whether each has an area within the image, and (K,) whether it was cut by more
        than a pixel.

    Examples:
        >>> kept, inside, cut = clip_corners([[-5, 0, 4, 4], [3, 3, 3, 9]], 10, 10)
        >>> kept[0].tolist(), inside.tolist(), cut.tolist()
        ([0.0, 0.0, 4.0, 4.0], [True, False], [True, False])
    """
    before = np.asarray(corners, np.float32).reshape(-1, 4)
    after = before.copy()
    if width is not None and height is not None:
        after[:, 0::2] = np.clip(before[:, 0::2], 0, width)
        after[:, 1::2] = np.clip(before[:, 1::2], 0, height)
    inside = np.asarray(np.isfinite(before).all(1) & (after[:, 2:] > after[:, :2]).all(1))
    cut = np.asarray(inside & (np.abs(after - before).max(1, initial=0) > 1))
    return after, inside, cut


def _freeze(target: object, **arrays: NDArray[Any]) -> None:
    for name, array in arrays.items():
        array.setflags(write=False)
        object.__setattr__(target, name, array)
