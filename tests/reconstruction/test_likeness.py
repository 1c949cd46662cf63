"""Scores of made images: values, intervals, nulls, regions."""

from __future__ import annotations

import numpy as np
import pytest

from probekit.errors import InputError, NonFiniteFeatures
from probekit.functional.intervals import t_interval
from probekit.reconstruction.likeness import Perceptual, image_r2, other_images, score_images

IDS = [f"image {i}" for i in range(5)]


def truth(side=32, count=5):
    return np.random.default_rng(0).uniform(0.2, 0.8, (count, side, side, 3))


def rows_of(found):
    return {row["metric"]: row for row in found.rows}


def test_an_error_of_known_size_has_its_psnr_in_every_draw():
    true = truth()
    made = np.stack([true + 0.1, true - 0.01])
    row = rows_of(score_images(made, true, ids=IDS, mean_image=true.mean(axis=0)))["psnr"]
    assert row["value"] == pytest.approx((20 + 40) / 2)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(t_interval([20.0, 40.0]))
    assert row["ci_kind"] == "t,seeds"
    assert row["n"] == 5


def test_the_mean_image_has_an_r2_and_region_errors_of_nothing_read():
    true = truth()
    mean = true.mean(axis=0)
    inside = np.zeros((5, 4, 4))
    inside[:, :2] = 1
    made = np.broadcast_to(mean, true.shape)
    rows = rows_of(score_images(made, true, ids=IDS, mean_image=mean, inside=inside))
    assert rows["image_r2"]["value"] == pytest.approx(0, abs=1e-12)
    for metric in ("foreground_error", "background_error", "background_ratio"):
        assert rows[metric]["value"] == pytest.approx(1)
        assert rows[metric]["null"] == 1
        assert rows[metric]["ci_low"] == pytest.approx(1)
    assert rows["foreground_error"]["params"] == {"foreground": 0.5}


def test_errors_are_of_the_region_they_lie_in():
    true = truth()
    mean = true.mean(axis=0)
    inside = np.zeros((5, 32, 32))
    inside[:, :16] = 1
    made = true.copy()
    made[:, 16:] = mean[16:]
    found = score_images(np.stack([made, made]), true, ids=IDS, mean_image=mean, inside=inside)
    rows = rows_of(found)
    assert rows["foreground_error"]["value"] == 0
    assert rows["background_error"]["value"] == pytest.approx(1)
    assert rows["background_ratio"]["status"] == "no image has both a foreground and a background"
    assert not found.error_maps[:, :16].any()
    assert found.error_maps[:, 16:].any()
    assert found.error_maps.shape == (5, 32, 32)
    assert found.structure_maps.shape == (5, 22, 22)


def test_the_null_is_the_mean_over_pairs_of_different_images():
    true = truth()
    rows = rows_of(score_images(true.copy() + 0.001, true, ids=IDS, mean_image=true.mean(axis=0)))
    mse = np.array(
        [np.square(true[i] + 0.001 - true[j]).mean() for i in range(5) for j in range(5) if i != j]
    )
    # Four cyclic orders of five images hold every pair once.
    assert rows["psnr"]["null"] == pytest.approx(np.mean(-10 * np.log10(mse)))
    assert rows["psnr"]["null_kind"] == "other images,4"
    assert rows["psnr"]["value"] > rows["psnr"]["null_high"]
    assert (
        rows["ssim"]["null_low"] <= rows["ssim"]["null"] <= rows["ssim"]["null_high"] < rows["ssim"]["value"]
    )


@pytest.mark.parametrize("count", [2, 3, 7, 50])
def test_orders_of_other_images_leave_none_at_its_place_and_repeat_no_pair(count):
    orders = other_images(count, seed=3)
    assert orders.shape == (min(20, count - 1), count)
    pairs = {(i, int(j)) for order in orders for i, j in enumerate(order)}
    assert len(pairs) == orders.size
    assert all(i != j for i, j in pairs)
    assert all(sorted(order) == list(range(count)) for order in orders)


def test_one_image_has_no_null_and_one_draw_an_interval_over_images():
    true = truth(count=1)
    row = rows_of(score_images(true + 0.1, true, ids=IDS[:1], mean_image=true[0] * 0))["psnr"]
    assert "null" not in row
    assert "ci_low" not in row
    true = truth()
    made = true + np.linspace(0.01, 0.1, 5)[:, None, None, None]
    row = rows_of(score_images(made, true, ids=IDS, mean_image=true.mean(axis=0)))["psnr"]
    assert row["ci_kind"] == "bootstrap,test units"
    assert row["ci_low"] < row["value"] < row["ci_high"]


def test_what_is_undefined_says_so():
    true = truth(side=12)
    rows = rows_of(score_images(true, true, ids=IDS, mean_image=true.mean(axis=0)))
    assert "value" not in rows["psnr"]
    assert "equal" in rows["psnr"]["status"]
    assert rows["gradient_deviation"]["status"] == "needs images of 17 pixels a side"
    assert rows["ssim"]["value"] == pytest.approx(1)
    assert np.isnan(image_r2(true[:1], true[:1], true[0])).all()


def test_a_further_distance_is_scored_like_the_others():
    true = truth()
    gap = Perceptual("mean colour", lambda x, y: np.abs(x.mean(axis=(1, 2, 3)) - y.mean(axis=(1, 2, 3))))
    found = score_images(true + 0.1, true, ids=IDS, mean_image=true.mean(axis=0), perceptual=gap)
    row = rows_of(found)["perceptual_distance"]
    assert row["value"] == pytest.approx(0.1)
    assert row["params"] == {"network": "mean colour"}
    assert found.scores.columns.tolist() == [
        "id", "psnr", "ssim", "gradient_deviation", "image_r2", "perceptual_distance"
    ]  # fmt: skip
    assert found.scores["id"].tolist() == IDS


def test_what_does_not_fit_is_refused():
    true = truth()
    with pytest.raises(InputError, match="size of the true images"):
        score_images(true[:, :16], true, ids=IDS, mean_image=true[0])
    with pytest.raises(InputError, match="divides"):
        score_images(true, true, ids=IDS, mean_image=true[0], inside=np.zeros((5, 5, 5)))
    with pytest.raises(NonFiniteFeatures):
        score_images(true * np.nan, true, ids=IDS, mean_image=true[0])
    with pytest.raises(InputError, match="0, 1"):
        score_images(true + 2, true, ids=IDS, mean_image=true[0])
