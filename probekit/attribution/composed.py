"""A backbone and a linear probe as one differentiable module, from the prepared image to the scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from probekit.errors import InputError, TapError
from probekit.taps.facts import layer_facts
from probekit.taps.layers import resolve_taps, tap_facts
from probekit.taps.readout import MAPS, Layout
from probekit.taps.record import record
from probekit.taps.tap import Tap

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.results.fitted import Probe


class ProbedBackbone(nn.Module):
    """Prepared images → backbone → tap → readout → standardisation → scores of a linear probe.

    Nothing is detached, so gradients flow from the scores to the images. The forward stops at the tap; the
    hooks that read it live within one call. The network is a child named ``backbone``, the very object: hooks
    of others on its modules work, and are theirs to remove.

    Attributes:
        backbone: The network.
        tap: Where it is read, with an explicit readout.
        layer: A place before the tap whose activation passes through ``places``; None if there is none.
        places: Is called with the activation of ``layer`` as (N, D, H, W) and returns it, so that a hook on
            this module sees maps whatever the layout of the network.
    """

    mean: Tensor
    weight: Tensor
    intercept: Tensor
    columns: Tensor

    def __init__(self, backbone: Backbone, probe: Probe, *, layer: Tap | None = None) -> None:
        super().__init__()
        self.backbone = backbone.module
        self.places = nn.Identity()
        self._source, self.layer = backbone, layer
        (self.tap,) = resolve_taps(backbone, probe.tap)
        _check_width(backbone, self.tap, probe)
        dtype = torch.float32 if backbone.device.type == "mps" else torch.float64
        # Scores are (x − μ) · w/σ + b over the columns that were kept.
        arrays = {
            "mean": probe.mean, "weight": probe.weights / probe.scale[:, None], "intercept": probe.intercept,
        }  # fmt: skip
        for name, values in arrays.items():
            self.register_buffer(name, torch.tensor(values, dtype=dtype, device=backbone.device))
        columns = torch.tensor(probe.kept.nonzero()[0], device=backbone.device)
        self.register_buffer("columns", columns)

    def train(self, mode: bool = True) -> ProbedBackbone:
        """Leave all as it is: a frozen backbone has no training mode."""
        del mode
        return self

    def forward(self, images: Tensor, outputs: Tensor | None = None, against: Tensor | None = None) -> Tensor:
        """Score prepared images.

        Args:
            images: (N, 3, size, size), as ``Backbone.prepare`` returns them.
            outputs: (N,) places in the probe's classes; None returns all.
            against: (N,) places whose scores are taken off.

        Returns:
            (N, K) scores, or (N,): those of ``outputs``, less those of ``against``. float64, or float32 on a
            device that has no other.
        """
        scores = self.scores(self.features(images))
        if outputs is None:
            return scores
        chosen = scores.gather(1, outputs[:, None])[:, 0]
        return chosen if against is None else chosen - scores.gather(1, against[:, None])[:, 0]

    def features(self, images: Tensor) -> Tensor:
        """Return the (N, D) features of prepared images, in the graph."""
        handle = None if self.layer is None else _pass_through(self.places, self._source, self.layer)
        try:
            with record(self._source, [self.tap], gradients=True) as run:
                return run(images)[self.tap].flatten(1)
        finally:
            if handle is not None:
                handle.remove()

    def scores(self, features: Tensor) -> Tensor:
        """Return the (N, K) scores of features."""
        kept = features[:, self.columns].to(self.weight.dtype)
        return (kept - self.mean) @ self.weight + self.intercept

    def place_gradients(self, images: Tensor, outputs: Tensor) -> Tensor:
        """Return (N, D, H, W) gradients of one score of each image in the activation of ``layer``.

        Raises:
            TapError: If the scores do not depend on any place of the layer.
        """
        seen: list[Tensor] = []
        handle = self.places.register_forward_hook(lambda _, __, maps: seen.append(maps))
        try:
            with torch.enable_grad():
                chosen = self(images.detach().clone().requires_grad_(), outputs)
        finally:
            handle.remove()
        found = None
        if chosen.requires_grad:
            (found,) = torch.autograd.grad(chosen.sum(), seen[0], allow_unused=True)
        if self.layer is None or found is None or (self.weighs(outputs) and not found.any()):
            raise TapError(
                f"a layer whose places decide what is read at {self.tap}",
                f"{self.layer and self.layer.place}, on no place of which it depends",
                "It lies aside, its branch has zero weight, or only class tokens are read behind it: name an "
                "earlier layer as `layer=`",
            )
        return found

    def weighs(self, outputs: Tensor) -> bool:
        """Say whether any of some outputs has a weight that is not zero."""
        return bool(self.weight[:, outputs].any())


def compose(backbone: Backbone, probe: Probe) -> ProbedBackbone:
    """Return a backbone and a probe as one differentiable module.

    Its scores are those of ``probe.scores(features)`` to what float32 forward passes in other batches differ
    by: relative 1e-5 is usual. Source: ``metrics.md`` section 3, after Alain and Bengio, Understanding
    intermediate layers using linear classifier probes (2016).

    Args:
        backbone: What the probe was fitted to.
        probe: A fitted probe, of any tap and readout.

    Returns:
        A module from (N, 3, size, size) prepared images to (N, K) scores: logits, never probabilities.

    Raises:
        TapError: If the probe's tap cannot be read.
        InputError: If the features of the tap are not as many as the probe's.

    Examples:
        >>> import numpy as np
        >>> from probekit import Backbone, Preprocessing, Probe
        >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
        >>> backbone = Backbone.from_module(net, preprocessing=Preprocessing(4, 4))
        >>> probe = Probe(weights=np.eye(2), intercept=np.zeros(2), mean=np.zeros(2), scale=np.ones(2),
        ...               kept=np.ones(2, bool), classes=("a", "b"), kind="class", tap="1|gap", penalty=0.1,
        ...               target="class")
        >>> composed, image = compose(backbone, probe), torch.ones(1, 3, 4, 4)
        >>> torch.allclose(composed(image).float(), backbone.module(image).mean((2, 3)))
        True
    """
    return ProbedBackbone(backbone, probe)


def own_classifier(backbone: Backbone, classes: Sequence[str] | None = None) -> Probe:
    """Return a backbone's own classifier as a probe, which attributions take as any other.

    Args:
        backbone: One with a classifier.
        classes: Names of its K classes; None: ``0`` to K − 1.

    Raises:
        InputError: If there is no classifier, or it has another number of classes.
    """
    from probekit.results.fitted import Probe

    if backbone.classifier is None or not backbone.has_head:
        raise InputError("a backbone with a classifier", f"{backbone.name} without", "Give a fitted probe")
    (tap,) = resolve_taps(backbone, f"{backbone.classifier}|raw")
    width = math.prod(tap_facts(backbone, tap)["readout_shape"])
    names = tuple(map(str, range(width) if classes is None else classes))
    if len(names) != width:
        raise InputError(f"{width} class names", str(len(names)), "Give one for each output")
    identity, zeros = np.eye(width), np.zeros(width)
    return Probe(
        weights=identity, intercept=zeros, mean=zeros, scale=zeros + 1, kept=zeros == 0, classes=names,
        kind="class", tap=str(tap), penalty=0.0, target="classifier",
    )  # fmt: skip


def _check_width(backbone: Backbone, tap: Tap, probe: Probe) -> None:
    width = math.prod(tap_facts(backbone, tap)["readout_shape"])
    if width != len(probe.kept):
        raise InputError(
            f"a probe of the {width} features at {tap}", f"one of {len(probe.kept)}",
            "Give the backbone, and the input size, that the probe was fitted to",
        )  # fmt: skip


def resolve_layer(backbone: Backbone, layer: str | Tap, tap: Tap) -> Tap:
    """Return a layer with places that is done when a tap is read.

    Args:
        backbone: Where both lie.
        layer: Path or tap of the layer; its readout plays no part.
        tap: What is read, resolved.

    Raises:
        TapError: If the layer lies behind the tap, or has no places.
    """
    (found,) = resolve_taps(backbone, _raw(layer))
    facts = layer_facts(backbone)
    if _event(backbone, found) > _event(backbone, tap):
        raise TapError(
            f"a layer that is done when {tap.place} is read", f"{found.place}, which lies behind it",
            f"Name {tap.place} or a layer before it",
        )  # fmt: skip
    layout = facts.layout(found)
    if not has_places(layout):
        raise TapError(
            f"a layer with places, such as maps or patches on a known grid, before {tap.place}",
            f"{found.place} with axes {layout.axes}",
            "Name an earlier layer as `layer=`",
        )
    call = facts.trace.calls[found.path][found.call or 0]
    if None not in (call.given if found.side == "in" else call.returned).entries:
        raise TapError("a layer of one bare tensor", str(found), "Name a module inside it or around it")
    return found


def has_places(layout: Layout) -> bool:
    """Say whether an activation has places in the image."""
    return layout.axes in MAPS or (layout.axes == "NLC" and layout.grid is not None)


def _raw(layer: str | Tap) -> list[str | Tap]:
    if isinstance(layer, Tap):
        return [replace(layer, readout="raw")]
    return [layer.partition("|")[0] + "|raw"]


def _event(backbone: Backbone, tap: Tap) -> int:
    """Return when a tap is read, in events of the recorded forward."""
    call = layer_facts(backbone).trace.calls[tap.path][tap.call or 0]
    return call.started if tap.side == "in" else call.ended


def _pass_through(places: nn.Module, backbone: Backbone, layer: Tap) -> Any:  # noqa: ANN401 - torch's handle
    """Hook a layer so that its activation passes through a module as (N, D, H, W)."""
    facts = layer_facts(backbone)
    layout, canonical = facts.layout(layer), facts.trace.canonical[layer.path]
    module = backbone.module.get_submodule(canonical)
    calls = 0

    def through(live: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return _through_maps(places, live, layout) if calls == (layer.call or 0) + 1 else live

    def before(_: nn.Module, given: tuple[Any, ...]) -> Any:  # noqa: ANN401 - arguments of any module
        return (through(given[0]), *given[1:])

    def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return through(output)

    if layer.side == "in":
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(after)


def _through_maps(places: nn.Module, live: Tensor, layout: Layout) -> Tensor:
    seen: Tensor
    # What goes on is a copy: what follows in place must not alter what was seen.
    if layout.axes == "NCHW":
        seen = places(live)
        return seen.clone()
    if layout.axes == "NHWC":
        seen = places(live.permute(0, 3, 1, 2))
        return seen.permute(0, 2, 3, 1).clone()
    first = layout.prefix_tokens or 0
    rows, columns = layout.grid or (0, 0)
    seen = places(live[:, first:].transpose(1, 2).reshape(len(live), -1, rows, columns))
    return torch.cat([live[:, :first], seen.flatten(2).transpose(1, 2)], dim=1)
