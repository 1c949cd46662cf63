"""A small network from features to images, and how it is trained: one fixed budget for every layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from probekit.progress import progress_bar
from probekit.seeds import named_seed

# Maps of 4 × 4 are doubled three times.
COARSE, SIDE = 4, 32
CHANNELS = (32, 24, 12, 3)
_SLOPE = 0.2
# Small first steps: what a deep layer tells is little, and is overlooked by a network that starts loud.
_FIRST, _LAST = 0.1, 0.1
# Standard deviations: what lies further out, as where a channel is nearly constant, is taken as this far.
_FURTHEST = 5.0
# Images a forward pass where nothing is learnt.
_CHUNK = 256

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Budget:
    """How long and how a decoder is trained; the same for every layer.

    Attributes:
        steps: Of the optimiser.
        batch: Images a step.
        rate: Learning rate at its highest: it rises over a tenth of the steps, then falls as a cosine.
        decay: Weight decay of AdamW.
        every: Steps between looks at the val images.
    """

    steps: int = 200
    batch: int = 32
    rate: float = 3e-3
    decay: float = 1.0
    every: int = 10

    def facts(self) -> dict[str, Any]:
        """Return the budget as JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Examples:
    """Features, and which image each of them is to become.

    Attributes:
        features: (n, width).
        rows: (n,) of the images.
    """

    features: Array
    rows: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Scale:
    """What a decoder adds to: the mean image, and how far images are from it.

    Attributes:
        mean: (32, 32, 3).
        spread: Root mean square over images, cells and colours.
    """

    mean: Array
    spread: float

    @classmethod
    def of(cls, pixels: Array, rows: NDArray[np.intp]) -> Scale:
        """Measure the images of ``rows``, some at a time."""
        total, squares = np.zeros(pixels.shape[1:]), np.zeros(pixels.shape[1:])
        for part in _chunks(rows):
            images = pixels[part].astype(np.float64)
            total += images.sum(axis=0)
            squares += np.square(images).sum(axis=0)
        mean = total / len(rows)
        variance = float(np.maximum(squares / len(rows) - mean**2, 0).mean())
        # Images that are all alike have nothing to learn, and nothing to divide by.
        return cls(mean.astype(np.float32), math.sqrt(variance) or 1.0)


class UpConvolution(nn.Module):
    """A linear map to 32 maps of 4 × 4, then three times: double by nearest neighbours, convolve 3 × 3.

    Source: Dosovitskiy and Brox, Inverting Visual Representations with Convolutional Networks (CVPR 2016),
    section 3, much smaller: 24, 12 and 3 maps, leaky ReLUs of slope 0.2 between them.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        first = CHANNELS[0] * COARSE**2
        self.linear = _drawn((width, first), _FIRST / math.sqrt(width), generator)
        self.shift = nn.Parameter(torch.zeros(first))
        pairs = list(pairwise(CHANNELS))
        gains = [1.0] * (len(pairs) - 1) + [_LAST]
        self.kernels = nn.ParameterList(
            _drawn((after, before, 3, 3), gain * math.sqrt(2 / (9 * before)), generator)
            for gain, (before, after) in zip(gains, pairs, strict=True)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(after)) for _, after in pairs)
        # Twice as fast on CPUs.
        self.to(memory_format=torch.channels_last)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, 3, 32, 32) images less the mean, in units of their spread, of (N, width) features."""
        bound = features.clamp(-_FURTHEST, _FURTHEST)
        maps = (bound @ self.linear + self.shift).view(len(features), -1, COARSE, COARSE)
        maps = maps.contiguous(memory_format=torch.channels_last)
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            doubled = functional.interpolate(functional.leaky_relu(maps, _SLOPE), scale_factor=2.0)
            maps = functional.conv2d(doubled, kernel, bias, padding=1)
        return maps


@dataclass(frozen=True, eq=False)
class Decoder:
    """A trained network, as it was at its best on val.

    Attributes:
        network: Its weights are those of ``step``.
        scale: What it adds to.
        step: After which it was best; 0 if it never came nearer to the val images than at first.
        val_r2: Share of the val images' squared distance from the mean image that it explained then.
    """

    network: UpConvolution
    scale: Scale
    step: int
    val_r2: float

    def predict(self, features: Array) -> Array:
        """Return (N, 32, 32, 3) images in [0, 1] of (N, width) features."""
        made = np.empty((len(features), SIDE, SIDE, 3), np.float32)
        with torch.inference_mode():
            for part in _chunks(np.arange(len(features))):
                images = self.network(torch.from_numpy(features[part])).permute(0, 2, 3, 1).numpy()
                made[part] = np.clip(images * self.scale.spread + self.scale.mean, 0, 1)
        return made


def train_decoder(
    train: Examples, val: Examples, pixels: Array, scale: Scale, budget: Budget, *, seed: int, name: str
) -> Decoder:
    """Train a decoder by mean squared error, and keep it as it was when it was best on val.

    Bit for bit the same on a CPU with one thread, for the same seed and name.

    Args:
        train: To learn from.
        val: To choose the step on.
        pixels: (N, 32, 32, 3) in [0, 1], of all images.
        scale: Of the images of train.
        budget: How long.
        seed: Fixes the first weights and the order of images, together with ``name``.
        name: Sets this training apart from others of that seed.
    """
    generator = torch.Generator().manual_seed(named_seed("decoder", seed, name))
    network = UpConvolution(train.features.shape[1], generator)
    optimiser = torch.optim.AdamW(network.parameters(), budget.rate, weight_decay=budget.decay, foreach=True)
    total = _squared_error(None, val, pixels, scale)
    best = (_squared_error(network, val, pixels, scale), 0, _weights(network))
    batches = _batches(len(train.rows), budget, generator)
    with progress_bar(budget.steps, f"Training a decoder ({name})", "step") as bar:
        for step, batch in enumerate(batches, start=1):
            for group in optimiser.param_groups:
                group["lr"] = budget.rate * _share(step, budget.steps)
            wanted = _wanted(pixels[train.rows[batch]], scale)
            loss = functional.mse_loss(network(torch.from_numpy(train.features[batch])), wanted)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if step % budget.every == 0 or step == budget.steps:
                error = _squared_error(network, val, pixels, scale)
                if error < best[0]:
                    best = (error, step, _weights(network))
            bar.update(1)
    network.load_state_dict(best[2])
    return Decoder(network.eval(), scale, best[1], 1 - best[0] / total if total else 0.0)


def _drawn(shape: tuple[int, ...], size: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=generator) * size)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in network.state_dict().items()}


def _share(step: int, steps: int) -> float:
    """Return the share of the highest rate: up over a tenth of the steps, down as half a cosine."""
    return min(1.0, 10 * step / steps) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


def _batches(count: int, budget: Budget, generator: torch.Generator) -> Iterator[NDArray[np.intp]]:
    """Yield rows of the batches: every image once, in random order, before any is seen again."""
    waiting = np.empty(0, np.intp)
    for _ in range(budget.steps):
        while len(waiting) < budget.batch:
            waiting = np.concatenate([waiting, torch.randperm(count, generator=generator).numpy()])
        yield waiting[: budget.batch]
        waiting = waiting[budget.batch :]


def _wanted(images: Array, scale: Scale) -> Tensor:
    return torch.from_numpy((images - scale.mean) / np.float32(scale.spread)).permute(0, 3, 1, 2)


def _squared_error(network: nn.Module | None, val: Examples, pixels: Array, scale: Scale) -> float:
    """Return the summed squared error on val, in units of the spread; without a network that of the mean."""
    total = 0.0
    with torch.inference_mode():
        for part in _chunks(np.arange(len(val.rows))):
            error = _wanted(pixels[val.rows[part]], scale)
            if network is not None:
                error = error - network(torch.from_numpy(val.features[part]))
            total += float(error.square().sum(dtype=torch.float64))
    return total


def _chunks(rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]
