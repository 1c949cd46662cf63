"""ShapeWorld's patterns: four textures of equal mean and contrast, two kinds of background, confetti.

Exact operations only, for the reason given in ``probekit.data.shapes``.
"""

from __future__ import annotations

import numpy as np

from probekit.data.shapes import Floats, both, clip, length, positive


def _wave(phase: Floats) -> Floats:
    """Triangle wave of period 1 between −1 and 1."""
    within = phase - np.floor(phase)
    bent: Floats = np.abs(within * 4.0 - 2.0)
    return bent - 1.0


def _steep(wave: Floats, gain: float) -> Floats:
    return clip(wave * gain, -1.0, 1.0)


def _stripes(a: Floats, b: Floats) -> Floats:
    return _steep(_wave(a), 2.0) * 1.2247


def _checks(a: Floats, b: Floats) -> Floats:
    return _steep(_wave(a) * _wave(b), 4.0) * 1.3524


def _dots(a: Floats, b: Floats) -> Floats:
    return (_steep(_wave(a) + _wave(b) - 0.4, 2.0) + 0.3393) * 1.2715


def _zigzag(a: Floats, b: Floats) -> Floats:
    return _steep(_wave(a + _wave(b) * 0.3), 2.0) * 1.2247


# texture → pattern over two phases, in periods; mean 0 and variance 1 over whole periods, so that
# neither the mean colour nor its spread tells one from another
TEXTURES = {"stripes": _stripes, "checks": _checks, "dots": _dots, "zigzag": _zigzag}


def soft_background(a: Floats, b: Floats, slope: Floats) -> Floats:
    """Return a slope with two crossing swells, about zero."""
    return slope + (_wave(a) + _wave(b)) * 0.04


def panel_background(a: Floats, b: Floats, slope: Floats) -> Floats:
    """Return crossing panels with sharp edges on a weak slope, about zero."""
    return slope * 0.5 + (_steep(_wave(a), 8.0) + _steep(_wave(b), 8.0)) * 0.04


def bar_distance(along: Floats, aside: Floats, size: Floats) -> Floats:
    """Return the distance in px to a round-ended bar; ``size`` is half the length of its axis."""
    return length(positive(np.abs(along) - size), aside) - 1.2


def tile_distance(along: Floats, aside: Floats, size: Floats) -> Floats:
    """Return the distance in px to a square tile that grows with ``size``."""
    return both(np.abs(along), np.abs(aside)) - size * 0.5 - 1.1
