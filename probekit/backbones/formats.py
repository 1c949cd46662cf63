"""Matching a checkpoint's names to a backbone's: by suffix and shape, all or nothing."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from probekit.backbones.architectures import classifier_paths, resize_classifier
from probekit.backbones.branches import Place, choose_place
from probekit.backbones.checkpoint import Checkpoint, StateDict, find_state_dicts
from probekit.backbones.renames import conversions
from probekit.errors import CheckpointCoverage, CheckpointError

log = logging.getLogger(__name__)

# A place with this share of the backbone is a branch that must be whole; below it, names agree by chance.
BRANCH_SHARE = 0.5
# Beside the backbone: heads, projectors, other branches, what self-supervised training keeps.
EXTRA = re.compile(
    r"(fc|heads?|head_dist|classifier|last_linear|linear|last_layer|pooler"
    r"|\w*project(or|ion)\w*|\w*predict(or|ion)\w*|prototypes\w*|queue\w*|decoder\w*|dino\w*|ibot\w*"
    r"|mask_token|masked_embed|\w*(teacher|student|momentum)\w*|(\w+_)?ema|encoder_[qk]|key_\w+|target_\w+"
    r"|online_\w+|query_\w+|knn_\w+|neck|n_averaged|data_preprocessor)"
)
# Barlow Twins normalises what its projector returns by a layer of its own, beside the backbone.
PROJECTOR_NORM = re.compile(r"(module\.)?bn\.\w+")
# Computed from the architecture, or counters: they carry nothing that was learnt.
DERIVED = re.compile(
    r"(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask|mask_token|periods"
    r"|bias_mask|freqs\w*|inv_freq|attention_bias_idxs|rel_pos_idx)"
)
# A head beside these is a projector of self-supervised training, not a classifier.
PROJECTED = re.compile(
    r"(^|[./])(queue|encoder_[qk]|(momentum|base)_encoder|predictor|prototypes|projector|projection_head"
    r"|(momentum|teacher|student)(_backbone)?|key_(backbone|encoder)|target_net|dino_head|dino_loss)([./]|$)"
)


@dataclass(frozen=True)
class Targets:
    """What a backbone asks of a checkpoint: the entries of its state dict, by what is demanded of them.

    Attributes:
        required: Weights and batch-norm statistics: every one must be filled.
        optional: Counters and tables that the architecture fills itself.
        head: The classifier's weights, by the classifier's path.
    """

    required: Mapping[str, torch.Tensor]
    optional: Mapping[str, torch.Tensor]
    head: Mapping[str, Mapping[str, torch.Tensor]]

    @classmethod
    def of(cls, module: nn.Module) -> Targets:
        """Sort a module's state dict."""
        paths = classifier_paths(module)
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        required, optional = {}, {}
        head: dict[str, dict[str, torch.Tensor]] = {path: {} for path in paths}
        for name, tensor in module.state_dict().items():
            path = next((path for path in paths if name.startswith(f"{path}.")), None)
            if path is not None:
                head[path][name] = tensor
            elif name not in parameters and (
                not tensor.is_floating_point() or DERIVED.fullmatch(name.rpartition(".")[2])
            ):
                optional[name] = tensor
            else:
                required[name] = tensor
        return cls(required, optional, head)


def load_weights(
    module: nn.Module,
    opened: Any,  # noqa: ANN401 - whatever the file holds
    *,
    source: str,
    digest: str | None = None,
    arch: str = "",
    branch: str | None = None,
) -> tuple[Checkpoint, bool]:
    """Fill a module from an opened checkpoint, wholly or not at all.

    The prefix is voted on by suffix and shape (every name ``prefix + own name`` of equal shape counts); every
    weight and batch-norm statistic of the backbone must be found under one prefix of one state dict. The
    classifier takes the checkpoint's number of classes, or is set to zero where the checkpoint has none.

    Args:
        module: Filled in place; untouched after an error.
        opened: What ``open_checkpoint`` returned.
        source: The file's path or a word, for the report.
        digest: SHA-256 of the file.
        arch: The architecture's name, for messages and for timm's own renaming.
        branch: ``online``, ``ema`` or a place in the file; None takes what each project evaluates.

    Returns:
        The report, and whether the classifier came with the checkpoint.

    Raises:
        CheckpointCoverage: If an entry of the backbone is missing or has another shape, or the file holds
            weights inside the backbone that the architecture has no place for.
        CheckpointError: If there is no state dict, several branches qualify, or weights are not finite.
    """
    states = find_state_dicts(opened)
    targets = Targets.of(module)
    arch = arch or type(module).__name__
    found = match_weights(module, states, source=source, arch=arch, branch=branch)
    _check_finite(found.place, source)
    filled, has_head, head_notes = _fill(module, found.place, targets)
    report = Checkpoint(
        source,
        digest,
        branch=found.role,
        container=found.place.state.label,
        prefix=found.place.prefix,
        matched=len(filled),
        missing=tuple(name for name in module.state_dict() if name not in filled),
        unexpected=found.unexpected,
        alternatives=found.alternatives,
        notes=(*found.notes, *head_notes),
    )
    if found.unexpected:
        log.warning(
            "%s holds entries that %s has no place for: %s", source, arch, ", ".join(found.unexpected[:10])
        )
    return report, has_head


@dataclass(frozen=True)
class Match:
    """Where in a checkpoint a backbone stands whole.

    Attributes:
        place: The state dict, renamed where that was needed, and the prefix.
        role: ``online``, ``ema`` or empty.
        alternatives: Other branches, in words.
        unexpected: Names nothing was found for, and that no rule expects.
        notes: What was renamed or resampled.
    """

    place: Place
    role: str
    alternatives: tuple[str, ...]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...]


def match_weights(
    module: nn.Module,
    states: Sequence[StateDict],
    *,
    source: str,
    arch: str,
    branch: str | None = None,
) -> Match:
    """Find the branch of a checkpoint that fills a module wholly; names and shapes decide, no value is read.

    Args:
        module: The backbone; its weights may be on the meta device.
        states: The state dicts of the checkpoint.
        source: The file's path or a word, for messages.
        arch: The architecture's name, for messages and for timm's own renaming.
        branch: As in ``load_weights``.

    Raises:
        CheckpointCoverage, CheckpointError: As ``load_weights``.
    """
    if not states:
        raise CheckpointError(
            "a state dict: tensors under names", f"none in {source}", "Save the module's state_dict()"
        )
    targets = Targets.of(module)
    places = [place for state in states for place in vote(state, targets.required)]
    notes: tuple[str, ...] = ()
    if not any(len(place.filled) == len(targets.required) for place in places):
        for converted, words in conversions(states, places, arch, module):
            found = [place for state in converted for place in vote(state, targets.required)]
            whole = [place for place in found if len(place.filled) == len(targets.required)]
            if whole:
                # A damaged branch stays beside the whole ones, so that it is not passed over in silence.
                there = {str(place) for place in whole}
                places, notes = [*whole, *(one for one in found if str(one) not in there)], words
                break
    branches = [place for place in places if len(place.filled) >= BRANCH_SHARE * len(targets.required)]
    if not branches:
        raise _coverage(
            max(places, key=lambda place: place.weight, default=None), states, targets, arch, source
        )
    place, role, alternatives = choose_place(branches, branch, source)
    if len(place.filled) < len(targets.required):
        raise _coverage(place, states, targets, arch, source)
    unexpected = _unexpected(place, branches, targets, module, arch, source)
    return Match(place, role, alternatives, unexpected, notes)


def vote(state: StateDict, required: Mapping[str, torch.Tensor]) -> list[Place]:
    """Find the prefixes under which a state dict holds entries of a backbone, the fullest first.

    Every name that ends in one of the backbone's names, at a dot, votes for what stands before it if the
    shapes are equal. Nothing is ever stripped by a fixed list.

    Examples:
        >>> weight = torch.zeros(4, 3)
        >>> state = StateDict("", {"module.q.fc.weight": weight, "module.k.fc.weight": weight})
        >>> [place.prefix for place in vote(state, {"fc.weight": weight})]
        ['module.q.', 'module.k.']
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, tensor in state.tensors.items():
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            wanted = required.get(name[start:])
            if wanted is not None and _fits(tensor, wanted):
                found[name[:start]].append(name[start:])
    places = []
    for prefix, names in found.items():
        here = set(names)
        weight = sum(required[name].numel() for name in here)
        places.append(Place(state, prefix, tuple(name for name in required if name in here), weight))
    return sorted(places, key=lambda place: -place.weight)


def _fits(tensor: torch.Tensor, wanted: torch.Tensor) -> bool:
    return tensor.shape == wanted.shape and tensor.is_floating_point() == wanted.is_floating_point()


def _unexpected(
    place: Place, branches: Sequence[Place], targets: Targets, module: nn.Module, arch: str, source: str
) -> tuple[str, ...]:
    """Return the names nothing was found for; refuse those that show another architecture.

    Raises:
        CheckpointCoverage: If weights lie inside the backbone's own modules, or continue its numbered blocks:
            a deeper network of the same kind would fill every entry and still be another function.
    """
    prefixes = [other.prefix for other in branches if other.state is place.state and other is not place]
    known = {*targets.required, *targets.optional, *(name for one in targets.head.values() for name in one)}
    patterns = {_numbered(name) for name in targets.required}
    modules = {name for name, _ in module.named_modules() if name}
    foreign, unexpected = [], []
    for name in place.state.tensors:
        inside = name.startswith(place.prefix)
        own = name[len(place.prefix) :] if inside else name
        words = own.split(".")
        if inside and own in known:
            continue
        if any(name.startswith(prefix) and len(prefix) > len(place.prefix) for prefix in prefixes):
            continue
        if not inside and PROJECTOR_NORM.fullmatch(name):
            continue
        if DERIVED.fullmatch(words[-1]) or any(
            EXTRA.fullmatch(word) for word in (words[:1] if inside else words)
        ):
            continue
        parents = {".".join(words[:end]) for end in range(1, len(words))}
        if inside and (parents & modules or _numbered(own) in patterns):
            foreign.append(own)
        else:
            unexpected.append(name)
    if foreign:
        raise CheckpointCoverage(
            f"the weights of {arch}",
            f"{source}, which fills it but holds {len(foreign)} more inside it, such as "
            + ", ".join(foreign[:3]),
            "Name the architecture it was trained with, or write auto",
        )
    return tuple(unexpected)


def _numbered(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _check_finite(place: Place, source: str) -> None:
    bad = [name for name in place.filled if not torch.isfinite(place.tensor(name)).all()]
    if bad:
        raise CheckpointError(
            "finite weights",
            f"NaN or infinity in {len(bad)} entries of {source}: {_listed(bad)}",
            "Use a checkpoint from before training diverged",
        )


def _fill(module: nn.Module, place: Place, targets: Targets) -> tuple[set[str], bool, tuple[str, ...]]:
    """Copy the tensors; return the names filled, whether the classifier is among them, and notes."""
    tensors = place.state.tensors
    filled = set(place.filled)
    filled.update(
        name
        for name, wanted in targets.optional.items()
        if place.prefix + name in tensors and _fits(tensors[place.prefix + name], wanted)
    )
    heads, notes = _fill_head(module, place, targets)
    filled.update(heads)
    state = module.state_dict()
    with torch.no_grad():
        for name in filled:
            state[name].copy_(place.tensor(name))
        for entries in targets.head.values():
            for name in entries:
                if name not in filled:
                    state[name].zero_()
    wanted = [name for entries in targets.head.values() for name in entries]
    return filled, bool(wanted) and all(name in filled for name in wanted), notes


def _fill_head(module: nn.Module, place: Place, targets: Targets) -> tuple[list[str], tuple[str, ...]]:
    """Return the classifier's entries that the checkpoint fills, resizing the classifier to its classes."""
    tensors = place.state.tensors
    projected = bool(PROJECTED.search(str(place)) or any(PROJECTED.search(name) for name in tensors))
    filled, left = [], []
    for path, entries in targets.head.items():
        found = {name: tensors[place.prefix + name] for name in entries if place.prefix + name in tensors}
        beside = [name for name in tensors if name.startswith(f"{place.prefix}{path}.")]
        counts = Counter(len(tensor) for tensor in found.values() if tensor.dim())
        same = len(found) == len(entries) and len(counts) == 1
        same = same and all(tensor.shape[1:] == entries[name].shape[1:] for name, tensor in found.items())
        same = same and all(torch.isfinite(tensor).all() for tensor in found.values())
        if projected or not same:
            left += beside
            continue
        n_classes = next(iter(counts))
        if n_classes != len(next(iter(entries.values()))):
            resize_classifier(module, path, n_classes)
        filled += list(entries)
    why = "a projector" if projected else "its shape or names differ"
    return filled, (f"classifier left out, all zero ({why}: {_listed(left)})",) if left else ()


def _coverage(
    place: Place | None, states: Sequence[StateDict], targets: Targets, arch: str, source: str
) -> CheckpointCoverage:
    """Say what is missing and what has another shape, with examples."""
    names = targets.required
    if place is None:
        examples = [name for state in states for name in state.tensors][:3]
        return CheckpointCoverage(
            f"the {len(names)} entries of {arch}, such as {_listed(list(names))}",
            f"{source}, which holds none of them but {_listed(examples)}",
            "Name the architecture it was trained with, or write auto",
        )
    tensors = place.state.tensors
    lacking = [name for name in names if name not in set(place.filled)]
    shapes = [
        f"{name} {tuple(tensors[place.prefix + name].shape)} instead of {tuple(names[name].shape)}"
        for name in lacking
        if place.prefix + name in tensors and tensors[place.prefix + name].shape != names[name].shape
    ]
    absent = [name for name in lacking if place.prefix + name not in tensors]
    parts = [f"{source}, which fills {len(place.filled)} of them at {place}"]
    parts += [f"{len(absent)} missing, such as {_listed(absent)}"] if absent else []
    parts += [f"{len(shapes)} of another shape, such as {_listed(shapes)}"] if shapes else []
    return CheckpointCoverage(
        f"all {len(names)} entries of {arch}",
        "; ".join(parts),
        "Name the architecture it was trained with, or write auto",
    )


def _listed(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
