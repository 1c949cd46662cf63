"""Key points: where K named points are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.errors import DataError
from probekit.tasks.task import Score, Task, Values

if TYPE_CHECKING:
    from torch import Tensor, nn


class Landmarks(Task):
    """A linear layer on a 3 × 3 grid of the deepest block, on top of the mean shape.

    ``truth`` and answers are (N, K, 3) and (N, K, 2): x and y as shares of the sides of the input, and 1 for
    a point that is there. Metric: ``normalised_error``, the mean distance of the points that are there,
    divided by the square root of the area of the box around them: less is better. An image with fewer than
    two points, or whose points lie on a line along an axis, has no size, and is not scored.
    """

    name: ClassVar[str] = "landmarks"
    kind: ClassVar[str] = "keypoints"
    reads: ClassVar[str] = "grid"
    metrics: ClassVar[tuple[str, ...]] = ("normalised_error",)
    higher_is_better: ClassVar[bool] = False

    def truth(self, images: ImageSet, preprocessing: Preprocessing) -> Values:
        """Return (N, K, 3): x, y, and whether a point is there.

        Raises:
            DataError: If no image has points that span a size.
        """
        found = np.zeros((len(images), len(self.classes), 3), np.float32)
        for row, one in enumerate(images.targets[self.target].values):
            width, height = images.image(row).size
            found[row, :, :2] = preprocessing.places(one.positions, width, height)
            found[row, :, 2] = one.visible
        if not np.isfinite(_sizes(found)).any():
            raise DataError(f"points in {self.target}", "no image with two that span a box", "Add some")
        return found

    def head(self, shape: Sequence[int], truth: Values, size: int) -> nn.Module:
        """Return a head that maps (N, D) to (N, 2K) positions."""
        import torch
        from torch import nn

        linear = nn.Linear(shape[0], 2 * len(self.classes))
        nn.init.zeros_(linear.weight)
        with torch.no_grad():
            linear.bias.copy_(torch.from_numpy(mean_shape(truth).ravel()))
        return nn.Sequential(nn.BatchNorm1d(shape[0], affine=False), linear)

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the mean distance along both axes of the points that are there."""
        visible = truth[:, :, 2:]
        distance = (outputs.view(len(truth), -1, 2) - truth[:, :, :2]).abs() * visible
        return distance.sum() / (2 * visible.sum()).clamp(min=1)

    def answer(self, outputs: Tensor) -> Values:
        """Return (N, K, 2) positions."""
        return np.asarray(outputs.float().cpu().numpy()).reshape(len(outputs), -1, 2)

    def score(self, answers: Values, truth: Values) -> Mapping[str, Score]:
        """Return the normalised error of the images whose points have a size."""
        visible, sizes = truth[:, :, 2] > 0, _sizes(truth)
        distance = np.linalg.norm(answers - truth[:, :, :2], axis=2)
        scored = np.isfinite(sizes)
        means = (distance * visible)[scored].sum(axis=1) / visible[scored].sum(axis=1)
        return {"normalised_error": Score.mean_of(means / sizes[scored])}

    def baseline(self, train: Values, test: Values) -> Mapping[str, float]:
        """Return the error of the mean shape of train."""
        shape = np.broadcast_to(mean_shape(train), (len(test), len(self.classes), 2))
        return {"normalised_error": self.score(shape, test)["normalised_error"].value}


def mean_shape(truth: Values) -> NDArray[np.float32]:
    """Return (K, 2) mean positions of the points that are there; the middle for one that never is."""
    weights = truth[:, :, 2:]
    seen = weights.sum(axis=0)
    means = (truth[:, :, :2] * weights).sum(axis=0) / np.maximum(seen, 1)
    return np.asarray(np.where(seen > 0, means, 0.5), np.float32)


def _sizes(truth: Values) -> NDArray[np.float64]:
    """Return (N,) √area of the box around the points that are there; NaN where there is none."""
    visible = truth[:, :, 2:] > 0
    low = np.where(visible, truth[:, :, :2], np.inf).min(axis=1)
    high = np.where(visible, truth[:, :, :2], -np.inf).max(axis=1)
    area = np.where(visible.any(axis=(1, 2)), np.prod(np.maximum(high - low, 0), axis=1), 0)
    return np.where(area > 0, np.sqrt(area), np.nan)
