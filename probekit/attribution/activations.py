"""Non-linear steps from image to tap: found in the graph, rewritten to steps with a rule, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probekit.backbones.backbone import copy_module
from probekit.errors import InputError
from probekit.seeds import random_stream
from probekit.taps.facts import layer_facts
from probekit.taps.record import record
from probekit.taps.trace import TRACE_IMAGES

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.taps.tap import Tap

# Operations, as autograd names them, whose output is linear in each argument that depends on the image.
LINEAR = (
    "Add", "Sub", "Neg", "Convolution", "Addmm", "Mm", "Bmm", "Mv", "Baddbmm", "NativeBatchNorm",
    "CudnnBatchNorm", "MiopenBatchNorm", "Mean", "Sum", "AvgPool2D", "AvgPool2DBackward", "AdaptiveAvgPool2D",
    "MkldnnAdaptiveAvgPool2D", "ConstantPadNd", "ReflectionPad2D", "ReplicationPad2D", "View", "UnsafeView",
    "ReshapeAlias", "Alias", "Expand", "Squeeze", "Unsqueeze", "Permute", "Transpose", "T", "Slice", "Select",
    "Index", "IndexSelect", "Gather", "Cat", "Stack", "Split", "SplitWithSizes", "Unbind", "Chunk", "Clone",
    "ToCopy", "CopySlices", "AsStrided", "Roll", "Flip", "PixelShuffle", "PixelUnshuffle",
    "UpsampleNearest2D", "UpsampleBilinear2D", "Mul", "Div", "Copy", "Repeat", "Narrow", "Flatten",
)  # fmt: skip
# Of these, products: linear only where one factor does not depend on the image.
PRODUCTS = ("Mul", "Div", "Mm", "Bmm", "Baddbmm", "Addmm", "Mv", "Convolution")
# Steps that mix places or channels, which guided backpropagation treats as any gradient does.
MIXING = (
    "MaxPool", "AdaptiveMaxPool", "NativeLayerNorm", "NativeGroupNorm", "ScaledDotProduct", "Softmax", "Var",
    "Std", "Norm", "LinalgVectorNorm", "Pow", "Sqrt", "Rsqrt", "Amax", "Max", *PRODUCTS,
)  # fmt: skip
# Modules whose rule in captum's DeepLift is the Rescale rule of an elementwise step.
RESCALED = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Softplus)


class Capped(nn.Module):
    """min(ReLU(x), m): a ReLU that captum knows, and a cap whose gradient is zero above it."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap, self.rectify = cap, nn.ReLU()

    def forward(self, values: Tensor) -> Tensor:
        """Return values between 0 and the cap."""
        rectified: Tensor = self.rectify(values)
        return rectified.clamp(max=self.cap)


class Clamped(nn.Module):
    """a + ReLU(x − a) − ReLU(x − b): a clamp to [a, b] whose every non-linear part has a rule."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.lower, self.upper = nn.ReLU(), nn.ReLU()

    def forward(self, values: Tensor) -> Tensor:
        """Return values clamped to [low, high]."""
        above: Tensor = self.lower(values - self.low)
        excess: Tensor = self.upper(values - self.high)
        return above - excess + self.low


class PairwiseMax(nn.Module):
    """Max pooling as max(a, b) = a + ReLU(b − a), along rows and then along columns."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.dilation = (
            _pair(one) for one in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        )
        self.rectify = nn.ModuleList(
            nn.ModuleList(nn.ReLU() for _ in range(length - 1)) for length in self.kernel
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return (N, C, H', W') maxima of (N, C, H, W) maps."""
        (rows, columns), lowest = self.padding, float(maps.detach().amin())
        # No window lies in the border alone, so that the lowest value there changes no maximum.
        pooled = nn.functional.pad(maps, (columns, columns, rows, rows), value=lowest)
        for axis, steps in enumerate(self.rectify):
            pooled = self._along(pooled, axis, steps)
        return pooled

    def _along(self, maps: Tensor, axis: int, steps: Any) -> Tensor:  # noqa: ANN401 - a list of modules
        stride, dilation = self.stride[axis], self.dilation[axis]
        length = (maps.shape[axis + 2] - dilation * (self.kernel[axis] - 1) - 1) // stride + 1
        picks = torch.arange(length, device=maps.device) * stride
        largest = maps.index_select(axis + 2, picks)
        for place, rectify in enumerate(steps, start=1):
            largest = largest + rectify(maps.index_select(axis + 2, picks + place * dilation) - largest)
        return largest


class Turns(nn.Module):
    """A module that is called several times, as one module for each call."""

    def __init__(self, each: list[nn.Module]) -> None:
        super().__init__()
        self.each, self.turn = nn.ModuleList(each), 0

    def begin(self, *_: object) -> None:
        """Start a forward pass; its arguments are ignored."""
        self.turn = 0

    def forward(self, values: Tensor) -> Tensor:
        """Call the module whose turn it is."""
        found: Tensor = self.each[self.turn % len(self.each)](values)
        self.turn += 1
        return found


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def with_rules(backbone: Backbone, tap: Tap, method: str) -> Backbone:
    """Return a copy that computes the same, in steps for which captum has a rule.

    Nothing is in place; clamps to [a, b] such as ReLU6 are made of ReLUs. For ``deep_lift``, which compares
    two passes step by step, so is max pooling, whose rule in captum loses what overlapping windows share, and
    every call of a reused module gets a module of its own.

    Args:
        backbone: It is left alone.
        tap: Resolved; what lies behind it plays no part.
        method: ``guided_backprop`` or ``deep_lift``.

    Raises:
        InputError: If a step from the image to the tap has no rule, by its name and path.
    """
    module = copy_module(backbone.module)
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
    trace = layer_facts(backbone).trace
    parts = dict(module.named_modules(remove_duplicate=False))
    made: dict[str, nn.Module] = {}
    for path, first in trace.canonical.items():
        if not path or not trace.calls[path]:
            continue
        if first not in made:
            made[first] = _ruled(parts[first], len(trace.calls[path]), method, module)
        if made[first] is not parts[first]:
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, made[first])
    copy = backbone.edited(module, f"a copy whose activations have rules for {method}")
    _check_steps(copy, tap, method)
    _check_equal(backbone, copy, tap)
    return copy


def _ruled(part: nn.Module, calls: int, method: str, root: nn.Module) -> nn.Module:
    """Return what stands for a module; itself where nothing is to be done."""
    replacement = _replacement(part, method)
    if method != "deep_lift" or calls == 1 or not (replacement is not None or type(part) in RESCALED):
        return part if replacement is None else replacement()
    make = replacement or (lambda: copy_module(part))
    turns = Turns([make() for _ in range(calls)])
    root.register_forward_pre_hook(turns.begin)
    return turns


def _replacement(part: nn.Module, method: str) -> Callable[[], nn.Module] | None:
    if isinstance(part, nn.Hardtanh) and type(part) in (nn.ReLU6, nn.Hardtanh):
        low, high = float(part.min_val), float(part.max_val)
        if method == "deep_lift":
            return lambda: Clamped(low, high)
        return (lambda: Capped(high)) if low == 0 else None
    if type(part) is nn.MaxPool2d and method == "deep_lift" and not (part.ceil_mode or part.return_indices):
        return lambda: PairwiseMax(part)
    return None


@dataclass(frozen=True)
class Step:
    """A step of the forward pass that is not linear.

    Attributes:
        operation: Its name in the graph, such as ``Silu``.
        path: The innermost module it is computed in.
        part: That module.
    """

    operation: str
    path: str
    part: nn.Module

    def __str__(self) -> str:
        """Name it for people."""
        kind = type(self.part).__name__
        where = f"{self.path or 'the network itself'} ({kind})"
        if self.operation in PRODUCTS:
            return f"a product of two activations in {where}"
        if self.operation == "Relu" and not isinstance(self.part, nn.ReLU):
            return f"relu as a function in {where}"
        is_leaf = not any(True for _ in self.part.children())
        return f"{kind} at {self.path}" if is_leaf else f"{self.operation.lower()} in {where}"


def nonlinear_steps(backbone: Backbone, tap: Tap) -> list[Step]:
    """Return the non-linear steps from the image to a tap, one for each call, in no order.

    They are read off autograd's graph, so that functions count as modules do, and side branches that do not
    reach the tap do not count.

    Examples:
        >>> from probekit import Backbone, Preprocessing, Tap
        >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.SiLU(), nn.ReLU(), nn.Tanh())
        >>> backbone = Backbone.from_module(net, preprocessing=Preprocessing(4, 4))
        >>> sorted(str(step) for step in nonlinear_steps(backbone, Tap("2", readout="raw")))
        ['ReLU at 2', 'SiLU at 1']
    """
    names = _Names(backbone.module)
    with ExitStack() as stack:
        names.watch(stack)
        run = stack.enter_context(record(backbone, [replace(tap, readout="raw")], gradients=True))
        stack.enter_context(names)
        (read,) = run(_noise(backbone).requires_grad_()).values()
    parts = dict(backbone.module.named_modules())
    steps = []
    for node, path in _nodes(read.grad_fn, names.paths):
        operation = _operation(node)
        if operation not in LINEAR or (operation in PRODUCTS and _depends_twice(node, operation)):
            steps.append(Step(operation, path, parts[path]))
    return steps


def _noise(backbone: Backbone) -> Tensor:
    size = backbone.preprocessing.size
    values = random_stream("recorded forward", size).standard_normal((TRACE_IMAGES, 3, size, size))
    return torch.from_numpy(values).float().to(backbone.device)


class _Names(TorchFunctionMode):
    """Notes in which module each node of the graph was made."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module, self._open = module, [""]
        self.paths: dict[Any, str] = {}

    def watch(self, stack: ExitStack) -> None:
        """Follow which module is at work; the stack ends it."""

        def enter(path: str) -> Callable[..., None]:
            return lambda *_: self._open.append(path)

        def leave(_: nn.Module, __: object, output: object) -> None:
            # Functions with a gradient of their own are not seen as they are called.
            self._note(output, self._open.pop())

        for path, part in self._module.named_modules():
            stack.callback(part.register_forward_pre_hook(enter(path)).remove)
            stack.callback(part.register_forward_hook(leave).remove)

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - any function of torch
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        del types
        result = func(*args, **(kwargs or {}))
        self._note(result, self._open[-1])
        return result

    def _note(self, result: object, path: str) -> None:
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor) and one.grad_fn is not None:
                self.paths.setdefault(one.grad_fn, path)


def _nodes(last: Any, paths: dict[Any, str]) -> Iterator[tuple[Any, str]]:  # noqa: ANN401 - autograd's nodes
    """Yield the nodes below one, with their modules; a part of a composite step takes that of the whole."""
    waiting, seen = [(last, "")], set()
    while waiting:
        node, above = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        path = paths.get(node, above)
        yield node, path
        waiting += [(below, path) for below, _ in node.next_functions]


def _operation(node: Any) -> str:  # noqa: ANN401
    """Return ``Relu`` for the node ``ReluBackward0``; '' where the graph ends at the image."""
    name: str = node.name()
    if "AccumulateGrad" in name:
        return "Clone"
    return name.rpartition("::")[2].partition("Backward")[0]


def _depends_twice(node: Any, operation: str) -> bool:  # noqa: ANN401
    below = [one for one, _ in node.next_functions]
    if operation == "Div":
        return len(below) > 1 and below[1] is not None
    if operation in ("Addmm", "Baddbmm"):
        below = below[1:]
    if operation == "Convolution":
        below = below[:2]
    return sum(one is not None for one in below) > 1


def _check_steps(backbone: Backbone, tap: Tap, method: str) -> None:
    steps = nonlinear_steps(backbone, tap)
    allowed = _guided if method == "guided_backprop" else _rescaled
    calls = layer_facts(backbone).trace.calls
    steps.sort(key=lambda step: calls[step.path][0].started)
    strange = list(dict.fromkeys(str(step) for step in steps if not allowed(step)))
    if method == "deep_lift" and tap.readout in ("gem", "max"):
        strange.append(f"the readout {tap.readout}")
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise InputError(
            f"steps that {method} has a rule for, from the image to {tap.place}",
            f"{'; '.join(strange[:3])}{more}, which it would pass over in silence",
            "Use integrated_gradients or saliency, which need no rules",
        )


def _guided(step: Step) -> bool:
    """Say whether guided backpropagation treats a step: a ReLU as a module, or no activation at all."""
    if step.operation == "Relu":
        return isinstance(step.part, nn.ReLU)
    return step.operation.startswith(MIXING) or isinstance(step.part, Capped)


def _rescaled(step: Step) -> bool:
    return type(step.part) in RESCALED


def _check_equal(backbone: Backbone, copy: Backbone, tap: Tap) -> None:
    """Refuse a copy that does not compute the same.

    Raises:
        InputError: If its activations differ by more than rounding.
    """
    found: list[Tensor] = []
    for one in (backbone, copy):
        with record(one, [replace(tap, readout="raw")]) as run:
            found += run(_noise(backbone)).values()
    was, now = (one.double() for one in found)
    if not torch.allclose(was, now, rtol=1e-4, atol=1e-5 * float(was.abs().max())):
        raise InputError(
            "a network whose activations can be replaced by modules that compute the same",
            f"a difference of {float((was - now).abs().max()):g} at {tap.place}",
            "Use integrated_gradients, which takes the network as it is",
        )
