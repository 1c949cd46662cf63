"""Which axis holds the channels: told by the modules a tensor passes through, never by its shape alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from probekit.taps.readout import UNKNOWN, Layout
from probekit.taps.trace import TRACE_IMAGES, Call, Trace, Value

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone

_FIRST = {3: "NCL", 4: "NCHW"}
_LAST = {3: "NLC", 4: "NHWC"}
_FIRST_TYPES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.GroupNorm,
    nn.PixelShuffle,
    nn.Upsample,
)
# Leading tokens that are not patches: class, distillation and register tokens.
MOST_PREFIX_TOKENS = 16


class Layouts:
    """Layouts of every tensor of a recorded forward.

    A convolution, batch norm or pooling takes and returns channels first, a linear layer or layer norm
    channels last; so they tell the layout of the tensor objects they are handed and hand on. A module that
    returns the shape it was given keeps the layout, unless a transposition could hide behind equal sides.
    """

    def __init__(self, backbone: Backbone, trace: Trace) -> None:
        self._backbone = backbone
        self._trace = trace
        self._modules = dict(backbone.module.named_modules(remove_duplicate=False))
        self._told: dict[int, str] = {}
        self._declared_channels = _declared_channels(backbone.module)
        self._maps = list(self._convolved_maps())
        self._grids = [grid for grid, _ in self._maps]
        declared_grid = getattr(getattr(backbone.module, "patch_embed", None), "grid_size", None)
        if declared_grid is not None:
            self._grids.insert(0, tuple(declared_grid))
        self._solve()

    def at(self, path: str, value: Value) -> Layout:
        """Return what is known of the axes of a tensor that module ``path`` was given or returned."""
        shape = value.shape
        if not shape or shape[0] != TRACE_IMAGES:
            return Layout(UNKNOWN)
        if len(shape) == 2:
            return Layout("NC")
        if len(shape) == 3:
            return self._tokens(path, value)
        return Layout(self._map_axes(path, value)) if len(shape) == 4 else Layout(UNKNOWN)

    def is_readable(self, path: str) -> bool:
        """Say whether the axes of any output of a module are known."""
        values = self._trace.calls[path][-1].returned.entries.values()
        return any(self.at(path, value).axes != UNKNOWN for value in values)

    def _map_axes(self, path: str, value: Value) -> str:
        backbone, shape = self._backbone, value.shape
        axes = self._told.get(value.number)
        composite = any(True for _ in self._modules[path].children())
        if axes is None and composite and backbone.prefix_tokens is None:
            axes = "NHWC" if backbone.channels_last else "NCHW"
        # Within token models a layer norm over a rank-4 tensor is one of queries or keys per head.
        tokens_only = backbone.prefix_tokens is not None and not backbone.channels_last
        per_head = axes == "NHWC" and tokens_only and not composite
        if axes is None or per_head:
            return UNKNOWN
        # Inputs are square, so maps are; what is not square is no map.
        rows, columns = shape[2:] if axes == "NCHW" else shape[1:3]
        if rows != columns:
            return UNKNOWN
        channels = self._declared_channels.get(path)
        here, there = (shape[1], shape[3]) if axes == "NCHW" else (shape[3], shape[1])
        contradicted = channels is not None and channels == there and channels != here
        return UNKNOWN if contradicted else axes

    def _tokens(self, path: str, value: Value) -> Layout:
        axes, declared = self._told.get(value.number), self._backbone.prefix_tokens
        channels = self._declared_channels.get(path)
        if axes is None and channels == value.shape[2] != value.shape[1]:
            axes = "NLC"  # as timm declares it where no module tells, such as ResMLP's affine layers
        if axes not in (None, "NLC") or (axes is None and declared is None):
            return Layout(UNKNOWN)
        length = value.shape[1]
        has_class_token = self._backbone.has_class_token
        if declared is None:
            embedded = [grid for grid, whole_patches in self._maps if whole_patches]
            prefix, grid = self._prefix_by_patches(length, embedded)
            return Layout("NLC", prefix, has_class_token and prefix != 0, grid)
        for prefix in (declared, 0):
            for rows, columns in self._grids:
                if length == rows * columns + prefix:
                    return Layout("NLC", prefix, has_class_token and prefix > 0, (rows, columns))
        if length <= declared:
            return Layout("NLC", length, has_class_token)
        if declared == 0:
            # A class token that joins the patches late is not counted among the prefix tokens by all.
            prefix, grid = self._prefix_by_patches(length, self._grids)
            if prefix is not None or length == 1:
                return Layout("NLC", prefix or 0, False, grid)
        side = math.isqrt(length - declared)
        square = (side, side) if side**2 == length - declared else None
        return Layout("NLC", declared, has_class_token, square)

    def _prefix_by_patches(
        self, length: int, embedded: list[tuple[int, int]]
    ) -> tuple[int | None, tuple[int, int] | None]:
        """Compare the number of tokens with the positions of the convolved maps.

        Only ``embedded`` grids may have further tokens in front.
        """
        for grid in self._grids:
            # Tokens may be pooled without a convolution, each time to half the rows and columns.
            while min(grid) > 1:
                if grid[0] * grid[1] == length:
                    return 0, grid
                grid = (math.ceil(grid[0] / 2), math.ceil(grid[1] / 2))
        for grid in embedded:
            if 0 < length - grid[0] * grid[1] <= MOST_PREFIX_TOKENS:
                return length - grid[0] * grid[1], grid
        return None, None

    def _convolved_maps(self) -> Iterator[tuple[tuple[int, int], bool]]:
        for _, module, call in self._every_call():
            value = call.returned.entries.get(None)
            if isinstance(module, nn.Conv2d) and value is not None and len(value.shape) == 4:
                stride = tuple(module.stride)
                yield (value.shape[2], value.shape[3]), stride == tuple(module.kernel_size) and stride[0] > 1

    def _every_call(self) -> Iterator[tuple[str, nn.Module, Call]]:
        for path, first in self._trace.canonical.items():
            if path == first:
                for call in self._trace.calls[path]:
                    yield path, self._modules[path], call

    def _solve(self) -> None:
        """Collect what typed modules tell, then let it flow through modules that keep the layout."""
        claims: dict[int, set[str]] = {}
        kept: list[tuple[int, int]] = []
        for _, module, call in self._every_call():
            given, returned = _single(call)
            axes_by_rank = axes_told_by(module)
            for value in (given, returned):
                if axes_by_rank and value is not None and len(value.shape) in axes_by_rank:
                    claims.setdefault(value.number, set()).add(axes_by_rank[len(value.shape)])
            if not axes_by_rank and given and returned and _keeps_axes(module, given, returned):
                kept.append((given.number, returned.number))
        self._told = {number: axes.pop() if len(axes) == 1 else UNKNOWN for number, axes in claims.items()}
        while self._flow(kept):
            pass

    def _flow(self, kept: list[tuple[int, int]]) -> bool:
        changed = False
        for one, other in kept:
            for known, missing in ((one, other), (other, one)):
                if known in self._told and missing not in self._told:
                    self._told[missing] = self._told[known]
                    changed = True
        return changed


def axes_told_by(module: nn.Module) -> dict[int, str]:
    """Return the axes, by rank, of what a module of this type takes and returns; {} if its type does not say.

    Examples:
        >>> axes_told_by(nn.Linear(2, 2))[4], axes_told_by(nn.Conv2d(2, 2, 1))[4], axes_told_by(nn.ReLU())
        ('NHWC', 'NCHW', {})
    """
    name = type(module).__name__
    is_leaf = next(module.children(), None) is None
    if isinstance(module, _FIRST_TYPES):
        return _FIRST
    # Layer norms over channels first are subclasses of nn.LayerNorm in timm and torchvision.
    if "2d" in name:
        return _FIRST if is_leaf or isinstance(module, nn.LayerNorm) else {}
    if isinstance(module, nn.Linear):
        return _LAST
    if isinstance(module, nn.LayerNorm):
        return _LAST if len(module.normalized_shape) == 1 else {}
    return _LAST if is_leaf and name.lower().endswith("rmsnorm") else {}


_ELEMENTWISE = ("torch.nn.modules.activation", "torch.nn.modules.dropout", "torch.nn.modules.linear")


def _keeps_axes(module: nn.Module, given: Value, returned: Value) -> bool:
    if given.shape != returned.shape:
        return False
    elementwise = type(module).__module__ in _ELEMENTWISE and next(module.children(), None) is None
    inner = given.shape[1:]
    # With equal side lengths a transposition leaves no trace in the shape.
    sides = {3: (0, 2), 2: (0, 1)}.get(len(inner))
    return elementwise or (sides is not None and inner[sides[0]] != inner[sides[1]])


def _single(call: Call) -> tuple[Value | None, Value | None]:
    given = call.given.entries.get(None) or call.given.entries.get(0)
    entries = call.returned.entries
    return given, next(iter(entries.values())) if len(entries) == 1 else None


def _declared_channels(module: nn.Module) -> dict[str, int]:
    """Return the channel numbers that timm declares, by module path."""
    declared = getattr(module, "feature_info", None)
    if not isinstance(declared, list):
        return {}
    return {
        info["module"]: info["num_chs"]
        for info in declared
        if isinstance(info, dict) and "module" in info and "num_chs" in info
    }
