"""Images shown whole: nothing is cropped away, so that every box is where its target says."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.files import digest_json


def show_whole(images: ImageSet, preprocessing: Preprocessing) -> ImageSet:
    """Return the same images, each whole within the input and filled up with the mean colour.

    They are of the size of the input: a backbone is to take them with ``uncropped(preprocessing)``. Targets
    are left out, since places move.

    Args:
        images: Ids, order and splits stay.
        preprocessing: How the backbone takes its images; see its ``whole``.
    """
    said = ["whole", preprocessing.facts()]
    contents = images.contents
    if contents is not None:
        contents = np.array([digest_json([one, said]) for one in contents.tolist()], np.str_)
    return replace(
        images,
        targets={},
        source=_Whole(images, preprocessing),
        digest=digest_json([images.digest, said]),
        spec=None,
        contents=contents,
        memory=None,
        views=None,
    )


def uncropped(preprocessing: Preprocessing) -> Preprocessing:
    """Return the preprocessing that changes nothing of an image of the input's size.

    Examples:
        >>> print(uncropped(Preprocessing(size=32, resize=40)))
        resize 32 bicubic, crop 32, mean 0.485/0.456/0.406, std 0.229/0.224/0.225
    """
    return replace(preprocessing, resize=preprocessing.size)


@dataclass(frozen=True, eq=False)
class _Whole:
    """Reads images and shows them whole."""

    images: ImageSet
    preprocessing: Preprocessing

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.preprocessing.whole(self.images.image(index))
