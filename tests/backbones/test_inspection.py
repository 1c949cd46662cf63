"""What a checkpoint holds and how to use it is said without loading it."""

from __future__ import annotations

import argparse
import json

import pytest
import timm
import torch
from torch import nn

from probekit.backbones.findings import Inspection
from probekit.backbones.inspection import inspect_checkpoint
from probekit.backbones.loading import find_wheel, load_backbone
from probekit.errors import CheckpointError, InputError
from probekit.files import canonical_json


def at(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def body():
    return {
        name: one.clone()
        for name, one in timm.create_model("resnet18").state_dict().items()
        if not name.startswith("fc.")
    }


@pytest.fixture(scope="module")
def moco(tmp_path_factory, body):
    head = {"fc.0.weight": torch.rand(16, 512), "fc.2.weight": torch.rand(8, 16)}
    other = {name: one + 1 for name, one in body.items()}
    state = {
        **at("module.encoder_q.", {**body, **head}),
        **at("module.encoder_k.", {**other, **head}),
        "module.queue": torch.rand(8, 64),
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    path = tmp_path_factory.mktemp("moco") / "moco_v2.pth.tar"
    torch.save({"epoch": 1, "arch": "resnet18", "state_dict": state, "args": argparse.Namespace(lr=1)}, path)
    return path


def test_a_moco_file_is_described(moco):
    found = inspect_checkpoint(moco)
    assert [fit.arch for fit in found.fits] == ["resnet18"]
    assert [(one.place, one.role, one.default) for one in found.branches] == [
        ("state_dict/module.encoder_q", "online", True),
        ("state_dict/module.encoder_k", "ema", False),
    ]
    assert found.beside == ("epoch", "arch", "args (argparse.Namespace)")
    assert found.states[0].prefix == "module."
    assert found.states[0].parts["encoder_q"] == found.states[0].parts["encoder_k"] == 122
    assert found.n_classes is None
    assert found.folded is False
    assert found.words == f"moco_v2=resnet18:{moco}"
    # He et al. (CVPR 2016): 11.2 million without the classifier; the projector's here are beside them.
    assert found.parameters == 11176512 + 16 * 512 + 8 * 16
    text = str(found)
    for line in (
        "looks like    ",
        "fits          resnet18: all",
        "branches      state_dict/module.encoder_q (online), the default",
    ):
        assert line in text


def test_the_words_load_what_was_said(moco):
    found = inspect_checkpoint(moco)
    backbone = load_backbone(found.words)
    assert backbone.arch == found.fits[0].arch
    assert (
        f"{backbone.checkpoint.container}/{backbone.checkpoint.prefix}".rstrip(".") == found.branches[0].place
    )
    assert backbone.checkpoint.branch == found.branches[0].role
    assert str(backbone.preprocessing) == found.preprocessing
    assert backbone.has_head == (found.n_classes is not None)


FIELDS = [
    *(
        "file",
        "states",
        "beside",
        "family",
        "family_note",
        "looks_like",
        "fits",
        "branches",
        "choice",
        "parameters",
    ),
    *("dtypes", "n_classes", "folded", "preprocessing", "preprocessing_source", "notes", "words", "format"),
]


def test_the_json_is_whole_and_stable(moco):
    facts = inspect_checkpoint(moco).facts()
    assert list(facts) == FIELDS
    assert list(facts["fits"][0]) == ["arch", "kind", "facts", "size", "whole", "entries", "lacking", "notes"]
    assert list(facts["states"][0]) == ["label", "entries", "numbers", "dtypes", "prefix", "parts"]
    assert json.loads(canonical_json(facts)) == facts
    assert inspect_checkpoint(moco).facts() == facts


def test_an_architecture_asked_for_that_does_not_fit_is_said_to_lack_what(moco):
    found = inspect_checkpoint(moco, "resnet34")
    assert [fit.whole for fit in found.fits] == [False]
    assert "missing, such as layer1.2" in found.fits[0].lacking
    assert found.looks_like.startswith("resnet18")
    assert found.words == ""
    assert "does not fit  resnet34: " in str(found)
    with pytest.raises(InputError, match="resnet18"):
        inspect_checkpoint(moco, "resnet1B")


@pytest.mark.parametrize("momentum", [True, False])
def test_solo_learns_stem_for_cifar_is_padded_as_solo_learn_does(tmp_path, body, momentum):
    small = {**body, "conv1.weight": torch.rand(64, 3, 3, 3)}
    beside = at("momentum_backbone.", {name: one + 1 for name, one in small.items()}) if momentum else {}
    projector = {"projector.0.weight": torch.rand(8, 512), "classifier.weight": torch.rand(10, 512)}
    state = {**at("backbone.", small), **beside, **projector}
    path = tmp_path / "byol-cifar10.ckpt"
    torch.save({"state_dict": state, "epoch": 1, "hyper_parameters": {"lr": 0.1}}, path)
    found = inspect_checkpoint(path)
    assert found.family == "solo-learn"
    assert [fit.arch for fit in found.fits] == ["resnet18_cifar_pad2", "resnet18_cifar"]
    assert any("pads by 1" in note for note in found.fits[0].notes)
    assert found.preprocessing.startswith("resize 32")
    backbone = load_backbone(found.words)
    assert backbone.module.conv1.padding == (2, 2)
    assert backbone.preprocessing.size == 32
    torch.save({"state_dict": at("module.", small)}, path)
    assert [fit.arch for fit in inspect_checkpoint(path).fits] == ["resnet18_cifar", "resnet18_cifar_pad2"]


def test_the_network_itself_decides_over_what_a_file_says(tmp_path, body):
    torch.save({"arch": "resnet50", "state_dict": body}, tmp_path / "a.pth")
    found = inspect_checkpoint(tmp_path / "a.pth")
    assert [fit.arch for fit in found.fits] == ["resnet18"]


def test_branches_of_equal_standing_ask_for_one(tmp_path, body):
    other = {name: one + 1 for name, one in body.items()}
    path = tmp_path / "jepa.pth"
    torch.save({"encoder": body, "target_encoder": other}, path)
    found = inspect_checkpoint(path)
    assert "branch=online or branch=ema" in found.choice
    assert found.words.endswith(",branch=online")
    load_backbone(found.words)


def test_nothing_known_says_how_to_go_on(tmp_path):
    path = tmp_path / "own.pth"
    torch.save({"encoder.0.weight": torch.ones(4, 3, 3, 3), "fc.weight": torch.ones(5, 4)}, path)
    found = inspect_checkpoint(path)
    assert found.fits == ()
    assert found.looks_like == ""
    assert found.n_classes == 5
    assert found.words == f"own=file.py:function:{path}"
    assert any("--arch file.py:function" in note for note in found.notes)
    assert "no architecture known" in str(found)


def test_a_function_of_the_users_is_held_against_a_file(tmp_path):
    file, path = tmp_path / "net.py", tmp_path / "own.pth"
    file.write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3))\n")
    torch.save(at("body.", nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict()), path)
    found = inspect_checkpoint(path, f"{file}:make")
    assert found.fits[0].whole
    assert found.branches[0].place == "body"
    assert load_backbone(found.words).checkpoint.prefix == "body."


def test_a_path_with_a_comma_goes_into_yaml(tmp_path, body):
    path = tmp_path / "a,b.pth"
    torch.save(body, path)
    found = inspect_checkpoint(path)
    assert found.words == ""
    note = next(note for note in found.notes if "YAML" in note)
    load_backbone(json.loads(note[note.index("{") :]))


def norm(folded, dtype=torch.float32):
    """A network with batch norm, folded or not."""
    state = timm.create_model("mobilenetv2_035", num_classes=7).state_dict()
    for name, tensor in state.items():
        if name.endswith("bias"):
            tensor.uniform_(0.1, 0.2)
        elif not folded and name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return {name: one.to(dtype) if one.is_floating_point() else one for name, one in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("folded", [True, False])
def test_folded_batch_norm_is_recognised_from_values(tmp_path, folded, dtype):
    torch.save(norm(folded, dtype), tmp_path / "a.pth")
    found = inspect_checkpoint(tmp_path / "a.pth")
    assert found.folded is folded
    assert found.dtypes == (str(dtype).removeprefix("torch."),)
    assert found.n_classes == 7


def test_folded_batch_norm_is_recognised_from_names(tmp_path):
    state = {"conv1.weight": torch.ones(4, 3, 3, 3), "bn1.weight": torch.ones(4), "bn1.bias": torch.ones(4)}
    torch.save(state, tmp_path / "a.pth")
    assert inspect_checkpoint(tmp_path / "a.pth").folded is True
    plain = {
        "patch_embed.proj.weight": torch.ones(4, 3, 3, 3),
        "norm.weight": torch.ones(4),
        "norm.bias": torch.ones(4),
    }
    torch.save(plain, tmp_path / "b.pth")
    assert inspect_checkpoint(tmp_path / "b.pth").folded is None


def test_a_vit_at_another_size_is_loaded_as_said(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=5).state_dict()
    torch.save({"model": state}, tmp_path / "vit.pth")
    found = inspect_checkpoint(tmp_path / "vit.pth")
    assert found.words.endswith("vit.pth,size=96")
    assert found.fits[0].size == 96
    backbone = load_backbone(found.words)
    assert torch.equal(backbone.module.pos_embed, state["pos_embed"])
    assert str(backbone.preprocessing) == found.preprocessing
    assert found.n_classes == 5


def test_a_file_without_weights_is_refused(tmp_path):
    torch.save({"epoch": 3, "lr": [0.1]}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="none in"):
        inspect_checkpoint(tmp_path / "a.pth")


def test_no_memory_is_taken_for_the_architecture(tmp_path, body, monkeypatch):
    torch.save(body, tmp_path / "a.pth")
    made = []
    reset = nn.Conv2d.reset_parameters
    monkeypatch.setattr(
        nn.Conv2d, "reset_parameters", lambda self: (made.append(self.weight.device.type), reset(self))
    )
    inspect_checkpoint(tmp_path / "a.pth")
    assert set(made) == {"meta"}


# File → architecture, place, classes, folded.
REAL = {
    "cifar10_resnet20-12fca82f.th": ("cifar_resnet20", "state_dict/module", 10, False),
    "cifar10_resnet32-d509ac18.th": ("cifar_resnet32", "state_dict/module", 10, False),
    "cifar10_resnet56-4bfd9763.th": ("cifar_resnet56", "state_dict/module", 10, False),
    "imagenet_mobilenetv2_100_qat_fp16.pth": ("mobilenetv2_100_same", "top", 1001, True),
    "inat_birds_mobilenetv2_100_qat_fp16.pth": ("mobilenetv2_100_same", "top", 965, True),
}


@pytest.mark.weights
@pytest.mark.parametrize("name", REAL)
def test_real_files_of_known_architectures(shared_data, name):
    arch, place, classes, folded = REAL[name]
    found = inspect_checkpoint(shared_data / "checkpoints" / name)
    assert found.fits[0].arch == arch
    assert [one.place for one in found.branches] == [place]
    assert (found.n_classes, found.folded) == (classes, folded)
    assert ("the first of them background" in str(found)) == (classes == 1001)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("name", "function", "place"),
    [
        ("imagenet_mobilenetv1_025", "mobilenet_v1.py:mobilenet_v1_025", "top"),
        ("widerface_retinaface_mobilenetv1_025", "mobilenet_v1.py:mobilenet_v1_025", "body"),
        ("shufflenetv2_05_backbone", "shufflenet_v2.py:shufflenet_v2_05", "top"),
        ("coco_fastestdet_shufflenetv2_05", "shufflenet_v2.py:shufflenet_v2_05", "backbone"),
        ("cifar10_conv_autoencoder", "autoencoder.py:encoder", "top"),
    ],
)
def test_real_files_of_networks_without_a_name(shared_data, pytestconfig, name, function, place):
    path = shared_data / "checkpoints" / f"{name}.pth"
    assert inspect_checkpoint(path).fits == ()
    found = inspect_checkpoint(path, f"{pytestconfig.rootpath / 'analyses' / 'backbones'}/{function}")
    assert found.fits[0].whole
    assert [one.place for one in found.branches] == [place]


@pytest.mark.weights
def test_the_wheels_file():
    try:
        path = find_wheel()
    except CheckpointError as error:
        pytest.skip(str(error))
    found = inspect_checkpoint(path)
    assert isinstance(found, Inspection)
    assert found.fits[0].arch == "tf_efficientnet_lite0"
    assert (found.n_classes, found.folded) == (1000, False)
    assert "mean 0.5/0.5/0.5" in found.preprocessing
