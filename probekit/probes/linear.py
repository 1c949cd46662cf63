"""Linear probes of classes and of labels: convex, solved to a stated gap, scored once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from probekit.data.targets import Target
from probekit.functional.rows import empty_rows, row_blocks
from probekit.functional.sigmoid_regression import fit_sigmoid
from probekit.functional.softmax_regression import fit_softmax
from probekit.probes.control_tasks import control_rows, memorised_shares
from probekit.probes.controls import permute_rows, with_permuted
from probekit.probes.protocol import Outcome, Protocol, TapData, choose_penalty
from probekit.probes.racing import Race
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
        memorised: (B,) share of the fitting images whose permuted class these probes give back; classes only.
        null_weights: (B, D, C) of the probes fitted to permuted targets, if they were to be kept.
        null_intercepts: (B, C) likewise.
    """

    weights: NDArray[np.float64]
    intercept: NDArray[np.float64]
    params: dict[str, Any]
    null_logits: NDArray[np.float64]
    memorised: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    null_weights: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0, 0)))
    null_intercepts: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))

    def logits(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return (n, C) logits of standardised rows."""
        logits: NDArray[np.float64] = logits_of(rows, self.weights[None], self.intercept[None])[0]
        return logits


def logits_of(
    rows: NDArray[np.float32], weights: NDArray[np.float64], intercepts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (B, n, C) logits of standardised rows under (B, D, C) weights and (B, C) intercepts."""
    logits = empty_rows((len(weights), len(rows), weights.shape[2]), np.float64)
    for part in row_blocks(len(rows), max(rows.shape[1], weights.shape[2])):
        block = rows[part].astype(np.float64)
        for own, weight, intercept in zip(logits, weights, intercepts, strict=True):
            own[part] = block @ weight + intercept
    return logits


def fit_classes(
    data: TapData, target: Target, protocol: Protocol, name: str, *, keep_null: bool = False
) -> LinearFit:
    """Fit multinomial logistic regression: penalty chosen on val by accuracy, refitted on train and val.

    Objective: mean cross-entropy + ½·penalty·‖W‖², intercept free (scikit-learn's C = 1/(n·penalty)).

    Args:
        data: One tap.
        target: The classes.
        protocol: Shared settings.
        name: Of the target, which names the random streams.
        keep_null: Keep the weights of the probes fitted to permuted targets, not only what they say.
    """
    labels, roles = target.values, data.roles
    penalties = np.array(sorted(protocol.penalties, reverse=True))
    fit = data.choose.fit
    race = Race(
        data.choose.score, labels[roles.val], gap=protocol.gap, work=float(fit.size * target.n_classes)
    )
    path = fit_softmax(fit, labels[roles.train], penalties, n_classes=target.n_classes, refine=race.refine)
    hits, losses = race.scores(path)
    choice = choose_penalty(penalties, hits.mean(axis=1), losses.mean(axis=1))

    # The probe and the fits behind its null differ in labels alone, so that they are solved together.
    fitting = labels[roles.fitting]
    labellings = with_permuted(fitting, protocol.permutations, seed=protocol.seed, name=name)
    nulls = len(labellings) - 1
    together = fit_softmax(
        data.refit.fit,
        labellings,
        [choice.penalty] * (1 + nulls),
        n_classes=target.n_classes,
        gap=[protocol.gap] + [_null_gap(protocol, keep_null)] * nulls,
    )
    final, null = together.at([0]), together.at(range(1, 1 + nulls))
    return LinearFit(
        final.weights[0],
        final.intercepts[0],
        _params(choice, penalties, final, data),
        logits_of(data.refit.score, null.weights, null.intercepts),
        memorised_shares(data.refit.fit, labellings[1:], null.weights, null.intercepts),
        **({"null_weights": null.weights, "null_intercepts": null.intercepts} if keep_null else {}),
    )


def probe_classes(data: TapData, name: str, target: Target, protocol: Protocol) -> Outcome:
    """Probe one class target at one tap."""
    fit = fit_classes(data, target, protocol, name)
    test = target.values[data.roles.test]
    probabilities = softmax(fit.logits(data.refit.score), axis=1)
    rows, images = class_rows(probabilities, test, target.classes, fit.null_logits, protocol, name)
    nulls = (fit.null_logits.argmax(axis=2) == test).mean(axis=1)
    rows += control_rows(images["accuracy"], nulls, fit.memorised, len(data.roles.fitting), protocol, name)
    for row in rows:
        row["params"] = fit.params | row.get("params", {})
    return Outcome(rows, as_probe(data, name, target, fit).to_arrays(), images)


def fit_labels(
    data: TapData, target: Target, protocol: Protocol, name: str, *, keep_null: bool = False
) -> LinearFit:
    """Fit an independent sigmoid a label, one penalty for all: chosen on val, refitted on train and val.

    Objective per label: mean binary cross-entropy + ½·penalty·‖w‖². The penalty is chosen on val by mean
    average precision over the labels that occur there.

    Args:
        data: One tap.
        target: The labels.
        protocol: Shared settings.
        name: Of the target, which names the random streams.
        keep_null: Keep the weights of the probes fitted to permuted targets, not only what they say.
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
    weights, intercepts = _null_of_labels(data, fitting, choice.penalty, protocol, name, keep_null)
    null_logits = logits_of(data.refit.score, weights, intercepts)
    return LinearFit(
        final.weights[0],
        final.intercepts[0],
        _params(choice, penalties, final, data),
        null_logits,
        **({"null_weights": weights, "null_intercepts": intercepts} if keep_null else {}),
    )


def probe_labels(data: TapData, name: str, target: Target, protocol: Protocol) -> Outcome:
    """Probe one multi-label target at one tap."""
    fit = fit_labels(data, target, protocol, name)
    truth = target.values.astype(bool)[data.roles.test]
    rows = label_rows(expit(fit.logits(data.refit.score)), truth, fit.null_logits, protocol, name)
    for row in rows:
        row["params"] = fit.params
    return Outcome(rows, as_probe(data, name, target, fit).to_arrays())


def _null_of_labels(
    data: TapData,
    labels: NDArray[np.bool_],
    penalty: float,
    protocol: Protocol,
    name: str,
    keep_null: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (B, D, C) weights and (B, C) intercepts of probes of permuted (n, C) labels, fitted at once."""
    orders = permute_rows(len(labels), protocol.permutations, seed=protocol.seed, name=name)
    count, width = labels.shape[1], data.refit.fit.shape[1]
    if not len(orders):
        return np.empty((0, width, count)), np.empty((0, count))
    permuted = labels[orders].transpose(1, 0, 2).reshape(len(labels), -1)
    null = fit_sigmoid(data.refit.fit, permuted, [penalty], gap=_null_gap(protocol, keep_null))
    weights = null.weights[0].reshape(width, len(orders), count).transpose(1, 0, 2)
    return weights, null.intercepts[0].reshape(len(orders), count)


def _null_gap(protocol: Protocol, kept: bool) -> float:
    """Return how well permuted fits are solved: weights that are looked at as well as the probe.

    With little to gain, weights of zero are within a wide gap: scores hardly differ, but nothing is left of
    where such a probe looks.
    """
    return protocol.gap if kept else max(NULL_GAP, protocol.gap)


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


def as_probe(data: TapData, name: str, target: Target, fit: LinearFit) -> Probe:
    """Return a fit as the Probe that is kept."""
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
