"""torchvision's DeepLabv3 head over a map that comes from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from probekit.errors import InputError

# Dilations as shares of the side of the map: 6, 12, 18 of the 33 positions of a 513-pixel input at stride 16.
DILATIONS = (6 / 33, 12 / 33, 18 / 33)
# Fewest positions a side at which they differ.
LEAST_SIDE = 6


class Atrous(nn.Module):
    """Convolutions of three dilations, one of 1 × 1 and the mean of the map side by side, then two more.

    Source: Chen, Papandreou, Schroff and Adam, Rethinking Atrous Convolution for Semantic Image Segmentation
    (2017), section 3.3. Dilations keep their share of the image, so that no convolution is wider than a small
    map; the stride of the backbone stays as it is.

    Args:
        shape: (D, H, W) of the map.
        classes: C classes.
        size: Side of the input in pixels.

    Raises:
        InputError: If the map is so small that dilations would be equal.
    """

    def __init__(self, shape: Sequence[int], classes: int, size: int) -> None:
        super().__init__()
        width, *sides = shape
        if min(sides) < LEAST_SIDE:
            raise InputError(
                f"a deepest map of at least {LEAST_SIDE} × {LEAST_SIDE} positions for DeepLabv3",
                f"{sides[0]} × {sides[1]} at an input of {size}",
                "Raise the input with size=, or choose segmentation/one-layer",
            )
        rates = [round(share * min(sides)) for share in DILATIONS]
        self.layers = nn.Sequential(
            nn.BatchNorm2d(width, affine=False),
            DeepLabHead(width, classes, rates),
            nn.Upsample((size, size), mode="bilinear", align_corners=False),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, D, H, W) to (N, C, S, S) logits.

        Raises:
            InputError: If one image alone is trained on: its mean over the map has no variance.
        """
        if self.training and len(maps) < 2:
            raise InputError(
                "at least two images a batch while DeepLabv3 is trained", "1", "Raise batch_size"
            )
        logits: Tensor = self.layers(maps)
        return logits
