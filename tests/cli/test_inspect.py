"""``probekit inspect`` prints what ``inspect_checkpoint`` finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from probekit.backbones.architectures import build
from probekit.backbones.inspection import inspect_checkpoint
from probekit.cli.main import app
from probekit.errors import CheckpointError

runner = CliRunner()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save({"state_dict": build("cifar_resnet20").state_dict()}, tmp_path / "net.th")
    return tmp_path / "net.th"


def invoke(*words: object) -> tuple[int, str]:
    result = runner.invoke(app, ["inspect", *map(str, words)], catch_exceptions=False)
    return result.exit_code, result.output


def test_help_has_an_example():
    assert "Example: probekit inspect" in invoke("--help")[1]


def test_text_and_json_say_what_was_found(saved: Path):
    found = inspect_checkpoint(saved)
    assert invoke(saved) == (0, f"{found}\n")
    status, output = invoke(saved, "--json")
    assert status == 0
    assert json.loads(output) == found.facts()
    assert f"next          --model net=cifar_resnet20:{saved}" in invoke(saved)[1]


def test_an_architecture_that_does_not_fit_ends_with_status_1(saved: Path):
    assert invoke(saved, "--arch", "cifar_resnet20")[0] == 0
    status, output = invoke(saved, "--arch", "cifar_resnet32")
    assert status == 1
    assert "does not fit  cifar_resnet32" in output


def test_what_is_no_checkpoint_is_an_error_in_words(tmp_path: Path):
    (tmp_path / "page.pth").write_text("<!doctype html><html></html>")
    with pytest.raises(CheckpointError, match="a web page"):
        invoke(tmp_path / "page.pth")
