"""MobileNetV2 as TensorFlow trained it: padded as its ``SAME`` does, which timm's own name does not.

    probekit layers analyses/backbones/mobilenet_v2.py:mobilenet_v2_same:imagenet_mobilenetv2_100_qat_fp16.pth

Names and shapes are those of timm's ``mobilenetv2_100``, so that no check of the weights can tell the two
apart; ``probekit verify`` can, where there are labelled images. Input in [−1, 1], bicubic.
"""

from __future__ import annotations

import timm
from torch import nn


def mobilenet_v2_same() -> nn.Module:
    """Return timm's MobileNetV2 with TensorFlow's padding and freshly drawn weights."""
    half = (0.5, 0.5, 0.5)
    settings = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}
    module: nn.Module = timm.create_model(
        "mobilenetv2_100", pad_type="same", pretrained_cfg={**settings, "mean": half, "std": half}
    )
    return module
