"""A backbone whose answer is known inside boxes: noise, what, where, and what without where."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from probekit import Backbone, ImageSet, Preprocessing
from probekit.data.annotations import Boxes, stack
from probekit.data.targets import Target

KINDS, SIDE, CELL = 4, 32, 2
# Red tells the class of an object, and 0 the background; green and blue are noise.
_STEP = 50
PIXELS = Preprocessing(SIDE, SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Part(nn.Module):
    """One map of the image, read at cells of two pixels."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.pool = nn.AvgPool2d(CELL)
        generator = torch.Generator().manual_seed(0)
        self.mix = nn.Conv2d(2, 6, 1, bias=False)
        self.mix.weight.data = torch.randn(6, 2, 1, 1, generator=generator) * 40

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        # Other inputs, such as those by which layers are recorded, hold any numbers.
        code = (image[:, 0] * 255 / _STEP).round().long().clamp(0, KINDS)
        mask = (code > 0)[:, None].float()
        if self.kind == "noise":
            return self.pool(torch.sin(self.mix(image[:, 1:] * 1000)))
        if self.kind == "where":
            axis = torch.arange(SIDE, dtype=torch.float32) / SIDE
            places = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).expand(len(image), -1, -1, -1)
            return self.pool(torch.cat([mask, places], dim=1))
        if self.kind == "everywhere":
            code = code.amax((1, 2), keepdim=True).expand_as(code)
            mask = torch.ones_like(mask)
        # The class of the object, alike at each of its places, nothing elsewhere.
        classes = nn.functional.one_hot((code - 1).clamp(min=0), KINDS).permute(0, 3, 1, 2).float()
        return self.pool(classes * mask)


class PlantedBoxes(nn.Module):
    """Blocks that each tell one thing of the image."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Part(kind) for kind in kinds)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        output = image
        for block in self.blocks:
            output = block(image)
        return output


def planted_boxes(*kinds: str, name: str = "planted") -> Backbone:
    """Return a backbone with one block of each kind: noise, what, everywhere, where."""
    return Backbone.from_module(PlantedBoxes(kinds), name=name, preprocessing=PIXELS)


def objects(count: int = 240, seed: int = 0) -> ImageSet:
    """Return images of one rectangle each, whose class, place and size say nothing of each other."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    pixels[..., 0] = 0
    annotated = []
    for image in pixels:
        width, height = random.integers(8, 17, 2)
        x, y = random.integers(0, SIDE + 1 - width), random.integers(0, SIDE + 1 - height)
        label = int(random.integers(KINDS))
        image[y : y + height, x : x + width, 0] = _STEP * (label + 1)
        corners = np.array([[x, y, x + width, y + height]], np.float32)
        annotated.append(Boxes(corners, np.array([label]), np.zeros(1, np.bool_)))
    splits = np.where(np.arange(count) < 2 * count / 3, "train", "test")
    return ImageSet.from_arrays(
        "objects", pixels, {"boxes": Target(stack(annotated), "boxes", tuple("abcd"))}, splits
    )
