"""Renaming, by explicit rules, the few layouts whose names differ from the backbone's."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout

import torch
from torch import nn

from probekit.backbones.architectures import timm_filter
from probekit.backbones.branches import Place
from probekit.backbones.checkpoint import StateDict
from probekit.backbones.layouts import apply_layouts

Rename = Callable[[dict[str, torch.Tensor], nn.Module], dict[str, torch.Tensor]]

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


def conversions(
    states: Sequence[StateDict], places: Sequence[Place], arch: str, module: nn.Module
) -> Iterator[tuple[list[StateDict], tuple[str, ...]]]:
    """Yield ways to rename state dicts that do not fill the backbone as they are, the plainest first.

    Args:
        states: The state dicts of a checkpoint.
        places: Where the vote found parts of the backbone.
        arch: The architecture's name.
        module: The backbone, for timm's own renaming.

    Yields:
        The renamed state dicts, under labels that hold the prefix they stood at, and what was done, in words.
    """
    if arch.partition(".")[0] == "tf_efficientnet_lite0":
        renamed = [StateDict(one.label, rename_lite0(one.tensors)) for one in states]
        if any(one.tensors for one in renamed):
            yield renamed, ("names mapped to timm's by rule (EfficientNet-Lite0)",)
    laid_out = [
        (name, StateDict(_joined(state.label, prefix), own))
        for state in states
        for name, prefix, own in apply_layouts(state.tensors)
    ]
    words = tuple(
        f"names mapped to timm's by rule ({name})" for name in dict.fromkeys(n for n, _ in laid_out)
    )
    if laid_out:
        yield [state for _, state in laid_out], words
    rename = _find_filter(arch, module)
    if rename is not None:
        bases = [
            _below(state, prefix)
            for state in states
            for prefix in dict.fromkeys([*[place.prefix for place in places if place.state is state][:2], ""])
        ]
        yield _filtered(bases, rename, arch, module)
        converted, notes = _filtered([state for _, state in laid_out], rename, arch, module)
        yield converted, (*words, *notes)


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
    states: Sequence[StateDict], rename: Rename, arch: str, module: nn.Module
) -> tuple[list[StateDict], tuple[str, ...]]:
    """Apply timm's own renaming, and refuse what drops biases or resamples anything but positions."""
    converted, notes = [], []
    for state in states:
        try:
            with torch.no_grad(), redirect_stdout(io.StringIO()):  # it prints what it tries
                renamed = rename(dict(state.tensors), module)
        except (KeyError, ValueError, RuntimeError, AttributeError, IndexError, TypeError, AssertionError):
            continue  # not a layout that timm knows for this architecture
        # One that is passed on untouched may take another's name, as Swin's downsampling does.
        untouched = {id(tensor) for tensor in state.tensors.values()}
        changed = [
            name
            for name, tensor in renamed.items()
            if name in state.tensors
            and id(tensor) not in untouched
            and state.tensors[name].numel() != tensor.numel()
        ]
        if any(not POSITIONS.search(name) for name in changed) or _drops_biases(state, renamed):
            continue
        converted.append(StateDict(state.label, renamed))
        notes += [
            f"resampled to the input size by timm: {name} {_size(state.tensors[name])} to {_size(new)}"
            for name, new in renamed.items()
            if name in changed[:3]
        ]
    return converted, (f"names mapped by timm's rules for {arch}", *dict.fromkeys(notes))


def _drops_biases(state: StateDict, renamed: Mapping[str, torch.Tensor]) -> bool:
    """Whether biases of queries, keys and values that are not zero are left out.

    timm has DINOv3 with and without them; some of its checkpoints hold zeros.
    """
    return any(
        name.endswith(".qkv.bias")
        and name not in renamed
        and not {name.replace("qkv.bias", "q_bias"), name.replace("qkv.bias", "q.bias")} & renamed.keys()
        and bool(tensor.any())
        for name, tensor in state.tensors.items()
    )


def _find_filter(arch: str, module: nn.Module) -> Rename | None:
    """Return timm's function that renames checkpoints: of the architecture, else of the network's class."""
    named: Rename | None = timm_filter(arch)
    if named is not None:
        return named
    kind = type(module)
    source = sys.modules.get(kind.__module__) if kind.__module__.startswith("timm.models.") else None
    found: Rename | None = getattr(source, "checkpoint_filter_fn", None)
    return found


def _below(state: StateDict, prefix: str) -> StateDict:
    own = {name[len(prefix) :]: tensor for name, tensor in state.tensors.items() if name.startswith(prefix)}
    return StateDict(_joined(state.label, prefix), own)


def _joined(label: str, prefix: str) -> str:
    return "/".join(part for part in (label, prefix.rstrip(".")) if part)


def _size(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape))
