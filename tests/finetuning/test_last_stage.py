"""Heads that apply the last stage themselves: it is the backbone's own, tuned or frozen."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from probekit import Backbone, Preprocessing, load_backbone, open_images, reset
from probekit.errors import InputError
from probekit.finetuning.cell import Data, Finetuning, finetune
from probekit.finetuning.curves import group_blocks
from probekit.finetuning.network import Tuned, read_for
from probekit.tasks.choosing import find_task
from probekit.tasks.detection import RegionDetection
from probekit.training.optimisers import Optimisation

TASK = RegionDetection("boxes", ("a", "b"))
SMALL = "resnet10_w16:random@3,size=64"


def truth() -> torch.Tensor:
    found = torch.full((2, 1, 6), -1.0)
    found[0, 0] = torch.tensor([6, 8, 30, 28, 0, 0])
    found[1, 0] = torch.tensor([20, 20, 50, 52, 1, 0])
    return found


def learner_of(backbone: Backbone, batch_norm: str = "train") -> Tuned:
    reading = read_for(backbone, TASK)
    torch.manual_seed(0)
    head = TASK.head(reading.told, np.empty(0), backbone.preprocessing.size)
    return Tuned(backbone, TASK, head, reading, batch_norm)


@pytest.mark.parametrize(
    ("words", "path", "rest", "shape"),
    [
        (SMALL, "layer3.0", ("layer4.0",), (64, 8, 8, 128)),
        ("resnet18:random,size=64", "layer3.1", ("layer4.0", "layer4.1"), (256, 4, 4, 512)),
        ("cifar_resnet20:random", "layer2.2", ("layer3.0", "layer3.1", "layer3.2"), (32, 16, 16, 64)),
        (
            "tf_efficientnet_lite0:random,size=64", "blocks.4.2",
            ("blocks.5.0", "blocks.5.1", "blocks.5.2", "blocks.5.3", "blocks.6.0", "conv_head", "bn2"),
            (112, 4, 4, 1280),
        ),
        # What follows the deepest block, a norm behind pooling, is left out as it is for every task.
        (
            "convnext_atto:random,size=64", "stages.2.blocks.5",
            ("stages.3.downsample", "stages.3.blocks.0", "stages.3.blocks.1"), (160, 4, 4, 320),
        ),
    ],
)  # fmt: skip
def test_the_map_before_the_last_stage_and_that_stage_are_found(words, path, rest, shape):
    reading = read_for(load_backbone(words), TASK)
    assert (reading.path, reading.rest, reading.told) == (path, rest, shape)


class Twisted(nn.Module):
    """Its last stage is doubled outside of its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2), nn.ReLU())
        self.three = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2), nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, 4, H, W)."""
        return self.three(2 * self.two(self.one(x)) + 1)


def vit() -> Backbone:
    module = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2
    )
    return Backbone.from_module(module, preprocessing=Preprocessing(32, 32))


def test_networks_whose_last_stage_cannot_be_applied_alone_are_refused():
    torch.manual_seed(0)
    twisted = Backbone.from_module(
        Twisted(), preprocessing=Preprocessing(64, 64), blocks=["one", "two", "three"]
    )
    with pytest.raises(InputError, match="modules one after the other: three; got these make something else"):
        read_for(twisted, TASK)
    with pytest.raises(InputError, match="at least two strides, channels first.*1 and axes NLC"):
        read_for(vit(), TASK)


def test_map_and_last_stage_together_are_the_deepest_block():
    backbone = load_backbone("resnet18:random@1,size=64")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = learner_of(backbone).eval().deepest(images)
        expected = backbone.module.forward_features(images)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [SMALL, "cifar_resnet20:random@3", "tf_efficientnet_lite0:random@3,size=64"]
)
def test_every_level_lies_on_the_way_to_detections_and_loss(words):
    backbone = load_backbone(words)
    size = backbone.preprocessing.size
    images = torch.randn(2, 3, size, size)

    def told(body: Backbone) -> tuple[np.ndarray, float]:
        learner = learner_of(body, "frozen").eval()
        # Regions that are given, so that what changes is not where one looks alone.
        with torch.no_grad():
            regions = [torch.tensor([[2.0, 2, size / 2, size / 2]])] * 2
            said = learner.head.describe(learner.represent(images), regions, learner.rest)
            answers = TASK.answer(learner.outputs(images))
            torch.manual_seed(1)
            loss = float(learner.train()((images, truth() * size / 64)))
        assert (answers[:, :, 4] >= 0).any()
        return torch.cat(said, 1).numpy(), loss

    whole, loss = told(backbone)
    for group in group_blocks(backbone, "level"):
        changed, other = told(reset(backbone, group.members, seed=9))
        assert np.linalg.norm(changed - whole) / np.linalg.norm(whole) > 1e-3, group.name
        assert other != pytest.approx(loss, rel=1e-4), group.name


def test_gradients_reach_every_block():
    backbone = load_backbone(SMALL)
    learner = learner_of(backbone).train()
    learner((torch.randn(2, 3, 64, 64), truth())).backward()
    for group in group_blocks(backbone, "block"):
        reached = [
            float(one.grad.abs().sum())
            for name, one in learner.module.named_parameters()
            if any(f"{name}.".startswith(f"{member}.") for member in group.members) and one.grad is not None
        ]
        assert sum(reached) > 0, group.name


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_batch_norm_of_the_last_stage_takes_the_regions_or_keeps_its_own(mode):
    learner = learner_of(load_backbone(SMALL), mode).train()
    layer = learner.module.layer4[0].bn1
    before = layer.running_mean.clone()
    learner((torch.randn(2, 3, 64, 64), truth()))
    assert torch.equal(layer.running_mean, before) == (mode == "frozen")
    # Once a step: the stage is not run over the whole map as well.
    assert int(layer.num_batches_tracked) == (mode == "train")


def test_a_frozen_last_stage_is_applied_as_it_is_and_only_the_head_is_learnt():
    backbone = load_backbone("resnet10_w16:random@3")
    images = open_images("shapeworld/scenes,train=24,test=6,annotations=boxes")
    data = Data.open(images, find_task("detection/c4", images), backbone.preprocessing)
    before = backbone.weights
    one = Finetuning(Optimisation(2, 1e-3, "adamw", 0.05), False, "train", 4, 0)
    learner = finetune(backbone, data, one).learner
    assert {name.split(".")[0] for name, _ in learner.named_parameters()} == {"head"}
    maps = torch.randn(2, 64, 6, 6)
    with torch.no_grad():
        learner.train()
        torch.testing.assert_close(learner.behind(maps), backbone.module.layer4(maps))
    assert backbone.weights == before
