"""PASCAL VOC: corners, splits, difficult objects, and XML that must not be trusted."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from probekit.data.folders import list_folder
from probekit.data.readers import open_images
from probekit.data.voc import read_voc
from probekit.errors import DataError, ImageUnreadable, ProbekitError, SplitOverlap


def thing(name, corners, difficult=0):
    keys = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    inside = "".join(f"<{key}>{value}</{key}>" for key, value in keys)
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{inside}</bndbox></object>"


def write(folder, files, lists):
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for stem, objects in files.items():
        Image.new("RGB", (30, 20)).save(folder / "JPEGImages" / f"{stem}.jpg")
        size = "<size><width>30</width><height>20</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation>{size}{''.join(objects)}</annotation>"
        )
    for role, stems in lists.items():
        (folder / "ImageSets" / "Main" / f"{role}.txt").write_text("\n".join(stems))


def test_corners_count_from_one_and_include_the_last_pixel(tmp_path):
    objects = [
        thing("cell", (1, 1, 10, 10)),
        thing("plate", (30, 20, 31, 40), 1),
        thing("cell", (5, 5, 5, 9)),
    ]
    write(
        tmp_path,
        {"a": objects, "b": [], "c": [thing("cell", (2, 3, 4, 5))]},
        {"train": ["a", "b"], "test": ["c"]},
    )
    images = open_images(tmp_path)
    assert images.splits.tolist() == ["train", "train", "test"]
    target = images.targets["boxes"]
    assert target.classes == ("cell", "plate")
    assert target.values[0].corners.tolist() == [[0, 0, 10, 10], [29, 19, 30, 20]]
    assert target.values[0].crowd.tolist() == [False, True]
    assert len(target.values[1]) == 0
    assert {one.what: one.count for one in images.problems} == {
        "boxes without an area, left out": 1,
        "boxes that reached over the edge, cut": 1,
    }
    assert images.targets["present"].values.tolist() == [[True, True], [False, False], [True, False]]


def test_an_image_in_two_lists_and_a_missing_image_are_refused(tmp_path):
    write(tmp_path, {"a": [thing("cell", (1, 1, 10, 10))]}, {"train": ["a"], "test": ["a"]})
    with pytest.raises(SplitOverlap, match="a in"):
        open_images(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "test.txt").unlink()
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(ImageUnreadable, match=r"a\.jpg"):
        open_images(tmp_path)


ROOT = "<annotation><object><name>&b;</name></object></annotation>"
BOMB = f'<!DOCTYPE a [<!ENTITY c "cccc"><!ENTITY b "&c;&c;&c;">]>{ROOT}'
OUTSIDE = f'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>{ROOT}'


@pytest.mark.parametrize("text", [BOMB, OUTSIDE, BOMB.encode("utf-16"), "<annotation>", "no xml", ""])
def test_entities_and_damage_are_refused(tmp_path, text):
    write(tmp_path, {"a": []}, {})
    (tmp_path / "Annotations" / "a.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"a\.xml"):
        open_images(tmp_path)


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=200).map(lambda text: f"<annotation><object>{text}</object></annotation>") | st.binary()
)
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    write(folder, {"a": []}, {})
    data = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    (folder / "Annotations" / "a.xml").write_bytes(data)
    with contextlib.suppress(ProbekitError):
        read_voc(list_folder(folder))


def test_the_real_annotations(shared_data):
    images = open_images(shared_data / "bccd" / "bccd_voc.zip")
    assert [len(images.indices(role)) for role in ("train", "val", "test")] == [205, 87, 36]
    target = images.targets["boxes"]
    assert target.classes == ("Platelets", "RBC", "WBC")
    assert sum(map(len, target.values)) == 4415 - 2
    assert [(one.what, one.count) for one in images.problems] == [("boxes without an area, left out", 2)]
