"""Which modules are the blocks of a backbone, and which parameters belong to each, from its module tree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from probekit.errors import TapDidNotFire, TapNotFound, near_names
from probekit.taps.trace import Call, Trace

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone

# A module is a stage when its containers of blocks hold at least this share of its parameters.
STAGE_SHARE = 0.8

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MIXING = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear)
_POOL_ALL = (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)


@dataclass(frozen=True)
class Part:
    """A stem, block or tail before its stride and level are known.

    Attributes:
        path: Module whose output is the output of the part.
        members: Module and parameter names whose parameters belong to it.
        role: What it is; a tail stands between the last block and the classifier.
    """

    path: str
    members: tuple[str, ...]
    role: Literal["stem", "block", "tail"] = "block"


def find_parts(backbone: Backbone, trace: Trace, readable: Callable[[str], bool]) -> list[Part]:
    """Find the blocks of a backbone, in executed order.

    The paths given with the backbone, as they are; else the groups that timm declares; else, for any module,
    the children of its containers (see ``Tree.expand``); else, for a plain sequence of layers, each
    convolution or linear layer with what follows it. Before the blocks stands a stem, if parameters are used
    there; after them a tail, if convolutions or linear layers stand between the last block and the
    classifier. All other parameters (transitions, norms) join the block that comes next, or the last one;
    those of no module of their own (class tokens, position embeddings) join the stem. A block found by rule
    whose output cannot be read (windows that split the batch, say) gives way to the module around it.

    Args:
        backbone: A frozen backbone.
        trace: Its recorded forward.
        readable: Whether the output of a module path has axes that are known.

    Raises:
        TapNotFound: If a block given with the backbone does not exist.
        TapDidNotFire: If it is never called.
    """
    tree = Tree(backbone, trace, readable)
    if backbone.blocks is not None:
        return [Part(path, (path,)) for path in _given(tree, backbone.blocks)]
    paths = tree.in_order(tree.around_unreadable(path) for path in declared_blocks(tree) or tree.found())
    paths = [path for path in paths if not any(outer in paths for outer in ancestors(path))]
    return _with_rest(tree, paths) if len(paths) > 1 else _groups_of_leaves(tree)


class Tree:
    """The module tree of a backbone, together with one recorded forward."""

    def __init__(self, backbone: Backbone, trace: Trace, readable: Callable[[str], bool]) -> None:
        self.module, self.trace, self.readable = backbone.module, trace, readable
        self.modules = dict(self.module.named_modules())
        self.starts: dict[str, int] = {}
        for path in self.modules:
            for call in self.calls(path)[:1]:
                for outer in [path, *ancestors(path)]:
                    self.starts[outer] = min(call.started, self.starts.get(outer, call.started))
        wanted = backbone.classifier
        fires = wanted in self.modules and not isinstance(self.modules[wanted], nn.Identity)
        self.classifier = wanted if fires and self.calls(wanted or "") else None
        self.sizes = {path: sum(p.numel() for p in part.parameters()) for path, part in self.modules.items()}
        if self.classifier is not None:
            # The classifier counts neither in itself nor in the modules around it.
            held = self.sizes[self.classifier]
            for path in self.modules:
                if path == "" or is_within(self.classifier, path):
                    self.sizes[path] -= held

    def calls(self, path: str) -> list[Call]:
        """Return the recorded calls of a module."""
        return self.trace.calls.get(path, [])

    def end(self, path: str) -> int:
        """Return when the last call of a module ended, in events."""
        return self.calls(path)[-1].ended

    def children(self, path: str) -> list[str]:
        """Return the children that hold parameters other than those of the classifier."""
        names = [f"{path}.{name}" if path else name for name, _ in self.modules[path].named_children()]
        # A module that is registered twice stands under its first name only.
        return [name for name in names if self.sizes.get(name) and not is_within(name, self.classifier)]

    def units(self, path: str) -> list[str]:
        """Return the children that hold parameters and are not leaves."""
        return [child for child in self.children(path) if not self.is_leaf(child)]

    def is_leaf(self, path: str) -> bool:
        """Say whether a module has no children."""
        return next(self.modules[path].children(), None) is None

    def is_container(self, path: str) -> bool:
        """Say whether a module is a sequence, list or dict of modules."""
        return isinstance(self.modules[path], _CONTAINERS)

    def is_simple(self, path: str) -> bool:
        """Say whether a module is a container of leaves, or holds at most one layer that mixes channels."""
        children = list(self.modules[path].children())
        bare = self.is_container(path) and all(next(child.children(), None) is None for child in children)
        mixing = [part for part in self.modules[path].modules() if isinstance(part, _MIXING)]
        return bare or len(mixing) < 2

    def in_order(self, paths: Iterable[str]) -> list[str]:
        """Drop what is never called, in the classifier or around it, and sort by executed order."""
        called = {path for path in paths if self.calls(path) and not is_within(path, self.classifier)}
        return sorted((path for path in called if not is_within(self.classifier or "", path)), key=self.end)

    def around_unreadable(self, path: str) -> str:
        """Return the nearest module around a path whose output can be read, the path if there is none."""
        around = [outer for outer in [path, *ancestors(path)] if self.calls(outer) and self.readable(outer)]
        return next((outer for outer in around if not is_within(self.classifier or "", outer)), path)

    def found(self, path: str = "") -> list[str]:
        """Return blocks by structure alone; [] for a plain sequence of layers."""
        units = self.units(path)
        if self.is_container(path):
            blocks = [block for block in self.expand(path) if block != path]
        else:
            # What does not give way to blocks within it is stem, transition or tail.
            blocks = [block for unit in units for block in self.expand(unit) if block != unit]
        if len(blocks) > 1:
            return blocks
        largest = max(units, key=self.sizes.__getitem__, default=None)
        if largest is not None and self.sizes[largest] >= STAGE_SHARE * self.sizes[path]:
            inner = self.found(largest)
            if len(inner) > 1:
                return inner
        # One or two bare sequences of layers are a net like VGG, or an encoder and a decoder.
        return [] if len(units) < 3 and any(self._is_long_sequence(unit) for unit in units) else units

    def _is_long_sequence(self, path: str) -> bool:
        mixing = [child for child in self.modules[path].children() if isinstance(child, _MIXING)]
        return self.is_simple(path) and len(mixing) > 1

    def expand(self, path: str, share: float = STAGE_SHARE) -> list[str]:
        """Return the blocks within a module: itself, unless it is a container or a stage.

        A container of leaves is one block. Other containers give way to their children that are not leaves,
        if these run one after the other; the layers of a dense block and the branches of a parallel one do
        not. A stage is a module most of whose parameters lie in direct containers of blocks; it gives way to
        them, and so do its siblings of the same type, even where a transition holds more of the parameters.

        Args:
            path: A module.
            share: Share of its parameters that containers of blocks must hold in a stage.

        Returns:
            Paths; [] if the module is never called itself and cannot give way.
        """
        inside = self.units(path) if self.is_container(path) else self.stages_in(path, share)
        if inside and self.run_in_sequence(inside):
            blocks = self.expand_all(inside)
            if all(blocks):
                return [block for some in blocks for block in some]
        return [path] if self.calls(path) else []

    def expand_all(self, siblings: Sequence[str]) -> list[list[str]]:
        """Return the blocks within each of some siblings, those of one type alike."""
        stages = {type(self.modules[one]) for one in siblings if self.stages_in(one)}
        shares = [0.0 if type(self.modules[one]) in stages else STAGE_SHARE for one in siblings]
        return [self.expand(one, share) for one, share in zip(siblings, shares, strict=True)]

    def stages_in(self, path: str, share: float = STAGE_SHARE) -> list[str]:
        """Return the direct containers of blocks, if these hold most of the parameters; else []."""
        blocks = {
            container: [unit for unit in self.units(container) if not self.is_simple(unit)]
            for container in self.children(path)
            if self.is_container(container)
        }
        held = {container: sum(self.sizes[unit] for unit in units) for container, units in blocks.items()}
        if sum(held.values()) < share * self.sizes[path]:
            return []
        # A small container beside the large one is a side branch, not part of the main path.
        return [container for container, size in held.items() if size and 2 * size >= max(held.values())]

    def run_in_sequence(self, paths: Sequence[str]) -> bool:
        """Say whether modules run one after the other, not side by side or each on all before it."""
        called = sorted((self.calls(path)[0] for path in paths if self.calls(path)), key=lambda c: c.started)
        broken = 0
        for place, call in enumerate(called):
            given, before = set(call.first), called[:place]
            # Blocks that add in place all return one tensor object; that is still one source.
            sources = {one.last for one in before if given & set(one.last)}
            oldest = min((number for one in before[:1] for number in one.last), default=0)
            collects = len(sources) > 1 or any(given - set(source) for source in sources)
            # Some blocks are fed by a later argument (a class token, say) beside one that stays.
            fed = {value.number for value in call.given.entries.values()}
            beside = bool(given) and max(given) < oldest and not any(fed & set(one.last) for one in before)
            broken += collects or beside
        return 2 * broken < max(len(called), 1)


def ancestors(path: str) -> list[str]:
    """Return the paths around a path, innermost first, without the root.

    Examples:
        >>> ancestors("layer1.0.bn2")
        ['layer1.0', 'layer1']
    """
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def is_within(path: str, outer: str | None) -> bool:
    """Say whether a path is another one or lies under it.

    Examples:
        >>> is_within("layer1.0.bn2", "layer1"), is_within("layer10", "layer1")
        (True, False)
    """
    return outer is not None and (path == outer or path.startswith(f"{outer}."))


def _given(tree: Tree, paths: Sequence[str]) -> list[str]:
    for path in paths:
        if path not in tree.modules:
            near = near_names(path, tree.modules)
            raise TapNotFound("blocks that are modules of the backbone", repr(path), f"Did you mean {near}?")
        if not tree.calls(path):
            raise TapDidNotFire(
                "blocks that are called in the forward pass",
                repr(path),
                "Name the module around it, or in it",
            )
    return sorted(set(paths), key=tree.end)


def declared_blocks(tree: Tree) -> list[str]:
    """Return the blocks that timm declares by regular expressions over parameter names, if any."""
    matcher = getattr(tree.module, "group_matcher", None)
    declared = matcher(coarse=False) if callable(matcher) else None
    if not isinstance(declared, dict):
        return []
    # A suffix merges a group into its neighbour, so what it matches is no block of its own.
    patterns = [
        (re.compile(pattern), kind != "stem" and suffix is None)
        for kind, entries in declared.items()
        if entries is not None
        for pattern, suffix in ([(entries, None)] if isinstance(entries, str) else entries)
    ]
    matched: dict[str, None] = {}
    for name, _ in tree.module.named_parameters():
        first = next(((hit, block) for regex, block in patterns if (hit := regex.match(name))), None)
        if first is not None and first[1]:
            matched[first[0][0].rstrip(".")] = None
    # Groups that are single layers, or no modules at all, are not what a block is.
    if any(not tree.calls(path) or tree.is_leaf(path) for path in matched):
        return []
    siblings: dict[str, list[str]] = {}
    for path in matched:
        siblings.setdefault(path.rpartition(".")[0], []).append(path)
    blocks = []
    for parent, paths in siblings.items():
        around = [outer for outer in [parent, *ancestors(parent)] if outer and tree.calls(outer)]
        blocks += paths if tree.run_in_sequence(paths) or not around else around[:1]
    return [block for some in tree.expand_all(blocks) for block in some]


def _groups_of_leaves(tree: Tree) -> list[Part]:
    """Group a plain sequence of layers: each convolution or linear layer with what follows up to the next."""
    leaves = tree.in_order(path for path in tree.modules if tree.is_leaf(path))
    parts: list[Part] = []
    held: tuple[str, ...] = ()
    rank = 0
    for path in leaves:
        held += (path,) if tree.sizes[path] else ()
        value = tree.calls(path)[-1].returned.entries.get(None)
        shape_rank = len(value.shape) if value is not None else 0
        if isinstance(tree.modules[path], _MIXING):
            parts.append(Part(path, held))
            rank = shape_rank
        elif parts:
            # Pooling over all positions belongs to the classifier; a layer called twice has no single output.
            follows = shape_rank == rank and len(tree.calls(path)) == 1
            pools_all = isinstance(tree.modules[path], _POOL_ALL)
            new_path = path if follows and not pools_all else parts[-1].path
            parts[-1] = Part(new_path, parts[-1].members + held)
        else:
            continue
        held = ()
    return parts


def _with_rest(tree: Tree, paths: Sequence[str]) -> list[Part]:
    """Give every parameter outside blocks and classifier to the stem, a block or the tail."""
    spans = [(tree.starts[path], tree.end(path)) for path in paths]
    members: dict[str, dict[str, None]] = {path: {path: None} for path in paths}
    stem: dict[str, None] = {}
    tail: dict[str, None] = {}
    closes = tree.starts[tree.classifier] if tree.classifier else float("inf")
    for name in _rest(tree, paths):
        start = tree.starts.get(
            name, -1
        )  # parameters of the backbone itself, such as a class token: before all
        if start < spans[0][0]:
            stem[name] = None
        elif start > spans[-1][1]:
            if start < closes:
                tail[name] = None
        else:
            later = next(path for path, (_, end) in zip(paths, spans, strict=True) if start < end)
            members[later][name] = None
    first = _stem_path(tree, paths[0], stem)
    if first is None:
        members[paths[0]].update(stem)
    last = _tail_path(tree, tail)
    if last is None:
        members[paths[-1]].update(tail)
    return [
        *([Part(first, tuple(stem), "stem")] if first is not None else []),
        *(Part(path, tuple(members[path])) for path in paths),
        *([Part(last, tuple(tail), "tail")] if last is not None else []),
    ]


def _rest(tree: Tree, paths: Sequence[str]) -> list[str]:
    """Return names, of modules where possible, that hold the parameters outside blocks and classifier."""
    known = [*paths, *([tree.classifier] if tree.classifier else [])]
    around = {outer for path in known for outer in ancestors(path)}
    inside = set(known)
    rest: dict[str, None] = {}
    for name, _ in tree.module.named_parameters():
        owners = ancestors(name)
        if inside.intersection(owners):
            continue
        free = [owner for owner in owners if owner not in around]
        # Modules that are never called (an unused branch) belong nowhere.
        if not free or free[-1] in tree.starts:
            rest[free[-1] if free else name] = None
    return list(rest)


def _stem_path(tree: Tree, first: str, stem: Iterable[str]) -> str | None:
    """Return the last module called before the first block, the one that feeds it where that shows."""
    start = min((tree.starts[name] for name in stem if name in tree.starts), default=None)
    if start is None:
        return None
    begins = tree.starts[first]
    before = [
        path
        for path in tree.in_order(tree.modules)
        if len(tree.calls(path)) == 1 and start <= tree.starts[path] and tree.end(path) < begins
    ]
    fed = set(tree.calls(first)[0].first)
    before = [path for path in before if tree.readable(path)] or before
    feeding = [path for path in before if fed & set(tree.calls(path)[0].last)]
    # An identity returns the very tensor it is given; the module that made it has the better name.
    named = [path for path in feeding if not isinstance(tree.modules[path], nn.Identity)]
    return next(reversed(named or feeding or before), None)


def _tail_path(tree: Tree, tail: Iterable[str]) -> str | None:
    """Return where the convolutions or linear layers after the last block end; None if there are none."""
    owners = [path for path in tree.modules if any(is_within(path, name) for name in tail)]
    if not any(isinstance(tree.modules[path], _MIXING) and tree.calls(path) for path in owners):
        return None
    last = tree.in_order(path for path in owners if tree.sizes[path])[-1]
    if not tree.readable(last):
        return None
    shape = _shape(tree.calls(last)[-1])
    closes = tree.starts[tree.classifier] if tree.classifier else float("inf")
    for path in tree.in_order(tree.modules):
        if path and tree.starts[path] > tree.end(last) and tree.end(path) < closes:
            if _shape(tree.calls(path)[-1]) != shape or len(tree.calls(path)) > 1:
                break
            last = path
    return last


def _shape(call: Call) -> tuple[int, ...] | None:
    value = call.returned.entries.get(None)
    return value.shape if value is not None else None
