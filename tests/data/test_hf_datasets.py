"""Folders that Hugging Face's datasets saved to disk."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from probekit.data.readers import open_images
from probekit.errors import DataError, InputError


def picture(value):
    out = io.BytesIO()
    Image.new("L", (6, 4), value).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra [hf] is not installed")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "age": datasets.Value("float32"),
        }
    )

    def part(count):
        rows = {
            "image": [picture(place) for place in range(count)],
            "label": [place % 2 for place in range(count)],
            "age": [place / 2 for place in range(count)],
        }
        return datasets.Dataset.from_dict(rows, features=features)

    datasets.DatasetDict({"train": part(6), "validation": part(2), "test": part(4)}).save_to_disk(
        tmp_path / "pets"
    )
    return tmp_path / "pets"


def test_splits_classes_and_pixels(saved):
    images = open_images(saved)
    assert [len(images.indices(role)) for role in ("train", "val", "test")] == [6, 2, 4]
    assert images.targets["label"].classes == ("cat", "dog")
    assert images.targets["age"].kind == "continuous"
    assert np.asarray(images.image(3))[0, 0].tolist() == [3, 3, 3]
    assert images.digest == open_images(saved).digest


def test_a_damaged_folder_is_refused(saved):
    for path in (saved / "train").glob("*.arrow"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="Save it again"):
        open_images(saved)


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"\[hf\]"):
        open_images(tmp_path)
