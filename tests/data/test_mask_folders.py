"""Masks beside images: classes by name or number, what counts for none, lazily read."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from probekit.data.annotations import IGNORE
from probekit.data.readers import open_images
from probekit.errors import DataError


def write(folder, split, stem, values, mode="L"):
    for name in ("images", "masks"):
        (folder / split / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 2)).save(folder / split / "images" / f"{stem}.jpg")
    mask = Image.fromarray(np.array(values, np.uint8), "L" if mode == "L" else "P")
    if mode == "P":
        mask.putpalette([value for colour in range(256) for value in (255 - colour, 0, colour)])
    mask.save(folder / split / "masks" / f"{stem}.png")


@pytest.fixture
def street(tmp_path):
    folder = tmp_path / "street"
    write(folder, "train", "a", [[0, 1, 2, 9], [0, 0, 2, 2]])
    write(folder, "train", "b", [[0, 0, 0, 0], [9, 9, 9, 9]], "P")
    write(folder, "test", "c", [[1, 1, 1, 1], [2, 2, 2, 2]])
    return folder


def test_classes_by_name_and_void_counts_for_none(street):
    (street / "classes.json").write_text(json.dumps({"0": "road", "1": "sky", "2": "car", "9": "void"}))
    images = open_images(street)
    target = images.targets["masks"]
    assert images.splits.tolist() == ["test", "train", "train"]
    assert target.classes == ("road", "sky", "car")
    assert target.values[1].read().tolist() == [[0, 1, 2, IGNORE], [0, 0, 2, 2]]
    # A palette holds numbers, not colours.
    assert target.values[2].read().tolist() == [[0] * 4, [IGNORE] * 4]
    again = pickle.loads(pickle.dumps(images))
    assert again.targets["masks"].values[0].read().tolist() == [[1] * 4, [2] * 4]


def test_classes_by_number_with_one_that_counts_for_none(street):
    images = open_images(f"{street},ignore=9,target=masks,present")
    assert images.targets["masks"].classes == ("0", "1", "2")
    assert images.targets["present"].values.tolist() == [[0, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert open_images(street).targets["masks"].classes == ("0", "1", "2", "9")


def test_images_without_a_mask_are_counted(street):
    Image.new("RGB", (4, 2)).save(street / "train" / "images" / "lonely.jpg")
    images = open_images(street)
    assert len(images) == 3
    assert [(one.what, one.count) for one in images.problems] == [("images without a mask, left out", 1)]


def test_a_number_without_a_class_and_a_coloured_mask_are_refused_when_read(street):
    (street / "classes.json").write_text(json.dumps(["road", "sky"]))
    mask = open_images(street).targets["masks"].values[1]
    assert mask.read().tolist()[0][:2] == [0, 1]
    assert mask.read().tolist()[0][2:] == [IGNORE, IGNORE]
    Image.new("RGB", (4, 2)).save(street / "train" / "masks" / "a.png")
    with pytest.raises(DataError, match="mode RGB"):
        open_images(street).targets["masks"].values[1].read()


@pytest.mark.parametrize("content", ["[", "3", '{"a": "b"}', "[]", '["x", "x"]'])
def test_lists_of_classes_that_mean_nothing_are_refused(street, content):
    (street / "classes.json").write_text(content)
    with pytest.raises(DataError, match="class"):
        open_images(street)


def test_the_digest_sees_the_masks(street):
    before = open_images(street).digest
    write(street, "test", "c", [[1, 1, 1, 1], [2, 2, 2, 0]])
    assert open_images(street).digest != before


def test_the_real_masks(shared_data):
    images = open_images(shared_data / "camvid" / "camvid_240x180.zip")
    assert [len(images.indices(role)) for role in ("train", "val", "test")] == [367, 101, 116]
    target = images.targets["masks"]
    assert len(target.classes) == 11
    assert "void" not in target.classes
    values = target.values[0].read()
    assert values.shape == (180, 240)
    assert set(np.unique(values)) <= {*range(11), IGNORE}
    coco = open_images(f"{shared_data / 'coco_mini' / 'coco_mini.zip'},format=masks")
    assert [len(coco.indices(role)) for role in ("train", "test")] == [100, 66]
