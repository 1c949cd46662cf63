"""ShapeWorld: a built-in world of coloured shapes whose every factor is known.

An image shows a body on two movable legs before a background with confetti. Its class is shape family ×
texture. Position, scale, rotation, hue, brightness, background, clutter and the opening of the legs are drawn
independently of the class; bodies have equal areas and textures equal mean and contrast, so that neither
these factors nor the mean colour tell the class. Six worlds:

- ``source``: 20 classes, 5 families × 4 textures, for pretraining;
- ``unseen``: 10 classes, 5 other families × 2 of these textures;
- ``shifted``: the classes of ``source`` with coarser, stretched textures, other backgrounds, other confetti;
- ``scenes``: one to three objects of the ``source`` classes in each image, the larger in front;
- ``textures``: 4 classes, a texture that fills the image, without shape or background;
- ``stars``: 4 classes, one family × 4 textures.

Image i of a world depends on (VERSION, world, seed, i) alone, so any images can be rendered in any order, in
batches of any size, with equal pixels. Random numbers are raw words of PCG64, and every operation on the way
to a pixel is exactly rounded (see ``probekit.data.shapes``), so pixels are equal on all machines and NumPy
versions.

Lengths are in px of the 48 × 48 image; x runs to the right and y down from the outer corner, so that
the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probekit.data.patterns import TEXTURES
from probekit.data.shapes import (
    FAMILIES,
    KEYPOINTS,
    Family,
    Floats,
    clip,
    either,
    leg_distance,
    part_points,
)
from probekit.data.worlds import (
    CELLS,
    SIZE,
    STYLES,
    VERSION,
    Confetti,
    Doubles,
    Ints,
    Objects,
    Scenery,
    Style,
    draw_confetti,
    draw_noise,
    draw_objects,
    draw_scenery,
)
from probekit.errors import InputError, near_names

WORLDS = tuple(STYLES)
FACTORS = ("x", "y", "scale", "rotation", "hue", "background", "clutter", "articulation")

_CHUNK = 32  # images drawn at once: their planes stay in the processor's cache
_PIXEL = (np.arange(SIZE) + 0.5).astype(np.float32)  # centres


@dataclass(frozen=True, eq=False)
class Sample:
    """Cheap facts of N images; nothing is rendered.

    Attributes:
        world: One of WORLDS.
        seed: Seed of the world.
        start: Number of the first image.
        labels: (N,) class of the image; of the largest object in ``scenes``.
        factors: Name → (N, K) values: ``x``, ``y`` and ``scale`` in px, ``rotation`` and ``hue`` as sine and
            cosine, ``background`` as mean brightness in [0, 1], ``clutter`` as pieces of confetti,
            ``articulation`` in degrees; in ``scenes`` those of the largest object. Each is defined for
            every class.
        objects: Every object of every image.
    """

    world: str
    seed: int
    start: int
    labels: Ints
    factors: dict[str, Doubles]
    objects: Objects


@dataclass(frozen=True, eq=False)
class Annotations:
    """Where the objects of N images are, O places an image.

    Attributes:
        labels: (N, O) class of each object, −1 where the place is empty.
        boxes: (N, O, 4) x0, y0, x1, y1 in px around the visible pixels; zeros where the place is empty.
        masks: (N, 48, 48) 0 for the background, o + 1 for the visible pixels of object o.
        keypoints: (N, O, K, 2) x, y in px of the points named in KEYPOINTS; zeros where the place is empty.
        visible: (N, O, K) whether the point lies in the image and no other object is before it.
    """

    labels: Ints
    boxes: Doubles
    masks: NDArray[np.uint8]
    keypoints: Doubles
    visible: NDArray[np.bool_]


def class_names(world: str) -> tuple[str, ...]:
    """Return the classes in the order of their labels.

    Raises:
        InputError: If there is no such world.

    Examples:
        >>> class_names("source")[:3]
        ('disc-stripes', 'disc-checks', 'disc-dots')
        >>> len(class_names("unseen"))
        10
    """
    return tuple(f"{family}-{texture}" for family, texture in _style(world).classes)


def sample(world: str, n: int, *, seed: int = 0, start: int = 0) -> Sample:
    """Return labels and factors of the images ``start`` … ``start + n - 1``.

    Labels are shuffled within blocks of one image for each class, so each block holds every class once.

    Raises:
        InputError: If there is no such world, or ``n`` or ``start`` is negative.

    Examples:
        >>> facts = sample("source", 20, seed=3)
        >>> sorted(facts.labels) == list(range(20))
        True
        >>> facts.factors["rotation"].shape
        (20, 2)
    """
    _style(world)
    if n < 0 or start < 0:
        raise InputError("`n` and `start` of at least 0", f"n {n}, start {start}", "Count images from 0")
    indices = np.arange(start, start + n)
    objects = draw_objects(world, indices, seed)
    scenery = draw_scenery(world, indices, seed)
    columns = (
        *(objects.x, objects.y, objects.scale, objects.rotation, objects.hue),
        *(scenery.background[:, None], scenery.clutter[:, None], objects.articulation),
    )
    foremost = [values[:, :1] if values.ndim == 2 else values[:, 0] for values in columns]
    factors = {name: values.copy() for name, values in zip(FACTORS, foremost, strict=True)}
    return Sample(world, seed, start, objects.labels[:, 0].copy(), factors, objects)


def render(world: str, indices: Sequence[int] | range | Ints, *, seed: int = 0) -> NDArray[np.uint8]:
    """Draw images by number.

    Args:
        world: One of WORLDS.
        indices: N image numbers, in any order.
        seed: Seed of the world.

    Returns:
        (N, 48, 48, 3) red, green and blue.

    Raises:
        InputError: If there is no such world or a number is negative.

    Examples:
        >>> images = render("source", range(4))
        >>> images.shape
        (4, 48, 48, 3)
        >>> bool((render("source", [2]) == images[2:3]).all())
        True
    """
    style, indices = _style(world), _checked(world, indices)
    images = np.empty((len(indices), SIZE, SIZE, 3), np.uint8)
    objects, scenery = draw_objects(world, indices, seed), draw_scenery(world, indices, seed)
    confetti = draw_confetti(world, indices, seed, objects, scenery)
    for rows in _chunks(objects):
        canvas = _background(style, scenery, rows)
        _add_confetti(canvas, style, confetti, rows)
        for place, label, inside in _layers(objects, rows):
            canvas[inside] = _with_object(canvas[inside], style, objects, rows[inside], place, label)
        noise = draw_noise(world, indices[rows], seed).astype(np.float32)
        canvas += (noise[:, None] - 127.5) * (0.05 / 255)
        levels = clip(canvas * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
        images[rows] = levels.transpose(0, 2, 3, 1)
    return images


def annotate(world: str, indices: Sequence[int] | range | Ints, *, seed: int = 0) -> Annotations:
    """Return boxes, masks and keypoints of images by number.

    Raises:
        InputError: If there is no such world or a number is negative.

    Examples:
        >>> found = annotate("scenes", range(8))
        >>> found.boxes.shape, found.keypoints.shape
        ((8, 3, 4), (8, 3, 7, 2))
    """
    style, indices = _style(world), _checked(world, indices)
    objects = draw_objects(world, indices, seed)
    masks = np.zeros((len(indices), SIZE, SIZE), np.uint8)
    keypoints = np.zeros((*objects.labels.shape, len(KEYPOINTS), 2))
    for rows in _chunks(objects):
        for place, label, inside in _layers(objects, rows):
            found, family = rows[inside], FAMILIES[style.classes[label][0]]
            _, whole = _coverage(family, objects, found, place)
            masks[found] = np.where(whole[:, 0] >= 0.5, np.uint8(place + 1), masks[found])
            keypoints[found, place] = _part_positions(family, objects, found, place)
    boxes, visible = _boxes(masks, objects.labels), _visible(masks, objects.labels, keypoints)
    return Annotations(objects.labels, boxes, masks, keypoints, visible)


def content_digest(world: str, n: int, seed: int) -> str:
    """Return 64 hexadecimal digits that stand for the first ``n`` images, without rendering them.

    Raises:
        InputError: If there is no such world.

    Examples:
        >>> content_digest("source", 10, 0) == content_digest("source", 11, 0)
        False
    """
    _style(world)
    return hashlib.sha256(f"shapeworld\x1f{VERSION}\x1f{world}\x1f{n}\x1f{seed}".encode()).hexdigest()


def _style(world: str) -> Style:
    if world not in STYLES:
        raise InputError(
            f"a world among {', '.join(WORLDS)}", repr(world), f"Did you mean {near_names(world, WORLDS, 1)}"
        )
    return STYLES[world]


def _checked(world: str, indices: Iterable[int] | Ints) -> Ints:
    """Return image numbers as an array, or say what is wrong with the world or the numbers."""
    _style(world)
    numbers = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
    if numbers.size == 0:
        return np.zeros(0, np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise InputError(
            "image numbers 0, 1, 2, …", f"{numbers.ravel()[:5].tolist()} …", "Give a range or a list of them"
        )
    return numbers.astype(np.int64)


def _chunks(objects: Objects) -> Iterator[Ints]:
    """Yield row numbers to draw together, sorted by class: fewer, longer array operations."""
    order = np.argsort(objects.labels[:, 0], kind="stable")
    for first in range(0, len(order), _CHUNK):
        yield order[first : first + _CHUNK]


def _layers(objects: Objects, rows: Ints) -> Iterator[tuple[int, int, Ints]]:
    """Yield place, class and the positions within ``rows`` that hold it there, the hindmost place first."""
    for place in reversed(range(objects.labels.shape[1])):
        labels = objects.labels[rows, place]
        for label in np.unique(labels[labels >= 0]).tolist():
            yield place, label, np.flatnonzero(labels == label)


def _planes(values: Doubles) -> Floats:
    """Lift (n,) numbers to (n, 1, 1, 1), to be spread over channels, rows and columns."""
    return values.astype(np.float32)[:, None, None, None]


def _colour(brightness: Doubles, hue: Doubles, chroma: float) -> Floats:
    """Return (…, 3) red, green and blue around their mean, the brightness."""
    sine, cosine = hue[..., 0] * 0.8660254, hue[..., 1]
    channels = np.stack([cosine, sine - cosine * 0.5, -sine - cosine * 0.5], axis=-1)
    return (brightness[..., None] + channels * chroma).astype(np.float32)


def _turned(x: Floats, y: Floats, axis: Doubles) -> tuple[Floats, Floats]:
    """Return coordinates along and across axes, which are (n, 2) sine and cosine over the unit of length."""
    sine, cosine = _planes(axis[:, 0]), _planes(axis[:, 1])
    return x * cosine + y * sine, y * cosine - x * sine


def _background(style: Style, scenery: Scenery, rows: Ints) -> Floats:
    """Return (n, 3, SIZE, SIZE) colours in [0, 1]."""
    x, y = _PIXEL[None, None, None, :] - SIZE / 2, _PIXEL[None, None, :, None] - SIZE / 2
    swells = [
        _turned(x, y, scenery.swell_axis[rows, k])[0] + _planes(scenery.swell_phase[rows, k])
        for k in range(2)
    ]
    slope = x * _planes(scenery.slope[rows, 1]) + y * _planes(scenery.slope[rows, 0])
    colour = _colour(scenery.background[rows], scenery.tint[rows], 0.06)
    return colour[:, :, None, None] + style.background(swells[0], swells[1], slope)


def _add_confetti(canvas: Floats, style: Style, confetti: Confetti, rows: Ints) -> None:
    """Lay confetti over the canvas, all cells at once: no piece is larger than its cell."""
    shape = (len(rows), CELLS, SIZE // CELLS, CELLS, SIZE // CELLS)

    def cells(values: Doubles | NDArray[np.bool_]) -> Floats:
        return values[rows].astype(np.float32)[:, :, None, :, None]

    x = _PIXEL.reshape(1, 1, 1, *shape[3:]) - cells(confetti.x)
    y = _PIXEL.reshape(1, *shape[1:3], 1, 1) - cells(confetti.y)
    sine, cosine = cells(confetti.direction[..., 0]), cells(confetti.direction[..., 1])
    distance = style.piece(x * cosine + y * sine, y * cosine - x * sine, cells(confetti.length))
    cover = clip(0.5 - distance, 0.0, cells(confetti.present))
    colour = _colour(confetti.brightness[rows], confetti.hue[rows], 0.16)
    for channel in range(3):
        plane = canvas[:, channel].reshape(shape)
        canvas[:, channel] = (plane + cover * (colour[:, :, None, :, None, channel] - plane)).reshape(
            -1, SIZE, SIZE
        )


def _coverage(family: Family, objects: Objects, rows: Ints, place: int) -> tuple[Floats, Floats]:
    """Return how far the body, and the body with its legs, cover each pixel: (n, 1, SIZE, SIZE) in [0, 1]."""
    scale, opening = objects.scale[rows, place], objects.half_opening[rows, place]
    x = _PIXEL[None, None, None, :] - _planes(objects.x[rows, place])
    y = _PIXEL[None, None, :, None] - _planes(objects.y[rows, place])
    u, v = _turned(x, y, objects.rotation[rows, place] / scale[:, None])
    body = family.distance(u, v)
    whole = either(body, leg_distance(family, u, v, _planes(opening[:, 0]), _planes(opening[:, 1])))
    px = _planes(scale)
    return clip(0.5 - body * px, 0.0, 1.0), clip(0.5 - whole * px, 0.0, 1.0)


def _with_object(
    canvas: Floats, style: Style, objects: Objects, rows: Ints, place: int, label: int
) -> Floats:
    """Return the canvas with the objects of one class and place laid over it."""
    family, texture = style.classes[label]
    body, whole = _coverage(FAMILIES[family], objects, rows, place)
    x = _PIXEL[None, None, None, :] - _planes(objects.x[rows, place])
    y = _PIXEL[None, None, :, None] - _planes(objects.y[rows, place])
    along, across = _turned(x, y, objects.texture_axis[rows, place])
    along = along + _planes(objects.texture_phase[rows, place, 0])
    across = across / style.stretch + _planes(objects.texture_phase[rows, place, 1])
    pattern = TEXTURES[texture](along, across) * _planes(objects.contrast[rows, place]) * body
    colour = _colour(objects.brightness[rows, place], objects.hue[rows, place], 0.2)
    return canvas + whole * (colour[:, :, None, None] + pattern - canvas)


def _part_positions(family: Family, objects: Objects, rows: Ints, place: int) -> Doubles:
    """Return (n, len(KEYPOINTS), 2) positions in px."""
    opening, turn = objects.half_opening[rows, place], objects.rotation[rows, place][:, None]
    u, v = np.moveaxis(part_points(family, opening[:, 0], opening[:, 1]), -1, 0)
    right, down = turn[..., 1] * u - turn[..., 0] * v, turn[..., 0] * u + turn[..., 1] * v
    centre = np.stack([objects.x[rows, place], objects.y[rows, place]], axis=-1)
    offset: Doubles = np.stack([right, down], axis=-1) * objects.scale[rows, place][:, None, None]
    return centre[:, None] + offset


def _boxes(masks: NDArray[np.uint8], labels: Ints) -> Doubles:
    """Return (N, O, 4) boxes around the pixels of each object; zeros where there are none."""
    boxes = np.zeros((*labels.shape, 4))
    for place in range(labels.shape[1]):
        own = masks == place + 1
        for axis, (low, high) in ((1, (0, 2)), (2, (1, 3))):
            hit = own.any(axis=axis)
            boxes[:, place, low] = hit.argmax(axis=1)
            boxes[:, place, high] = np.where(hit.any(axis=1), SIZE - hit[:, ::-1].argmax(axis=1), 0)
    return boxes


def _visible(masks: NDArray[np.uint8], labels: Ints, keypoints: Doubles) -> NDArray[np.bool_]:
    """Return (N, O, K) whether each point is in the image and not behind another object."""
    column, row = np.moveaxis(np.floor(keypoints).astype(np.int64), -1, 0)
    framed = (column >= 0) & (column < SIZE) & (row >= 0) & (row < SIZE) & (labels >= 0)[:, :, None]
    image = np.arange(len(labels))[:, None, None]
    found = masks[image, np.clip(row, 0, SIZE - 1), np.clip(column, 0, SIZE - 1)]
    own = np.arange(1, labels.shape[1] + 1)[None, :, None]
    shown: NDArray[np.bool_] = framed & ((found == 0) | (found >= own))
    return shown
