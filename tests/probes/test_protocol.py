"""Fit on train, choose on val, refit on both, score test once."""

from __future__ import annotations

import numpy as np
import pytest

from probekit import ImageSet
from probekit.data.targets import Target
from probekit.errors import DataError, InputError
from probekit.probes.protocol import PENALTIES, Protocol, Stage, assign_roles, choose_penalty
from tests.probes.conftest import gaussians, tap_data


def test_there_are_at_least_ten_default_penalties():
    assert len(PENALTIES) >= 10
    assert max(PENALTIES) / min(PENALTIES) >= 0.99e6


@pytest.mark.parametrize(
    "bad",
    [
        {"penalties": ()},
        {"penalties": (0.0,)},
        {"penalties": (np.nan,)},
        {"val_fraction": 1.0},
        {"permutations": -1},
        {"bootstrap_draws": 0},
        {"shots": (0,)},
        {"few_shot_draws": 0},
        {"orders": -1},
    ],
)
def test_bad_settings_are_refused(bad: dict[str, object]):
    with pytest.raises(InputError):
        Protocol(**bad)


def test_standardisation_uses_fitting_rows_only():
    fit = np.array([[0.0, 5.0], [2.0, 5.0]], np.float32)
    stage = Stage.of(fit, np.array([[4.0, 9.0]], np.float32))
    assert stage.kept.tolist() == [True, False]
    assert stage.fit.tolist() == [[-1.0], [1.0]]
    assert stage.score.tolist() == [[3.0]]


def test_means_are_estimated_anew_for_the_refit():
    values, _ = gaussians()
    data = tap_data(values)
    np.testing.assert_allclose(data.choose.mean, values[data.roles.train].mean(0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(data.refit.mean, values[data.roles.fitting].mean(0, dtype=float), rtol=1e-6)
    assert not np.allclose(data.choose.mean, data.refit.mean)


def test_ties_go_to_the_lower_loss_then_to_the_stronger_penalty():
    penalties = np.array([1.0, 0.1, 0.01])
    assert choose_penalty(penalties, np.array([0.5, 0.7, 0.7]), np.array([1.0, 0.9, 0.8])).penalty == 0.01
    assert choose_penalty(penalties, np.array([0.7, 0.7, 0.7])).penalty == 1.0
    assert choose_penalty(penalties, np.array([0.7, 0.6, 0.5])).edge == "high"
    assert choose_penalty(penalties, np.array([0.5, 0.6, 0.7])).edge == "low"
    assert choose_penalty(penalties, np.array([0.5, 0.7, 0.6])).edge is None


def images(splits: list[str], labels: list[int]) -> ImageSet:
    n = len(splits)
    target = Target(np.array(labels), "class", ("a", "b"))
    return ImageSet.from_arrays(
        "x", np.zeros((n, 4, 4, 3), np.uint8), {"class": target}, splits=np.array(splits)
    )


def test_val_is_held_out_of_train_by_class_and_reproducibly():
    data = images(["train"] * 40 + ["test"] * 10, [0, 1] * 25)
    roles = assign_roles(data, Protocol())
    again = assign_roles(data, Protocol())
    other = assign_roles(data, Protocol(seed=1))
    assert len(roles.val) == 8
    assert np.bincount(data.targets["class"].values[roles.val]).tolist() == [4, 4]
    assert not set(roles.train) & set(roles.val)
    assert set(roles.fitting) == set(range(40))
    assert (roles.val == again.val).all()
    assert set(roles.val) != set(other.val)


def test_a_val_split_is_used_as_it_is():
    roles = assign_roles(images(["train"] * 4 + ["val"] * 2 + ["test"] * 2, [0, 1] * 4), Protocol())
    assert roles.val.tolist() == [4, 5]


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_missing_split_is_named(missing: str):
    present = {"train": "test", "test": "train"}[missing]
    with pytest.raises(DataError, match=missing):
        assign_roles(images([present] * 6, [0, 1] * 3), Protocol())
