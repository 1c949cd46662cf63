"""What one recorded forward says of a backbone: blocks with strides and levels, the layout at every tap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from probekit.backbones.levels import LEVELS, assign_levels
from probekit.errors import InputError
from probekit.taps.layout import Layouts
from probekit.taps.readout import Layout, map_size
from probekit.taps.structure import Part, find_parts, is_within
from probekit.taps.tap import Tap
from probekit.taps.trace import Bundle, Trace, Value, trace_forward

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone

# A single position more than this factor coarser than the map before it comes from pooling, not from a stage.
LARGEST_STEP = 4


@dataclass(frozen=True)
class Block:
    """A block of a backbone.

    Attributes:
        path: Module whose output is the output of the block.
        members: Module and parameter names whose parameters belong to it. Blocks and classifier share out all
            parameters of the backbone between them, but for modules that are never called.
        stride: Input pixels per position of the output (for tokens, the patch size); that of the block before
            where the output has no positions.
        depth: Its place in executed order, from 0 (first) to 1 (last).
        level: ``low``, ``mid`` or ``high``; empty where levels cannot be told.
        tap: Where its output is read: the last call if there are several, and the coarsest map of several.
        in_stage: False for what stands after the last stage, such as the last convolution of EfficientNet.
    """

    path: str
    members: tuple[str, ...]
    stride: float
    depth: float
    level: str
    tap: Tap
    in_stage: bool = True

    def holds(self, name: str) -> bool:
        """Say whether a module or parameter belongs to the block."""
        return any(is_within(name, member) for member in self.members)


@dataclass
class LayerFacts:
    """What one recorded forward says of a backbone; kept in ``backbone.cache['layers']``."""

    source: tuple[Any, ...]
    trace: Trace
    layouts: Layouts
    blocks: tuple[Block, ...] = ()
    no_levels: InputError | None = None

    def need_levels(self) -> None:
        """Refuse to go on where levels cannot be told.

        Raises:
            InputError: If there are too few blocks for three levels.
        """
        error = self.no_levels
        if error is not None:
            raise InputError(error.expected, error.came, error.todo)

    def value(self, tap: Tap) -> Value:
        """Return what was recorded at a tap of a module that was called.

        Raises:
            AmbiguousOutput: If the tap does not say which of several tensors is meant.
        """
        call = self.trace.calls[tap.path][tap.call or 0]
        bundle: Bundle[Value] = call.given if tap.side == "in" else call.returned
        return bundle.pick(tap.element, tap.place)[1]

    def layout(self, tap: Tap) -> Layout:
        """Return what is known of the axes at a tap."""
        return self.layouts.at(tap.path, self.value(tap))

    def block_of(self, tap: Tap) -> Block | None:
        """Return the block a tap lies in, else the last one that was done when it was read."""
        if not self.blocks:
            return None
        for block in self.blocks:
            if block.holds(tap.path) and tap != Tap(block.path, tap.call, tap.element, "in", tap.readout):
                return block
        call = self.trace.calls[tap.path][tap.call or 0]
        event = call.started if tap.side == "in" else call.ended
        done = [block for block in self.blocks if self.trace.calls[block.path][-1].ended <= event]
        return done[-1] if done else self.blocks[0]


def layer_facts(backbone: Backbone) -> LayerFacts:
    """Record one forward pass of a backbone, or return what is cached of it.

    Raises:
        InputError: If the levels given with the backbone leave a block out or are no levels.
        TapError: If the module is compiled, or a block given with the backbone is not called.
    """
    known, source = backbone.cache.get("layers"), _source(backbone)
    if isinstance(known, LayerFacts) and known.source == source:
        return known
    trace = trace_forward(backbone)
    layouts = Layouts(backbone, trace)
    facts = LayerFacts(source, trace, layouts)
    parts = find_parts(backbone, trace, layouts.is_readable)
    strides = _strides(facts, parts)
    levels: list[str] = [""] * len(parts)
    try:
        levels = _levels(backbone, parts, strides)
    except InputError as error:
        if backbone.levels is not None:
            raise
        facts.no_levels = error
    deepest = max(len(parts) - 1, 1)
    facts.blocks = tuple(
        Block(
            part.path,
            part.members,
            stride,
            place / deepest,
            level,
            _block_tap(facts, part.path),
            part.role != "tail",
        )
        for place, (part, stride, level) in enumerate(zip(parts, strides, levels, strict=True))
    )
    backbone.cache["layers"] = facts
    return facts


def _source(backbone: Backbone) -> tuple[Any, ...]:
    """Return all that the facts depend on, so that a changed copy that shares the cache is seen."""
    levels = None if backbone.levels is None else tuple(sorted(backbone.levels.items()))
    return (
        id(backbone.module), backbone.preprocessing.size, backbone.classifier, backbone.blocks, levels,
        backbone.channels_last, backbone.prefix_tokens, backbone.has_class_token,
    )  # fmt: skip


def list_blocks(backbone: Backbone) -> tuple[Block, ...]:
    """Return the blocks of a backbone in executed order, with stride, depth and level."""
    return layer_facts(backbone).blocks


def _block_tap(facts: LayerFacts, path: str) -> Tap:
    calls = facts.trace.calls[path]
    tap = Tap(path, call=len(calls) - 1 if len(calls) > 1 else None)
    entries = calls[-1].returned.entries
    if None in entries or len(entries) < 2:
        return tap
    return replace(
        tap, element=max(entries, key=lambda key: _stride(facts, replace(tap, element=key)) or 0.0)
    )


def _stride(facts: LayerFacts, tap: Tap) -> float | None:
    """Return input pixels per position at a tap; None where there are no positions."""
    value, layout = facts.value(tap), facts.layout(tap)
    grid = map_size(layout, value.shape[1:]) or layout.grid
    return facts.trace.size / max(grid) if grid is not None else None


def _strides(facts: LayerFacts, parts: list[Part]) -> list[float]:
    """Return the stride of every part, carried forward where there is none and beyond the last stage."""
    strides: list[float] = []
    for part in parts:
        tap = _block_tap(facts, part.path)
        stride = _stride(facts, tap) if facts.trace.calls[part.path][-1].returned.entries else None
        before = strides[-1] if strides else 1.0
        pooled = stride == facts.trace.size and strides and stride > LARGEST_STEP * before
        if stride is None or pooled or (part.role == "tail" and strides):
            stride = before
        strides.append(stride)
    return strides


def _levels(backbone: Backbone, parts: list[Part], strides: list[float]) -> list[str]:
    """Return levels by the mapping given with the backbone, else by rule."""
    given = backbone.levels
    tails = sum(part.role == "tail" for part in parts)
    if given is None:
        has_stem = bool(parts) and parts[0].role == "stem"
        return list(assign_levels(strides, tails, has_stem=has_stem))
    levels: list[str] = []
    for part in parts:
        nearest = max((name for name in given if is_within(part.path, name)), key=len, default=None)
        default = {"stem": "low", "tail": "high"}.get(part.role)
        level = given[nearest] if nearest is not None else default
        if level not in LEVELS:
            raise InputError(
                f"a level among {', '.join(LEVELS)} for every block",
                f"{level!r} for {part.path!r}" if level else f"none for {part.path!r}",
                "Name the block, or a module around it, in `levels=`",
            )
        levels.append(level)
    return levels
