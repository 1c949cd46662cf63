"""Which output of a classifier stands for which class of a data set."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probekit.errors import InputError

_WNID = re.compile(r"n\d{8}")


def read_labels(classes: Sequence[str], outputs: int) -> dict[str, NDArray[np.int64]]:
    """Return the possible readings of class names as numbers of outputs.

    Whole numbers are the outputs themselves, WordNet ids those of ImageNet-1k in its usual order; else there
    must be as many classes as outputs, in the same order. A classifier with one output more than that has
    another class, the background, before or after them.

    Args:
        classes: The data set's classes, in order.
        outputs: How many the classifier has.

    Returns:
        What the reading rests on, in words → (C,) output of each class.

    Raises:
        InputError: If no reading fits.

    Examples:
        >>> {words: numbers.tolist() for words, numbers in read_labels(["cat", "dog"], 2).items()}
        {'classes in their order': [0, 1]}
        >>> {words: numbers.tolist() for words, numbers in read_labels(["3", "7"], 12).items()}
        {'class names are output numbers': [3, 7]}
    """
    whole = [int(name) for name in classes if re.fullmatch(r"\d{1,6}", name)]
    if len(whole) == len(classes) and len(set(whole)) == len(whole) and max(whole) < outputs:
        base, words, count = np.array(whole, np.int64), "class names are output numbers", max(whole) + 1
        # 800 of ImageNet's classes are still ImageNet's.
        count = 1000 if outputs in {1000, 1001} else count
    elif outputs in {1000, 1001} and all(map(_WNID.fullmatch, classes)):
        base, words, count = _wordnet_numbers(classes), "class names are WordNet ids of ImageNet-1k", 1000
    elif len(classes) in {outputs, outputs - 1}:
        base, words, count = np.arange(len(classes)), "classes in their order", len(classes)
    else:
        raise InputError(
            f"classes that can be matched with the {outputs} outputs of the classifier",
            f"{len(classes)} classes such as {', '.join(map(repr, list(classes)[:3]))}",
            "Name them by the number of their output, or by ImageNet's WordNet ids, in a manifest",
        )
    if count + 1 != outputs:
        return {words: base}
    return {f"{words}, output 0 is the background": base + 1, f"{words}, the last output is another": base}


def _wordnet_numbers(classes: Sequence[str]) -> NDArray[np.int64]:
    from timm.data.imagenet_info import ImageNetInfo

    known = ImageNetInfo("imagenet-1k")
    places = {known.index_to_label_name(number): number for number in range(1000)}
    unknown = [name for name in classes if name not in places]
    if unknown:
        raise InputError(
            "WordNet ids of ImageNet-1k",
            f"{len(unknown)} that are not, such as {unknown[0]}",
            "Leave these classes out",
        )
    return np.array([places[name] for name in classes], np.int64)
