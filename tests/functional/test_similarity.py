"""Similarity of layers: kernels, peers, invariances, nulls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.cross_decomposition import CCA

from probekit.errors import InputError
from probekit.functional import similarity as s
from probekit.functional.moments import CrossMoments

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 6)) @ RNG.normal(size=(6, 6)) + 2
Y = 0.6 * X @ RNG.normal(size=(6, 9)) + 2 * RNG.normal(size=(300, 9)) - 1


def three(x, y):
    return CrossMoments.of(x, y), CrossMoments.of(x, x), CrossMoments.of(y, y)


MEASURES = {
    "cka": lambda x, y: s.linear_cka(*three(x, y)),
    "cka_debiased": lambda x, y: s.debiased_cka(*three(x, y)),
    "procrustes": lambda x, y: s.procrustes_angle(*three(x, y)),
    "svcca": lambda x, y: s.canonical_correlations(*three(x, y)).svcca,
    "pwcca": lambda x, y: s.canonical_correlations(*three(x, y)).pwcca,
    "rsa": s.representational_similarity,
    "mutual_knn": s.mutual_neighbours,
}
MAPS = {
    "rotation": lambda x: x @ np.linalg.qr(np.random.default_rng(1).normal(size=(x.shape[1],) * 2))[0],
    "scaling": lambda x: 3.7 * x,
    "shift": lambda x: x + np.arange(x.shape[1]),
    "permutation": lambda x: x[:, ::-1],
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("change", MAPS)
def test_declared_invariances_hold_and_others_do_not(measure: str, change: str):
    value, moved = MEASURES[measure](X, Y), MEASURES[measure](MAPS[change](X), Y)
    if change in s.INVARIANCES[measure]:
        assert moved == pytest.approx(value, abs=1e-9)
    else:
        assert moved != pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("measure", MEASURES)
def test_order_of_images_does_not_matter_but_their_pairing_does(measure: str):
    order = np.random.default_rng(2).permutation(len(X))
    value = MEASURES[measure](X, Y)
    assert MEASURES[measure](X[order], Y[order]) == pytest.approx(value, abs=1e-9)
    assert abs(MEASURES[measure](X[order], Y) - value) > 0.05


def gram_hsic(x, y):
    """Song et al.'s estimator from N × N kernels."""
    k, l_ = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l_, 0)
    n = len(x)
    kl = k @ l_
    return (np.trace(kl) + k.sum() * l_.sum() / ((n - 1) * (n - 2)) - 2 * kl.sum() / (n - 2)) / (n * (n - 3))


def test_streaming_hsic_is_that_of_kernels():
    assert s.unbiased_hsic(CrossMoments.of(X, Y)) == pytest.approx(gram_hsic(X, Y), rel=1e-10)
    parts = [CrossMoments.of(X[i : i + 60], Y[i : i + 60]) for i in range(0, 300, 60)]
    merged = parts[0] + parts[1] + parts[2] + parts[3] + parts[4]
    assert s.unbiased_hsic(merged) == pytest.approx(gram_hsic(X, Y), rel=1e-9)


def test_cka_against_ckatorch():
    ckatorch = pytest.importorskip("ckatorch.core")
    x, y = (torch.from_numpy(one) for one in (X, Y))
    biased = ckatorch.cka_base(x, y, kernel="linear", unbiased=False, method="fro_norm").item()
    assert MEASURES["cka"](X, Y) == pytest.approx(biased, rel=1e-6)
    # Only one of its two ways is unbiased: the other returns the biased value whatever it is asked.
    claims = {
        way: ckatorch.cka_base(x, y, kernel="linear", unbiased=True, method=way).item()
        for way in ("fro_norm", "hsic")
    }
    own = MEASURES["cka_debiased"](X, Y)
    assert min(abs(one - own) for one in claims.values()) < 1e-6
    assert max(abs(one - own) for one in claims.values()) > 1e-3


def test_nulls():
    stream = np.random.default_rng(3)
    biased, debiased = [], []
    for _ in range(60):
        x, y = stream.normal(size=(200, 128)), stream.normal(size=(200, 128))
        biased.append(MEASURES["cka"](x, y))
        debiased.append(MEASURES["cka_debiased"](x, y))
    expected = s.linear_cka_null(CrossMoments.of(x, x), CrossMoments.of(y, y))
    assert np.mean(biased) == pytest.approx(expected, abs=0.005)
    assert expected == pytest.approx(128 / (200 + 128), abs=0.01)
    assert np.mean(debiased) == pytest.approx(0, abs=0.01)
    # Exact over permutations, not only for normal features.
    drawn = [MEASURES["cka"](X, Y[stream.permutation(300)]) for _ in range(400)]
    exact = s.linear_cka_null(CrossMoments.of(X, X), CrossMoments.of(Y, Y))
    assert np.mean(drawn) == pytest.approx(exact, rel=0.1)
    knn = [s.mutual_neighbours(X, Y[stream.permutation(300)]) for _ in range(30)]
    assert np.mean(knn) == pytest.approx(10 / 299, abs=0.005)


def test_minibatches_average_before_they_divide():
    whole = MEASURES["cka_debiased"](X, Y)
    assert s.minibatch_cka(X, Y, 300) == pytest.approx(whole)
    assert s.minibatch_cka(X, Y, 20) == pytest.approx(whole, abs=0.06)


def test_procrustes_is_the_best_rotation():
    from scipy.linalg import orthogonal_procrustes

    x, y = X - X.mean(0), (Y - Y.mean(0))[:, :6]
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    best = orthogonal_procrustes(x, y)[1]
    assert s.procrustes_angle(*three(x, y)) == pytest.approx(np.arccos(best))
    assert MEASURES["procrustes"](X, MAPS["rotation"](X)) == pytest.approx(0, abs=1e-6)


def test_canonical_correlations_against_scikit_learn():
    found = s.canonical_correlations(*three(X, Y), kept=1.0)
    model = CCA(n_components=6, max_iter=5000, tol=1e-12).fit(X, Y)
    a, b = model.transform(X, Y)
    expected = np.array([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(6)])
    np.testing.assert_allclose(found.correlations, expected, atol=1e-4)
    variates, features = (a - a.mean(0)) / np.linalg.norm(a - a.mean(0), axis=0), X - X.mean(0)
    np.testing.assert_allclose(found.weights, np.abs(variates.T @ features).sum(1), rtol=1e-3)
    assert s.canonical_correlations(*three(X, Y), kept=0.8).dimensions < found.dimensions
    doubled = np.concatenate([X, X], axis=1)
    assert MEASURES["svcca"](doubled, X) == pytest.approx(1)


def test_rsa_against_scipy():
    expected = spearmanr(pdist(X, "correlation"), pdist(Y, "correlation")).statistic
    assert s.representational_similarity(X, Y) == pytest.approx(expected)


def test_one_direction_can_decide_cka():
    stream = np.random.default_rng(4)
    shared = stream.normal(size=(400, 1)) * 30
    x, y = (np.concatenate([shared, stream.normal(size=(400, 20))], axis=1) for _ in range(2))
    assert MEASURES["cka_debiased"](x, y) > 0.99
    rest = [s.without_leading_component(one) for one in (x, y)]
    assert abs(MEASURES["cka_debiased"](*rest)) < 0.05


def test_says_what_is_wrong():
    with pytest.raises(InputError, match="at least 4 images"):
        s.unbiased_hsic(CrossMoments.of(X[:3], Y[:3]))
    with pytest.raises(InputError, match="more than 10 images"):
        s.mutual_neighbours(X[:10], Y[:10])
    with pytest.raises(InputError, match="constant"):
        s.canonical_correlations(*three(np.ones((9, 2)), Y[:9]))
    with pytest.raises(InputError, match="smaller batches"):
        s.minibatch_cka(X[:9], Y[:9], 10)
    assert np.isnan(s.linear_cka(*three(np.ones((9, 2)), Y[:9])))
