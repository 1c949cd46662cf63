"""WebDataset shards: read where they lie, and nothing that leads out of them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from probekit.data.readers import open_images
from probekit.data.webdataset import expand_braces
from probekit.errors import DataError


def picture(value, form="PNG"):
    out = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 0, 0)).save(out, form)
    return out.getvalue()


def write(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    for number in range(3):
        members = {}
        for place in range(4):
            key = f"s{number}/{place:03d}"
            value = 10 * number + place
            members[f"{key}.png"] = picture(value)
            members[f"{key}.cls"] = str(place % 2).encode()
            members[f"{key}.json"] = json.dumps(
                {"size": value / 2, "site": "xy"[place % 2], "list": [1]}
            ).encode()
        write(tmp_path / f"set-{number:03d}.tar", members)
    return tmp_path


def test_images_are_read_by_offset_with_their_labels(shards):
    images = open_images(f"{shards}/set-{{000..002}}.tar,divide=no")
    assert len(images) == 12
    assert images.ids[5] == "set-001/s1/001"
    assert [np.asarray(images.image(place))[0, 0, 0] for place in (0, 5, 11)] == [0, 11, 23]
    assert images.targets["class"].values.tolist() == [0, 1] * 6
    assert images.targets["size"].values[:2].ravel().tolist() == [0, 0.5]
    assert images.targets["site"].classes == ("x", "y")
    assert np.asarray(pickle.loads(pickle.dumps(images)).image(3))[0, 0, 0] == 3
    assert images.name == "set"


@pytest.mark.parametrize("words", ["", "/set-*.tar", "/set-00{0,1,2}.tar"])
def test_a_folder_and_patterns_name_the_same_shards(shards, words):
    whole = open_images(f"{shards}/set-{{000..002}}.tar,divide=no,target=class")
    assert open_images(f"{shards}{words},divide=no,target=class").digest == whole.digest


def test_splits_come_from_the_names_of_all_shards(shards):
    for number, role in enumerate(("train", "val", "test")):
        (shards / f"set-{number:03d}.tar").rename(shards / f"set-{role}-0.tar")
    images = open_images(shards)
    assert images.splits.tolist() == ["test"] * 4 + ["train"] * 4 + ["val"] * 4


def test_links_and_paths_that_lead_out_are_passed_over(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(99))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for place in range(2):
            for name, data in {f"{place}.png": picture(place), f"{place}.cls": b"%d" % place}.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        for name, kind in (
            ("2.png", tarfile.SYMTYPE),
            ("3.png", tarfile.LNKTYPE),
            ("4.png", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
        for name in ("/5.png", "../6.png"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    images = open_images(f"{tmp_path / 'a.tar'},divide=no,target=class:class")
    assert images.ids.tolist() == ["a/0", "a/1"]
    assert [(one.what, one.count) for one in images.problems] == [
        ("links, devices and paths that lead out, passed over", 5)
    ]


def test_samples_without_one_image_are_counted(tmp_path):
    members = {
        f"{place}.{end}": data
        for place in "ab"
        for end, data in (("png", picture(1)), ("cls", place.encode()))
    }
    write(tmp_path / "a.tar", {**members, "c.cls": b"x", "d.png": picture(1), "d.jpg": picture(1, "JPEG")})
    images = open_images(f"{tmp_path / 'a.tar'},divide=no,target=class:class")
    assert images.ids.tolist() == ["a/a", "a/b"]
    assert images.problems[0].count == 2


def test_damaged_and_packed_shards_are_refused(shards):
    whole = (shards / "set-000.tar").read_bytes()
    (shards / "set-001.tar").write_bytes(whole[:700])
    with pytest.raises(DataError, match=r"set-001\.tar"):
        open_images(shards)
    (shards / "set-001.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match="gunzip"):
        open_images(shards)
    with pytest.raises(DataError, match="none"):
        open_images(f"{shards}/other-{{0..3}}.tar")
    (shards / "set-001.tar").unlink()
    write(shards / "set-001.tar", {"a.json": b"{"})
    with pytest.raises(DataError, match="exactly one image|text in|with an image"):
        open_images(f"{shards}/set-001.tar")


def test_braces_are_written_out():
    assert list(expand_braces("a{1..3}-{x,y}")) == ["a1-x", "a1-y", "a2-x", "a2-y", "a3-x", "a3-y"]
    assert list(expand_braces("plain.tar")) == ["plain.tar"]
