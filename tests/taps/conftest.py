from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from probekit.backbones.backbone import Backbone
from probekit.data.transforms import Preprocessing


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def as_backbone():
    def wrap(module: nn.Module, size: int = 32, **settings: Any) -> Backbone:
        return Backbone.from_module(module, preprocessing=Preprocessing(size, size), **settings)

    return wrap


@pytest.fixture(scope="session")
def from_timm(as_backbone):
    def build(arch: str, size: int = 64, **settings: Any) -> Backbone:
        import timm

        torch.manual_seed(0)
        return as_backbone(timm.create_model(arch, **settings), size)

    return build


@pytest.fixture(scope="session")
def images():
    def draw(count: int = 2, size: int = 64, seed: int = 1) -> torch.Tensor:
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))

    return draw
