"""A backbone whose answer is known: block k and those above hold the target's code, those below noise."""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 5
SIDE = 8
CHANNELS = 12


class PlantedBlock(nn.Module):
    """Turns the running image into a map: noise that depends on the image, or the code of its class."""

    def __init__(self, place: int, informed: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(place)
        self.mix = nn.Conv2d(3, CHANNELS, 1, bias=False)
        self.mix.weight.data = torch.randn(CHANNELS, 3, 1, 1, generator=generator) * 40
        self.informed = informed

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        # Sines of a steep mixture of noisy pixels: they vary with the image and say nothing of its class.
        noise = torch.sin(self.mix(image * 1000))
        if not self.informed:
            return noise
        # The class stands in the last digit of one pixel, as no linear map of noise could read it.
        code = (image[:, 0, 0, 0] * 255).round().long() % CLASSES
        return noise + 3 * nn.functional.one_hot(code, CHANNELS).float()[:, :, None, None]


class Planted(nn.Module):
    """``blocks`` maps of one image; the code is planted from block ``k`` on."""

    def __init__(self, k: int, blocks: int = 6) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PlantedBlock(place, place >= k) for place in range(blocks))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        output = image
        for block in self.blocks:
            output = block(image)
        return output
