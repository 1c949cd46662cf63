"""Batch-norm statistics of a data set, and the file that unfolding writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from probekit import Backbone, Preprocessing, load_backbone
from probekit.backbones.batch_norm import is_folded
from probekit.cli.main import app
from probekit.errors import CheckpointError, InputError
from probekit.features.statistics import recalibrated, unfold
from tests.features.conftest import images, small_backbone, small_net

SMALL = Preprocessing(12, 12)


def folded() -> nn.Module:
    """A network whose batch norm adds a bias and does nothing else."""
    module = small_net()
    nn.init.constant_(module[1].bias, 0.3)
    return module


def test_recalibrated_statistics_are_those_of_the_training_split(store: Path):
    backbone, data = small_backbone(), images(64)
    other = recalibrated(backbone, data)
    train = data.split("train")
    pixels = torch.from_numpy(np.stack([train.pixels(i, backbone.preprocessing) for i in range(len(train))]))
    with torch.inference_mode():
        x = backbone.module[0](backbone.prepare(pixels)).double()
    torch.testing.assert_close(other.module[1].running_mean.double(), x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other.module[1].running_var.double(), x.var((0, 2, 3)), rtol=1e-3, atol=1e-6)
    assert other.weights != backbone.weights


def test_statistics_outside_of_what_is_named_stay_and_may_be_folded():
    backbone = Backbone.from_module(
        nn.Sequential(folded(), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)), preprocessing=SMALL
    )
    other = recalibrated(backbone, images(64), within=["2"])
    before, after = backbone.module.state_dict(), other.module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert recalibrated(backbone, images(64), within=["1"]) is backbone
    assert "within 2" in other.checkpoint.notes[-1]


def test_where_nothing_is_for_training_all_images_count():
    backbone, whole = small_backbone(), images(64)
    held_out = whole.select(whole.indices("test"))
    other = recalibrated(backbone, held_out)
    rows = range(len(held_out))
    pixels = torch.from_numpy(np.stack([held_out.pixels(i, backbone.preprocessing) for i in rows]))
    with torch.inference_mode():
        x = backbone.module[0](backbone.prepare(pixels)).double()
    torch.testing.assert_close(other.module[1].running_mean.double(), x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert "training" not in other.checkpoint.summary()


def test_an_unfolded_file_computes_the_same_and_loads_as_before(tmp_path: Path):
    flat = Backbone.from_module(folded(), preprocessing=SMALL)
    path = tmp_path / "new" / "unfolded.safetensors"
    facts = unfold(flat, images(64), path)
    assert facts["layers"] == 1
    assert facts["images"] == 51
    assert facts["relative_change"] <= 1e-5
    again = load_backbone(folded(), path, size=12)
    assert not is_folded(again.module)
    batch = torch.rand(4, 3, 12, 12)
    torch.testing.assert_close(again.module(batch), flat.module(batch), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_unfolded_is_refused_before_anything_is_written(tmp_path: Path):
    flat = Backbone.from_module(folded(), preprocessing=SMALL)
    with pytest.raises(InputError, match="safetensors"):
        unfold(flat, images(), tmp_path / "a.pth")
    with pytest.raises(InputError, match="statistics of its own"):
        unfold(small_backbone_trained(), images(), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="at least two training images"):
        unfold(flat, images().select([0]), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def small_backbone_trained() -> Backbone:
    module = small_net()
    module[1].running_mean.fill_(0.5)
    return Backbone.from_module(module, preprocessing=SMALL)


def test_a_changed_function_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Were the mathematics wrong, the comparison of outputs would say so."""
    import probekit.backbones.batch_norm as module

    right = module._scale_and_shift
    monkeypatch.setattr(module, "_scale_and_shift", lambda layer: (right(layer)[0], right(layer)[1] + 0.01))
    with pytest.raises(CheckpointError, match="relative change"):
        unfold(Backbone.from_module(folded(), preprocessing=SMALL), images(64), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_did(tmp_path: Path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom tests.features.conftest import small_net\n"
        "def net():\n    module = small_net()\n    return module\n"
    )
    torch.save(folded().state_dict(), tmp_path / "folded.pth")
    out = tmp_path / "unfolded.safetensors"
    words = f"{tmp_path / 'net.py'}:net:{tmp_path / 'folded.pth'},size=12"
    done = CliRunner().invoke(app, ["unfold", words, "--data", "digits,limit=40", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "1 layers unfolded with 40 images" in done.output
    assert out.exists()
