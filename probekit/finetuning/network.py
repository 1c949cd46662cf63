"""A head on the deepest block of a backbone: frozen, or trained with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from probekit.backbones.backbone import Backbone, copy_module
from probekit.backbones.batch_norm import is_folded
from probekit.errors import InputError
from probekit.taps.facts import layer_facts, list_blocks
from probekit.taps.readout import Layout, map_size, read
from probekit.taps.record import record
from probekit.taps.tap import Tap
from probekit.taps.trace import returned_tensors
from probekit.training.loop import Learner

if TYPE_CHECKING:
    from probekit.tasks.task import Task

# Positions a side that a head sees of a grid.
SIDE = 3
# Relative distance up to which two ways through the same modules are the same.
NEAR = 1e-3
# What batch norm does while a backbone is trained: takes the statistics of the batch, or keeps its own.
BATCH_NORM = ("train", "frozen")

Batch = tuple[Tensor, Tensor]
Rest = Callable[[Tensor], Tensor]


class _Read(Exception):
    """Raised once a map is read, behind which the head goes on itself."""


@dataclass(frozen=True)
class Reading:
    """How the deepest block of a backbone is given to a head.

    Attributes:
        path: Its module.
        element: Which tensor it returns, where it returns several.
        place: The tap in words, for messages.
        layout: Of that tensor.
        readout: What is read.
        shape: Of what is read, per image.
        rest: Modules behind what is read, which the head is given as a function; none for most tasks.
        width: Channels behind these.
    """

    path: str
    element: Any
    place: str
    layout: Layout
    readout: str
    shape: tuple[int, ...]
    rest: tuple[str, ...] = ()
    width: int = 0

    @property
    def told(self) -> tuple[int, ...]:
        """Shapes that a head is made for."""
        return (*self.shape, self.width) if self.rest else self.shape

    def __call__(self, activation: Tensor) -> Tensor:
        """Return (N, …) what the head is given."""
        return read(activation, self.readout, self.layout).reshape(len(activation), *self.shape)


def read_for(backbone: Backbone, task: Task) -> Reading:
    """Return how a task reads the deepest block, so that every level lies on the way to its head.

    Raises:
        InputError: If the task needs positions and the block has none, or a last stage that can be applied
            to any map.
        TapError: If the block cannot be read.
    """
    if task.reads == "stages":
        return _read_stages(backbone, task)
    block = list_blocks(backbone)[-1]
    facts = layer_facts(backbone)
    tap = block.tap
    layout = facts.layout(tap)
    shape = facts.value(tap).shape[1:]
    size = layout.grid if layout.axes == "NLC" else map_size(layout, shape)
    readout = _readout(backbone, task, layout, size)
    if readout == "raw" and layout.axes == "NHWC":
        shape = (shape[2], shape[0], shape[1])
    elif task.reads == "map" and size is not None:
        shape = (shape[0] if layout.axes == "NCHW" else shape[-1], *size)
    elif readout != "raw":
        width = shape[0] if layout.axes in ("NC", "NCHW") else shape[-1]
        shape = (width * (int(readout[5:-1]) ** 2 if readout.startswith("grid") else 1),)
    return Reading(tap.path, tap.element, tap.place, layout, readout, tuple(shape))


def _read_stages(backbone: Backbone, task: Task) -> Reading:
    """Return how the map before the last stage is read, and the modules of that stage and of what follows.

    Raises:
        InputError: If the backbone has no two stages of maps, or its last stage is more than its modules one
            after the other.
    """
    blocks, facts = list_blocks(backbone), layer_facts(backbone)
    before = [block for block in blocks if block.stride < blocks[-1].stride]
    tap = before[-1].tap if before else blocks[-1].tap
    if not before or {facts.layout(one).axes for one in (tap, blocks[-1].tap)} != {"NCHW"}:
        raise InputError(
            f"maps of at least two strides, channels first, for {task.name} on the last stage",
            f"{len({block.stride for block in blocks})} and axes {facts.layout(tap).axes} in {backbone.name}",
            "Choose a convolutional network with stages, or --task detection",
        )  # fmt: skip
    called = facts.trace.calls
    members = [one for block in blocks[len(before) :] for one in block.members if called.get(one)]
    # Norms that follow the deepest block are part of it by their parameters, but come after what is read.
    end = called[blocks[-1].path][-1].ended
    within = [one for one in members if called[one][-1].ended <= end]
    rest = tuple(sorted(within, key=lambda one: called[one][-1].started))
    shape = facts.value(tap).shape[1:]
    width = facts.value(blocks[-1].tap).shape[1]
    reading = Reading(tap.path, tap.element, tap.place, facts.layout(tap), "raw", tuple(shape), rest, width)
    _check_rest(backbone, task, reading, blocks[-1].tap)
    return reading


def _check_rest(backbone: Backbone, task: Task, reading: Reading, deepest: Tap) -> None:
    """Refuse a last stage that is more than its modules one after the other."""
    size = backbone.preprocessing.size
    images = torch.linspace(-1, 1, 3 * size**2, device=backbone.device).view(1, 3, size, size)
    learner = Tuned(backbone, task, nn.Identity(), reading, "frozen").eval()
    with record(backbone, replace(deepest, readout="raw")) as run:
        (whole,) = run(images).values()
    why = "these make something else of an image"
    try:
        with torch.no_grad():
            parts = learner.deepest(images)
        same = parts.shape == whole.shape and bool((parts - whole).norm() <= NEAR * whole.norm())
    except (TypeError, RuntimeError, NotImplementedError) as error:
        same, why = False, str(error)[:100]
    if not same:
        raise InputError(
            f"what {backbone.name} computes from modules one after the other: {', '.join(reading.rest)}",
            why, "Choose a network whose stages are consecutive modules, or --task detection",
        )  # fmt: skip


def _readout(backbone: Backbone, task: Task, layout: Layout, size: tuple[int, int] | None) -> str:
    if task.reads == "vector":
        return {"NC": "raw", "NLC": "patch_mean"}.get(layout.axes, "gap")
    if size is None or (task.reads == "map" and layout.axes == "NLC" and size[0] != size[1]):
        raise InputError(
            f"positions in the deepest block of {backbone.name}, for {task.name}",
            f"axes {layout.axes}" if size is None else f"{size[0]} × {size[1]} tokens",
            "Choose a convolutional network, or square images",
        )  # fmt: skip
    if task.reads == "grid":
        return f"grid({min(SIDE, *size)})"
    return f"grid({size[0]})" if layout.axes == "NLC" else "raw"


def is_depthwise(backbone: Backbone) -> bool:
    """Say whether a network has convolutions of one channel each, and runs where these gain by another order.

    With channels last in memory a step of EfficientNet-Lite0 on one core takes .29 s in place of .50 (32
    images of 64 pixels), and 1.98 s in place of 2.43 (8 of 344).
    """
    convolutions = (one for one in backbone.module.modules() if isinstance(one, nn.Conv2d))
    return backbone.device.type != "mps" and any(one.groups == one.in_channels > 1 for one in convolutions)


class Headed(Learner[Batch]):
    """A head on what is read already: on features of a frozen backbone.

    Args:
        task: What is learnt.
        head: Of the task.
        rest: The part of the backbone that the head applies itself, not trained here; None for most tasks.
    """

    def __init__(self, task: Task, head: nn.Module, rest: Rest | None = None) -> None:
        super().__init__()
        self.task, self.head, self.behind = task, head, rest

    def outputs(self, given: Tensor) -> Tensor:
        """Return what the head makes of a batch."""
        made: Tensor = self.head(given) if self.behind is None else self.head(given, self.behind)
        return made

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of (given, truth)."""
        given, truth = batch
        return self.task.loss(self.outputs(given), truth)


class Tuned(Headed):
    """A backbone and a head that are trained together; batches are normalised images.

    Args:
        backbone: Copied.
        task: What is learnt.
        head: On what is read.
        reading: How the backbone is read.
        batch_norm: One of ``BATCH_NORM``.
        still: Modules and parameters of the backbone that are not trained; their batch norm keeps its own
            statistics.

    Raises:
        InputError: If the policy is unknown, or batch norm is to be trained that is folded.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        head: nn.Module,
        reading: Reading,
        batch_norm: str,
        still: Sequence[str] = (),
    ) -> None:
        super().__init__(task, head, self.rest if reading.rest else None)
        if batch_norm not in BATCH_NORM:
            raise InputError(f"batch norm among {', '.join(BATCH_NORM)}", repr(batch_norm), "Choose one")
        if batch_norm == "train" and is_folded(backbone.module):
            raise InputError(
                "batch norm with statistics of its own",
                f"{backbone.name}, whose batch norm is folded into its convolutions",
                "Run probekit unfold first, or set batch_norm=frozen",
            )
        # In a tuple, so that it is no part of what is trained.
        self._bodies = (backbone.module,)
        self.module = copy_module(backbone.module).requires_grad_(True)
        self._order = torch.channels_last if is_depthwise(backbone) else torch.contiguous_format
        if self._order is torch.channels_last:
            self.module.to(memory_format=self._order)
        self.still = tuple(still)
        for name, one in self.module.named_parameters():
            one.requires_grad_(not self._is_still(name))
        self.reading, self.batch_norm = reading, batch_norm
        self._read: list[Tensor] = []
        self.module.get_submodule(reading.path).register_forward_hook(self._hook)

    def _hook(self, _module: nn.Module, _given: Any, returned: Any) -> None:  # noqa: ANN401 - any module's
        # Read at once: what follows may change the tensor in place.
        live = returned_tensors(returned).pick(self.reading.element, self.reading.place)[1]
        self._read.append(self.reading(live))
        if self.reading.rest:
            raise _Read

    def represent(self, images: Tensor) -> Tensor:
        """Return what the head is given of a batch."""
        self._read.clear()
        with suppress(_Read):
            # In the order in memory that the weights have.
            self.module(images.contiguous(memory_format=self._order))
        return self._read.pop()

    def network(self) -> nn.Module:
        """Return a copy of the backbone's network as it is now, without what reads it here."""
        module = copy_module(self._bodies[0])
        module.load_state_dict(self.module.state_dict())
        return module

    def rest(self, maps: Tensor) -> Tensor:
        """Return (n, D′, …) what the modules behind what is read make of maps, of any size."""
        for path in self.reading.rest:
            maps = self.module.get_submodule(path)(maps)
        return maps

    def deepest(self, images: Tensor) -> Tensor:
        """Return what the deepest block says of a batch, as the head is given it."""
        return self.rest(self.represent(images))

    def outputs(self, given: Tensor) -> Tensor:
        """Return what the head makes of a batch of images."""
        return super().outputs(self.represent(given))

    def train(self, mode: bool = True) -> Tuned:
        """Set the mode of backbone and head; frozen batch norm stays as it is in use."""
        super().train(mode)
        for name, one in self.module.named_modules():
            if isinstance(one, _BatchNorm) and (self.batch_norm == "frozen" or self._is_still(name)):
                one.eval()
        return self

    def _is_still(self, name: str) -> bool:
        return any(f"{name}.".startswith(f"{one}.") for one in self.still)
