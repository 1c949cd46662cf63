"""How near an image is to another: signal to noise, structure, gradients. Nothing is learnt or downloaded.

Letters: N images of H × W pixels, x and y two images with values in [0, 1], μ, σ² and σ_xy local means,
variances and covariance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import convolve1d, correlate1d

from probekit.errors import InputError, NonFiniteFeatures
from probekit.functional.arguments import FloatArray

# The window of SSIM, and what keeps its quotients finite.
_SSIM_RADIUS, _SSIM_SIGMA = 5, 1.5
_C1, _C2 = 0.01**2, 0.03**2
# Weights of four scales, masking and constant of MS-GMSD, for values up to 255.
_SCALES = (0.096, 0.596, 0.289, 0.019)
_MASKING, _STEADY = 0.5, 170.0
_LUMA = (0.299, 0.587, 0.114)


def peak_signal_to_noise(x: ArrayLike, y: ArrayLike) -> FloatArray:
    """Return 10·log₁₀(1/MSE) in decibels, over pixels and colours; infinite for equal images.

    Args:
        x: (N, H, W, 3) in [0, 1].
        y: (N, H, W, 3) in [0, 1].

    Returns:
        (N,) values; higher is nearer.

    Raises:
        InputError: If the shapes are not those, or differ, or values lie outside [0, 1].
        NonFiniteFeatures: If a value is NaN or infinite.

    Examples:
        >>> grey = np.full((1, 4, 4, 3), 0.5)
        >>> peak_signal_to_noise(grey, grey + 0.1).round(6).tolist()
        [20.0]
    """
    a, b = check_images(x, y, 1)
    with np.errstate(divide="ignore"):
        return np.asarray(-10 * np.log10(np.square(a - b).mean(axis=(1, 2, 3))))


def structural_similarity(x: ArrayLike, y: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return SSIM, −1 … 1, and its map; 1 for equal images.

    (2μ_x μ_y + C₁)(2σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂)), with Gaussian windows of 11 pixels
    and σ = 1.5, averaged over colours; only windows inside the image count. Source: Wang, Bovik, Sheikh and
    Simoncelli, Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE Trans. Image
    Processing 13 (2004), equation 13. Images are not made smaller first.

    Args:
        x: (N, H, W, 3) in [0, 1], at least 11 pixels a side.
        y: (N, H, W, 3) in [0, 1].

    Returns:
        (N,) means, and (N, H − 10, W − 10) maps.

    Raises:
        InputError: If the shapes are not those, or differ, or values lie outside [0, 1].
        NonFiniteFeatures: If a value is NaN or infinite.
    """
    a, b = check_images(x, y, 2 * _SSIM_RADIUS + 1)
    mean_a, mean_b = _windowed(a), _windowed(b)
    own_a, own_b = _windowed(a * a) - mean_a**2, _windowed(b * b) - mean_b**2
    both = _windowed(a * b) - mean_a * mean_b
    structure = (2 * both + _C2) / (own_a + own_b + _C2)
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    maps = (structure * luminance).mean(axis=3)
    return maps.mean(axis=(1, 2)), maps


def gradient_deviation(x: ArrayLike, y: ArrayLike) -> FloatArray:
    """Return MS-GMSD, 0 … about 0.5: how unevenly gradients agree over four scales; 0 for equal images.

    Of luma, Prewitt gradients m at each scale: s = ((2 − α)·m_x m_y + c)/(m_x² + m_y² − α·m_x m_y + c), and
    the root of the weighted sum of the variances of s. Source: Zhang, Sander and Bermak, Gradient Magnitude
    Similarity Deviation on Multiple Scales for Color Image Quality Assessment (ICASSP 2017), without colour.

    Args:
        x: (N, H, W, 3) in [0, 1], at least 17 pixels a side.
        y: (N, H, W, 3) in [0, 1].

    Returns:
        (N,) values; lower is nearer.

    Raises:
        InputError: If the shapes are not those, or differ, or values lie outside [0, 1].
        NonFiniteFeatures: If a value is NaN or infinite.
    """
    a, b = (255 * one @ np.array(_LUMA) for one in check_images(x, y, 2 ** len(_SCALES) + 1))
    total = np.zeros(len(a))
    for place, weight in enumerate(_SCALES):
        if place:
            a, b = _halved(a), _halved(b)
        m, n = _gradients(a), _gradients(b)
        alike = ((2 - _MASKING) * m * n + _STEADY) / (m**2 + n**2 - _MASKING * m * n + _STEADY)
        total += weight * alike.var(axis=(1, 2))
    return np.asarray(np.sqrt(total))


def check_images(x: ArrayLike, y: ArrayLike, least: int) -> tuple[FloatArray, FloatArray]:
    """Return two stacks of images (N, H, W, 3) in [0, 1], at least ``least`` pixels a side.

    Raises:
        InputError: If the shapes are not those, or differ, or values lie outside [0, 1].
        NonFiniteFeatures: If a value is NaN or infinite.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.shape != b.shape or a.ndim != 4 or a.shape[3] != 3 or min(a.shape[1:3]) < least or not len(a):
        raise InputError(
            f"two stacks of images of one shape (N, H, W, 3), at least {least} pixels a side",
            f"{a.shape} and {b.shape}",
            "Resize them alike",
        )
    for one in (a, b):
        if not np.isfinite(one).all():
            raise NonFiniteFeatures("finite pixels", "NaN or infinity", "Look at how the image was made")
        if one.min() < 0 or one.max() > 1:
            raise InputError(
                "pixels in [0, 1]", f"{one.min():g} to {one.max():g}", "Divide 8-bit pixels by 255, or clip"
            )
    return a, b


def _windowed(images: FloatArray) -> FloatArray:
    """Return Gaussian means of windows inside the image."""
    places = np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1)
    window = np.exp(-(places**2) / (2 * _SSIM_SIGMA**2))
    window /= window.sum()
    means = correlate1d(correlate1d(images, window, axis=1), window, axis=2)
    inside = slice(_SSIM_RADIUS, -_SSIM_RADIUS)
    return np.asarray(means[:, inside, inside])


def _gradients(images: FloatArray) -> FloatArray:
    """Return magnitudes of Prewitt gradients, the image surrounded by zeros."""
    step, mean = [-1.0, 0.0, 1.0], [1 / 3, 1 / 3, 1 / 3]
    down, across = (
        convolve1d(convolve1d(images, step, axis=one, mode="constant"), mean, axis=other, mode="constant")
        for one, other in ((1, 2), (2, 1))
    )
    return np.asarray(np.hypot(down, across))


def _halved(images: FloatArray) -> FloatArray:
    """Return means of 2 × 2 pixels; an odd side gets a row of zeros first, as in the published code."""
    odd = max(images.shape[1] % 2, images.shape[2] % 2)
    padded = np.pad(images, ((0, 0), (0, odd), (0, odd)))
    height, width = (side // 2 for side in padded.shape[1:])
    cut = padded[:, : 2 * height, : 2 * width]
    return np.asarray(cut.reshape(len(cut), height, 2, width, 2).mean(axis=(2, 4)))
