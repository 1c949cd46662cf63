"""Augmentations: words, identities, torchvision's functions, statistics, independence of what came before."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from probekit.errors import InputError
from probekit.training import augmentation as made
from probekit.training.augmentation import LADDER, Augmentation, augment, parse_augmentation


def pixels(n: int = 40, side: int = 24, seed: int = 0) -> torch.Tensor:
    """Return smooth images: coarse noise made large."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 3, 5, 5)).astype(np.float32)
    fine = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=side, mode="bilinear")
    return fine.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


PIXELS = pixels()
PLAIN = PIXELS.permute(0, 3, 1, 2).float() / 255


def test_none_leaves_images_as_they_are():
    assert torch.equal(augment(PIXELS, parse_augmentation("none"), 24, 0), PLAIN)


def test_a_flip_is_a_mirror_and_happens_as_often_as_asked():
    views = augment(PIXELS, Augmentation(flip=1.0), 24, 0)
    assert torch.equal(views, PLAIN.flip(3))
    many = pixels(400)
    views = augment(many, Augmentation(flip=0.3), 24, 1)
    share = float((views != many.permute(0, 3, 1, 2) / 255).flatten(1).any(1).float().mean())
    assert 0.2 < share < 0.4


def test_a_crop_of_the_whole_image_only_resizes():
    views = augment(PIXELS, Augmentation(crop=(1.0, 1.0), ratio=(1.0, 1.0)), 48, 0)
    expected = tv.resize(PLAIN, [48, 48], antialias=False)
    torch.testing.assert_close(views, expected, atol=1e-5, rtol=0)


def test_a_flipped_crop_is_the_mirror_image_of_the_crop():
    crop = {"crop": (0.3, 0.8)}
    plain, mirrored = (augment(PIXELS, Augmentation(flip=flip, **crop), 16, 5) for flip in (0.0, 1.0))
    torch.testing.assert_close(mirrored, plain.flip(3), atol=1e-5, rtol=0)
    assert float((mirrored - plain).abs().max()) > 0.1


def test_crops_are_those_of_torchvision():
    """A crop at whole pixels, resized bilinearly, is torchvision's resized_crop."""
    ramp = torch.arange(24.0)
    image = (ramp[None, :] * 4 + ramp[:, None] * 6).expand(3, 24, 24)
    some = image.round().to(torch.uint8).permute(1, 2, 0)[None].repeat(200, 1, 1, 1)
    views = augment(some, Augmentation(crop=(0.25, 0.25), ratio=(1.0, 1.0)), 12, 3)
    # Of a ramp, a crop is a ramp: its corner says where it was, its slope how large.
    across = (views[:, 0, :, -1] - views[:, 0, :, 0]) * 255 / 11
    # Away from the border, where the last pixel is repeated, a step of a pixel is 4 across.
    assert float(across.median()) == pytest.approx(4.0, abs=0.05)
    corners = views[:, 0, 0, 0] * 255
    assert float(corners.min()) < 20
    assert float(corners.max()) > 95


def test_area_and_aspect_are_drawn_as_by_torchvision(monkeypatch: pytest.MonkeyPatch):
    grids = []
    original = torch.nn.functional.grid_sample

    def kept(images: torch.Tensor, grid: torch.Tensor, **rest: object) -> torch.Tensor:
        grids.append(grid)
        return original(images, grid, **rest)

    monkeypatch.setattr(torch.nn.functional, "grid_sample", kept)
    augment(pixels(4000), Augmentation(crop=(0.2, 1.0)), 24, 0)
    (grid,) = grids
    # From the first centre of a pixel to the last are 23/24 of a side of length 2.
    width = ((grid[:, 0, -1, 0] - grid[:, 0, 0, 0]).abs() * 24 / 23 / 2).numpy()
    height = ((grid[:, -1, 0, 1] - grid[:, 0, 0, 1]).abs() * 24 / 23 / 2).numpy()
    large = torch.empty(3, 240, 240)
    crop = v2.RandomResizedCrop(24, (0.2, 1.0))
    torch.manual_seed(0)
    drawn = [crop.make_params([large]) for _ in range(4000)]
    theirs = np.array([[one["height"], one["width"]] for one in drawn]) / 240
    for quantile in (0.1, 0.3, 0.5, 0.7, 0.9):
        ours = np.quantile(width * height, quantile)
        assert ours == pytest.approx(np.quantile(theirs.prod(axis=1), quantile), abs=0.04)
        ours = np.quantile(width / height, quantile)
        assert ours == pytest.approx(np.quantile(theirs[:, 1] / theirs[:, 0], quantile), abs=0.04)


@pytest.mark.parametrize(
    ("place", "theirs"),
    [(0, tv.adjust_brightness), (1, tv.adjust_contrast), (2, tv.adjust_saturation)],
)
def test_changes_of_colour_are_torchvisions(place: int, theirs, monkeypatch: pytest.MonkeyPatch):
    most = tuple(0.5 if k == place else 0.0 for k in range(3))
    factors = []
    original = made.random_stream

    class Told:
        """A stream that keeps the factors it drew."""

        def __init__(self, stream: np.random.Generator) -> None:
            self.stream = stream

        def __getattr__(self, name: str) -> object:
            return getattr(self.stream, name)

        def uniform(self, low, high, size=None):
            values = self.stream.uniform(low, high, size)
            if np.shape(values) == (3, 40):
                factors.append(1 + 0.5 * values[place])
            return values

    monkeypatch.setattr(made, "random_stream", lambda *keys: Told(original(*keys)))
    views = augment(PIXELS, Augmentation(jitter=(*most, 0.0), jitter_share=1.0), 24, 0)
    expected = torch.stack([theirs(image, float(f)) for image, f in zip(PLAIN, factors[0], strict=True)])
    # torchvision takes 0.2989, 0.587 and 0.114 for grey.
    torch.testing.assert_close(views, expected, atol=5e-4, rtol=0)


def test_grey_images_have_three_equal_colours_and_their_luma():
    views = augment(PIXELS, Augmentation(grey=1.0), 24, 0)
    torch.testing.assert_close(views, tv.rgb_to_grayscale(PLAIN, 3), atol=5e-4, rtol=0)


def test_a_turn_of_hue_keeps_luma_and_greys_and_comes_round():
    turns = np.array([0.0, 0.25, 1.0])
    rotations = made._hue(turns)
    np.testing.assert_allclose(rotations[0], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotations[2], np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.array(made.GREY) @ rotations[1], made.GREY, atol=1e-3)
    np.testing.assert_allclose(rotations[1] @ np.ones(3), np.ones(3), atol=1e-3)
    assert np.abs(rotations[1] - np.eye(3)).max() > 0.3


def test_a_blur_is_torchvisions(monkeypatch: pytest.MonkeyPatch):
    side = 24
    blurred = augment(PIXELS, Augmentation(blur=(9.0, 9.0), blur_share=1.0), side, 0)
    radius = int(np.ceil(2 * 9.0 * side / 224))
    sigma = 9.0 * side / 224
    expected = tv.gaussian_blur(PLAIN, [2 * radius + 1, 2 * radius + 1], [sigma, sigma])
    inner = slice(radius, -radius)
    torch.testing.assert_close(blurred[..., inner, inner], expected[..., inner, inner], atol=1e-5, rtol=0)
    assert float((blurred - PLAIN).abs().max()) > 0.02


def test_half_of_the_images_are_left_sharp():
    views = augment(pixels(400), Augmentation(blur=(9.0, 9.0), blur_share=0.5), 24, 0)
    same = (views == pixels(400).permute(0, 3, 1, 2).float() / 255).flatten(1).all(1).float().mean()
    assert 0.4 < float(same) < 0.6


def test_equal_keys_give_equal_views_whatever_came_before():
    words = parse_augmentation("frcgb")
    one = augment(PIXELS, words, 24, 7, 3, 0)
    augment(PIXELS, words, 24, 7, 4, 0)
    torch.rand(3)
    assert torch.equal(one, augment(PIXELS, words, 24, 7, 3, 0))
    assert not torch.equal(one, augment(PIXELS, words, 24, 7, 3, 1))
    assert not torch.equal(one, augment(PIXELS, words, 24, 8, 3, 0))


@given(st.sampled_from([*LADDER, "none"]), st.integers(0, 5), st.sampled_from([16, 24, 32]))
def test_views_are_images(rung: str, seed: int, size: int):
    views = augment(PIXELS[:6], parse_augmentation(rung), size, seed)
    assert views.shape == (6, 3, size, size)
    assert views.dtype == torch.float32
    assert bool(((views >= 0) & (views <= 1)).all())


def test_the_ladder_is_cumulative():
    rungs = [LADDER[name] for name in ("f", "fr", "frc", "frcg", "frcgb")]
    for below, above in itertools.pairwise(rungs):
        assert above[: len(below)] == below
        assert len(above) == len(below) + 1


def test_words_with_numbers():
    found = parse_augmentation("flip=0.2+crop=0.3/0.9+jitter=0.1/0.2/0.3/0.05@0.6+blur=1/3@0.25")
    assert found == Augmentation(
        0.2, (0.3, 0.9), (3 / 4, 4 / 3), (0.1, 0.2, 0.3, 0.05), 0.6, 0.0, (1.0, 3.0), 0.25
    )
    assert found.facts()["crop"] == [0.3, 0.9]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("flop", "Nearest: flip"),
        ("flip+flip", "'flip' twice"),
        ("crop=0.5", "2 numbers, as in crop=0.2/1"),
        ("crop=2/3", "two rising numbers for crop"),
        ("grey=2", "probability for grey"),
        ("grey=0.1@0.5", "1 numbers"),
        ("jitter=a/b/c/d", "numbers as in jitter"),
        ("jitter=0.4/0.4/0.4/0.9", "changes of colour"),
    ],
)
def test_words_that_mean_nothing_are_refused(words: str, message: str):
    with pytest.raises(InputError, match=message):
        parse_augmentation(words)
