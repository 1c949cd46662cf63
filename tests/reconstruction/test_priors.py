"""Priors: shapes, independence of images, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from probekit.errors import InputError
from probekit.reconstruction.priors import (
    FourierPrior,
    PixelPrior,
    PyramidPrior,
    SkipNetwork,
    image_streams,
    network_side,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.25)
NETWORKS = {"skip": SkipNetwork, "pyramid": PyramidPrior}


def made(kind, ids, size=32, seed=0):
    draws = image_streams([seed] * len(ids), ids)
    if kind in NETWORKS:
        return NETWORKS[kind](draws, size, (4, 6, 8), (5, 3, 3))
    return {"fourier": FourierPrior, "pixels": PixelPrior}[kind](draws, size, MEAN, STD)


KINDS = ("skip", "pyramid", "fourier", "pixels")


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_starts_and_moves_alike_alone_and_among_others(kind):
    together, alone = made(kind, ["a", "b", "c"]), made(kind, ["b"])
    target = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    images = []
    for prior in (together, alone):
        optimiser = torch.optim.Adam(prior.parameters(), 1e-2)
        for _ in range(5):
            optimiser.zero_grad()
            (prior() - target).square().flatten(1).mean(dim=1).sum().backward()
            optimiser.step()
        images.append(prior().detach())
    assert images[0].shape == (3, 3, 32, 32)
    torch.testing.assert_close(images[0][1:2], images[1], rtol=0, atol=2e-4)
    assert not torch.allclose(images[0][0], images[0][1], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_kept_stay_as_they_are(kind):
    prior = made(kind, ["a", "b", "c"])
    before = prior().detach()
    prior.keep([2, 0])
    torch.testing.assert_close(prior().detach(), before[[2, 0]], rtol=0, atol=1e-5)
    prior().sum().backward()
    assert all(one.grad is not None for one in prior.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_starts_elsewhere(kind):
    assert not torch.equal(made(kind, ["a"], seed=0)(), made(kind, ["a"], seed=1)())


class Published(nn.Module):
    """The skip network as its authors write it, for one image, with their batch norm in train mode."""

    def __init__(self, channels, kernels, skip):
        super().__init__()

        def conv(given, made, kernel):
            return nn.Conv2d(given, made, kernel, padding=kernel // 2)

        self.parts = nn.ModuleList()
        for depth, (made, kernel) in enumerate(zip(channels, kernels, strict=True)):
            given = channels[depth - 1] if depth else 32
            below = channels[min(depth + 1, len(channels) - 1)]
            act = nn.LeakyReLU(0.2)
            self.parts.append(
                nn.ModuleList(
                    [
                        nn.Sequential(conv(given, skip, 1), nn.BatchNorm2d(skip), act),
                        nn.Sequential(
                            conv(given, made, kernel), nn.AvgPool2d(2, 2), nn.BatchNorm2d(made), act,
                            conv(made, made, kernel), nn.BatchNorm2d(made), act,
                        ),
                        nn.Sequential(
                            nn.BatchNorm2d(below + skip),
                            conv(below + skip, made, kernel), nn.BatchNorm2d(made), act,
                            conv(made, made, 1), nn.BatchNorm2d(made), act,
                        ),
                    ]
                )
            )  # fmt: skip
        self.last = conv(channels[0], 3, 1)

    def forward(self, noise):
        return self.last(self.scale(noise, 0))

    def scale(self, maps, depth):
        skip, down, up = self.parts[depth]
        below = down(maps)
        if depth + 1 < len(self.parts):
            below = self.scale(below, depth + 1)
        return up(torch.cat([skip(maps), functional.interpolate(below, scale_factor=2)], dim=1))


def test_the_skip_network_is_the_published_one():
    ours = made("skip", ["a", "b"])
    theirs = Published((4, 6, 8), (5, 3, 3), 4).train()
    # The order in which ours registers its parts: skip, down, up of each scale, then the last convolution.
    state = list(theirs.state_dict().items())
    wanted = [(name, value) for name, value in state if "running" not in name and "num_batches" not in name]
    parameters = list(ours.parameters())
    assert len(parameters) == len(wanted)
    for number in range(2):
        for (name, value), own in zip(wanted, parameters, strict=True):
            part = own.detach().reshape(2, -1, *own.shape[1:])[number]
            assert part.shape == value.shape, name
            value.copy_(part)
        noise = ours.noise.reshape(2, 32, 32, 32)[number : number + 1]
        torch.testing.assert_close(theirs(noise), ours()[number : number + 1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_finest_maps_of_a_pyramid_move_at_a_tenth_of_the_rate():
    prior = made("pyramid", ["a", "b"])
    before, ramp = prior(), torch.linspace(-1, 1, 32)
    prior.moved.add_(ramp)
    moved = prior()
    prior.moved.zero_()
    prior.noise.add_(ramp / 10)
    torch.testing.assert_close(prior(), moved, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, moved, atol=1e-3)


def test_sizes_that_do_not_halve_are_cut_from_the_next_that_does():
    assert network_side(224, 6) == 256
    assert made("skip", ["a"], size=36)().shape == (1, 3, 36, 36)
    assert made("pyramid", ["a"], size=36)().shape == (1, 3, 36, 36)


def test_images_too_small_for_the_scales_are_refused():
    with pytest.raises(InputError, match="more than 24 pixels"):
        made("skip", ["a"], size=24)
    with pytest.raises(InputError, match="more than 192 pixels"):
        network_side(128, 6)


def test_spectra_make_real_images_that_start_at_the_mean_colour():
    draws = image_streams([0] * 20, [str(i) for i in range(20)])
    pixels = FourierPrior(draws, 32, MEAN, STD)().detach() * torch.tensor(STD).view(3, 1, 1)
    pixels += torch.tensor(MEAN).view(3, 1, 1)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    np.testing.assert_allclose(pixels.mean(dim=(0, 2, 3)).numpy(), MEAN, atol=0.05)
    # Energy falls with frequency: the second derivative is small beside the first.
    along = pixels.diff(dim=3)
    assert float(along.diff(dim=3).square().mean()) < 2.5 * float(along.square().mean())
