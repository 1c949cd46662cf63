"""Reading a transformer's size from the names and shapes of its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import torch

from probekit.backbones.readings import Facts, Proposal, Tensors, below, count_blocks

# Width and depth → size.
VITS = {
    (192, 12): "tiny",
    (384, 12): "small",
    (768, 12): "base",
    (1024, 24): "large",
    (1152, 27): "so400m",
    (1280, 32): "huge",
    (1408, 40): "giant",
    (1536, 40): "giant",
    (1664, 48): "gigantic",
    (4096, 40): "7b",
}
# How projects call the same parts: timm and Meta, torchvision, Hugging Face, OpenMMLab, CLIP.
PATCHES = (
    r"(?:patch_embed\.proj|patch_embed\.projection|conv_proj|embeddings\.patch_embeddings(?:\.projection)?"
    r"|conv1)\.weight"
)
BLOCK = (
    r"(?:blocks|encoder\.layers|encoder\.layer|model\.layer|layers|layer|transformer\.resblocks)\."
    r"(?:\d+\.(?=\d+\.))?(?:encoder_layer_)?(\d+)\."
)
CLASS_TOKEN = ("cls_token", "class_token", "embeddings.cls_token", "class_embedding")
POSITIONS = (
    *("pos_embed", "encoder.pos_embedding", "embeddings.position_embeddings", "positional_embedding"),
    "pos_embed.pos_embed",
)
REGISTERS = ("reg_token", "register_tokens", "storage_tokens", "embeddings.register_tokens")
DISTILLED = ("dist_token", "embeddings.distillation_token")
SCALED = re.compile(r"\.(ls1\.gamma|gamma_1|layer_scale1\.(lambda1|gamma)|gamma1\.weight)$")
GATED = re.compile(r"\.mlp\.(w12|w1|weights_in|gate_proj|fc1_g)\.")
RELATIVE = re.compile(r"relative_position_bias_table$")
PRE_NORM = re.compile(r"(norm_pre|ln_pre|pre_layrnorm)\.weight$")
# Width of the first stage and blocks a stage → size.
SWINS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "tiny",
    (96, (2, 2, 18, 2)): "small",
    (128, (2, 2, 18, 2)): "base",
    (192, (2, 2, 18, 2)): "large",
}
# Side of the window → side of the images, as trained on ImageNet.
SWIN_SIZES = {7: 224, 12: 384}
SWIN2_WINDOWS = (
    "window8_256",
    "window16_256",
    "window12_192",
    "window12to16_192to256",
    "window12to24_192to384",
)
HEADS = (
    "the number of heads leaves no mark in the weights: timm's ViT-S has 6, MoCo v3's has 12 "
    "(vit_small_patch16_224_heads12)"
)
QUICK = "the activation leaves no mark in the weights: OpenAI's CLIP has QuickGELU, OpenCLIP's mostly GELU"


def read_vit(tensors: Tensors) -> Iterator[Proposal]:
    """Read ViTs under the names of timm and Meta, torchvision, Hugging Face, OpenMMLab and CLIP."""
    for prefix, own in below(tensors, PATCHES):
        patches = next(one for name, one in own.items() if re.fullmatch(PATCHES, name))
        numbers = {int(found.group(1)) for name in own if (found := re.match(BLOCK, name))}
        if (
            patches.dim() != 4
            or not numbers
            or any(RELATIVE.search(name) and "layers.0.blocks" in name for name in own)
        ):
            continue
        if "conv1.weight" in own and "class_embedding" not in own:
            continue
        facts = _vit_facts(own, patches, len(numbers))
        names, notes = _vit_names(facts, own, prefix)
        letter = {"7b": "7B", "so400m": "SO400M"}.get(str(facts["size"]), str(facts["size"])[:1].upper())
        kind = (
            f"ViT-{letter}/{facts['patch']}"
            if facts["size"]
            else f"ViT {facts['width']}×{facts['depth']}/{facts['patch']}"
        )
        image = facts.get("image_size")
        for name in names or [""]:
            yield Proposal(name, kind, int(image) if image else None, facts, notes)


def _vit_facts(own: Tensors, patches: torch.Tensor, depth: int) -> Facts:
    """Collect what is read: width, depth, patch, tokens, image size, and which parts there are."""
    width, patch = patches.shape[0], patches.shape[-1]
    registers = next((own[name].shape[-2] for name in REGISTERS if name in own), 0)
    prefix = sum(any(name in own for name in names) for names in (CLASS_TOKEN, DISTILLED))
    facts: Facts = {
        "size": VITS.get((width, depth), ""),
        "width": width,
        "depth": depth,
        "patch": patch,
        "class_token": any(name in own for name in CLASS_TOKEN),
        "distillation_token": any(name in own for name in DISTILLED),
        "registers": registers,
        "layer_scale": any(SCALED.search(name) for name in own),
        "gated_mlp": any(GATED.search(name) for name in own),
    }
    tables = [tensor for name, tensor in own.items() if RELATIVE.search(name)]
    if tables:
        # A table of (2g − 1)² offsets and three for the class token, for a grid of g × g.
        side = (math.isqrt(max(0, tables[0].shape[0] - 3)) + 1) // 2
        return facts | {"relative_positions": True, "image_size": side * patch}
    positions = next((own[name].shape[-2] for name in POSITIONS if name in own and own[name].dim() > 1), 0)
    for extra in dict.fromkeys((prefix, 0, prefix + registers)):
        side = math.isqrt(max(0, positions - extra))
        if positions and side * side == positions - extra and side > 1:
            facts |= {"image_size": side * patch, "positions_with_class_token": extra > 0}
            break
    return facts


def _vit_names(facts: Facts, own: Tensors, prefix: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the names timm has for such a ViT, the likeliest first, and what the weights cannot tell."""
    size, patch, image = facts["size"], facts["patch"], facts.get("image_size")
    if not size:
        return [], ()
    plain = [image, 224, 384] if image else [224]
    if any(RELATIVE.search(name) for name in own):
        return [
            f"{beit}_{size}_patch{patch}_{side}"
            for beit in ("beit", "beitv2")
            for side in (image or 224, 224)
        ], ()
    if facts["distillation_token"]:
        return [f"deit_{size}_distilled_patch{patch}_{side}" for side in plain], ()
    if not image:
        plus = "_plus" if facts["gated_mlp"] and size in {"small", "huge"} else ""
        return [f"vit_{size}{plus}_patch{patch}_dinov3{bias}" for bias in ("", "_qkvb")], ()
    if facts["layer_scale"] and (facts["positions_with_class_token"] or facts["registers"]):
        registers = f"_reg{facts['registers']}" if facts["registers"] else ""
        return [f"vit_{size}_patch{patch}{registers}_dinov2"], ()
    if facts["layer_scale"]:
        return [f"deit3_{size}_patch{patch}_{side}" for side in plain], ()
    if any(PRE_NORM.search(name) for name in own):
        quick = [f"vit_{size}_patch{patch}_clip_quickgelu_{side}" for side in plain]
        other = [f"vit_{size}_patch{patch}_clip_{side}" for side in plain]
        openai = "visual.class_embedding" in prefix + "class_embedding" and "trunk" not in prefix
        return [*quick, *other] if openai else [*other, *quick], (QUICK,)
    if not facts["class_token"]:
        return [f"vit_{size}_patch{patch}_{form}{side}" for side in plain for form in ("gap_", "")], ()
    names = [f"{kind}_{size}_patch{patch}_{side}" for kind in ("vit", "deit") for side in plain]
    if (size, patch) == ("small", 16):
        moco3 = re.search(r"(base|momentum)_encoder\.", prefix) is not None
        heads = "vit_small_patch16_224_heads12"
        return [heads, *names] if moco3 else [*names, heads], (HEADS,)
    return names, ()


def read_swin(tensors: Tensors) -> Iterator[Proposal]:
    """Read Swin transformers, versions 1 and 2."""
    for _prefix, own in below(tensors, r"layers\.0\.blocks\.0\.attn\.(?:qkv|w_msa\.qkv)\.weight"):
        counts = count_blocks(own, r"layers\.(\d+)\.blocks\.(\d+)\.")
        stem = own.get("patch_embed.proj.weight")
        if stem is None or not counts:
            continue
        size = SWINS.get((stem.shape[0], counts), "")
        facts: Facts = {"blocks": "-".join(map(str, counts)), "width": stem.shape[0]}
        second = "layers.0.blocks.0.attn.logit_scale" in own
        kind = f"Swin{' V2' if second else ''}{f'-{size[0].upper()}' if size else ''}"
        table = own.get("layers.0.blocks.0.attn.relative_position_bias_table")
        if second:
            note = "the window of Swin V2 leaves no mark in the weights"
            names = [f"swinv2_{size}_{window}" for window in SWIN2_WINDOWS] if size else [""]
            for name in names:
                yield Proposal(name, kind, facts=facts, notes=(note,))
        elif table is not None:
            window = (math.isqrt(table.shape[0]) + 1) // 2
            facts["window"] = window
            side = SWIN_SIZES.get(window)
            yield Proposal(
                f"swin_{size}_patch4_window{window}_{side}" if side and size else "", kind, facts=facts
            )
