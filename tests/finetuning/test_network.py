"""Heads on the deepest block: every level lies on their path, whatever the layout."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

from probekit import Backbone, Preprocessing, load_backbone
from probekit.backbones.batch_norm import is_folded
from probekit.errors import InputError
from probekit.finetuning import network
from probekit.finetuning.cell import images_of
from probekit.finetuning.curves import group_blocks
from probekit.finetuning.network import Tuned, is_depthwise, read_for
from probekit.tasks.classification import Classification
from probekit.tasks.landmarks import Landmarks
from probekit.tasks.segmentation import Segmentation

CLASSES = ("a", "b", "c")
TASKS = {
    "vector": Classification("class", CLASSES),
    "grid": Landmarks("points", CLASSES),
    "map": Segmentation("masks", CLASSES),
}
ARCHS = ["resnet10_w16", "cifar_resnet20", "tf_efficientnet_lite0"]


def vit() -> Backbone:
    module = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2
    )
    return Backbone.from_module(module, preprocessing=Preprocessing(32, 32))


def swin() -> Backbone:
    module = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=2, embed_dim=8, depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1),
    )  # fmt: skip
    return Backbone.from_module(module, preprocessing=Preprocessing(64, 64))


@pytest.mark.parametrize(
    ("backbone", "kind", "shape"),
    [
        (vit, "vector", (16,)),
        (vit, "grid", (144,)),
        (vit, "map", (16, 4, 4)),
        (swin, "vector", (64,)),
        (swin, "grid", (256,)),
        (swin, "map", (64, 2, 2)),
        (lambda: load_backbone("resnet10_w16:random,size=64"), "map", (128, 4, 4)),
    ],
)
def test_the_deepest_block_is_read_as_the_task_wants_it(backbone, kind, shape):
    body = backbone()
    reading = read_for(body, TASKS[kind])
    assert reading.shape == shape
    head = nn.Flatten()
    learner = Tuned(body, TASKS[kind], head, reading, "train").eval()
    size = body.preprocessing.size
    assert learner.outputs(torch.rand(2, 3, size, size)).shape == (2, torch.Size(shape).numel())


@pytest.mark.parametrize("arch", ARCHS)
def test_every_level_lies_on_the_way_to_the_head(arch):
    from probekit import reset

    backbone = load_backbone(f"{arch}:random@3,size=64" if "cifar" not in arch else f"{arch}:random@3")
    size = backbone.preprocessing.size
    x = torch.rand(2, 3, size, size)

    def given(body: Backbone) -> torch.Tensor:
        reading = read_for(body, TASKS["grid"])
        return Tuned(body, TASKS["grid"], nn.Identity(), reading, "train").eval().outputs(x).detach()

    whole = given(backbone)
    for group in group_blocks(backbone, "level"):
        changed = given(reset(backbone, group.members, seed=9))
        assert float((changed - whole).norm() / whole.norm()) > 1e-3, group.name


def test_gradients_reach_every_block_and_the_source_stays_as_it_is():
    backbone = load_backbone("resnet10_w16:random@1")
    before = backbone.weights
    task = TASKS["vector"]
    reading = read_for(backbone, task)
    learner = Tuned(backbone, task, task.head(reading.shape, None, 48), reading, "train").train()
    learner((torch.rand(4, 3, 48, 48), torch.tensor([0, 1, 2, 0]))).backward()
    for group in group_blocks(backbone, "block"):
        names = [
            n
            for n, _ in learner.module.named_parameters()
            if any(n.startswith(f"{m}.") for m in group.members)
        ]
        assert any(learner.module.get_parameter(name).grad.abs().sum() > 0 for name in names), group.name
    with torch.no_grad():
        for one in learner.parameters():
            one.add_(1)
    assert backbone.weights == before
    assert not any(one.requires_grad for one in backbone.module.parameters())


@pytest.mark.parametrize("arch", ["mobilenetv3_small_050", "resnet10_w16"])
def test_depthwise_convolutions_have_channels_last_and_the_same_gradients(arch, monkeypatch):
    backbone = load_backbone(f"{arch}:random,size=32")
    task = TASKS["vector"]
    reading = read_for(backbone, task)
    head = task.head(reading.shape, None, 32).double()
    batch = (torch.rand(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    gradients, orders = [], []
    for depthwise in (is_depthwise(backbone), False):
        monkeypatch.setattr(network, "is_depthwise", lambda _, says=depthwise: says)
        learner = Tuned(backbone, task, copy.deepcopy(head), reading, "train").train().double()
        learner(batch).backward()
        weights = [one for one in learner.module.parameters() if one.dim() == 4 and min(one.shape[1:]) > 1]
        orders.append(all(one.is_contiguous(memory_format=torch.channels_last) for one in weights))
        gradients.append(
            torch.cat([one.grad.flatten() for one in learner.parameters() if one.grad is not None])
        )
    assert orders == [arch.startswith("mobilenet"), False]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-7, atol=1e-9)


def test_what_is_read_does_not_change_with_what_follows_in_place():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True))
    backbone = Backbone.from_module(module, preprocessing=Preprocessing(8, 8), blocks=["0", "1"])
    reading = read_for(backbone, TASKS["map"])
    learner = Tuned(backbone, TASKS["map"], nn.Identity(), reading, "train").eval()
    assert float(learner.outputs(torch.rand(2, 3, 8, 8)).detach().min()) < 0


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_batch_norm_takes_the_batch_or_keeps_its_own(mode):
    backbone = load_backbone("resnet10_w16:random@1")
    task = TASKS["vector"]
    reading = read_for(backbone, task)
    learner = Tuned(backbone, task, task.head(reading.shape, None, 48), reading, mode).train()
    before = learner.module.bn1.running_mean.clone()
    learner((torch.rand(4, 3, 48, 48), torch.tensor([0, 1, 2, 0])))
    assert torch.equal(learner.module.bn1.running_mean, before) == (mode == "frozen")


def test_folded_batch_norm_is_not_trained():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    with torch.no_grad():
        module[1].bias.copy_(torch.arange(4))
    folded = Backbone.from_module(module, preprocessing=Preprocessing(8, 8), blocks=["0", "1", "2"])
    assert is_folded(folded.module)
    task, reading = TASKS["map"], read_for(folded, TASKS["map"])
    with pytest.raises(InputError, match="folded into its convolutions"):
        Tuned(folded, task, nn.Identity(), reading, "train")
    Tuned(folded, task, nn.Identity(), reading, "frozen")
    with pytest.raises(InputError, match="batch norm among train, frozen"):
        Tuned(folded, task, nn.Identity(), reading, "tuned")


def test_a_deepest_block_without_positions_is_refused_for_tasks_with_places():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = Backbone.from_module(module, preprocessing=Preprocessing(8, 8), blocks=["0", "2"])
    assert read_for(backbone, TASKS["vector"]).shape == (4,)
    with pytest.raises(InputError, match="positions in the deepest block"):
        read_for(backbone, TASKS["grid"])


def test_pixels_that_workers_share_are_read_without_a_warning():
    pixels = np.zeros((2, 48, 48, 3), np.uint8)
    pixels.flags.writeable = False
    torch.set_warn_always(True)  # else once a process
    try:
        assert images_of(load_backbone("resnet10_w16:random"), pixels).shape == (2, 3, 48, 48)
    finally:
        torch.set_warn_always(False)
    assert not pixels.flags.writeable
