"""The batched optimiser: gradients by differences, equal batches, shortened steps, stalls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from probekit.functional import quasi_newton
from probekit.functional.eigenbasis import rotate_features
from probekit.functional.quasi_newton import Objective, minimise
from probekit.functional.sigmoid_regression import _BinaryCrossEntropy
from probekit.functional.softmax_regression import _CrossEntropy


class Steep:
    """e^z − z·y: convex, with a curvature that p(1 − p) underestimates by far."""

    def __init__(self, truth):
        self.truth = truth

    def __call__(self, logits, fits, rows):
        z = logits[:, 0]
        rises = torch.exp(z)
        return rises - self.truth[rows] * z, (rises - self.truth[rows])[:, None]

    def hessian(self, residual, fits, rows, weight):
        raise AssertionError("one output has no axes of its own")


@pytest.fixture
def softmax_objective(planted):
    x, labels = planted(60, 7, 3)
    weight = np.random.default_rng(0).random(60)
    weight /= weight.sum()
    basis = rotate_features(x, weight, dtype=torch.float64)
    penalties = torch.tensor([1.0, 0.1, 1e-3], dtype=torch.float64)
    loss = _CrossEntropy(torch.from_numpy(labels)[None])
    return Objective(basis, torch.from_numpy(weight), loss, penalties)


def test_gradients_are_differences_of_values(softmax_objective):
    stream = torch.Generator().manual_seed(0)
    parameters = torch.randn(3, 3, 8, dtype=torch.float64, generator=stream)
    direction = torch.randn(3, 3, 8, dtype=torch.float64, generator=stream)
    fits = torch.arange(3)
    ahead, behind = (
        softmax_objective.evaluate(parameters + sign * 1e-6 * direction, fits, curved=False).value
        for sign in (1, -1)
    )
    slope = (softmax_objective.evaluate(parameters, fits, curved=False).gradient * direction).sum((1, 2))
    torch.testing.assert_close((ahead - behind) / 2e-6, slope, rtol=1e-7, atol=1e-8)


def test_curvature_is_the_mean_hessian_by_the_logits(softmax_objective):
    parameters = torch.randn(3, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = softmax_objective.evaluate(parameters, torch.arange(3), curved=True).curvature[1]
    logits = softmax_objective.basis.coordinates @ parameters[1].T

    def loss(shift):
        return torch.logsumexp(logits + shift, 1) @ softmax_objective.weight

    expected = torch.autograd.functional.hessian(loss, torch.zeros(3, dtype=torch.float64))
    # Along (1, 1, 1) nothing changes: there the weights, which add up to 1, stand in.
    torch.testing.assert_close(found, expected + 1 / 3)
    assert torch.linalg.eigvalsh(found).min() > 0
    none = softmax_objective.evaluate(parameters, torch.arange(3), curved=False).curvature
    assert none.shape == (3, 0)


def test_more_classes_than_coordinates_keep_a_diagonal_curvature(planted):
    x, labels = planted(400, 4, 9)
    basis = rotate_features(x, np.full(400, 1 / 400), dtype=torch.float64)
    objective = Objective(
        basis,
        torch.full((400,), 1 / 400, dtype=torch.float64),
        _CrossEntropy(torch.from_numpy(labels)[None]),
        torch.tensor([1e-2], dtype=torch.float64),
    )
    parameters = torch.randn(1, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    p = torch.softmax(basis.coordinates @ parameters[0].T, 1)
    found = objective.evaluate(parameters, torch.arange(1), curved=True).curvature
    torch.testing.assert_close(found[0], (p * (1 - p)).mean(0))


def test_a_fit_does_not_see_the_others_in_its_batch(softmax_objective):
    start = torch.zeros(3, 3, 8, dtype=torch.float64)
    together = minimise(
        softmax_objective,
        start,
        torch.arange(3),
        gap=torch.tensor(1e-8, dtype=torch.float64).expand(3),
        budget=torch.full((3,), 500),
    )
    for fit in range(3):
        alone = minimise(
            softmax_objective,
            start[:1],
            torch.tensor([fit]),
            gap=torch.tensor(1e-8, dtype=torch.float64).expand(3),
            budget=torch.full((1,), 500),
        )
        assert alone.iterations[0] == together.iterations[fit]
        torch.testing.assert_close(alone.parameters[0], together.parameters[fit], rtol=1e-8, atol=1e-10)


def test_each_fit_has_its_own_budget(softmax_objective):
    start = torch.zeros(3, 3, 8, dtype=torch.float64)
    end = minimise(
        softmax_objective,
        start,
        torch.arange(3),
        gap=torch.tensor(1e-12, dtype=torch.float64).expand(3),
        budget=torch.tensor([0, 2, 5]),
    )
    assert end.iterations.tolist() == [0, 2, 5]
    assert (end.parameters[0] == 0).all()


def test_values_never_rise_and_long_steps_are_shortened(planted):
    x, _ = planted(80, 4, 2)
    weight = np.full(80, 1 / 80)
    truth = torch.from_numpy(np.exp(3 * x[:, 0]))
    objective = Objective(
        rotate_features(x, weight, dtype=torch.float64), torch.from_numpy(weight), Steep(truth),
        torch.tensor([1e-3], dtype=torch.float64),
    )  # fmt: skip
    values, parameters = [], torch.zeros(1, 1, 5, dtype=torch.float64)
    for budget in (*range(12), 25, 60):
        end = minimise(
            objective, parameters, torch.arange(1), gap=torch.tensor([1e-10]), budget=torch.tensor([budget])
        )
        values.append(objective.evaluate(end.parameters, torch.arange(1), curved=False).value.item())
    assert (np.diff(values) <= 1e-12 * np.abs(values[1:])).all()
    assert objective.evaluate(end.parameters, torch.arange(1), curved=False).gradient.norm() < 1e-3


def test_a_fit_that_rounding_stops_leaves_the_batch(planted):
    x, labels = planted(60, 7, 2)
    weight = np.full(60, 1 / 60)
    objective = Objective(
        rotate_features(x, weight, dtype=torch.float32), torch.from_numpy(weight).float(),
        _BinaryCrossEntropy(torch.from_numpy(labels)[None].double()), torch.tensor([1e-3]),
    )  # fmt: skip
    end = minimise(
        objective,
        torch.zeros(1, 1, 8),
        torch.arange(1),
        gap=torch.tensor(1e-30, dtype=torch.float64).expand(3),
        budget=torch.tensor([100_000]),
    )
    assert end.iterations[0] < 1000


def test_memory_of_one_pair_still_arrives(softmax_objective, monkeypatch):
    start, fits = torch.zeros(3, 3, 8, dtype=torch.float64), torch.arange(3)
    long = minimise(
        softmax_objective,
        start,
        fits,
        gap=torch.tensor(1e-8, dtype=torch.float64).expand(3),
        budget=torch.full((3,), 500),
    )
    monkeypatch.setattr(quasi_newton, "MEMORY", 1)
    short = minimise(
        softmax_objective,
        start,
        fits,
        gap=torch.tensor(1e-8, dtype=torch.float64).expand(3),
        budget=torch.full((3,), 500),
    )
    values = [softmax_objective.evaluate(end.parameters, fits, curved=False).value for end in (long, short)]
    torch.testing.assert_close(*values, rtol=1e-8, atol=0)
    assert short.iterations.sum() > long.iterations.sum()


def test_threads_share_the_rows_and_are_given_back(softmax_objective, monkeypatch):
    monkeypatch.setitem(quasi_newton._BLOCK_BYTES, "cpu", 1)
    monkeypatch.setattr(quasi_newton, "_LEAST_ROWS", 7)
    start, fits = torch.zeros(3, 3, 8, dtype=torch.float64), torch.arange(3)
    alone = minimise(
        softmax_objective,
        start,
        fits,
        gap=torch.tensor(1e-8, dtype=torch.float64).expand(3),
        budget=torch.full((3,), 500),
    )
    torch.set_num_threads(3)
    try:
        shared = minimise(
            softmax_objective,
            start,
            fits,
            gap=torch.tensor(1e-8, dtype=torch.float64).expand(3),
            budget=torch.full((3,), 500),
        )
        assert torch.get_num_threads() == 3
        again = minimise(
            softmax_objective,
            start,
            fits,
            gap=torch.tensor(1e-8, dtype=torch.float64).expand(3),
            budget=torch.full((3,), 500),
        )
        broken = replace(softmax_objective, loss=lambda logits, fits, rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            minimise(
                broken,
                start,
                fits,
                gap=torch.tensor(1e-8, dtype=torch.float64).expand(3),
                budget=torch.full((3,), 500),
            )
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(alone.parameters, shared.parameters, rtol=1e-6, atol=1e-8)
    assert (shared.parameters == again.parameters).all()
