"""ResNets that timm lacks: with the stem for small images, narrower and wider throughout."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

# Depth → block and blocks a stage. Source: He et al. (CVPR 2016), table 1; 200: He et al. (ECCV 2016).
STAGES: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}


def build_small_stem(depth: int, padding: int = 1, num_classes: int = 1000) -> nn.Module:
    """Build a ResNet for images of about 32 px: a 3×3 first convolution of stride 1, and no max-pooling.

    Source: Chen et al., *A Simple Framework for Contrastive Learning of Visual Representations* (ICML 2020),
    appendix B.9.

    Args:
        depth: Number of layers, a key of ``STAGES``.
        padding: Of the first convolution: 1 in most code, 2 in solo-learn's. The weights do not show it, and
            the two are different functions near the border.
        num_classes: Outputs of the classifier.

    Examples:
        >>> import torch
        >>> build_small_stem(18, 2, 10)(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    block, stages = STAGES[depth]
    module: nn.Module = ResNet(block, list(stages), num_classes=num_classes)
    stem = module.conv1 = nn.Conv2d(3, 64, 3, padding=padding, bias=False)
    module.maxpool = nn.Identity()
    _draw(stem)
    return module


def build_narrow(depth: int, width: int, stride: int, num_classes: int = 1000) -> nn.Module:
    """Build a ResNet of basic blocks that a processor can train: a narrow one, for images of 32 to 64 px.

    Args:
        depth: Number of layers: 10, 18 or 34.
        width: Channels of the first stage; each stage doubles them.
        stride: Of the 3×3 first convolution; there is no max-pooling.
        num_classes: Outputs of the classifier.

    Examples:
        >>> module = build_narrow(10, 16, 2, 20)
        >>> module.fc.in_features, sum(one.numel() for one in module.parameters()) // 1000
        (128, 310)
    """
    block, stages = STAGES[depth]
    module = ResNet(block, list(stages), num_classes=num_classes)
    module.conv1 = nn.Conv2d(3, width, 3, stride, 1, bias=False)
    module.bn1 = nn.BatchNorm2d(width)
    module.maxpool = nn.Identity()
    module.inplanes = width
    for place, blocks in enumerate(stages):
        layer = module._make_layer(block, width * 2**place, blocks, 1 if place == 0 else 2)
        setattr(module, f"layer{place + 1}", layer)
    module.fc = nn.Linear(width * 8, num_classes)
    for one in module.modules():
        if isinstance(one, nn.Conv2d):
            _draw(one)
    narrow: nn.Module = module
    return narrow


class WideResNet(ResNet):  # type: ignore[misc] # torchvision has no types
    """A ResNet all of whose layers are wider by one factor, the stem included.

    torchvision's ``wide_resnet50_2`` widens only what is inside its bottlenecks. Source: Kolesnikov, Zhai &
    Beyer, *Revisiting Self-Supervised Visual Representation Learning* (CVPR 2019), section 3.

    Args:
        depth: Number of layers, a key of ``STAGES`` with bottlenecks.
        factor: How much wider.
        num_classes: Outputs of the classifier.

    Examples:
        >>> WideResNet(50, 2).fc.in_features
        4096
    """

    def __init__(self, depth: int, factor: int, num_classes: int = 1000) -> None:
        block, stages = STAGES[depth]
        self.factor = factor
        super().__init__(block, list(stages), num_classes=num_classes)
        self.conv1 = nn.Conv2d(3, 64 * factor, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64 * factor)
        self.fc = nn.Linear(512 * factor * block.expansion, num_classes)
        _draw(self.conv1)

    def _make_layer(
        self,
        block: type[BasicBlock | Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        if planes == 64:
            self.inplanes = 64 * self.factor
        made: nn.Sequential = super()._make_layer(block, planes * self.factor, blocks, stride, dilate)
        return made


def _draw(convolution: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
