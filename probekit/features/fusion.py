"""One forward pass that returns every readout: traced once, batch norm folded, convolutions packed.

The tapped forward is traced with its hooks, so a tap keeps its meaning: what it reads is a value of the
graph, and a value that is read is never folded or fused away.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from probekit.errors import FusionImpossible
from probekit.taps.record import record

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.taps.tap import Tap

aten = torch.ops.aten
# Activations oneDNN appends to a convolution, in the words of PyTorch's operator; those with bounds apart.
_ACTIVATIONS = {
    aten.relu.default: ("relu", None),
    aten.silu.default: ("swish", None),
    aten.hardswish.default: ("hardswish", None),
    aten.gelu.default: ("gelu", "none"),
}
_BOUNDED = {aten.hardtanh.default: (-1.0, 1.0), aten.relu6.default: (0.0, 6.0)}

Forward = Callable[[Tensor], "dict[Tap, Tensor]"]

PLAIN_INSTEAD = "Read it with engine=eager, in another store if the fused pass was begun in this one"


def fuse(
    backbone: Backbone, taps: Sequence[Tap], example: Tensor, *, precision: torch.dtype = torch.float32
) -> Forward:
    """Return a forward pass that gives what ``record`` gives, faster.

    The hooked forward is traced by ``torch.export``. Then operations in place become operations that are not;
    batch norm is folded into the convolution before it, unless a tap stands between; and on a CPU each
    convolution takes its weights packed for oneDNN, together with the activation and the residual sum that
    follow it. Weights of the backbone are left alone.

    Args:
        backbone: A frozen backbone.
        taps: Resolved taps.
        example: A prepared batch (N, 3, H, W); the forward pass fills shorter ones up to this shape.
        precision: What to compute in; float32, or bfloat16.

    Returns:
        A function from a prepared batch to a dict Tap → (N, …) tensor in the order of ``taps``, equal to
        ``record`` up to rounding: see ``probekit.features.trial`` for the proof.

    Raises:
        FusionImpossible: If the network cannot be traced, or its operations in place cannot be undone.
    """
    traced = _trace(backbone, taps, example)
    graph = traced.graph
    _undo_operations_in_place(graph)
    _prune(graph)
    _fold_batch_norm(traced)
    last = example.device.type != "mps"
    packs = example.device.type == "cpu" and _can_pack(precision)
    if packs:
        _absorb_padding(traced)
    _lay_out_weights(traced, precision, channels_last=last)
    if packs:
        _pack_convolutions(traced, _laid_out(example.to(precision), last))
    graph.lint()
    traced.recompile()

    def forward(batch: Tensor) -> dict[Tap, Tensor]:
        count = len(batch)
        if count < len(example):
            batch = torch.cat([batch, batch.new_zeros(len(example) - count, *batch.shape[1:])])
        with torch.inference_mode():
            values = traced(_laid_out(batch.to(precision), last))
        return {tap: value[:count] for tap, value in zip(taps, values, strict=True)}

    return forward


def fuse_with_gradients(backbone: Backbone, tap: Tap, example: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a forward pass that gives what ``record`` gives of one tap, faster, and passes gradients on.

    As ``fuse``, but convolutions are not packed: packed ones have no gradients. Shorter batches are not
    filled up; whether the graph takes them is for the caller to prove.

    Args:
        backbone: A frozen backbone.
        tap: A resolved tap.
        example: A prepared batch (N, 3, H, W).

    Returns:
        A function from a prepared batch to the activation (N, …), equal to that of ``record`` up to rounding.

    Raises:
        FusionImpossible: If the network cannot be traced, or its operations in place cannot be undone.
    """
    traced = _trace(backbone, [tap], example)
    _undo_operations_in_place(traced.graph)
    _prune(traced.graph)
    _fold_batch_norm(traced)
    last = example.device.type != "mps"
    if example.device.type == "cpu":
        _absorb_padding(traced)
    _lay_out_weights(traced, torch.float32, channels_last=last)
    traced.graph.lint()
    # Made anew, so that the shape of the example is no longer asked for.
    module = fx.GraphModule(traced, traced.graph)

    def forward(batch: Tensor) -> Tensor:
        (value,) = module(_laid_out(batch, last))
        assert isinstance(value, Tensor)
        return value

    return forward


def _can_pack(precision: torch.dtype) -> bool:
    """Whether oneDNN takes packed weights of this precision on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return precision is torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _laid_out(batch: Tensor, channels_last: bool) -> Tensor:
    return batch.contiguous(memory_format=torch.channels_last) if channels_last else batch.contiguous()


class _Tapped(nn.Module):
    """A network whose forward returns the readouts of its taps."""

    def __init__(self, backbone: Backbone, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.body = backbone.module
        self._backbone, self._taps = backbone, list(taps)

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        # With gradients, because inference mode cannot be traced; the weights have none.
        with record(self._backbone, self._taps, gradients=True, stop_early=False) as run:
            return tuple(run(batch).values())


def _trace(backbone: Backbone, taps: Sequence[Tap], example: Tensor) -> fx.GraphModule:
    try:
        program = torch.export.export(_Tapped(backbone, taps), (example,), strict=False)
        traced = program.module()
    except Exception as error:  # what tracing trips over has no common class
        raise FusionImpossible(
            "a network that torch.export can trace",
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            PLAIN_INSTEAD,
        ) from error
    assert isinstance(traced, fx.GraphModule)
    return traced


def _calls(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the operations of a graph, which may be edited meanwhile."""
    yield from (node for node in list(graph.nodes) if node.op == "call_function")


def _undo_operations_in_place(graph: fx.Graph) -> None:
    """Replace every operation in place by the one that returns a new tensor.

    That is the same computation only if nobody reads the changed tensor under its old name afterwards.

    Raises:
        FusionImpossible: If somebody does, or there is no such operation.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in _calls(graph):
        target = node.target
        if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
            continue
        changed = node.args[0] if node.args else None
        name = target._schema.name.removeprefix("aten::")
        free = getattr(getattr(aten, name.removesuffix("_"), None), target._overloadname, None)
        late = isinstance(changed, fx.Node) and any(order[user] > order[node] for user in changed.users)
        if not name.endswith("_") or free is None or late or not isinstance(changed, fx.Node):
            raise FusionImpossible(
                "operations in place whose input is not read again",
                str(target),
                PLAIN_INSTEAD,
            )
        node.target = free


def _prune(graph: fx.Graph) -> None:
    """Erase what no readout needs: layers behind the deepest tap, and checks of the input's shape."""
    needed: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    for node in reversed(list(graph.nodes)):
        if node not in needed and node.op != "placeholder":
            graph.erase_node(node)


def _constant(traced: fx.GraphModule, node: object) -> Tensor | None:
    """Return the weight a node stands for, or None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = operator.attrgetter(str(node.target))(traced)
    return value.detach() if isinstance(value, Tensor) else None


def _add_constant(traced: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    traced.register_buffer(name, value)
    return traced.graph.get_attr(name)


def _fold_batch_norm(traced: fx.GraphModule) -> None:
    """Multiply batch norm into the convolution before it, where nothing else reads that convolution."""
    for norm in _calls(traced.graph):
        if norm.target is not aten.batch_norm.default or norm.args[5]:
            continue
        conv = norm.args[0]
        if not isinstance(conv, fx.Node) or len(conv.users) != 1:
            continue
        if conv.target not in (aten.conv2d.default, aten.conv2d.padding):
            continue
        weight = _constant(traced, conv.args[1])
        mean, variance = (_constant(traced, one) for one in norm.args[3:5])
        if weight is None or mean is None or variance is None:
            continue
        gain, shift = (_constant(traced, one) for one in norm.args[1:3])
        bias = _constant(traced, conv.args[2]) if len(conv.args) > 2 else None
        # γ(w∗x + b − μ)/√(σ² + ε) + β  =  (w·s)∗x + (b − μ)s + β  with  s = γ/√(σ² + ε)
        scale = (variance.double() + float(norm.args[7])).rsqrt()  # type: ignore[arg-type]
        scale = scale if gain is None else scale * gain.double()
        moved = -mean.double() if bias is None else bias.double() - mean.double()
        moved = moved * scale if shift is None else moved * scale + shift.double()
        with traced.graph.inserting_before(conv):
            folded = (
                _add_constant(traced, f"{norm.name}_weight", (weight * scale.view(-1, 1, 1, 1)).to(weight)),
                _add_constant(traced, f"{norm.name}_bias", moved.to(weight)),
            )
        conv.args = (conv.args[0], *folded, *conv.args[3:])
        norm.replace_all_uses_with(conv)
        traced.graph.erase_node(norm)
    _prune(traced.graph)


def _absorb_padding(traced: fx.GraphModule) -> None:
    """Let convolutions pad for themselves what is padded with zeros before them.

    They pad both ends alike. Where one end needs less, taps of zero weight at that end of the kernel reach
    into what is too much: products of zero, at a cost that only a depthwise convolution earns back.
    """
    for pad in _calls(traced.graph):
        conv = _only_user(pad)
        if conv is None or (ends := _zero_padding(pad)) is None or conv.target is not aten.conv2d.default:
            continue
        stride, padding, dilation, groups = _geometry(conv)
        weight = _constant(traced, conv.args[1])
        if weight is None or conv.args[0] is not pad:
            continue
        taps: Any = conv.args[1]
        # Before and after, of rows and of columns.
        sums = [(before + own, after + own) for (before, after), own in zip(ends, padding, strict=True)]
        if any(one != other for one, other in sums):
            if weight.shape[1] > 1 or dilation != [1, 1]:
                continue
            # y[i] = Σⱼ w[j] x[s·i − before + j]: as many taps of zero as the padding of this end grows.
            (top, bottom), (left, right) = ((max(one, two) - one, max(one, two) - two) for one, two in sums)
            grown = nn.functional.pad(weight, (left, right, top, bottom))
            with traced.graph.inserting_before(conv):
                taps = _add_constant(traced, f"{conv.name}_grown", grown)
        bias = conv.args[2] if len(conv.args) > 2 else None
        conv.args = (pad.args[0], taps, bias, stride, [max(one) for one in sums], dilation, groups)
        traced.graph.erase_node(pad)
    _prune(traced.graph)


def _zero_padding(node: fx.Node) -> list[tuple[int, int]] | None:
    """Return (before, after) of rows and of columns, if a node adds that many zeros there and no more."""
    if node.target is not aten.pad.default or node.kwargs:
        return None
    given: list[Any] = [*node.args[1:]]
    amounts, mode, value = given + ["constant", 0][len(given) - 1 :]
    if mode != "constant" or value not in (0, None) or min(amounts) < 0:
        return None
    columns, rows = amounts[:2], [*amounts[2:4], 0, 0][:2]
    return [tuple(rows), tuple(columns)] if len(amounts) in (2, 4) else None


def _lay_out_weights(traced: fx.GraphModule, precision: torch.dtype, *, channels_last: bool) -> None:
    """Give the graph its own weights where they must differ: in precision, or in the order of their axes."""
    number = 0
    for node in list(traced.graph.nodes):
        value = _constant(traced, node)
        if value is None or not value.is_floating_point():
            continue
        changed = value.to(precision)
        if channels_last and value.dim() == 4:
            changed = changed.contiguous(memory_format=torch.channels_last)
        if changed is not value:
            with traced.graph.inserting_before(node):
                node.replace_all_uses_with(_add_constant(traced, f"laid_out_{number}", changed))
            traced.graph.erase_node(node)
            number += 1
    traced.delete_all_unused_submodules()


@dataclass(eq=False)
class _PackedConvolution:
    """A convolution by oneDNN with weights in its own order, followed by a sum and an activation.

    Attributes:
        weight: Packed weights.
        bias: (C,) or None.
        geometry: Padding, stride, dilation, groups.
        activation: Its word, bounds, and algorithm, as PyTorch's operator takes them.
    """

    weight: Tensor
    bias: Tensor | None
    geometry: tuple[Any, ...]
    activation: tuple[str, list[float], str | None]

    def __post_init__(self) -> None:
        # What the code generated for a graph calls a function by.
        self.__name__ = self.__qualname__ = "packed_convolution"

    def __call__(self, images: Tensor, added: Tensor | None = None) -> Tensor:
        word, bounds, algorithm = self.activation
        packed = torch.ops.mkldnn._convolution_pointwise
        if added is None:
            result = packed(images, self.weight, self.bias, *self.geometry, word, bounds, algorithm)
        else:
            after = None if word == "none" else word
            result = packed.binary(
                images, added, self.weight, self.bias, *self.geometry, "add", 1.0, after, bounds, algorithm
            )
        assert isinstance(result, Tensor)
        return result


def _pack_convolutions(traced: fx.GraphModule, batch: Tensor) -> None:
    """Let oneDNN compute every convolution, with the sum and the activation behind it where it has one."""
    shapes = _shapes(traced, batch)
    for conv in _calls(traced.graph):
        if conv.target is not aten.conv2d.default:
            continue
        weight = _constant(traced, conv.args[1])
        bias = _constant(traced, conv.args[2]) if len(conv.args) > 2 else None
        if weight is None or (len(conv.args) > 2 and conv.args[2] is not None and bias is None):
            continue
        stride, padding, dilation, groups = _geometry(conv)
        geometry = (padding, stride, dilation, groups)
        source, chain, added = conv.args[0], [conv], None
        assert isinstance(source, fx.Node)
        if (sum_ := _residual_sum(conv, shapes)) is not None:
            added, chain = sum_[0], [conv, sum_[1]]
        activation: tuple[str, list[float], str | None] = ("none", [], None)
        if (after := _activation(chain[-1])) is not None and (added is None or after[0][0] == "relu"):
            activation, chain = after[0], [*chain, after[1]]
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(shapes[source]))
        function = _PackedConvolution(packed, bias, geometry, activation)
        with traced.graph.inserting_before(chain[-1]):
            new = traced.graph.call_function(function, (source,) if added is None else (source, added))
        shapes[new] = shapes[chain[-1]]
        chain[-1].replace_all_uses_with(new)
        for node in reversed(chain):
            traced.graph.erase_node(node)
    _prune(traced.graph)
    traced.delete_all_unused_submodules()


def _shapes(traced: fx.GraphModule, batch: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Return the shape of every value that is a tensor, by running the graph once."""
    shapes: dict[fx.Node, tuple[int, ...]] = {}

    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - whatever the node returns
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n] = tuple(value.shape)
            return value

    with torch.inference_mode():
        Watching(traced).run(batch)
    return shapes


def _geometry(conv: fx.Node) -> tuple[list[int], list[int], list[int], int]:
    """Return stride, padding, dilation and groups of a convolution, defaults filled in."""
    given: list[Any] = [*conv.args[3:]]
    stride, padding, dilation, groups = given + [[1, 1], [0, 0], [1, 1], 1][len(given) :]
    return list(stride), list(padding), list(dilation), int(groups)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _residual_sum(conv: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> tuple[fx.Node, fx.Node] | None:
    """Return what is added to a convolution, and the sum, if nothing else reads the convolution."""
    user = _only_user(conv)
    if user is None or user.target is not aten.add.Tensor or user.kwargs:
        return None
    others = [one for one in user.args if one is not conv]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or shapes.get(others[0]) != shapes[conv]:
        return None
    return others[0], user


def _activation(node: fx.Node) -> tuple[tuple[str, list[float], str | None], fx.Node] | None:
    """Return the activation that alone reads a value, as oneDNN names it."""
    user = _only_user(node)
    if user is None:
        return None
    if user.target in _BOUNDED and not user.kwargs:
        given = [float(one) for one in user.args[1:]]  # type: ignore[arg-type]
        return ("hardtanh", given + list(_BOUNDED[user.target][len(given) :]), None), user
    if user.target in _ACTIVATIONS and len(user.args) == 1 and not user.kwargs:
        word, algorithm = _ACTIVATIONS[user.target]
        return (word, [], algorithm), user
    return None
