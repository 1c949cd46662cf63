"""Reading activations: plain forward hooks that live for one ``with`` block and leave nothing behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probekit.errors import LayoutUnknown, TapDidNotFire, TapError, TapFiredManyTimes
from probekit.taps.facts import layer_facts
from probekit.taps.layers import resolve_taps
from probekit.taps.readout import UNKNOWN, Layout, read
from probekit.taps.tap import Tap
from probekit.taps.trace import (
    Bundle,
    eval_mode,
    given_tensors,
    refuse_compiled,
    returned_tensors,
)

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone

log = logging.getLogger(__name__)

Run = Callable[[Tensor], dict[Tap, Tensor]]

# Wrappers that must see the end of a forward pass; unwinding through them is unsafe.
_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


class _EarlyStop(Exception):
    """Raised in the last hook that is due; an Exception, so that other parties' hooks are still called."""


@contextmanager
def record(
    backbone: Backbone,
    taps: str | Tap | Sequence[str | Tap],
    *,
    gradients: bool = False,
    stop_early: bool = True,
) -> Iterator[Run]:
    """Read activations of a backbone, batch by batch.

    Within the ``with`` block the backbone is in eval mode. Readouts run inside the hooks, on the live
    tensors, so operations in place that follow cannot alter what is read. On leaving the block, in whatever
    way, the hooks are gone and the training flags restored.

    Args:
        backbone: A frozen backbone.
        taps: What to read; see ``resolve_taps``.
        gradients: Whether to keep the graph, so that gradients flow from the results to the batch. Without it
            the forward runs in inference mode.
        stop_early: Whether to stop the forward once every tapped module has been called as often as
            recorded. Never done where unwinding is unsafe (DataParallel, FSDP, hooks that move weights
            between devices).

    Yields:
        A function from a prepared batch (N, 3, H, W) to a dict Tap → (N, …) tensor, in the order of the taps
        asked for; every tap has an explicit readout.

    Raises:
        TapError: If a tap cannot be read; see ``resolve_taps``. The function raises it where a batch is not
            treated as the recorded forward was.

    Examples:
        >>> from probekit import Backbone
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3))
        >>> with record(Backbone.from_module(net), ["0", "2"]) as run:
        ...     {str(tap): tuple(values.shape) for tap, values in run(torch.zeros(5, 3, 32, 32)).items()}
        {'0|gap': (5, 4), '2|gap': (5, 8)}
    """
    refuse_compiled(backbone.module)
    reader = _Reader(backbone, resolve_taps(backbone, taps), gradients, stop_early)
    with ExitStack() as stack:
        stack.enter_context(eval_mode(backbone.module))
        reader.hook(stack)
        yield reader.run


class _Reader:
    """State of one recording: which calls are still due, what has been read of the batch under way."""

    def __init__(self, backbone: Backbone, taps: list[Tap], gradients: bool, stop_early: bool) -> None:
        facts = layer_facts(backbone)
        self._module, self._taps, self._gradients = backbone.module, taps, gradients
        self._stop_early = stop_early and not _unwinding_is_unsafe(backbone.module)
        self._layouts: dict[Tap, Layout] = {tap: facts.layout(tap) for tap in taps}
        self._ranks = {tap: len(facts.value(tap).shape) for tap in taps}
        # Several paths may name one module, which is hooked once.
        modules = dict(backbone.module.named_modules(remove_duplicate=False))
        self._tapped: dict[str, list[Tap]] = {}
        for tap in taps:
            self._tapped.setdefault(facts.trace.canonical[tap.path], []).append(tap)
        self._modules = {path: modules[path] for path in self._tapped}
        self._expected = {path: len(facts.trace.calls[path]) for path in self._tapped}
        # A module of which only inputs are read is done with when it starts.
        self._ends = {path: any(tap.side == "out" for tap in some) for path, some in self._tapped.items()}
        self._reset(0)

    def _reset(self, images: int) -> None:
        self._images = images
        self._started = dict.fromkeys(self._tapped, 0)
        self._ended = dict.fromkeys(self._tapped, 0)
        self._due = sum(self._expected.values())
        self._stopped = False
        self._error: TapError | None = None
        self._read: dict[Tap, Tensor] = {}

    def hook(self, stack: ExitStack) -> None:
        """Put hooks on the tapped modules; the stack takes them off."""
        for path, module in self._modules.items():
            stack.callback(module.register_forward_pre_hook(self._before(path), with_kwargs=True).remove)
            if self._ends[path]:
                stack.callback(module.register_forward_hook(self._after(path)).remove)

    def run(self, batch: Tensor) -> dict[Tap, Tensor]:
        """Pass one prepared batch through the backbone and return what the taps read."""
        self._reset(len(batch))
        try:
            with torch.enable_grad() if self._gradients else torch.inference_mode():
                self._forward(batch)
            # What a hook raised may have been caught by the model.
            if self._error is not None:
                raise self._error
            for path, expected in self._expected.items():
                self._check_calls(path, expected)
            return {tap: self._read[tap] for tap in self._taps}
        finally:
            self._reset(0)

    def _forward(self, batch: Tensor) -> None:
        try:
            self._module(batch)
        except _EarlyStop:
            return
        except Exception:
            if not self._stopped:
                raise
            # The model answered the stop with an error of its own.
            self._give_up_stopping()
            self._reset(len(batch))
            self._module(batch)
        else:
            # All that was due had been read when the model swallowed the stop.
            if self._stopped:
                self._give_up_stopping()

    def _give_up_stopping(self) -> None:
        log.info("the model catches exceptions of its own layers: forward passes are no longer stopped early")
        self._stop_early = False

    def _before(self, path: str) -> Callable[..., None]:
        taps = [tap for tap in self._tapped[path] if tap.side == "in"]

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._stopped:
                return
            call = self._started[path]
            self._started[path] += 1
            if taps:
                self._take([tap for tap in taps if (tap.call or 0) == call], given_tensors(args, kwargs))
            if not self._ends[path]:
                self._count_down()

        return hook

    def _after(self, path: str) -> Callable[..., None]:
        taps = [tap for tap in self._tapped[path] if tap.side == "out"]

        def hook(_: nn.Module, args: tuple[Any, ...], output: object) -> None:
            if self._stopped:
                return
            call = self._ended[path]
            self._ended[path] += 1
            self._take([tap for tap in taps if (tap.call or 0) == call], returned_tensors(output))
            self._count_down()

        return hook

    def _take(self, taps: list[Tap], live: Bundle[Tensor]) -> None:
        try:
            for tap in taps:
                _, tensor = live.pick(tap.element, tap.place)
                layout = self._layouts[tap]
                self._check_batch(tap, layout, tensor)
                # A graph must not hold the live tensor where what follows may change it in place.
                self._read[tap] = read(tensor.clone() if self._gradients else tensor, tap.readout, layout)
        except TapError as error:
            self._error = error
            raise

    def _check_batch(self, tap: Tap, layout: Layout, tensor: Tensor) -> None:
        if layout.axes == UNKNOWN:
            return
        if tensor.ndim != self._ranks[tap] or tensor.shape[0] != self._images:
            raise LayoutUnknown(
                f"{self._ranks[tap]} axes with {self._images} images first at {tap}",
                f"the shape {tuple(tensor.shape)}",
                "Tap a module that treats every image for itself, in every batch alike",
            )

    def _count_down(self) -> None:
        self._due -= 1
        if self._due == 0 and self._stop_early:
            self._stopped = True
            raise _EarlyStop

    def _check_calls(self, path: str, expected: int) -> None:
        came = self._ended[path] if self._ends[path] else self._started[path]
        if came == expected:
            return
        error = TapDidNotFire if came < expected else TapFiredManyTimes
        raise error(
            f"{expected} calls of {path!r}, as in the recorded forward", f"{came}",
            "The path through the model depends on its input: tap a module that is always called alike",
        )  # fmt: skip


def _unwinding_is_unsafe(module: nn.Module) -> bool:
    """Say whether some wrapper or foreign hook relies on seeing the forward pass end."""
    return any(
        hasattr(part, "_hf_hook") or any(base.__name__ in _WRAPPERS for base in type(part).__mro__)
        for part in module.modules()
    )
