"""Batch-norm statistics: estimated from given images, and unfolded without changing the function."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from probekit.backbones.backbone import Backbone
from probekit.backbones.batch_norm import is_folded, recalibrate_batch_norm, unfold_batch_norm
from probekit.backbones.loading import load_backbone
from probekit.data.transforms import Preprocessing
from probekit.errors import CheckpointError, InputError

SMALL = Preprocessing(16, 16)


def trained():
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1))
    module[1].running_mean.uniform_(-1, 1)
    module[1].running_var.uniform_(0.5, 2)
    nn.init.uniform_(module[1].weight, 0.5, 2)
    nn.init.uniform_(module[1].bias, -1, 1)
    return module.eval()


def images(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.rand(count, 3, 12, 12, generator=generator) - 1


def test_the_first_layers_statistics_are_the_datas_own():
    backbone = Backbone.from_module(trained(), preprocessing=SMALL)
    data = images()
    edited = recalibrate_batch_norm(backbone, data.split([10, 10, 4]), "noted")
    values = backbone.module[0](data).double()
    assert torch.allclose(edited.module[1].running_mean.double(), values.mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(edited.module[1].running_var.double(), values.var((0, 2, 3)), rtol=1e-5)
    assert edited.checkpoint.notes[-1] == "noted"
    assert edited.weights != backbone.weights


def test_statistics_do_not_depend_on_order_and_torch_agrees():
    backbone = load_backbone("cifar_resnet20:random@2")
    before = backbone.weights
    batches = list(torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1)).split(4))
    one = recalibrate_batch_norm(backbone, batches, "a").module.state_dict()
    other = recalibrate_batch_norm(backbone, batches[::-1], "a").module.state_dict()
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=1e-5, atol=1e-7), name
    # torch's own cumulative average over equal batches has the same means.
    theirs = copy.deepcopy(backbone.module)
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        for batch in batches:
            theirs(batch)
    for name, value in theirs.state_dict().items():
        if name.endswith("running_mean"):
            assert torch.allclose(value, one[name], rtol=1e-4, atol=1e-6), name
    after = Backbone.from_module(backbone.module, preprocessing=backbone.preprocessing)
    assert after.weights == before
    assert not backbone.module.training


def test_far_off_means_do_not_spoil_the_variance():
    body = nn.Sequential(nn.BatchNorm2d(3))
    data = images() * 1e-2 + 1e3
    edited = recalibrate_batch_norm(Backbone.from_module(body, preprocessing=SMALL), data.split(6), "a")
    truth = data.double().var((0, 2, 3))
    assert torch.allclose(edited.module[0].running_var.double(), truth, rtol=1e-3)


def test_a_lone_last_image_is_joined():
    body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))
    backbone = Backbone.from_module(body, preprocessing=SMALL)
    data = images(9)
    edited = recalibrate_batch_norm(backbone, data.split(4), "a")
    values = data.double().mean((2, 3))
    assert torch.allclose(edited.module[2].running_mean.double(), values.mean(0), rtol=1e-5)
    for batches in ([], [data[:1]]):
        with pytest.raises(InputError, match="at least two images"):
            recalibrate_batch_norm(backbone, batches, "a")
    first_alone = recalibrate_batch_norm(backbone, [data[:1], data[1:]], "a")
    assert torch.allclose(first_alone.module[2].running_mean, edited.module[2].running_mean, rtol=1e-5)


def test_without_batch_norm_it_is_returned_itself():
    backbone = Backbone.from_module(
        nn.Sequential(nn.Conv2d(3, 2, 1), nn.GroupNorm(1, 2)), preprocessing=SMALL
    )
    assert recalibrate_batch_norm(backbone, iter([]), "a") is backbone


def test_statistics_that_are_not_finite_are_refused():
    backbone = Backbone.from_module(nn.Sequential(nn.BatchNorm2d(3)), preprocessing=SMALL)
    with pytest.raises(CheckpointError, match="at 0"):
        recalibrate_batch_norm(backbone, [torch.full((2, 3, 2, 2), torch.nan)], "a")


def test_layers_never_called_keep_theirs_and_are_named():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.used(self.used(x))

    edited = recalibrate_batch_norm(Backbone.from_module(Half(), preprocessing=SMALL), [images()], "a")
    assert "never called: unused" in edited.checkpoint.notes[-1]
    assert torch.equal(edited.module.unused.running_mean, torch.zeros(3))


def folded(module):
    """Fold as torch does it, but keep the batch norm as a layer that adds the bias."""
    module = copy.deepcopy(module)
    for conv, norm in [(0, 1), (3, 4)][: len(module) // 3]:
        fused = fuse_conv_bn_eval(module[conv], module[norm])
        with torch.no_grad():
            module[norm].bias.copy_(fused.bias)
            module[norm].weight.fill_((1 + module[norm].eps) ** 0.5)
            module[norm].running_mean.zero_()
            module[norm].running_var.fill_(1)
        module[conv].weight, module[conv].bias = fused.weight, None
    return module


def two_layers():
    first = trained()
    second = trained()
    nn.init.normal_(second[0].weight)
    joined = nn.Sequential(*first[:3], nn.Conv2d(5, 5, 3), second[1], nn.ReLU())
    return joined.eval()


def test_folding_is_recognised_by_what_the_layers_do():
    module = two_layers()
    data = images()
    flat = folded(module)
    assert torch.allclose(flat(data), module(data), rtol=1e-5, atol=1e-6)
    assert is_folded(flat)
    assert is_folded(flat.half())
    assert not is_folded(module)
    assert not is_folded(nn.Sequential(nn.Conv2d(3, 2, 1)))
    fresh = load_backbone("cifar_resnet20:random").module
    assert not is_folded(fresh)
    half = folded(module)
    half[4] = copy.deepcopy(module[4])
    assert not is_folded(half)


def test_unfolding_keeps_the_function_and_brings_the_datas_statistics():
    data = images()
    backbone = Backbone.from_module(folded(two_layers()), preprocessing=SMALL)
    edited = unfold_batch_norm(backbone, data.split([10, 10, 4]), "noted")
    assert not is_folded(edited.module)
    before, after = backbone.module(data), edited.module(data)
    assert ((after - before).norm() / before.norm()).item() <= 1e-6
    values = backbone.module[0](data).double()
    assert torch.allclose(edited.module[1].running_mean.double(), values.mean((0, 2, 3)), rtol=1e-5)
    assert torch.allclose(edited.module[1].running_var.double(), values.var((0, 2, 3)), rtol=1e-5)
    assert edited.checkpoint.notes[-1] == "noted"
    assert is_folded(backbone.module)


def test_batch_statistics_then_agree_with_running_ones():
    """The point of it: in training mode the unfolded network still computes what it was trained to."""
    data = images()
    backbone = Backbone.from_module(folded(two_layers()), preprocessing=SMALL)
    wanted = backbone.module(data)
    edited = unfold_batch_norm(backbone, [data], "noted").module
    astray = copy.deepcopy(backbone.module).train()(data)
    near = copy.deepcopy(edited).train()(data)
    assert ((near - wanted).norm() / wanted.norm()).item() < 0.01
    assert ((astray - wanted).norm() / wanted.norm()).item() > 0.1


def test_batch_statistics_are_refused_on_a_folded_network_and_unfolding_on_another():
    data = images()
    flat = Backbone.from_module(folded(two_layers()), preprocessing=SMALL)
    with pytest.raises(InputError, match="[Uu]nfold it first"):
        recalibrate_batch_norm(flat, [data], "a")
    with pytest.raises(InputError, match="statistics of its own"):
        unfold_batch_norm(Backbone.from_module(two_layers(), preprocessing=SMALL), [data], "a")


def test_a_constant_channel_survives_unfolding():
    flat = folded(two_layers())
    with torch.no_grad():
        flat[3].weight[1] = 0
    data = images()
    edited = unfold_batch_norm(Backbone.from_module(flat, preprocessing=SMALL), [data], "a")
    assert torch.allclose(edited.module(data), flat(data), atol=1e-5)
