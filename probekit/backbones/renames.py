"""Renaming, by explicit rules, the few layouts whose names differ from the backbone's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from probekit.backbones.architectures import timm_filter
from probekit.backbones.branches import Place
from probekit.backbones.checkpoint import StateDict

# Blocks in each stage of EfficientNet-Lite0 (Tan & Le, ICML 2019, table 1: B0's).
LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
# The first stage has no expansion, so that its names start one later.
LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LITE0_REST = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
LITE0_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# What may be resampled to another input size; any other tensor that changes its number of values is another
# architecture's.
POSITIONS = re.compile(r"pos_embed|position|rel_pos|rpb|rope")


def convert(
    states: Sequence[StateDict], places: Sequence[Place], arch: str, module: nn.Module
) -> tuple[list[StateDict], tuple[str, ...]]:
    """Rename state dicts that do not fill the backbone as they are.

    Args:
        states: The state dicts of a checkpoint.
        places: Where the vote found parts of the backbone.
        arch: The architecture's name.
        module: The backbone, for timm's own renaming.

    Returns:
        The renamed state dicts, under their old labels, and what was done, in words.
    """
    if arch.partition(".")[0] == "tf_efficientnet_lite0":
        renamed = [StateDict(one.label, rename_lite0(one.tensors)) for one in states]
        if any(one.tensors for one in renamed):
            return renamed, ("names mapped to timm's by rule (EfficientNet-Lite0)",)
    return _filtered(states, places, arch, module)


def rename_lite0(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the entries of an EfficientNet-Lite0 in the layout of efficientnet-pytorch timm's names.

    Examples:
        >>> list(rename_lite0({"_blocks.2._bn2.weight": torch.ones(24)}))
        ['blocks.1.1.bn3.weight']
    """
    stages = [(stage, block) for stage, count in enumerate(LITE0_BLOCKS) for block in range(count)]
    renamed = {}
    for name, tensor in tensors.items():
        in_block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        at_top = re.fullmatch(r"(\w+)\.(\w+)", name)
        if in_block and int(in_block.group(1)) < len(stages):
            stage, block = stages[int(in_block.group(1))]
            part = (LITE0_REST if stage else LITE0_FIRST).get(in_block.group(2))
            if part:
                renamed[f"blocks.{stage}.{block}.{part}.{in_block.group(3)}"] = tensor
        elif at_top and at_top.group(1) in LITE0_TOP:
            renamed[f"{LITE0_TOP[at_top.group(1)]}.{at_top.group(2)}"] = tensor
    return renamed


def _filtered(
    states: Sequence[StateDict], places: Sequence[Place], arch: str, module: nn.Module
) -> tuple[list[StateDict], tuple[str, ...]]:
    """Apply timm's own renaming of an architecture, and refuse what it resamples beside positions."""
    rename = timm_filter(arch)
    if rename is None:
        return [], ()
    converted, notes = [], []
    for state in states:
        prefixes = [place.prefix for place in places if place.state is state][:2]
        for prefix in dict.fromkeys([*prefixes, ""]):
            own = {
                name[len(prefix) :]: tensor
                for name, tensor in state.tensors.items()
                if name.startswith(prefix)
            }
            try:
                with torch.no_grad():
                    renamed = rename(dict(own), module)
            except (
                KeyError,
                ValueError,
                RuntimeError,
                AttributeError,
                IndexError,
                TypeError,
                AssertionError,
            ):
                continue  # not a layout that timm knows for this architecture
            changed = [
                name
                for name, tensor in renamed.items()
                if name in own and own[name].numel() != tensor.numel()
            ]
            if any(not POSITIONS.search(name) for name in changed):
                continue
            label = "/".join(part for part in (state.label, prefix.rstrip(".")) if part)
            converted.append(StateDict(label, renamed))
            notes += [f"resampled to the input size by timm: {', '.join(changed[:3])}"] if changed else []
    return converted, (f"names mapped by timm's rules for {arch}", *dict.fromkeys(notes))
