"""Where images made from features come from: networks, spectra or pixels, each image with its own numbers.

N images lie side by side in the channels of one batch of one: grouped convolutions give each its own weights,
and batch norm in train mode its own statistics, so that no image knows of another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from probekit.errors import InputError
from probekit.seeds import random_stream

PRIORS = ("pyramid", "network", "fourier", "pixels")
SLOPE = 0.2
# Share of the rate at which the finest maps of a pyramid move.
FINEST = 0.1
# Channels of the noise a network starts from, and its largest value.
NOISE_CHANNELS, NOISE = 32, 0.1
# Square root of the covariance of colours in ImageNet, its columns largest first (lucid, Apache-2.0).
_COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
_SPECTRUM_SD = 0.01


class Prior(nn.Module):
    """Makes N images; every parameter and buffer holds one part an image, in their order.

    Attributes:
        count: N images.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the images, in the order given."""
        for held in self.tensors():
            held.data, held.grad = rows_of(held.data, self.count, rows), None
        self.count = len(rows)

    def tensors(self) -> Iterator[Tensor]:
        """Yield all parameters and buffers."""
        yield from self.parameters()
        yield from self.buffers()


def rows_of(values: Tensor, count: int, rows: Sequence[int]) -> Tensor:
    """Return some of the ``count`` equal parts of a tensor, along its first axis.

    Examples:
        >>> rows_of(torch.arange(6), 3, [0, 2]).tolist()
        [0, 1, 4, 5]
    """
    parts = values.reshape(count, -1, *values.shape[1:])[list(rows)]
    return parts.reshape(-1, *values.shape[1:]).clone()


class _Convolution(nn.Module):
    """A convolution of each image by weights of its own, in the size of its input."""

    def __init__(self, draws: list[np.random.Generator], given: int, made: int, kernel: int) -> None:
        super().__init__()
        # PyTorch's own initialisation: uniform up to 1/√(fan in).
        bound = 1 / math.sqrt(given * kernel**2)
        weights = [one.uniform(-bound, bound, (made, given, kernel, kernel)) for one in draws]
        biases = [one.uniform(-bound, bound, made) for one in draws]
        self.made, self.padding = made, kernel // 2
        self.weight = nn.Parameter(torch.from_numpy(np.concatenate(weights)).float())
        self.bias = nn.Parameter(torch.from_numpy(np.concatenate(biases)).float())

    def forward(self, maps: Tensor) -> Tensor:
        groups = self.weight.shape[0] // self.made
        return functional.conv2d(maps, self.weight, self.bias, padding=self.padding, groups=groups)


class _Norm(nn.Module):
    """Batch norm in train mode of one image: by its own mean and variance over places."""

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(count * channels))
        self.bias = nn.Parameter(torch.zeros(count * channels))

    def forward(self, maps: Tensor) -> Tensor:
        return functional.batch_norm(maps, None, None, self.weight, self.bias, training=True)


class SkipNetwork(Prior):
    """The hourglass with skip connections of the deep image prior, from fixed noise to images.

    Each scale halves the size by means of 2 × 2 after a convolution, and doubles it by repeating pixels. What
    comes out is the normalised image, in the middle of which the wanted size is cut.

    Source: Ulyanov, Vedaldi and Lempitsky, Deep Image Prior (CVPR 2018), figure 21 of its supplement, and its
    published code for feature inversion; Zhao et al. (ICLR 2021) leave out the sigmoid.

    Args:
        draws: A random stream an image.
        size: Side of the images in pixels.
        channels: Of each scale, the finest first.
        kernels: Side of the convolutions of each scale.
        skip: Channels of each skip connection.
    """

    def __init__(
        self,
        draws: list[np.random.Generator],
        size: int,
        channels: Sequence[int],
        kernels: Sequence[int],
        skip: int = 4,
    ) -> None:
        super().__init__(len(draws))
        side = network_side(size, len(channels))
        self.size = size
        self.levels = nn.ModuleList()
        for depth, (made, kernel) in enumerate(zip(channels, kernels, strict=True)):
            given = channels[depth - 1] if depth else NOISE_CHANNELS
            below = channels[min(depth + 1, len(channels) - 1)]
            self.levels.append(_Scale(draws, given, made, below, kernel, skip))
        self.out = _Convolution(draws, channels[0], 3, 1)
        noise = np.concatenate([one.random((NOISE_CHANNELS, side, side), np.float32) for one in draws])
        self.register_buffer("noise", torch.from_numpy(noise * np.float32(NOISE)))

    def forward(self) -> Tensor:
        """Return (N, 3, size, size) normalised images."""
        noise = _channels_last(self.get_buffer("noise"))
        return _cut(self.out(self._made(noise, 0)).reshape(self.count, 3, *noise.shape[2:]), self.size)

    def _made(self, maps: Tensor, depth: int) -> Tensor:
        scale = self.levels[depth]
        assert isinstance(scale, _Scale)
        below = scale.down(maps)
        if depth + 1 < len(self.levels):
            below = self._made(below, depth + 1)
        made: Tensor = scale.up(_side_by_side(scale.skip(maps), _doubled(below), self.count))
        return made


class _Scale(nn.Module):
    def __init__(
        self, draws: list[np.random.Generator], given: int, made: int, below: int, kernel: int, skip: int
    ) -> None:
        super().__init__()
        layer = partial(_layer, draws)
        self.skip = nn.Sequential(*layer(given, skip, 1))
        self.down = nn.Sequential(*layer(given, made, kernel, halved=True), *layer(made, made, kernel))
        self.up = nn.Sequential(
            _Norm(len(draws), below + skip), *layer(below + skip, made, kernel), *layer(made, made, 1)
        )


def _layer(
    draws: list[np.random.Generator], given: int, made: int, kernel: int, *, halved: bool = False
) -> list[nn.Module]:
    """Return a convolution, halving if asked for, batch norm and activation."""
    middle = [nn.AvgPool2d(2)] if halved else []
    activation = nn.LeakyReLU(SLOPE, inplace=True)
    return [_Convolution(draws, given, made, kernel), *middle, _Norm(len(draws), made), activation]


def _doubled(maps: Tensor) -> Tensor:
    return functional.interpolate(maps, scale_factor=2, mode="nearest")


def _side_by_side(one: Tensor, other: Tensor, count: int) -> Tensor:
    """Join the channels of two maps image by image: (1, N·A, H, W), (1, N·B, H, W) → (1, N·(A + B), H, W)."""
    if count == 1:
        return torch.cat([one, other], dim=1)
    height, width = one.shape[2:]
    parts = [maps.permute(0, 2, 3, 1).reshape(height, width, count, -1) for maps in (one, other)]
    return torch.cat(parts, dim=3).reshape(1, height, width, -1).permute(0, 3, 1, 2)


class PyramidPrior(Prior):
    """Learnt maps of every scale, joined from coarse to fine by convolutions that are learnt, too.

    The half of ``SkipNetwork`` that goes up: what comes from below is doubled, joined with a few maps of this
    scale in place of skip connections, and convolved twice, as there. A step costs about half, and fewer of
    them are needed, since nothing has to travel down first. The maps of the finest scale move at a tenth of
    the rate: as fast as the others, they would be pixels without a prior, free wherever the layer sees no
    difference; as drawn, some deep layers were out of reach (measured).

    Args:
        draws: A random stream an image.
        size: Side of the images in pixels.
        channels: Of each scale, the finest first.
        kernels: Side of the convolutions of each scale.
        learnt: Maps of each scale.
    """

    def __init__(
        self,
        draws: list[np.random.Generator],
        size: int,
        channels: Sequence[int],
        kernels: Sequence[int],
        learnt: int = 4,
    ) -> None:
        super().__init__(len(draws))
        self.size, scales = size, len(channels)
        self.side = network_side(size, scales)
        self.joins = nn.ModuleList()
        for depth, (made, kernel) in enumerate(zip(channels, kernels, strict=True)):
            below = channels[depth + 1] if depth + 1 < scales else NOISE_CHANNELS
            layers = [*_layer(draws, below + learnt, made, kernel), *_layer(draws, made, made, 1)]
            self.joins.append(nn.Sequential(*layers))
        self.register_buffer("noise", _drawn_maps(draws, learnt, self.side))
        self.moved = nn.Parameter(torch.zeros_like(self.get_buffer("noise")))
        self.maps = nn.ParameterList(_drawn_maps(draws, learnt, self.side >> one) for one in range(1, scales))
        self.base = nn.Parameter(_drawn_maps(draws, NOISE_CHANNELS, self.side >> scales))
        self.out = _Convolution(draws, channels[0], 3, 1)

    def forward(self) -> Tensor:
        """Return (N, 3, size, size) normalised images."""
        maps = _channels_last(self.base)
        every = [self.get_buffer("noise") + FINEST * self.moved, *self.maps]
        for join, own in zip(reversed(self.joins), reversed(every), strict=True):
            maps = join(_side_by_side(_doubled(maps), _channels_last(own), self.count))
        return _cut(self.out(maps).reshape(self.count, 3, self.side, self.side), self.size)


def _drawn_maps(draws: list[np.random.Generator], channels: int, side: int) -> Tensor:
    drawn = [one.random((channels, side, side), np.float32) - np.float32(0.5) for one in draws]
    return torch.from_numpy(np.concatenate(drawn))


def _channels_last(maps: Tensor) -> Tensor:
    """Return (C, H, W) maps as a batch of one, in the order of memory that is fastest where it is known."""
    batch = maps[None]
    return batch if maps.device.type == "mps" else batch.contiguous(memory_format=torch.channels_last)


def _cut(images: Tensor, size: int) -> Tensor:
    first = (images.shape[2] - size) // 2
    return images[:, :, first : first + size, first : first + size]


class FourierPrior(Prior):
    """Spectra divided by their frequency, colours as in photographs, a sigmoid: coarse comes before fine.

    Source: Olah, Mordvintsev and Schubert, Feature Visualization (Distill 2017), in the settings of lucid and
    lucent: √(HW)/max(f, 1/max(H, W)), standard deviation 0.01, a quarter of the inverse transform.

    Args:
        draws: A random stream an image.
        size: Side of the images in pixels.
        mean: Of the preprocessing.
        std: Of the preprocessing.
    """

    def __init__(
        self, draws: list[np.random.Generator], size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(len(draws))
        self.size = size
        shape = (3, size, size // 2 + 1, 2)
        drawn = np.stack([one.normal(0, _SPECTRUM_SD, shape).astype(np.float32) for one in draws])
        self.spectrum = nn.Parameter(torch.from_numpy(drawn))
        frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
        scale = size / np.maximum(frequency, 1 / size) / 4
        self._scale = torch.from_numpy(scale[..., None].astype(np.float32))
        colours = np.array(_COLOURS)
        colours /= np.linalg.norm(colours, axis=0).max()
        self._colours = torch.from_numpy(colours.astype(np.float32))
        self._normal = _Normalised(mean, std)

    def forward(self) -> Tensor:
        """Return (N, 3, size, size) normalised images."""
        spectrum = torch.view_as_complex(self.spectrum * self._scale.to(self.spectrum.device))
        values = torch.fft.irfft2(spectrum, s=(self.size, self.size), norm="ortho")
        turned = torch.einsum("oc,nchw->nohw", self._colours.to(values.device), values)
        return self._normal(turned)


class PixelPrior(Prior):
    """Logits of pixels: no prior but that values lie in [0, 1].

    Args:
        draws: A random stream an image.
        size: Side of the images in pixels.
        mean: Of the preprocessing.
        std: Of the preprocessing.
    """

    def __init__(
        self, draws: list[np.random.Generator], size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(len(draws))
        drawn = np.stack([one.normal(0, _SPECTRUM_SD, (3, size, size)).astype(np.float32) for one in draws])
        self.logits = nn.Parameter(torch.from_numpy(drawn))
        self._normal = _Normalised(mean, std)

    def forward(self) -> Tensor:
        """Return (N, 3, size, size) normalised images."""
        return self._normal(self.logits)


class _Normalised:
    """From values whose sigmoid is a pixel to normalised images; 0 is the mean colour."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        colour = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
        self._mean, self._std = colour, torch.tensor(std, dtype=torch.float32).view(3, 1, 1)
        self._shift = torch.logit(colour.clamp(0.05, 0.95))

    def __call__(self, values: Tensor) -> Tensor:
        mean, std, shift = (one.to(values.device) for one in (self._mean, self._std, self._shift))
        return (torch.sigmoid(values + shift) - mean) / std


def network_side(size: int, scales: int) -> int:
    """Return the side of the network's own image: the next that all scales halve without a rest.

    Raises:
        InputError: If the coarsest map would be smaller than 4 × 4.

    Examples:
        >>> network_side(224, 6), network_side(64, 4), network_side(100, 3)
        (256, 64, 104)
    """
    step = 1 << max(scales, 0)
    side = -(-size // step) * step
    if scales < 1 or scales > most_scales(side):
        raise InputError(
            f"images of more than {3 * step} pixels a side for a prior of {scales} scales", str(size),
            "Load the backbone with a larger `size=`, or choose the preset preview or standard",
        )  # fmt: skip
    return side


def most_scales(size: int) -> int:
    """Return log₂(size) − 2, rounded down: the coarsest map then has at least 4 × 4 places.

    Examples:
        >>> most_scales(64), most_scales(128), most_scales(256)
        (4, 5, 6)
    """
    return int(math.log2(size)) - 2


def image_streams(seeds: Sequence[int], ids: Sequence[str]) -> list[np.random.Generator]:
    """Return a random stream an image: alone or among others, an image starts alike."""
    return [random_stream("prior of an image", *both) for both in zip(seeds, ids, strict=True)]
