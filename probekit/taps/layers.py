"""The layer table of a backbone, and the words by which its taps are asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import nn

from probekit.backbones.levels import LEVELS
from probekit.errors import InputError, TapDidNotFire, TapError, TapFiredManyTimes, TapNotFound, near_names
from probekit.taps.facts import Block, LayerFacts, layer_facts
from probekit.taps.readout import (
    UNKNOWN,
    Layout,
    check_readout,
    default_readout,
    readout_axes,
    readout_shape,
)
from probekit.taps.structure import ancestors, is_within
from probekit.taps.tap import AUTO, Tap, parse_tap
from probekit.taps.trace import TRACE_IMAGES, Value

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone

PRESETS = ("blocks", "stages", "levels", *LEVELS, "penultimate")


def list_layers(backbone: Backbone) -> pd.DataFrame:
    """List every module of a backbone in the order in which they return, from one recorded forward.

    Returns:
        One row per module path, also the further names of a module registered twice; those never called
        stand last:

        - ``path``, ``type``, ``calls`` (per forward pass);
        - ``block``, ``level``, ``depth`` (0 to 1), ``stride`` (input pixels per position) of its block;
        - ``shape`` of its first output per image, ``layout`` (``NC``, ``NCHW``, ``NHWC``, ``NLC``,
          ``unknown``), default ``readout``; all empty where it returns no single tensor;
        - ``parameters``, those of its children included; ``flops_share`` of the whole forward (matrix
          products, convolutions, attention);
        - ``raw_bytes``, ``readout_bytes``: memory per image of the output, and after the default readout.

    Raises:
        TapError: If the module is compiled.
    """
    facts = layer_facts(backbone)
    modules = dict(backbone.module.named_modules(remove_duplicate=False))
    paths = [path for path in modules if path]
    never = float("inf")
    paths.sort(key=lambda path: facts.trace.calls[path][0].ended if facts.trace.calls[path] else never)
    return pd.DataFrame([_row(facts, path, modules[path]) for path in paths], columns=_COLUMNS)


_COLUMNS = [
    "path", "type", "calls", "block", "level", "depth", "stride", "shape", "layout", "readout",
    "parameters", "flops_share", "raw_bytes", "readout_bytes",
]  # fmt: skip


def _row(facts: LayerFacts, path: str, module: nn.Module) -> dict[str, Any]:
    calls = facts.trace.calls[path]
    row: dict[str, Any] = {
        "path": path,
        "type": type(module).__name__,
        "calls": len(calls),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "flops_share": sum(call.flops for call in calls) / max(facts.trace.flops, 1),
        "block": "", "level": "", "depth": float("nan"), "stride": float("nan"),
        "shape": None, "layout": "", "readout": "", "raw_bytes": 0, "readout_bytes": 0,
    }  # fmt: skip
    tap = Tap(path)
    block = facts.block_of(tap) if calls else None
    if block is not None:
        row |= {"block": block.path, "level": block.level, "depth": block.depth, "stride": block.stride}
    entries = calls[0].returned.entries if calls else {}
    if len(entries) == 1:
        tap = Tap(path, element=next(iter(entries)))
        row |= _output_facts(facts.layout(tap), next(iter(entries.values())))
    return row


def _output_facts(layout: Layout, value: Value) -> dict[str, Any]:
    shape = value.shape[1:]
    facts: dict[str, Any] = {
        "shape": shape,
        "layout": layout.axes,
        "raw_bytes": value.size_bytes // TRACE_IMAGES,
    }
    if layout.axes != UNKNOWN and (layout.axes != "NLC" or layout.prefix_tokens is not None):
        readout = default_readout(layout)
        itemsize = value.size_bytes // max(_product(value.shape), 1)
        facts["readout"] = readout
        facts["readout_bytes"] = _product(readout_shape(readout, layout, shape)) * itemsize
    return facts


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def tap_facts(backbone: Backbone, tap: Tap) -> dict[str, Any]:
    """Return what tables and stores say of a resolved tap.

    Returns:
        ``block``, ``level``, ``depth``, ``stride``: of the block the tap lies in, else of the last one done
        before it; ``layout``; ``shape``: of the activation per image; ``readout``; ``axes``: of the readout
        (``N D``, ``N T D``, ``N D H W``); ``readout_shape``: per image; ``bytes``: per image, after readout.

    Raises:
        TapError: If the tap has no explicit readout; see ``resolve_taps``.
    """
    if tap.readout == AUTO:
        raise TapError("a tap with an explicit readout", str(tap), "Pass it through `resolve_taps` first")
    facts = layer_facts(backbone)
    value, layout, block = facts.value(tap), facts.layout(tap), facts.block_of(tap)
    shape = value.shape[1:]
    result = readout_shape(tap.readout, layout, shape)
    return {
        "block": block.path if block else "",
        "level": block.level if block else "",
        "depth": block.depth if block else float("nan"),
        "stride": block.stride if block else float("nan"),
        "layout": layout.axes,
        "shape": shape,
        "readout": tap.readout,
        "axes": readout_axes(tap.readout, layout),
        "readout_shape": result,
        "bytes": _product(result) * (value.size_bytes // max(_product(value.shape), 1)),
    }


def level_shares(backbone: Backbone) -> dict[str, dict[str, float]]:
    """Return what share of the parameters and FLOPs of its blocks each level of a backbone holds.

    Returns:
        For each level, ``parameters`` and ``flops``; over the levels each sums to 1, without the classifier.

    Raises:
        InputError: If levels cannot be told.
    """
    facts = layer_facts(backbone)
    facts.need_levels()
    totals = {level: {"parameters": 0.0, "flops": 0.0} for level in LEVELS}
    for name, parameter in backbone.module.named_parameters():
        for block in facts.blocks:
            if block.holds(name):
                totals[block.level]["parameters"] += parameter.numel()  # type: ignore[index]
                break
    for block in facts.blocks:
        for member in block.members:
            calls = facts.trace.calls.get(member, [])
            totals[block.level]["flops"] += sum(call.flops for call in calls)  # type: ignore[index]
    sums = {kind: sum(shares[kind] for shares in totals.values()) for kind in ("parameters", "flops")}
    return {
        level: {kind: value / (sums[kind] or 1.0) for kind, value in shares.items()}
        for level, shares in totals.items()
    }


# What may follow a preset, a pattern or a regular expression.
_SUFFIX = re.compile(
    r"(?P<head>.*?)(?P<tail>(?:#[0-9]+)?(?:@[^#@:|,\s]+)?(?::in)?"
    r"(?:\|(?:gap|max|gem|grid\([0-9]+\)|cls|patch_mean|cls\+patch_mean|tokens|raw))?)\Z"
)


def resolve_taps(backbone: Backbone, taps: str | Tap | Sequence[str | Tap]) -> list[Tap]:
    """Turn what was asked for into taps that can be read, each with an explicit readout.

    Words are, in this order:

    - a preset: ``blocks`` (stem, every block, tail), ``stages`` (the last block of each run of equal stride,
      the tail left out; where all strides are equal, as in a ViT, of each level), ``levels`` (the last block
      of each level), ``low``, ``mid``, ``high`` (all their blocks), ``penultimate`` (the input of the
      classifier's last linear layer; without a classifier the norm after the last block, or that block);
    - ``re:`` and a regular expression, which must match a whole module path;
    - a pattern: ``*`` and ``?`` stand for letters within one part of a path, ``**`` also across dots, ``[…]``
      for one of some letters. Patterns and expressions take every call of the modules they match, and leave
      out modules that are never called;
    - a module path.

    Each may be followed by ``#call``, ``@element``, ``:in`` and ``|readout``. A ``Tap`` always means the
    module of that path, even where its name is that of a preset.

    Args:
        backbone: A frozen backbone.
        taps: One word or tap, or several.

    Returns:
        Taps in the order asked for (within a word, executed order), without duplicates.

    Raises:
        TapNotFound: If a path or pattern names no module.
        TapDidNotFire: If a module is not called in the forward pass.
        TapFiredManyTimes: If it is called several times and the tap does not say which call is meant.
        AmbiguousOutput: If it returns several tensors and the tap does not say which one is meant.
        LayoutUnknown: If the readout needs axes that are not known.
        NoClassToken: If it needs a class token that is not there.
        TapError: If the readout is meant for another layout or a larger map.
        InputError: If a word has no tap's form, or levels cannot be told.
    """
    facts = layer_facts(backbone)
    asked = [taps] if isinstance(taps, str | Tap) else list(taps)
    found: dict[Tap, None] = {}
    for word in asked:
        for tap in [word] if isinstance(word, Tap) else _expand(backbone, facts, word):
            found[_settle(backbone, facts, tap)] = None
    if not found:
        raise InputError("at least one tap", "none", f"Name a module path or one of {', '.join(PRESETS)}")
    return list(found)


def _expand(backbone: Backbone, facts: LayerFacts, word: str) -> Iterator[Tap]:
    """Yield the taps of one word; readouts may still be open."""
    match = _SUFFIX.match(word)
    head, tail = (match["head"], match["tail"]) if match else (word, "")
    if head in PRESETS:
        for tap in _preset(backbone, facts, head):
            yield _with_suffix(tap, tail)
    elif head.startswith("re:"):
        try:
            expression = re.compile(head[3:])
        except re.error as error:
            raise InputError("a regular expression", f"{head[3:]!r} ({error})", "Mend it") from error
        yield from _matching(facts, expression, tail, word)
    elif re.search(r"[*?\[]", head):
        yield from _matching(facts, re.compile(_pattern(head)), tail, word)
    else:
        yield parse_tap(word)


def _with_suffix(tap: Tap, tail: str) -> Tap:
    """Put what follows a word on a tap; what the word leaves open stays as the tap has it."""
    said = parse_tap(f"x{tail}")
    return Tap(
        tap.path,
        tap.call if said.call is None else said.call,
        tap.element if said.element is None else said.element,
        "in" if said.side == "in" else tap.side,
        said.readout,
    )


def _pattern(text: str) -> str:
    """Turn a pattern into a regular expression.

    Examples:
        >>> [bool(re.fullmatch(_pattern("layer?.*"), path)) for path in ("layer1.0", "layer1.0.bn1")]
        [True, False]
    """
    pieces = re.split(r"(\*\*|\*|\?|\[[^\]]*\])", text)
    signs = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return "".join(
        signs.get(piece, "[^" + piece[2:] if piece.startswith("[!") else piece)
        if odd % 2
        else re.escape(piece)
        for odd, piece in enumerate(pieces)
    )


def _matching(facts: LayerFacts, expression: re.Pattern[str], tail: str, word: str) -> Iterator[Tap]:
    paths = [path for path in facts.trace.calls if path and expression.fullmatch(path)]
    called = [path for path in paths if facts.trace.calls[path]]
    if not paths:
        near = near_names(word.removeprefix("re:"), (path for path in facts.trace.calls if path))
        raise TapNotFound("a pattern that matches a module path", repr(word), f"Some paths are {near}")
    if not called:
        raise TapDidNotFire(
            f"{word!r} to match a module that is called in the forward pass", ", ".join(paths[:5]),
            "See `list_layers` for the calls of every module",
        )  # fmt: skip
    for path in sorted(called, key=lambda path: facts.trace.calls[path][0].ended):
        tap = _with_suffix(Tap(path), tail)
        calls = len(facts.trace.calls[path])
        yield from [replace(tap, call=n) for n in range(calls)] if tap.call is None and calls > 1 else [tap]


def _preset(backbone: Backbone, facts: LayerFacts, name: str) -> list[Tap]:
    if name == "penultimate":
        return [_penultimate(backbone, facts)]
    blocks = list(facts.blocks)
    if not blocks:
        raise InputError(
            f"a backbone with blocks for {name!r}", "no convolution or linear layer before the classifier",
            "Name modules instead, or give `blocks=` to the backbone",
        )  # fmt: skip
    single = len({round(math.log2(block.stride)) for block in blocks}) == 1
    if name == "stages" and (not single or facts.no_levels is not None):
        # In octaves: maps without padding shrink by a position or two within one stage.
        staged = [block for block in blocks if block.in_stage]
        chosen = _last_of_runs(staged, [round(math.log2(block.stride)) for block in staged])
    elif name == "blocks":
        chosen = blocks
    else:
        facts.need_levels()
        levels = [block.level for block in blocks]
        chosen = (
            _last_of_runs(blocks, levels)
            if name in ("stages", "levels")
            else [block for block in blocks if block.level == name]
        )
    return [block.tap for block in chosen]


def _last_of_runs(blocks: list[Block], marks: Sequence[float | str]) -> list[Block]:
    following = [*marks[1:], None]
    return [block for block, mark, after in zip(blocks, marks, following, strict=True) if mark != after]


def _penultimate(backbone: Backbone, facts: LayerFacts) -> Tap:
    """Return what the classifier is given, or what would be pooled for it."""
    modules, calls = dict(backbone.module.named_modules()), facts.trace.calls
    classifier = backbone.classifier
    if classifier is not None and calls.get(classifier) and not isinstance(modules[classifier], nn.Identity):
        # A classifier of several layers is named as a whole by torchvision: its last layer decides.
        layers = [
            path
            for path in modules
            if is_within(path, classifier)
            and calls[path]
            and isinstance(modules[path], nn.Linear | nn.Conv2d)
        ]
        last: str = max(layers, key=lambda path: calls[path][-1].ended, default=classifier)
        return Tap(last, call=len(calls[last]) - 1 if len(calls[last]) > 1 else None, side="in")
    after = facts.trace.calls[facts.blocks[-1].path][-1].ended if facts.blocks else 0
    norms = [
        path
        for path, module in modules.items()
        if len(calls[path]) == 1
        and calls[path][0].started > after
        and "norm" in type(module).__name__.lower()
    ]
    if norms:
        return Tap(max(norms, key=lambda path: calls[path][0].ended))
    if not facts.blocks:
        raise InputError(
            "a backbone with a classifier or blocks for 'penultimate'", "neither", "Name a module instead"
        )
    return facts.blocks[-1].tap


def _settle(backbone: Backbone, facts: LayerFacts, tap: Tap) -> Tap:
    """Check a tap against the recorded forward and make its readout explicit."""
    calls = facts.trace.calls.get(tap.path) if tap.path else None
    if calls is None:
        near = near_names(tap.path, [*(path for path in facts.trace.calls if path), *PRESETS])
        raise TapNotFound("a module path or preset", repr(tap.path), f"Did you mean {near}?")
    if not calls:
        raise TapDidNotFire(
            f"{tap.path!r} to be called in the forward pass",
            *_why_dead(dict(backbone.module.named_modules(remove_duplicate=False)), tap.path),
        )
    if tap.call is None and len(calls) > 1:
        listed = ", ".join(f"{tap.path}#{call}" for call in range(len(calls)))
        raise TapFiredManyTimes(
            f"one call of {tap.path!r} to be named", f"{len(calls)} calls in every forward pass",
            f"Write one of {listed}",
        )  # fmt: skip
    if tap.call is not None and tap.call >= len(calls):
        raise TapDidNotFire(
            f"a call number below {len(calls)} for {tap.path!r}", f"#{tap.call}", "Count the calls from 0"
        )
    tap = replace(tap, call=tap.call if len(calls) > 1 else None)
    value, layout = facts.value(tap), facts.layout(tap)
    try:
        readout = default_readout(layout) if tap.readout == AUTO else tap.readout
        check_readout(readout, layout, value.shape[1:])
    except TapError as error:
        raise type(error)(f"{error.expected} at {tap}", error.came, error.todo) from error
    return replace(tap, readout=readout)


def _why_dead(modules: dict[str, nn.Module], path: str) -> tuple[str, str]:
    """Return why a module is never called, as far as its surroundings tell, and what to tap instead."""
    if isinstance(modules[path], nn.ModuleList | nn.ModuleDict):
        return "a list of modules, which is not called as a whole", f"Tap what it holds, as with '{path}.*'"
    for outer in ancestors(path):
        if isinstance(modules[outer], nn.MultiheadAttention):
            return (
                "no call: nn.MultiheadAttention hands the weights of its parts to one fused function",
                f"Tap the attention itself: {outer}@0",
            )
        if getattr(modules[outer], "fused_attn", False):
            return (
                "no call: fused attention computes it without calling this module, if it is used at all",
                f"Tap {outer}, or call `timm.layers.set_fused_attn(False)` before building the backbone",
            )
        if type(modules[outer]).__name__.endswith(("ScriptModule", "TracedModule")):
            return (
                f"no call: {outer} is compiled to TorchScript, inside which hooks do not run",
                f"Tap {outer}",
            )
    return (
        "no call: an unused branch, or a module whose weights are read without calling it",
        "See `list_layers` for the calls of every module",
    )
