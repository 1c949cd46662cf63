"""One cell of a sweep: every probe of one tap of one model on one data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probekit.compute import one_thread
from probekit.data.targets import Target
from probekit.features.features import Features
from probekit.files import safe_name
from probekit.functional.rows import empty_rows, row_blocks
from probekit.functional.standardise import principal_axes
from probekit.probes.description_length import description_rows
from probekit.probes.few_shot import few_shot_rows
from probekit.probes.knn import find_neighbours, neighbour_rows
from probekit.probes.linear import probe_classes, probe_labels
from probekit.probes.protocol import Outcome, Protocol, Roles, TapData
from probekit.probes.ridge import probe_values
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable

# The metric that an all-constant tap leaves empty, by kind of target.
HEADLINE = {"class": "accuracy", "multilabel": "mean_ap", "continuous": "r2"}


def probe_tap(
    features: Features, targets: Mapping[str, Target], roles: Roles, protocol: Protocol, equal_d: int | None
) -> ResultTable:
    """Fit and score every probe of one tap.

    Args:
        features: The tap's features, axes ``N D``.
        targets: Target name → target over the same images.
        roles: Rows of train, val and test.
        protocol: Shared settings.
        equal_d: Also score class targets at this width; None leaves it out.

    Returns:
        Rows without model, data and run, which the sweep adds; attachments ``scores/TARGET.parquet`` and
        ``probes/TARGET.npz``.
    """
    with one_thread():
        data = TapData.of(features, roles)
        if data.dead:
            outcomes = {name: _dead(name, target, roles) for name, target in targets.items()}
        else:
            outcomes = _probe_all(data, targets, protocol, equal_d)
    rows: list[dict[str, Any]] = []
    attachments: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        shared = {"target": name, "n_classes": targets[name].n_classes, "n": len(roles.test)}
        shared["split"] = "test"
        shared |= {"d": features.shape[-1], "tap": features.tap}
        shared |= {key: features.facts[key] for key in ("block", "level", "depth", "readout")}
        # There if the forward pass was narrower than float32.
        narrow = {key: features.facts[key] for key in ("relative_error",) if key in features.facts}
        rows += [shared | row | {"params": row.get("params", {}) | narrow} for row in outcome.rows]
        if outcome.arrays is not None:
            attachments[f"probes/{safe_name(name)}.npz"] = outcome.arrays
            frame = pd.DataFrame({"id": features.ids[roles.test], **outcome.images})
            attachments[f"scores/{safe_name(name)}.parquet"] = frame
    return ResultTable(rows_to_frame(rows), {"format": 1, "analysis": "probe"}, attachments)


def _probe_all(
    data: TapData, targets: Mapping[str, Target], protocol: Protocol, equal_d: int | None
) -> dict[str, Outcome]:
    kinds: dict[str, dict[str, Target]] = {"class": {}, "multilabel": {}, "continuous": {}}
    for name, target in targets.items():
        kinds[target.kind][name] = target
    outcomes = _probe_classes(data, kinds["class"], protocol, equal_d) if kinds["class"] else {}
    outcomes |= {name: probe_labels(data, name, one, protocol) for name, one in kinds["multilabel"].items()}
    if kinds["continuous"]:
        labels = next((one.values for one in kinds["class"].values()), None)
        outcomes |= probe_values(data, kinds["continuous"], protocol, labels)
    return {name: outcomes[name] for name in targets}


def _probe_classes(
    data: TapData, targets: Mapping[str, Target], protocol: Protocol, equal_d: int | None
) -> dict[str, Outcome]:
    """Probe class targets; principal axes and neighbours are found once for all of them."""
    # A tap with dead channels may have fewer than the common width left; its row says so.
    width = 0 if equal_d is None else min(equal_d, *data.choose.fit.shape)
    reduced = _reduced(data, width) if width else None
    near = find_neighbours(data, protocol) if protocol.neighbours else None
    outcomes = {}
    for name, target in targets.items():
        full = probe_classes(data, name, target, protocol)
        rows, images = list(full.rows), dict(full.images)
        if reduced is not None:
            found = probe_classes(reduced, name, target, protocol)
            row = next(row for row in found.rows if row["metric"] == "accuracy")
            rows.append(row | {"metric": "accuracy_equal_d", "d": width})
            images["accuracy_equal_d"] = found.images["accuracy"]
        if near is not None:
            row, images["knn_accuracy"] = neighbour_rows(data, name, target, protocol, near)
            rows.append(row)
        rows += few_shot_rows(data, name, target, protocol)
        rows += description_rows(data, name, target, protocol)
        outcomes[name] = Outcome(rows, full.arrays, images)
    return outcomes


def _reduced(data: TapData, width: int) -> TapData:
    """Project on the leading principal components of the training rows."""
    train, val = data.choose.fit, data.choose.score
    mean, axes = principal_axes(train, width)
    stage = data.choose
    moved = stage.move(data.features.matrix(data.roles.test))

    def project(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        projected = empty_rows((len(rows), width), np.float32)
        for part in row_blocks(*rows.shape):
            projected[part] = (rows[part] - mean) @ axes
        return projected

    return TapData.of_matrices(data.features, data.roles, *(project(one) for one in (train, val, moved)))


def _dead(name: str, target: Target, roles: Roles) -> Outcome:
    status = "dead at initialisation: every feature is constant over the training images"
    return Outcome(
        [{"metric": HEADLINE[target.kind], "status": status, "params": {"n_train": len(roles.fitting)}}]
    )
