"""ShapeWorld's silhouettes: ten shape families, each with two movable legs and named part points.

Everything that reaches a pixel is made of +, −, ×, ÷, square root, floor, absolute value, minimum and
maximum, one array operation at a time. IEEE 754 rounds each of these the same way everywhere, so pixels are
equal to the last bit on every machine. Sines and cosines come in as numbers that are already rounded.

Shape coordinates (u, v): u to the right, v down, unit = the radius of the disc of the same area (every body
covers the area π about its centroid, so that no class is larger than another). The legs open
downwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]  # float32 wherever it reaches a pixel
Point = tuple[float, float]

LEG_LENGTH, LEG_RADIUS, FOOT_RADIUS = 0.85, 0.15, 0.26
KEYPOINTS = ("centre", "head", "left", "right", "hinge", "left foot", "right foot")


@dataclass(frozen=True)
class Family:
    """One silhouette and its part points.

    Attributes:
        distance: (u, v) → distance to the outline, negative inside; exact near straight edges.
        head: Foremost point (u, v) of the body, at the side away from the legs.
        left: Leftmost named point.
        right: Rightmost named point.
        hinge: Where the legs meet, below the centre.
        neck: Length of a bar from the hinge up to the body, 0 where the hinge lies on the outline.
    """

    distance: Callable[[Floats, Floats], Floats]
    head: Point
    left: Point
    right: Point
    hinge: Point
    neck: float = 0.0


def clip(values: Floats, low: float, high: Floats | float) -> Floats:
    """Return the values moved into [low, high]."""
    clipped: Floats = np.minimum(np.maximum(values, low), high)
    return clipped


def length(u: Floats, v: Floats) -> Floats:
    """Return the length of the vectors (u, v)."""
    return np.sqrt(u * u + v * v)


def both(one: Floats, other: Floats) -> Floats:
    """Return the distance to what two areas share."""
    shared: Floats = np.maximum(one, other)
    return shared


def either(one: Floats, other: Floats) -> Floats:
    """Return the distance to two areas joined."""
    joined: Floats = np.minimum(one, other)
    return joined


def positive(values: Floats) -> Floats:
    """Return the values, 0 in place of the negative ones."""
    kept: Floats = np.maximum(values, 0.0)
    return kept


def _disc(u: Floats, v: Floats) -> Floats:
    return length(u, v) - 1.0


def _square(u: Floats, v: Floats) -> Floats:
    return both(np.abs(u), np.abs(v)) - 0.8862


def _triangle(u: Floats, v: Floats) -> Floats:
    # Equilateral: two slanted sides by mirror symmetry, and the base.
    return both(np.abs(u) * 0.8660254 - v * 0.5, v) - 0.7776


def _cross(u: Floats, v: Floats) -> Floats:
    across, down = np.abs(u), np.abs(v)
    return either(both(across - 1.1543, down - 0.4156), both(across - 0.4156, down - 1.1543))


def _star(u: Floats, v: Floats) -> Floats:
    # Five points: three mirrors fold the plane onto half a point, whose edge is a straight line.
    across, up = np.abs(u), -v
    over = positive(across * 0.80901699 - up * 0.58778525) * 2.0
    across, up = across - over * 0.80901699, up + over * 0.58778525
    over = positive(across * -0.80901699 - up * 0.58778525) * 2.0
    across, up = across + over * 0.80901699, up + over * 0.58778525
    edge: Floats = np.abs(across) * 0.91068 + (up - 1.5) * 0.41308
    return edge


def _ring(u: Floats, v: Floats) -> Floats:
    from_middle: Floats = np.abs(length(u, v) - 0.88)
    return from_middle - 0.2841


def _heart(u: Floats, v: Floats) -> Floats:
    # A square standing on its corner, with a disc on either upper side.
    across = np.abs(u)
    diamond = (across + np.abs(v - 0.294)) * 0.70710678 - 0.66318
    lobe = length(across - 0.46894, v + 0.17494) - 0.66318
    return either(diamond, lobe)


def _crescent(u: Floats, v: Floats) -> Floats:
    return both(length(u, v + 0.3404) - 1.2653, 0.8098 - length(u, v + 0.968))


def _hourglass(u: Floats, v: Floats) -> Floats:
    down = np.abs(v)
    return both(down - 1.2, (np.abs(u) - 0.182 - down * 0.79) * 0.7847)


def _tee(u: Floats, v: Floats) -> Floats:
    across = np.abs(u)
    bar = both(across - 1.2082, np.abs(v + 0.4499) - 0.4027)
    stem = both(across - 0.3826, np.abs(v - 0.6074) - 0.9062)
    return either(bar, stem)


# family → silhouette; the first five are seen in pretraining, the others are not
FAMILIES = {
    "disc": Family(_disc, head=(0.0, -1.0), left=(-1.0, 0.0), right=(1.0, 0.0), hinge=(0.0, 1.0)),
    "square": Family(
        _square, head=(0.0, -0.886), left=(-0.886, -0.886), right=(0.886, -0.886), hinge=(0.0, 0.886)
    ),
    "triangle": Family(
        _triangle, head=(0.0, -1.555), left=(-1.347, 0.778), right=(1.347, 0.778), hinge=(0.0, 0.778)
    ),
    "cross": Family(_cross, head=(0.0, -1.153), left=(-1.153, 0.0), right=(1.153, 0.0), hinge=(0.0, 1.153)),
    "star": Family(
        _star, head=(0.0, -1.5), left=(-1.427, -0.464), right=(1.427, -0.464), hinge=(0.0, 1.1), neck=0.5
    ),
    "ring": Family(_ring, head=(0.0, -1.164), left=(-1.164, 0.0), right=(1.164, 0.0), hinge=(0.0, 1.164)),
    "heart": Family(
        _heart, head=(0.0, -0.644), left=(-1.132, -0.175), right=(1.132, -0.175), hinge=(0.0, 1.232)
    ),
    "crescent": Family(
        _crescent, head=(0.0, -0.158), left=(-0.68, -1.407), right=(0.68, -1.407), hinge=(0.0, 0.925)
    ),
    "hourglass": Family(
        _hourglass, head=(0.0, -1.2), left=(-1.13, -1.2), right=(1.13, -1.2), hinge=(0.0, 1.2)
    ),
    "tee": Family(_tee, head=(0.0, -0.853), left=(-1.208, -0.45), right=(1.208, -0.45), hinge=(0.0, 1.514)),
}


def leg_distance(family: Family, u: Floats, v: Floats, sine: Floats, cosine: Floats) -> Floats:
    """Return the distance to the two legs: bars from the hinge to round feet, mirror images of each other.

    Args:
        family: The silhouette that stands on the legs.
        u: Shape coordinates of the pixels, to the right.
        v: Shape coordinates of the pixels, downwards.
        sine: Sine of half the opening angle between the legs.
        cosine: Cosine of half the opening angle.
    """
    across, down = np.abs(u), v - family.hinge[1]
    along, aside = across * sine + down * cosine, across * cosine - down * sine
    bar = both(np.abs(aside) - LEG_RADIUS, np.abs(along - LEG_LENGTH / 2) - LEG_LENGTH / 2)
    legs = either(bar, length(along - LEG_LENGTH, aside) - FOOT_RADIUS)
    if not family.neck:
        return legs
    return either(legs, both(across - LEG_RADIUS, np.abs(down + family.neck / 2) - family.neck / 2))


def part_points(
    family: Family, sine: NDArray[np.float64], cosine: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the part points (N, len(KEYPOINTS), 2) in shape coordinates at N half opening angles."""
    still = np.array([(0.0, 0.0), family.head, family.left, family.right, family.hinge])
    feet = [np.stack([side * sine, cosine], axis=-1) * LEG_LENGTH + still[-1] for side in (-1.0, 1.0)]
    return np.concatenate([np.repeat(still[None], len(sine), axis=0), np.stack(feet, axis=1)], axis=1)
