"""Checkpoints that are folders, as Hugging Face writes them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from probekit.backbones.checkpoint import digest_checkpoint, find_state_dicts, open_checkpoint
from probekit.backbones.loading import load_backbone
from probekit.errors import CheckpointError
from probekit.files import digest_file

ONE = {"embeddings.cls_token": torch.ones(1, 1, 4), "layer.0.weight": torch.arange(8.0).reshape(2, 4)}
TWO = {"layer.1.weight": torch.arange(6).reshape(2, 3), "layer.1.bias": torch.ones(2, dtype=torch.bfloat16)}
BOTH = {**ONE, **TWO}
CONFIG = {"model_type": "vit", "hidden_size": 4}


def fill(folder, kind, sharded):
    """Write BOTH as Hugging Face would."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write = save_file if kind == "model.safetensors" else torch.save
    if not sharded:
        write(BOTH, folder / kind)
        return folder
    stem, _, ending = kind.rpartition(".")
    shards = {f"{stem}-0000{i}-of-00002.{ending}": part for i, part in ((1, ONE), (2, TWO))}
    for name, part in shards.items():
        write(part, folder / name)
    where = {name: shard for shard, part in shards.items() for name in part}
    (folder / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


KINDS = [(kind, sharded) for kind in ("model.safetensors", "pytorch_model.bin") for sharded in (False, True)]


@pytest.mark.parametrize(("kind", "sharded"), KINDS)
def test_a_folder_opens_as_config_and_state_dict(tmp_path, kind, sharded):
    opened = open_checkpoint(fill(tmp_path, kind, sharded))
    assert set(opened) == {"config", "state_dict"}
    assert opened["config"] == CONFIG
    assert set(opened["state_dict"]) == set(BOTH)
    assert all(torch.equal(opened["state_dict"][name], one) for name, one in BOTH.items())
    assert all(opened["state_dict"][name].dtype == one.dtype for name, one in BOTH.items())
    assert [one.label for one in find_state_dicts(opened)] == ["state_dict"]


@pytest.mark.parametrize(("kind", "sharded"), KINDS)
def test_its_digest_is_that_of_the_files_read(tmp_path, kind, sharded):
    fill(tmp_path, kind, sharded)
    before = digest_checkpoint(tmp_path)
    (tmp_path / "README.md").write_text("more")
    assert digest_checkpoint(tmp_path) == before
    (tmp_path / "config.json").write_text("{}")
    changed = digest_checkpoint(tmp_path)
    assert changed != before
    last = sorted(tmp_path.glob(f"{kind.partition('.')[0]}*{kind.rpartition('.')[2]}"))[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"\x7f")
    assert digest_checkpoint(tmp_path) not in {before, changed}


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    torch.save(BOTH, tmp_path / "a.pth")
    assert digest_checkpoint(tmp_path / "a.pth") == digest_file(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_missing_shard_is_named(tmp_path, kind):
    fill(tmp_path, kind, True)
    gone = next(tmp_path.glob("*-00002-of-*"))
    gone.unlink()
    for attempt in (open_checkpoint, digest_checkpoint):
        with pytest.raises(CheckpointError, match=f"all 2 shards.*no {gone.name}"):
            attempt(tmp_path)


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/etc/passwd", "..", "a/b.safetensors", "..\\a", "C:\\a", ""]
)
def test_a_shard_elsewhere_is_refused(tmp_path, name):
    fill(tmp_path, "model.safetensors", True)
    index = {"weight_map": {**dict.fromkeys(ONE, "model-00001-of-00002.safetensors"), "x": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="beside their index"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_no_shard_holds_is_named(tmp_path):
    fill(tmp_path, "model.safetensors", True)
    index = tmp_path / "model.safetensors.index.json"
    where = json.loads(index.read_text())
    where["weight_map"]["layer.2.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(where))
    with pytest.raises(CheckpointError, match=r"1 missing, such as layer\.2\.weight"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
def test_an_index_without_sense_is_refused(tmp_path, content):
    fill(tmp_path, "model.safetensors", True)
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"weight_map|JSON"):
        open_checkpoint(tmp_path)


def test_a_pointer_in_place_of_weights_is_named(tmp_path):
    fill(tmp_path, "model.safetensors", False)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_checkpoint(tmp_path)


def test_safetensors_come_first_and_a_config_may_be_missing(tmp_path):
    torch.save(ONE, tmp_path / "pytorch_model.bin")
    save_file(TWO, tmp_path / "model.safetensors")
    opened = open_checkpoint(tmp_path)
    assert set(opened["state_dict"]) == set(TWO)
    assert opened["config"] == {}


def test_a_backbone_is_loaded_from_a_folder(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    backbone = load_backbone(module, tmp_path)
    assert backbone.checkpoint.digest == digest_checkpoint(tmp_path)
    assert backbone.checkpoint.container == "state_dict"
