"""COCO's JSON: what is read, what is counted as wrong, what is refused."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from probekit.data.annotations import Boxes, Outline, clip_corners
from probekit.data.coco import decode_runs, find_coco, read_coco
from probekit.data.folders import Tree, list_folder
from probekit.data.readers import open_images
from probekit.errors import DataError, ImageUnreadable, InputError, ProbekitError

# Ids with gaps, in another order than their names.
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "bird"}]


def box(image, category, corners, number=1, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": corners, **more}


def write(folder, split, images, annotations, categories=CATEGORIES):
    (folder / split / "images").mkdir(parents=True, exist_ok=True)
    for one in images:
        Image.new("RGB", (one["width"], one["height"])).save(folder / split / "images" / one["file_name"])
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / split / "instances.json").write_text(json.dumps(content))


@pytest.fixture
def small(tmp_path):
    images = [
        {"id": 5, "file_name": "a.png", "width": 20, "height": 10},
        {"id": 6, "file_name": "b.png", "width": 20, "height": 10},
    ]
    annotations = [
        box(5, 90, [2, 1, 4, 5]),
        box(5, 3, [0, 0, 20, 10], 2, iscrowd=1),
        box(5, 3, [5, 5, 0, 3], 3),
        box(5, 3, [30, 5, 3, 3], 4),
        box(5, 7, [-5, 2, 10, 4], 5),
        box(5, 7, [1, 2, 3], 6),
    ]
    write(tmp_path / "set", "train", images, annotations)
    write(
        tmp_path / "set",
        "test",
        [{"id": 1, "file_name": "c.png", "width": 8, "height": 8}],
        [box(1, 3, [1, 1, 2, 2])],
    )
    return tmp_path / "set"


def test_boxes_become_corners_and_what_is_wrong_is_counted(small):
    images = open_images(small)
    assert images.ids.tolist() == ["test/images/c.png", "train/images/a.png", "train/images/b.png"]
    target = images.targets["boxes"]
    assert target.classes == ("cat", "dog", "bird")
    first = target.values[1]
    assert first.corners.tolist() == [[2, 1, 6, 6], [0, 0, 20, 10], [0, 2, 5, 6]]
    assert first.classes.tolist() == [2, 0, 1]
    assert first.crowd.tolist() == [False, True, False]
    assert len(target.values[2]) == 0
    assert images.targets["present"].values.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert {one.what: one.count for one in images.problems} == {
        "boxes without an area in their image, left out": 2,
        "boxes that reached over the edge, cut": 1,
        "annotations without a box of four numbers, left out": 1,
    }
    assert images.problems[0].examples == ("a.png",)


def test_a_zip_reads_like_the_folder_and_the_digest_sees_the_boxes(small, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(small.rglob("*.*")):
            archive.write(path, path.relative_to(small).as_posix())
    one, other = open_images(small), open_images(tmp_path / "set.zip")
    assert one.targets["boxes"].content() == other.targets["boxes"].content()
    text = (small / "train" / "instances.json").read_text().replace("[2, 1, 4, 5]", "[2, 1, 4, 6]")
    (small / "train" / "instances.json").write_text(text)
    assert open_images(small).digest != one.digest
    chosen = one.select([2, 0])
    assert [len(boxes) for boxes in chosen.targets["boxes"].values] == [0, 1]


def test_many_notes_beside_images_are_not_read_to_tell_the_format(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for place in range(15):
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{place}.png")
            (tmp_path / name / f"{place}.json").write_text('{"images": 1, "annotations": 2}')
    assert open_images(tmp_path).targets["class"].classes == ("cat", "dog")


def test_one_file_alone_with_its_root(small):
    images = open_images(f"{small / 'train' / 'instances.json'},divide=no")
    assert len(images) == 2
    assert set(images.splits) == {"test"}


def test_several_kinds_must_be_chosen_from(small):
    text = (small / "train" / "instances.json").read_text()
    (small / "train" / "other.json").write_text(text)
    with pytest.raises(DataError, match="annotations=instances"):
        open_images(small)
    assert len(open_images(f"{small},annotations=instances")) == 3
    tree = list_folder(small)
    assert find_coco(tree, "other") == {"train/other.json": "train"}


def test_two_formats_in_one_folder_must_be_told_apart(small):
    (small / "train" / "masks").mkdir()
    Image.new("L", (20, 10)).save(small / "train" / "masks" / "a.png")
    with pytest.raises(InputError, match="coco, masks"):
        open_images(small)
    assert "boxes" in open_images(f"{small},format=coco").targets


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"images": [{"id": 1, "file_name": "gone.png", "width": 3, "height": 3}]},
            ImageUnreadable,
            "gone.png",
        ),
        ({"annotations": [box(99, 3, [0, 0, 1, 1])]}, DataError, "image_id 99"),
        ({"annotations": [box(1, 55, [0, 0, 1, 1])]}, DataError, "category_id 55"),
        (
            {"categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "cat"}]},
            DataError,
            "names that differ",
        ),
        ({"categories": []}, DataError, "categories"),
        ({"annotations": 3}, DataError, "list of records"),
    ],
)
def test_contradictions_are_refused(tmp_path, change, error, words):
    image = {"id": 1, "file_name": "a.png", "width": 8, "height": 8}
    write(tmp_path, "train", [image], [box(1, 3, [0, 0, 2, 2])])
    path = tmp_path / "train" / "instances.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=words):
        open_images(f"{tmp_path},divide=no")


def test_an_image_listed_twice_is_refused(tmp_path):
    image = {"id": 1, "file_name": "a.png", "width": 8, "height": 8}
    write(tmp_path, "train", [image, image], [box(1, 3, [0, 0, 2, 2])])
    with pytest.raises(DataError, match="id 1 twice"):
        open_images(tmp_path)


def test_key_points_of_single_objects(tmp_path):
    categories = [{"id": 1, "name": "person", "keypoints": ["nose", "hand"]}]
    image = {"id": 1, "file_name": "a.png", "width": 8, "height": 8}
    write(tmp_path, "train", [image], [box(1, 1, [0, 0, 4, 4], keypoints=[1, 2, 2, 0, 0, 0])], categories)
    target = open_images(f"{tmp_path},divide=no").targets["keypoints"]
    assert target.classes == ("nose", "hand")
    assert target.values[0].positions.tolist() == [[1, 2], [0, 0]]
    assert target.values[0].visible.tolist() == [True, False]


def encode(runs):
    """COCO's compressed run lengths, written from its description: the decoder's opposite."""
    text = ""
    for place, run in enumerate(runs):
        value = run - (runs[place - 2] if place > 2 else 0)
        more = True
        while more:
            six = value & 0x1F
            value >>= 5
            more = value != (-1 if six & 0x10 else 0)
            text += chr((six | (0x20 if more else 0)) + 48)
    return text


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=20))
def test_compressed_run_lengths_are_read_back(runs):
    assert decode_runs(encode(runs)) == tuple(runs)


@given(st.integers(0, 2**32 - 1))
def test_masks_of_run_lengths_go_down_the_columns(seed):
    wanted = np.random.default_rng(seed).random((5, 7)) > 0.5
    flat = wanted.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, flat.size]).tolist()
    runs = [0, *runs] if flat[0] else runs
    assert np.array_equal(Outline(runs=tuple(runs), size=(5, 7)).mask(5, 7), wanted)
    with pytest.raises(DataError, match="5 × 7"):
        Outline(runs=tuple(runs), size=(5, 7)).mask(7, 5)


def test_polygons_fill_the_pixels_whose_centres_they_hold():
    square = Outline((np.array([[2, 1], [6, 1], [6, 4], [2, 4]], np.float32),))
    mask = square.mask(6, 8)
    assert mask[1:4, 2:6].all()
    # Pillow also fills pixels that the edge touches; the area is right within the outline's length.
    assert mask.sum() <= 4 * 3 + 2 * (4 + 3)
    assert not mask[5:].any()


def test_polygons_and_runs_come_with_the_boxes(tmp_path):
    image = {"id": 1, "file_name": "a.png", "width": 4, "height": 4}
    shapes = [
        box(1, 3, [0, 0, 2, 2], 1, segmentation=[[0, 0, 2, 0, 2, 2, 0, 2]]),
        box(1, 3, [0, 0, 1, 4], 2, segmentation={"size": [4, 4], "counts": [0, 4, 12]}),
        box(1, 3, [0, 0, 1, 4], 3, segmentation={"size": [4, 4], "counts": encode([0, 4, 12])}),
    ]
    write(tmp_path, "train", [image], shapes)
    boxes = open_images(f"{tmp_path},divide=no").targets["boxes"].values[0]
    assert boxes.mask(1, 4, 4).tolist() == boxes.mask(2, 4, 4).tolist() == [[True, False, False, False]] * 4
    assert boxes.mask(0, 4, 4)[:2, :2].all()


def test_boxes_must_fit_together():
    with pytest.raises(DataError, match="with an area"):
        Boxes([[0, 0, 0, 3]], [0], [False])
    with pytest.raises(DataError, match="one class and one flag"):
        Boxes([[0, 0, 1, 3]], [0, 1], [False])
    with pytest.raises(DataError, match="boxes alone"):
        Boxes([[0, 0, 1, 3]], [0], [False]).mask(0, 3, 3)
    assert clip_corners(np.zeros((0, 4)), 3, 3)[1].tolist() == []


def test_boxes_count_for_the_image_as_it_is_shown(tmp_path):
    """A file that is turned by EXIF is annotated turned: the box lies on the dark quarter that is seen."""
    image = Image.new("RGB", (40, 20), "white")
    ImageDraw.Draw(image).rectangle((0, 0, 9, 9), fill="black")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees: 20 wide and 40 high, the corner at the upper right
    (tmp_path / "train" / "images").mkdir(parents=True)
    image.save(tmp_path / "train" / "images" / "a.png", exif=exif)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 40}],
        "annotations": [box(1, 3, [10, 0, 10, 10])],
        "categories": CATEGORIES,
    }
    (tmp_path / "train" / "instances.json").write_text(json.dumps(content))
    images = open_images(f"{tmp_path},divide=no")
    x0, y0, x1, y1 = images.targets["boxes"].values[0].corners[0].astype(int)
    shown = np.asarray(images.image(0))
    assert shown.shape[:2] == (40, 20)
    assert (shown[y0:y1, x0:x1] == 0).all()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
RECORD = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("id", "image_id", "category_id"), st.integers(0, 2) | JSON),
        "file_name": st.sampled_from(["a.png", "../a.png", ""]) | JSON,
        "bbox": st.lists(st.floats(allow_nan=False) | st.integers(), min_size=3, max_size=4) | JSON,
        **dict.fromkeys(("width", "height", "iscrowd", "name", "keypoints", "segmentation"), JSON),
    },
)


@settings(max_examples=150)
@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("images", "annotations", "categories"), st.lists(RECORD, max_size=3) | JSON),
    )
)
def test_any_json_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    (folder / "x.json").write_text(json.dumps(content))
    tree: Tree = list_folder(folder)
    try:
        found = read_coco(tree, {"x.json": None})
    except ProbekitError:
        return
    assert set(found["names"]) <= {"a.png"}


def test_the_real_annotations(shared_data):
    path = shared_data / "coco_mini" / "coco_mini.zip"
    counts = {}
    for kind in ("instances", "instances_polygons"):
        images = open_images(f"{path},annotations={kind}")
        target = images.targets["boxes"]
        assert target.n_classes == 80
        for role in ("train", "test"):
            own = [target.values[place] for place in images.indices(role)]
            used = np.unique(np.concatenate([one.classes for one in own]))
            counts[kind, role] = (len(own), sum(map(len, own)), len(used))
    assert counts["instances", "train"] == (128, 929, 71)
    assert counts["instances", "test"] == (85, 499, 69)
    assert counts["instances_polygons", "train"][:2] == (100, 746)
    assert counts["instances_polygons", "test"][:2] == (66, 394)
    first = open_images(f"{path},annotations=instances_polygons").targets["boxes"].values[0]
    for place, (x0, y0, x1, y1) in enumerate(first.corners.tolist()):
        rows, columns = np.nonzero(first.mask(place, 360, 480))
        assert columns.min() >= x0 - 2
        assert columns.max() <= x1 + 2
        assert rows.min() >= y0 - 2
        assert rows.max() <= y1 + 2
