"""Perturbations: laws that hold for any picture, and views of an image set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import rotate as rotated_by_scipy

from probekit.data.images import ImageSet
from probekit.data.kept import kept_pixels
from probekit.data.perturbations import PERTURBATIONS, Change, parse_perturbations
from probekit.data.targets import Target
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError

NATIVE = Preprocessing(24, 24)
STEPS = [(name, strength) for name, one in PERTURBATIONS.items() for strength in one.strengths]


def picture(side: int = 48, seed: int = 0) -> NDArray[np.uint8]:
    """Return a smooth picture: sums of waves."""
    random, (y, x) = np.random.default_rng(seed), np.mgrid[:side, :side] / side
    waves = [
        sum(np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in random.normal(size=(4, 3)))
        for _ in range(3)
    ]
    stacked = np.stack(waves, axis=-1)
    return (255 * (stacked - stacked.min()) / (stacked.max() - stacked.min())).astype(np.uint8)


def image_set(n: int = 6) -> ImageSet:
    pixels = np.stack([picture(24, seed) for seed in range(n)])
    targets = {
        "class": Target(np.arange(n) % 2, "class", ("even", "odd")),
        "size": Target(np.arange(n) / 2, "continuous", ("size",)),
    }
    return ImageSet.from_arrays("tiny", pixels, targets)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(PERTURBATIONS)),
    st.floats(0, 1),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 5),
)
def test_any_strength_of_any_picture_gives_a_picture_of_that_shape(name, share, height, width, seed):
    low, high = PERTURBATIONS[name].limits
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = pixels.copy()
    changed = Change(name, low + share * (high - low), seed).apply(pixels, "some id")
    assert changed.shape == pixels.shape
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_neutral_strength_changes_nothing(name: str):
    pixels = picture()
    np.testing.assert_array_equal(Change(name, PERTURBATIONS[name].neutral).apply(pixels, "a"), pixels)


@pytest.mark.parametrize("name", sorted(set(PERTURBATIONS) - {"flip", "rotation", "hue"}))
def test_a_stronger_change_is_further_from_the_image(name: str):
    """Turning by 180 degrees may come near the image again, and so may a turn of the hue."""
    pixels = picture(96)
    apart = [
        np.mean(
            [
                np.abs(Change(name, strength, seed).apply(pixels, "a").astype(float) - pixels).mean()
                for seed in range(20)
            ]
        )
        for strength in PERTURBATIONS[name].strengths
    ]
    assert apart == sorted(apart)
    assert apart[-1] > 1


@pytest.mark.parametrize(("name", "strength"), STEPS)
def test_a_change_depends_on_seed_and_id_alone(name: str, strength: float):
    one = Change(name, strength, 3).apply(picture(), "id")
    np.testing.assert_array_equal(one, Change(name, strength, 3).apply(picture(), "id"))


@pytest.mark.parametrize("name", ["rotation", "shift", "crop", "brightness", "hue", "noise", "occlusion"])
def test_what_a_strength_leaves_open_differs_between_images(name: str):
    strength = PERTURBATIONS[name].strengths[2]
    drawn = {Change(name, strength).apply(picture(), str(i)).tobytes() for i in range(12)}
    assert len(drawn) >= 2


def test_turns_of_quarters_are_exact_and_others_agree_with_scipy():
    pixels = picture(49)
    for angle, times in ((90, 1), (180, 2)):
        both = [np.rot90(pixels, k) for k in (times, -times)]
        turned = Change("rotation", angle).apply(pixels, "a")
        assert any(np.array_equal(turned, one) for one in both)
    turned = Change("rotation", 30).apply(pixels, "a").astype(float)
    others = [
        rotated_by_scipy(pixels.astype(float), sign * 30, reshape=False, order=1, mode="reflect")
        for sign in (1, -1)
    ]
    # Inside the circle no border shows.
    y, x = np.mgrid[:49, :49] - 24
    inside = np.hypot(x, y) < 22
    assert min(np.abs(turned - one)[inside].max() for one in others) < 8


def test_closed_forms():
    pixels = picture()
    grey = Change("grayscale", 1).apply(pixels, "a")
    assert (np.ptp(grey, axis=2) == 0).all()
    np.testing.assert_array_equal(Change("flip", 1).apply(pixels, "a"), pixels[:, ::-1])
    covered = Change("occlusion", 0.25).apply(pixels, "a")
    assert (covered == pixels.mean(axis=(0, 1)).round()).all(axis=2).sum() >= 24 * 24
    flat = np.full((32, 32, 3), 100, np.uint8)
    noisy = Change("noise", 0.1).apply(flat, "a").astype(float)
    assert noisy.std() == pytest.approx(25.5, rel=0.05)
    assert np.unique(Change("brightness", 1).apply(flat, "a")).tolist() in ([50], [200])
    low = Change("contrast", 0.5).apply(pixels, "a").astype(float)
    assert low.std() == pytest.approx(pixels.std() / 2, rel=0.1)
    # A shift by whole pixels moves columns and rows as they are.
    shifted = Change("shift", 0.2).apply(pixels, "a")
    assert set(map(tuple, shifted.reshape(-1, 3))) <= set(map(tuple, pixels.reshape(-1, 3)))
    impulse = np.zeros((65, 65, 3), np.uint8)
    impulse[32, 32] = 255
    spread = Change("blur", 2 / 65).apply(impulse, "a").astype(float)
    y, x = np.mgrid[:65, :65] - 32
    expected = 255 * np.exp(-(x**2 + y**2) / 8) / (2 * np.pi * 4)
    np.testing.assert_allclose(spread[..., 0], expected, atol=1)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["rotaton"], "rotation"),
        (["rotation=15/x"], "numbers"),
        (["rotation=0"], "change something"),
        (["rotation=15/15"], "different"),
        (["rotation=270"], "0 to 180"),
        (["blur", "blur=0.1"], "twice"),
        ([], "at least one"),
    ],
)
def test_what_cannot_be_read_is_refused(words: list[str], part: str):
    with pytest.raises(InputError, match=part):
        parse_perturbations(words)


def test_all_are_read_by_default():
    found = parse_perturbations(None, seed=4)
    assert list(found) == list(PERTURBATIONS)
    assert found["flip"] == [Change("flip", 1, 4)]


def test_a_perturbed_set_keeps_ids_order_and_classes():
    images = image_set()
    changed = images.perturbed("rotation", 45)
    assert changed.ids.tolist() == images.ids.tolist()
    assert changed.splits.tolist() == images.splits.tolist()
    assert list(changed.targets) == ["class"]
    assert changed.digest != images.digest
    assert changed.digest == images.perturbed("rotation", 45).digest
    assert len({images.perturbed("rotation", 45, seed=seed).digest for seed in range(3)}) == 3
    np.testing.assert_array_equal(
        changed.pixels(2, NATIVE), Change("rotation", 45).apply(images.pixels(2, NATIVE), images.ids[2])
    )
    np.testing.assert_array_equal(np.asarray(changed.image(2)), changed.pixels(2, NATIVE))


def test_views_hold_every_image_under_every_change():
    images = image_set()
    changes = [Change("flip", 1), Change("blur", 0.1)]
    views = images.with_views(changes)
    assert len(views) == 18
    assert views.ids[[0, 6, 12]].tolist() == ["000000", "000000~flip@1", "000000~blur@0.1"]
    assert views.targets["class"].values.tolist() == images.targets["class"].values.tolist() * 3
    np.testing.assert_array_equal(views.pixels(1, NATIVE), images.pixels(1, NATIVE))
    np.testing.assert_array_equal(views.pixels(7, NATIVE), images.pixels(1, NATIVE)[:, ::-1])
    part = views.select([13, 7])
    assert part.ids.tolist() == ["000001~blur@0.1", "000001~flip@1"]
    np.testing.assert_array_equal(part.pixels(1, NATIVE), images.pixels(1, NATIVE)[:, ::-1])
    # What is drawn belongs to the image, wherever it stands.
    moved = images.select([4, 1]).perturbed("shift", 0.3)
    np.testing.assert_array_equal(moved.pixels(1, NATIVE), images.perturbed("shift", 0.3).pixels(1, NATIVE))


def test_a_selection_of_changed_images_is_not_taken_for_the_images(tmp_path):
    images = image_set()
    changed = images.perturbed("noise", 0.2)
    assert changed.select([0, 1]).digest != images.select([0, 1]).digest
    assert changed.select([0, 1]).digest != images.perturbed("noise", 0.4).select([0, 1]).digest
    # Kept pixels of the images are not those of the changed ones, which are changed after resizing.
    small = Preprocessing(12, 12)
    with kept_pixels(images, tmp_path) as kept:
        before = kept.pixels(0, small)
        again = kept.perturbed("noise", 0.2)
        np.testing.assert_array_equal(again.pixels(0, small), changed.pixels(0, small))
        with kept_pixels(again, tmp_path) as twice:
            for _ in range(2):
                np.testing.assert_array_equal(twice.pixels(0, small), changed.pixels(0, small))
        np.testing.assert_array_equal(kept.pixels(0, small), before)
