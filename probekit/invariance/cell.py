"""One cell of the invariance: what changes of the images do to one tap of one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.compute import one_thread
from probekit.data.perturbations import PERTURBATIONS, Change
from probekit.data.targets import Target
from probekit.features.features import DEAD, Features
from probekit.functional.class_geometry import Classes, Estimate
from probekit.functional.intervals import bootstrap_means, jackknife_interval
from probekit.functional.invariance import (
    LEAST_IN_HALF,
    LIDAR_DELTA,
    lidar,
    perturbation_variance,
    row_cosines,
    row_distances,
    target_invariance,
    top_units,
)
from probekit.functional.moments import Moments
from probekit.functional.transferability import Whitening
from probekit.probes.controls import null_columns, permute_rows
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable
from probekit.seeds import random_stream

# ``target`` of rows about all perturbations together.
ALL = "all"


@dataclass(frozen=True)
class InvarianceSettings:
    """What all cells of one run share.

    Attributes:
        permutations: How often images are paired anew, or labels permuted, to find a null; 0 leaves it out.
        seed: Fixes permutations, halves of classes and draws of units.
    """

    permutations: int = 20
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)


def invariance_of_tap(
    features: Features,
    *,
    clean: Mapping[tuple[str, str], Features],
    changes: Mapping[str, Sequence[Change]],
    target: tuple[str, Target] | None,
    width: int,
    split: str,
    settings: InvarianceSettings,
) -> ResultTable:
    """Measure one tap.

    Args:
        features: Axes ``N D``: n images as they are, then all of them under each change, in that order.
        clean: (weights, tap) → features of the whole data set, unchanged, by which features are whitened.
        changes: Perturbation → its changes, in the order of the features.
        target: Name and class target of the n images; None leaves target-conditioned invariance out.
        width: Units that target-conditioned invariance compares, the same for all taps.
        split: ``seen``, ``unseen`` or ``unknown``: whether the backbone was trained on these images.
        settings: Of the run.

    Returns:
        Rows without model, data and run; ``target`` is the perturbation.
    """
    shared: dict[str, Any] = {"split": split, "d": features.shape[-1]}
    with one_thread():
        tap = _Tap(features, clean[features.provenance["weights"], features.tap], changes, settings)
        if tap.dead:
            rows: list[dict[str, Any]] = [{"metric": "perturbation_variance", "target": ALL, "status": DEAD}]
        else:
            rows = [*tap.curves(), *tap.variances()]
            rows += [tap.of_target(*target, width)] if target is not None else []
    made = [shared | {"n": tap.count} | row for row in rows]
    return ResultTable(rows_to_frame(made), {"format": 1, "analysis": "invariance"})


class _Tap:
    """The features of one tap: (1 + S, n, D), the unchanged images first."""

    def __init__(
        self,
        features: Features,
        whole: Features,
        changes: Mapping[str, Sequence[Change]],
        settings: InvarianceSettings,
    ) -> None:
        self.names = list(changes)
        self.changes = [change for own in changes.values() for change in own]
        self.settings = settings
        x = features.matrix()
        self.x = np.asarray(x).reshape(1 + len(self.changes), -1, x.shape[1])
        self.count = self.x.shape[1]
        self.whole = whole.matrix()
        self.dead = bool((self.whole == self.whole[0]).all())

    def curves(self) -> Iterator[dict[str, Any]]:
        """Yield whitened cosine and Mahalanobis distance of every change, beside those of other images."""
        moments = Moments.of(self.whole)
        whitening = Whitening.of(moments)
        first = whitening.whiten(self.x[0] - moments.mean)
        others = self._other_images()
        scores, nulls = [], []
        for block in self.x[1:]:
            second = whitening.whiten(block - moments.mean)
            scores += [row_cosines(first, second), row_distances(first, second)]
            nulls += _of_pairings(first, second, others)
        stream = random_stream("images of curves", self.settings.seed)
        low, high = bootstrap_means(np.stack(scores, axis=1), stream=stream)
        told = {"shrinkage": whitening.shrinkage, "whitened_on": moments.count}
        for place, score in enumerate(scores):
            change, metric = self.changes[place // 2], ("whitened_cosine", "mahalanobis")[place % 2]
            yield {
                "metric": metric,
                "target": change.perturbation,
                "value": float(score.mean()),
                "ci_low": float(low[place]),
                "ci_high": float(high[place]),
                "ci_kind": "bootstrap,images",
                **null_columns(nulls[place]),
                "params": {**told, "strength": change.strength, "unit": _unit(change)},
            }

    def _other_images(self) -> NDArray[np.intp]:
        """Return (B, n) partners of every image, never itself: each image follows another around a ring."""
        if self.count < 2:
            return np.empty((0, self.count), np.intp)
        orders = permute_rows(
            self.count, self.settings.permutations, seed=self.settings.seed, name="pairs of images"
        )
        partners = np.empty_like(orders)
        for order, partner in zip(orders, partners, strict=True):
            partner[order] = np.roll(order, 1)
        return partners

    def variances(self) -> Iterator[dict[str, Any]]:
        """Yield each perturbation's share of the variance, that of all together, and LiDAR."""
        images = np.arange(self.count)
        blocks = [
            Moments.of(block, images, n_classes=self.count, products=False, shift=self.x[0, 0])
            for block in self.x
        ]
        for name in [ALL, *self.names]:
            own = [
                block
                for change, block in zip(self.changes, blocks[1:], strict=True)
                if name in (change.perturbation, ALL)
            ]
            total = sum(own, start=blocks[0])
            yield _variance(name, perturbation_variance(Classes.of(total)), len(own))
        views = self.x.reshape(-1, self.x.shape[-1])
        whole = Moments.of(views, np.tile(images, len(self.x)), n_classes=self.count)
        value = lidar(whole)
        yield {
            "metric": "lidar",
            "target": ALL,
            "value": value,
            "status": "ok" if np.isfinite(value) else "no change moves a feature",
            "params": {"delta": LIDAR_DELTA, "views": len(self.x), "most": self.count - 1},
        }

    def of_target(self, name: str, target: Target, width: int) -> dict[str, Any]:
        """Return how often the best units of each class fire for its images, whatever is done to them."""
        row: dict[str, Any] = {"metric": "target_invariance", "target": name, "n_classes": target.n_classes}
        enough = int((np.bincount(target.values, minlength=target.n_classes) >= 2 * LEAST_IN_HALF).sum())
        if enough < 2:
            return row | {"status": f"fewer than two classes with {2 * LEAST_IN_HALF} images each"}
        views, times = self.x.reshape(-1, self.x.shape[-1]), len(self.x)

        def score(labels: NDArray[np.int64]) -> NDArray[np.float64]:
            found = target_invariance(
                views,
                np.tile(labels, times),
                np.tile(np.arange(self.count), times),
                n_classes=target.n_classes,
                width=width,
                stream=random_stream("halves and units", self.settings.seed),
            )
            return found.by_class[np.isfinite(found.by_class)]

        by_class = score(target.values)
        without = (by_class.sum() - by_class) / (len(by_class) - 1)
        value = float(by_class.mean())
        low, high = jackknife_interval(value, without)
        orders = permute_rows(
            self.count, self.settings.permutations, seed=self.settings.seed, name=f"invariance {name}"
        )
        nulls = np.array([score(target.values[order]).mean() for order in orders])
        ends = {"ci_low": low, "ci_high": high, "ci_kind": "jackknife,classes"} if np.isfinite(low) else {}
        params = {"top": top_units(width), "units": width, "classes": len(by_class)}
        return row | {"value": value, **ends, **null_columns(nulls), "params": params}


def _of_pairings(
    first: NDArray[np.float64], second: NDArray[np.float64], partners: NDArray[np.intp]
) -> list[NDArray[np.float64]]:
    """Return (B,) mean cosines, and mean distances, of images with changed other images."""
    products = first @ second.T
    a, b = np.square(first).sum(axis=1), np.square(second).sum(axis=1)
    norms = np.sqrt(np.outer(a, b))
    cosines = products / np.where(norms > 0, norms, 1)
    distances = np.sqrt(np.maximum(a[:, None] + b - 2 * products, 0))
    rows = np.arange(len(first))
    return [np.array([every[rows, other].mean() for other in partners]) for every in (cosines, distances)]


def _variance(name: str, found: Estimate, strengths: int) -> dict[str, Any]:
    row: dict[str, Any] = {"metric": "perturbation_variance", "target": name, "status": found.status}
    if not np.isfinite(found.value):
        return row
    row |= {"value": found.value, "params": {"changes": strengths}}
    # Views dealt out to images at random: ICC 0.
    row |= {"null": 1.0, "null_kind": "analytic"}
    if np.isfinite(found.low):
        row |= {"ci_low": found.low, "ci_high": found.high, "ci_kind": "jackknife,images"}
    return row


def _unit(change: Change) -> str:
    return PERTURBATIONS[change.perturbation].unit
