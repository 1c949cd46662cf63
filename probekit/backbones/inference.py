"""Which architecture a checkpoint was made with, read from its names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchvision
from torch import nn

from probekit.backbones.architectures import build, is_named, seeded, timm_settings
from probekit.backbones.checkpoint import StateDict, find_state_dicts
from probekit.backbones.families import recognise
from probekit.backbones.formats import Match, match_weights
from probekit.backbones.reading_convnets import (
    read_convnext,
    read_efficientnet,
    read_resnet,
    read_torchvision,
)
from probekit.backbones.reading_transformers import read_swin, read_vit
from probekit.backbones.readings import Proposal
from probekit.errors import CheckpointCoverage, CheckpointError, InputError

TORCHVISION_MODELS = "torchvision.models."
READERS = (read_resnet, read_vit, read_swin, read_convnext, read_efficientnet, read_torchvision)


def infer_architecture(opened: Any, source: str) -> str:  # noqa: ANN401 - whatever the file holds
    """Return what a checkpoint looks like: the first architecture that it fills, else the one it names.

    Args:
        opened: What ``open_checkpoint`` returned.
        source: What to call the file in messages.

    Raises:
        CheckpointError: If nothing known is recognised.

    Examples:
        >>> with torch.device("meta"):
        ...     weights = build("resnet18").state_dict()
        >>> infer_architecture({"state_dict": weights}, "a.pth")
        'resnet18'
    """
    states = find_state_dicts(opened)
    proposals = propose_architectures(opened, states)
    for proposal in proposals:
        if examine_all([proposal], states, source)[0].fits:
            return proposal.arch
    said = _said(opened)
    if said is not None:
        return said  # loading says what it lacks
    seen = ", ".join(dict.fromkeys(proposal.kind for proposal in proposals))
    raise CheckpointError(
        "a checkpoint of a known architecture where the architecture is auto",
        f"{source}, which looks like {f'{seen}, but does not fill it' if seen else 'none of them'}",
        "Name its architecture, ARCH:CHECKPOINT, or write a function that builds it, file.py:function",
    )


def propose_architectures(
    opened: Any,  # noqa: ANN401 - whatever the file holds
    states: Sequence[StateDict],
) -> list[Proposal]:
    """Return the architectures a checkpoint may have been made with, the likeliest first.

    Args:
        opened: What ``open_checkpoint`` returned.
        states: Its state dicts.
    """
    said = _said(opened)
    read = [proposal for state in states for reader in READERS for proposal in reader(state.tensors)]
    named = [Proposal(said, said, notes=("the file names it",))] if said else []
    named += [_sized(proposal) for proposal in read if _buildable(proposal.arch)]
    if recognise(opened).name == "solo-learn":
        named.sort(key=lambda proposal: not proposal.arch.endswith("_pad2"))
    exact = {proposal.kind for proposal in named if proposal.size is None}
    found: dict[str, Proposal] = {}
    for proposal in named:
        if proposal.size is None or proposal.kind not in exact:
            found.setdefault(proposal.arch, proposal)
    return list(found.values()) or [replace(proposal, arch="") for proposal in read[:1]]


def _sized(proposal: Proposal) -> Proposal:
    """Leave out the size where the architecture is built for it, or for any."""
    settings = timm_settings(proposal.arch) or {}
    own = (
        settings.get("input_size", (3, proposal.size))[1]
        if settings.get("fixed_input_size")
        else proposal.size
    )
    return replace(proposal, size=None) if own == proposal.size else proposal


@dataclass(frozen=True)
class Trial:
    """An architecture held against a checkpoint.

    Attributes:
        proposal: The architecture.
        module: Built on the meta device; None where it could not be built.
        match: Where it stands whole; None where it does not, or a branch must be chosen.
        choice: Which branches there are, where the user must choose.
        lacking: What it lacks, else empty.
    """

    proposal: Proposal
    module: nn.Module | None = None
    match: Match | None = None
    choice: str = ""
    lacking: str = ""

    @property
    def fits(self) -> bool:
        """Whether the checkpoint fills it wholly."""
        return self.match is not None or bool(self.choice)


def examine_all(proposals: Sequence[Proposal], states: Sequence[StateDict], source: str) -> list[Trial]:
    """Hold architectures against a checkpoint; one that cannot be built in the size read lacks everything."""
    trials = []
    for proposal in proposals:
        try:
            trials.append(examine(proposal, states, source))
        except InputError as error:
            trials.append(Trial(proposal, lacking=str(error)))
    return trials


def examine(proposal: Proposal, states: Sequence[StateDict], source: str) -> Trial:
    """Hold an architecture against a checkpoint: names and shapes, on the meta device, without memory.

    Raises:
        InputError: If it cannot be built.
    """
    if not proposal.arch:
        return Trial(proposal, lacking="no architecture of that shape has a name")
    module = build_hollow(proposal.arch, proposal.size)
    try:
        found = match_hollow(module, states, source=source, arch=proposal.arch)
    except CheckpointCoverage as error:
        return Trial(proposal, module, lacking=error.came)
    except CheckpointError as error:
        return Trial(proposal, module, choice=f"{error.came}. {error.todo}")
    return Trial(proposal, module, found)


def build_hollow(arch: str, size: int | None = None) -> nn.Module:
    """Build an architecture on the meta device; one whose code needs values there, on the CPU."""
    try:
        with seeded("architecture", arch), torch.device("meta"):
            return _build(arch, size)
    except (NotImplementedError, RuntimeError):
        with seeded("architecture", arch):
            return _build(arch, size)


def _build(arch: str, size: int | None) -> nn.Module:
    """Build an architecture; torchvision's without the announcement that precedes a user's code."""
    if arch.startswith(TORCHVISION_MODELS):
        module: nn.Module = torchvision.models.get_model(arch.removeprefix(TORCHVISION_MODELS), weights=None)
        return module
    return build(arch, size=size)


def match_hollow(
    module: nn.Module, states: Sequence[StateDict], *, source: str, arch: str, branch: str | None = None
) -> Match:
    """Find where a module stands in a checkpoint from names and shapes; values are read only if they decide.

    Raises:
        CheckpointError: As ``match_weights``.
    """
    hollow = [
        StateDict(state.label, {name: tensor.to("meta") for name, tensor in state.tensors.items()})
        for state in states
    ]
    try:
        return match_weights(module, hollow, source=source, arch=arch, branch=branch)
    except NotImplementedError:
        # Which of several equal copies is meant, and some renamings, depend on the values.
        return match_weights(module, states, source=source, arch=arch, branch=branch)


def _said(opened: Any) -> str | None:  # noqa: ANN401 - whatever the file holds
    """Return the architecture that a file names itself, as timm's and MoCo's do."""
    if not isinstance(opened, Mapping):
        return None
    config = opened.get("config")
    for word in (opened.get("arch"), config.get("architecture") if isinstance(config, Mapping) else None):
        if isinstance(word, str) and is_named(word):
            return word
    return None


def _buildable(arch: str) -> bool:
    return is_named(arch) or arch.startswith(TORCHVISION_MODELS)
