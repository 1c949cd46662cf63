"""Factors inside classes: planted information, the null, splits with classes of their own."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV

from probekit.data.targets import Target
from probekit.geometry.factors import within_class_rows, within_classes
from probekit.probes.protocol import Protocol
from tests.probes.conftest import features_of, roles_of

QUICK = Protocol(permutations=5, bootstrap_draws=200)


def planted(n: int = 800, seed: int = 0):
    """Features that hold a class, one factor in full and half of another; a third follows from the class."""
    stream = np.random.default_rng(seed)
    labels = stream.integers(0, 5, n)
    full, half, lost = stream.normal(size=(3, n)) + labels
    features = np.stack(
        [labels * 3.0, full, half + stream.normal(size=n), *stream.normal(size=(3, n))], axis=1
    ).astype(np.float32)
    factors = {"full": full, "half": half, "lost": lost, "class_bound": labels * 2.0}
    return features, labels, {k: Target(v[:, None], "continuous", (k,)) for k, v in factors.items()}


def measured(values, labels, factors):
    rows = within_class_rows(features_of(values), labels, factors, roles_of(len(values)), QUICK)
    return {row["target"]: row for row in rows}


def test_what_is_known_inside_classes_is_found():
    rows = measured(*planted())
    assert rows["full"]["value"] == pytest.approx(1, abs=0.02)
    assert rows["half"]["value"] == pytest.approx(0.5, abs=0.08)
    # The class says a lot of this factor, the features nothing more.
    assert rows["lost"]["value"] == pytest.approx(0, abs=0.03)
    assert rows["lost"]["null_low"] - 0.03 < rows["lost"]["value"]
    assert rows["half"]["value"] > rows["half"]["null_high"] + 0.3
    assert "within class" in rows["half"]["null_kind"]
    assert "does not vary inside a class" in rows["class_bound"]["status"]


def test_value_is_that_of_scikit_learn():
    values, labels, factors = planted()
    roles = roles_of(len(values))
    half = factors["half"].values
    x, y = (within_classes(one[roles.fitting], labels[roles.fitting]) for one in (values, half))
    scale = x.std(0).clip(1e-9)
    model = RidgeCV(alphas=np.geomspace(1e-2, 1e3, 11)).fit(x / scale, y)
    x, y = (within_classes(one[roles.test], labels[roles.test]) for one in (values, half))
    expected = model.score(x / scale, y)
    assert measured(values, labels, factors)["half"]["value"] == pytest.approx(expected, abs=0.01)


def test_splits_may_have_classes_of_their_own():
    values, labels, factors = planted()
    roles = roles_of(len(values))
    persons = labels.copy()
    persons[roles.test] += 5
    rows = measured(values, persons, {"full": factors["full"]})
    assert rows["full"]["value"] == pytest.approx(1, abs=0.02)


def test_nothing_left_inside_a_class_says_so():
    _, labels, factors = planted()
    rows = measured(np.stack([labels, 2 * labels], axis=1).astype(np.float32), labels, factors)
    assert rows["full"]["status"] == "no feature varies inside a class"
