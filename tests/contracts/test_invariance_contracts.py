"""What every analysis promises, shown of ``measure_invariance``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import probekit
from probekit import Backbone, ImageSet, Preprocessing, ResultTable
from tests.contracts.test_probe_contracts import PIXELS, count_hooks, images

QUICK = {
    "random": 0, "permutations": 5, "perturbations": ["flip", "grayscale=1", "noise=0.2"], "images": 40,
}  # fmt: skip


class Mirrored(nn.Module):
    """Random maps of the image; those of block ``k`` and above see it and its mirror image alike."""

    def __init__(self, k: int, blocks: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(nn.Conv2d(3, 6, 3, bias=False) for _ in range(blocks))
        for block in self.blocks:
            block.weight.data = torch.randn(block.weight.shape, generator=generator)
        self.k = k

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        output = image
        for place, block in enumerate(self.blocks):
            output = block(image + image.flip(-1) if place >= self.k else image)
        return output


def mirrored(k: int, name: str = "mirrored") -> Backbone:
    return Backbone.from_module(Mirrored(k), name=name, preprocessing=PIXELS)


def shares(table: ResultTable, model: str, target: str = "flip") -> dict[str, float]:
    rows = table.where(metric="perturbation_variance", model=model, target=target).frame
    return dict(zip(rows["block"], rows["value"], strict=True))


# The readout keeps positions: a mean over all of them would not see a flip anyway.
TAPS = [f"blocks.{place}|grid(2)" for place in range(4)]


@pytest.mark.parametrize("k", [1, 3])
def test_a_planted_invariance_is_found(k: int, tmp_path: Path):
    table = probekit.measure_invariance(mirrored(k), images(), taps=TAPS, store=tmp_path, **QUICK)
    rows = table.where(metric="whitened_cosine", target="flip").frame
    found, own = rows.set_index("block")["value"], shares(table, "mirrored")
    assert len(found) == 4
    for place, (block, share) in enumerate(own.items()):
        assert abs(share) < 1e-6 if place >= k else share > 0.5, block
        assert found[block] > 0.999 if place >= k else found[block] < 0.7, block


def test_swapped_weights_swap_the_table(tmp_path: Path):
    data, settings = images(), {"taps": TAPS, "store": tmp_path, **QUICK}
    one = probekit.measure_invariance([mirrored(1, "a"), mirrored(3, "b")], data, **settings)
    other = probekit.measure_invariance([mirrored(3, "a"), mirrored(1, "b")], data, **settings)
    assert shares(one, "a") == shares(other, "b")
    assert shares(one, "b") == shares(other, "a")
    assert shares(one, "a") != shares(one, "b")


def test_a_duplicated_model_differs_by_exactly_nothing(tmp_path: Path):
    models = [mirrored(2, "a"), mirrored(2, "b")]
    table = probekit.measure_invariance(models, images(), taps=TAPS, store=tmp_path, **QUICK)
    a, b = (table.where(model=name).frame.drop(columns="model").reset_index(drop=True) for name in "ab")
    assert a.equals(b)


def test_images_of_noise_alone_have_the_null_of_other_images(tmp_path: Path):
    """Noise far above the image leaves nothing of it."""
    flat = ImageSet.from_arrays(
        "flat",
        np.full((60, 8, 8, 3), 128, np.uint8)
        + np.random.default_rng(0).integers(0, 2, (60, 8, 8, 3), np.uint8),
        np.arange(60) % 2,
    )
    table = probekit.measure_invariance(
        mirrored(4), flat, taps=TAPS, store=tmp_path, **(QUICK | {"perturbations": ["noise=1"]})
    )
    rows = table.where(metric="whitened_cosine").frame
    assert (rows["value"].abs() < 0.25).all()
    variance = table.where(metric="perturbation_variance", target="noise").frame
    assert variance["value"].to_numpy() == pytest.approx(1, abs=0.3)


def test_the_backbone_is_untouched_by_success_and_failure(tmp_path: Path):
    module = timm.create_model("resnet10t", pretrained=False, num_classes=3)
    backbone = Backbone.from_module(module, preprocessing=Preprocessing(32, 32))
    fresh = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    probekit.measure_invariance(backbone, images(60), taps="stages", store=tmp_path, **QUICK)
    with pytest.raises(probekit.ProbekitError):
        probekit.measure_invariance(backbone, images(60), taps=["nowhere"], store=tmp_path, **QUICK)
    after = backbone.module.state_dict()
    assert all(torch.equal(after[key], fresh[key]) for key in fresh)
    assert count_hooks(backbone.module) == 0
    assert not backbone.module.training
