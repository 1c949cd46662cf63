"""From words to a Backbone."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import probekit
from probekit.backbones.architectures import build
from probekit.backbones.inference import infer_architecture
from probekit.backbones.loading import find_wheel, load_backbone
from probekit.backbones.spec import parse_model
from probekit.errors import CheckpointCoverage, CheckpointError, InputError


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in build("cifar_resnet20", 7).state_dict().items()}}, path
    )
    return path


def test_words_mapping_spec_and_arguments_mean_the_same(saved):
    text = f"mine=cifar_resnet20:{saved},mean=0.5/0.5/0.5,size=24"
    spec = parse_model(text)
    keys = {"mean": (0.5, 0.5, 0.5), "size": 24}
    ways = [
        load_backbone(text),
        load_backbone(spec),
        load_backbone(spec.mapping()),
        load_backbone("cifar_resnet20", saved, name="mine", **keys),
        load_backbone("cifar_resnet20", str(saved), name="mine", mean="0.5/0.5/0.5", size="24"),
        load_backbone(f"cifar_resnet20:{saved}", name="mine", **keys),
    ]
    assert len({one.weights for one in ways}) == 1
    assert len({one.preprocessing for one in ways}) == 1
    assert {one.spec for one in ways} == {
        text.replace("mean=0.5/0.5/0.5,size=24", "size=24,mean=0.5/0.5/0.5")
    }
    assert {one.name for one in ways} == {"mine"}


def test_a_loaded_backbone_says_what_it_is(saved, caplog):
    caplog.set_level(logging.INFO)
    backbone = load_backbone(f"cifar_resnet20:{saved}")
    assert backbone.classifier == "linear"
    assert backbone.has_head
    assert backbone.module.linear.out_features == 7
    assert backbone.checkpoint.digest == probekit.files.digest_file(saved)
    assert backbone.checkpoint.word == "weights.pth"
    assert not backbone.module.training
    assert "at state_dict/module" in caplog.text
    assert "crop 32" in caplog.text


def test_loading_is_the_same_each_time_and_leaves_the_random_state(tmp_path):
    # Without a classifier in the file, nothing random may be left in the module.
    path = tmp_path / "a.pth"
    torch.save({k: v for k, v in build("cifar_resnet20").state_dict().items() if "linear" not in k}, path)
    state = torch.get_rng_state()
    one = load_backbone("cifar_resnet20", path)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert load_backbone("cifar_resnet20", path).weights == one.weights
    assert not one.has_head


def test_keys_are_checked(saved):
    with pytest.raises(InputError, match="'crop'"):
        load_backbone(f"cifar_resnet20:{saved}", crop=3)
    with pytest.raises(InputError, match="layer1"):
        load_backbone(f"cifar_resnet20:{saved},levels=layerl:low")
    levels = load_backbone(f"cifar_resnet20:{saved},levels=layer1:low/layer2:mid/layer3:high").levels
    assert levels == {"layer1": "low", "layer2": "mid", "layer3": "high"}
    with pytest.raises(InputError, match="branch="):
        load_backbone("cifar_resnet20:random,branch=ema")
    with pytest.raises(CheckpointError, match="branch ema"):
        load_backbone(f"cifar_resnet20:{saved},branch=ema")
    with pytest.raises(InputError, match="a model as"):
        load_backbone(3)
    with pytest.raises(InputError, match="architecture beside"):
        load_backbone(parse_model("a:b"), "c")


def test_the_wrong_architecture_is_refused(saved):
    for arch in ("cifar_resnet32", "resnet10t", "mobilenetv3_small_050"):
        with pytest.raises(CheckpointCoverage, match="auto"):
            load_backbone(arch, saved)


def test_random_is_the_draw_of_seed_0():
    zero, also, one = (load_backbone(f"cifar_resnet20:{word}") for word in ("random", "random@0", "random@1"))
    assert zero.weights == also.weights != one.weights
    assert zero.checkpoint.word == "random@0"
    assert zero.checkpoint.random_init
    assert not zero.has_head


def test_words_that_cannot_be_had_say_why():
    with pytest.raises(InputError, match="an arm among.*moco-v2"):
        load_backbone("resnet10_w16:bundled")
    with pytest.raises(InputError, match="nearest is moco-v2"):
        load_backbone("resnet10_w16:bundled@moco")
    with pytest.raises(InputError, match="Write resnet10_w16:bundled@ce"):
        load_backbone("resnet18:bundled@ce")
    with pytest.raises(InputError, match="tf_efficientnet_lite0"):
        load_backbone("resnet18:wheel")
    with pytest.raises(InputError, match="file only"):
        load_backbone("auto:random")
    with pytest.raises(CheckpointError, match="timm offers"):
        load_backbone("cifar_resnet20:pretrained")


def test_pretrained_without_a_network_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="network or its cache"):
        load_backbone("resnet18:pretrained")


def test_a_missing_wheel_names_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"probekit-vision\[demo\]"):
        find_wheel()


def test_a_file_on_a_timm_architecture_says_whose_preprocessing(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(build("mobilenetv3_small_050").state_dict(), path)
    backbone = load_backbone("mobilenetv3_small_050", path)
    assert any("timm's default for mobilenetv3_small_050" in note for note in backbone.checkpoint.notes)
    half = load_backbone("mobilenetv3_small_050", path, size=112)
    assert half.preprocessing.resize == round(backbone.preprocessing.resize / 2)
    assert any("stated by the user: size" in note for note in half.checkpoint.notes)
    whole = load_backbone(
        f"mobilenetv3_small_050:{path},size=112,mean=0/0/0,std=1/1/1,interpolation=bilinear"
    )
    assert whole.checkpoint.notes == ()


@pytest.mark.slow
def test_a_vision_transformer_is_resampled_to_the_size_asked_for(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(build("vit_tiny_patch16_224").state_dict(), path)
    backbone = load_backbone("vit_tiny_patch16_224", path, size=96)
    assert backbone.module(torch.rand(1, 3, 96, 96)).shape == (1, 1000)
    assert any("resampled" in note for note in backbone.checkpoint.notes)


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def test_a_module_is_loaded_as_it_is_or_filled_from_a_file(tmp_path):
    module = net()
    path = tmp_path / "a.pth"
    torch.save({"model": net().state_dict()}, path)
    before = module[0].weight.clone()
    live = load_backbone(module, name="live", size=32, mean=(0.0, 0.0, 0.0))
    filled = load_backbone(module, path)
    assert torch.equal(module[0].weight, before)
    assert (live.name, live.preprocessing.size, live.checkpoint.word) == ("live", 32, "memory")
    assert torch.equal(live.module[0].weight, before)
    assert not torch.equal(filled.module[0].weight, before)
    assert filled.checkpoint.container == "model"
    assert filled.spec is None
    with pytest.raises(InputError, match="path of a checkpoint"):
        load_backbone(module, "random")


def test_a_function_of_the_users_is_filled_or_taken_with_its_weights(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())\n"
    )
    torch.save(net().state_dict(), tmp_path / "a.pth")
    filled = load_backbone(f"own={file}:make:{tmp_path / 'a.pth'},size=32")
    assert filled.arch == f"{file}:make"
    assert filled.checkpoint.matched == 7
    assert any("assumed" in note for note in filled.checkpoint.notes)
    assert (
        load_backbone(f"{file}:make:pretrained").checkpoint.notes[0] == "weights as the function returns them"
    )
    assert load_backbone(f"{file}:make:random@2").checkpoint.random_init


@pytest.mark.parametrize(
    "arch",
    [
        *("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "cifar_resnet44"),
        *("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"),
    ],
)
def test_architectures_are_inferred(arch):
    with torch.device("meta"):
        state = build(arch).state_dict()
    opened = {"state_dict": {f"module.encoder.{name}": one for name, one in state.items()}}
    assert infer_architecture(opened, "a.pth") == arch


def test_a_resnet_with_more_in_its_blocks_is_not_taken_for_a_plain_one():
    state = build("resnet18").state_dict()
    with pytest.raises(CheckpointError, match="looks like ResNet-18, seresnet18, but does not fill it"):
        infer_architecture({**state, "layer1.0.se.fc1.weight": torch.ones(1)}, "a.pth")


def test_a_file_may_say_its_architecture():
    opened = {"arch": "mobilenetv3_small_050", "state_dict": {"a": torch.ones(1)}}
    assert infer_architecture(opened, "a.pth") == "mobilenetv3_small_050"
    with pytest.raises(CheckpointError, match="Name its architecture"):
        infer_architecture({"a": torch.ones(1)}, "a.pth")


def test_auto_loads_what_it_infers(saved):
    backbone = load_backbone(f"auto:{saved}")
    assert backbone.arch == "cifar_resnet20"
    assert "architecture inferred: cifar_resnet20" in backbone.checkpoint.notes
