"""ShapeWorld's worlds: what sets each apart, and the random draws behind every image.

Random numbers are raw words of PCG64, at a place that the number of the image fixes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probekit.data.patterns import TEXTURES, bar_distance, panel_background, soft_background, tile_distance
from probekit.data.shapes import FAMILIES, Floats
from probekit.seeds import named_seed

VERSION: int = 1
SIZE = 48
CELLS = 4  # confetti: at most one piece in each of CELLS × CELLS cells

_FAMILIES, _TEXTURES = tuple(FAMILIES), tuple(TEXTURES)
_SOURCE_CLASSES = tuple((family, texture) for family in _FAMILIES[:5] for texture in _TEXTURES)
_UNSEEN_CLASSES = tuple((family, texture) for family in _FAMILIES[5:] for texture in ("stripes", "dots"))

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Style:
    """What sets one world apart."""

    classes: tuple[tuple[str, str], ...] = _SOURCE_CLASSES
    max_objects: int = 1
    centre_px: tuple[float, float] = (15.0, 33.0)
    scale_px: tuple[float, float] = (6.5, 10.0)
    period_px: tuple[float, float] = (4.0, 5.5)
    stretch: float = 1.0
    background: Callable[[Floats, Floats, Floats], Floats] = soft_background
    background_period_px: tuple[float, float] = (20.0, 48.0)
    piece: Callable[[Floats, Floats, Floats], Floats] = bar_distance


STYLES = {
    "source": Style(),
    "unseen": Style(classes=_UNSEEN_CLASSES),
    "shifted": Style(
        period_px=(5.5, 7.0),
        stretch=1.3,
        background=panel_background,
        background_period_px=(12.0, 20.0),
        piece=tile_distance,
    ),
    "scenes": Style(max_objects=3, centre_px=(7.5, 16.5), scale_px=(4.5, 7.0)),
    # A disc larger than the image: its texture is all there is to see.
    "textures": Style(classes=tuple(("disc", texture) for texture in _TEXTURES), scale_px=(60.0, 72.0)),
    "stars": Style(classes=tuple(("star", texture) for texture in _TEXTURES)),
}


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of N images, O places an image, largest first; larger ones hide smaller ones.

    Attributes:
        labels: (N, O) class of each object, −1 where the place is empty.
        x: (N, O) centre of the body, px to the right.
        y: (N, O) centre of the body, px down.
        scale: (N, O) radius of the disc as large as the body, px.
        rotation: (N, O, 2) sine and cosine; positive turns clockwise on screen.
        articulation: (N, O) opening angle between the legs, degrees.
        half_opening: (N, O, 2) sine and cosine of half the articulation.
        hue: (N, O, 2) sine and cosine of the hue.
        brightness: (N, O) mean of red, green and blue, in [0, 1].
        contrast: (N, O) standard deviation of the texture, in [0, 1]; its sign is that of the texture.
        texture_axis: (N, O, 2) sine and cosine of the texture's direction, divided by its period, 1/px.
        texture_phase: (N, O, 2) phases of the texture at the centre, in periods.
    """

    labels: Ints
    x: Doubles
    y: Doubles
    scale: Doubles
    rotation: Doubles
    articulation: Doubles
    half_opening: Doubles
    hue: Doubles
    brightness: Doubles
    contrast: Doubles
    texture_axis: Doubles
    texture_phase: Doubles


@dataclass(frozen=True, eq=False)
class Scenery:
    """What is behind the objects of N images.

    Attributes:
        background: (N,) mean brightness of the background, in [0, 1].
        clutter: (N,) pieces of confetti.
        tint: (N, 2) sine and cosine of the background's hue.
        slope: (N, 2) change of brightness to the right and down, 1/px.
        swell_axis: (N, 2, 2) directions of two swells or panels, divided by their period, 1/px.
        swell_phase: (N, 2) their phases at the centre of the image, in periods.
    """

    background: Doubles
    clutter: Doubles
    tint: Doubles
    slope: Doubles
    swell_axis: Doubles
    swell_phase: Doubles


@dataclass(frozen=True, eq=False)
class Confetti:
    """One piece in each of N × CELLS × CELLS cells (rows, then columns).

    Attributes:
        present: Whether the piece is drawn.
        x: Centre, px to the right.
        y: Centre, px down.
        direction: (…, 2) sine and cosine.
        length: Size, px.
        brightness: Mean of red, green and blue, in [0, 1].
        hue: (…, 2) sine and cosine.
    """

    present: NDArray[np.bool_]
    x: Doubles
    y: Doubles
    direction: Doubles
    length: Doubles
    brightness: Doubles
    hue: Doubles


def _words(use: str, world: str, indices: Ints, seed: int, count: int) -> NDArray[np.uint64]:
    """Return (N, count) raw 64-bit words, row i from its own place in the stream."""
    origin = named_seed(f"shapeworld {use}", VERSION, world, seed)
    words = np.empty((len(indices), count), np.uint64)
    # One leap to each run of consecutive numbers.
    ends = [*(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    first, bits, position = 0, np.random.PCG64(origin), 0
    for end in ends if len(indices) else ():
        wanted = int(indices[first]) * count
        bits.advance(wanted - position)
        words[first:end] = bits.random_raw((end - first) * count).reshape(-1, count)
        first, position = end, wanted + (end - first) * count
    return words


def _uniforms(use: str, world: str, indices: Ints, seed: int, count: int) -> Doubles:
    """Return (N, count) numbers in [0, 1): the upper 53 bits of raw words."""
    return (_words(use, world, indices, seed, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _between(ends: tuple[float, float], uniform: Doubles) -> Doubles:
    return ends[0] + (ends[1] - ends[0]) * uniform


def _circle(turns: Doubles) -> Doubles:
    """Return (…, 2) sine and cosine, rounded so far that the last bits of the platform's do not matter."""
    angle = turns * (2.0 * np.pi)
    return np.rint(np.stack([np.sin(angle), np.cos(angle)], axis=-1) * 2.0**20) * 2.0**-20


def _labels(world: str, indices: Ints, seed: int) -> Ints:
    """Return (N,) labels: each block of C consecutive images is a permutation of the C classes."""
    n_classes = len(STYLES[world].classes)
    blocks, place = np.unique(indices // n_classes, return_inverse=True)
    shuffled = np.argsort(_words("labels", world, blocks, seed, n_classes), axis=1, kind="stable")
    return shuffled[place.reshape(-1), indices % n_classes]


def draw_objects(world: str, indices: Ints, seed: int) -> Objects:
    """Draw the objects of the images with these numbers."""
    style = STYLES[world]
    n, places = len(indices), style.max_objects
    # 16 numbers an object, of which 14 are in use.
    uniforms = _uniforms("objects", world, indices, seed, 16 * places).reshape(n, 16, places)
    draws = iter(np.moveaxis(uniforms, 1, 0))
    labels = np.floor(next(draws) * len(style.classes)).astype(np.int64)
    labels[:, 0] = _labels(world, indices, seed)
    scale = _between(style.scale_px, next(draws))
    x, y = _between(style.centre_px, next(draws)), _between(style.centre_px, next(draws))
    opening = _between((30.0, 120.0), next(draws))
    rotation, hue, direction = (_circle(next(draws)) for _ in range(3))
    period = _between(style.period_px, next(draws))
    # Either sign: dots may be lighter or darker than the ground between them.
    strength = next(draws) * 2.0 - 1.0
    contrast = np.where(strength < 0, -1.0, 1.0) * _between((0.11, 0.15), np.abs(strength))
    phases = np.stack([next(draws), next(draws)], axis=-1)
    brightness = _between((0.40, 0.60), next(draws))
    if places > 1:
        labels, scale = _keep_some(labels, scale, next(draws)[:, 0])
        x, y = _spread(x, y, _words("quadrants", world, indices, seed, 4))
    return Objects(
        labels=labels,
        x=x,
        y=y,
        scale=scale,
        rotation=rotation,
        articulation=opening,
        half_opening=_circle(opening / 720.0),
        hue=hue,
        brightness=brightness,
        contrast=contrast,
        texture_axis=direction / period[..., None],
        texture_phase=phases,
    )


def _keep_some(labels: Ints, scale: Doubles, uniform: Doubles) -> tuple[Ints, Doubles]:
    """Empty the last places of each row, keeping 1 … O objects, and sort the rest by size."""
    places = labels.shape[1]
    empty = np.arange(places) > np.floor(uniform * places)[:, None]
    return np.where(empty, -1, labels), -np.sort(-np.where(empty, 0.0, scale), axis=1)


def _spread(x: Doubles, y: Doubles, words: NDArray[np.uint64]) -> tuple[Doubles, Doubles]:
    """Move the objects of each image into quadrants of their own."""
    quadrant = np.argsort(words, axis=1, kind="stable")[:, : x.shape[1]]
    return x + (quadrant % 2) * (SIZE / 2), y + (quadrant // 2) * (SIZE / 2)


def draw_scenery(world: str, indices: Ints, seed: int) -> Scenery:
    """Draw what is behind the objects of the images with these numbers."""
    draws = iter(_uniforms("scenery", world, indices, seed, 10).T)
    level, pieces, tint, tilt, steepness = (next(draws) for _ in range(5))
    swells = [(_circle(next(draws)), next(draws)) for _ in range(2)]
    period = _between(STYLES[world].background_period_px, next(draws))[:, None]
    return Scenery(
        background=_between((0.22, 0.78), level),
        clutter=np.floor(pieces * 9),
        tint=_circle(tint),
        slope=_circle(tilt) * (steepness * 0.2 / SIZE)[:, None],
        swell_axis=np.stack([axis / period for axis, _ in swells], axis=1),
        swell_phase=np.stack([phase for _, phase in swells], axis=1),
    )


def draw_confetti(world: str, indices: Ints, seed: int, objects: Objects, scenery: Scenery) -> Confetti:
    """Draw the confetti of these images, away from the objects where there is room elsewhere."""
    n, cell_px = len(indices), SIZE / CELLS
    draws = _uniforms("confetti", world, indices, seed, 7 * CELLS * CELLS).reshape(n, 7, CELLS, CELLS)
    order, right, down, direction, length, contrast, hue = np.moveaxis(draws, 1, 0)
    middle = (np.arange(CELLS) + 0.5) * cell_px
    across = middle[None, None, None, :] - objects.x[:, :, None, None]
    below = middle[None, None, :, None] - objects.y[:, :, None, None]
    reach = np.where(objects.labels < 0, -cell_px, objects.scale * 1.3) + cell_px / 3
    taken = across * across + below * below < (np.maximum(reach, 0.0) ** 2)[:, :, None, None]
    key = (order + taken.any(axis=1)).reshape(n, CELLS * CELLS)
    rank = np.argsort(np.argsort(key, axis=1, kind="stable"), axis=1, kind="stable")
    lift = np.where(contrast < 0.5, contrast - 0.8, contrast - 0.2) * 0.4
    return Confetti(
        present=(rank < scenery.clutter[:, None]).reshape(n, CELLS, CELLS),
        x=middle[None, None, :] + _between((-2.0, 2.0), right),
        y=middle[None, :, None] + _between((-2.0, 2.0), down),
        direction=_circle(direction),
        length=_between((0.0, 2.2), length),
        brightness=np.minimum(np.maximum(scenery.background[:, None, None] + lift, 0.0), 1.0),
        hue=_circle(hue),
    )


def draw_noise(world: str, indices: Ints, seed: int) -> NDArray[np.uint8]:
    """Draw (N, SIZE, SIZE) bytes of noise."""
    words = _words("noise", world, indices, seed, SIZE * SIZE // 8)
    return words.astype("<u8").view(np.uint8).reshape(-1, SIZE, SIZE)
