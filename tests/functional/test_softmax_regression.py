"""Softmax regression: scikit-learn, closed forms and relations that any optimum obeys."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from probekit.errors import InputError, NonFiniteFeatures
from probekit.functional import (
    certified_fit,
    eigenbasis,
    fit_sigmoid,
    fit_softmax,
    quasi_newton,
    rows,
)
from probekit.functional.softmax_regression import ABSENT_LOGIT

PENALTIES = [10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5]
TIGHT = 1e-9
MULTINOMIAL_CHOLESKY = tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 6)


def objective(x, labels, weights, intercepts, penalty, share=None):
    losses = -log_softmax(x @ weights + intercepts, axis=1)[np.arange(len(x)), labels]
    return np.average(losses, weights=share) + 0.5 * penalty * (weights**2).sum()


def reference(x, labels, penalty, n_classes):
    """scikit-learn's optimum, as (D, C) weights and (C,) intercepts."""
    # For two classes scikit-learn penalises the difference of the two weights: twice their squares.
    inverse = (1 if n_classes > 2 else 2) / (len(x) * penalty)
    # Up to 1.5 its Cholesky solver fitted one class against the rest.
    solver = "newton-cholesky" if n_classes == 2 or MULTINOMIAL_CHOLESKY else "newton-cg"
    fit = LogisticRegression(C=inverse, tol=1e-10, max_iter=10_000, solver=solver).fit(x, labels)
    if n_classes > 2:
        return fit.coef_.T, fit.intercept_
    return np.concatenate([-fit.coef_, fit.coef_]).T / 2, np.array([-1, 1]) * fit.intercept_ / 2


def assert_same_optimum(one, other, *, turn=lambda weights: weights):
    """Both lie within the ball that strong convexity draws around the optimum."""
    for place, penalty in enumerate(one.penalties):
        distance = np.linalg.norm(turn(one.weights[place]) - other.weights[place])
        radii = [np.sqrt(2 * path.gap[place] * path.objective[place] / penalty) for path in (one, other)]
        assert distance <= sum(radii) + 1e-9
    assert one.converged.all()
    assert other.converged.all()
    np.testing.assert_allclose(one.objective, other.objective, rtol=2 * TIGHT)


SHAPES = [(300, 1, 3), (500, 5, 4), (60, 90, 4), (400, 20, 10), (100, 100, 2), (12, 50, 2)]


@pytest.mark.parametrize(("n", "d", "c"), SHAPES)
@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_reaches_the_optimum_of_scikit_learn(planted, monkeypatch, n, d, c, single):
    if single:
        monkeypatch.setattr(certified_fit, "_SMALL", 0)
    x, labels = planted(n, d, c, dtype=np.float32 if single else np.float64)
    path = fit_softmax(x, labels, PENALTIES, n_classes=c)
    assert path.converged.all()
    x = x.astype(np.float64)
    for place, penalty in enumerate(PENALTIES):
        own = objective(x, labels, path.weights[place], path.intercepts[place], penalty)
        least = objective(x, labels, *reference(x, labels, penalty, c), penalty)
        assert own == pytest.approx(path.objective[place], rel=1e-9)
        assert -1e-8 <= (own - least) / least <= path.gap[place] <= 1e-4


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000), n=st.integers(4, 40), d=st.integers(1, 30), c=st.integers(2, 4),
    log_penalty=st.floats(-4, 1), iterations=st.integers(1, 6),
)  # fmt: skip
def test_the_gap_bounds_what_is_left_even_when_stopped_early(planted, seed, n, d, c, log_penalty, iterations):
    x, labels = planted(n, d, c, seed=seed)
    penalty = [10**log_penalty]
    best = fit_softmax(x, labels, penalty, n_classes=c, gap=1e-9)
    early = fit_softmax(x, labels, penalty, n_classes=c, gap=1e-9, max_iterations=iterations)
    assert early.iterations[0] <= iterations
    assert early.converged[0] == (early.gap[0] <= 1e-9)
    # F* lies in [F(1 − gap), F] of the better fit.
    assert early.objective[0] * (1 + 1e-12) >= best.objective[0] * (1 - best.gap[0])
    assert (early.objective[0] - best.objective[0]) / best.objective[0] <= early.gap[0] + 1e-12


def test_gap_is_the_distance_to_the_dual_objective(planted):
    x, labels = planted(80, 6, 3)
    penalty = 0.01
    path = fit_softmax(x, labels, [penalty], n_classes=3, max_iterations=4, gap=1e-9)
    p = softmax(path.logits(x)[0], axis=1)
    # Dual: entropy of p − ‖Xᵀ(p − y)/N‖²/(2·penalty), for p with the class shares of y.
    np.testing.assert_allclose(p.mean(0), np.bincount(labels) / 80, atol=1e-9)
    pull = x.T @ (p - np.eye(3)[labels]) / 80
    dual = -(p * np.log(p)).sum(1).mean() - (pull**2).sum() / (2 * penalty)
    assert path.gap[0] > 1e-6
    assert path.gap[0] == pytest.approx((path.objective[0] - dual) / dual, rel=1e-6)


def test_stopping_early_is_said_and_not_warned(planted):
    x, labels = planted(200, 20, 5)
    path = fit_softmax(x, labels, [10.0, 1e-5], n_classes=5, max_iterations=3)
    assert path.converged.tolist() == [True, False]
    assert path.iterations.tolist()[1] == 3
    assert path.gap[1] > 1e-4


def test_one_feature_of_two_values_against_the_root_of_its_equation():
    # 30 of 40 at +1 are of class 1, 10 of 40 at −1: by symmetry the intercepts are 0.
    x = np.repeat([1.0, 1.0, -1.0, -1.0], [30, 10, 30, 10])[:, None]
    labels = np.repeat([1, 0, 0, 1], [30, 10, 30, 10])
    for penalty in (1.0, 0.1, 1e-4):
        # The weights are (−w, w), the logit difference 2w: slope 2σ(2w) − 1.5 + 2·penalty·w = 0.
        w = brentq(lambda w, penalty=penalty: 2 / (1 + np.exp(-2 * w)) - 1.5 + 2 * penalty * w, -10, 10)
        path = fit_softmax(x, labels, [penalty], n_classes=2, gap=1e-12)
        np.testing.assert_allclose(path.weights[0], [[-w, w]], atol=1e-7)
        np.testing.assert_allclose(path.intercepts[0], 0, atol=1e-7)


def test_a_huge_penalty_leaves_the_class_shares(planted):
    x, labels = planted(300, 8, 4)
    path = fit_softmax(x, labels, [1e6], n_classes=4)
    shares = np.bincount(labels) / 300
    assert np.abs(path.weights).max() < 1e-5
    np.testing.assert_allclose(softmax(path.intercepts[0]), shares, rtol=1e-6)
    entropy = -(shares * np.log(shares)).sum()
    assert path.objective[0] == pytest.approx(entropy, rel=1e-4)


def test_a_vanishing_penalty_on_separable_rows_stays_finite_and_honest(planted):
    x, labels = planted(30, 100, 3)
    path = fit_softmax(x, labels, [1e-8, 1e-12], n_classes=3)
    assert np.isfinite(path.weights).all()
    assert (path.objective > 0).all()
    assert (path.converged == (path.gap <= 1e-4)).all()
    assert (path.logits(x).argmax(2) == labels).all()


def test_two_classes_are_a_sigmoid_at_half_the_penalty(planted):
    x, labels = planted(150, 7, 2)
    two = fit_softmax(x, labels, PENALTIES, n_classes=2, gap=TIGHT)
    one = fit_sigmoid(x, labels, np.array(PENALTIES) / 2, gap=TIGHT)
    np.testing.assert_allclose(one.objective[:, 0], two.objective, rtol=2 * TIGHT)
    np.testing.assert_allclose(one.weights[:, :, 0], two.weights[:, :, 1] - two.weights[:, :, 0], atol=1e-3)


def tight(x, labels, penalties=(1.0, 0.03, 1e-3), c=4, **rest):
    return fit_softmax(x, labels, penalties, n_classes=c, gap=TIGHT, **rest)


def test_every_row_twice_changes_nothing(planted):
    x, labels = planted(90, 12, 4)
    assert_same_optimum(tight(x, labels), tight(np.tile(x, (2, 1)), np.tile(labels, 2)))


def test_features_times_a_and_penalty_times_its_square(planted):
    x, labels = planted(90, 12, 4)
    one, other = tight(x, labels), tight(3 * x, labels, np.array([1.0, 0.03, 1e-3]) * 9)
    np.testing.assert_allclose(one.objective, other.objective, rtol=2 * TIGHT)
    np.testing.assert_allclose(one.weights, 3 * other.weights, atol=2e-4)
    np.testing.assert_allclose(one.intercepts, other.intercepts, atol=2e-4)


def test_permuted_classes_permute_columns(planted):
    x, labels = planted(90, 12, 4)
    order = np.array([2, 0, 3, 1])
    one, other = tight(x, labels), tight(x, np.argsort(order)[labels])
    assert_same_optimum(one, other, turn=lambda weights: weights[:, order])
    np.testing.assert_allclose(one.intercepts[:, order], other.intercepts, atol=1e-3)


def test_shifted_features_move_only_the_intercept(planted):
    x, labels = planted(90, 12, 4)
    one, other = tight(x, labels), tight(x + 5, labels)
    assert_same_optimum(one, other)
    np.testing.assert_allclose(one.logits(x), other.logits(x + 5), atol=2e-3)


def test_rotated_features_rotate_weights(planted):
    x, labels = planted(90, 12, 4)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(12, 12)))[0]
    assert_same_optimum(tight(x, labels), tight(x @ turn, labels), turn=lambda weights: turn.T @ weights)


def test_rows_of_weight_zero_are_as_if_absent(planted):
    x, labels = planted(120, 9, 4)
    mask = np.random.default_rng(1).random(120) < 0.5
    mask[:4] = True
    one, other = tight(x, labels, sample_weight=mask), tight(x[mask], labels[mask])
    assert_same_optimum(one, other)


def test_whole_weights_are_repeated_rows(planted):
    x, labels = planted(60, 9, 4)
    counts = np.random.default_rng(1).integers(0, 4, 60)
    counts[:4] = 1
    assert_same_optimum(
        tight(x, labels, sample_weight=counts), tight(np.repeat(x, counts, 0), np.repeat(labels, counts))
    )


def test_weights_count_only_in_proportion(planted):
    x, labels = planted(60, 9, 4)
    share = np.random.default_rng(1).random(60)
    assert_same_optimum(tight(x, labels, sample_weight=share), tight(x, labels, sample_weight=1e300 * share))


def test_a_labelling_for_each_penalty_is_fitted_as_if_alone(planted):
    x, labels = planted(90, 12, 4)
    stream = np.random.default_rng(2)
    several = np.stack([stream.permutation(labels) for _ in range(3)])
    several[1] = several[1] % 2  # a labelling that lacks two of the classes
    penalties = [0.1, 0.1, 0.01]
    path = tight(x, several, penalties)
    for place, penalty in enumerate(penalties):
        alone = tight(x, several[place], [penalty])
        np.testing.assert_allclose(path.objective[place], alone.objective[0], rtol=2 * TIGHT)
        np.testing.assert_allclose(path.weights[place], alone.weights[0], atol=1e-3)


def test_absent_classes_get_no_weight_and_no_probability(planted):
    x, labels = planted(90, 12, 3)
    spread = np.array([0, 2, 5])[labels]
    with_gaps, without = tight(x, spread, c=7), tight(x, labels, c=3)
    seen, unseen = [0, 2, 5], [1, 3, 4, 6]
    np.testing.assert_allclose(with_gaps.weights[:, :, seen], without.weights, atol=1e-9)
    assert (with_gaps.weights[:, :, unseen] == 0).all()
    assert (with_gaps.intercepts[:, unseen] == ABSENT_LOGIT).all()
    anywhere = 100 * np.random.default_rng(0).normal(size=(50, 12))
    assert softmax(with_gaps.logits(anywhere), axis=2)[:, :, unseen].max() <= np.exp(ABSENT_LOGIT) * 1.0001


def test_weights_and_intercepts_are_centred_over_classes(planted):
    path = tight(*planted(90, 12, 4))
    np.testing.assert_allclose(path.weights.sum(2), 0, atol=1e-10)
    np.testing.assert_allclose(path.intercepts.sum(1), 0, atol=1e-10)


def test_constant_and_repeated_columns(planted):
    x, labels = planted(90, 5, 4)
    wide = np.concatenate([x, x[:, :1], np.full((90, 1), 7.0)], axis=1)
    path = tight(wide, labels)
    np.testing.assert_allclose(path.weights[:, 0], path.weights[:, 5], atol=1e-6)
    np.testing.assert_allclose(path.weights[:, 6], 0, atol=1e-9)


def test_penalties_come_back_in_the_order_given(planted):
    x, labels = planted(90, 5, 4)
    up, down = tight(x, labels, [1e-3, 0.1, 10.0]), tight(x, labels, [10.0, 0.1, 1e-3])
    np.testing.assert_allclose(up.objective, down.objective[::-1], rtol=2 * TIGHT)
    assert (np.diff(up.objective) > 0).all()


def test_small_budgets_of_memory_change_no_number_beyond_the_gap(planted, monkeypatch):
    x, labels = planted(700, 12, 4)
    one = tight(x, labels)
    for module, name in (
        (certified_fit, "_HISTORY_BYTES"),
        (certified_fit, "_LOGIT_BYTES"),
        (eigenbasis, "_BLOCK_BYTES"),
    ):
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setitem(quasi_newton._BLOCK_BYTES, "cpu", 1)
    assert_same_optimum(one, tight(x, labels))


def test_what_single_precision_leaves_open_is_finished_in_double(planted, monkeypatch):
    monkeypatch.setattr(certified_fit, "_SMALL", 0)
    x, labels = planted(200, 12, 4, dtype=np.float32)
    path = fit_softmax(x, labels, [1e-2, 1e-5], n_classes=4, gap=1e-10)
    assert path.converged.all()


def test_the_same_call_gives_the_same_bytes(planted):
    x, labels = planted(90, 12, 4)
    first, second = tight(x, labels), tight(x, labels)
    assert first.weights.tobytes() == second.weights.tobytes()


def test_inputs_are_left_alone_and_may_be_read_only(planted):
    x, labels = planted(60, 5, 3)
    before = x.copy()
    x.flags.writeable = labels.flags.writeable = False
    fit_softmax(x, labels, [0.1], n_classes=3)
    np.testing.assert_array_equal(x, before)


def test_strided_and_half_precision_features(planted):
    x, labels = planted(120, 6, 3)
    path = fit_softmax(x[::2, ::-1].astype(np.float16), labels[::2], [0.1], n_classes=3)
    other = fit_softmax(x[::2, ::-1].astype(np.float16).astype(np.float64), labels[::2], [0.1], n_classes=3)
    np.testing.assert_allclose(path.weights, other.weights, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": np.zeros(10, int)}, "at least two classes"),
        ({"labels": np.arange(10)}, "labels from 0 to 2"),
        ({"labels": np.arange(9) % 3}, "10 labels"),
        ({"labels": np.linspace(0, 1, 10)}, "integers"),
        ({"labels": np.zeros((2, 10), int)}, r"\(1, N\)"),
        ({"penalties": [0.0]}, "positive penalties"),
        ({"penalties": []}, "positive penalties"),
        ({"sample_weight": np.r_[np.ones(1), np.zeros(9)]}, "at least two classes"),
        ({"sample_weight": -np.ones(10)}, "at least 0"),
        ({"sample_weight": np.ones(9)}, "10 sample weights"),
        ({"features": np.zeros((10, 2, 2))}, r"\(N, D\)"),
        ({"gap": 0.0}, "gap between 0 and 1"),
        ({"max_iterations": 0}, "1 iteration"),
    ],
)
def test_says_what_is_wrong(change, said):
    call = {"features": np.eye(10), "labels": np.arange(10) % 3, "penalties": [1.0], "n_classes": 3} | change
    with pytest.raises(InputError, match=said):
        fit_softmax(**call)


def test_names_the_row_that_is_not_finite(planted):
    x, labels = planted(60, 5, 3)
    x[17, 2] = np.nan
    with pytest.raises(NonFiniteFeatures, match="first row 17"):
        fit_softmax(x, labels, [0.1], n_classes=3)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d", "c"), [(3000, 400, 10), (400, 3000, 20), (4000, 64, 300)])
def test_large_problems_in_single_precision(planted, n, d, c):
    x, labels = planted(n, d, c, dtype=np.float32)
    path = fit_softmax(x, labels, [1.0, 1e-2, 1e-4], n_classes=c)
    assert path.converged.all()
    own = objective(x.astype(float), labels, path.weights[2], path.intercepts[2], 1e-4)
    assert own == pytest.approx(path.objective[2], rel=1e-9)


def test_refining_solves_what_is_wanted_and_no_more(planted):
    x, labels = planted(400, 12, 4)
    penalties = [1e-3, 10.0, 1e-1, 1e-4, 1.0]
    whole = fit_softmax(x, labels, penalties, n_classes=4, gap=1e-8)
    shown = []

    def refine(path):
        shown.append(path)
        return steps[min(len(shown), len(steps)) - 1]

    never = np.inf
    steps = [[never, 1e-2, never, never, 1e-2], [1e-2, *[never] * 4], [1e-8, 1e-8, *[never] * 3]]
    some = fit_softmax(x, labels, penalties, n_classes=4, refine=refine)
    assert some.penalties.tolist() == [1e-3, 10.0, 1.0]
    assert np.isinf(shown[0].gap).all()
    assert (shown[1].gap[[1, 4]] <= 1e-2).all()
    assert np.isinf(shown[1].gap[[0, 2, 3]]).all()
    assert some.converged.all()
    assert (some.gap <= [1e-8, 1e-8, 1e-2]).all()
    np.testing.assert_allclose(some.objective[:2], whole.objective[:2], rtol=2e-8)
    # What was solved goes on from there, and a weaker penalty begins where a stronger one ended.
    assert some.iterations[0] < whole.iterations[0] + 10
    assert some.iterations[2] == shown[1].iterations[4]


def test_a_gap_that_cannot_be_reached_is_asked_for_once(planted):
    x, labels = planted(200, 6, 3)
    asked = []

    def refine(path):
        asked.append(path.gap.copy())
        return [1e-12]

    path = fit_softmax(x, labels, [1e-4], n_classes=3, max_iterations=3, refine=refine)
    assert len(asked) == 2
    assert not path.converged[0]
    assert path.iterations[0] == 3


def test_every_fit_has_its_own_gap(planted):
    x, labels = planted(900, 30, 5)
    path = fit_softmax(x, labels, [1e-3] * 3, n_classes=5, gap=[1e-2, 1e-8, 1e-5])
    assert path.converged.all()
    assert (path.gap <= [1e-2, 1e-8, 1e-5]).all()
    assert path.iterations[0] < path.iterations[2] < path.iterations[1]
    with pytest.raises(InputError, match="one gap, or 3"):
        fit_softmax(x, labels, [1.0] * 3, n_classes=5, gap=[1e-2, 1e-3])


def test_memory_mapped_features_give_the_same_answer(planted, tmp_path, monkeypatch):
    x, labels = planted(3000, 40, 5)
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    penalties = [1.0, 1e-2]
    in_memory = fit_softmax(x.astype(np.float32), labels, penalties, n_classes=5, gap=1e-6)
    # Blocks of a few rows, coordinates in a file, float32 in use.
    monkeypatch.setattr(eigenbasis, "_BLOCK_BYTES", 8 * 40 * 100)
    monkeypatch.setattr(rows, "MEMORY_BYTES", 1)
    monkeypatch.setattr(certified_fit, "_SMALL", 1)
    mapped = fit_softmax(np.load(tmp_path / "x.npy", mmap_mode="r"), labels, penalties, n_classes=5, gap=1e-6)
    np.testing.assert_allclose(mapped.objective, in_memory.objective, rtol=2e-6)
    np.testing.assert_allclose(mapped.weights, in_memory.weights, atol=2e-3)
    assert mapped.converged.all()
