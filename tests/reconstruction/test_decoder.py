"""One cell of the decoder: what can be made is made, what cannot is not; the same bits every time."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from probekit.compute import one_thread
from probekit.errors import InputError
from probekit.functional import peak_signal_to_noise, structural_similarity
from probekit.functional.intervals import t_interval
from probekit.probes.scoring import r2_score
from probekit.reconstruction import decoder
from probekit.reconstruction.decoder import DecoderSettings, decode_images
from probekit.reconstruction.likeness import Perceptual
from probekit.reconstruction.linear import Regions
from probekit.reconstruction.pixels import BANDS, band_columns, frequencies
from probekit.reconstruction.upconvolution import Budget, Examples, Scale, UpConvolution, train_decoder
from tests.probes.conftest import features_of, roles_of

N = 240
ROLES = roles_of(N)
QUICK = DecoderSettings(width=24, draws=2, budget=Budget(steps=50, rate=5e-3))


def pictures(count: int = N, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return images of 32 × 32 that are four colours each, and the twelve numbers behind them."""
    colours = np.random.default_rng(seed).uniform(0, 1, (count, 2, 2, 3)).astype(np.float32)
    return colours.repeat(16, axis=1).repeat(16, axis=2), colours.reshape(count, -1)


def features(values: NDArray[np.floating]):
    return replace(features_of(values.astype(np.float32)), provenance={"weights": "w"})


def measured(values: NDArray[np.floating], pixels: NDArray[np.float32], **more):
    given = {"roles": ROLES, "settings": QUICK, "told": {"grid": 4}, **more}
    return decode_images(features(values), pixels=pixels, **given)


@pytest.mark.slow
def test_what_features_hold_is_made_and_what_they_do_not_is_not():
    pixels, colours = pictures()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    found = measured(colours @ turn, pixels)
    frame = found.frame
    r2 = frame[frame["metric"] == "pixel_r2"].set_index("target")
    assert r2.index.tolist() == ["all", *BANDS]
    assert (r2.loc[["all", "mean", "coarse"], "value"] > 0.8).all()
    assert (r2["null"].abs() < 0.1).all()
    assert set(r2["null_kind"]) == {"permuted,1"}
    assert set(r2["ci_kind"]) == {"t,trainings"}
    assert ((r2["ci_low"] <= r2["value"]) & (r2["value"] <= r2["ci_high"])).all()
    by_image = frame[frame["metric"] != "pixel_r2"].set_index("metric")
    assert by_image.index.tolist() == ["psnr", "ssim", "gradient_deviation", "image_r2"]
    assert (
        by_image.loc[["psnr", "ssim", "image_r2"], "value"] > by_image["null"].drop("gradient_deviation")
    ).all()
    params = json.loads(r2.loc["all", "params"])
    assert params["method"] == "decoder"
    assert params["side"] == 32
    assert len(params["best_steps"]) == len(params["val"]) == 2
    noise = measured(np.random.default_rng(2).normal(size=(N, 12)), pixels).frame
    assert (noise.loc[noise["metric"] == "pixel_r2", "value"].abs() < 0.1).all()


@pytest.mark.slow
def test_scores_are_those_of_the_images_that_were_made(monkeypatch: pytest.MonkeyPatch):
    pixels, colours = pictures()
    trained = []
    original = decoder.train_decoder

    def kept(*given, **named):
        trained.append(original(*given, **named))
        return trained[-1]

    monkeypatch.setattr(decoder, "train_decoder", kept)
    monkeypatch.setattr(decoder, "_CHUNK", 50)
    found = measured(colours, pixels)
    assert len(trained) == 3
    # The projection and both standardisations, done again.
    values = (colours - colours[ROLES.train].mean(axis=0)) / colours[ROLES.train].std(axis=0)
    narrow = values @ decoder.random_projection(12, QUICK.width, QUICK.seed)
    narrow = (narrow - narrow[ROLES.train].mean(axis=0)) / narrow[ROLES.train].std(axis=0)
    truth = pixels[ROLES.test].reshape(len(ROLES.test), -1)
    made = [one.predict(narrow[ROLES.test].astype(np.float32)) for one in trained]
    flat = [one.reshape(len(truth), -1) for one in made]
    frame = found.frame
    rows = frame[frame["metric"] == "pixel_r2"].set_index("target")
    expected = [r2_score(one, truth) for one in flat]
    assert rows.loc["all", "value"] == pytest.approx(np.mean(expected[:2]), abs=1e-5)
    assert rows.loc["all", "ci_low"] == pytest.approx(t_interval(expected[:2])[0], abs=1e-4)
    assert rows.loc["all", "null"] == pytest.approx(expected[2], abs=1e-5)
    for band, columns in band_columns(32).items():
        parts = [
            r2_score(frequencies(one, 32)[:, columns], frequencies(truth, 32)[:, columns]) for one in flat
        ]
        assert rows.loc[band, "value"] == pytest.approx(np.mean(parts[:2]), abs=1e-4)
    parts = found.attachments["scores/pixel_r2.parquet"]
    assert parts["pixel_r2"].mean() == pytest.approx(rows.loc["all", "value"])
    assert found.attachments["maps/pixel_r2.npy"].shape == (32, 32)
    examples = found.attachments["maps/examples.npy"]
    np.testing.assert_array_equal(examples[0, 0], pixels[ROLES.test][0])
    np.testing.assert_allclose(examples[1, 0], made[0][0], atol=1e-5)
    by_image = frame.set_index("metric")
    for metric, score in (
        ("psnr", peak_signal_to_noise),
        ("ssim", lambda made, true: structural_similarity(made, true)[0]),
    ):
        means = [score(one, pixels[ROLES.test]).mean() for one in made]
        assert by_image.loc[metric, "value"] == pytest.approx(np.mean(means[:2]), rel=1e-4)
        assert by_image.loc[metric, "null"] == pytest.approx(means[2], rel=1e-4)
        assert by_image.loc[metric, "null_kind"] == "permuted,1"


@pytest.mark.slow
def test_a_seed_gives_the_same_bits_and_no_random_state_is_touched():
    pixels, colours = pictures()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (measured(colours, pixels) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.frame.equals(two.frame)
    for key, value in one.attachments.items():
        if key.endswith(".npy"):
            np.testing.assert_array_equal(value, two.attachments[key])
    other = measured(colours, pixels, settings=replace(QUICK, seed=1))
    assert not one.frame["value"].equals(other.frame["value"])


@pytest.mark.slow
def test_trainings_differ_and_one_alone_is_the_same_as_among_others():
    pixels, colours = pictures()
    rows = np.arange(120), np.arange(120, 150)
    examples = [Examples(colours[own], own) for own in rows]
    scale = Scale.of(pixels, rows[0])
    made = []
    with one_thread():
        for name in ("0", "1", "0"):
            network = train_decoder(*examples, pixels, scale, QUICK.budget, seed=0, name=name)
            made.append(network.predict(colours[150:]))
    np.testing.assert_array_equal(made[0], made[2])
    assert not np.array_equal(made[0], made[1])


def test_it_is_kept_as_it_was_at_its_best():
    pixels, colours = pictures()
    # Val images that have nothing to do with their features: any step away from the mean is a loss.
    rows = np.arange(120), np.arange(120, 150)
    examples = [Examples(colours[rows[0]], rows[0]), Examples(colours[rows[1]], np.flip(rows[1]).copy())]
    with one_thread():
        found = train_decoder(*examples, pixels, Scale.of(pixels, rows[0]), QUICK.budget, seed=0, name="0")
    assert found.step <= 20
    assert abs(found.val_r2) < 0.1


def test_what_lies_far_out_makes_no_wild_image():
    pixels, colours = pictures()
    rows = np.arange(120), np.arange(120, 150)
    examples = [Examples(colours[own], own) for own in rows]
    with one_thread():
        found = train_decoder(*examples, pixels, Scale.of(pixels, rows[0]), QUICK.budget, seed=0, name="0")
    far = colours[150:151] * np.where(np.arange(12) == 3, 1e6, 1).astype(np.float32)
    bound = np.minimum(far, 5)
    np.testing.assert_array_equal(found.predict(far), found.predict(bound))
    made = found.predict(far)
    assert 0 <= made.min() <= made.max() <= 1


def test_scale_is_that_of_the_images_asked_for():
    pixels, _ = pictures()
    rows = np.arange(5, 230)
    scale = Scale.of(pixels, rows)
    np.testing.assert_allclose(scale.mean, pixels[rows].mean(axis=0), atol=1e-6)
    assert scale.spread == pytest.approx(np.square(pixels[rows] - scale.mean).mean() ** 0.5, rel=1e-5)


def test_the_network_is_a_linear_map_and_three_convolutions_of_doubled_maps():
    network = UpConvolution(7, torch.Generator().manual_seed(0))
    values = torch.randn(2, 7)
    maps = (values @ network.linear + network.shift).reshape(2, 32, 4, 4)
    for kernel, bias in zip(network.kernels, network.biases, strict=True):
        maps = torch.where(maps > 0, maps, 0.2 * maps)
        maps = maps.repeat_interleave(2, 2).repeat_interleave(2, 3)
        maps = torch.nn.functional.conv2d(maps, kernel, bias, padding=1)
    torch.testing.assert_close(network(values), maps)
    assert maps.shape == (2, 3, 32, 32)


@pytest.mark.slow
def test_foreground_and_background_are_scored_apart():
    pixels, colours = pictures()
    # The right half is hidden from the features.
    left = colours.reshape(N, 2, 2, 3)[:, :, 0].reshape(N, -1)
    other, others = pictures(40, seed=9)
    shown = others.reshape(40, 2, 2, 3)[:, :, 0].reshape(40, -1)
    inside = np.zeros((40, 32, 32), np.float32)
    inside[:, :, :16] = 1
    apart = Regions({("w", "layer1|gap"): features(shown)}, other, inside, "others")
    frame = measured(left, pixels, regions=apart).frame.set_index("metric")
    assert frame.loc["foreground_error", "value"] < 0.3
    assert frame.loc["background_error", "value"] == pytest.approx(1, abs=0.2)
    assert frame.loc["background_ratio", "value"] > 3
    assert frame.loc["background_error", "n"] == 40
    assert frame.loc["background_error", "ci_kind"] == "t,trainings"
    params = json.loads(frame.loc["foreground_error", "params"])
    assert params["data"] == "others"
    assert params["foreground"] == 0.5


@pytest.mark.slow
def test_a_further_distance_is_scored_beside_the_others():
    pixels, colours = pictures()
    gap = Perceptual("mean colour", lambda x, y: np.abs(x.mean(axis=(1, 2, 3)) - y.mean(axis=(1, 2, 3))))
    frame = measured(colours, pixels, perceptual=gap).frame.set_index("metric")
    assert frame.loc["perceptual_distance", "value"] < frame.loc["perceptual_distance", "null"]
    assert json.loads(frame.loc["perceptual_distance", "params"])["network"] == "mean colour"


def test_features_without_variance_are_dead():
    frame = measured(np.ones((N, 12)), pictures()[0]).frame
    assert len(frame) == 1
    assert frame.loc[0, "status"].startswith("dead")


@pytest.mark.parametrize("changed", [{"draws": 1}, {"budget": Budget(steps=0)}])
def test_a_budget_that_gives_no_interval_is_refused(changed):
    with pytest.raises(InputError, match="at least"):
        replace(QUICK, **changed)
