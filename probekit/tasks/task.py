"""What every task says: what is read, what stands on top, what is lost, what is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

Values = NDArray[Any]


@dataclass(frozen=True)
class Score:
    """One metric on a test split.

    Attributes:
        value: The metric.
        units: (N,) values an image whose mean it is; empty for a metric that is no mean over images.
        interval: Its ends, where they are known without resampling the units.
    """

    value: float
    units: NDArray[np.float64]
    interval: tuple[float, float] | None = None

    @classmethod
    def mean_of(cls, units: NDArray[Any]) -> Score:
        """Return the mean over images."""
        values = np.asarray(units, np.float64)
        return cls(float(values.mean()), values)


@dataclass(frozen=True)
class Task(ABC):
    """A target, and the small standard head, loss and metrics that go with it.

    Attributes:
        target: Name of the target of the data set.
        classes: Its classes, columns or points.
    """

    name: ClassVar[str]
    # Kind of target it needs.
    kind: ClassVar[str]
    # The first one chooses learning rates and is what gains are made of.
    metrics: ClassVar[tuple[str, ...]]
    # Whether more of the first metric is better.
    higher_is_better: ClassVar[bool] = True
    # How its head is given the deepest block: ``vector`` (N, D), the mean over positions; ``grid`` (N, 9·D),
    # means over at most 3 × 3 parts; ``map`` (N, D, H, W); ``stages``, the map before the last stage, with
    # that stage as a function that the head applies itself.
    reads: ClassVar[str]
    # Whether the answers to the test images are kept with a training, to be looked into later.
    keeps: ClassVar[bool] = False
    # Whether its head learns from the features of a frozen backbone; else nothing is trained there.
    head_learns: ClassVar[bool] = True
    # What the intervals of its metrics are.
    interval_kind: ClassVar[str] = "bootstrap,test units"

    target: str
    classes: tuple[str, ...]

    @abstractmethod
    def truth(self, images: ImageSet, preprocessing: Preprocessing) -> Values:
        """Return what is to be said of each image as the backbone is given it: (N, …)."""

    @abstractmethod
    def head(self, shape: Sequence[int], truth: Values, size: int) -> nn.Module:
        """Return a new head.

        Args:
            shape: Of what is read, per image; for ``stages`` (D, H, W, D′): the map before the last stage,
                and the channels behind it.
            truth: Of the training images.
            size: Side of the input in pixels.
        """

    @abstractmethod
    def loss(self, outputs: Any, truth: Tensor) -> Tensor:  # noqa: ANN401 - what the head returns
        """Return the mean loss of a batch."""

    @abstractmethod
    def answer(self, outputs: Any) -> Values:  # noqa: ANN401 - what the head returns
        """Return what is scored, of a batch of outputs."""

    @abstractmethod
    def score(self, answers: Values, truth: Values) -> Mapping[str, Score]:
        """Return the metrics by name."""

    @abstractmethod
    def baseline(self, train: Values, test: Values) -> Mapping[str, float]:
        """Return the metrics of an answer that looks at no image."""

    def rows(self, images: ImageSet, role: str) -> NDArray[np.int64]:
        """Return the places of the images of a split that are used."""
        return images.indices(role)

    def check(self, train: Values, val: Values, test: Values, *, tuned: bool) -> None:  # noqa: B027
        """Refuse truth that cannot be learnt or scored, before anything is trained."""

    def pixels(self, images: ImageSet, index: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        """Return one image as the backbone is given it, before normalisation: (S, S, 3)."""
        return images.pixels(index, preprocessing)

    def facts(self) -> dict[str, Any]:
        """Return what stands for the task in keys."""
        return {"task": self.name, "target": self.target, "classes": list(self.classes)}
