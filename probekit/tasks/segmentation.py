"""One class a pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probekit.data.annotations import IGNORE
from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.errors import DataError, InputError
from probekit.tasks.task import Score, Task, Values

if TYPE_CHECKING:
    from torch import Tensor, nn

DECODERS = ("linear", "one-layer", "deeplabv3")
# Channels of the one layer of that decoder.
WIDTH = 64


@dataclass(frozen=True)
class Segmentation(Task):
    """A convolution over the deepest map, its logits enlarged to the input.

    Pixels are those of the input after resizing and cropping. Metric: ``mean_iou``, intersection over union
    of every class that occurs in test, over all its pixels together, then their mean; pixels without a class
    do not count. Source: Everingham et al., The PASCAL Visual Object Classes Challenge (IJCV 2010), section
    4.3.

    Attributes:
        decoder: ``linear``, a 1 × 1 convolution; ``one-layer``, 3 × 3 with batch norm and ReLU before it; or
            ``deeplabv3``, torchvision's head with dilated convolutions side by side, see ``atrous.Atrous``.
    """

    name: ClassVar[str] = "segmentation"
    kind: ClassVar[str] = "masks"
    reads: ClassVar[str] = "map"
    metrics: ClassVar[tuple[str, ...]] = ("mean_iou",)

    decoder: str = "linear"

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise InputError(f"a decoder among {', '.join(DECODERS)}", repr(self.decoder), "Choose one")

    def truth(self, images: ImageSet, preprocessing: Preprocessing) -> Values:
        """Return (N, S, S) places in the classes, 255 for none.

        Raises:
            DataError: If no pixel has a class, or a mask is not of the size of its image.
        """
        found = np.stack(
            [preprocessing.places_of_classes(one.read()) for one in images.targets[self.target].values]
        )
        if (found == IGNORE).all():
            raise DataError(f"pixels with a class in {self.target}", "none", "Look at the masks' values")
        return found

    def head(self, shape: Sequence[int], truth: Values, size: int) -> nn.Module:
        """Return a head that maps (N, D, H, W) to (N, C, S, S) logits.

        Raises:
            InputError: If the map is too small for the decoder.
            DataError: If there is one training image, and the decoder takes statistics over images.
        """
        from torch import nn

        if self.decoder == "deeplabv3":
            if len(truth) < 2:
                raise DataError(
                    "at least two training images, for the batch norm of DeepLabv3's pooled branch",
                    f"{len(truth)}", "Use more, or segmentation/one-layer",
                )  # fmt: skip
            from probekit.tasks.atrous import Atrous

            return Atrous(shape, len(self.classes), size)
        width = shape[0]
        layers: list[nn.Module] = [nn.BatchNorm2d(width, affine=False)]
        if self.decoder == "one-layer":
            layers += [nn.Conv2d(width, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
            width = WIDTH
        layers.append(nn.Conv2d(width, len(self.classes), 1))
        layers.append(nn.Upsample((size, size), mode="bilinear", align_corners=False))
        return nn.Sequential(*layers)

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the cross-entropy of the pixels that have a class; 0 if none has."""
        from torch.nn import functional as F

        known = (truth != IGNORE).sum().clamp(min=1)
        return F.cross_entropy(outputs, truth.long(), ignore_index=IGNORE, reduction="sum") / known

    def answer(self, outputs: Tensor) -> Values:
        """Return (N, S, S) classes named."""
        import torch

        return np.asarray(outputs.argmax(dim=1).to(torch.uint8).cpu().numpy())

    def score(self, answers: Values, truth: Values) -> Mapping[str, Score]:
        """Return the mean over classes of intersection over union."""
        counts = self._counts(answers, truth)
        hits = np.diag(counts)
        # A class that does not occur has no union with itself to be missed.
        occurs = counts.sum(axis=1) > 0
        union = counts.sum(axis=0) + counts.sum(axis=1) - hits
        return {"mean_iou": Score(float((hits[occurs] / union[occurs]).mean()), np.empty(0))}

    def baseline(self, train: Values, test: Values) -> Mapping[str, float]:
        """Return the score of naming the most frequent class of train everywhere."""
        most = np.bincount(train[train != IGNORE]).argmax()
        return {"mean_iou": self.score(np.full_like(test, most), test)["mean_iou"].value}

    def facts(self) -> dict[str, Any]:
        """Return what stands for the task in keys."""
        return {**super().facts(), "decoder": self.decoder}

    def _counts(self, answers: Values, truth: Values) -> NDArray[np.int64]:
        """Return (C, C) pixels by their class and by the class named."""
        count = len(self.classes)
        known = truth != IGNORE
        places = truth[known].astype(np.int64) * count + answers[known]
        return np.bincount(places, minlength=count**2).reshape(count, count)
