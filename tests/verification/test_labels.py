"""Classes of a data set read as outputs of a classifier."""

from __future__ import annotations

import pytest
from timm.data.imagenet_info import ImageNetInfo

from probekit.errors import InputError
from probekit.verification.labels import read_labels


def readings(classes, outputs):
    return {words: numbers.tolist() for words, numbers in read_labels(classes, outputs).items()}


def test_some_of_imagenets_classes_by_number_and_by_wordnet_id():
    info = ImageNetInfo("imagenet-1k")
    ids = [info.index_to_label_name(place) for place in (1, 999, 386)]
    assert readings(ids, 1000) == {"class names are WordNet ids of ImageNet-1k": [1, 999, 386]}
    assert readings(["1", "999", "386"], 1000) == {"class names are output numbers": [1, 999, 386]}
    # With 1001 outputs one of them is another class, and the data say which.
    assert sorted(readings(ids, 1001).values()) == [[1, 999, 386], [2, 1000, 387]]


def test_names_count_in_their_order():
    assert readings(["a", "b", "c"], 3) == {"classes in their order": [0, 1, 2]}
    assert sorted(readings(["a", "b", "c"], 4).values()) == [[0, 1, 2], [1, 2, 3]]
    assert readings([f"{place:05d}" for place in range(43)], 43) == {
        "class names are output numbers": list(range(43))
    }


@pytest.mark.parametrize(
    ("classes", "outputs", "words"),
    [
        (["a", "b"], 10, "10 outputs"),
        (["a", "b", "c"], 2, "2 outputs"),
        (["3", "12"], 10, "10 outputs"),
        (["n00000000", "n01440764"], 1000, "n00000000"),
    ],
)
def test_classes_that_cannot_be_matched_are_refused(classes, outputs, words):
    with pytest.raises(InputError, match=words):
        read_labels(classes, outputs)
