from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from probekit.data.images import ImageSet
from probekit.data.targets import Target
from probekit.data.transforms import Preprocessing
from probekit.errors import DataError, ImageUnreadable, SplitOverlap


def make(n: int = 10, **changes) -> ImageSet:
    pixels = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((4, 4, 3), np.uint8)
    targets = {
        "class": Target(np.arange(n) % 2, "class", ("even", "odd")),
        "size": Target(np.arange(n) / 2, "continuous", ("size",)),
    }
    return ImageSet.from_arrays(**{"name": "tiny", "images": pixels, "targets": targets, **changes})


def test_selection_keeps_pixels_targets_ids_and_splits_together():
    images = make()
    chosen = images.select([7, 2])
    assert chosen.ids.tolist() == ["000007", "000002"]
    assert [chosen.image(i).getpixel((0, 0))[0] for i in range(2)] == [7, 2]
    assert chosen.targets["size"].values[:, 0].tolist() == [3.5, 1.0]
    assert chosen.splits.tolist() == images.splits[[7, 2]].tolist()
    again = chosen.select([1])
    assert again.image(0).getpixel((0, 0))[0] == 2


def test_digest_of_a_selection_depends_on_what_is_selected_only():
    images = make()
    assert images.select(np.arange(10)).digest == images.digest
    assert images.select([1, 2, 3]).select([0, 1]).digest == images.select([1, 2]).digest
    assert images.select([2, 1]).digest != images.select([1, 2]).digest


def test_digest_tells_pixels_ids_targets_and_splits_apart():
    base = make()
    pixels = np.zeros((10, 4, 4, 3), np.uint8)
    others = [
        make(images=pixels),
        make(images=pixels.reshape(10, 2, 8, 3)),
        make(ids=[f"x{i}" for i in range(10)]),
        make(targets=base.targets["class"]),
        make(targets=Target(np.arange(10) % 2, "class", ("even", "uneven"))),
        make(splits=["train"] * 9 + ["test"]),
    ]
    digests = [one.digest for one in (base, *others)]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    assert make(name="other").digest == base.digest


def test_set_without_content_identity_still_selects():
    images = make()
    bare = ImageSet("bare", images.ids, images.targets, images.splits, images.source, images.digest)
    assert bare.select([1]).digest != bare.select([2]).digest != bare.digest
    assert bare.select([1]).image(0).getpixel((0, 0))[0] == 1


def test_splits():
    images = make(splits=["train"] * 6 + ["val"] * 2 + ["test"] * 2)
    assert images.indices("val").tolist() == [6, 7]
    assert len(images.split("test")) == 2
    assert repr(images) == "ImageSet 'tiny': 6 train, 2 val, 2 test; class (2 classes), size (1 columns)"
    assert len(make(splits=["train"] * 10).split("test")) == 0
    with pytest.raises(DataError, match="'tset'"):
        images.indices("tset")


def test_masks_select():
    images = make()
    assert len(images.select(images.targets["class"].values == 0)) == 5


@pytest.mark.parametrize("wrong", [[10], [-1], [0.5], [[1, 2]], [1, 1]])
def test_impossible_selections_are_refused(wrong):
    with pytest.raises(DataError):
        make().select(wrong)


def test_pixels_are_preprocessed():
    pixels = make().pixels(3, Preprocessing(8, 8))
    assert pixels.shape == (8, 8, 3)
    assert (pixels == 3).all()


class Partly:
    """A source with one damaged image."""

    def read(self, index: int) -> Image.Image:
        if index == 3:
            raise ImageUnreadable("an image", "nothing", "Try again")
        return Image.new("F" if index == 5 else "L", (2, 2))


def test_unreadable_images_are_left_out_and_named():
    images = make()
    partly = ImageSet("partly", images.ids, images.targets, images.splits, Partly(), images.digest, spec="p")
    with pytest.raises(ImageUnreadable, match="partly: 000005"):
        partly.image(5)
    whole = partly.without_unreadable()
    assert whole.skipped == ("000003", "000005")
    assert len(whole) == 8
    assert whole.spec == "p"
    assert whole.digest != partly.digest
    assert images.without_unreadable() is images
    with pytest.raises(DataError, match="none"):
        partly.select([3, 5]).without_unreadable()


def test_classes_may_be_given_as_text_or_numbers():
    pixels = np.zeros((4, 2, 2), np.uint8)
    assert ImageSet.from_arrays("x", pixels, ["b", "a", "b", "a"]).targets["class"].classes == ("a", "b")
    numbers = ImageSet.from_arrays("x", pixels, np.array([10, 9, 9, 10]))
    assert numbers.targets["class"].classes == ("9", "10")


def test_set_survives_pickling():
    images = pickle.loads(pickle.dumps(make()))
    assert images.digest == make().digest
    assert images.image(4).getpixel((0, 0))[0] == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"splits": ["train"] * 9}, "9 splits"),
        ({"targets": Target([0, 1], "class", ("a", "b"))}, "2 class"),
        ({"splits": ["train"] * 9 + ["dev"]}, "'dev'"),
        ({"ids": ["a"] * 10}, "repeat"),
        ({"seen_in_pretraining": "maybe"}, "'maybe'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, said):
    with pytest.raises(DataError, match=said):
        make(**{"splits": ["train"] * 10, **changes})


def test_id_in_two_splits_is_refused():
    with pytest.raises(SplitOverlap):
        make(ids=[str(i // 2) for i in range(10)], splits=["train", "test"] * 5)
