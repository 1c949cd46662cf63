"""What every reader of an architecture shares: its result, where a network begins, its blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

Tensors = Mapping[str, torch.Tensor]
Facts = dict[str, int | str | bool]


@dataclass(frozen=True)
class Proposal:
    """An architecture that a checkpoint may have been made with.

    Attributes:
        arch: Its name; empty where the kind is read but has no name.
        kind: What was read, such as ``ResNet-50`` or ``ViT-S/16``.
        size: Side in pixels its position embedding was made for, where that is not the architecture's own.
        facts: What was read: depth, width, patch, registers, …
        notes: What the weights cannot tell.
    """

    arch: str
    kind: str
    size: int | None = None
    facts: Facts = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def below(tensors: Tensors, landmark: str) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield each prefix before a name, and the entries below it under their own names.

    Args:
        tensors: The entries of a state dict.
        landmark: A regular expression for a whole name of the architecture.

    Examples:
        >>> tensors = {"a.fc.weight": torch.ones(1), "a.x": torch.ones(1), "b.x": torch.ones(1)}
        >>> [(prefix, list(own)) for prefix, own in below(tensors, r"fc[.]weight")]
        [('a.', ['fc.weight', 'x'])]
    """
    prefixes = {
        found.group(1): None
        for name in tensors
        if (found := re.fullmatch(rf"(.*\.|){landmark}", name)) is not None
    }
    for prefix in prefixes:
        yield (
            prefix,
            {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)},
        )


def count_blocks(own: Tensors, pattern: str) -> tuple[int, ...]:
    """Return how many blocks each stage has, from a pattern with a group for stage and one for block.

    Examples:
        >>> weight = torch.ones(1)
        >>> count_blocks({"layer1.0.w": weight, "layer1.1.w": weight}, r"layer([0-9]+)[.]([0-9]+)[.]")
        (2,)
    """
    counts: dict[int, int] = {}
    for name in own:
        found = re.match(pattern, name)
        if found:
            stage, block = map(int, found.groups())
            counts[stage] = max(counts.get(stage, 0), block + 1)
    return tuple(counts[stage] for stage in sorted(counts))
