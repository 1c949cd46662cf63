"""What a checkpoint holds and how to use it, said without loading it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probekit.backbones.batch_norm import is_folded
from probekit.backbones.checkpoint import StateDict, find_state_dicts, open_checkpoint
from probekit.backbones.families import Family, recognise
from probekit.backbones.findings import Branch, Fit, Held, Inspection
from probekit.backbones.formats import PROJECTED, Targets
from probekit.backbones.inference import Trial, examine, examine_all, propose_architectures
from probekit.backbones.loading import choose_preprocessing
from probekit.backbones.pickles import StandIn
from probekit.backbones.readings import Proposal
from probekit.backbones.spec import ModelSpec
from probekit.errors import CheckpointError

STATISTICS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
# Where a classifier stands in a network that has no name.
CLASSIFIER = re.compile(r"(.*\.)?(fc|classifier|head|linear|last_linear|heads\.head)(\.\d+)?\.weight")


def inspect_checkpoint(path: str | Path, arch: str | None = None) -> Inspection:
    """Say what a checkpoint holds, which architectures it fills, and which words load it.

    Nothing in it is run, no architecture is built with memory, and of a memory-mapped file only batch-norm
    layers are looked at.

    Args:
        path: A file, or a folder as Hugging Face writes it.
        arch: Hold it against this architecture alone, as in the model grammar; None proposes some.

    Raises:
        CheckpointError: If it cannot be opened; the message says what it is instead.
        InputError: If the architecture is unknown.

    Examples:
        >>> import tempfile, torchvision
        >>> file = Path(tempfile.mkdtemp()) / "a.pth"
        >>> torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), file)
        >>> found = inspect_checkpoint(file)
        >>> found.fits[0].arch, found.n_classes
        ('resnet18', 7)
    """
    path = Path(path).expanduser()
    opened = open_checkpoint(path)
    states = find_state_dicts(opened)
    if not states:
        raise CheckpointError(
            "a state dict: tensors under names", f"none in {path}", "Save the module's state_dict()"
        )
    proposals = propose_architectures(opened, states)
    if arch is None:
        trials = examine_all(proposals, states, str(path))
    else:
        trials = [examine(Proposal(arch, arch), states, str(path))]
    whole = [trial for trial in trials if trial.fits]
    chosen = whole[0] if whole else None
    tensors = _backbone(chosen, states)
    learnt = {name: one for name, one in tensors.items() if not STATISTICS.search(name)}
    spec = _spec(chosen, path)
    family = recognise(opened, path)
    preprocessing, preprocessing_source = _preprocessing(chosen, spec, family)
    return Inspection(
        file=path.name,
        states=tuple(map(_held, states)),
        beside=_beside(opened, states),
        family=family.name,
        family_note=family.note,
        looks_like=_describe(proposals[0]) if proposals else "",
        fits=tuple(map(_fit, whole or trials)),
        branches=_branches(chosen),
        choice=chosen.choice if chosen else "",
        parameters=sum(one.numel() for one in learnt.values()),
        dtypes=tuple(_dtypes(learnt)),
        n_classes=_n_classes(chosen, tensors),
        folded=_folded(tensors),
        preprocessing=preprocessing,
        preprocessing_source=preprocessing_source,
        notes=_notes(chosen, spec, arch),
        words=str(spec) if "," not in str(path) and (chosen or arch is None) else "",
    )


def _held(state: StateDict) -> Held:
    names = list(state.tensors)
    words = [name.split(".")[:-1] for name in names]
    shared = list(takewhile(lambda level: len(set(level)) == 1, zip(*words, strict=False)))
    prefix = "".join(f"{level[0]}." for level in shared)
    parts = Counter(name[len(prefix) :].partition(".")[0] for name in names)
    numbers = sum(one.numel() for one in state.tensors.values())
    return Held(state.label, len(names), numbers, _dtypes(state.tensors), prefix, dict(parts))


def _dtypes(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    counts = Counter(str(one.dtype).removeprefix("torch.") for one in tensors.values())
    return dict(counts.most_common())


def _beside(opened: Any, states: Sequence[StateDict]) -> tuple[str, ...]:  # noqa: ANN401 - whatever it holds
    """Name what a file holds at its top that is no state dict, with its kind where that is left out."""
    if not isinstance(opened, Mapping) or any(not state.label for state in states):
        return ()
    inside = {state.label.partition("/")[0] for state in states}
    return tuple(
        f"{key} ({value.name})" if isinstance(value, StandIn) and value.name else str(key)
        for key, value in opened.items()
        if key not in inside
    )


def _backbone(chosen: Trial | None, states: Sequence[StateDict]) -> dict[str, torch.Tensor]:
    """Return the tensors of the branch that is loaded, with values; else those of the largest state dict."""
    if chosen is None or chosen.match is None:
        return dict(max(states, key=lambda state: sum(one.numel() for one in state.tensors.values())).tensors)
    place = chosen.match.place
    # A renamed state dict bears its prefix in its label.
    whole = f"{place.state.label}/{place.prefix}".strip("/")
    inside = [one for one in states if whole.startswith(one.label)]
    state = max(inside, key=lambda one: len(one.label), default=states[0])
    prefix = whole[len(state.label) :].strip("/.")
    prefix = f"{prefix}." if prefix else ""
    return {name[len(prefix) :]: one for name, one in state.tensors.items() if name.startswith(prefix)}


def _fit(trial: Trial) -> Fit:
    proposal = trial.proposal
    notes = (*proposal.notes, *(trial.match.notes if trial.match else ()))
    entries = len(Targets.of(trial.module).required) if trial.module is not None else 0
    kind, facts = proposal.kind, dict(proposal.facts)
    return Fit(proposal.arch, kind, facts, proposal.size, trial.fits, entries, trial.lacking, notes)


def _describe(proposal: Proposal) -> str:
    said = [
        name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value}"
        for name, value in proposal.facts.items()
        if value and name != "size"
    ]
    return f"{proposal.kind} ({', '.join(said)})" if said else proposal.kind


def _branches(chosen: Trial | None) -> tuple[Branch, ...]:
    if chosen is None or chosen.match is None:
        return ()
    found = [Branch(str(chosen.match.place), chosen.match.role, True)]
    for text in chosen.match.alternatives:
        said = re.fullmatch(r"(online|ema) \((.*)\)", text)
        found.append(Branch(said.group(2), said.group(1), False) if said else Branch(text, "", False))
    return tuple(found)


def _n_classes(chosen: Trial | None, tensors: Mapping[str, torch.Tensor]) -> int | None:
    """Return the outputs of the classifier; None without one, or where a projector stands in its place."""
    if chosen is None or chosen.match is None or chosen.module is None:
        heads = [one for name, one in tensors.items() if CLASSIFIER.fullmatch(name) and one.dim() == 2]
        return len(heads[-1]) if heads and not any(map(PROJECTED.search, tensors)) else None
    place = chosen.match.place
    if PROJECTED.search(str(place)) or any(map(PROJECTED.search, place.state.tensors)):
        return None
    for entries in Targets.of(chosen.module).head.values():
        for name, wanted in entries.items():
            found = place.state.tensors.get(place.prefix + name)
            if found is not None and found.dim() > 1 and found.shape[1:] == wanted.shape[1:]:
                return len(found)
    return None


def _folded(tensors: Mapping[str, torch.Tensor]) -> bool | None:
    """Say whether batch norm is folded: from its values, or where there are none from names."""
    layers = nn.ModuleDict()
    for name in tensors:
        path, _, last = name.rpartition(".")
        own = {key: tensors.get(f"{path}.{key}") for key in ("weight", "bias", "running_mean", "running_var")}
        shapes = {None if one is None else one.shape for one in own.values()}
        if last != "running_mean" or len(shapes) != 1 or None in shapes:
            continue
        layer = nn.BatchNorm2d(len(tensors[name]))
        layer.load_state_dict({key: one.float() for key, one in own.items() if one is not None}, strict=False)
        layers[path.replace(".", "/")] = layer
    if layers:
        return is_folded(layers)
    return True if any(re.search(r"(^|\.)bn\d*\.bias$", name) for name in tensors) else None


def _spec(chosen: Trial | None, path: Path) -> ModelSpec:
    """Return the words that load the checkpoint, with a function to write where no architecture is known."""
    name = re.sub(r"\W+", "_", path.name.partition(".")[0]).strip("_") or "model"
    if chosen is None:
        return ModelSpec(name, "file.py:function", str(path))
    keys: dict[str, Any] = {"size": chosen.proposal.size} if chosen.proposal.size else {}
    if chosen.choice:
        keys["branch"] = "online"
    return ModelSpec(name, chosen.proposal.arch, str(path), keys)


def _preprocessing(chosen: Trial | None, spec: ModelSpec, family: Family) -> tuple[str, str]:
    """Return what loading would choose, and where it is known from."""
    if chosen is None or chosen.module is None:
        return "", ""
    found, notes = choose_preprocessing(spec, spec.arch, chosen.module, family)
    return str(found), "; ".join(notes) or f"the setting of {spec.arch}"


def _notes(chosen: Trial | None, spec: ModelSpec, arch: str | None) -> tuple[str, ...]:
    notes: list[str] = []
    if chosen is None and arch is None:
        notes.append(
            "write a function that returns the backbone, an nn.Module with these names, and hold the file "
            f"against it: probekit inspect {spec.checkpoint} --arch file.py:function"
        )
    if chosen is not None and chosen.match is not None and chosen.match.unexpected:
        left = chosen.match.unexpected
        notes.append(f"{len(left)} entries are not used, such as {', '.join(left[:3])}")
    if "," in spec.checkpoint:
        notes.append(f"a path with a comma goes into YAML, under models: {json.dumps(spec.mapping())}")
    return tuple(notes)
