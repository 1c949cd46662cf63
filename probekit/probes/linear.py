"""Linear probes of classes and of labels: convex, solved to a stated gap, scored once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax

from probekit.data.targets import Target
from probekit.functional.sigmoid_regression import fit_sigmoid
from probekit.functional.softmax_regression import SoftmaxPath, fit_softmax
from probekit.probes.controls import permute_rows
from probekit.probes.protocol import Outcome, Protocol, TapData, choose_penalty, is_past_best
from probekit.probes.scoring import class_rows, label_rows, mean_average_precision
from probekit.results.fitted import Probe

# A null needs no more than the digits it is printed with.
NULL_GAP = 1e-2


@dataclass(frozen=True)
class LinearFit:
    """A probe fitted by the protocol, with what stands in ``params``.

    Attributes:
        weights: (D, C) in standardised space.
        intercept: (C,).
        params: Penalty, its edge, val score, gap, iterations, convergence.
        null_logits: (B, n_test, C) logits of probes fitted to permuted targets.
    """

    weights: NDArray[np.float64]
    intercept: NDArray[np.float64]
    params: dict[str, Any]
    null_logits: NDArray[np.float64]

    def logits(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return (n, C) logits of standardised rows."""
        logits: NDArray[np.float64] = rows.astype(np.float64) @ self.weights + self.intercept
        return logits


def fit_classes(data: TapData, target: Target, protocol: Protocol, name: str) -> LinearFit:
    """Fit multinomial logistic regression: penalty chosen on val by accuracy, refitted on train and val.

    Objective: mean cross-entropy + ½·penalty·‖W‖², intercept free (scikit-learn's C = 1/(n·penalty)).
    """
    labels, roles = target.values, data.roles
    penalties = np.array(sorted(protocol.penalties, reverse=True))
    judge = Judge(data.choose.score, labels[roles.val])
    path = fit_softmax(
        data.choose.fit,
        labels[roles.train],
        penalties,
        n_classes=target.n_classes,
        gap=protocol.gap,
        stop=lambda path: is_past_best(*judge.scores(path)),
    )
    hits, loss = judge.scores(path)
    choice = choose_penalty(penalties, hits.mean(axis=1), loss)

    # The probe and the fits behind its null differ in labels alone, so that they are solved together.
    fitting = labels[roles.fitting]
    orders = permute_rows(len(fitting), protocol.permutations, seed=protocol.seed, name=name)
    together = fit_softmax(
        data.refit.fit,
        np.concatenate([fitting[None], fitting[orders]]),
        [choice.penalty] * (1 + len(orders)),
        n_classes=target.n_classes,
        gap=[protocol.gap] + [max(NULL_GAP, protocol.gap)] * len(orders),
    )
    final, null = together.at([0]), together.at(range(1, 1 + len(orders)))
    return LinearFit(
        final.weights[0],
        final.intercepts[0],
        _params(choice, penalties, final, data),
        null.logits(data.refit.score),
    )


class Judge:
    """Scores fits on val, each penalty once.

    Args:
        features: (n, D) standardised val rows.
        truth: (n,) their labels.
    """

    def __init__(self, features: NDArray[np.float32], truth: NDArray[np.int64]) -> None:
        self._features, self._truth = features, truth
        self._known: dict[float, tuple[NDArray[np.bool_], float]] = {}

    def scores(self, path: SoftmaxPath) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Return (P, n) hits and (P,) cross-entropies."""
        new = [place for place, penalty in enumerate(path.penalties) if penalty not in self._known]
        rows = np.arange(len(self._truth))
        for place, logits in zip(new, path.at(new).logits(self._features), strict=True):
            of_truth = log_softmax(logits, axis=1)[rows, self._truth]
            hits = logits.argmax(axis=1) == self._truth
            self._known[path.penalties[place]] = hits, float(-of_truth.mean())
        hits_, losses = zip(*(self._known[penalty] for penalty in path.penalties), strict=True)
        return np.stack(hits_), np.array(losses)


def probe_classes(data: TapData, name: str, target: Target, protocol: Protocol) -> Outcome:
    """Probe one class target at one tap."""
    fit = fit_classes(data, target, protocol, name)
    test = target.values[data.roles.test]
    probabilities = softmax(fit.logits(data.refit.score), axis=1)
    rows, images = class_rows(
        probabilities, test, target.classes, softmax(fit.null_logits, axis=2), protocol, name
    )
    for row in rows:
        row["params"] = fit.params | row.get("params", {})
    return Outcome(rows, _probe(data, name, target, fit).to_arrays(), images)


def probe_labels(data: TapData, name: str, target: Target, protocol: Protocol) -> Outcome:
    """Probe one multi-label target at one tap: an independent sigmoid a label, one penalty for all.

    Objective per label: mean binary cross-entropy + ½·penalty·‖w‖². The penalty is chosen on val by mean
    average precision over the labels that occur there.
    """
    labels, roles = target.values.astype(bool), data.roles
    penalties = np.array(sorted(protocol.penalties, reverse=True))
    path = fit_sigmoid(data.choose.fit, labels[roles.train], penalties, gap=protocol.gap)
    scores = np.array(
        [mean_average_precision(one, labels[roles.val]) for one in path.logits(data.choose.score)]
    )
    choice = choose_penalty(penalties, scores)

    fitting = labels[roles.fitting]
    final = fit_sigmoid(data.refit.fit, fitting, [choice.penalty], gap=protocol.gap)
    null_logits = []
    for order in permute_rows(len(fitting), protocol.permutations, seed=protocol.seed, name=name):
        null = fit_sigmoid(data.refit.fit, fitting[order], [choice.penalty], gap=NULL_GAP)
        null_logits.append(null.logits(data.refit.score)[0])
    params = _params(choice, penalties, final, data)
    shape = (0, len(roles.test), target.n_classes)
    fit = LinearFit(
        final.weights[0],
        final.intercepts[0],
        params,
        np.stack(null_logits) if null_logits else np.empty(shape),
    )
    rows = label_rows(
        expit(fit.logits(data.refit.score)), labels[roles.test], fit.null_logits, protocol, name
    )
    for row in rows:
        row["params"] = fit.params
    return Outcome(rows, _probe(data, name, target, fit).to_arrays())


def _params(choice: Any, penalties: NDArray[np.float64], path: Any, data: TapData) -> dict[str, Any]:  # noqa: ANN401
    return {
        "penalty": choice.penalty,
        "penalties": [float(penalties.min()), float(penalties.max())],
        "penalty_edge": choice.edge,
        "val": choice.score,
        "gap": float(path.gap.max()),
        "iterations": int(path.iterations.max()),
        "converged": bool(path.converged.all()),
        "n_train": len(data.roles.fitting),
        "n_constant": int((~data.refit.kept).sum()),
    }


def _probe(data: TapData, name: str, target: Target, fit: LinearFit) -> Probe:
    penalty: float = fit.params["penalty"]
    stage = data.refit
    return Probe(
        weights=fit.weights,
        intercept=fit.intercept,
        mean=stage.mean[stage.kept],
        scale=stage.scale[stage.kept],
        kept=stage.kept,
        classes=target.classes,
        kind=target.kind,
        tap=data.features.tap,
        penalty=penalty,
        target=name,
    )
