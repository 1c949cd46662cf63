"""torchvision's FCOS on one level over a map that comes from elsewhere."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList

from probekit.functional.detection import MOST_DETECTIONS

# Channels of the head; strides of its level, of which the one nearest to 1/16 of the side is taken.
WIDTH, STRIDES = 64, (4, 8, 16)
# Detections below this score are left out, as are those that overlap a better one of their class by more.
LEAST_SCORE, MOST_OVERLAP = 0.05, 0.6


class Level(nn.Module):
    """A map in the channels of the head, enlarged to its level.

    Args:
        channels: Of the map.
        side: Positions a side of the level.
    """

    out_channels = WIDTH

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels, affine=False), nn.Conv2d(channels, WIDTH, 1), nn.ReLU()
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, D, H, W) to (N, 64, side, side)."""
        made: Tensor = self.layers(maps)
        # Group norm of bfloat16 takes 15 to 30 times as long on a CPU where channels come last.
        return F.interpolate(made, (self.side, self.side), mode="bilinear", align_corners=False).contiguous()


class OneStage(nn.Module):
    """A detector whose backbone is elsewhere.

    Args:
        channels: Of the map it is given.
        classes: Number of classes.
        size: Side of the images in pixels.
    """

    def __init__(self, channels: int, classes: int, size: int) -> None:
        super().__init__()
        stride = min(STRIDES, key=lambda one: abs(math.log2(16 * one / size)))
        self.size, self.side = size, size // stride
        self.detector = FCOS(
            Level(channels, self.side), classes, anchor_generator=AnchorGenerator(((stride,),), ((1.0,),)),
            score_thresh=LEAST_SCORE, nms_thresh=MOST_OVERLAP, detections_per_img=MOST_DETECTIONS,
        )  # fmt: skip

    def forward(self, maps: Tensor) -> dict[str, Any]:
        """Return what loss and detections are made from: ``made``, ``anchors``, and who makes them."""
        level = self.detector.backbone(maps)
        frame = ImageList(
            maps.new_empty(len(maps), 3, self.size, self.size), [(self.size, self.size)] * len(maps)
        )
        return {
            "detector": self.detector,
            "made": self.detector.head([level]),
            "anchors": self.detector.anchor_generator(frame, [level]),
            "places": self.side**2,
            "size": self.size,
        }
