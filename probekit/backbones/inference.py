"""Which architecture a checkpoint was made with, read from its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
import torch

from probekit.backbones.checkpoint import find_state_dicts
from probekit.errors import CheckpointError

# Blocks a stage, bottleneck or not → layers.
RESNETS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
# Width and groups of the 3×3 convolution of the first bottleneck, as (channels, channels a group) → variant.
BOTTLENECKS = {
    (64, 64): "resnet{}",
    (128, 128): "wide_resnet{}_2",
    (128, 4): "resnext{}_32x4d",
    (256, 8): "resnext{}_32x8d",
}
VITS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}


def infer_architecture(opened: Any, source: str) -> str:  # noqa: ANN401 - whatever the file holds
    """Return what a checkpoint looks like: a ResNet, a ViT, EfficientNet-Lite0, or what it says itself.

    Args:
        opened: What ``open_checkpoint`` returned.
        source: What to call the file in messages.

    Raises:
        CheckpointError: If nothing known is recognised.

    Examples:
        >>> names = [f"layer{stage}.{block}.conv1.weight" for stage in (1, 2, 3, 4) for block in (0, 1)]
        >>> tensors = {name: torch.zeros(64, 64, 3, 3) for name in names}
        >>> infer_architecture({"conv1.weight": torch.zeros(64, 3, 7, 7), **tensors}, "a.pth")
        'resnet18'
    """
    for state in find_state_dicts(opened):
        for read in (_resnet, _vit, _lite0):
            arch = read(state.tensors)
            if arch is not None and (arch.startswith("cifar") or timm.is_model(arch)):
                return arch
    said = opened.get("arch") if isinstance(opened, Mapping) else None
    if isinstance(said, str) and timm.is_model(said):
        return said
    raise CheckpointError(
        "a checkpoint of a ResNet, a ViT or EfficientNet-Lite0 where the architecture is auto",
        f"{source}, which looks like none of them",
        "Name its architecture, ARCH:CHECKPOINT",
    )


def _resnet(tensors: Mapping[str, torch.Tensor]) -> str | None:
    stem = next((name for name in tensors if name.endswith("layer1.0.conv1.weight")), None)
    if stem is None or any(".se." in name for name in tensors):
        return None
    prefix = stem.removesuffix("layer1.0.conv1.weight")
    numbers = [
        re.match(r"layer(\d)\.(\d+)\.conv1\.weight$", name[len(prefix) :])
        for name in tensors
        if name.startswith(prefix)
    ]
    blocks: dict[int, int] = {}
    for found in numbers:
        if found:
            stage, block = map(int, found.groups())
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    counts = tuple(blocks[stage] for stage in sorted(blocks))
    first = tensors.get(f"{prefix}conv1.weight")
    if first is not None and first.shape == (16, 3, 3, 3) and len(counts) == 3 and len(set(counts)) == 1:
        return f"cifar_resnet{6 * counts[0] + 2}"
    bottleneck = f"{prefix}layer1.0.conv3.weight" in tensors
    layers = RESNETS.get((counts, bottleneck))
    if layers is None or first is None or first.shape[-1] != 7:
        return None
    middle = tensors.get(f"{prefix}layer1.0.conv2.weight")
    if not bottleneck or middle is None:
        return f"resnet{layers}"
    variant = BOTTLENECKS.get((middle.shape[0], middle.shape[1]))
    return variant.format(layers) if variant else None


def _vit(tensors: Mapping[str, torch.Tensor]) -> str | None:
    patches = next((name for name in tensors if name.endswith("patch_embed.proj.weight")), None)
    if patches is None or tensors[patches].dim() != 4:
        return None
    prefix = patches.removesuffix("patch_embed.proj.weight")
    own = [name[len(prefix) :] for name in tensors if name.startswith(prefix)]
    numbers = {int(found.group(1)) for name in own if (found := re.match(r"blocks\.(\d+)\.norm1\.", name))}
    width, patch = tensors[patches].shape[0], tensors[patches].shape[-1]
    kind = VITS.get((width, len(numbers)))
    if kind is None or not {"cls_token", "pos_embed"} <= set(own):
        return None
    if "blocks.0.ls1.gamma" in own:
        registers = {"register_tokens", "reg_token"} & set(own)
        return f"vit_{kind}_patch{patch}{'_reg4' if registers else ''}_dinov2"
    return f"vit_{kind}_patch{patch}_224"


def _lite0(tensors: Mapping[str, torch.Tensor]) -> str | None:
    squeezes = any("_se_" in name for name in tensors)
    return "tf_efficientnet_lite0" if "_conv_stem.weight" in tensors and not squeezes else None
