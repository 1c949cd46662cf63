"""One cell: closed forms, scikit-learn, what is undefined."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from probekit.reconstruction.linear import (
    DecodingSettings,
    Regions,
    ceiling,
    decode_pixels,
    random_projection,
)
from probekit.reconstruction.pixels import BANDS, band_columns, frequencies, from_frequencies
from tests.probes.conftest import features_of, roles_of

N = 400
QUICK = DecodingSettings(width=200, permutations=3, bootstrap_draws=200)
ROLES = roles_of(N)


def pictures(n: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (n, 8, 8, 3)).astype(np.float32)


def features(values: np.ndarray):
    return replace(features_of(values.astype(np.float32)), provenance={"weights": "w"})


def measured(values: np.ndarray, pixels: np.ndarray, **more):
    given = {"roles": ROLES, "settings": QUICK, "told": {"grid": 4}, **more}
    return decode_pixels(features(values), pixels=pixels, **given)


def test_what_is_a_rotation_of_the_pixels_is_read_whole_and_noise_is_not():
    pixels = pictures()
    flat = pixels.reshape(N, -1)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(192, 192)))[0]
    whole = measured(flat @ turn, pixels).frame
    assert (whole["value"] > 0.99).all()
    assert whole["target"].tolist() == ["all", *BANDS]
    assert (whole["null_high"] < 0.05).all()
    noise = measured(np.random.default_rng(2).normal(size=(N, 192)), pixels).frame
    assert (noise["value"] < 0.05).all()
    assert (noise["ci_low"] <= noise["null_high"]).all()
    assert ceiling(pixels, ROLES, QUICK) > 0.99


def test_the_score_is_that_of_scikit_learn_through_the_same_steps():
    pixels, random = pictures(), np.random.default_rng(3)
    flat = pixels.reshape(N, -1)
    values = (flat @ random.normal(size=(192, 250)) + 3 * random.normal(size=(N, 250))).astype(np.float32)
    table = measured(values, pixels)
    rows = table.frame.set_index("target")
    first = StandardScaler().fit(values[ROLES.train])
    narrow = first.transform(values) @ random_projection(250, QUICK.width, QUICK.seed)
    second = StandardScaler().fit(narrow[ROLES.fitting])
    x, coefficients = second.transform(narrow), frequencies(flat)
    predicted = np.empty((len(ROLES.test), 192))
    for band, columns in band_columns().items():
        alpha = json.loads(rows.loc[band, "params"])["penalty"] * len(ROLES.fitting)
        ridge = Ridge(alpha=alpha).fit(x[ROLES.fitting], coefficients[ROLES.fitting][:, columns])
        predicted[:, columns] = ridge.predict(x[ROLES.test])
        truth = coefficients[ROLES.test][:, columns]
        expected = r2_score(truth, predicted[:, columns], multioutput="variance_weighted")
        assert rows.loc[band, "value"] == pytest.approx(expected, abs=1e-4)
    images, truth = from_frequencies(predicted), flat[ROLES.test]
    expected = r2_score(truth, images, multioutput="variance_weighted")
    # The variance of pixels and of coefficients is the same, that of each band apart from its share.
    assert rows.loc["all", "value"] == pytest.approx(expected, abs=1e-4)
    by_cell = r2_score(truth, images, multioutput="raw_values").reshape(8, 8, 3)
    found = table.attachments["maps/pixel_r2.npy"]
    # Weighted by variance over the colours of a cell, and so between the three.
    assert ((found >= by_cell.min(axis=2) - 1e-4) & (found <= by_cell.max(axis=2) + 1e-4)).all()


def test_a_band_that_features_hold_is_read_and_the_others_are_not():
    pixels = pictures()
    means = pixels.mean(axis=(1, 2))
    values = np.concatenate([means, 1e-3 * np.random.default_rng(0).normal(size=(N, 5))], axis=1)
    frame = measured(values, pixels, settings=replace(QUICK, width=8)).frame.set_index("target")
    assert frame.loc["mean", "value"] > 0.99
    assert (frame.loc[["coarse", "middle", "fine"], "value"] < 0.05).all()


def test_features_without_variance_are_dead():
    frame = measured(np.ones((N, 192)), pictures()).frame
    assert len(frame) == 1
    assert frame.loc[0, "status"].startswith("dead")


def test_foreground_and_background_are_scored_apart():
    count = 2000
    pixels = pictures(count)
    # The right half is hidden from the features.
    values = pixels[:, :, :4].reshape(count, -1)
    other = pictures(60, seed=9)
    shown = other[:, :, :4].reshape(60, -1)
    inside = np.zeros((60, 8, 8), np.float32)
    inside[:, :, :4] = 1
    apart = Regions({("w", "layer1|gap"): features(shown)}, other, inside, "others")
    given = {"roles": roles_of(count), "settings": replace(QUICK, width=96)}
    frame = measured(values, pixels, regions=apart, **given).frame.set_index("metric")
    assert frame.loc["foreground_error", "value"] < 0.1
    assert frame.loc["background_error", "value"] == pytest.approx(1, abs=0.2)
    assert frame.loc["background_ratio", "value"] == pytest.approx(
        frame.loc["background_error", "value"] / frame.loc["foreground_error", "value"]
    )
    assert frame.loc["background_error", "n"] == 60
    params = json.loads(frame.loc["foreground_error", "params"])
    assert params["data"] == "others"
    assert params["foreground"] == 0.5
    nothing = replace(apart, inside=np.zeros((60, 8, 8), np.float32))
    frame = measured(values, pixels, regions=nothing, **given).frame.set_index("metric")
    assert np.isnan(frame.loc["background_ratio", "value"])
    assert "no image" in frame.loc["background_ratio", "status"]
