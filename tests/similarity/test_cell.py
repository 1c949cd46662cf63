"""One layer against others: known relations, intervals, nulls, what is left empty."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probekit.functional import similarity as measures
from probekit.functional.moments import CrossMoments
from probekit.functional.similarity import debiased_cka, linear_cka
from probekit.similarity import cell, side
from probekit.similarity.cell import _PAIRS, Layer, similarity_of_tap
from probekit.similarity.side import _SIDES, SimilaritySettings
from tests.probes.conftest import features_of

QUICK = SimilaritySettings(pairwise=150, permutations=4, groups=10)
RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(400, 6)).astype(np.float32)
TURNED = (BASE @ np.linalg.qr(RNG.normal(size=(6, 6)))[0] * 3 + 5).astype(np.float32)
NOISY = (BASE + RNG.normal(size=(400, 6))).astype(np.float32)
OTHER = RNG.normal(size=(400, 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def _fresh():
    _SIDES.clear()
    _PAIRS.clear()


def layer(name: str, values) -> Layer:
    features = features_of(values)
    object.__setattr__(features, "provenance", {"key": name})
    return Layer("m", name, features)


def compared(values, *others, settings=QUICK):
    layers = [layer(f"layer{place}", one) for place, one in enumerate(others)]
    table = similarity_of_tap(layer("own", values).features, others=layers, settings=settings)
    return table.frame.set_index(["target", "metric"])


def test_turned_features_are_the_same_and_unrelated_ones_are_not():
    rows = compared(BASE, TURNED, NOISY, OTHER)
    for metric in ("cka", "cka_debiased", "cka_debiased_rest", "svcca", "pwcca", "mutual_knn"):
        same, near, far = (rows.loc[(f"m layer{k}", metric), "value"] for k in range(3))
        assert same == pytest.approx(1, abs=1e-6), metric
        assert same > near > far, metric
    assert rows.loc[("m layer0", "procrustes"), "value"] == pytest.approx(0, abs=1e-3)
    far = rows.loc["m layer2"]
    assert far.loc["cka_debiased", "ci_low"] < 0.02
    for metric in ("procrustes", "svcca", "pwcca", "rsa"):
        low, high = far.loc[metric, ["null_low", "null_high"]]
        assert low - 0.15 < far.loc[metric, "value"] < high + 0.15, metric
    assert far.loc["mutual_knn", "null"] == pytest.approx(10 / 149)


def test_values_and_intervals_are_those_of_the_functions():
    rows = compared(BASE, NOISY).loc["m layer0"]
    three = [CrossMoments.of(*pair) for pair in ((BASE, NOISY), (BASE, BASE), (NOISY, NOISY))]
    assert rows.loc["cka", "value"] == pytest.approx(linear_cka(*three), abs=1e-6)
    assert rows.loc["cka_debiased", "value"] == pytest.approx(debiased_cka(*three), abs=1e-6)
    assert rows.loc["cka_debiased", "ci_kind"] == "jackknife,groups of images"
    # RSA depends on where the features' zero is: it is at their means.
    settings = SimilaritySettings(pairwise=400, permutations=0)
    _SIDES.clear()
    _PAIRS.clear()
    all_images = compared(BASE + np.arange(6), NOISY, settings=settings).loc["m layer0"]
    centred = [one - one.mean(axis=0) for one in (BASE.astype(float), NOISY.astype(float))]
    assert all_images.loc["rsa", "value"] == pytest.approx(measures.representational_similarity(*centred))
    assert all_images.loc["mutual_knn", "value"] == pytest.approx(measures.mutual_neighbours(*centred))
    spread = []
    for seed in range(40):
        stream = np.random.default_rng(seed)
        x = stream.normal(size=(400, 6))
        y = x + stream.normal(size=(400, 6))
        spread.append(debiased_cka(*(CrossMoments.of(*pair) for pair in ((x, y), (x, x), (y, y)))))
    width = rows.loc["cka_debiased", "ci_high"] - rows.loc["cka_debiased", "ci_low"]
    assert 2 < width / np.std(spread) < 7


def test_one_way_measures_are_those_of_the_layer_they_stand_at():
    three = [CrossMoments.of(*pair) for pair in ((BASE, NOISY), (BASE, BASE), (NOISY, NOISY))]
    back = [CrossMoments.of(*pair) for pair in ((NOISY, BASE), (NOISY, NOISY), (BASE, BASE))]
    # Under these names either layer comes first in the alphabet once.
    for name in ("a", "z"):
        _SIDES.clear()
        _PAIRS.clear()
        other = layer("m", NOISY)
        own = layer(name, BASE)
        forth = similarity_of_tap(own.features, others=[other], settings=QUICK).frame.set_index("metric")
        found = similarity_of_tap(other.features, others=[own], settings=QUICK).frame.set_index("metric")
        assert len(_PAIRS) == 1
        assert forth.loc["pwcca", "value"] == pytest.approx(measures.canonical_correlations(*three).pwcca)
        assert found.loc["pwcca", "value"] == pytest.approx(measures.canonical_correlations(*back).pwcca)
        assert forth.loc["svcca", "params"] == forth.loc["pwcca", "params"]
        assert forth.loc["svcca", "value"] == found.loc["svcca", "value"]
        assert forth.loc["procrustes", "value"] == pytest.approx(measures.procrustes_angle(*three), abs=1e-9)


def test_every_measure_has_a_null_that_says_its_kind(monkeypatch):
    rows = compared(BASE, NOISY).loc["m layer0"]
    assert rows["null"].notna().all()
    assert rows.loc["rsa", "null_kind"] == "analytic, images paired anew"
    assert rows.loc["rsa", "null_low"] < 0 < rows.loc["rsa", "null_high"]
    assert rows.loc["procrustes", "null_kind"] == "permuted,4"
    _SIDES.clear()
    _PAIRS.clear()
    monkeypatch.setattr(cell, "_WIDE", 3)
    wide = compared(BASE, NOISY).loc["m layer0"]
    assert wide.loc["procrustes", "null_kind"] == "permuted,2"
    assert wide.loc["procrustes", "null"] == pytest.approx(rows.loc["procrustes", "null"], abs=0.05)


def test_layers_beyond_the_room_for_them_are_read_again(monkeypatch):
    before = compared(BASE, NOISY, OTHER)["value"]
    _SIDES.clear()
    _PAIRS.clear()
    monkeypatch.setattr(side, "_KEPT_BYTES", 1)
    pd.testing.assert_series_equal(compared(BASE, NOISY, OTHER)["value"], before)
    assert len(_SIDES) == 1


def test_too_few_images_a_direction_leave_canonical_correlations_empty():
    wide = RNG.normal(size=(60, 30)).astype(np.float32)
    rows = compared(wide, wide[:, ::-1]).loc["m layer0"]
    assert np.isnan(rows.loc["svcca", "value"])
    assert rows.loc["pwcca", "status"] == "fewer than 10 images a direction"
    assert '"directions":[' in rows.loc["pwcca", "params"].replace(" ", "")
    assert rows.loc["cka", "value"] == pytest.approx(1)


def test_a_constant_layer_says_so():
    rows = compared(BASE, np.ones_like(BASE))
    assert list(rows["status"]) == ["a layer is constant"]
    _SIDES.clear()
    _PAIRS.clear()
    _PAIRS.clear()
    single = compared(BASE, np.concatenate([BASE[:, :1], 0 * BASE[:, 1:]], axis=1)).loc["m layer0"]
    assert single.loc["cka_debiased_rest", "status"] == "a layer has no variance left"
    assert single.loc["cka_debiased", "value"] > 0.1


def test_a_subsample_is_the_same_for_every_layer():
    settings = SimilaritySettings(subsample=100, pairwise=50, permutations=2, groups=5)
    rows = compared(BASE, TURNED, settings=settings).loc["m layer0"]
    assert rows.loc["cka", "n"] == 100
    assert rows.loc["rsa", "n"] == 50
    assert rows.loc["cka", "value"] == pytest.approx(1, abs=1e-6)


def test_features_without_a_key_are_told_apart_by_their_values():
    """What was read of a layer is kept; another layer of the same name and size is another layer."""
    settings = SimilaritySettings(subsample=50, pairwise=30, groups=4, permutations=0, k=3)
    random = np.random.default_rng(0)
    first, other, third = (features_of(random.normal(size=(50, 6)).astype(np.float32)) for _ in range(3))
    values = []
    for one in (first, third):
        layer = Layer("a", "layer1|gap", other)
        rows = similarity_of_tap(one, others=[layer], settings=settings).frame
        values.append(float(rows.set_index("metric").loc["cka", "value"]))
    assert values[0] != values[1]
