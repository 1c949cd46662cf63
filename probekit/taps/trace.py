"""One recorded forward pass: which module was called when, with tensors of which shapes, at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from probekit.errors import AmbiguousOutput, TapError
from probekit.seeds import random_stream

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone

# Images in the recorded forward: more than one, so that the batch axis shows.
TRACE_IMAGES = 2

Element = int | str | None
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Bundle(Generic[Entry]):
    """The tensors on one side of a call, by position or key; None for a bare tensor.

    Attributes:
        entries: Tensors, or what was recorded of them, by element.
        unwraps: Whether a lone entry may be taken without naming its element: true but for mappings.
    """

    entries: Mapping[Element, Entry]
    unwraps: bool = True

    def pick(self, element: Element, place: str) -> tuple[Element, Entry]:
        """Return the element asked for, and its tensor.

        Raises:
            AmbiguousOutput: If the element is not there, or none is named where there are several.
        """
        if element is None and (None in self.entries or (self.unwraps and len(self.entries) == 1)):
            return next(iter(self.entries.items()))
        if element is not None and element in self.entries:
            return element, self.entries[element]
        listed = ", ".join(f"@{key}" for key in self.entries if key is not None)
        if not self.entries:
            raise AmbiguousOutput(f"a tensor at {place}", "none", "Tap a module inside it, or around it")
        if not listed:
            raise AmbiguousOutput(f"a bare tensor at {place}", f"@{element}", f"Leave @{element} out")
        came = "no element named" if element is None else f"@{element}"
        raise AmbiguousOutput(f"one of {listed} at {place}", came, "Name one of them behind the path")


@dataclass(frozen=True)
class Value:
    """What was recorded of one tensor.

    Attributes:
        number: Which tensor object: equal for a tensor handed from module to module; grows with time.
        shape: Its shape, batch axis included.
        size_bytes: Its memory, batch axis included.
    """

    number: int
    shape: tuple[int, ...]
    size_bytes: int


@dataclass
class Call:
    """One call of a module.

    Attributes:
        given: Its arguments.
        first: Numbers of all tensors in its first argument, however nested.
        last: Numbers of all tensors it returned, however nested.
        started: When it started, in events (starts and ends of calls) since the forward began.
        returned: What it returned.
        ended: When it ended, in events.
        flops: Floating point operations within it, its children included.
    """

    given: Bundle[Value]
    first: tuple[int, ...]
    started: int
    returned: Bundle[Value] = field(default_factory=lambda: Bundle({}))
    last: tuple[int, ...] = ()
    ended: int = -1
    flops: int = 0


@dataclass
class Trace:
    """What one forward pass showed.

    Attributes:
        calls: Calls of every module path, aliases included; [] for a module that was never called.
        canonical: For every path, the first path of the same module.
        flops: Floating point operations of the whole forward; a multiply and an add count as two.
        size: Side of the square input, in pixels.
    """

    calls: dict[str, list[Call]]
    canonical: dict[str, str]
    flops: int
    size: int


def returned_tensors(value: object) -> Bundle[Tensor]:
    """Return the tensors a tap can select: the value itself, or the entries of a sequence or mapping."""
    if isinstance(value, Tensor):
        return Bundle({None: value})
    if isinstance(value, Mapping):
        named: dict[Element, Tensor] = {
            _element(key): entry for key, entry in value.items() if isinstance(entry, Tensor)
        }
        return Bundle(named, unwraps=False)
    if isinstance(value, tuple | list):
        return Bundle({place: entry for place, entry in enumerate(value) if isinstance(entry, Tensor)})
    return Bundle({})


def _element(key: object) -> Element:
    """Return a mapping's key as a tap writes it: "0" as 0 (torchvision's pyramids have such keys)."""
    text = str(key)
    return int(text) if text.isascii() and text.isdigit() and text == str(int(text)) else text


def given_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Bundle[Tensor]:
    """Return what an input tap sees: the only argument, else all arguments by position and keyword."""
    named: dict[Element, Tensor] = {key: entry for key, entry in kwargs.items() if isinstance(entry, Tensor)}
    if len(args) == 1 and not named:
        return returned_tensors(args[0])
    return Bundle({**returned_tensors(args).entries, **named})


def refuse_compiled(module: nn.Module) -> None:
    """Refuse modules on which new hooks would be ignored.

    Raises:
        TapError: If the module or a part of it is compiled.
    """
    for path, part in module.named_modules():
        where = f"at {path!r}" if path else "as the whole"
        if type(part).__name__ == "OptimizedModule":
            raise TapError(
                "an eager module", f"a compiled one {where}, which ignores hooks added later",
                "Pass its `_orig_mod`",
            )  # fmt: skip
        if getattr(part, "_compiled_call_impl", None) is not None:
            raise TapError(
                "an eager module", f"one compiled in place {where}, which ignores hooks added later",
                "Build the backbone anew and do not call `.compile()` on it",
            )  # fmt: skip


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch a module and its parts to eval mode, then restore the training flag of each."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, flag in flags:
            part.training = flag


def trace_forward(backbone: Backbone) -> Trace:
    """Run seeded random images through a backbone once and record every call.

    Raises:
        TapError: If the module is compiled.
    """
    module, size = backbone.module, backbone.preprocessing.size
    refuse_compiled(module)
    noise = random_stream("recorded forward", size).standard_normal((TRACE_IMAGES, 3, size, size))
    parameter = next(module.parameters(), None)
    images = torch.from_numpy(noise.astype(np.float32))
    if parameter is not None:
        images = images.to(parameter.device, parameter.dtype)
    # Fused attention is opaque to the counter, so it is computed step by step here.
    counter = FlopCounterMode(display=False)
    recorder = _Recorder(counter)
    with ExitStack() as stack:
        stack.enter_context(eval_mode(module))
        for path, part in module.named_modules():
            for handle in recorder.watch(path, part):
                stack.callback(handle.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(counter)
        module(images)
        flops = counter.get_total_flops()
    first_path = {id(part): path for path, part in module.named_modules()}
    canonical = {path: first_path[id(part)] for path, part in module.named_modules(remove_duplicate=False)}
    calls = {path: recorder.calls.get(first, []) for path, first in canonical.items()}
    return Trace(calls, canonical, flops, size)


class _Recorder:
    """Hooks that write calls down; tensors are numbered, not kept."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.calls: dict[str, list[Call]] = {}
        self._open: dict[str, list[Call]] = {}
        self._counter = counter
        self._events = 0
        self._numbers = WeakIdKeyDictionary()
        self._numbered = 0

    def watch(self, path: str, module: nn.Module) -> list[Any]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = args[0] if args else next(iter(kwargs.values()), None)
            call = Call(self._bundle(given_tensors(args, kwargs)), self._deep(first), self._event())
            call.flops = -self._counter.get_total_flops()
            self.calls.setdefault(path, []).append(call)
            self._open.setdefault(path, []).append(call)

        def after(_: nn.Module, args: tuple[Any, ...], output: object) -> None:
            call = self._open[path].pop()
            call.flops += self._counter.get_total_flops()
            call.returned = self._bundle(returned_tensors(output))
            call.last = self._deep(output)
            call.ended = self._event()

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]

    def _event(self) -> int:
        self._events += 1
        return self._events

    def _number(self, tensor: Tensor) -> int:
        if tensor not in self._numbers:
            self._numbered += 1
            self._numbers[tensor] = self._numbered
        return int(self._numbers[tensor])

    def _bundle(self, live: Bundle[Tensor]) -> Bundle[Value]:
        return Bundle({key: self._value(tensor) for key, tensor in live.entries.items()}, live.unwraps)

    def _value(self, tensor: Tensor) -> Value:
        return Value(self._number(tensor), tuple(tensor.shape), tensor.numel() * tensor.element_size())

    def _deep(self, value: object) -> tuple[int, ...]:
        """Number all tensors in a value, however nested."""
        if isinstance(value, Tensor):
            return (self._number(value),)
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, tuple | list):
            return tuple(number for entry in value for number in self._deep(entry))
        return ()
