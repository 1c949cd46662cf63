"""Few-shot curves: how many labelled images a class a tap needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.data.targets import Target
from probekit.functional.intervals import t_interval
from probekit.functional.ridge import fit_ridge
from probekit.functional.rows import row_blocks
from probekit.probes.controls import null_columns
from probekit.probes.protocol import Protocol, Stage, TapData, choose_penalty
from probekit.seeds import random_stream


def few_shot_rows(data: TapData, name: str, target: Target, protocol: Protocol) -> list[dict[str, Any]]:
    """Score least-squares classifiers fitted on a few images a class.

    Each draw takes s images of every class from train, nested over s, standardises by them, solves ridge
    regression to the one-hot labels (one decomposition for all penalties, as in big_vision's few-shot
    evaluator) and is scored on test. The penalty is the one that is best on val on average over draws. The
    interval is a t-interval over draws; the null is the same with the drawn labels permuted.
    """
    drawn = _Drawn.of(data, name, target, protocol)
    counts = np.bincount(drawn.labels[0], minlength=target.n_classes)
    rows = []
    for shots in protocol.shots:
        row: dict[str, Any] = {"metric": "few_shot_accuracy", "n": len(data.roles.test)}
        row["params"] = {
            "shots": shots,
            "draws": protocol.few_shot_draws,
            "n_train": shots * target.n_classes,
        }
        rows.append(row)
        if counts.min() < shots:
            short = target.classes[int(counts.argmin())]
            row["status"] = f"class {short} has only {counts.min()} training images"
            continue
        scores = np.stack([drawn.score(shots, draw) for draw in range(protocol.few_shot_draws)])
        choice = choose_penalty(drawn.penalties, scores[:, 0].mean(axis=0))
        place = int(np.flatnonzero(drawn.penalties == choice.penalty)[0])
        values = scores[:, 1, place]
        low, high = t_interval(values)
        row |= {"value": float(values.mean()), "ci_low": low, "ci_high": high, "ci_kind": "t,draws"}
        row |= null_columns(scores[:, 2, place])
        row["params"] |= {"penalty": choice.penalty, "val": choice.score, "penalty_edge": choice.edge}
    return rows


@dataclass(frozen=True)
class _Drawn:
    """What every draw of a tap and target is made from.

    Attributes:
        name: Of the target.
        features: Three matrices, (n, D) of train, val and test.
        labels: Their labels, (n,) each.
        n_classes: C.
        penalties: (P,) the strongest first.
        seed: Of the draws.
    """

    name: str
    features: tuple[NDArray[np.float32], ...]
    labels: tuple[NDArray[np.int64], ...]
    n_classes: int
    penalties: NDArray[np.float64]
    seed: int

    @classmethod
    def of(cls, data: TapData, name: str, target: Target, protocol: Protocol) -> _Drawn:
        """Read the features of one tap, as they are."""
        splits = (data.roles.train, data.roles.val, data.roles.test)
        return cls(
            name, tuple(data.features.matrix(rows) for rows in splits),
            tuple(target.values[rows] for rows in splits), target.n_classes,
            np.array(sorted(protocol.penalties, reverse=True)), protocol.seed,
        )  # fmt: skip

    def score(self, shots: int, draw: int) -> NDArray[np.float64]:
        """Return (3, P): val accuracy, test accuracy, test accuracy with permuted labels, per penalty."""
        (train, val, test), (labels, on_val, on_test) = self.features, self.labels
        places = _draw(labels, shots, self.name, draw, self.seed)
        stage = Stage.of(train[places], train[:0])
        if not stage.kept.any():
            return np.full((3, len(self.penalties)), 1.0 / self.n_classes)
        one_hot = np.eye(self.n_classes)[labels[places]]
        permuted = one_hot[random_stream("few-shot null", self.seed, draw).permutation(len(places))]
        axes = _span(stage.fit)
        path = fit_ridge(_along(stage.fit, axes), np.concatenate([one_hot, permuted], axis=1), self.penalties)

        def hits(rows: NDArray[np.float32], truth: NDArray[np.int64]) -> NDArray[np.float64]:
            found = np.zeros((2, len(self.penalties)))
            for part in row_blocks(len(rows), max(rows.shape[1], 2 * self.n_classes * len(self.penalties))):
                predicted = path.predict(_along(stage.move(rows[part]), axes))
                halves = predicted[:, :, : self.n_classes], predicted[:, :, self.n_classes :]
                found += [(half.argmax(axis=2) == truth[part]).sum(axis=1) for half in halves]
            return found / len(rows)

        return np.concatenate([hits(val, on_val)[:1], hits(test, on_test)])


def _draw(labels: NDArray[np.int64], shots: int, name: str, draw: int, seed: int) -> NDArray[np.intp]:
    """Return the rows of ``shots`` images a class; more shots of the same draw hold the fewer."""
    order = random_stream(f"few-shot {name}", seed, draw).permutation(len(labels))
    return np.concatenate([order[labels[order] == label][:shots] for label in np.unique(labels)])


def _span(rows: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Return (D, d) axes of the span of rows that are fewer than their columns, else None.

    No optimum of a penalised fit leaves that span, so predictions are the same; but the long product, over
    all features, is then shared by all penalties and columns of targets.
    """
    if len(rows) >= rows.shape[1]:
        return None
    return np.linalg.qr(rows.T.astype(np.float64))[0]


def _along(rows: NDArray[np.float32], axes: NDArray[np.float64] | None) -> NDArray[np.floating[Any]]:
    return rows if axes is None else rows @ axes
