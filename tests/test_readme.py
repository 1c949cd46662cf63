"""What the README tells a newcomer to type is understood, and works."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import typer
from PIL import Image

from probekit.cli.main import app
from tests.conftest import ROOT

log = logging.getLogger(__name__)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What stands for whatever the reader has.
ELISIONS = {
    "-m sup=… -m moco=…": "-m sup=resnet10_w16:bundled@ce -m moco=resnet10_w16:bundled@moco-v2",
    "-m … -m …": "-m sup=resnet10_w16:bundled@ce -m moco=resnet10_w16:bundled@moco-v2",
    "-m …": "-m resnet10_w16:bundled@ce",
    "ARCH:folded.pth": "resnet18:folded.pth",
}
# Folders that the commands name: classes, or boxes.
CLASSES, BOXES = ("flowers", "imagenet_val", "signs", "photos", "images", "imagenet"), ("cells",)


def commands(page: Path) -> Iterator[str]:
    """Yield what a page tells to type of our own command, without comments."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    for line in [*lines, *re.findall(r"`(probekit [^`]+)`", text)]:
        if line.startswith("probekit "):
            yield line.split(" #")[0].strip()


ALL = sorted({(page.name, command) for page in PAGES for command in commands(page)})
# In the page's order: some read what others left.
RUN = list(dict.fromkeys(commands(PAGES[0])))


def words_of(command: str) -> list[str]:
    """Return the words of a command behind its name, elisions filled in."""
    for elision, words in ELISIONS.items():
        command = command.replace(elision, words)
    return shlex.split(command.replace("…", ""))[1:]


@pytest.mark.parametrize(("page", "command"), ALL)
def test_commands_are_understood(page: str, command: str):
    verb, *given = words_of(command)
    found = typer.main.get_command(app).get_command(None, verb)
    assert found, f"no verb {verb!r}"
    if page == "README.md" or given:
        with suppress(typer.Exit):  # of --help
            found.make_context(verb, given)  # reads every word and runs nothing


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all names of the README are there: small images, boxes and a checkpoint."""
    place = tmp_path_factory.mktemp("desk")
    stream = np.random.default_rng(0)
    for name in CLASSES:
        for number in range(120):
            picture(place / name / f"class-{number % 3}" / f"{number}.png", number % 3, stream)
    for name in BOXES:
        annotated(place / name, stream)
    annotated(place / "coco", stream)
    subprocess.run([sys.executable, "-m", "zipfile", "-c", "coco.zip", "coco/"], cwd=place, check=True)
    trained = timm.create_model("resnet50", num_classes=0).state_dict()
    state = {f"module.encoder_q.{name}": value for name, value in trained.items()}
    state |= {
        "module.encoder_q.fc.0.weight": torch.zeros(2048, 2048),
        "module.encoder_q.fc.0.bias": torch.zeros(2048),
    }
    state |= {
        "module.encoder_q.fc.2.weight": torch.zeros(128, 2048),
        "module.encoder_q.fc.2.bias": torch.zeros(128),
    }
    for name in ("moco.pth.tar", "moco_v2_800ep.pth.tar"):
        torch.save({"epoch": 800, "arch": "resnet50", "state_dict": state}, place / name)
    # Batch norm that does nothing but add a bias, as folding leaves it.
    folded = timm.create_model("resnet18", zero_init_last=False).state_dict()
    biases = {
        name: torch.full_like(one, 0.3) for name, one in folded.items() if re.search(r"bn\d.bias", name)
    }
    torch.save(folded | biases, place / "folded.pth")
    return place


def picture(path: Path, kind: int, stream: np.random.Generator) -> None:
    """Draw one of three kinds: a patch of a colour of its own, somewhere on noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = stream.integers(0, 128, (48, 48, 3), dtype=np.uint8)
    top, left = stream.integers(0, 24, 2)
    pixels[top : top + 24, left : left + 24, kind] += 127
    Image.fromarray(pixels).save(path)


def annotated(place: Path, stream: np.random.Generator) -> None:
    """Write images with two boxes each in COCO's form, with splits train and test."""
    for split in ("train", "test"):
        images, boxes = [], []
        for number in range(16):
            picture(place / split / f"{split}-{number}.png", number % 3, stream)
            images.append({"id": number, "file_name": f"{split}-{number}.png", "width": 48, "height": 48})
            for kind in (1, 2):
                box = {"id": 2 * number + kind, "image_id": number, "category_id": kind, "iscrowd": 0}
                boxes.append(box | {"bbox": [8 * kind, 8, 16, 16], "area": 256})
        kinds = [{"id": 1, "name": "round"}, {"id": 2, "name": "long"}]
        content = {"images": images, "annotations": boxes, "categories": kinds}
        (place / "annotations").mkdir(exist_ok=True)
        (place / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_commands_work(desk: Path):
    failed = {}
    for command in RUN:
        words = words_of(command)
        takes = typer.main.get_command(app).get_command(None, words[0])
        if any(one.name == "smoke" for one in takes.params):
            words += ["--smoke"]
        if "analyses/" in command:
            words += ["--out", str(desk / "runs" / Path(words[1]).stem)]
        ended = subprocess.run(
            [sys.executable, "-m", "probekit", *words],
            cwd=ROOT if "analyses/" in command else desk,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        log.info("%s: %d", command, ended.returncode)
        if ended.returncode:
            failed[command] = ended.stderr[-1000:]
    assert not failed
