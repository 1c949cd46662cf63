"""Trying the preprocessings in common use, one factor at a time, and saying which fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probekit.backbones.backbone import Backbone
from probekit.backbones.batch_norm import is_folded
from probekit.backbones.loading import load_backbone
from probekit.backbones.spec import ModelSpec
from probekit.compute import keep_freed_memory
from probekit.data.images import ImageSet
from probekit.data.readers import open_images
from probekit.data.targets import Target
from probekit.errors import InputError
from probekit.functional.intervals import (
    DRAWS,
    PairedDifference,
    adjust_holm,
    bootstrap_means,
    bootstrap_statistic,
    paired_difference,
)
from probekit.seeds import random_stream
from probekit.verification.candidates import FACTORS, Candidate, vary_scale
from probekit.verification.labels import read_labels
from probekit.verification.scoring import InputStatistics, Pixels, first_batch_norm, input_statistics, predict

LIMIT = 2000
# Statistics of one layer settle with few images.
STATISTICS_LIMIT = 256
SIGNIFICANCE = 0.05
# A preprocessing is called clearly better by statistics only if it is this many times nearer, and the stated
# one is at least this far: other images than those of training also move the statistics.
NEARER = 2.0
FAR_NATS = 0.1


@dataclass(frozen=True)
class Verification:
    """What a check of the preprocessing found.

    Attributes:
        model: Name of the backbone.
        data: Name of the images.
        n: How many images were used.
        basis: ``classifier``, ``batch norm`` or ``nothing``.
        stated: The preprocessing under test.
        table: One row a candidate, the stated one first: ``factor``, ``change``, ``preprocessing``, ``keys``,
            ``accuracy`` (share of images) or ``divergence`` (nats, less is better) with ``ci_low`` and
            ``ci_high`` (95 %), ``gain`` over the stated one with ``gain_low`` and ``gain_high`` (paired, 95
            %), and for accuracies ``p_holm``.
        better: The keys or words of a preprocessing that fits clearly better; None if none does.
        verdict: The outcome in one sentence.
        notes: What it rests on and what it cannot know.
    """

    model: str
    data: str
    n: int
    basis: str
    stated: str
    table: pd.DataFrame
    better: str | None
    verdict: str
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values; an undefined number is None."""
        rows = self.table.astype(object).where(self.table.notna(), None).to_dict("records")
        return {
            "model": self.model,
            "data": self.data,
            "n": self.n,
            "basis": self.basis,
            "stated": self.stated,
            "candidates": rows,
            "better": self.better,
            "verdict": self.verdict,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """Say it for people: verdict, table, notes."""
        parts = [f"{self.model} on {self.n} images of {self.data}, prepared as stated: {self.stated}"]
        if len(self.table):
            parts.append(self._shown().to_string(index=False))
        return "\n".join([*parts, *self.notes, self.verdict])

    def _repr_html_(self) -> str:
        table = self._shown().to_html(index=False) if len(self.table) else ""
        return f"<p>{escape(self.verdict)}</p>{table}"

    def _shown(self) -> pd.DataFrame:
        """Return the table with intervals beside their values, as text."""
        measure = "accuracy" if self.basis == "classifier" else "divergence"
        shown: dict[str, Any] = {"factor": self.table["factor"], "images": self.table["change"]}
        for name, low, high in ((measure, "ci_low", "ci_high"), ("gain", "gain_low", "gain_high")):
            shown[name] = [_interval(*row) for row in self.table[[name, low, high]].to_numpy()]
        if measure == "accuracy":
            shown["p (Holm)"] = ["" if np.isnan(p) else f"{p:.3f}" for p in self.table["p_holm"]]
        return pd.DataFrame(shown)


def verify(
    model: str | ModelSpec | Backbone,
    data: str | ImageSet,
    *,
    target: str | None = None,
    limit: int = LIMIT,
    seed: int = 0,
    device: str | None = None,
) -> Verification:
    """Check whether a backbone gets its images as it was trained to.

    With a classifier of its own, it classifies labelled images under the stated preprocessing and under
    others in common use (scaling and order of channels, then interpolation, then crop), each factor starting
    from the best so far. Without one, what comes into its first batch norm is compared with the statistics
    that training kept there. Differences are paired by image; accuracies are compared with Holm's adjustment.

    Args:
        model: A model in words, or a backbone.
        data: Images in words, or an ImageSet; all splits are used. For the classifier they must be of the
            classes it was trained on.
        target: The class target; None takes the first, if the classifier can be asked for its classes.
        limit: At most this many images, spread evenly.
        seed: Seed of the resampling.
        device: Where it runs; None is the CPU.

    Raises:
        InputError: If the target is no class target, or its classes cannot be matched with the outputs.
        CheckpointError: If the weights do not load, or scores are not finite.
        DataError: If the images cannot be opened.
    """
    keep_freed_memory()
    backbone = model if isinstance(model, Backbone) else load_backbone(model, device=device or "cpu")
    images = _spread(data if isinstance(data, ImageSet) else open_images(data, divide=False), limit)
    labels = _class_target(images, target)
    why = "it has no trained classifier" if not backbone.has_head else f"{images.name} has no classes"
    if backbone.has_head and labels is not None:
        try:
            readings = read_labels(labels.classes, _outputs(backbone))
        except InputError as error:
            if target is not None:
                raise
            why = f"its classifier cannot be asked (expected {error.expected}; got {error.came})"
        else:
            return _by_classifier(backbone, images, labels, readings, seed)
    path = None if is_folded(backbone.module) else first_batch_norm(backbone)
    if path is None:
        return _unknown(backbone, images, why)
    return _by_statistics(backbone, _spread(images, STATISTICS_LIMIT), path, why, seed)


def _interval(value: float, low: float, high: float) -> str:
    return "" if np.isnan(value) else " ".join([_short(value), f"[{_short(low)}, {_short(high)}]"])


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"


def _spread(images: ImageSet, limit: int) -> ImageSet:
    if limit < 2:
        raise InputError("at least two images", f"limit {limit}", f"{LIMIT} is the default")
    if len(images) <= limit:
        return images
    return images.select(np.unique(np.linspace(0, len(images) - 1, limit).astype(np.int64)))


def _class_target(images: ImageSet, name: str | None) -> Target | None:
    if name is None:
        return next((one for one in images.targets.values() if one.kind == "class"), None)
    found = images.targets.get(name)
    if found is None or found.kind != "class":
        raise InputError(
            "a class target",
            repr(name) if found is None else f"{name}, which is {found.kind}",
            f"There are {', '.join(images.targets) or 'none'}",
        )
    return found


def _by_classifier(
    backbone: Backbone,
    images: ImageSet,
    labels: Target,
    readings: Mapping[str, NDArray[np.int64]],
    seed: int,
) -> Verification:
    stated = Candidate(backbone.preprocessing)
    pixels = Pixels(images)
    first = predict(backbone, pixels, stated, f"{backbone.name}: as stated")
    accuracies = {words: float((first == places[labels.values]).mean()) for words, places in readings.items()}
    reading = max(accuracies, key=accuracies.__getitem__)
    wanted = readings[reading][labels.values]
    hits = {stated: (first == wanted).astype(np.float64)}
    rows = [_accuracy_row("stated", stated, stated, hits, seed)]
    best = stated
    for factor, vary in FACTORS.items():
        tried = vary(best)
        for candidate in tried:
            if candidate not in hits:
                found = predict(backbone, pixels, candidate, f"{backbone.name}: {candidate}")
                hits[candidate] = (found == wanted).astype(np.float64)
        gains = [_paired(hits[one], hits[best], seed) for one in tried]
        adjusted = adjust_holm([one.p_value for one in gains])
        for candidate, p in zip(tried, adjusted, strict=True):
            rows.append({**_accuracy_row(factor, candidate, stated, hits, seed), "p_holm": float(p)})
        fitting = [
            (gain.value, -place)
            for place, (gain, p) in enumerate(zip(gains, adjusted, strict=True))
            if gain.value > 0 and p < SIGNIFICANCE
        ]
        if fitting:
            best = tried[-max(fitting)[1]]  # of equals, the first
    chance = _chance(first, wanted, _outputs(backbone))
    notes = (
        f"labels read as: {reading}",
        f"by chance {chance:.3f}: the accuracy of these predictions with the labels shuffled",
        "images seen in training score higher than new ones; the comparison is not touched by that",
    )
    verdict, better = _classifier_verdict(stated, best, hits, chance, rows[0]["ci_low"], seed)
    return Verification(
        backbone.name,
        images.name,
        len(images),
        "classifier",
        str(stated),
        pd.DataFrame(rows),
        better,
        verdict,
        notes,
    )


def _outputs(backbone: Backbone) -> int:
    weight = backbone.module.get_submodule(str(backbone.classifier)).get_parameter("weight")
    return len(weight)


def _accuracy_row(
    factor: str,
    candidate: Candidate,
    stated: Candidate,
    hits: dict[Candidate, NDArray[np.float64]],
    seed: int,
) -> dict[str, Any]:
    low, high = bootstrap_means(hits[candidate][:, None], stream=random_stream("verify", seed))
    gain = _paired(hits[candidate], hits[stated], seed) if candidate != stated else None
    return {
        "factor": factor,
        "change": candidate.change(stated.preprocessing),
        "preprocessing": str(candidate),
        "keys": candidate.keys(stated.preprocessing),
        "accuracy": float(hits[candidate].mean()),
        "ci_low": float(low[0]),
        "ci_high": float(high[0]),
        "gain": gain.value if gain else float("nan"),
        "gain_low": gain.low if gain else float("nan"),
        "gain_high": gain.high if gain else float("nan"),
        "p_holm": float("nan"),
    }


def _paired(one: NDArray[np.float64], other: NDArray[np.float64], seed: int) -> PairedDifference:
    return paired_difference(one, other, draws=2 * DRAWS, stream=random_stream("verify", seed))


def _chance(found: NDArray[np.int64], wanted: NDArray[np.int64], outputs: int) -> float:
    """Return the expected accuracy with shuffled labels: Σ share predicted · share true, over classes."""
    shares = [np.bincount(one, minlength=outputs) / len(one) for one in (found, wanted)]
    return float(shares[0] @ shares[1])


def _classifier_verdict(
    stated: Candidate,
    best: Candidate,
    hits: dict[Candidate, NDArray[np.float64]],
    chance: float,
    low: float,
    seed: int,
) -> tuple[str, str | None]:
    accuracy = hits[stated].mean()
    if best != stated:
        gain = _paired(hits[best], hits[stated], seed)
        change = f"{gain.value:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}]"
        return (
            f"WARNING: another preprocessing fits clearly better: {best}: {hits[best].mean():.1%} against "
            f"{accuracy:.1%}, {change}. {_advice(best, stated)}",
            best.keys(stated.preprocessing) or str(best),
        )
    if low <= chance:
        return (
            f"WARNING: the classifier does no better than chance, {accuracy:.1%}, however its images are "
            "prepared: the classes are not those it was trained on, or the weights are not.",
            None,
        )
    return f"No common preprocessing fits clearly better than the stated one, {accuracy:.1%}.", None


def _advice(best: Candidate, stated: Candidate) -> str:
    keys = best.keys(stated.preprocessing)
    parts = [f"Load it with {keys}."] if keys else []
    if best.blue_first:
        parts.append("Wrap it in a function that turns the channels, images.flip(1), file.py:function.")
    return " ".join(parts)


def _by_statistics(backbone: Backbone, images: ImageSet, path: str, why: str, seed: int) -> Verification:
    stated = Candidate(backbone.preprocessing)
    pixels = Pixels(images)
    found = {one: input_statistics(backbone, path, pixels, one) for one in [stated, *vary_scale(stated)]}
    rows = []
    for candidate, one in found.items():
        interval = _resampled(one.sums, partial(one.divergence, count=len(images)), seed)
        gain = (float("nan"),) * 3 if candidate == stated else _nearness(one, found[stated], seed)
        rows.append(
            {
                "factor": "stated" if candidate == stated else "scale",
                "change": candidate.change(stated.preprocessing),
                "preprocessing": str(candidate),
                "keys": candidate.keys(stated.preprocessing),
                **dict(zip(("divergence", "ci_low", "ci_high"), interval, strict=True)),
                **dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True)),
            }
        )
    table = pd.DataFrame(rows)
    notes = (
        f"{why}, so the mean and variance of what comes into {path} are compared with those training kept",
        "images of another kind than those of training move them too; interpolation and crop cannot be told",
    )
    verdict, better = _statistics_verdict(table, list(found), stated)
    return Verification(
        backbone.name, images.name, len(images), "batch norm", str(stated), table, better, verdict, notes
    )


def _nearness(one: InputStatistics, stated: InputStatistics, seed: int) -> tuple[float, float, float]:
    """Return how much nearer one preprocessing comes than the stated one, in nats, paired by image."""
    width, count = one.sums.shape[1], len(one.sums)

    def gain(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        gained = stated.divergence(sums[:, width:], count) - one.divergence(sums[:, :width], count)
        return np.asarray(gained)

    return _resampled(np.concatenate([one.sums, stated.sums], axis=1), gain, seed)


def _resampled(
    columns: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], seed: int
) -> tuple[float, float, float]:
    value = float(statistic(columns.sum(0, keepdims=True))[0])
    low, high = bootstrap_statistic(columns, statistic, stream=random_stream("verify", seed))
    return value, low, high


def _statistics_verdict(
    table: pd.DataFrame, candidates: Sequence[Candidate], stated: Candidate
) -> tuple[str, str | None]:
    values = table["divergence"].to_numpy()
    place = int(values.argmin())
    own, nearest, best = values[0], values[place], candidates[place]
    if place and own > FAR_NATS and own > NEARER * nearest and table["gain_low"][place] > 0:
        return (
            f"WARNING: another preprocessing fits the batch norm clearly better: {best}: {nearest:.3f} "
            f"against {own:.3f} nats. {_advice(best, stated)}",
            best.keys(stated.preprocessing) or str(best),
        )
    if own > FAR_NATS:
        return (
            f"The batch norm expects other inputs than these, {own:.3f} nats, and no common preprocessing is "
            "clearly nearer: the images differ from those of training, or are prepared in another way.",
            None,
        )
    said = f"The batch norm's inputs are much as training left them, {own:.3f} nats apart"
    if place and table["gain_low"][place] > 0:
        said += f"; {best.change(stated.preprocessing)} comes nearer still, {nearest:.3f}, too close to tell"
    return f"{said}.", None


def _unknown(backbone: Backbone, images: ImageSet, why: str) -> Verification:
    folded = is_folded(backbone.module)
    reason = "its batch norm is folded" if folded else "it has no batch norm that keeps statistics of images"
    verdict = (
        f"Nothing can be said: {why}, and {reason}. How its images must be prepared stands in what its "
        "authors wrote; state it by the keys size, resize, mean, std and interpolation."
    )
    return Verification(
        backbone.name,
        images.name,
        len(images),
        "nothing",
        str(Candidate(backbone.preprocessing)),
        pd.DataFrame(),
        None,
        verdict,
    )
