"""What features tell of a factor inside a class: pose, colour or place of images of the same class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.data.targets import Target
from probekit.features.features import Features
from probekit.probes.protocol import Protocol, Roles, TapData
from probekit.probes.ridge import probe_values

METRIC = "within_class_r2"
# Residuals within this share of the values are rounding.
_ROUNDING = 1e-6


def within_class_rows(
    features: Features,
    labels: NDArray[np.int64],
    factors: Mapping[str, Target],
    roles: Roles,
    protocol: Protocol,
) -> list[dict[str, Any]]:
    """Score ridge probes of factors after features and factors lost what their class says of them.

    The class means of train, val and test are taken away, each from the rows of its own split, so that
    classes may differ between splits, as persons do. What is left of R² is information inside classes that a
    linear map can read; under global average pooling a lost position is the readout's doing.

    Args:
        features: Axes ``N D``.
        labels: (N,) classes.
        factors: Name → continuous target.
        roles: Rows of the splits.
        protocol: Penalties, permutations and draws.

    Returns:
        One row a factor; the null permutes the factor within its class, in the rows that are fitted.
    """
    parts = [roles.train, roles.val, roles.test]
    left = [within_classes(features.matrix(rows), labels[rows]) for rows in parts]
    data = TapData.of_matrices(features, roles, *(one.astype(np.float32) for one in left))
    if data.dead:
        why = "no feature varies inside a class"
        return [{"metric": METRIC, "target": name, "status": why} for name in factors]
    residuals: dict[str, Target] = {}
    rows: list[dict[str, Any]] = []
    for name, factor in factors.items():
        values = np.array(factor.values)
        for role in parts:
            values[role] = within_classes(factor.values[role], labels[role])
        # A factor that follows from the class has nothing inside it, nor has a split of one image a class.
        least = min(float(np.abs(values[role]).max(initial=0)) for role in parts)
        if least <= _ROUNDING * np.abs(factor.values).max():
            why = "the factor does not vary inside a class, in one of the splits"
            rows.append({"metric": METRIC, "target": name, "status": why})
        else:
            residuals[name] = Target(values, "continuous", factor.classes)
    if residuals:
        for name, outcome in probe_values(data, residuals, protocol, labels).items():
            (row,) = outcome.rows
            rows.append({**row, "metric": METRIC, "target": name, "n": len(roles.test)})
    return rows


def within_classes(values: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (N, K) values less the means of their classes.

    Examples:
        >>> within_classes(np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 1])).ravel().tolist()
        [-1.0, 1.0, 0.0]
    """
    _, place = np.unique(labels, return_inverse=True)
    counts = np.bincount(place)
    rows = values.astype(np.float64)
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, place, rows)
    return np.asarray(rows - (sums / counts[:, None])[place])
