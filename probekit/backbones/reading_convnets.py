"""Reading a convolutional network's size from the names and shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
import torchvision

from probekit.backbones.batch_norm import ROUNDING
from probekit.backbones.readings import Facts, Proposal, Tensors, below, count_blocks

# Blocks a stage, bottleneck or not → layers.
RESNETS: dict[tuple[tuple[int, ...], bool], int] = {
    ((1, 1, 1, 1), False): 10,
    ((1, 1, 1, 1), True): 14,
    ((2, 2, 2, 2), False): 18,
    ((2, 2, 2, 2), True): 26,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
    ((3, 24, 36, 3), True): 200,
}
# Width and groups of the 3×3 convolution of the first bottleneck, as (channels, channels a group) → variant.
BOTTLENECKS = {
    (64, 64): "resnet{}",
    (128, 128): "wide_resnet{}_2",
    (128, 4): "resnext{}_32x4d",
    (256, 8): "resnext{}_32x8d",
    (512, 16): "resnext{}_32x16d",
    (1024, 32): "resnext{}_32x32d",
    (256, 4): "resnext{}_64x4d",
}
# The stem of three convolutions, as (channels of the first, average pooling in shortcuts) → timm's letter.
DEEP_STEMS = {(32, True): "d", (24, True): "t", (32, False): "c", (64, False): "s"}
# An entry of the first block → how timm begins the names of such ResNets.
ATTENTIONS = {
    "layer1.0.se.fc1.weight": "se",
    "layer1.0.se.conv.weight": "eca",
}
CLIP_RESNETS: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (4, 6, 10, 6): "resnet50x4",
    (6, 8, 18, 8): "resnet50x16",
    (3, 15, 36, 10): "resnet50x64",
}
# Width of the first stage and blocks a stage → size.
CONVNEXTS: dict[tuple[int, tuple[int, ...]], str] = {
    (40, (2, 2, 6, 2)): "atto",
    (48, (2, 2, 6, 2)): "femto",
    (64, (2, 2, 6, 2)): "pico",
    (80, (2, 2, 8, 2)): "nano",
    (96, (3, 3, 9, 3)): "tiny",
    (96, (3, 3, 27, 3)): "small",
    (128, (3, 3, 27, 3)): "base",
    (192, (3, 3, 27, 3)): "large",
    (256, (3, 3, 27, 3)): "xlarge",
    (352, (3, 3, 27, 3)): "huge",
    (384, (3, 4, 30, 3)): "xxlarge",
}
CONVNEXT_NAMES = (
    ("timm's names", r"stem\.0\.weight", r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\."),
    (
        "Meta's names",
        r"downsample_layers\.0\.0\.weight",
        r"stages\.(\d+)\.(\d+)\.(?:dwconv|depthwise_conv)\.",
    ),
    (
        "Hugging Face's names",
        r"embeddings\.patch_embeddings\.weight",
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.",
    ),
)
# Channels of the stem and of the last convolution, blocks a stage, channels after the third stage, squeeze →
# names with equal keys.
EFFICIENTNETS: dict[tuple[int, int, tuple[int, ...], int, bool], tuple[str, ...]] = {
    (16, 1280, (1, 2, 3, 4, 3, 3, 1), 16, False): ("mobilenetv2_050", "mobilenetv2_035"),
    (24, 1280, (1, 2, 3, 4, 3, 3, 1), 24, False): ("mobilenetv2_075",),
    (32, 1280, (1, 2, 3, 4, 3, 3, 1), 32, False): ("mobilenetv2_100", "mobilenetv2_100_same"),
    (32, 1280, (1, 3, 4, 5, 4, 4, 1), 32, False): ("mobilenetv2_110d",),
    (32, 1280, (1, 3, 5, 6, 5, 5, 1), 40, False): ("mobilenetv2_120d",),
    (48, 1792, (1, 2, 3, 4, 3, 3, 1), 48, False): ("mobilenetv2_140",),
    (16, 1280, (1, 2, 3, 4, 2, 3, 1), 32, True): ("mobilenetv3_large_075", "tf_mobilenetv3_large_075"),
    (16, 1280, (1, 2, 3, 4, 2, 3, 1), 40, True): ("mobilenetv3_large_100", "tf_mobilenetv3_large_100"),
    (16, 1024, (1, 2, 3, 2, 3, 1), 24, True): ("mobilenetv3_small_050",),
    (16, 1024, (1, 2, 3, 2, 3, 1), 32, True): ("mobilenetv3_small_075", "tf_mobilenetv3_small_075"),
    (16, 1024, (1, 2, 3, 2, 3, 1), 40, True): ("mobilenetv3_small_100", "tf_mobilenetv3_small_100"),
    (32, 1280, (1, 2, 2, 3, 3, 4, 1), 40, False): ("efficientnet_lite0", "tf_efficientnet_lite0"),
    (32, 1280, (1, 3, 3, 4, 4, 5, 1), 40, False): ("efficientnet_lite1", "tf_efficientnet_lite1"),
    (32, 1280, (1, 3, 3, 4, 4, 5, 1), 48, False): ("efficientnet_lite2", "tf_efficientnet_lite2"),
    (32, 1280, (1, 3, 3, 5, 5, 6, 1), 48, False): ("efficientnet_lite3", "tf_efficientnet_lite3"),
    (32, 1280, (1, 4, 4, 6, 6, 8, 1), 56, False): ("efficientnet_lite4", "tf_efficientnet_lite4"),
    (16, 1280, (1, 2, 3, 4, 2, 3, 1), 40, False): ("tf_mobilenetv3_large_minimal_100",),
    (16, 1024, (1, 2, 3, 2, 3, 1), 40, False): ("tf_mobilenetv3_small_minimal_100",),
    (32, 1280, (1, 2, 2, 3, 3, 4, 1), 40, True): ("efficientnet_b0", "tf_efficientnet_b0"),
    (32, 1280, (2, 3, 3, 4, 4, 5, 2), 40, True): ("efficientnet_b1", "tf_efficientnet_b1"),
    (32, 1408, (2, 3, 3, 4, 4, 5, 2), 48, True): ("efficientnet_b2", "tf_efficientnet_b2"),
    (40, 1536, (2, 3, 3, 5, 5, 6, 2), 48, True): ("efficientnet_b3", "tf_efficientnet_b3"),
    (48, 1792, (2, 4, 4, 6, 6, 8, 2), 56, True): ("efficientnet_b4", "tf_efficientnet_b4"),
    (48, 2048, (3, 5, 5, 7, 7, 9, 3), 64, True): ("efficientnet_b5", "tf_efficientnet_b5"),
    (56, 2304, (3, 6, 6, 8, 8, 11, 3), 72, True): ("efficientnet_b6", "tf_efficientnet_b6"),
    (64, 2560, (4, 7, 7, 10, 10, 13, 4), 80, True): ("efficientnet_b7", "tf_efficientnet_b7"),
    (24, 1280, (2, 4, 4, 6, 9, 15), 64, True): ("efficientnetv2_s", "tf_efficientnetv2_s"),
    (24, 1280, (3, 5, 5, 7, 14, 18, 5), 80, True): ("efficientnetv2_m", "tf_efficientnetv2_m"),
    (32, 1280, (4, 7, 7, 10, 19, 25, 7), 96, True): ("efficientnetv2_l", "tf_efficientnetv2_l"),
}
STEM_PADDING = (
    "the padding of the 3×3 stem leaves no mark in the weights: {} pads by 1, as most code does, "
    "{} by 2, as solo-learn does"
)
PADDING = (
    "TensorFlow's padding and batch-norm epsilon leave no mark in the weights: {} have equal names and shapes"
)
TENSORFLOW = (
    "1001 classes or folded batch norm speak for TensorFlow, where most networks were trained with "
    "mean=0.5/0.5/0.5,std=0.5/0.5/0.5: hold both against labelled images with probekit verify"
)
# Classes of TensorFlow's ImageNet files: the background comes first.
WITH_BACKGROUND = 1001
# A name that only these networks of torchvision have → the start of theirs.
TORCHVISION = {
    r"features\.1\.conv\.0\.0\.weight": "mobilenet_v2",
    r"features\.1\.block\.0\.0\.weight": "mobilenet_v3",
    r"features\.1\.0\.block\.0\.0\.weight": "efficientnet",
    r"features\.1\.0\.layer_scale": "convnext",
    r"features\.1\.0\.attn\.qkv\.weight": "swin",
    r"features\.conv0\.weight": "densenet",
    r"features\.3\.squeeze\.weight": "squeezenet",
    r"features\.4\.squeeze\.weight": "squeezenet",
    r"stage2\.0\.branch2\.0\.weight": "shufflenet_v2",
    r"trunk_output\.block1\.block1-0\.f\.a\.0\.weight": "regnet",
    r"layers\.8\.0\.layers\.0\.weight": "mnasnet",
    r"conv_proj\.weight": "vit_",
}


def read_resnet(tensors: Tensors) -> Iterator[Proposal]:
    """Read ResNets: of ImageNet and of CIFAR, with a deep stem, wide, grouped, with attention, CLIP's."""
    for _prefix, own in below(tensors, r"layer1\.0\.conv1\.weight"):
        counts = count_blocks(own, r"layer(\d)\.(\d+)\.conv1\.weight$")
        stem = own.get("conv1.weight", own.get("conv1.0.weight"))
        middle = own.get("layer1.0.conv2.weight")
        if stem is None or stem.dim() != 4 or middle is None:
            continue
        bottleneck = "layer1.0.conv3.weight" in own
        layers = RESNETS.get((counts, bottleneck)) or _cifar_depth(stem, counts)
        blocks = "-".join(map(str, counts))
        facts: Facts = {
            "blocks": blocks,
            "bottleneck": bottleneck,
            "stem": f"{stem.shape[-1]}×{stem.shape[-1]}, {stem.shape[0]} channels",
        }
        names, words, notes = _resnet_names(own, stem, middle, counts, layers)
        kind = f"ResNet-{layers}" if layers else f"ResNet of {blocks} blocks"
        for name in names:
            yield Proposal(name, f"{kind}{words}", facts=facts, notes=notes)


def _resnet_names(
    own: Tensors, stem: torch.Tensor, middle: torch.Tensor, counts: tuple[int, ...], layers: int | None
) -> tuple[list[str], str, tuple[str, ...]]:
    """Return the names, what to add to the kind, and what the weights cannot tell."""
    width, side = stem.shape[0], stem.shape[-1]
    if "attnpool.positional_embedding" in own:
        return [f"{CLIP_RESNETS.get(counts, '')}_clip"], " of CLIP", ()
    if _cifar_depth(stem, counts):
        return [f"cifar_resnet{layers}"], " in three stages, for CIFAR", ()
    if "conv1.weight" in own and (width, side) == (64, 3):
        ours = [f"resnet{layers}_cifar", f"resnet{layers}_cifar_pad2"]
        return ours, " with a 3×3 stem for small images", (STEM_PADDING.format(*ours),)
    if side == 7 and width > 64:
        factor = width // 64
        plain = middle.shape[0] == width and middle.shape[1] == width
        return [f"resnet{layers}x{factor}" if plain else ""], f", {factor} times wider throughout", ()
    return _timm_resnet(own, width, middle, layers)


def _cifar_depth(stem: torch.Tensor, counts: tuple[int, ...]) -> int | None:
    """Return the layers of a ResNet in three equal stages for CIFAR, None for another."""
    small = stem.shape[0] == 16 and stem.shape[-1] == 3
    return 6 * counts[0] + 2 if small and len(counts) == 3 and len(set(counts)) == 1 else None


def _timm_resnet(
    own: Tensors, width: int, middle: torch.Tensor, layers: int | None
) -> tuple[list[str], str, tuple[str, ...]]:
    """Name a ResNet by its stem, its bottlenecks and its attention."""
    attention = next((word for name, word in ATTENTIONS.items() if name in own), "")
    variant = "resnet{}"
    if "layer1.0.conv3.weight" in own:
        variant = BOTTLENECKS.get((middle.shape[0], middle.shape[1]), "")
    letter = ""
    if "conv1.0.weight" in own:
        shortcut = own.get("layer2.0.downsample.1.weight")
        letter = DEEP_STEMS.get((width, shortcut is not None and shortcut.dim() == 4), "?")
    name = f"{attention}{variant.format(f'{layers}{letter}')}"
    plain = name == f"resnet{layers}"
    return [name if variant else ""], "" if plain or not variant else f", {name}", ()


def read_convnext(tensors: Tensors) -> Iterator[Proposal]:
    """Read ConvNeXt, versions 1 and 2."""
    for _names, landmark, blocks in CONVNEXT_NAMES:
        for _prefix, own in below(tensors, landmark):
            counts = count_blocks(own, blocks)
            stem = next(tensor for name, tensor in own.items() if re.fullmatch(landmark, name))
            if not counts:
                continue
            second = own.get("stem.1.weight", stem)
            overlapped = second is not stem and second.dim() == 4
            width = second.shape[0]
            size = CONVNEXTS.get((width, counts))
            version = "v2" if any(".grn." in name for name in own) else ""
            facts: Facts = {
                "blocks": "-".join(map(str, counts)),
                "width": width,
                "patch": stem.shape[-1],
            }
            kind = f"ConvNeXt{' V2' if version else ''}{f'-{size.capitalize()}' if size else ''}"
            yield Proposal(
                f"convnext{version}_{size}{'_ols' if overlapped else ''}" if size else "", kind, facts=facts
            )


def read_efficientnet(tensors: Tensors) -> Iterator[Proposal]:
    """Read EfficientNets and MobileNets under timm's names, and EfficientNet-Lite0 under its own."""
    for _prefix, own in below(tensors, r"_conv_stem\.weight"):
        if not any("_se_" in name for name in own):
            yield Proposal("tf_efficientnet_lite0", "EfficientNet-Lite0")
    for _prefix, own in below(tensors, r"conv_stem\.weight"):
        counts = count_blocks(own, r"blocks\.(\d+)\.(\d+)\.")
        third = [
            tensor for name, tensor in own.items() if name.startswith("blocks.2.0.") and tensor.dim() == 4
        ]
        last = own.get("conv_head.weight")
        if not counts or not third or last is None:
            continue
        squeezes = any(".se." in name for name in own)
        stem = own["conv_stem.weight"].shape[0]
        names = EFFICIENTNETS.get((stem, last.shape[0], counts, third[-1].shape[0], squeezes), ())
        notes = (PADDING.format(" and ".join(names)),) if len(names) > 1 else ()
        if len(names) > 1 and _from_tensorflow(own):
            names, notes = (*names[1:], names[0]), (*notes, TENSORFLOW)
        facts: Facts = {"blocks": "-".join(map(str, counts)), "stem": stem}
        for name in names or [""]:
            yield Proposal(name, "MobileNet or EfficientNet", facts=facts, notes=notes)


def _from_tensorflow(own: Tensors) -> bool:
    """Whether there are ImageNet's classes and a background, or batch norm is folded."""
    head, variance = own.get("classifier.weight"), own.get("bn1.running_var")
    if head is not None and len(head) == WITH_BACKGROUND:
        return True
    return variance is None or (not variance.is_meta and bool(((variance - 1).abs() <= ROUNDING).all()))


def read_torchvision(tensors: Tensors) -> Iterator[Proposal]:
    """Propose the networks of torchvision whose names of weights begin alike."""
    starts = [start for landmark, start in TORCHVISION.items() for _ in below(tensors, landmark)]
    if any("features.0.weight" in own for _, own in below(tensors, r"classifier\.6\.weight")):
        starts += ["vgg", "alexnet"]
    for name in torchvision.models.list_models(module=torchvision.models):
        if name.startswith(tuple(starts)):
            yield Proposal(f"torchvision.models.{name}", "a network of torchvision")
