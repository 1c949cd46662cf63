"""MobileNetV1 at a quarter of its width, before and after training a face detector.

    probekit layers analyses/backbones/mobilenet_v1.py:mobilenet_v1_025:imagenet_mobilenetv1_025.pth --blocks

In the detector (``widerface_retinaface_mobilenetv1_025.pth``) the same body stands under ``body.``, which is
found by itself; ``retinaface_body`` prepares images as it was trained: RGB values from 0 to 255 with 104, 117
and 123 taken off, not ImageNet's scaling. Source: Howard et al., *MobileNets* (2017), table 1, α = 0.25;
leaky ReLUs of slope 0.1, as in the shared RetinaFace checkpoints.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
SLOPE = 0.1
# Channels out and stride of each separable block, stage by stage; the stem comes before.
STAGES = (
    ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)),
    ((128, 2), *[(128, 1)] * 5),
    ((256, 2), (256, 1)),
)


class MobileNetV1(nn.Module):
    """Three stages of depthwise separable convolutions and a linear classifier.

    Args:
        mean: What is taken off each channel of images in [0, 1].
        std: What it is then divided by.
    """

    def __init__(self, mean: Triple = IMAGENET_MEAN, std: Triple = IMAGENET_STD) -> None:
        super().__init__()
        # How its images are prepared, in timm's words.
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (3, 224, 224),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": mean,
            "std": std,
        }
        channels, stages = 8, []
        for number, stage in enumerate(STAGES):
            blocks = [] if number else [_stem(channels)]
            for wide, stride in stage:
                blocks.append(_separable(channels, wide, stride))
                channels = wide
            stages.append(nn.Sequential(*blocks))
        self.stage1, self.stage2, self.stage3 = stages
        self.avg = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) images to (N, C) logits."""
        maps = self.stage3(self.stage2(self.stage1(images)))
        logits: Tensor = self.fc(self.avg(maps).flatten(1))
        return logits


def mobilenet_v1_025() -> nn.Module:
    """Return the classifier with freshly drawn weights, for images as ImageNet's are prepared."""
    return MobileNetV1()


def retinaface_body() -> nn.Module:
    """Return the same network for images as the face detector takes them."""
    return MobileNetV1(mean=(104 / 255, 117 / 255, 123 / 255), std=(1 / 255, 1 / 255, 1 / 255))


def _stem(channels: int) -> nn.Sequential:
    return nn.Sequential(*_unit(3, channels, 3, stride=2))


def _separable(channels: int, wide: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*_unit(channels, channels, 3, stride, groups=channels), *_unit(channels, wide, 1))


def _unit(channels: int, wide: int, side: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, wide, side, stride, side // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(wide), nn.LeakyReLU(SLOPE)]
