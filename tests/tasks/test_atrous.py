"""The head of DeepLabv3: torchvision's with dilations that fit the map, and where it cannot be trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from probekit.errors import DataError, InputError
from probekit.tasks.atrous import Atrous
from probekit.tasks.segmentation import Segmentation

CLASSES = ("a", "b", "c")


def dilations(head: Atrous) -> list[int]:
    return [
        one.dilation[0] for one in head.modules() if isinstance(one, torch.nn.Conv2d) and one.dilation[0] > 1
    ]


@pytest.mark.parametrize(
    ("side", "rates"), [(33, [6, 12, 18]), (66, [12, 24, 36]), (6, [2, 3]), (12, [2, 4, 7])]
)
def test_dilations_are_those_of_the_paper_at_its_size_and_keep_their_share(side, rates):
    assert dilations(Atrous((4, side, side), 3, 8 * side)) == rates


def test_it_is_torchvisions_head_on_even_features_enlarged():
    torch.manual_seed(0)
    head = Atrous((8, 33, 33), 3, 66).eval()
    other = DeepLabHead(8, 3, (6, 12, 18)).eval()
    other.load_state_dict(head.layers[1].state_dict())
    maps = torch.randn(2, 8, 33, 33)
    # Batch norm in use, before it has seen a batch, divides by √(1 + 1e-5).
    expected = F.interpolate(other(maps / (1 + 1e-5) ** 0.5), (66, 66), mode="bilinear")
    torch.testing.assert_close(head(maps), expected)


def test_what_is_too_small_is_refused():
    task = Segmentation("masks", CLASSES, "deeplabv3")
    truth = np.zeros((2, 48, 48), np.uint8)
    with pytest.raises(
        InputError, match=r"at least 6 × 6 positions for DeepLabv3; got 3 × 3 at an input of 48"
    ):
        task.head((8, 3, 3), truth, 48)
    with pytest.raises(DataError, match="two training images.*got 1"):
        task.head((8, 6, 6), truth[:1], 48)
    head = task.head((8, 6, 6), truth, 48)
    with pytest.raises(InputError, match="two images a batch"):
        head.train()(torch.randn(1, 8, 6, 6))
    assert head.eval()(torch.randn(1, 8, 6, 6)).shape == (1, 3, 48, 48)
    with pytest.raises(InputError, match="a decoder among linear, one-layer, deeplabv3"):
        Segmentation("masks", CLASSES, "deeplab")


@pytest.mark.slow
def test_it_learns_a_map_by_heart():
    torch.manual_seed(0)
    task = Segmentation("masks", CLASSES, "deeplabv3")
    truth = np.random.default_rng(0).integers(0, 3, (2, 6, 6)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    head, maps = task.head((16, 6, 6), truth, 24), torch.randn(2, 16, 6, 6)
    optimiser = torch.optim.AdamW(head.parameters(), 2e-3)
    for _ in range(60):
        loss = task.loss(head(maps), torch.tensor(truth))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        found = task.score(task.answer(head.eval()(maps)), truth)["mean_iou"].value
    assert found > 0.6 > 3 * task.baseline(truth, truth)["mean_iou"]
