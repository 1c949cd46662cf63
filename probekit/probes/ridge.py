"""Ridge probes of continuous targets: one decomposition for every factor, penalty and permutation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from probekit.data.targets import Target
from probekit.functional.ridge import fit_ridge
from probekit.probes.controls import permute_rows, permute_within
from probekit.probes.protocol import Outcome, Protocol, TapData, choose_penalty
from probekit.probes.scoring import r2_row, r2_score
from probekit.results.fitted import Probe


def probe_values(
    data: TapData,
    targets: Mapping[str, Target],
    protocol: Protocol,
    groups: NDArray[np.int64] | None,
) -> dict[str, Outcome]:
    """Probe all continuous targets of a data set at one tap.

    Objective: (1/2n)·‖Y − XW − b‖² + ½·penalty·‖W‖² (scikit-learn's alpha = n·penalty), penalty chosen per
    target on val by R², refitted on train and val.

    Args:
        data: One tap's features.
        targets: Target name → continuous target of K columns, scored together.
        protocol: Shared settings.
        groups: (N,) class of every image, within which targets are permuted for the null; None: freely.
    """
    roles = data.roles
    penalties = np.array(sorted(protocol.penalties, reverse=True))
    columns = _columns(targets)
    values = np.concatenate([one.values for one in targets.values()], axis=1)
    predicted = fit_ridge(data.choose.fit, values[roles.train], penalties).predict(data.choose.score)
    truth = values[roles.val]
    choices = {
        name: choose_penalty(
            penalties, np.array([r2_score(one[:, part], truth[:, part]) for one in predicted])
        )
        for name, part in columns.items()
    }

    used = np.array(sorted({choice.penalty for choice in choices.values()}, reverse=True))
    fitting = values[roles.fitting]
    orders = _orders(len(fitting), None if groups is None else groups[roles.fitting], protocol)
    # The permuted targets are further columns of the same solve.
    final = fit_ridge(
        data.refit.fit, np.concatenate([fitting, *(fitting[order] for order in orders)], 1), used
    )
    scored = final.predict(data.refit.score).reshape(len(used), len(roles.test), 1 + len(orders), -1)

    outcomes = {}
    for name, part in columns.items():
        choice = choices[name]
        place = int(np.flatnonzero(used == choice.penalty)[0])
        row, images = r2_row(
            scored[place][:, 0, part],
            values[roles.test][:, part],
            scored[place][:, 1:, part],
            protocol,
            name,
        )
        row["params"] = {
            "penalty": choice.penalty,
            "penalties": [float(penalties.min()), float(penalties.max())],
            "penalty_edge": choice.edge,
            "val": choice.score,
            "gap": 0.0,
            "n_train": len(fitting),
            "n_constant": int((~data.refit.kept).sum()),
        }
        if "null" in row and groups is not None:
            row["null_kind"] = str(row["null_kind"]).replace("permuted", "permuted within class")
        probe = Probe(
            weights=final.weights[place][:, part],
            intercept=final.intercepts[place][part],
            mean=data.refit.mean[data.refit.kept],
            scale=data.refit.scale[data.refit.kept],
            kept=data.refit.kept,
            classes=targets[name].classes,
            kind="continuous",
            tap=data.features.tap,
            penalty=choice.penalty,
            target=name,
        )
        outcomes[name] = Outcome([row], probe.to_arrays(), images)
    return outcomes


def _columns(targets: Mapping[str, Target]) -> dict[str, slice]:
    """Return where each target's columns stand among all."""
    places, start = {}, 0
    for name, target in targets.items():
        places[name] = slice(start, start + target.n_classes)
        start += target.n_classes
    return places


def _orders(count: int, groups: NDArray[np.int64] | None, protocol: Protocol) -> NDArray[np.intp]:
    if groups is None:
        return permute_rows(count, protocol.permutations, seed=protocol.seed, name="values")
    return permute_within(groups, protocol.permutations, seed=protocol.seed, name="values")
