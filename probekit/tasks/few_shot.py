"""Few-shot recognition of classes that were not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.errors import DataError, InputError
from probekit.functional.episodes import draw_episodes, mean_over_episodes, score_episodes
from probekit.seeds import random_stream
from probekit.tasks.task import Score, Task, Values

if TYPE_CHECKING:
    from torch import Tensor, nn

ONE, FIVE = 1, 5


@dataclass(frozen=True)
class FewShot(Task):
    """Episodes on the pooled deepest block: the nearest mean of a few labelled images of each class.

    Classes of the data are new to the backbone; nothing is learnt from a frozen one. A backbone that is tuned
    is trained by cross-entropy on other classes than those of the episodes: with ``novel``, half of the
    classes, drawn once, are trained on, and the episodes are of the others. Every model and state is asked
    the same episodes, drawn from the test images; 1 shot is the first of the 5. Learning rates are chosen by
    episodes of the images held out, with as many queries as there are images for.

    Metrics: ``five_shot_accuracy`` and ``one_shot_accuracy``; their interval is a jackknife over the classes
    of the episodes, see ``functional.mean_over_episodes``. Source: Snell, Swersky and Zemel, Prototypical
    Networks for Few-shot Learning (NeurIPS 2017); number of episodes and queries as in Ericsson, Gouk and
    Hospedales, How Well Do Self-Supervised Models Transfer? (CVPR 2021), section 4.

    Attributes:
        ways: Classes an episode.
        queries: Images a class and episode that are named.
        episodes: How many there are.
        novel: Whether half of the classes are kept for training.
    """

    name: ClassVar[str] = "episodes"
    kind: ClassVar[str] = "class"
    reads: ClassVar[str] = "vector"
    metrics: ClassVar[tuple[str, ...]] = ("five_shot_accuracy", "one_shot_accuracy")
    head_learns: ClassVar[bool] = False
    interval_kind: ClassVar[str] = "jackknife,classes"

    ways: int = 5
    queries: int = 15
    episodes: int = 600
    novel: bool = False

    def rows(self, images: ImageSet, role: str) -> NDArray[np.int64]:
        """Return the places of a split; with ``novel``, test is of novel classes and the rest of the others.

        Raises:
            DataError: If there are too few classes to divide.
        """
        places = images.indices(role)
        if not self.novel:
            return places
        count = len(self.classes)
        if count < 2 * self.ways:
            raise DataError(
                f"at least {2 * self.ways} classes, half of them for episodes of {self.ways}", f"{count}",
                "Use other data, or --task episodes --frozen, which divides no classes",
            )  # fmt: skip
        trained_on = random_stream("base and novel classes", count).permutation(count)[: count // 2]
        labels = np.asarray(images.targets[self.target].values, np.int64)[places]
        return places[np.isin(labels, trained_on, invert=role == "test")]

    def truth(self, images: ImageSet, preprocessing: Preprocessing) -> Values:
        """Return (N,) places in the classes."""
        return np.asarray(images.targets[self.target].values, np.int64)

    def check(self, train: Values, val: Values, test: Values, *, tuned: bool) -> None:
        """Refuse data that hold no episodes, and training on the classes that are scored.

        Raises:
            DataError: If a split has too few classes, or too few images of one.
            InputError: If a class that is scored would be trained on.
        """
        self._check_images("test", test, FIVE + self.queries)
        if not tuned:
            return
        both = np.intersect1d(np.concatenate([train, val]), test)
        if len(both):
            raise InputError(
                "episodes of classes that are not trained on", f"{len(both)} classes in both",
                "Add --frozen, or choose --task episodes/novel, which keeps half of the classes for training",
            )  # fmt: skip
        self._check_images("val", val, FIVE + 1)

    def head(self, shape: Sequence[int], truth: Values, size: int) -> nn.Module:
        """Return a head that maps (N, D) to itself and (N, C) logits."""
        from probekit.tasks.described import Described

        return Described(shape[0], len(self.classes))

    def loss(self, outputs: Any, truth: Tensor) -> Tensor:  # noqa: ANN401 - of that head
        """Return the cross-entropy of the classes that are trained on."""
        from torch.nn import functional as F

        return F.cross_entropy(outputs[1], truth)

    def answer(self, outputs: Any) -> Values:  # noqa: ANN401 - of that head
        """Return (N, D) features."""
        return np.asarray(outputs[0].float().cpu().numpy())

    def score(self, answers: Values, truth: Values) -> Mapping[str, Score]:
        """Return the accuracies of 5 and of 1 labelled images a class, over the same episodes."""
        queries = min(self.queries, int(np.unique(truth, return_counts=True)[1].min()) - FIVE)
        drawn = draw_episodes(
            truth,
            ways=self.ways,
            shots=FIVE,
            queries=queries,
            count=self.episodes,
            stream=random_stream("episodes", self.target),
        )
        found = {}
        for name, shots in zip(self.metrics, (FIVE, ONE), strict=True):
            one = mean_over_episodes(score_episodes(answers, drawn.of_shots(shots)), drawn.classes)
            ends = (one.low, one.high) if np.isfinite(one.low) else None
            found[name] = Score(one.value, np.empty(0), ends)
        return found

    def baseline(self, train: Values, test: Values) -> Mapping[str, float]:
        """Return 1 / W: what naming any one class of the episode scores."""
        return dict.fromkeys(self.metrics, 1 / self.ways)

    def facts(self) -> dict[str, Any]:
        """Return what stands for the task in keys."""
        own = {"ways": self.ways, "queries": self.queries, "episodes": self.episodes, "novel": self.novel}
        return {**super().facts(), **own}

    def _check_images(self, split: str, truth: Values, least: int) -> None:
        found, counts = np.unique(truth, return_counts=True)
        if len(found) < self.ways:
            raise DataError(
                f"at least {self.ways} classes in {split}, for episodes of {self.ways}", f"{len(found)}",
                "Use other data",
            )  # fmt: skip
        if counts.min() < least:
            fewest = self.classes[int(found[counts.argmin()])]
            raise DataError(
                f"at least {least} images of every class in {split}: {FIVE} shots and {least - FIVE} queries",
                f"{counts.min()} of {fewest}", "Use more images, or leave such classes out with classes=",
            )  # fmt: skip
