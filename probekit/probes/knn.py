"""The nearest-neighbour score: what a tap says without any fitting."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.data.targets import Target
from probekit.functional.neighbours import nearest_neighbours, vote
from probekit.probes.controls import null_columns, permute_rows
from probekit.probes.protocol import Protocol, TapData
from probekit.probes.scoring import accuracy_row


def find_neighbours(data: TapData, protocol: Protocol) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return (n_test, k) places in train and val, and similarities: what every target's votes begin with."""
    gallery, queries = data.features.matrix(data.roles.fitting), data.features.matrix(data.roles.test)
    return nearest_neighbours(gallery, queries, k=min(protocol.neighbours, len(gallery)))


def neighbour_rows(
    data: TapData,
    name: str,
    target: Target,
    protocol: Protocol,
    near: tuple[NDArray[np.int64], NDArray[np.float32]],
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Score weighted votes of the k nearest training images by cosine similarity, weight exp(similarity/T).

    The gallery is train and val, the queries are test; features are compared as they are read, neither
    centred nor scaled (Wu et al. 2018, section 3.4; Caron et al. 2021 use k = 20, T = 0.07). The null
    permutes the gallery's labels.

    Args:
        data: One tap's features.
        name: Name of the target.
        target: Its classes.
        protocol: Shared settings.
        near: What ``find_neighbours`` found.

    Returns:
        One row, and (n_test,) hits.
    """
    roles = data.roles
    labels, truth = target.values[roles.fitting], target.values[roles.test]
    places, similarities = near

    def hits(shown: NDArray[np.int64]) -> NDArray[np.float64]:
        scores = vote(
            shown[places], similarities, n_classes=target.n_classes, temperature=protocol.temperature
        )
        return np.asarray(scores.argmax(axis=1) == truth, np.float64)

    found = hits(labels)
    orders = permute_rows(len(labels), protocol.permutations, seed=protocol.seed, name=name)
    row = accuracy_row("knn_accuracy", found, protocol, name)
    row |= null_columns(np.array([hits(labels[order]).mean() for order in orders]))
    row["params"] = {"k": places.shape[1], "temperature": protocol.temperature, "n_train": len(labels)}
    return row, found
