"""Building bodies by name, the CIFAR ResNets, and the user's own functions."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from probekit.backbones.architectures import (
    OURS,
    CifarBlock,
    announce,
    build,
    classifier_paths,
    resize_classifier,
    seeded,
    timm_settings,
)
from probekit.errors import InputError


# He et al. (CVPR 2016), table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million parameters.
@pytest.mark.parametrize(
    ("depth", "parameters"), [(20, 0.27e6), (32, 0.46e6), (44, 0.66e6), (56, 0.85e6), (110, 1.7e6)]
)
def test_cifar_resnets_have_the_papers_sizes(depth, parameters):
    module = build(f"cifar_resnet{depth}")
    count = sum(one.numel() for one in module.parameters())
    assert count == pytest.approx(parameters, rel=0.03)
    layers = [one for one in module.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_the_shortcut_slices_and_pads_with_zeros():
    block = CifarBlock(16, 32, 2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_a_cifar_resnet_has_no_in_place_operations():
    module = build("cifar_resnet20").eval()
    seen = {}
    handle = module.layer1[0].bn2.register_forward_hook(
        lambda _m, _i, out: seen.update(raw=out, copy=out.clone())
    )
    module(torch.rand(1, 3, 32, 32))
    handle.remove()
    assert torch.equal(seen["raw"], seen["copy"])


@pytest.mark.parametrize("classes", [2, 100])
def test_the_number_of_classes_is_taken(classes):
    assert build("cifar_resnet20", classes)(torch.rand(2, 3, 32, 32)).shape == (2, classes)
    assert build("mobilenetv3_small_050", classes).num_classes == classes


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(InputError, match="resnet50"):
        build("resnet5O")
    with pytest.raises(InputError, match="cifar_resnet20"):
        build("cifar_resnet21")


def test_a_body_for_one_size_is_built_for_the_size():
    assert build("vit_tiny_patch16_224", size=96).pos_embed.shape[1] == 1 + 36
    build("resnet10t", size=97)
    with pytest.raises(InputError, match="100 px"):
        build("vit_tiny_patch16_224", size=100)


def test_building_leaves_the_global_random_state():
    before = torch.get_rng_state()
    with seeded("x", 1):
        one = torch.rand(3)
    with seeded("x", 1):
        assert torch.equal(one, torch.rand(3))
    assert torch.equal(before, torch.get_rng_state())


OWN = """
from torch import nn

class Tiny(nn.Sequential):
    pass

def make():
    return Tiny(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))

def wrong():
    return 3

number = 5
"""


def test_a_function_in_a_file_is_run_and_announced(tmp_path, caplog):
    file = tmp_path / "net.py"
    file.write_text(OWN)
    module = build(f"{file}:make")
    assert type(module).__name__ == "Tiny"
    assert "runs your code: make of" in caplog.text
    for function, said in (("mak", "There are make"), ("number", "int"), ("wrong", "nn.Module from wrong")):
        with pytest.raises(InputError, match=said):
            build(f"{file}:{function}")
    with pytest.raises(InputError, match="no file"):
        build(f"{tmp_path}/other.py:make")


def test_an_edited_file_is_run_again(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(OWN)
    assert build(f"{file}:make")[2].out_features == 2
    file.write_text(OWN.replace("nn.Linear(4, 2)", "nn.Linear(4, 3)"))
    assert build(f"{file}:make")[2].out_features == 3


def test_errors_in_the_users_code_stay_their_own(tmp_path):
    file = tmp_path / "net.py"
    file.write_text("def make():\n    raise ZeroDivisionError('mine')\n")
    with pytest.raises(ZeroDivisionError, match="mine"):
        build(f"{file}:make")
    file.write_text("import no_such_thing\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        build(f"{file}:make")


def test_a_dotted_function_is_run_and_announced_once(caplog):
    announce.cache_clear()
    module = build("torchvision.models.resnet18", 7)
    build("torchvision.models.resnet18")
    assert module.fc.out_features == 7
    assert caplog.text.count("runs your code") == 1
    with pytest.raises(InputError, match="installed module"):
        build("no_such_package.module.function")


@pytest.mark.parametrize(
    ("module", "paths"),
    [
        (lambda: timm.create_model("resnet10t"), ("fc",)),
        (lambda: timm.create_model("convnext_atto"), ("head.fc",)),
        (lambda: timm.create_model("resnet10t", num_classes=0), ()),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224", depth=1), ("head", "head_dist")),
        (lambda: timm.create_model("lcnet_035"), ("classifier",)),
        (lambda: torchvision.models.mobilenet_v3_small(), ("classifier.3",)),
        (lambda: torchvision.models.squeezenet1_0(), ("classifier.1",)),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), ()),
    ],
)
def test_the_classifier_is_found(module, paths):
    assert classifier_paths(module()) == paths


def test_a_classifier_is_resized_and_zero():
    module = torchvision.models.squeezenet1_0().eval()
    resize_classifier(module, "classifier.1", 3)
    assert module(torch.rand(1, 3, 64, 64)).shape == (1, 3)
    assert not module.classifier[1].weight.any()
    with pytest.raises(InputError, match="ReLU"):
        resize_classifier(module, "classifier.2", 3)


def test_timms_settings_are_read_without_building():
    assert timm_settings("vit_tiny_patch16_224")["fixed_input_size"]
    assert all(timm_settings(name) is None for name in [*OURS, "net.py:make"])
