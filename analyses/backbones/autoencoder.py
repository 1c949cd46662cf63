"""The encoder of a small convolutional autoencoder trained on CIFAR-10 without labels.

    probekit layers analyses/backbones/autoencoder.py:encoder:cifar10_conv_autoencoder.pth

It takes 32 px images in [0, 1]; the decoder's entries in the checkpoint are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Encoder(nn.Module):
    """Two strided convolutions."""

    # How its images are prepared, in timm's words.
    pretrained_cfg: Mapping[str, Any] = {
        "input_size": (3, 32, 32),
        "crop_pct": 1.0,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=4), nn.ReLU(), nn.Conv2d(32, 48, 3, stride=3, padding=2), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, 32, 32) images to (N, 48, 4, 4)."""
        maps: Tensor = self.encoder(images)
        return maps


def encoder() -> nn.Module:
    """Return the encoder with freshly drawn weights."""
    return Encoder()
