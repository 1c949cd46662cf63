"""torchvision's data sets from small copies in their own formats on disk."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import pickle
import struct

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from scipy.io import savemat
from torchvision.datasets.vision import VisionDataset

from probekit.data.readers import open_images
from probekit.data.torchvision_sets import REFUSED
from probekit.errors import DataError, InputError


def idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        idx(raw / f"{part}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28)))
        idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


def test_arrays_of_both_splits(fashion):
    images = open_images(f"torchvision/FashionMNIST,root={fashion}")
    assert [len(images.indices(role)) for role in ("train", "test")] == [20, 10]
    assert images.targets["class"].classes[:2] == ("T-shirt/top", "Trouser")
    assert images.targets["class"].values[:3].tolist() == [0, 1, 2]
    theirs = torchvision.datasets.FashionMNIST(str(fashion), train=False)[4][0]
    assert np.array_equal(np.asarray(images.image(24))[..., 0], np.asarray(theirs))
    again = pickle.loads(pickle.dumps(images))
    assert np.array_equal(np.asarray(again.image(24)), np.asarray(images.image(24)))
    assert images.digest == open_images(f"torchvision/FashionMNIST,root={fashion}").digest


def test_files_are_decoded_by_our_rules(tmp_path):
    if "loader" not in inspect.signature(torchvision.datasets.DTD.__init__).parameters:
        pytest.skip("this version of torchvision decodes them itself")
    base = tmp_path / "dtd" / "dtd"
    for kind in ("banded", "dotted"):
        (base / "images" / kind).mkdir(parents=True)
        for place in range(3):
            # Transparent black is laid over white.
            Image.new("RGBA", (9, 7), (0, 0, 0, 0)).save(base / "images" / kind / f"{kind}_{place}.png")
    (base / "labels").mkdir()
    for place, split in enumerate(("train", "val", "test")):
        names = [f"{kind}/{kind}_{place}.png" for kind in ("banded", "dotted")]
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names))
    images = open_images(f"torchvision/DTD,root={tmp_path}")
    assert images.splits.tolist() == ["train", "train", "val", "val", "test", "test"]
    assert images.targets["class"].classes == ("banded", "dotted")
    assert np.asarray(images.image(0)).tolist()[0][0] == [255, 255, 255]


def test_a_split_that_is_not_there_is_left_out(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 6), dtype=np.uint8)
    path = tmp_path / "train_32x32.mat"
    savemat(path, {"X": pixels, "y": np.array([[1], [2], [10], [1], [2], [10]])})
    known = {
        **torchvision.datasets.SVHN.split_list,
        "train": ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()],
    }
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", known)
    images = open_images(f"torchvision/SVHN,root={tmp_path},divide=no")
    assert set(images.splits) == {"train"}
    assert images.targets["class"].classes == ("0", "1", "2")
    assert np.array_equal(np.asarray(images.image(1)), pixels[..., 1])


def test_pickled_batches(tmp_path, monkeypatch):
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    lists = {}
    for name in ("data_batch_1", "test_batch"):
        data = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3]}
        (base / name).write_bytes(pickle.dumps(data))
        lists[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    names = [f"kind{place}" for place in range(10)]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    kind = torchvision.datasets.CIFAR10
    meta = {**kind.meta, "md5": hashlib.md5((base / "batches.meta").read_bytes()).hexdigest()}
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", lists["data_batch_1"]]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", lists["test_batch"]]])
    monkeypatch.setattr(kind, "meta", meta)
    images = open_images(f"torchvision/CIFAR10,root={tmp_path}")
    assert [len(images.indices(role)) for role in ("train", "test")] == [4, 4]
    assert images.targets["class"].classes == tuple(names)


def test_attributes_are_labels(tmp_path):
    base = tmp_path / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [f"{place:06d}.jpg" for place in range(1, 7)]
    for name in names:
        Image.new("RGB", (5, 5)).save(base / "img_align_celeba" / name)
    (base / "list_eval_partition.txt").write_text(
        "".join(f"{n} {p}\n" for n, p in zip(names, (0, 0, 1, 1, 2, 2), strict=True))
    )
    (base / "identity_CelebA.txt").write_text("".join(f"{n} 1\n" for n in names))
    for file, head in (
        ("list_bbox_celeba.txt", "x_1 y_1 width height"),
        ("list_landmarks_align_celeba.txt", "a b"),
    ):
        rows = "".join(f"{n} {' '.join('1' * len(head.split()))}\n" for n in names)
        (base / file).write_text(f"{len(names)}\n{head}\n{rows}")
    rows = "".join(f"{n} {a} -1\n" for n, a in zip(names, (1, -1) * 3, strict=True))
    (base / "list_attr_celeba.txt").write_text(f"{len(names)}\nSmiling Hat\n{rows}")
    (base / "img_align_celeba.zip").write_bytes(gzip.compress(b""))
    kind = torchvision.datasets.CelebA
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "_check_integrity", lambda _self: True)
        images = open_images(f"torchvision/CelebA,root={tmp_path}")
    assert images.splits.tolist() == ["train", "train", "val", "val", "test", "test"]
    target = images.targets["attributes"]
    assert target.kind == "multilabel"
    assert target.classes == ("Smiling", "Hat")
    assert target.values.tolist() == [[1, 0], [0, 0]] * 3


def test_absent_files_name_the_call_that_fetches_them(tmp_path):
    with pytest.raises(DataError, match=r"torchvision\.datasets\.CIFAR10\(.*download=True"):
        open_images(f"torchvision/CIFAR10,root={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_names_that_mean_nothing_here_are_refused(tmp_path):
    with pytest.raises(InputError, match="CIFAR10"):
        open_images(f"torchvision/CIFAR11,root={tmp_path}")
    with pytest.raises(InputError, match="root="):
        open_images("torchvision/CIFAR10")
    for name, why in REFUSED.items():
        with pytest.raises(InputError, match=f"{name}: "):
            open_images(f"torchvision/{name},root={tmp_path}")
        assert why


def test_every_set_is_either_read_or_refused_by_name(tmp_path):
    """A set that torchvision adds must be looked at: its absent files must be an error of ours."""
    names = [
        name
        for name, kind in vars(torchvision.datasets).items()
        if isinstance(kind, type) and issubclass(kind, VisionDataset) and name not in REFUSED
    ]
    assert set(REFUSED) <= set(dir(torchvision.datasets)) | {"VisionDataset"}
    for name in names:
        if name == "FakeData":
            continue
        with pytest.raises(DataError, match=name):
            open_images(f"torchvision/{name},root={tmp_path}")


def test_made_up_images_need_no_files(tmp_path):
    images = open_images(f"torchvision/FakeData,root={tmp_path}")
    assert len(images) == 100
    assert images.image(0).size == (32, 32)
