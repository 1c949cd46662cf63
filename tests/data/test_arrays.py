from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probekit.data.arrays import open_arrays
from probekit.data.specs import parse_targets
from probekit.errors import DataError, InputError

PIXELS = np.zeros((4, 6, 6, 3), np.uint8)


def saved(folder: Path, compressed: bool = False, **arrays):
    path = folder / "x.npz"
    (np.savez_compressed if compressed else np.savez)(path, **{"images": PIXELS, **arrays})
    return open_arrays(path)


def test_arrays_become_targets_by_their_values(tmp_path: Path):
    found = saved(
        tmp_path,
        labels=np.array([[1], [0], [1], [2]]),
        target_words=np.array(["b", "a", "b", "a"]),
        target_flags=np.array([[0, 1], [1, 1], [0, 0], [1, 0]]),
        target_place=np.array([[0.5, 1], [1, 2], [3, 4], [5, 6]]),
        name=np.array(list("wxyz")),
        classes=np.array(["zero", "one", "two"]),
    )
    made = found.targets(None)
    assert [(name, one.kind, one.classes) for name, one in made.items()] == [
        ("labels", "class", ("zero", "one", "two")),
        ("target_words", "class", ("a", "b")),
        ("target_flags", "multilabel", ("target_flags_0", "target_flags_1")),
        ("target_place", "continuous", ("target_place_0", "target_place_1")),
    ]
    assert made["labels"].values.tolist() == [1, 0, 1, 2]
    chosen = found.targets(parse_targets("name,labels:continuous"))
    assert chosen["name"].n_classes == 4
    assert chosen["labels"].values[:, 0].tolist() == [1, 0, 1, 2]


def test_ids_and_splits(tmp_path: Path):
    assert saved(tmp_path).ids == ["000000", "000001", "000002", "000003"]
    assert saved(tmp_path).splits is None
    found = saved(tmp_path, ids=np.arange(4) * 10, split=np.array(["train", "train", "val", "test"]))
    assert found.ids == ["0", "10", "20", "30"]
    assert found.splits == ["train", "train", "val", "test"]


@pytest.mark.parametrize("compressed", [False, True])
def test_pixels_are_not_loaded_to_learn_their_shape(tmp_path: Path, monkeypatch, compressed):
    found = saved(tmp_path, compressed, labels=np.arange(4))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("loaded"))
    assert open_arrays(found.path).n == 4


def test_identity_is_that_of_the_pixels(tmp_path: Path):
    first = saved(tmp_path, labels=np.arange(4)).identity
    assert saved(tmp_path, labels=np.zeros(4)).identity == first
    assert saved(tmp_path, images=PIXELS + 1).identity != first


@pytest.mark.parametrize(
    ("arrays", "words", "error", "said"),
    [
        ({}, None, DataError, "'labels' or 'targets'"),
        ({"labels": np.arange(3)}, None, DataError, "4 rows in 'labels'"),
        ({"labels": np.array([1, 0, None, 2], object)}, None, DataError, "labels"),
        ({"labels": np.arange(4)}, "label", InputError, "Near: labels"),
        ({"a": np.arange(4.0), "b": np.arange(4.0)}, "a+b", InputError, "one array"),
        ({"labels": np.zeros(4, int)}, None, DataError, "at least 2 classes"),
        ({"labels": np.zeros((4, 2))}, "labels:class", DataError, "one class per image"),
        ({"target": np.array([0.0, np.nan, 1, 2])}, None, DataError, "first at row 1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arrays, words, error, said):
    with pytest.raises(error, match=said):
        saved(tmp_path, **arrays).targets(parse_targets(words))


def test_file_without_usable_images_is_refused(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez(path, pixels=PIXELS)
    with pytest.raises(DataError, match="'images'"):
        open_arrays(path)
    np.savez(path, images=PIXELS.transpose(0, 3, 1, 2))
    with pytest.raises(DataError, match="transpose"):
        open_arrays(path)
    path.write_bytes(b"no")
    with pytest.raises(DataError, match=r"numpy\.savez"):
        open_arrays(path)
