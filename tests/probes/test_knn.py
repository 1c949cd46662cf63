"""The nearest-neighbour score against scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from probekit.data.targets import Target
from probekit.probes.knn import find_neighbours, neighbour_rows
from tests.probes.conftest import QUICK, gaussians, tap_data


def test_votes_are_those_of_scikit_learn():
    values, labels = gaussians(distance=1.5)
    data = tap_data(values)
    target = Target(labels, "class", ("a", "b", "c"))
    row, hits = neighbour_rows(data, "class", target, QUICK, find_neighbours(data, QUICK))
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)

    def weight(distances):
        return np.exp((1 - distances) / QUICK.temperature)

    model = KNeighborsClassifier(5, metric="cosine", weights=weight)
    model.fit(unit[data.roles.fitting], labels[data.roles.fitting])
    expected = model.predict(unit[data.roles.test]) == labels[data.roles.test]
    assert (hits == expected).mean() > 0.99  # ties of float32 similarities may fall otherwise
    assert row["value"] == hits.mean()
    assert row["params"] == {"k": 5, "temperature": 0.07, "n_train": len(data.roles.fitting)}
    assert row["null_high"] < row["ci_low"]


def test_k_is_no_larger_than_the_gallery():
    values, labels = gaussians(n=48)
    target = Target(labels, "class", ("a", "b", "c"))
    data, protocol = tap_data(values), replace(QUICK, neighbours=1000)
    row, _ = neighbour_rows(data, "class", target, protocol, find_neighbours(data, protocol))
    assert row["params"]["k"] == 30
