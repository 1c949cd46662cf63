"""``probekit verify``: what it prints, and its exit status."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from probekit.cli.main import app

NET = """
import torch
from torch import nn

class Net(nn.Module):
    pretrained_cfg = {"input_size": (3, 8, 8), "crop_pct": 1.0, "mean": (MEAN,) * 3, "std": (0.5,) * 3}

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 1, 1, bias=False)
        self.fc = nn.Linear(1, 2)

    def forward(self, x):
        return self.fc(self.body(x).flatten(1).mean(1, keepdim=True))

def net():
    return Net()
"""


@pytest.fixture
def bright(tmp_path):
    """A folder of dark and bright images, and a file whose network tells them apart at mean 0.5."""
    import torch

    stream = np.random.default_rng(0)
    for name, level in (("a_dark", 118), ("bright", 142)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for place in range(60):
            values = np.clip(level + stream.normal(0, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(values).save(tmp_path / "images" / name / f"{place}.png")
    weights = {"body.weight": torch.full((1, 3, 1, 1), 1 / 3)}
    weights |= {"fc.weight": torch.tensor([[0.0], [1.0]]), "fc.bias": torch.tensor([0.0, -0.02])}
    torch.save(weights, tmp_path / "net.pth")
    return tmp_path


def run(folder, mean, *more):
    (folder / "net.py").write_text(NET.replace("MEAN", str(mean)))
    model = f"{folder / 'net.py'}:net:{folder / 'net.pth'}"
    return CliRunner().invoke(app, ["-q", "verify", model, "--data", str(folder / "images"), *more])


def test_a_fitting_preprocessing_ends_well(bright):
    done = run(bright, 0.5)
    assert done.exit_code == 0, done.output
    assert "No common preprocessing fits clearly better than the stated one, 100.0%" in done.output
    assert "classes in their order" in done.output


def test_another_that_fits_better_ends_with_status_1(bright):
    done = run(bright, 0.2, "--json")
    assert done.exit_code == 1, done.output
    found = json.loads(done.stdout)
    assert found["better"].startswith("mean=0.5/0.5/0.5")
    assert found["n"] == 120
