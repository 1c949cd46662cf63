"""Tables of key points: positions, groups that may not be shared by splits, points that are not there."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from probekit.data.annotations import Points
from probekit.data.readers import open_images
from probekit.errors import DataError, ImageUnreadable, SplitOverlap
from probekit.probes.sweep import choose_targets


def write(folder, split, rows, columns="file,identity,x0,y0,x1,y1"):
    (folder / split / "images").mkdir(parents=True, exist_ok=True)
    for row in rows:
        Image.new("RGB", (20, 10)).save(folder / split / "images" / row.split(",")[0])
    (folder / split / "keypoints.csv").write_text("\n".join([columns, *rows]))


def test_points_in_pixels_and_as_shares(tmp_path):
    write(tmp_path, "train", ["a.png,ann,10,5,0,0", "b.png,bob,20,10,4,2"])
    write(tmp_path, "test", ["c.png,cy,5,5,5,5"])
    images = open_images(tmp_path)
    assert images.splits.tolist() == ["test", "train", "train"]
    assert images.targets["keypoints"].values[1].positions.tolist() == [[10, 5], [0, 0]]
    shares = images.targets["points"]
    assert shares.classes == ("x0", "y0", "x1", "y1")
    assert shares.values[1].tolist() == [0.5, 0.5, 0, 0]
    assert shares.kind == "continuous"


def test_points_that_are_not_there_are_marked(tmp_path):
    write(tmp_path, "train", ["a.png,ann,10,5,,", "b.png,bob,20,10,nan,2"])
    write(tmp_path, "test", ["c.png,cy,5,5,5,5"])
    images = open_images(tmp_path)
    assert images.targets["keypoints"].values[1].visible.tolist() == [True, False]
    assert images.targets["keypoints"].values[2].visible.tolist() == [True, False]
    assert "points" not in images.targets
    assert images.problems[0].count == 2


def test_a_group_in_two_splits_is_refused(tmp_path):
    write(tmp_path, "train", ["a.png,ann,10,5,0,0"])
    write(tmp_path, "test", ["c.png,ann,5,5,5,5"])
    with pytest.raises(SplitOverlap, match="every identity in one split"):
        open_images(tmp_path)


@pytest.mark.parametrize(
    ("columns", "row", "error", "words"),
    [
        ("file,x0,y0,x2,y2", "a.png,1,1,1,1", DataError, "columns file"),
        ("file,x0,y0,x1", "a.png,1,1,1", DataError, "columns file"),
        ("file,x0,y0", "a.png,one,1", DataError, "'one'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, columns, row, error, words):
    write(tmp_path, "train", [row], columns)
    with pytest.raises(error, match=words):
        open_images(tmp_path)


def test_a_missing_image_is_named(tmp_path):
    write(tmp_path, "train", ["a.png,ann,10,5,0,0"])
    (tmp_path / "train" / "images" / "a.png").rename(tmp_path / "train" / "images" / "b.png")
    with pytest.raises(ImageUnreadable, match=r"a\.png"):
        open_images(tmp_path)


def test_points_must_fit_together():
    with pytest.raises(DataError, match="positions and"):
        Points(np.zeros((2, 2)), np.ones(3, bool))
    with pytest.raises(DataError, match="finite"):
        Points(np.full((1, 2), np.nan), np.ones(1, bool))


def test_the_real_faces(shared_data):
    images = open_images(shared_data / "face68" / "face68_128px.zip")
    assert [len(images.indices(role)) for role in ("train", "test")] == [2200, 720]
    assert images.targets["keypoints"].n_classes == 68
    assert images.targets["points"].values.shape == (2920, 136)
    assert images.targets["points"].values.mean() == pytest.approx(0.5, abs=0.1)
    assert images.targets["identity"].kind == "group"
    # Persons are kept apart by the splits: images are compared by them, no probe is fitted to them.
    assert choose_targets([images], None) == {images.name: ["points"]}
