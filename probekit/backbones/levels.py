"""Which blocks are low, mid and high: by stride where a backbone has stages, else by thirds of the order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from probekit.errors import InputError

Level = Literal["low", "mid", "high"]
LEVELS: tuple[Level, Level, Level] = ("low", "mid", "high")

# Four octaves of resolution are what low (shallower), mid (s/2 and s/4) and high (s) need.
FEWEST_STRIDES = 4


def assign_levels(
    strides: Sequence[float], after_last_stage: int = 0, *, has_stem: bool = False
) -> list[Level]:
    """Assign a level to every block, in executed order.

    With four or more distinct strides, relative to the deepest stride s: s is high, s/2 and s/4 mid,
    shallower low; blocks after the last stage are high. Otherwise, and where that would leave a level empty
    or go back to an earlier one, thirds of the block order, with the stem low and the blocks after the last
    stage high outside the thirds. Strides are compared in octaves: 8.5 (299 px / 35) counts as 8.

    Args:
        strides: Input pixels per output position of each block, in executed order; at least 1 each.
        after_last_stage: How many of the last blocks come after the last stage (a final convolution, say).
        has_stem: Whether the first block is the stem.

    Returns:
        One of ``low``, ``mid``, ``high`` per block; never decreasing, none of them missing.

    Raises:
        InputError: If there are fewer than three blocks.

    Examples:
        >>> assign_levels([4, 4, 8, 16, 32])
        ['low', 'low', 'mid', 'mid', 'high']
        >>> assign_levels([16] * 6)
        ['low', 'low', 'mid', 'mid', 'high', 'high']
    """
    count = len(strides)
    if count < len(LEVELS):
        raise InputError(
            "at least three blocks to tell low, mid and high apart",
            f"{count}",
            "Give `levels=`, a mapping from block to level, or name the blocks with `blocks=`",
        )
    by_stride = _by_stride(strides, after_last_stage)
    if by_stride is not None and set(by_stride) == set(LEVELS) and _ascends(by_stride):
        return by_stride
    first = 1 if has_stem else 0
    inner = count - first - after_last_stage
    if inner < len(LEVELS):
        return _thirds(count)
    return [LEVELS[0]] * first + _thirds(inner) + [LEVELS[2]] * after_last_stage


def _by_stride(strides: Sequence[float], after_last_stage: int) -> list[Level] | None:
    """Return levels by octaves above the deepest stride; None with fewer than four distinct strides."""
    staged = strides[: len(strides) - after_last_stage]
    if not staged:
        return None
    deepest = max(staged)
    octaves = [max(0, round(math.log2(deepest / stride))) for stride in staged]
    if len(set(octaves)) < FEWEST_STRIDES:
        return None
    levels: list[Level] = ["high" if octave == 0 else "mid" if octave <= 2 else "low" for octave in octaves]
    return levels + ["high"] * after_last_stage


def _thirds(count: int) -> list[Level]:
    return [LEVELS[3 * position // count] for position in range(count)]


def _ascends(levels: Sequence[Level]) -> bool:
    ranks = [LEVELS.index(level) for level in levels]
    return ranks == sorted(ranks)
