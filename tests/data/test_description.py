"""What ``probekit data`` says: counts, modes, turned and broken files, copies, and a sheet that shows it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from probekit.cli.main import app
from probekit.data.annotations import IGNORE, Boxes, Points, stack
from probekit.data.description import describe_images
from probekit.data.images import ImageSet
from probekit.data.readers import open_images
from probekit.data.sheet import COLUMNS, GAP, TILE, draw_sheet
from probekit.data.targets import Target


@pytest.fixture
def mixed(tmp_path):
    """A folder of everything that comes along: modes, a turned file, a broken one, a copy in two splits."""
    random = np.random.default_rng(0)
    folder = tmp_path / "mixed"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
    noise = Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    noise.save(folder / "train" / "cat" / "rgb.png")
    noise.convert("L").save(folder / "train" / "cat" / "grey.png")
    noise.convert("CMYK").save(folder / "train" / "cat" / "cmyk.jpg")
    noise.convert("P").save(folder / "train" / "dog" / "palette.png")
    noise.convert("RGBA").save(folder / "train" / "dog" / "alpha.png")
    Image.fromarray(random.integers(0, 65536, (20, 30), dtype=np.uint16)).save(
        folder / "train" / "dog" / "deep.png"
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.save(folder / "test" / "cat" / "turned.jpg", exif=exif)
    (folder / "test" / "dog" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    noise.save(folder / "test" / "dog" / "rgb.png")
    return folder


def test_modes_sizes_and_problems_are_told(mixed):
    facts = describe_images(open_images(mixed))
    assert facts.images == {"train": 6, "test": 3}
    assert facts.widths == (20, 30, 30)
    assert facts.heights == (20, 20, 30)
    kinds = dict(facts.modes)
    assert kinds.pop("16-bit grey", 0) + kinds.pop("32-bit grey", 0) == 1  # as Pillow's version has it
    assert kinds == {"RGB": 3, "grey": 1, "CMYK": 1, "palette": 1, "with transparency": 1}
    problems = {one.what: one.count for one in facts.problems}
    assert problems == {
        "images that cannot be read": 1,
        "images turned by EXIF, shown turned": 1,
        "classes of class with fewer than 5": 1,
    }
    assert 0.3 < facts.mean[0] < 0.7
    assert facts.targets["class"]["counts"] == {"cat": 4, "dog": 5}


def test_colour_is_that_of_the_images():
    pixels = np.zeros((4, 5, 5, 3), np.uint8)
    pixels[..., 0] = 255
    pixels[:2, ..., 1] = 255
    facts = describe_images(ImageSet.from_arrays("red", pixels, ["a", "b", "a", "b"], ["train"] * 4))
    assert facts.mean == (1.0, 0.5, 0.0)
    assert facts.std == (0.0, 0.5, 0.0)


def test_copies_across_splits_and_classes_that_training_lacks():
    pixels = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 5, 5, 3), np.uint8)
    pixels[3] = pixels[0]
    images = ImageSet.from_arrays("odd", pixels, ["a", "b", "a", "c"], ["train", "train", "train", "test"])
    problems = {one.what: one.count for one in describe_images(images).problems}
    assert problems["images that stand in two splits"] == 2
    assert problems["classes of class that training lacks"] == 1


def marked():
    pixels = np.full((2, 40, 80, 3), 255, np.uint8)
    boxes = Target(
        stack([Boxes([[20, 10, 60, 30]], [1], [False]), Boxes(np.zeros((0, 4)), [], [])]), "boxes", ("a", "b")
    )
    points = Target(stack([Points([[40, 20]], [True]), Points([[0, 0]], [False])]), "keypoints", ("nose",))
    return ImageSet.from_arrays("marked", pixels, {"boxes": boxes, "keypoints": points}, ["train", "test"])


def test_boxes_and_points_are_counted_and_drawn_where_they_are(tmp_path):
    images = marked()
    facts = describe_images(images)
    assert facts.targets["boxes"] == {
        "kind": "boxes", "n_classes": 2, "counts": {"a": 0, "b": 1}, "boxes": 1, "images_without": 1,
    }  # fmt: skip
    assert facts.targets["keypoints"]["counts"] == {"nose": 1}
    with Image.open(draw_sheet(images, tmp_path / "sheet.png")) as opened:
        sheet = np.asarray(opened.convert("RGB")).astype(int)
    assert sheet.shape[1] == COLUMNS * (TILE + GAP) + GAP
    tile = sheet[GAP : GAP + TILE, GAP : GAP + TILE]
    # The image is twice its size and centred: 80 rows of it, from 40.
    edge = tile[40 + 20, 60]
    assert edge.tolist() == [0xEE, 0x66, 0x77]
    assert tile[40 + 40, 80].tolist() == [0xEE, 0x66, 0x77]
    assert tile[40 + 25, 60].tolist() == [255, 255, 255]


def test_the_command_prints_json_and_draws(mixed, tmp_path):
    done = CliRunner().invoke(app, ["-q", "data", str(mixed), "--json", "--sheet", str(tmp_path / "s.png")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["images"] == {"train": 6, "test": 3}
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.format == "PNG"
    shown = CliRunner().invoke(app, ["-q", "data", str(mixed)])
    assert "1 images that cannot be read, such as" in shown.output
    assert f"--data {mixed}" in shown.output


def test_single_images_of_a_class_can_still_be_looked_at(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "few" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "few" / name / "x.png")
    done = CliRunner().invoke(app, ["-q", "data", str(tmp_path / "few")])
    assert done.exit_code == 0, done.output
    assert "2 test" in done.output


def test_the_real_sets_are_described_with_their_counts(shared_data):
    counts = {
        "dtd10/dtd10_900.zip": {"train": 600, "test": 300},
        "gtsrb/gtsrb43.zip": {"train": 2561, "test": 1075},
        "imagenet_samples/imagenet_800.zip,divide=no": {"test": 800},
        "cifar10/cifar10_jpeg.zip": {"train": 30000, "test": 8000},
        "cifar10/cifar10_exact_train_3000.npz,divide=no": {"test": 3000},
    }
    for words, wanted in counts.items():
        images = open_images(f"{shared_data}/{words}")
        found = {role: len(images.indices(role)) for role in ("train", "val", "test")}
        assert {role: count for role, count in found.items() if count} == wanted
    assert IGNORE == 255
