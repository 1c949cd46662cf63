"""Random-init controls: reproducible draws with open branches, batch-norm statistics of given images."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from probekit.backbones.backbone import Backbone
from probekit.backbones.loading import load_backbone
from probekit.backbones.reset import draw_random, random_control, reset, switch_on
from probekit.data.transforms import Preprocessing
from probekit.errors import CheckpointError, InputError

SMALL = Preprocessing(16, 16)


def same(one, other):
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "arch",
    ["cifar_resnet20", "resnet10t", pytest.param("vit_tiny_patch16_224", marks=pytest.mark.slow)],
)
def test_draws_are_reproducible_and_leave_the_random_state(arch):
    state = torch.get_rng_state()
    first, _ = draw_random(arch, 3)
    torch.rand(7)
    again, _ = draw_random(arch, 3)
    other, _ = draw_random(arch, 4)
    torch.set_rng_state(state)
    draw_random(arch, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, again)
    assert not same(first, other)
    assert not first.training


# Of timm's raw draws, the first leaves every bn2 at 0, the others every LayerScale at 1e-6 or 1e-5.
@pytest.mark.parametrize(
    ("arch", "gains"),
    [
        ("resnet10t", 4),
        ("edgenext_xx_small", 15),
        pytest.param("convnext_atto", 12, marks=pytest.mark.slow),
        pytest.param("vit_small_patch14_dinov2", 24, marks=pytest.mark.slow),
        pytest.param("cait_xxs24_224", 52, marks=pytest.mark.slow),
    ],
)
def test_every_residual_branch_is_open_in_a_draw(arch, gains):
    module, notes = draw_random(arch, 0, size=224)
    assert f"{gains} residual gains set to 1" in notes[1]
    assert switch_on(module) == []


def test_a_block_of_a_draw_is_not_the_identity():
    x = torch.rand(2, 24, 7, 7)
    raw = timm.create_model("edgenext_xx_small").eval().stages[0].blocks[0]
    drawn = draw_random("edgenext_xx_small", 0)[0].stages[0].blocks[0]
    assert (raw(x) - x).abs().max() < 1e-4
    assert (drawn(x) - x).abs().max() > 1e-2


class Gains(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.gamma = nn.Parameter(torch.full((4, 1, 1), 0.1))
        self.scale = nn.Parameter(torch.full((4,), 0.5))
        self.beta = nn.Parameter(torch.zeros(4))
        self.bias_table = nn.Parameter(torch.zeros(3, 4))
        self.fc = nn.Linear(4, 2)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.fc.weight)


def test_only_gains_are_switched_on():
    module = Gains()
    assert switch_on(module) == ["alpha", "gamma", "norm.weight"]
    assert module.alpha.item() == 1
    assert not module.beta.any()
    assert not module.bias_table.any()
    assert not module.fc.weight.any()
    assert module.scale[0].item() == 0.5


def test_a_control_is_prepared_and_read_as_its_model():
    backbone = load_backbone("cifar_resnet20:random@9,size=16")
    control = random_control(backbone, "random@1", 1)
    assert control.name == "random@1"
    assert control.checkpoint.random_init
    assert control.preprocessing == backbone.preprocessing
    assert not control.has_head
    assert same(control.module, load_backbone("cifar_resnet20:random@1").module)


def trained():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    with torch.no_grad():
        for one in module.state_dict().values():
            if one.is_floating_point():
                one.uniform_(0.5, 2.0)
    return module


def test_a_live_module_is_drawn_anew_in_every_layer():
    module = trained()
    backbone = Backbone.from_module(module, preprocessing=SMALL)
    before = backbone.weights
    one, again, other = (random_control(backbone, "random", seed) for seed in (0, 0, 1))
    assert backbone.weights == before
    assert same(one.module, again.module)
    assert not same(one.module, other.module)
    for name, value in one.module.named_parameters():
        assert not torch.equal(value, dict(module.named_parameters())[name]), name
    assert torch.equal(one.module[1].weight, torch.ones(4))
    assert torch.equal(one.module[1].running_mean, torch.zeros(4))


def test_a_live_vision_transformer_is_drawn_anew():
    module = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, init_values=1e-5
    )
    with torch.no_grad():
        for one in module.parameters():
            one.uniform_(0.1, 1.0)
    control = random_control(Backbone.from_module(module, preprocessing=SMALL), "random", 0)
    drawn = dict(control.module.named_parameters())
    assert drawn["blocks.0.ls1.gamma"][0].item() == 1
    assert not any(torch.equal(one, drawn[name]) for name, one in module.named_parameters())


class Learnt(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.rand(5, 4))
        self.fc = nn.Linear(4, 2)


def test_weights_that_no_layer_can_draw_are_refused():
    with pytest.raises(CheckpointError, match=r"table.*file\.py:function"):
        random_control(Backbone.from_module(Learnt(), preprocessing=SMALL), "random", 0)


def test_a_function_that_loads_weights_is_no_random_draw(tmp_path):
    file = tmp_path / "net.py"
    torch.save(trained().state_dict(), tmp_path / "w.pth")
    text = """
import torch
from torch import nn
def fresh():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, 2))
def loaded():
    module = fresh()
    module.load_state_dict(torch.load(PATH, weights_only=True))
    return module
"""
    file.write_text(text.replace("PATH", repr(str(tmp_path / "w.pth"))))
    draw_random(f"{file}:fresh", 0)
    with pytest.raises(CheckpointError, match=r"stay the same, such as 0\.weight"):
        draw_random(f"{file}:loaded", 0)


def parts(module, within):
    """Return the tensors of a module inside and outside of some paths."""
    inside = {name: one for name, one in module.state_dict().items() if name.startswith(within)}
    return inside, {name: one for name, one in module.state_dict().items() if name not in inside}


@pytest.mark.parametrize("mode", ["random", "arch_init"])
def test_only_the_blocks_named_are_reset_and_to_the_draw(mode):
    backbone = load_backbone("resnet10t:random@9,size=32")
    before, weights = copy.deepcopy(backbone.module.state_dict()), backbone.weights
    blocks = ("layer3.0", "layer4.0")
    found = reset(backbone, blocks, mode=mode, seed=2)
    inside, outside = parts(found.module, blocks)
    drawn = load_backbone("resnet10t:random@2,size=32").module.state_dict()
    assert len(inside) > 20
    for name, value in outside.items():
        assert torch.equal(value, before[name]), name
    for name, value in inside.items():
        # The last batch norm of a residual branch starts at 0, and is switched on in a control.
        assert torch.equal(value, drawn[name]) != (mode == "arch_init" and name.endswith("bn2.weight")), name
    assert bool(inside["layer4.0.bn2.weight"].any()) == (mode == "random")
    assert backbone.weights == weights
    assert all(torch.equal(backbone.module.state_dict()[name], value) for name, value in before.items())
    assert found.weights != weights
    assert found.spec is None
    assert "2 blocks, layer3.0 to layer4.0, reset to the weights of" in found.checkpoint.notes[-1]
    assert not found.module.training


def test_resets_are_reproducible_cumulative_and_differ_by_seed():
    backbone = load_backbone("cifar_resnet20:random@9")
    one, again, other = (reset(backbone, "layer2.1", seed=seed) for seed in (0, 0, 1))
    assert one.weights == again.weights != other.weights
    both = reset(backbone, ["layer2.1", "layer2.2"], seed=0)
    assert same(both.module.layer2[1], one.module.layer2[1])
    assert reset(one, "layer2.2", seed=0).weights != backbone.weights


def test_a_parameter_that_stands_alone_can_be_reset():
    module = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2
    )
    with torch.no_grad():
        for one in module.parameters():
            one.uniform_(0.1, 1.0)
    found = reset(Backbone.from_module(module, preprocessing=SMALL), ["pos_embed", "blocks.1"], seed=0)
    assert not torch.equal(found.module.pos_embed, module.pos_embed)
    assert torch.equal(found.module.cls_token, module.cls_token)
    assert same(found.module.blocks[0], module.blocks[0])
    assert not torch.equal(found.module.blocks[1].attn.qkv.weight, module.blocks[1].attn.qkv.weight)


def test_blocks_of_a_live_module_are_drawn_by_its_layers():
    module = trained()
    backbone = Backbone.from_module(module, preprocessing=SMALL)
    found = reset(backbone, ["0", "1"], seed=4)
    control = random_control(backbone, "random", 4)
    assert same(found.module[0], control.module[0])
    assert torch.equal(found.module[1].running_var, torch.ones(4))
    assert same(found.module[5], module[5])


@pytest.mark.parametrize(
    ("blocks", "part"),
    [
        ("layer9", r"path of a block.*'layer9'.*nearest.*layer"),
        ("linear", "without the classifier"),
        ([], "at least one block"),
    ],
)
def test_what_is_no_block_is_refused(blocks, part):
    backbone = load_backbone("cifar_resnet20:random@9")
    with pytest.raises(InputError, match=part):
        reset(backbone, blocks)


def test_a_block_around_the_classifier_and_an_unknown_mode_are_refused():
    module = nn.Sequential()
    module.add_module("body", nn.Conv2d(3, 4, 3))
    module.add_module("top", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    backbone = Backbone.from_module(module, preprocessing=SMALL, classifier="top.2")
    with pytest.raises(InputError, match=r"top, which holds top\.2"):
        reset(backbone, "top")
    with pytest.raises(InputError, match="a mode among random, arch_init"):
        reset(backbone, "body", mode="zero")
    with pytest.raises(InputError, match="a norms among reset, keep"):
        reset(backbone, "body", norms="drop")


def test_gains_that_no_layer_draws_are_refused_for_the_initial_draw():
    class Gained(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.gamma = nn.Parameter(torch.rand(4, 1, 1))

        def forward(self, x):
            return self.gamma * self.conv(x)

    backbone = Backbone.from_module(Gained(), preprocessing=SMALL)
    assert reset(backbone, "gamma").module.gamma.flatten().tolist() == [1.0] * 4
    with pytest.raises(CheckpointError, match="gamma"):
        reset(backbone, "gamma", mode="arch_init")


def weighted(seed: int = 9) -> Backbone:
    """Return a ResNet whose norm layers hold gains, shifts and statistics of their own."""
    backbone = load_backbone(f"cifar_resnet20:random@{seed}")
    module = copy.deepcopy(backbone.module)
    draws = torch.Generator().manual_seed(seed)
    for one in module.modules():
        if isinstance(one, nn.Conv2d):
            one.weight.data.add_(0.05)
        if isinstance(one, nn.BatchNorm2d):
            for tensor in (one.weight.data, one.bias.data, one.running_mean, one.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=draws) + 0.5)
            one.num_batches_tracked.fill_(7)
    return backbone.edited(module, "weighted")


def test_matched_statistics_are_those_of_each_tensor_and_nothing_else_of_it():
    backbone = weighted()
    found = reset(backbone, "layer3", mode="stats", seed=1).module
    for path in ("layer3.0.conv1", "layer3.2.conv2"):
        new, old = (one.get_submodule(path).weight.detach() for one in (found, backbone.module))
        # 36,864 draws: four standard errors
        error = float(old.std()) / new.numel() ** 0.5
        assert abs(float(new.mean() - old.mean())) < 4 * error
        assert abs(float(new.std() - old.std())) < 4 * error
        assert abs(float(torch.corrcoef(torch.stack([new.ravel(), old.ravel()]))[0, 1])) < 0.03
        assert float((new - new.mean()).pow(4).mean() / new.var() ** 2) == pytest.approx(3, abs=0.15)
    norm = found.layer3[1].bn1
    assert torch.equal(norm.weight, torch.ones(64))
    assert not norm.bias.any()
    assert not norm.running_mean.any()
    assert torch.equal(norm.running_var, torch.ones(64))
    assert int(norm.num_batches_tracked) == 0
    assert same(found.layer2, backbone.module.layer2)


def test_shuffled_tensors_hold_their_own_numbers_in_another_order():
    backbone = weighted()
    found = reset(backbone, "layer3.1", mode="shuffled").module.layer3[1]
    old = backbone.module.layer3[1]
    for name in ("conv1.weight", "bn1.weight", "bn2.bias"):
        new, before = found.get_parameter(name), old.get_parameter(name)
        assert not torch.equal(new, before)
        assert torch.equal(new.ravel().sort()[0], before.ravel().sort()[0])
    assert torch.equal(found.bn1.running_var, torch.ones(64))


@pytest.mark.parametrize("mode", ["random", "arch_init", "stats", "shuffled"])
def test_norm_layers_stay_where_they_are_to_be_kept(mode):
    backbone = weighted()
    found = reset(backbone, "layer3.1", mode=mode, norms="keep")
    assert same(found.module.layer3[1].bn1, backbone.module.layer3[1].bn1)
    assert same(found.module.layer3[1].bn2, backbone.module.layer3[1].bn2)
    assert not torch.equal(found.module.layer3[1].conv1.weight, backbone.module.layer3[1].conv1.weight)
    assert "norm layers kept" in found.checkpoint.notes[-1]


@pytest.mark.parametrize("mode", ["stats", "shuffled"])
def test_draws_of_a_tensor_do_not_depend_on_the_other_blocks(mode):
    backbone = weighted()
    one, both = (reset(backbone, blocks, mode=mode) for blocks in ("layer2.1", ["layer1", "layer2.1"]))
    assert same(one.module.layer2[1], both.module.layer2[1])
    other = reset(backbone, "layer2.1", mode=mode, seed=1)
    assert not torch.equal(one.module.layer2[1].conv1.weight, other.module.layer2[1].conv1.weight)


def test_copied_blocks_are_those_of_the_source_statistics_and_all():
    backbone, source = weighted(9), weighted(3)
    found = reset(backbone, ["layer1", "layer3.2"], mode="copied", source=source)
    assert same(found.module.layer1, source.module.layer1)
    assert same(found.module.layer3[2], source.module.layer3[2])
    assert same(found.module.layer2, backbone.module.layer2)
    assert source.weights[:12] in found.checkpoint.notes[-1]


def test_a_source_that_does_not_fit_is_refused():
    backbone = weighted()
    with pytest.raises(InputError, match="a source with mode copied"):
        reset(backbone, "layer1", mode="copied")
    with pytest.raises(InputError, match="and with no other"):
        reset(backbone, "layer1", source=backbone)
    with pytest.raises(InputError, match=r"weights of cifar_resnet20.*cifar_resnet32"):
        reset(backbone, "layer1", mode="copied", source=load_backbone("cifar_resnet32:random"))


def test_tables_that_are_no_weights_stay():
    module = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)
    )
    backbone = Backbone.from_module(module, preprocessing=Preprocessing(56, 56))
    found = reset(backbone, "layers.0", mode="shuffled").module.layers[0].blocks[0].attn
    own = module.layers[0].blocks[0].attn
    assert torch.equal(found.relative_position_index, own.relative_position_index)
    assert not torch.equal(found.qkv.weight, own.qkv.weight)
