"""Cross-validation: every image is tested once, by a training on the others."""

from __future__ import annotations

import numpy as np

from probekit.data.images import ImageSet
from probekit.errors import InputError
from probekit.seeds import random_stream


def fold_images(images: ImageSet, folds: int, seed: int = 0) -> list[ImageSet]:
    """Return the same images in other splits, once for each fold: tested on that part, trained on the rest.

    All images take part, whatever split they were in: none is left over. The parts differ by at most one
    image, and are drawn from the stream ``folds``.

    Args:
        images: N of them.
        folds: Number of parts; 0 keeps the splits as they are.
        seed: Of the division.

    Returns:
        The images in the splits of each fold; as they are for 0 folds.

    Raises:
        InputError: If there are not at least two parts, with an image each.

    Examples:
        >>> from probekit import open_images
        >>> [int((one.splits == "test").sum()) for one in fold_images(open_images("digits,limit=51"), 5)]
        [21, 21, 20, 20, 20]
    """
    if folds == 0:
        return [images]
    if not 2 <= folds <= len(images):
        raise InputError(f"0, or 2 to {len(images)} folds", str(folds), "5 is common")
    parts = np.array_split(random_stream("folds", seed).permutation(len(images)), folds)
    found = []
    for part in parts:
        splits = np.full(len(images), "train", dtype="<U5")
        splits[part] = "test"
        found.append(images.with_splits(splits))
    return found
