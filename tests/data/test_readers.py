from __future__ import annotations

import csv
import logging
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from probekit.data.listings import WORDS
from probekit.data.readers import open_images
from probekit.data.specs import DataSpec
from probekit.errors import DataError, ImageUnreadable, InputError, SplitOverlap


def draw(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (value, 0, 0)).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Ten cats and ten dogs in class folders; the red of an image is its number."""
    for number in range(20):
        draw(tmp_path / "pets" / ("cat" if number < 10 else "dog") / f"{number:02d}.png", number)
    return tmp_path / "pets"


def zipped(folder: Path, top: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for one in sorted(folder.rglob("*"), reverse=True):
            if one.is_file():
                archive.write(one, f"{top}{one.relative_to(folder).as_posix()}")
    return path


def red(images, index: int) -> int:
    return images.image(index).getpixel((0, 0))[0]


def test_folder_of_class_folders(pets):
    images = open_images(pets)
    assert repr(images) == "ImageSet 'pets': 16 train, 4 test; class (2 classes)"
    assert images.targets["class"].classes == ("cat", "dog")
    assert images.ids[0] == "cat/00.png"
    assert [red(images, index) for index in range(20)] == list(range(20))
    assert Counter(images.split("test").targets["class"].values.tolist()) == {0: 2, 1: 2}
    assert images.spec == str(pets)


def test_zip_gives_the_same_images_as_the_folder(pets):
    on_disk = open_images(pets)
    for top in ("", "some/top/"):
        archived = open_images(zipped(pets, top))
        assert archived.ids.tolist() == on_disk.ids.tolist()
        assert archived.splits.tolist() == on_disk.splits.tolist()
        assert [red(archived, index) for index in range(20)] == list(range(20))


def test_split_folders_are_kept(tmp_path):
    for number, role in enumerate(["train", "valid", "test"]):
        for kind in ("a", "b"):
            draw(tmp_path / role / kind / "1.png", number)
    images = open_images(tmp_path)
    assert Counter(images.splits.tolist()) == {"train": 2, "val": 2, "test": 2}
    assert red(images.split("val"), 0) == 1


def test_spec_reopens_the_same_set(pets):
    images = open_images(
        pets, name="p", seed=5, limit=4, target=["class"], seen_in_pretraining="no", skip_unreadable=True
    )
    assert images.spec == (
        f"{pets},name=p,target=class,limit=4,seen_in_pretraining=no,seed=5,skip_unreadable=yes"
    )
    again = open_images(images.spec)
    assert again.digest == images.digest
    assert (again.name, again.spec, again.seen_in_pretraining) == ("p", images.spec, "no")


def test_words_go_before_keywords(pets):
    images = open_images(f"{pets},limit=6", limit=2)
    assert len(images.split("train")) == 6


def test_seed_moves_the_split_and_the_digest(pets):
    first, again, other = (open_images(pets, seed=seed) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert first.splits.tolist() != other.splits.tolist()


def test_split_and_role(pets):
    whole = open_images(pets)
    assert open_images(pets, split="test").digest == whole.split("test").digest
    assert set(open_images(f"{pets},role=test").splits.tolist()) == {"test"}
    with pytest.raises(DataError, match="splits train, test"):
        open_images(pets, split="val")
    with pytest.raises(InputError, match="'tset'"):
        open_images(pets, role="tset")


def test_role_does_not_override_the_data(tmp_path):
    for role in ("train", "test"):
        for kind in ("a", "b"):
            draw(tmp_path / role / kind / "1.png", 0)
    with pytest.raises(InputError, match="splits of their own"):
        open_images(tmp_path, role="test")


def test_classes_keeps_the_images_of_some_classes():
    whole = open_images("shapeworld/source,train=200,test=40")
    two = open_images("shapeworld/source,train=200,test=40,classes=star-dots+disc-stripes")
    labels, names = two.targets["class"].values, two.targets["class"].classes
    assert names == ("star-dots", "disc-stripes")
    chosen = [row for row, place in enumerate(whole.targets["class"].values)
              if whole.targets["class"].classes[place] in names]  # fmt: skip
    assert two.ids.tolist() == whole.ids[chosen].tolist()
    assert [names[one] for one in labels] == [
        whole.targets["class"].classes[place] for place in whole.targets["class"].values[chosen]
    ]
    np.testing.assert_array_equal(two.targets["x"].values, whole.targets["x"].values[chosen])
    for row in (0, len(two) - 1):
        np.testing.assert_array_equal(np.asarray(two.image(row)), np.asarray(whole.image(chosen[row])))
    few = open_images("shapeworld/source,train=200,test=40,classes=5")
    assert few.targets["class"].classes == whole.targets["class"].classes[:5]
    assert len({two.digest, few.digest, whole.digest}) == 3
    assert open_images("digits", classes=4).targets["class"].n_classes == 4


@pytest.mark.parametrize("words", ["1", "3+x", "3+3", "3+", ""])
def test_classes_that_cannot_be_kept_are_refused(words: str):
    with pytest.raises(InputError, match="at least two classes"):
        open_images(f"digits,classes={words}")


def test_limit_is_stratified_per_split_and_nested(pets):
    small, larger = open_images(pets, limit=2), open_images(pets, limit=4)
    assert Counter(small.splits.tolist()) == {"train": 2, "test": 2}
    assert small.split("train").targets["class"].values.tolist() == [0, 1]
    assert set(small.ids) < set(larger.ids)
    with pytest.raises(InputError, match="at least 2"):
        open_images(pets, limit=1)


def test_open_set_passes_unchanged(pets):
    images = open_images(pets)
    assert open_images(images) is images
    with pytest.raises(InputError, match="limit"):
        open_images(images, limit=3)


def test_damaged_images_are_skipped_only_on_request(pets):
    (pets / "cat" / "03.png").write_bytes(b"nothing")
    images = open_images(pets)
    with pytest.raises(ImageUnreadable, match=r"cat.03\.png"):
        images.image(3)
    whole = open_images(pets, skip_unreadable=True)
    assert whole.skipped == ("cat/03.png",)
    assert len(whole) == 19


def test_class_missing_from_train_is_named(tmp_path):
    for folder in ("train/a", "train/b", "test/a", "test/c"):
        draw(tmp_path / folder / "1.png", 0)
    with pytest.raises(DataError, match=r"1 classes: 'c'"):
        open_images(tmp_path)


def test_single_class_is_refused(tmp_path):
    draw(tmp_path / "only" / "1.png", 0)
    with pytest.raises(DataError, match="two class folders"):
        open_images(tmp_path)


def test_copies_across_splits_are_counted_for_zips(tmp_path, caplog):
    for number, folder in enumerate(("train/a", "train/b", "test/a", "test/b")):
        draw(tmp_path / "x" / folder / "1.png", number % 3)
    with caplog.at_level(logging.WARNING):
        open_images(zipped(tmp_path / "x"))
    assert "1 images outside the training split have a copy in it, such as 'test/b/1.png'" in caplog.text


def write_table(path: Path, **columns) -> Path:
    with path.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def test_table(pets):
    files = [f"{'cat' if number < 10 else 'dog'}/{number:02d}.png" for number in range(20)]
    columns = {
        "file": files,
        "id": [f"pet{number}" for number in range(20)],
        "split": ["train"] * 12 + ["valid"] * 4 + ["test"] * 4,
        "tail": [number % 2 for number in range(20)],
        "weight": [number / 4 for number in range(20)],
    }
    images = open_images(write_table(pets / "pets.csv", **columns))
    assert repr(images) == ("ImageSet 'pets': 12 train, 4 val, 4 test; tail (2 classes), weight (1 columns)")
    assert images.ids[19] == "pet19"
    assert red(images, 19) == 19
    elsewhere = write_table(pets.parent / "list.csv", **columns)
    assert red(open_images(f"{elsewhere},root={pets},target=weight"), 7) == 7
    assert red(open_images(f"{elsewhere},root={zipped(pets)}"), 7) == 7
    # The table lies among the class folders, which can still be read as such.
    assert len(open_images(zipped(pets))) == 20


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"file": ["1.png", "1.png"]}, SplitOverlap, "1.png"),
        ({"file": ["1.png", "./1.png"], "split": ["test", "test"]}, DataError, "repeat"),
        ({"file": ["1.png", "3.png"]}, ImageUnreadable, "1 missing: '3.png'"),
        ({"id": ["x", "x"]}, SplitOverlap, "'x'"),
        ({"split": ["train", "dev"]}, DataError, "'dev'"),
        ({"split": ["train", ""]}, DataError, "1 without"),
    ],
)
def test_contradictory_tables_are_refused(tmp_path, changes, error, said):
    draw(tmp_path / "1.png", 1)
    draw(tmp_path / "2.png", 2)
    columns = {"file": ["1.png", "2.png"], "split": ["train", "test"], "y": [0.5, 1.5], **changes}
    with pytest.raises(error, match=said):
        open_images(write_table(tmp_path / "t.csv", **columns))


def test_npz(tmp_path):
    pixels = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((3, 5, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.arange(20) % 2)
    images = open_images(tmp_path / "x.npz")
    assert repr(images) == "ImageSet 'x': 16 train, 4 test; labels (2 classes)"
    assert red(images, 13) == 13
    assert images.image(0).size == (5, 3)


def test_digits():
    images = open_images("digits")
    assert Counter(images.splits.tolist()) == {"train": 1438, "test": 359}
    assert images.targets["class"].classes == tuple("0123456789")
    assert images.image(0).size == (8, 8)
    assert len(set(images.contents.tolist())) == len(images)


def test_shapeworld():
    shapeworld = pytest.importorskip("probekit.data.shapeworld")
    images = open_images("shapeworld/unseen,train=50,val=20,test=30,seed=4")
    assert Counter(images.splits.tolist()) == {"train": 50, "val": 20, "test": 30}
    assert list(images.targets) == ["class", *shapeworld.FACTORS]
    assert images.targets["rotation"].classes == ("rotation_sine", "rotation_cosine")
    wanted = shapeworld.render("unseen", range(50), seed=4)
    assert all(np.array_equal(images.image(index), wanted[index]) for index in (49, 0, 33))
    facts = shapeworld.sample("unseen", 50, seed=4)
    assert images.split("train").targets["class"].values.tolist() == facts.labels.tolist()
    assert np.array_equal(images.split("train").targets["hue"].values, facts.factors["hue"])


def test_shapeworld_says_where_objects_are_if_asked():
    shapeworld = pytest.importorskip("probekit.data.shapeworld")
    words = "shapeworld/scenes,train=30,test=10,seed=2"
    images, plain = open_images(f"{words},annotations=masks"), open_images(words)
    assert "masks" not in plain.targets
    assert images.digest != plain.digest
    masks, labels = images.targets["masks"], images.targets["class"]
    assert masks.classes == ("background", *labels.classes)
    found = shapeworld.annotate("scenes", range(30), seed=2)
    for index in (0, 7, 29):
        own = masks.values[index].read()
        for place, label in enumerate(found.labels[index]):
            if label >= 0 and (found.labels[index] == label).sum() == 1:
                np.testing.assert_array_equal(own == label + 1, found.masks[index] == place + 1)
        np.testing.assert_array_equal(own == 0, found.masks[index] == 0)
    chosen = images.select([35, 3]).targets["masks"].values
    np.testing.assert_array_equal(chosen[1].read(), masks.values[3].read())
    assert images.digest == open_images(f"{words},annotations=masks").digest
    with pytest.raises(InputError, match="annotations among masks, boxes, keypoints"):
        open_images(f"{words},annotations=polygons")


def test_shapeworld_says_boxes_and_the_parts_of_the_largest_object():
    from probekit.data.shapeworld import annotate

    words = "shapeworld/scenes,train=30,test=10,seed=2"
    found = annotate("scenes", range(30), seed=2)
    boxes = open_images(f"{words},annotations=boxes").targets["boxes"]
    points = open_images(f"{words},annotations=keypoints").targets["keypoints"]
    assert len(points.classes) == 7
    for index in range(30):
        seen = (found.labels[index] >= 0) & (found.boxes[index, :, 2] > found.boxes[index, :, 0])
        np.testing.assert_array_equal(boxes.values[index].classes, found.labels[index][seen])
        np.testing.assert_allclose(boxes.values[index].corners, found.boxes[index][seen])
        visible = found.visible[index, 0]
        np.testing.assert_array_equal(points.values[index].visible, visible)
        np.testing.assert_allclose(
            points.values[index].positions[visible], found.keypoints[index, 0][visible], rtol=1e-6
        )


def test_shapeworld_test_images_do_not_move_with_the_others():
    few = open_images("shapeworld/source,train=20,test=40")
    many = open_images("shapeworld/source,train=80,val=20,test=60")
    assert few.split("test").digest == many.split("test").select(range(40)).digest
    assert few.split("test").image(3) == many.split("test").image(3)
    assert few.digest != open_images("shapeworld/source,train=20,test=40,seed=1").digest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("digit", "near: digits"),
        ("shapeworld/sorce", "source"),
        ("shapeworld/source,train=0,test=0", "some images"),
        ("shapeworld/source,train=many", "'many'"),
        ("digits,limt=3", "Near: limit"),
        ("digits,train=3", "'train'"),
        ("digits,target=clas", "Near: class"),
        ("digits,target=class:continuous", "class:class"),
        ("digits,split=dev", "'dev'"),
        ("digits,seen_in_pretraining=maybe", "'maybe'"),
        ("digits,skip_unreadable=perhaps", "'perhaps'"),
        ("nowhere/at/all", "not there"),
    ],
)
def test_mistyped_words_are_answered(words, said):
    with pytest.raises(InputError, match=said):
        open_images(words)


def test_mistyped_path_is_answered_with_its_neighbours(pets):
    with pytest.raises(InputError, match="near: pets"):
        open_images(pets.parent / "pest")
    (pets.parent / "x.rar").write_bytes(b"")
    with pytest.raises(InputError, match=r"the file .*x\.rar"):
        open_images(pets.parent / "x.rar")


@settings(deadline=None, max_examples=50)
@given(words=st.text(max_size=20))
def test_any_words_open_or_are_answered(words):
    with pytest.raises((InputError, DataError)):
        open_images(f"no such folder/{words}")


@pytest.mark.slow
def test_opening_data_loads_no_torch():
    code = (
        "import sys, importlib, pkgutil, probekit.data\n"
        "for module in pkgutil.iter_modules(probekit.data.__path__):\n"
        "    importlib.import_module('probekit.data.' + module.name)\n"
        "from probekit.data.readers import open_images\n"
        "open_images('shapeworld/source,train=20,test=20').image(0)\n"
        "slow = {'torch', 'torchvision', 'timm', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not slow, slow\n"
        "open_images('digits')\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_words_are_all_known():
    for word in WORDS:
        options = ",train=20,test=20" if "/" in word else ""
        assert DataSpec.parse(word).source == word
        assert len(open_images(word + options)) > 0


REAL = {
    "cifar10/cifar10_jpeg.zip": ((30_000, 8_000), 10, (32, 32)),
    "gtsrb/gtsrb43.zip": ((2_561, 1_075), 43, (48, 48)),
    "dtd10/dtd10_900.zip": ((600, 300), 10, None),
    "imagenet_samples/imagenet_800.zip,role=test": ((0, 800), 800, None),
    "imagenet_samples/imagenet_800.zip/labels.csv,role=test,target=class_index": ((0, 800), 800, None),
    "cifar10/cifar10_exact_train_3000.npz": ((2_400, 600), 10, (32, 32)),
}


@pytest.mark.weights
@pytest.mark.parametrize("words", REAL)
def test_real_data_are_counted_right(shared_data, words):
    (train, test), classes, size = REAL[words]
    images = open_images(f"{shared_data}/{words}")
    assert (len(images.split("train")), len(images.split("test"))) == (train, test)
    target = next(iter(images.targets.values()))
    assert target.n_classes == classes
    for index in (0, len(images) // 2, len(images) - 1):
        image = images.image(index)
        assert image.mode == "RGB"
        assert size in (None, image.size)


@pytest.mark.weights
def test_real_classes_are_balanced_as_told(shared_data):
    images = open_images(f"{shared_data}/cifar10/cifar10_jpeg.zip")
    assert set(Counter(images.split("test").targets["class"].values.tolist()).values()) == {800}
    limited = open_images(f"{shared_data}/cifar10/cifar10_jpeg.zip,limit=200")
    assert set(Counter(limited.split("train").targets["class"].values.tolist()).values()) == {20}


@pytest.mark.weights
def test_lossy_and_exact_pixels_agree(shared_data):
    exact = open_images(f"{shared_data}/cifar10/cifar10_exact_train_3000.npz")
    lossy = open_images(f"{shared_data}/cifar10/cifar10_jpeg.zip")
    names = np.load(shared_data / "cifar10" / "cifar10_exact_train_3000.npz")["jpeg_name"]
    place = {name: index for index, name in enumerate(lossy.ids.tolist())}
    for index in range(0, 3000, 250):
        name = next(one for one in (str(names[index]), f"train/{names[index]}") if one in place)
        kind = lossy.targets["class"].classes[lossy.targets["class"].values[place[name]]]
        assert kind == name.split("/")[1]
        gap = np.asarray(exact.image(index), int) - np.asarray(lossy.image(place[name]), int)
        assert np.abs(gap).mean() < 25


@pytest.mark.weights
def test_landmarks_become_one_continuous_target(shared_data):
    archive = shared_data / "face68" / "face68_128px.zip"
    target = "+".join(f"{axis}{point}" for point in range(68) for axis in "xy")
    words = f"{archive}/train/keypoints.csv,root={archive}/train/images,target={target}:continuous"
    images = open_images(words, name="faces")
    assert len(images) == 2200
    assert images.targets[target].values.shape == (2200, 136)


@pytest.mark.weights
@pytest.mark.slow
def test_every_real_sign_can_be_read(shared_data):
    images = open_images(f"{shared_data}/gtsrb/gtsrb43.zip", skip_unreadable=True)
    assert images.skipped == ()
