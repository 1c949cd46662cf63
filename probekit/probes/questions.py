"""One cell of the probes of boxes: what is in a region, how well it covers its box, how far that is off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probekit.compute import one_thread
from probekit.data.proposals import IOU_BINS, TRUE_BOX, Proposals, bin_names
from probekit.data.targets import Target
from probekit.features.features import DEAD, Features
from probekit.functional.detection import box_offsets
from probekit.functional.intervals import Statistic, bootstrap_statistic
from probekit.functional.ridge import fit_ridge
from probekit.probes.controls import null_columns, permute_rows
from probekit.probes.linear import fit_classes
from probekit.probes.protocol import Protocol, Roles, TapData, choose_penalty
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable
from probekit.seeds import random_stream

FloatArray = NDArray[np.float64]

# From this IoU on a region is asked for its offset, as detectors refine boxes from half an overlap on.
LEAST_IOU = 0.5
COMPONENTS = ("dx", "dy", "log dw", "log dh")
# Regions of an image are not independent: whole images are drawn, the fitted probe stays.
CI_KIND = "bootstrap,whole images"
# Question → its first metric, which an all-constant tap leaves empty.
HEADLINE = {"what": "what_accuracy", "where": "where_accuracy", "offset": "offset_r2"}


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of one data set, and what is asked of them.

    Attributes:
        proposals: R of them.
        roles: Places of train, val and test among the N images.
        classes: Names of all classes.
        target: Name of the boxes.
    """

    proposals: Proposals
    roles: Roles
    classes: tuple[str, ...]
    target: str

    def rows(self, question: str) -> Roles:
        """Return the regions of each split that a question is asked of.

        ``what`` is asked of true boxes, ``where`` of all others, ``offset`` of those from half an overlap on.
        """
        bins = self.proposals.bins
        lows = np.array([low for low, _ in IOU_BINS])
        asked = {
            "what": bins == TRUE_BOX,
            "where": bins != TRUE_BOX,
            "offset": (bins != TRUE_BOX) & (lows[bins] >= LEAST_IOU),
        }[question]
        train, val, test = (
            np.flatnonzero(asked & np.isin(self.proposals.images, rows))
            for rows in (self.roles.train, self.roles.val, self.roles.test)
        )
        return Roles(train, val, test)

    def facts(self) -> dict[str, int]:
        """Return how many boxes of how many images are read, and how many are not and why."""
        proposals = self.proposals
        taken = int((proposals.bins == TRUE_BOX).sum())
        return {"boxes": taken, "images": len(proposals.sizes), **proposals.left_out}

    def labels(self, question: str) -> Target:
        """Return the class of every region's box, or its bin of the IoU; a true box counts as the best."""
        if question == "where":
            bins = self.proposals.bins
            return Target(np.where(bins == TRUE_BOX, len(IOU_BINS) - 1, bins), "class", bin_names())
        return Target(self.proposals.classes, "class", self.classes)


def probe_regions(
    features: Features, *, regions: Regions, questions: Sequence[str], protocol: Protocol
) -> ResultTable:
    """Fit and score the probes of one tap.

    Args:
        features: Axes ``N D``, a row a region.
        regions: What they are regions of.
        questions: Among ``what``, ``where``, ``offset``.
        protocol: Shared settings.

    Returns:
        Rows without model, data and run; ``n`` counts test images, ``params`` regions. Attachments
        ``regions/QUESTION.parquet``: truth and answer for every test region.
    """
    rows: list[dict[str, Any]] = []
    attachments: dict[str, Any] = {}
    with one_thread():
        for question in questions:
            roles = regions.rows(question)
            data = TapData.of(features, roles)
            shared = _shared(features, regions, roles)
            if data.dead:
                rows.append({**shared, "metric": HEADLINE[question], "status": DEAD})
                continue
            ask = _ask_offset if question == "offset" else _ask_class
            made, answers = ask(question, data, regions, protocol)
            rows += [{**shared, **row, "params": shared["params"] | row["params"]} for row in made]
            known = {"id": features.ids[roles.test], "region": roles.test}
            attachments[f"regions/{question}.parquet"] = pd.DataFrame(known | answers)
    return ResultTable(rows_to_frame(rows), {"format": 1, "analysis": "boxes"}, attachments)


def _shared(features: Features, regions: Regions, roles: Roles) -> dict[str, Any]:
    return {
        "target": regions.target,
        "split": "test",
        "d": features.shape[-1],
        "n": len(np.unique(regions.proposals.images[roles.test])),
        "params": {"regions": len(roles.test), "n_train": len(roles.fitting)},
    }


def _ask_class(
    question: str, data: TapData, regions: Regions, protocol: Protocol
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of a question whose answer is a class, and what is answered."""
    target, test = regions.labels(question), data.roles.test
    fit = fit_classes(data, target, protocol, _stream_name(question))
    truth, count = target.values[test], target.n_classes
    answer = fit.logits(data.refit.score).argmax(axis=1)
    nulls = fit.null_logits.argmax(axis=2)
    images = regions.proposals.images[test]
    scores: dict[str, Statistic] = {f"{question}_accuracy": _accuracy}
    # Bins are balanced as they are drawn.
    scores |= {"what_balanced_accuracy": _balanced_accuracy} if question == "what" else {}
    rows = []
    for metric, statistic in scores.items():
        row = _score(
            metric, statistic, lambda said: _hits(said, truth, count), answer, nulls, images, protocol
        )
        rows.append({**row, "n_classes": count, "params": fit.params})
    return rows, {"target": truth, "prediction": answer}


def _ask_offset(
    question: str, data: TapData, regions: Regions, protocol: Protocol
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of R² of the offsets: their mean, and each component's.

    Objective: (1/2n)·‖Y − XW − b‖² + ½·penalty·‖W‖², one penalty for all four, chosen on val by the mean R².
    """
    roles, proposals = data.roles, regions.proposals
    offsets = box_offsets(proposals.boxes, proposals.truth)
    penalties = np.array(sorted(protocol.penalties, reverse=True))
    tried = fit_ridge(data.choose.fit, offsets[roles.train], penalties).predict(data.choose.score)
    sums = np.stack([_errors(one, offsets[roles.val]).sum(axis=0) for one in tried])
    choice = choose_penalty(penalties, _mean_r2(sums))
    fitting = offsets[roles.fitting]
    orders = permute_rows(
        len(fitting), protocol.permutations, seed=protocol.seed, name=_stream_name(question)
    )
    # Permuted offsets are further columns of the same solve.
    columns = np.concatenate([fitting, *(fitting[order] for order in orders)], axis=1)
    said = fit_ridge(data.refit.fit, columns, [choice.penalty]).predict(data.refit.score)[0]
    every = said.reshape(len(said), 1 + len(orders), len(COMPONENTS)).transpose(1, 0, 2)
    truth, images = offsets[roles.test], proposals.images[roles.test]
    params = {
        "penalty": choice.penalty,
        "penalties": [float(penalties.min()), float(penalties.max())],
        "penalty_edge": choice.edge,
        "val": choice.score,
        "gap": 0.0,
        "least_iou": LEAST_IOU,
        "n_constant": int((~data.refit.kept).sum()),
    }

    def row(metric: str, statistic: Statistic) -> dict[str, Any]:
        return _score(
            metric, statistic, lambda one: _errors(one, truth), every[0], every[1:], images, protocol
        )

    rows = [{**row("offset_r2", _mean_r2), "params": params}]
    for place, name in enumerate(COMPONENTS):
        made = row("offset_component_r2", lambda sums, at=place: _r2(sums)[:, at])  # type: ignore[misc]
        rows.append({**made, "params": {**params, "component": name}})
    answers = {name: truth[:, place] for place, name in enumerate(COMPONENTS)}
    return rows, answers | {f"said {name}": every[0][:, place] for place, name in enumerate(COMPONENTS)}


def _score(
    metric: str,
    statistic: Statistic,
    tally: Callable[[NDArray[Any]], FloatArray],
    answer: NDArray[Any],
    nulls: NDArray[Any],
    images: NDArray[np.int64],
    protocol: Protocol,
) -> dict[str, Any]:
    """Return value, interval over whole images, and null of a score.

    Args:
        metric: Its name.
        statistic: (B, M) sums of tallies → (B,) values.
        tally: (n, …) answers → (n, M).
        answer: Of the probe.
        nulls: (B, n, …) of the probes of permuted targets.
        images: (n,) image of each region.
        protocol: Shared settings.
    """
    tallies = tally(answer)
    value = float(statistic(tallies.sum(axis=0)[None])[0])
    if not np.isfinite(value):
        return {"metric": metric, "status": "the offsets do not vary over the test regions"}
    # Every tap and model draws the same images.
    stream = random_stream(f"bootstrap {_stream_name(metric)}", protocol.seed)
    low, high = bootstrap_statistic(
        sum_by(tallies, images), statistic, draws=protocol.bootstrap_draws, stream=stream
    )
    drawn = np.array([statistic(tally(one).sum(axis=0)[None])[0] for one in nulls])
    ends = {"ci_low": low, "ci_high": high, "ci_kind": CI_KIND}
    return {"metric": metric, "value": value, **ends, **null_columns(drawn)}


def sum_by(values: FloatArray, groups: NDArray[np.int64]) -> FloatArray:
    """Return the sums of the rows of each group, (groups that occur, M).

    Examples:
        >>> sum_by(np.array([[1.0], [2.0], [4.0]]), np.array([7, 3, 7])).tolist()
        [[2.0], [5.0]]
    """
    some, places = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(some), values.shape[1]))
    np.add.at(sums, places, values)
    return sums


def _hits(answer: NDArray[np.int64], truth: NDArray[np.int64], count: int) -> FloatArray:
    """Return (n, 2C): hits by class, regions by class."""
    one_hot = np.eye(count)[truth]
    return np.concatenate([one_hot * (answer == truth)[:, None], one_hot], axis=1)


def _accuracy(sums: FloatArray) -> FloatArray:
    hits, there = np.split(sums, 2, axis=1)
    return np.asarray(hits.sum(axis=1) / there.sum(axis=1))


def _balanced_accuracy(sums: FloatArray) -> FloatArray:
    """Return the mean recall of the classes that occur."""
    hits, there = np.split(sums, 2, axis=1)
    recalls = hits / np.where(there > 0, there, 1)
    return np.asarray(recalls.sum(axis=1) / (there > 0).sum(axis=1))


def _errors(said: FloatArray, truth: FloatArray) -> FloatArray:
    """Return (n, 1 + 3K): 1, squared errors, squares and values, around the mean so that no digit is lost."""
    centred = truth - truth.mean(axis=0)
    return np.concatenate([np.ones((len(truth), 1)), (said - truth) ** 2, centred**2, centred], axis=1)


def _r2(sums: FloatArray) -> FloatArray:
    """Return (B, K) R² = 1 − SSE/SST from (B, 1 + 3K) sums; NaN where the truth does not vary."""
    count, rest = sums[:, :1], sums[:, 1:]
    error, square, moved = np.split(rest, 3, axis=1)
    # SST = Σy² − (Σy)²/n
    total = square - moved**2 / count
    return np.asarray(1 - error / np.where(total > 0, total, np.nan))


def _mean_r2(sums: FloatArray) -> FloatArray:
    return np.asarray(_r2(sums).mean(axis=1))


def _stream_name(question: str) -> str:
    return f"boxes {question}"
