"""One cell: rows, nulls, what is undefined."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probekit.data.perturbations import Change
from probekit.data.targets import Target
from probekit.invariance.cell import ALL, InvarianceSettings, invariance_of_tap
from probekit.results.schema import read_params
from tests.probes.conftest import features_of

CHANGES = {
    "blur": [Change("blur", 0.01), Change("blur", 0.1)],
    "flip": [Change("flip", 1)],
}
LABELS = Target(np.arange(40) % 4, "class", tuple("abcd"))


def measured(x: np.ndarray, noise: dict[str, float], **more: Any) -> pd.DataFrame:
    """Return the rows of n images whose changed copies are off by so much noise."""
    random = np.random.default_rng(1)
    off = [noise[name] for name, own in CHANGES.items() for _ in own]
    blocks = [x, *(x + size * random.normal(size=x.shape) for size in off)]
    viewed, whole = (
        replace(features_of(values), provenance={"weights": "w"}) for values in (np.concatenate(blocks), x)
    )
    settings: dict[str, Any] = {
        "clean": {("w", whole.tap): whole},
        "changes": CHANGES,
        "target": ("class", LABELS),
        "width": x.shape[1],
        "split": "unknown",
        "settings": InvarianceSettings(permutations=10),
    }
    return invariance_of_tap(viewed, **(settings | more)).frame


def images(width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, width)).astype(np.float32)


def test_every_change_and_perturbation_has_its_rows():
    frame = measured(images(), {"blur": 0.3, "flip": 0.3})
    assert frame["metric"].value_counts().to_dict() == {
        "whitened_cosine": 3,
        "mahalanobis": 3,
        "perturbation_variance": 3,
        "lidar": 1,
        "target_invariance": 1,
    }
    curve = frame[(frame["metric"] == "whitened_cosine") & (frame["target"] == "blur")]
    assert [one["strength"] for one in read_params(curve)] == [0.01, 0.1]
    assert {one["unit"] for one in read_params(curve)} == {"sigma, of the side"}
    assert (frame["n"] == 40).all()
    assert (frame["d"] == 8).all()
    shares = frame[frame["metric"] == "perturbation_variance"]
    assert shares["target"].tolist() == [ALL, "blur", "flip"]
    assert (shares["null"] == 1).all()
    # σ²/(1 + σ²), with one unchanged view among the views
    assert shares["value"].between(0.02, 0.12).all()


def test_what_does_not_move_is_invariant_and_what_moves_at_random_is_its_null():
    frame = measured(images(), {"blur": 0.0, "flip": 100.0})
    by = frame.set_index(["metric", "target"])["value"]
    assert by["whitened_cosine", "blur"].to_numpy() == pytest.approx(1)
    assert by["mahalanobis", "blur"].to_numpy() == pytest.approx(0)
    assert by["perturbation_variance", "blur"].item() == pytest.approx(0, abs=1e-9)
    assert by["perturbation_variance", "flip"].item() > 0.95
    flip = frame[(frame["metric"] == "whitened_cosine") & (frame["target"] == "flip")].iloc[0]
    assert flip["ci_low"] < flip["null"] < flip["ci_high"]


def test_the_null_pairs_every_image_with_another():
    """Were an image ever paired with itself, some null cosines of unmoved features would be high."""
    frame = measured(images(64), {"blur": 0.0, "flip": 0.0})
    rows = frame[frame["metric"] == "whitened_cosine"]
    assert rows["null_high"].max() < 0.05
    assert (rows["null_kind"] == "permuted,10").all()


def test_a_tap_without_variance_is_dead_and_says_so():
    frame = measured(np.ones((40, 8), np.float32), {"blur": 0.0, "flip": 0.0})
    assert len(frame) == 1
    assert frame["status"].str.startswith("dead").all()
    assert frame["value"].isna().all()


def test_without_classes_or_with_too_few_images_a_class_the_cell_is_empty_with_the_reason():
    frame = measured(images(), {"blur": 0.1, "flip": 0.1}, target=None)
    assert not (frame["metric"] == "target_invariance").any()
    single = Target(np.arange(40), "class", tuple(f"c{i}" for i in range(40)))
    frame = measured(images(), {"blur": 0.1, "flip": 0.1}, target=("class", single))
    row = frame[frame["metric"] == "target_invariance"].iloc[0]
    assert np.isnan(row["value"])
    assert row["status"] == "fewer than two classes with 4 images each"


def test_classes_that_units_tell_are_found():
    x = images()
    x[np.arange(40), LABELS.values] += 20
    frame = measured(x, {"blur": 0.1, "flip": 0.1})
    row = frame[frame["metric"] == "target_invariance"].iloc[0]
    assert row["value"] > 0.7
    assert row["null_high"] < 0.5
    assert row["ci_low"] <= row["value"] <= row["ci_high"]
