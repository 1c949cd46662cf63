"""What every analysis promises, shown of ``reconstruct``."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import probekit
from probekit import Backbone, Preprocessing, ResultTable
from tests.contracts.test_probe_contracts import count_hooks
from tests.reconstruction.test_sweep import DECODER, QUICK, pictures

PIXELS = Preprocessing(12, 12, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Forgetting(nn.Module):
    """Mixtures of the image's colours; those of block ``k`` and above keep their brightness alone."""

    def __init__(self, k: int, blocks: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(nn.Conv2d(3, 6, 1, bias=False) for _ in range(blocks))
        for block in self.blocks:
            block.weight.data = torch.randn(block.weight.shape, generator=generator)
        self.k = k

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        output = image
        for place, block in enumerate(self.blocks):
            output = block(image.mean(1, keepdim=True).expand(-1, 3, -1, -1) if place >= self.k else image)
        return output


def forgetting(k: int, name: str = "forgetting") -> Backbone:
    return Backbone.from_module(Forgetting(k), name=name, preprocessing=PIXELS)


METHODS = [pytest.param(QUICK, id="linear"), pytest.param(DECODER, id="decoder", marks=pytest.mark.slow)]


def shares(table: ResultTable, model: str) -> dict[str, float]:
    rows = table.where(metric="pixel_r2", model=model, target="all").frame
    return dict(zip(rows["block"], rows["value"], strict=True))


@pytest.mark.parametrize("k", [1, 3])
def test_a_planted_loss_is_found(k: int, tmp_path: Path):
    found = shares(
        probekit.reconstruct(forgetting(k), pictures(), taps="blocks", store=tmp_path, **QUICK), "forgetting"
    )
    assert len(found) == 4
    for place, (block, value) in enumerate(found.items()):
        # Three equal colours share a third of the variance with their mean.
        assert 0.2 < value < 0.45 if place >= k else value > 0.9, block


@pytest.mark.slow
def test_a_planted_loss_is_found_by_the_decoder(tmp_path: Path):
    taps = ["blocks.1", "blocks.2"]
    found = shares(
        probekit.reconstruct(forgetting(2), pictures(), taps=taps, store=tmp_path, **DECODER),
        "forgetting",
    )
    # Three equal colours share a third of the variance with their mean; so few steps do not reach all of it.
    assert found["blocks.1"] > 0.5
    assert 0.1 < found["blocks.2"] < 0.45


@pytest.mark.parametrize("method", METHODS)
def test_swapped_weights_swap_the_table(method, tmp_path: Path):
    data, settings = pictures(), {"taps": ["blocks.2"], "store": tmp_path, **method}
    one = probekit.reconstruct([forgetting(1, "a"), forgetting(3, "b")], data, **settings)
    other = probekit.reconstruct([forgetting(3, "a"), forgetting(1, "b")], data, **settings)
    assert shares(one, "a") == shares(other, "b")
    assert shares(one, "b") == shares(other, "a")
    assert shares(one, "a") != shares(one, "b")


@pytest.mark.parametrize("method", METHODS)
def test_a_duplicated_model_differs_by_exactly_nothing(method, tmp_path: Path):
    models = [forgetting(2, "a"), forgetting(2, "b")]
    table = probekit.reconstruct(models, pictures(), taps=["blocks.1", "blocks.3"], store=tmp_path, **method)
    a, b = (table.where(model=name).frame.drop(columns="model").reset_index(drop=True) for name in "ab")
    assert a.equals(b)


@pytest.mark.parametrize("method", METHODS)
def test_the_backbone_is_untouched_by_success_and_failure(method, tmp_path: Path):
    module = timm.create_model("resnet10t", pretrained=False, num_classes=3)
    backbone = Backbone.from_module(module, preprocessing=Preprocessing(64, 64))
    fresh = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    probekit.reconstruct(backbone, pictures(60), taps=["layer1"], store=tmp_path, **method)
    with pytest.raises(probekit.ProbekitError):
        probekit.reconstruct(backbone, pictures(60), taps=["nowhere"], store=tmp_path, **method)
    after = backbone.module.state_dict()
    assert all(torch.equal(after[key], fresh[key]) for key in fresh)
    assert count_hooks(backbone.module) == 0
    assert not backbone.module.training
