"""One class an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.tasks.task import Score, Task, Values

if TYPE_CHECKING:
    from torch import Tensor, nn


class Classification(Task):
    """A linear layer on the pooled deepest block, behind a batch norm without gain and shift.

    Metrics: ``accuracy``; ``balanced_accuracy``, the mean over the classes that occur in test.
    """

    name: ClassVar[str] = "classification"
    kind: ClassVar[str] = "class"
    reads: ClassVar[str] = "vector"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "balanced_accuracy")

    def truth(self, images: ImageSet, preprocessing: Preprocessing) -> Values:
        """Return (N,) places in the classes."""
        return np.asarray(images.targets[self.target].values, np.int64)

    def head(self, shape: Sequence[int], truth: Values, size: int) -> nn.Module:
        """Return a head that maps (N, D) to (N, C) logits."""
        from torch import nn

        return nn.Sequential(nn.BatchNorm1d(shape[0], affine=False), nn.Linear(shape[0], len(self.classes)))

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the cross-entropy."""
        from torch.nn import functional as F

        return F.cross_entropy(outputs, truth)

    def answer(self, outputs: Tensor) -> Values:
        """Return (N,) classes named."""
        return np.asarray(outputs.argmax(dim=1).cpu().numpy())

    def score(self, answers: Values, truth: Values) -> Mapping[str, Score]:
        """Return accuracy and balanced accuracy."""
        from sklearn.metrics import recall_score

        occurring = np.unique(truth)
        balanced = float(recall_score(truth, answers, labels=occurring, average="macro", zero_division=0))
        return {
            "accuracy": Score.mean_of(answers == truth),
            "balanced_accuracy": Score(balanced, np.empty(0)),
        }

    def baseline(self, train: Values, test: Values) -> Mapping[str, float]:
        """Return the scores of always naming the most frequent class of train."""
        most = np.bincount(train).argmax()
        named = self.score(np.full_like(test, most), test)
        return {metric: one.value for metric, one in named.items()}
