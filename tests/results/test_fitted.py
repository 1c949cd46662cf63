"""Fitted probes: the class, the folded weights and the stored arrays say the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probekit.errors import InputError
from probekit.results.fitted import Probe, read_arrays


def make_probe(seed=0, d_raw=6, k=3, kind="class"):
    rng = np.random.default_rng(seed)
    kept = rng.random(d_raw) < 0.7
    kept[0] = True
    d = int(kept.sum())
    return Probe(
        weights=rng.normal(size=(d, k)),
        intercept=rng.normal(size=k),
        mean=rng.normal(size=d) * 10,
        scale=rng.uniform(0.1, 5, d),
        kept=kept,
        classes=tuple(f"Klasse ü{i}" for i in range(k)),
        kind=kind,
        tap="layer1.0@1|gap",
        penalty=0.03,
        target="art",
    )


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(2, 5),
    st.sampled_from(["class", "multilabel", "continuous"]),
)
def test_predicts_alike_from_the_class_the_raw_weights_and_the_arrays(seed, d_raw, k, kind):
    probe = make_probe(seed, d_raw, k, kind)
    features = np.random.default_rng(seed + 1).normal(size=(7, d_raw)) * 5
    raw, intercept = probe.raw_weights()
    assert raw.shape == (d_raw, k)
    assert not raw[~probe.kept].any()
    np.testing.assert_allclose(features @ raw + intercept, probe.scores(features), atol=1e-8)
    again = Probe.from_arrays(probe.to_arrays())
    assert np.array_equal(again.scores(features), probe.scores(features))
    assert np.array_equal(again.predict(features), probe.predict(features))
    assert again.predict(features).dtype == {"class": np.int64, "multilabel": bool, "continuous": float}[kind]


def test_agrees_with_a_fitted_scikit_learn_pipeline():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(60, 4)) * [1, 10, 0.1, 3] + 5
    labels = rng.integers(0, 3, 60)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(features, labels)
    scaler, linear = model[0], model[1]
    probe = Probe(
        weights=linear.coef_.T, intercept=linear.intercept_, mean=scaler.mean_, scale=scaler.scale_,
        kept=np.ones(4, bool), classes=("a", "b", "c"), kind="class", tap="t", penalty=1.0, target="y",
    )  # fmt: skip
    np.testing.assert_allclose(probe.probabilities(features), model.predict_proba(features), atol=1e-12)
    assert np.array_equal(probe.predict(features), model.predict(features))


def test_probabilities_follow_scipy_and_do_not_overflow():
    features = np.random.default_rng(1).normal(size=(5, 6)) * 1e4
    one = make_probe(kind="class")
    np.testing.assert_allclose(one.probabilities(features), softmax(one.scores(features), axis=1), atol=1e-12)
    many = make_probe(kind="multilabel")
    np.testing.assert_allclose(many.probabilities(features), expit(many.scores(features)), atol=1e-12)
    with pytest.raises(InputError, match="Use `scores`"):
        make_probe(kind="continuous").probabilities(features)


def test_dropped_columns_do_not_matter():
    probe = make_probe(seed=5, d_raw=8)
    features = np.random.default_rng(0).normal(size=(4, 8))
    other = features.copy()
    other[:, ~probe.kept] = 1e9
    assert (~probe.kept).any()
    assert np.array_equal(probe.scores(features), probe.scores(other))


def test_saved_probes_open_without_pickle_and_have_equal_bytes(tmp_path):
    probe = make_probe()
    probe.save(tmp_path / "a.npz")
    probe.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    again = Probe.load(tmp_path / "a.npz")
    assert (again.classes, again.kind, again.tap, again.penalty, again.target) == (
        probe.classes, probe.kind, probe.tap, probe.penalty, probe.target,
    )  # fmt: skip
    assert all(array.dtype != object for array in read_arrays(tmp_path / "a.npz").values())


def test_damaged_foreign_and_newer_files_are_refused(tmp_path):
    probe = make_probe()
    probe.save(tmp_path / "a.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "objects.npz", weights=np.array([{}], dtype=object))
    for name in ("half", "objects", "absent"):
        with pytest.raises(InputError, match=name):
            Probe.load(tmp_path / f"{name}.npz")
    with pytest.raises(InputError, match="without"):
        Probe.from_arrays({"weights": np.zeros(2)})
    with pytest.raises(InputError, match="format 2"):
        Probe.from_arrays({**probe.to_arrays(), "format": np.array(2)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": np.zeros(99)}, "mean of shape"),
        ({"scale": "zero"}, "positive scales"),
        ({"weights": "nan"}, "finite weights"),
        ({"kind": "ordinal"}, "a kind among"),
        ({"classes": ("a",)}, "weights of shape"),
    ],
)
def test_probes_that_cannot_be_are_refused(change, words):
    probe = make_probe()
    arrays = {name: getattr(probe, name) for name in probe.__dataclass_fields__}
    change = {
        key: {"zero": probe.scale * 0, "nan": probe.weights * np.nan}.get(value, value)
        if isinstance(value, str)
        else value
        for key, value in change.items()
    }
    with pytest.raises(InputError, match=words):
        Probe(**{**arrays, **change})


def test_mean_and_scale_of_all_columns_are_cut_to_the_kept_ones():
    probe = make_probe(seed=5, d_raw=8)
    mean, scale = np.full(8, 1e9), np.zeros(8)
    mean[probe.kept], scale[probe.kept] = probe.mean, probe.scale
    arrays = {name: getattr(probe, name) for name in probe.__dataclass_fields__}
    features = np.random.default_rng(0).normal(size=(4, 8))
    again = Probe(**{**arrays, "mean": mean, "scale": scale})
    assert np.array_equal(again.scores(features), probe.scores(features))


def test_features_of_another_tap_are_refused_by_shape():
    with pytest.raises(InputError, match=r"\(N, 6\).*layer1.0@1"):
        make_probe().scores(np.zeros((2, 5)))


def test_the_arrays_of_a_probe_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        make_probe().weights[0, 0] = 1.0
