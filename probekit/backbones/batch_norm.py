"""Batch-norm statistics: estimated anew from images, and unfolded where they had been folded away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from probekit.backbones.backbone import Backbone, copy_module
from probekit.errors import CheckpointError, InputError

# How far a folded layer's scale may be from 1, its mean from 0: half-precision files round both.
ROUNDING = 2e-3


@dataclass
class Moments:
    """Mean and variance of the inputs of one batch-norm layer, by channel, in float64.

    Attributes:
        count: Values behind each channel.
        mean: (D,) their mean.
        deviation: (D,) their summed squared deviation from it.
    """

    count: int
    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> Moments:
        """Take them from an activation (N, D, …)."""
        values = values.detach()
        if values.dtype != torch.float64:
            values = values.float()
        axes = [axis for axis in range(values.dim()) if axis != 1]
        variance, mean = torch.var_mean(values, dim=axes, correction=0)
        count = values.numel() // values.shape[1]
        return cls(count, mean.cpu().double(), variance.cpu().double() * count)

    def __add__(self, other: Moments) -> Moments:
        """Merge two samples. Source: Chan, Golub & LeVeque (1983), equation 2.1."""
        count = self.count + other.count
        gap = other.mean - self.mean
        # M = M₁ + M₂ + δ²·n₁·n₂/n
        deviation = self.deviation + other.deviation + gap.square() * (self.count * other.count / count)
        return Moments(count, self.mean + gap * (other.count / count), deviation)


def recalibrate_batch_norm(
    backbone: Backbone, batches: Iterable[torch.Tensor], note: str, *, within: Sequence[str] | None = None
) -> Backbone:
    """Return a copy whose batch-norm statistics are those of given images.

    Batches go forward with each batch norm normalising by the batch at hand, all else in eval mode; the mean
    and variance of every layer's inputs over all images become its running statistics. They do not depend on
    the order of the batches beyond rounding.

    Args:
        backbone: Left as it is; returned itself if it has no batch norm with running statistics.
        batches: Prepared images (N, 3, H, W); a last batch of one image is joined to the one before.
        note: What the checkpoint report says of it.
        within: Paths of modules: batch norm elsewhere keeps its statistics, and may be folded. None: all.

    Raises:
        InputError: If there are fewer than two images, or the batch norm is folded.
        CheckpointError: If a statistic is not finite.
    """
    if within is None and is_folded(backbone.module):
        raise InputError(
            "batch norm with statistics of its own",
            f"{backbone.name}, whose batch norm is folded into its convolutions",
            "Unfold it first, unfold_batch_norm: statistics of a batch would replace what was folded",
        )
    module = copy_module(backbone.module)
    layers = tracking_layers(module)
    if within is not None:
        layers = {
            name: layer
            for name, layer in layers.items()
            if any(f"{name}.".startswith(f"{path}.") for path in within)
        }
    if not layers:
        return backbone
    for layer in layers.values():
        layer.training = True  # its own flag only: a dropout inside it stays off
    found = _input_moments(module, layers, _pairs_at_least(batches))
    _store(layers, found)
    silent = [name for name in layers if name not in found]
    if silent:
        note += f"; left as they were, since never called: {', '.join(silent[:3])}"
    return backbone.edited(module.eval(), note)


def is_folded(module: nn.Module) -> bool:
    """Whether a network's batch norm has been folded into its convolutions.

    Then every layer with running statistics still holds those of no data, mean 0 and variance 1, and passes
    its input on with nothing but a bias. Layers that were never trained have no bias, and do not count.

    Examples:
        >>> layer = nn.BatchNorm2d(2)
        >>> is_folded(layer)
        False
        >>> _ = nn.init.constant_(layer.bias, 0.5)
        >>> is_folded(layer)
        True
    """
    layers = tracking_layers(module).values()
    biased = [layer.bias is not None and bool(layer.bias.detach().any()) for layer in layers]
    return any(biased) and all(map(_passes_on, layers))


def unfold_batch_norm(backbone: Backbone, batches: Iterable[torch.Tensor], note: str) -> Backbone:
    """Return a copy whose folded batch norm has the statistics of given images, and computes the same.

    The mean and variance of every layer's inputs over all images become its running statistics; its weight
    and bias undo them, so that the function in eval mode stays what it was, up to rounding. Finetuning and
    batch statistics then start from the trained network; on the folded one they would start from chance.

    Args:
        backbone: Left as it is.
        batches: Prepared images (N, 3, H, W), of the training split.
        note: What the checkpoint report says of it.

    Raises:
        InputError: If the batch norm is not folded, or there are fewer than two images.
        CheckpointError: If a statistic is not finite.
    """
    if not is_folded(backbone.module):
        raise InputError(
            "a backbone whose batch norm is folded into its convolutions",
            f"{backbone.name}, whose batch norm has statistics of its own",
            "Use it as it is",
        )
    module = copy_module(backbone.module)
    layers = tracking_layers(module)
    found = _input_moments(module, layers, _pairs_at_least(batches))
    scales = {name: _scale_and_shift(layers[name]) for name in found}
    _store(layers, found)
    with torch.no_grad():
        for name, (scale, shift) in scales.items():
            layer = layers[name]
            mean, variance = _statistics(layer)
            # s·x + b = s·√(σ² + ε) · (x − μ)/√(σ² + ε) + (b + s·μ)
            weight, bias = scale * (variance + layer.eps).sqrt(), shift + scale * mean
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return backbone.edited(module, note)


def tracking_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch-norm layers that keep running statistics, by path."""
    return {
        name: one
        for name, one in module.named_modules()
        if isinstance(one, _BatchNorm) and one.running_mean is not None
    }


def _passes_on(layer: _BatchNorm) -> bool:
    """Whether a layer in eval mode adds a bias and does nothing else."""
    mean, variance = _statistics(layer)
    scale, _ = _scale_and_shift(layer)
    plain = (mean.abs() <= ROUNDING) & ((variance - 1).abs() <= ROUNDING) & ((scale - 1).abs() <= ROUNDING)
    return bool(plain.all())


def _statistics(layer: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the running mean and variance, in float64."""
    return layer.get_buffer("running_mean").double(), layer.get_buffer("running_var").double()


def _scale_and_shift(layer: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return s and b of the layer's function in eval mode, s·x + b, by channel, in float64."""
    mean, variance = _statistics(layer)
    scale = 1 / (variance + layer.eps).sqrt()
    if layer.affine:
        scale = scale * layer.weight.detach().double()
    shift = -scale * mean
    if layer.affine:
        shift = shift + layer.bias.detach().double()
    return scale, shift


def _input_moments(
    module: nn.Module, layers: Mapping[str, _BatchNorm], batches: Iterable[torch.Tensor]
) -> dict[str, Moments]:
    """Send batches forward and return the moments of what came into each layer; one never called has none."""
    found: dict[str, Moments] = {}

    def gather(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def add(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            moments = Moments.of(inputs[0])
            found[name] = found[name] + moments if name in found else moments

        return add

    handles = [layer.register_forward_pre_hook(gather(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                module(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _pairs_at_least(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the batches, a lone image joined to the batch before it: one value has no variance."""
    held: torch.Tensor | None = None
    for batch in batches:
        if held is None or len(batch) == 1 or len(held) == 1:
            held = batch if held is None else torch.cat([held, batch])
            continue
        yield held
        held = batch
    if held is None or len(held) < 2:
        raise InputError(
            "at least two images to estimate batch-norm statistics",
            "none" if held is None else str(len(held)),
            "Use a larger training split",
        )
    yield held


def _store(layers: Mapping[str, _BatchNorm], found: Mapping[str, Moments]) -> None:
    for name, moments in found.items():
        layer = layers[name]
        # Unbiased, as torch keeps it: M / (n − 1)
        variance = moments.deviation / max(1, moments.count - 1)
        if not (torch.isfinite(moments.mean).all() and torch.isfinite(variance).all()):
            raise CheckpointError(
                "finite batch-norm statistics",
                f"NaN or infinity at {name}",
                "Check the images and the backbone",
            )
        for buffer, value in ((layer.running_mean, moments.mean), (layer.running_var, variance)):
            if buffer is not None:
                buffer.copy_(value)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(1)  # one average over all images, whatever the batches were
