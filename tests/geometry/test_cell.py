"""One tap's geometry: planted features, permuted labels, what is left empty and why."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from probekit.data.targets import Target
from probekit.features.features import DEAD
from probekit.functional.class_geometry import Classes, intraclass_correlation
from probekit.functional.moments import Moments
from probekit.geometry.cell import GeometrySettings, geometry_of_tap
from tests.probes.conftest import features_of, gaussians, roles_of

QUICK = GeometrySettings(permutations=4)


def measured(values, labels, *, settings=QUICK, roles=True, names=None):
    names = names or tuple(str(c) for c in range(int(labels.max()) + 1))
    target = Target(labels, "class", names)
    table = geometry_of_tap(
        features_of(values), name="class", target=target, roles=roles_of(len(values)) if roles else None,
        split="unknown", settings=settings,
    )  # fmt: skip
    return table.frame.set_index("metric")


@pytest.fixture(scope="module")
def signal():
    values, labels = gaussians(n=480, d=12, classes=6, distance=4.0)
    return values + 3, labels, measured(values + 3, labels)


def test_every_row_has_its_value_and_says_what_it_is_of(signal):
    values, labels, rows = signal
    assert (rows["status"] == "ok").sum() == len(rows) - 1
    assert "eigenvalues" in rows.loc["alpha_req", "status"]
    assert rows.index.is_unique
    classes = Classes.of(Moments.of(values, labels, n_classes=6))
    assert rows.loc["icc", "value"] == pytest.approx(intraclass_correlation(classes).value)
    assert rows.loc["icc", "ci_kind"] == "jackknife,classes"
    assert rows.loc["ncm_accuracy", "ci_kind"] == "bootstrap,test units"
    assert rows.loc["ncm_accuracy", "n"] == 180
    assert rows.loc["effective_rank", "target"] == ""
    assert json.loads(rows.loc["directional_cdnv", "params"])["pairs"] == 15
    expected = silhouette_score(values.astype(float), labels)
    assert rows.loc["silhouette", "value"] == pytest.approx(expected, abs=1e-6)


def test_class_signal_stands_out_of_its_null(signal):
    _, _, rows = signal
    for metric in ("icc", "omega_squared", "class_separation", "recall_at_1", "map_at_r", "logme", "h_score"):
        assert rows.loc[metric, "value"] > rows.loc[metric, "null_high"], metric
    for metric in ("vci", "nc1"):
        assert rows.loc[metric, "value"] < rows.loc[metric, "null_low"], metric
    assert rows.loc["icc", "null"] == pytest.approx(0, abs=0.02)
    assert rows.loc["nc4", "value"] > 0.9
    assert rows.loc["nc3", "value"] < 1
    assert rows.loc["directional_cdnv", "value"] < rows.loc["cdnv", "value"]


def test_without_class_signal_ratios_are_empty():
    values, labels = gaussians(n=480, d=12, classes=6, distance=0.0)
    rows = measured(values, labels)
    for metric in ("within_between", "cdnv", "directional_cdnv"):
        assert np.isnan(rows.loc[metric, "value"])
        assert "within noise of 0" in rows.loc[metric, "status"]
    assert rows.loc["icc", "ci_low"] < 0 < rows.loc["icc", "ci_high"]
    assert np.isfinite(rows.loc["effective_rank", "value"])


def test_one_image_a_class_leaves_class_measures_empty():
    values, _ = gaussians(n=64, d=5)
    rows = measured(
        values, np.arange(64), settings=GeometrySettings(permutations=2, probe=False), roles=False
    )
    empty = rows[rows["value"].isna()]
    assert {"icc", "cdnv", "cosine_gap", "map_at_r", "silhouette", "vci", "nc1", "logme"} <= set(empty.index)
    assert (empty["status"] != "ok").all()
    assert "one image a class" in rows.loc["icc", "status"]
    for metric in ("effective_rank", "participation_ratio", "rankme", "two_nn", "uniformity"):
        assert np.isfinite(rows.loc[metric, "value"])


def test_one_class_and_constant_features_say_so():
    values, labels = gaussians(n=64, d=5)
    settings = GeometrySettings(permutations=2, probe=False)
    rows = measured(values, np.zeros_like(labels), settings=settings, names=("0", "1"))
    assert "one class only" in rows.loc["icc", "status"]
    dead = measured(np.ones_like(values), labels)
    assert list(dead["status"]) == [DEAD]


def test_a_class_without_images_changes_nothing():
    values, labels = gaussians(n=200, d=5, classes=4)
    one = measured(values, labels, settings=GeometrySettings(permutations=2, probe=False))
    names = tuple("abcde")
    other = measured(values, labels, settings=GeometrySettings(permutations=2, probe=False), names=names)
    for metric in ("icc", "cdnv", "vci", "nc1", "logme", "map_at_r"):
        assert one.loc[metric, "value"] == pytest.approx(other.loc[metric, "value"]), metric


def test_one_positive_feature_is_constant_at_unit_length():
    stream = np.random.default_rng(0)
    labels = np.arange(120) % 4
    values = (labels + 1 + 0.2 * stream.random(120)).astype(np.float32)[:, None]
    rows = measured(values, labels, settings=GeometrySettings(permutations=2, probe=False))
    assert rows.loc["icc", "value"] > 0.9
    assert rows.loc["icc_l2", "status"] == "every feature is constant at unit length"
    assert rows.loc["cosine_gap_centred", "value"] > 0.5
