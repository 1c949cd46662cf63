"""Detections in COCO's results format: what they may be called, what is counted, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from probekit import ImageSet, open_images
from probekit.data.coco_results import read_results
from probekit.errors import DataError

# Ids with gaps, in another order than their names.
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def said(image, category, box=(1, 2, 3, 4), score=0.5):
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """Two images to train on, two to test on; image 5 and ``a.png`` stand in both."""
    for split, listed in {
        "train": [(5, "a.png"), (6, "b.png")],
        "test": [(5, "c.png"), (9, "a.png")],
    }.items():
        folder = tmp_path / "set" / split / "images"
        folder.mkdir(parents=True)
        records = []
        for number, name in listed:
            Image.new("RGB", (20, 10)).save(folder / name)
            records.append({"id": number, "file_name": name, "width": 20, "height": 10})
        annotations = [
            {"id": 1, "image_id": number, "category_id": 3, "bbox": [0, 0, 9, 9]} for number, _ in listed
        ]
        content = {"images": records, "annotations": annotations, "categories": CATEGORIES}
        (tmp_path / "set" / split / "instances.json").write_text(json.dumps(content))
    return open_images(tmp_path / "set")


def read(images: ImageSet, tmp_path: Path, records: object):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(records))
    return read_results(path, images, "boxes", images.indices("test"))


def test_images_and_classes_have_several_names(images: ImageSet, tmp_path: Path):
    names = [5, 5.0, "c.png", "c", str(images.ids[images.indices("test")[0]])]
    others = [9, "a.png", "a"]
    found, problems = read(
        images, tmp_path, [said(name, 3) for name in names] + [said(name, "dog") for name in others]
    )
    assert found.images.tolist() == [0] * 5 + [1] * 3
    # Classes stand in the order of their ids.
    assert images.targets["boxes"].classes == ("cat", "dog")
    assert found.classes.tolist() == [0] * 5 + [1] * 3
    assert found.boxes[0].tolist() == [1, 2, 4, 6]
    assert not problems


def test_what_cannot_be_used_is_left_out_and_counted(images: ImageSet, tmp_path: Path):
    records = [
        said(5, 3, (-4, -4, 100, 100), 0.9),  # over the edge: as it is
        said(5, 3, score=float("nan")),
        said(5, 3, score=None),
        said(5, 3, (1, 2, 0, 4)),
        said(5, 3, (1, 2, 3)),
        said(5, 3, (1, 2, 3, float("inf"))),
        said(6, 3),
        said("b", 7),
    ]
    found, problems = read(images, tmp_path, records)
    assert found.boxes.tolist() == [[-4, -4, 96, 96]]
    assert {one.what.split(",")[0]: one.count for one in problems} == {
        "detections without a finite score": 2,
        "detections without a box with an area": 3,
        "detections of images that are not scored": 2,
    }


@pytest.mark.parametrize(
    ("records", "part"),
    [
        ([said(77, 3)], "image_id among those of set.*1 detections with others.*77"),
        ([said("z.png", 3), said(True, 3)], "2 detections with others.*'z.png', True"),
        ([said(5, 4)], "category_id among those of set"),
        ([said(5, "bird")], "category_id among.*'bird'"),
        ({"annotations": []}, "a list of detections in .*dict"),
        ([{"image_id": 5, "category_id": 3, "bbox": [1, 2, 3, 4]}], "no score in number 0"),
        (["box"], "no image_id in number 0"),
        (
            [said(5, 3, score=float("nan"))],
            "2 images scored .*1 detections without a finite",
        ),
    ],
)
def test_files_of_something_else_are_refused(records, part, images: ImageSet, tmp_path: Path):
    with pytest.raises(DataError, match=part):
        read(images, tmp_path, records)


def test_files_that_are_none_are_refused(images: ImageSet, tmp_path: Path):
    rows = images.indices("test")
    with pytest.raises(DataError, match="which does not exist"):
        read_results(tmp_path / "nowhere.json", images, "boxes", rows)
    (tmp_path / "torn.json").write_text('[{"image_id": 5')
    with pytest.raises(DataError, match=r"JSON in .*torn\.json"):
        read_results(tmp_path / "torn.json", images, "boxes", rows)


def test_no_detection_is_an_answer(images: ImageSet, tmp_path: Path):
    found, problems = read(images, tmp_path, [])
    assert len(found) == 0
    assert not problems


def test_a_name_of_two_scored_images_stands_for_none(images: ImageSet, tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([said("a.png", 3)]))
    with pytest.raises(DataError, match=r"with others.*'a\.png'"):
        read_results(path, images, "boxes", np.arange(len(images)))


def test_data_of_other_formats_are_called_by_their_ids(tmp_path: Path):
    images = open_images("shapeworld/scenes,train=80,test=4,annotations=boxes")
    rows = images.indices("test")
    label = images.targets["boxes"].classes[2]
    found, _ = read(images, tmp_path, [said(str(images.ids[rows[3]]), label)])
    assert (found.images.tolist(), found.classes.tolist()) == ([3], [2])
    with pytest.raises(DataError, match="category_id among"):
        read(images, tmp_path, [said(str(images.ids[rows[3]]), 2)])
