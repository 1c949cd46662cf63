"""ShuffleNetV2 at half its width without a classifier, before and after training an object detector.

    probekit layers analyses/backbones/shufflenet_v2.py:shufflenet_v2_05:shufflenetv2_05_backbone.pth --blocks

In the detector (``coco_fastestdet_shufflenetv2_05.pth``) the same body stands under ``backbone.``, which is
found by itself. The detector takes values in [0, 1], blue before red, with no mean taken off. Of the body
alone its source does not say it, but ``probekit verify`` on natural images does: 0.07 nats from what its
first batch norm kept, against 10 with ImageNet's mean and std. Source: Ma, Zhang, Zheng, Sun, *ShuffleNet V2*
(ECCV 2018), figure 3(c, d) and table 5; the halves are even and odd channels, a split after a shuffle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Channels and blocks of each stage.
STAGES = ((48, 4), (96, 8), (192, 4))


class Block(nn.Module):
    """One basic unit: half of the channels passes on, the other goes through the branch.

    With stride 2 there are no halves: both branches take everything.
    """

    def __init__(self, channels: int, wide: int, stride: int) -> None:
        super().__init__()
        half = wide // 2
        self.branch_main = nn.Sequential(
            *_unit(channels, half, 1),
            *_unit(half, half, 3, stride, groups=half, active=False),
            *_unit(half, half, 1),
        )
        self.branch_proj = (
            nn.Sequential(
                *_unit(channels, channels, 3, stride, groups=channels, active=False),
                *_unit(channels, half, 1),
            )
            if stride > 1
            else None
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, D_in, H, W) to (N, D, H / stride, W / stride)."""
        if self.branch_proj is not None:
            return torch.cat([self.branch_proj(maps), self.branch_main(maps)], dim=1)
        return torch.cat([maps[:, 0::2], self.branch_main(maps[:, 1::2])], dim=1)


class ShuffleNetV2(nn.Module):
    """A stem, a pooling and three stages; the output is the last map (N, 192, H / 32, W / 32)."""

    # How its images are prepared, in timm's words.
    pretrained_cfg: Mapping[str, Any] = {
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }

    def __init__(self) -> None:
        super().__init__()
        channels = 24
        self.first_conv = nn.Sequential(*_unit(3, channels, 3, 2))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages = []
        for wide, count in STAGES:
            first = Block(channels, wide, 2)
            stages.append(nn.Sequential(first, *(Block(wide // 2, wide, 1) for _ in range(count - 1))))
            channels = wide
        self.stage2, self.stage3, self.stage4 = stages

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) images in RGB to (N, 192, H / 32, W / 32)."""
        blue_first = images.flip(1)
        maps: Tensor = self.stage4(self.stage3(self.stage2(self.maxpool(self.first_conv(blue_first)))))
        return maps


def shufflenet_v2_05() -> nn.Module:
    """Return the body with freshly drawn weights."""
    return ShuffleNetV2()


def _unit(
    channels: int, wide: int, side: int, stride: int = 1, groups: int = 1, *, active: bool = True
) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, wide, side, stride, side // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(wide), *([nn.ReLU()] if active else [])]
