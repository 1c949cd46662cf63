"""Image quality: closed forms and piq."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from probekit.errors import InputError, NonFiniteFeatures
from probekit.functional import gradient_deviation, peak_signal_to_noise, structural_similarity

piq = pytest.importorskip("piq", reason="piq is an oracle of image quality (extra [oracles])")


def pair(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return three smooth images, and the same under noise."""
    random = np.random.default_rng(seed)
    x = gaussian_filter(random.uniform(size=(3, height, width, 3)), (0, 1.5, 1.5, 0))
    x = (x - x.min()) / (x.max() - x.min())
    return x, np.clip(x + 0.1 * random.normal(size=x.shape), 0, 1)


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 48), (128, 97)])
def test_values_are_those_of_piq(height: int, width: int):
    x, y = pair(height, width)
    a, b = tensor(x), tensor(y)
    np.testing.assert_allclose(peak_signal_to_noise(x, y), piq.psnr(a, b, reduction="none"), rtol=1e-5)
    values, maps = structural_similarity(x, y)
    np.testing.assert_allclose(values, piq.ssim(a, b, reduction="none", downsample=False), rtol=1e-6)
    assert maps.shape == (3, height - 10, width - 10)
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), values)
    expected = piq.multi_scale_gmsd(a, b, reduction="none", chromatic=False)
    np.testing.assert_allclose(gradient_deviation(x, y), expected, rtol=1e-5)


def test_equal_images_are_as_near_as_can_be():
    x, _ = pair(32, 32)
    assert np.isinf(peak_signal_to_noise(x, x)).all()
    values, maps = structural_similarity(x, x)
    assert values == pytest.approx(1)
    assert maps == pytest.approx(1)
    assert gradient_deviation(x, x) == pytest.approx(0)


def test_more_noise_is_further_and_order_does_not_matter():
    x, _ = pair(48, 48)
    noise = np.random.default_rng(1).normal(size=x.shape)
    worse = [np.clip(x + size * noise, 0, 1) for size in (0.02, 0.05, 0.1, 0.3)]
    for measure, sign in (
        (peak_signal_to_noise, -1),
        (lambda a, b: structural_similarity(a, b)[0], -1),
        (gradient_deviation, 1),
    ):
        found = np.stack([sign * measure(x, one) for one in worse])
        assert (np.diff(found, axis=0) > 0).all()
        np.testing.assert_allclose(measure(x, worse[2]), measure(worse[2], x))


def test_a_shift_of_brightness_of_flat_images_has_a_closed_form():
    x, y = np.full((1, 20, 20, 3), 0.4), np.full((1, 20, 20, 3), 0.6)
    # Without structure only luminance counts.
    expected = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    assert structural_similarity(x, y)[0].item() == pytest.approx(expected)
    assert peak_signal_to_noise(x, y).item() == pytest.approx(10 * np.log10(1 / 0.04))


@pytest.mark.parametrize(
    ("x", "y", "part"),
    [
        (np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 3)), "at least 11"),
        (np.zeros((1, 16, 16, 3)), np.zeros((1, 16, 17, 3)), "one shape"),
        (np.zeros((1, 16, 16, 1)), np.zeros((1, 16, 16, 1)), "one shape"),
        (np.full((1, 16, 16, 3), 255.0), np.zeros((1, 16, 16, 3)), "Divide 8-bit"),
    ],
)
def test_what_cannot_be_compared_is_refused(x, y, part: str):
    with pytest.raises(InputError, match=part):
        structural_similarity(x, y)


def test_nan_is_refused():
    x = np.full((1, 20, 20, 3), np.nan)
    with pytest.raises(NonFiniteFeatures):
        gradient_deviation(x, x)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 48)])
def test_values_are_those_of_scikit_image(height: int, width: int):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is an oracle (extra [oracles])")
    x, y = pair(height, width)
    found, maps = structural_similarity(x, y)
    settings = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1, "channel_axis": 2}
    for place, (a, b) in enumerate(zip(x, y, strict=True)):
        expected = metrics.peak_signal_noise_ratio(a, b, data_range=1)
        assert peak_signal_to_noise(x, y)[place] == pytest.approx(expected)
        mean, own = metrics.structural_similarity(a, b, full=True, **settings)
        # Its Gaussian ends at 3.5 σ, which is 5 pixels; its mean leaves out the same border.
        assert found[place] == pytest.approx(mean)
        np.testing.assert_allclose(maps[place], own.mean(axis=2)[5:-5, 5:-5], atol=1e-6)
