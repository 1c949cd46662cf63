"""Images with one coloured spot, whose colour is the class, and a backbone that sees it from block k on."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from probekit import Backbone, ImageSet, Preprocessing
from probekit.data.annotations import Boxes, stack
from probekit.data.targets import Target

SIDE, SPOT = 12, 4
PIXELS = Preprocessing(SIDE, SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
QUICK = {"random": 0, "permutations": 3, "bootstrap_draws": 200, "penalties": (0.1, 0.01)}
COLOURS = ("red", "green", "blue")


def spots(n: int = 180, *, seed: int = 0, name: str = "spots", shuffled: bool = False) -> ImageSet:
    """Return grey noise with one spot; ``shuffled`` labels say nothing of it."""
    random = np.random.default_rng(seed)
    pixels = random.integers(80, 120, (n, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.arange(n) % len(COLOURS)
    corners = random.integers(0, SIDE - SPOT + 1, (n, 2))
    for i, (x, y) in enumerate(corners):
        pixels[i, y : y + SPOT, x : x + SPOT, labels[i]] += 120
    if shuffled:
        labels = random.permutation(labels)
    boxes = [
        Boxes(np.array([[x, y, x + SPOT, y + SPOT]]), np.array([label]), np.array([False]))
        for (x, y), label in zip(corners, labels, strict=True)
    ]
    targets = {
        "class": Target(labels, "class", COLOURS),
        "boxes": Target(stack(boxes), "boxes", COLOURS),
    }
    return ImageSet.from_arrays(name, pixels, targets, np.where(np.arange(n) < n * 2 // 3, "train", "test"))


def several(n: int = 180) -> ImageSet:
    """Return images with one to three spots of different colours: labels, and a box for each."""
    random = np.random.default_rng(1)
    pixels = random.integers(80, 120, (n, SIDE, SIDE, 3), dtype=np.uint8)
    present, boxes = np.zeros((n, len(COLOURS)), bool), []
    slots = np.array([(x, y) for x in (0, 4, 8) for y in (0, 4, 8)])
    for i in range(n):
        colours = random.permutation(len(COLOURS))[: random.integers(1, len(COLOURS) + 1)]
        corners = slots[random.permutation(len(slots))[: len(colours)]]
        for (x, y), colour in zip(corners, colours, strict=True):
            pixels[i, y : y + SPOT, x : x + SPOT, colour] += 120
        present[i, colours] = True
        boxes.append(Boxes(np.hstack([corners, corners + SPOT]), colours, np.zeros(len(colours), bool)))
    targets = {
        "present": Target(present, "multilabel", COLOURS),
        "boxes": Target(stack(boxes), "boxes", COLOURS),
    }
    return ImageSet.from_arrays(
        "several", pixels, targets, np.where(np.arange(n) < n * 2 // 3, "train", "test")
    )


class Seeing(nn.Module):
    """Maps that are noise below block ``k``, and mixtures of the image's colours from there on."""

    def __init__(self, k: int, blocks: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(nn.Conv2d(3, 6, 1, bias=False) for _ in range(blocks))
        for block in self.blocks:
            block.weight.data = torch.randn(block.weight.shape, generator=generator)
        self.k = k

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        output = image
        # Grey values vary by 40 and spots add 120: the remainder is the same noise inside and outside.
        noise = (image * 255).round() % 40 / 40
        for place, block in enumerate(self.blocks):
            output = block(image if place >= self.k else noise)
        return output


def seeing(k: int, name: str = "seeing") -> Backbone:
    return Backbone.from_module(Seeing(k), name=name, preprocessing=PIXELS)
