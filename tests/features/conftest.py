"""A small image set and a small backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from probekit import Backbone, ImageSet, Preprocessing
from probekit.data.targets import Target


def images(n: int = 50, name: str = "small", seed: int = 0) -> ImageSet:
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    pixels = random.integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
    splits = np.where(np.arange(n) < n * 4 // 5, "train", "test")
    return ImageSet.from_arrays(
        name, pixels, {"class": Target(labels, "class", ("even", "odd"))}, splits=splits
    )


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3),
    )


def small_backbone(seed: int = 0, size: int = 12) -> Backbone:
    return Backbone.from_module(small_net(seed), name="small", preprocessing=Preprocessing(size, size))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"
