"""One tap's activation with gradients to the image: the fastest forward pass that is proven right."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probekit.errors import FusionImpossible, NonFiniteFeatures, TapError
from probekit.features.fusion import fuse_with_gradients
from probekit.taps.layers import resolve_taps
from probekit.taps.record import record
from probekit.taps.tap import AUTO, Tap, parse_tap

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone

log = logging.getLogger(__name__)

# Largest relative error of the fused pass, of activations and of gradients: where an activation lies at a
# kink, rounding decides on which side, and the gradient jumps (measured: 0.4 % for one image of four).
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 5e-2
PLAIN, FUSED = "eager", "fused"


def resolve_raw(backbone: Backbone, tap: str | Tap) -> Tap:
    """Return a tap as it is inverted: all of its activation, unless it names a readout.

    Raises:
        TapError: If there is no such tap, or several.
    """
    asked = parse_tap(tap) if isinstance(tap, str) else tap
    found = resolve_taps(backbone, [replace(asked, readout="raw") if asked.readout == AUTO else asked])
    if len(found) != 1:
        raise TapError("one tap", ", ".join(map(str, found)), "Invert one tap at a time")
    return found[0]


class TapForward:
    """Activations of one tap, with gradients to the batch.

    The fused pass (batch norm folded, nothing behind the tap) is taken for a size of batch once it has given
    what the plain one gives there, activations and gradients; else the plain one is.

    Args:
        backbone: A frozen backbone.
        tap: Of ``resolve_raw``.
        example: Prepared true images, on which the fused pass is proven; batches are not longer. Images that
            are being made have flat parts, where a whole map may lie at a kink.
        fused: Whether to try the fused pass.
    """

    def __init__(self, backbone: Backbone, tap: Tap, example: Tensor, *, fused: bool = True) -> None:
        self.backbone, self.tap = backbone, tap
        self._example, self._tries = example, fused
        self._traced: Callable[[Tensor], Tensor] | None = None
        self._proven: dict[int, Callable[[Tensor], Tensor]] = {}

    @property
    def engine(self) -> str:
        """Which pass the last size of batch takes."""
        last = next(reversed(self._proven.values()), self._plain)
        return PLAIN if last == self._plain else FUSED

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the activation (N, …) of a prepared batch (N, 3, H, W)."""
        count = len(batch)
        if count not in self._proven:
            self._proven[count] = self._choose(self._example[:count])
        return self._proven[count](batch)

    def check(self) -> None:
        """Refuse a tap that cannot be inverted, before anything is optimised.

        Raises:
            TapError: If no gradient reaches the image.
            NonFiniteFeatures: If the activation has values that are not finite.
        """
        images = self._example[:1].clone().requires_grad_()
        value = self._plain(images)
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteFeatures(
                "finite activations", f"NaN or infinity at {self.tap}", "Check the backbone and the images"
            )
        gradient = None
        if value.requires_grad and value.is_floating_point():
            (gradient,) = torch.autograd.grad(value.square().sum(), images, allow_unused=True)
        if gradient is None or not bool(gradient.any()):
            raise TapError(
                "a tap through which gradients reach the image", f"none at {self.tap}",
                "Tap a layer before what rounds, detaches or turns to whole numbers",
            )  # fmt: skip

    def _plain(self, batch: Tensor) -> Tensor:
        with record(self.backbone, [self.tap], gradients=True) as run:
            return run(batch)[self.tap]

    def _choose(self, batch: Tensor) -> Callable[[Tensor], Tensor]:
        if not self._tries:
            return self._plain
        try:
            if self._traced is not None and _agree(self._traced, self._plain, batch):
                return self._traced
            self._traced = fuse_with_gradients(self.backbone, self.tap, batch)
            if _agree(self._traced, self._plain, batch):
                return self._traced
        except FusionImpossible as error:
            log.info("%s is inverted by the plain forward pass: %s", self.backbone.name, error)
        self._tries = False
        return self._plain


def _agree(fused: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], batch: Tensor) -> bool:
    """Whether two passes give the same activations and gradients, up to rounding."""
    weights: Tensor | None = None
    found = []
    for forward in (fused, plain):
        images = batch.clone().requires_grad_()
        try:
            value = forward(images)
        except (RuntimeError, AssertionError):
            if forward is plain:
                raise
            return False  # a graph whose shapes are those of another batch
        if weights is None:
            weights = torch.linspace(-1, 1, value.numel(), device=value.device).reshape(value.shape)
        if value.shape != weights.shape:
            return False
        (gradient,) = torch.autograd.grad((value * weights).sum(), images)
        found.append((value.detach(), gradient))
    return all(
        bool((one - other).norm() <= most * other.norm())
        for one, other, most in zip(*found, (TOLERANCE, GRADIENT_TOLERANCE), strict=True)
    )
