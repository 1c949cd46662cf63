"""What finetuning does to each block: how far its weights move, how alike its output stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from probekit.backbones.backbone import Backbone
from probekit.features.streaming import BATCH_SIZE
from probekit.finetuning.cell import Data, images_of
from probekit.finetuning.curves import Group
from probekit.functional.moments import CrossMoments
from probekit.functional.similarity import debiased_cka
from probekit.taps.facts import list_blocks
from probekit.taps.record import record
from probekit.taps.tap import Tap

# Images of test on which outputs are compared.
COMPARED = 256


def measure_changes(
    before: Backbone, after: nn.Module, groups: Sequence[Group], data: Data
) -> dict[str, dict[str, float | None]]:
    """Return ``distance_moved`` and ``cka_kept`` of each group of blocks.

    distance moved = ‖W_after − W_before‖ / ‖W_before‖ over all weights of the group; CKA kept = debiased
    linear CKA of the output of its last block, before and after, on test images. Source: Neyshabur, Sedghi
    and Zhang, *What is being transferred in transfer learning?* (NeurIPS 2020), sections 3.3 and 3.4.

    Args:
        before: The backbone before the first step.
        after: Its network after the last.
        groups: Of its blocks.
        data: Whose test images are looked at.

    Returns:
        Name of a group → both; None where a length is 0 or an output does not vary.
    """
    taps = [last_tap(before, group) for group in groups]
    pixels = data.test.pixels[:COMPARED]
    one, other = (_read(body, taps, pixels) for body in (before, before.edited(after, "finetuned")))
    found: dict[str, dict[str, float | None]] = {}
    for group, tap in zip(groups, taps, strict=True):
        x, y = one[tap], other[tap]
        alike = debiased_cka(CrossMoments.of(x, y), CrossMoments.of(x, x), CrossMoments.of(y, y))
        found[group.name] = {
            "distance_moved": _distance(before.module, after, group),
            "cka_kept": alike if np.isfinite(alike) else None,
        }
    return found


def last_tap(backbone: Backbone, group: Group) -> Tap:
    """Return the tap of the last block of a group."""
    return [block.tap for block in list_blocks(backbone) if set(block.members) <= set(group.members)][-1]


def _distance(before: nn.Module, after: nn.Module, group: Group) -> float | None:
    moved, length = 0.0, 0.0
    others = dict(after.named_parameters())
    for name, value in before.named_parameters():
        if any(f"{name}.".startswith(f"{member}.") for member in group.members):
            start = value.detach().double().cpu()
            moved += float((others[name].detach().double().cpu() - start).square().sum())
            length += float(start.square().sum())
    return float(np.sqrt(moved / length)) if length else None


def _read(
    backbone: Backbone, taps: Sequence[Tap], pixels: NDArray[np.uint8]
) -> dict[Tap, NDArray[np.float64]]:
    found: dict[Tap, list[torch.Tensor]] = {tap: [] for tap in taps}
    with record(backbone, list(taps)) as run:
        for part in np.array_split(pixels, -(-len(pixels) // BATCH_SIZE)):
            values = run(images_of(backbone, part)).values()
            for tap, one in zip(taps, values, strict=True):
                found[tap].append(one.flatten(1).double().cpu())
    return {tap: torch.cat(parts).numpy() for tap, parts in found.items()}
