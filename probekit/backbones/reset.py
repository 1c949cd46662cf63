"""Weights drawn anew: of a whole architecture, as for random-init controls, or of blocks of a backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from probekit.backbones.architectures import build, classifier_paths, seeded
from probekit.backbones.backbone import Backbone, copy_module
from probekit.backbones.checkpoint import Checkpoint
from probekit.backbones.spec import function_parts, parse_model
from probekit.errors import CheckpointError, InputError, near_names
from probekit.seeds import random_stream

# What a block is reset to: the draw of a random-init control; what the architecture starts from; normal draws
# with each tensor's mean and deviation; its own values in another order; the weights of another backbone.
MODES = ("random", "arch_init", "stats", "shuffled", "copied")
# What becomes of norm layers inside the blocks.
NORMS = ("reset", "keep")
STREAM = "random init"
# Gains of residual branches by name: LayerScale, ConvNeXt, CaiT, ResMLP, PoolFormer, NFNet, ReZero, SkipInit.
GAIN = re.compile(
    r"(gamma|ls|layer_?scale|res_?scale|scale|alpha|gain|skipinit_gain|res_?weight|rezero)(_?\w*)"
)
# The largest constant at which training switches a branch off at its start (BEiT's LayerScale: 0.1).
SMALL = 0.1 + 1e-6


def draw_random(
    arch: str | nn.Module, seed: int, *, size: int | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """Draw the weights of an architecture anew.

    It is the raw initial draw, except that gains which training starts at or near zero (the last batch norm
    of timm's residual blocks, LayerScale, SkipInit) are set to 1: else every residual branch would be off.
    Batch-norm statistics are those of no data; see ``batch_norm.recalibrate_batch_norm``.

    Args:
        arch: An architecture in the words of the grammar, or a module, which is copied and each of whose
            layers is drawn anew.
        seed: Which draw; the global random state is neither used nor changed.
        size: Side of the input in pixels, for architectures that are built for one size.

    Returns:
        The module, in eval mode, and notes on what was done.

    Raises:
        CheckpointError: If weights stay the same between draws: they cannot be drawn anew.
        InputError: If the architecture is unknown.

    Examples:
        >>> one, other = (draw_random("cifar_resnet20", seed)[0].conv1.weight for seed in (0, 1))
        >>> bool((one != other).all())
        True
    """
    name = type(arch).__name__ if isinstance(arch, nn.Module) else arch
    module = _draw(arch, seed, size)
    switched = switch_on(module)
    notes = [f"raw draw {seed} of {name}"]
    if switched:
        notes.append(f"{len(switched)} residual gains set to 1, such as {', '.join(switched[:2])}")
    return module.eval(), tuple(notes)


def random_control(backbone: Backbone, name: str, seed: int) -> Backbone:
    """Return a random draw of a backbone's architecture, read and prepared as the backbone is.

    Args:
        backbone: The model to be controlled.
        name: The control's name in tables.
        seed: Which draw.

    Raises:
        CheckpointError: If a module made in Python holds weights that none of its layers can draw anew.
    """
    if backbone.spec is not None:
        spec = parse_model(backbone.spec)
        module, notes = draw_random(
            spec.arch if spec.arch != "auto" else backbone.arch, seed, size=backbone.preprocessing.size
        )
    else:
        module, notes = draw_random(backbone.module, seed)
    return replace(
        backbone,
        name=name,
        module=module.to(backbone.device),
        checkpoint=Checkpoint(f"random@{seed}", notes=notes),
        has_head=False,
        spec=None,
        cache={},
    )


def reset(
    backbone: Backbone,
    blocks: str | Sequence[str],
    *,
    mode: str = "random",
    seed: int = 0,
    norms: str = "reset",
    source: Backbone | None = None,
) -> Backbone:
    """Return a copy of a backbone in which the weights of some blocks are replaced.

    All other weights and statistics stay what they were, bit for bit. Batch norm inside the blocks has the
    statistics of no data, mean 0 and variance 1, as any draw has; see ``recalibrate_batch_norm``, whose
    ``within`` estimates theirs alone. The same seed gives the same weights whichever blocks are named.

    Args:
        backbone: Left as it is.
        blocks: Paths of modules, of which ``list_layers`` has those of its blocks, or names of parameters.
        mode: ``random``, the draw of a random-init control, whose gains at or near zero are set to 1;
            ``arch_init``, what the architecture starts training from: residual branches may be off;
            ``stats``, normal draws with mean and standard deviation of each weight tensor as it was, as in
            Matsoukas et al., What Makes Transfer Learning Work for Medical Images (CVPR 2022), section 3;
            ``shuffled``, each tensor's own values in another order; or ``copied``, the weights and
            statistics of ``source``: step 0 of the same pretraining, a later step, a finetuned backbone.
        seed: Which draw; ``random`` and ``arch_init`` draw from the same stream as ``random@SEED``.
        norms: What becomes of norm layers inside the blocks: ``reset``, as the mode has it (gain 1, shift 0
            under ``stats``); or ``keep``, gains, shifts and statistics as they were.
        source: The backbone whose weights are copied, of the same architecture.

    Raises:
        InputError: If a path names no module or parameter, or the classifier is in it or around it; the
            mode is unknown; or ``source`` is missing, has other weights, or comes with another mode.
        CheckpointError: If a module made in Python holds weights that none of its layers can draw anew.

    Examples:
        >>> from probekit.backbones.loading import load_backbone
        >>> backbone = load_backbone("cifar_resnet20:random@7")
        >>> found, drawn = reset(backbone, "layer3.2", seed=1), load_backbone("cifar_resnet20:random@1")
        >>> blocks = zip(found.module.layer3, drawn.module.layer3)
        >>> [torch.equal(one.conv1.weight, other.conv1.weight) for one, other in blocks]
        [False, False, True]
    """
    for what, value, known in (("mode", mode, MODES), ("norms", norms, NORMS)):
        if value not in known:
            raise InputError(f"a {what} among {', '.join(known)}", repr(value), f"{known[0]} is the default")
    paths = list(dict.fromkeys([blocks] if isinstance(blocks, str) else blocks))
    _check_blocks(backbone, paths)
    _check_source(backbone, mode, source)
    module = copy_module(backbone.module)
    kept = _norm_tensors(module) if norms == "keep" else set()
    names = [
        name
        for name in module.state_dict()
        if name not in kept and any(f"{name}.".startswith(f"{path}.") for path in paths)
    ]
    values, drawn = module.state_dict(), _replacement(backbone, mode, seed, source, names)
    with torch.no_grad():
        for name in names:
            values[name].copy_(drawn[name])
    several = f"{len(paths)} blocks, {paths[0]} to {paths[-1]}," if len(paths) > 1 else paths[0]
    return backbone.edited(module, f"{several} {_said(mode, seed, source, norms)}")


def _replacement(
    backbone: Backbone, mode: str, seed: int, source: Backbone | None, names: Sequence[str]
) -> Mapping[str, torch.Tensor]:
    """Return what the named tensors become."""
    if mode == "copied":
        assert source is not None
        return source.module.state_dict()
    if mode in ("random", "arch_init"):
        return _like(backbone, mode, seed).state_dict()
    state, norm_tensors = backbone.module.state_dict(), _norm_tensors(backbone.module)
    learnt = {name for name, _ in backbone.module.named_parameters()}
    found = {}
    for name in names:
        if name not in learnt | norm_tensors:
            # Tables of positions and the like are no weights.
            found[name] = state[name]
        elif name in norm_tensors and (mode == "stats" or "running_" in name or "num_batches" in name):
            # Gain 1 and shift 0; the statistics of no data.
            one = name.rpartition(".")[2] in ("weight", "running_var")
            found[name] = torch.full_like(state[name], 1 if one else 0)
        else:
            found[name] = _redrawn(state[name], mode, random_stream(f"{mode} reset", name, seed))
    return found


def _redrawn(value: torch.Tensor, mode: str, draws: np.random.Generator) -> torch.Tensor:
    """Return a tensor of the same numbers in another order, or of normal draws with their statistics."""
    held = value.detach().cpu().double().numpy()
    if mode == "shuffled":
        made = draws.permutation(held.ravel()).reshape(held.shape)
    else:
        made = held.mean() + held.std() * draws.standard_normal(held.shape)
    return torch.from_numpy(np.asarray(made)).to(value)


def _norm_tensors(module: nn.Module) -> set[str]:
    """Return the names of weights and statistics of norm layers."""
    return {
        f"{path}.{name}" if path else name
        for path, one in module.named_modules()
        if _is_norm(one)
        for name in one.state_dict()
    }


def _is_norm(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return "norm" in name and "responsenorm" not in name


def _said(mode: str, seed: int, source: Backbone | None, norms: str) -> str:
    """Return what the checkpoint report says of a reset."""
    kept = ", norm layers kept" if norms == "keep" else ""
    if mode == "copied":
        assert source is not None
        return f"copied from {source.name}, weights {source.weights[:12]}{kept}"
    if mode in ("random", "arch_init"):
        kind = "draw" if mode == "random" else "initial draw"
        return f"reset to the weights of {kind} {seed}, {mode}{kept}"
    how = "drawn with each tensor's mean and deviation" if mode == "stats" else "shuffled within each tensor"
    return f"{how}, seed {seed}, {mode}{kept}"


def _check_source(backbone: Backbone, mode: str, source: Backbone | None) -> None:
    """Refuse a source that does not fit, is missing, or would not be used."""
    if (source is None) == (mode == "copied"):
        came = "none" if source is None else source.name
        raise InputError("a source with mode copied, and with no other", f"{mode} and {came}", "Change one")
    if source is None:
        return
    own, other = (
        {n: tuple(v.shape) for n, v in one.module.state_dict().items()} for one in (backbone, source)
    )
    heads = {*classifier_paths(backbone.module), *classifier_paths(source.module)}
    for names in (own, other):
        for name in [name for name in names if any(name.startswith(f"{head}.") for head in heads)]:
            del names[name]
    if own != other:
        wrong = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
        raise InputError(
            f"a source with the weights of {backbone.arch}", f"{source.arch}, which differs in {wrong[0]}",
            "Copy from the same architecture",
        )  # fmt: skip


def switch_on(module: nn.Module) -> list[str]:
    """Set residual gains that start at or near zero to 1, in place, and return their names.

    These are norm layers whose weights are all zero, and gains by name (``gamma``, ``ls1``, ``layer_scale``,
    ``skipinit_gain``, …) that hold one value of size 0.1 or less throughout. The classifier is left alone.
    """
    heads = classifier_paths(module)
    switched = []
    for path, owner in module.named_modules():
        is_norm = _is_norm(owner)
        for leaf, parameter in owner.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            if path in heads or not _scales_channels(parameter):
                continue
            first = float(parameter.detach().flatten()[0])
            if not bool((parameter == first).all()):
                continue
            if (is_norm and leaf == "weight" and first == 0) or (
                GAIN.fullmatch(leaf) and abs(first) <= SMALL
            ):
                with torch.no_grad():
                    parameter.fill_(1)
                switched.append(name)
    return switched


def _like(backbone: Backbone, mode: str, seed: int) -> nn.Module:
    """Draw a backbone's architecture anew."""
    arch: str | nn.Module = backbone.module
    size = None
    if backbone.spec is not None:
        words = parse_model(backbone.spec).arch
        arch, size = words if words != "auto" else backbone.arch, backbone.preprocessing.size
    if mode == "random":
        return draw_random(arch, seed, size=size)[0]
    return _draw(arch, seed, size, switched=False).eval()


def _check_blocks(backbone: Backbone, paths: Sequence[str]) -> None:
    """Refuse paths that are no modules, or that hold the classifier."""
    if not paths:
        raise InputError("at least one block", "none", "Name modules, as `list_layers` does")
    known = [path for path, _ in backbone.module.named_modules() if path]
    known += [path for path, _ in backbone.module.named_parameters()]
    heads = {*classifier_paths(backbone.module), *([backbone.classifier] if backbone.classifier else [])}
    for path in paths:
        if path not in known:
            raise InputError("the path of a block", repr(path), f"The nearest are {near_names(path, known)}")
        inside = [head for head in heads if f"{head}.".startswith(f"{path}.") or path.startswith(f"{head}.")]
        if inside:
            raise InputError(
                "a block without the classifier",
                f"{path}, which holds {inside[0]}",
                "Name blocks of the body",
            )


def _draw(arch: str | nn.Module, seed: int, size: int | None, *, switched: bool = True) -> nn.Module:
    """Draw the weights of an architecture, its gains as they come.

    Args:
        arch: In words, or a module, which is copied.
        seed: Which draw.
        size: Side of the input in pixels.
        switched: Set gains of a module that none of its layers draws to 1; else they are refused unless
            they are constant.
    """
    if isinstance(arch, nn.Module):
        return _redraw(arch, type(arch).__name__, seed, switched=switched)
    with seeded(STREAM, arch, seed):
        module = build(arch, size=size)
    if function_parts(arch) is not None:
        with seeded(STREAM, arch, seed + 1):
            _check_drawn(module, build(arch, size=size), arch)
    return module


def _redraw(original: nn.Module, name: str, seed: int, *, switched: bool) -> nn.Module:
    """Copy a module and have each of its layers draw its own weights."""
    module = copy_module(original)
    with seeded(STREAM, name, seed), torch.no_grad():
        for one in module.modules():
            for method in ("reset_parameters", "_reset_parameters"):
                draw = getattr(one, method, None)
                if callable(draw):
                    draw()
        whole = getattr(module, "init_weights", None)
        if callable(whole):
            whole()  # timm's own scheme, class tokens and position embeddings included
        before = dict(original.named_parameters())
        for path, parameter in module.named_parameters() if switched else ():
            undrawn = torch.equal(parameter, before[path])
            if undrawn and GAIN.fullmatch(path.rpartition(".")[2]) and _scales_channels(parameter):
                parameter.fill_(1)
    _check_drawn(original, module, name)
    return module


def _scales_channels(parameter: torch.Tensor) -> bool:
    """Whether a parameter may be a gain: not empty, and at most one of its axes is longer than 1."""
    return parameter.numel() > 0 and max(parameter.shape, default=1) == parameter.numel()


def _check_drawn(one: nn.Module, other: nn.Module, name: str) -> None:
    """Refuse two draws that share values other than constants: those were loaded, not drawn."""
    others = dict(other.named_parameters())
    same = [
        path
        for path, value in one.named_parameters()
        if value.numel() > 1
        and path in others
        and torch.equal(value.detach().cpu(), others[path].detach().cpu())
        and bool((value != value.flatten()[0]).any())
    ]
    if same:
        raise CheckpointError(
            f"weights of {name} that can be drawn anew",
            f"{len(same)} that stay the same, such as {', '.join(same[:3])}",
            "Give a function that builds the architecture without loading weights: file.py:function",
        )
