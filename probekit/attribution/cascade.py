"""Cascading randomisation: a backbone whose blocks are reset from the top down, one more at every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from probekit.backbones.reset import reset
from probekit.errors import InputError, near_names
from probekit.taps.facts import Block, list_blocks

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone


def cascade(
    backbone: Backbone, *, mode: str = "random", seed: int = 0, start: str | None = None
) -> Iterator[tuple[Block, Backbone]]:
    """Yield each block of a backbone, the last first, with a copy that is reset from there to the top.

    A block takes with it all parameters that belong to it, such as the norm before a stage; the stem is the
    first block. Only the classifier belongs to none, so that the last step is the whole draw but for it.
    Source: Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, Sanity Checks for Saliency Maps (NeurIPS
    2018), section 3.1.

    Args:
        backbone: Left as it is.
        mode: As in ``reset``.
        seed: Which draw.
        start: Path of the first block that is reset; those above keep their weights. None: the last.

    Yields:
        The block that is reset newly, and the backbone; batch norm inside what is reset has the statistics
        of no data.

    Raises:
        InputError: If the mode is unknown, or ``start`` is no block.
        CheckpointError: If weights cannot be drawn anew.
    """
    blocks = list_blocks(backbone)
    paths = [block.path for block in blocks]
    if start is not None and start not in paths:
        raise InputError("the path of a block", repr(start), f"The nearest are {near_names(start, paths)}")
    last = len(paths) - 1 if start is None else paths.index(start)
    done: list[str] = []
    for block in reversed(blocks[: last + 1]):
        done += block.members
        yield block, reset(backbone, done, mode=mode, seed=seed)
