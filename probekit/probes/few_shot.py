"""Few-shot curves: how many labelled images a class a tap needs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.data.targets import Target
from probekit.functional.intervals import t_interval
from probekit.functional.ridge import fit_ridge
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
    labels, roles = target.values, data.roles
    counts = np.bincount(labels[roles.train], minlength=target.n_classes)
    train, val, test = (data.features.matrix(rows) for rows in (roles.train, roles.val, roles.test))
    rows = []
    for shots in protocol.shots:
        row: dict[str, Any] = {"metric": "few_shot_accuracy", "n": len(test)}
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
        scores = np.stack(
            [
                _score(
                    train,
                    val,
                    test,
                    labels,
                    data,
                    _draw(labels[roles.train], shots, name, draw, protocol),
                    draw,
                    protocol,
                    target.n_classes,
                )
                for draw in range(protocol.few_shot_draws)
            ]
        )
        penalties = np.array(sorted(protocol.penalties, reverse=True))
        choice = choose_penalty(penalties, scores[:, 0].mean(axis=0))
        place = int(np.flatnonzero(penalties == choice.penalty)[0])
        values = scores[:, 1, place]
        low, high = t_interval(values)
        row |= {"value": float(values.mean()), "ci_low": low, "ci_high": high, "ci_kind": "t,draws"}
        row |= null_columns(scores[:, 2, place])
        row["params"] |= {"penalty": choice.penalty, "val": choice.score, "penalty_edge": choice.edge}
    return rows


def _draw(
    labels: NDArray[np.int64], shots: int, name: str, draw: int, protocol: Protocol
) -> NDArray[np.intp]:
    """Return the rows of ``shots`` images a class; more shots of the same draw hold the fewer."""
    stream = random_stream(f"few-shot {name}", protocol.seed, draw)
    order = stream.permutation(len(labels))
    return np.concatenate([order[labels[order] == label][:shots] for label in np.unique(labels)])


def _score(
    train: NDArray[np.float32],
    val: NDArray[np.float32],
    test: NDArray[np.float32],
    labels: NDArray[np.int64],
    data: TapData,
    drawn: NDArray[np.intp],
    draw: int,
    protocol: Protocol,
    n_classes: int,
) -> NDArray[np.float64]:
    """Return (3, P): val accuracy, test accuracy, test accuracy with permuted labels, per penalty."""
    roles = data.roles
    stage = Stage.of(train[drawn], np.concatenate([val, test]))
    penalties = np.array(sorted(protocol.penalties, reverse=True))
    if not stage.kept.any():
        return np.full((3, len(penalties)), 1.0 / n_classes)
    one_hot = np.eye(n_classes)[labels[roles.train][drawn]]
    permuted = one_hot[random_stream("few-shot null", protocol.seed, draw).permutation(len(drawn))]
    fit, score = _in_span(stage)
    predicted = fit_ridge(fit, np.concatenate([one_hot, permuted], axis=1), penalties).predict(score)
    real, null = predicted[:, :, :n_classes].argmax(axis=2), predicted[:, :, n_classes:].argmax(axis=2)
    on_val, on_test = labels[roles.val], labels[roles.test]
    return np.stack(
        [
            (real[:, : len(val)] == on_val).mean(axis=1),
            (real[:, len(val) :] == on_test).mean(axis=1),
            (null[:, len(val) :] == on_test).mean(axis=1),
        ]
    )


def _in_span(stage: Stage) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return rows to fit on and to score, in axes of the span of the former where they are few.

    No optimum of a penalised fit leaves that span, so predictions are the same; but the long product, over
    all features, is then shared by all penalties and columns of targets.
    """
    if len(stage.fit) >= stage.fit.shape[1]:
        return stage.fit, stage.score
    axes = np.linalg.qr(stage.fit.T.astype(np.float64))[0]
    return stage.fit @ axes, stage.score @ axes
