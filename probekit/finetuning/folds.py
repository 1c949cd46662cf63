"""Cross-validation: every image is tested once, by a training on the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probekit.data.images import ImageSet
from probekit.errors import InputError
from probekit.finetuning.means import OVER_FOLDS, OVER_TRIALS, mean_row, over_trials
from probekit.seeds import random_stream

if TYPE_CHECKING:
    from probekit.finetuning.cells import Grid


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


def state_rows(grids: Sequence[Grid]) -> Iterator[dict[str, Any]]:
    """Yield the metrics of every training of a backbone, then what they say together.

    With several folds that is the mean of the folds' metrics: answers of different trainings are never
    pooled, because their scores have no common scale.

    Args:
        grids: Those of one backbone, finished: a single one, or a fold each.
    """
    first = grids[0]
    for grid in grids:
        yield from grid.training_rows()
    task = first.data.task
    if first.fold is None:
        values = {point: first.values(point, task.metrics[0]) for point in first.points}
        yield from first.gain_rows(values, OVER_TRIALS)
        return
    found = {
        (point, metric): over_trials([one.values(point, metric) for one in grids])
        for point in first.points
        for metric in task.metrics
    }
    baselines = [one.baseline for one in grids]
    for (point, metric), values_of in found.items():
        params = first.params(point.kept, point.mode)
        null = {"null": float(np.mean([one[metric] for one in baselines])), "null_kind": "no image seen"}
        yield first.shared() | {"metric": metric, "params": params} | null | mean_row(values_of, OVER_FOLDS)
    yield from first.gain_rows({point: found[point, task.metrics[0]] for point in first.points}, OVER_FOLDS)
