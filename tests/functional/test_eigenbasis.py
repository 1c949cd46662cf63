"""The rotation: coordinates, variances, and the way there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probekit.functional.eigenbasis import rotate_features


@pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50), (20, 20), (6, 1), (1, 4)])
def test_coordinates_are_uncorrelated_and_the_way_back_is_exact(n, d):
    stream = np.random.default_rng(0)
    x, weight = stream.normal(size=(n, d)) + 3, stream.random(n) + 0.1
    weight /= weight.sum()
    basis = rotate_features(x, weight, dtype=torch.float64)
    second = basis.coordinates.T @ (basis.coordinates * torch.from_numpy(weight)[:, None])
    torch.testing.assert_close(second, torch.diag(basis.variances), atol=1e-10, rtol=0)
    assert basis.coordinates.shape[1] <= min(n, d) + 1

    parameters = torch.from_numpy(stream.normal(size=(2, 3, len(basis.variances))))
    weights, intercepts = basis.restore(parameters)
    logits = torch.from_numpy(x) @ weights + intercepts[:, None]
    torch.testing.assert_close(logits, basis.coordinates @ parameters.transpose(1, 2))
    torch.testing.assert_close(basis.express(weights, intercepts), parameters)
    torch.testing.assert_close(weights.square().sum((1, 2)), parameters[..., :-1].square().sum((1, 2)))


def test_repeated_rows_leave_no_axis_of_rounding():
    x = np.repeat(np.random.default_rng(1).normal(size=(5, 40)), 4, axis=0)
    basis = rotate_features(x, np.full(20, 0.05), dtype=torch.float32)
    assert len(basis.variances) == 4 + 1
    torch.testing.assert_close(basis.axes.T @ basis.axes, torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50)])
def test_axes_are_taken_over_to_another_precision(n, d):
    x, weight = np.random.default_rng(2).normal(size=(n, d)), np.full(n, 1 / n)
    single = rotate_features(x, weight, dtype=torch.float32)
    double = rotate_features(x, weight, dtype=torch.float64, like=single)
    assert double.coordinates.dtype == double.axes.dtype == torch.float64
    torch.testing.assert_close(double.axes.float(), single.axes)
    torch.testing.assert_close(double.coordinates.float(), single.coordinates, atol=1e-5, rtol=1e-5)


def test_coordinates_of_float32_far_from_zero():
    x = (np.random.default_rng(3).normal(size=(60, 4)) + 1000).astype(np.float32)
    basis = rotate_features(x, np.full(60, 1 / 60), dtype=torch.float32)
    parameters = torch.from_numpy(np.random.default_rng(4).normal(size=(1, 2, 5))).float()
    weights, intercepts = basis.restore(parameters)
    logits = torch.from_numpy(x).double() @ weights + intercepts[:, None]
    torch.testing.assert_close(
        logits.float(), basis.coordinates @ parameters.transpose(1, 2), atol=1e-3, rtol=0
    )
