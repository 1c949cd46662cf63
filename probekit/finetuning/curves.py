"""Which blocks of a backbone are kept, and what the others become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probekit.backbones.backbone import Backbone
from probekit.backbones.batch_norm import recalibrate_batch_norm, tracking_layers
from probekit.backbones.past import is_past
from probekit.backbones.reset import MODES, NORMS, reset
from probekit.errors import InputError
from probekit.finetuning.cell import Data, images_of
from probekit.taps.facts import list_blocks

# Curves of states that are trained; and of the whole backbone after it was trained.
STATES = ("prefix", "suffix", "leave-one-out", "keep-one")
SELFFER, REWIND = "selffer", "rewind"
CURVES = (*STATES, SELFFER, REWIND)
GRAINS = ("level", "stage", "block")
# Modes that need no other backbone.
DRAWN = tuple(mode for mode in MODES if mode != "copied")
SCRATCH = "random"
# Draws of what is replaced in a network that was itself trained from a draw are as far away as this.
OTHER_DRAW = 1000
# Images that batch norm of replaced blocks takes its first statistics from.
RECALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class Group:
    """Consecutive blocks that are kept or replaced together.

    Attributes:
        name: A level, the last block of a stage, or a block.
        level: ``low``, ``mid`` or ``high``, of its last block; empty where levels cannot be told.
        members: Modules and parameters.
    """

    name: str
    level: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One state of a backbone before it is trained.

    Attributes:
        kept: Names of the groups that stay; the others are replaced.
        mode: Of ``reset``; ``initial`` or ``checkpoint(STEP)`` of the same pretraining; ``selffer``, where
            what is kept is from the network trained from scratch on the task, and not trained again; empty
            where nothing is replaced.
    """

    kept: tuple[str, ...]
    mode: str


def group_blocks(backbone: Backbone, grain: str) -> list[Group]:
    """Return the groups of a backbone, in executed order; between them they hold all blocks.

    Args:
        backbone: Whose blocks.
        grain: ``level``, ``stage`` (blocks at one resolution) or ``block``.

    Raises:
        InputError: If the grain is unknown, or levels cannot be told.
    """
    if grain not in GRAINS:
        raise InputError("by level, stage or block", repr(grain), "level is the default")
    blocks = list_blocks(backbone)
    if grain == "level" and not all(block.level for block in blocks):
        raise InputError("a level for every block", f"none in {backbone.name}", "Give levels=, or by=block")
    marks = [
        {"level": block.level, "stage": round(np.log2(block.stride), 3), "block": block.path}[grain]
        for block in blocks
    ]
    found: list[Group] = []
    for place, (block, mark) in enumerate(zip(blocks, marks, strict=True)):
        name = block.level if grain == "level" else block.path
        if place and mark == marks[place - 1]:
            members = (*found[-1].members, *block.members)
            found[-1] = Group(name, block.level, members)
        else:
            found.append(Group(name, block.level, block.members))
    return found


def list_points(groups: Sequence[Group], curves: Sequence[str], modes: Sequence[str]) -> list[Point]:
    """Return every state that the curves need, each once; full and scratch first.

    Raises:
        InputError: If a curve or mode is unknown.

    Examples:
        >>> groups = [Group(name, name, (name,)) for name in ("low", "mid", "high")]
        >>> [point.kept for point in list_points(groups, ["prefix"], ["random"])]
        [('low', 'mid', 'high'), (), ('low',), ('low', 'mid')]
    """
    for one in curves:
        if one not in CURVES:
            raise InputError(f"a curve among {', '.join(CURVES)}", repr(one), "Choose one")
    for one in modes:
        if one not in DRAWN and not is_past(one):
            known = ", ".join((*DRAWN, "initial", "checkpoint(STEP)"))
            raise InputError(f"a mode among {known}", repr(one), "Choose one")
    every = tuple(group.name for group in groups)
    points = [Point(every, ""), Point((), SCRATCH)]
    states = [curve for curve in STATES if curve in curves]
    for mode in modes if states else ():
        points.append(Point((), mode))
        points += [Point(kept, mode) for curve in states for kept in _kept(every, curve) if kept != every]
    if SELFFER in curves:
        points += [Point(kept, SELFFER) for kept in _kept(every, "prefix") if kept and kept != every]
    return list(dict.fromkeys(points))


def curve_of(every: Sequence[str], curve: str) -> list[tuple[str, ...]]:
    """Return the kept groups along a curve, from its first point to its last.

    Examples:
        >>> curve_of(("low", "mid"), "suffix")
        [(), ('mid',), ('low', 'mid')]
    """
    return list(_kept(tuple(every), curve))


def _kept(every: tuple[str, ...], curve: str) -> Iterator[tuple[str, ...]]:
    count = len(every)
    if curve == "prefix":
        yield from (every[:n] for n in range(count + 1))
    elif curve == "suffix":
        yield from (every[count - n :] for n in range(count + 1))
    elif curve == "leave-one-out":
        yield from (every[:n] + every[n + 1 :] for n in range(count))
    else:
        yield from ((name,) for name in every)


def put_in_state(
    backbone: Backbone,
    groups: Sequence[Group],
    point: Point,
    seed: int,
    norms: str,
    data: Data,
    source: Backbone | None = None,
) -> Backbone:
    """Return a copy of a backbone in the state of a point; itself where nothing is replaced.

    Batch norm of replaced blocks that has the statistics of no data is given those of training images, so
    that a frozen backbone is no worse off than one that is trained.

    Args:
        backbone: Left as it is.
        groups: All of its blocks.
        point: What is kept, and what the others become.
        seed: Which draw.
        norms: Of ``reset``.
        data: Whose training images batch norm is given.
        source: What replaced blocks are copied from, for modes that are no draw.
    """
    if norms not in NORMS:
        raise InputError(f"norms among {', '.join(NORMS)}", repr(norms), "reset is the default")
    replaced = [member for group in groups if group.name not in point.kept for member in group.members]
    if not replaced:
        return backbone
    mode = point.mode if source is None else "copied"
    edited = reset(backbone, replaced, mode=mode, seed=seed, norms=norms, source=source)
    within = [path for path in replaced if path in dict(edited.module.named_modules())]
    held = [
        path
        for path in tracking_layers(edited.module)
        if any(f"{path}.".startswith(f"{one}.") for one in within)
    ]
    if norms == "keep" or not held:
        return edited
    batches = training_batches(edited, data)
    return recalibrate_batch_norm(edited, batches, f"{data.images.name}, train", within=within)


def training_batches(backbone: Backbone, data: Data) -> Iterator[torch.Tensor]:
    """Yield the training images that batch norm takes its statistics from."""
    pixels = data.train.pixels[:: max(1, len(data.train) // RECALIBRATION_IMAGES)][:RECALIBRATION_IMAGES]
    for part in np.array_split(pixels, max(1, len(pixels) // 64)):
        yield images_of(backbone, part)
