"""How other projects call the parts of networks that timm has: rules from their names to timm's.

Every rule is anchored at both ends and counts below one prefix; what no rule knows keeps its name, and is
reported as unexpected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

Tensors = Mapping[str, torch.Tensor]
Edit = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]

CHUNKED = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)")
QKV = re.compile(r"(.*\.attn\.)(q|k|v)\.(weight|bias)")


@dataclass(frozen=True)
class Layout:
    r"""One project's names for one kind of network.

    Attributes:
        name: What it is, in words.
        landmark: A whole name that only this layout has, as a regular expression without its prefix.
        rules: Regular expression of a whole name → timm's, with ``\1`` for groups; None drops the entry.
        outside: The same for names that stand beside the prefix rather than below it, such as a classifier.
        edits: What is done to the renamed entries, in order.
    """

    name: str
    landmark: str
    rules: Mapping[str, str | None]
    outside: Mapping[str, str] | None = None
    edits: tuple[Edit, ...] = ()


def apply_layouts(tensors: Tensors) -> Iterator[tuple[str, str, dict[str, torch.Tensor]]]:
    """Yield the layout's name, the prefix, and the entries below it under timm's names, for each found.

    Examples:
        >>> ones = torch.ones(4)
        >>> found = {"encoder.layers.encoder_layer_0.ln_1.weight": ones, "heads.head.bias": ones}
        >>> [(name, prefix, list(own)) for name, prefix, own in apply_layouts(found)]
        [('torchvision ViT', '', ['blocks.0.norm1.weight', 'head.bias'])]
    """
    for layout in LAYOUTS:
        pattern = re.compile(rf"((?:.*\.)?){layout.landmark}")
        prefixes = dict.fromkeys(found.group(1) for name in tensors if (found := pattern.fullmatch(name)))
        for prefix in prefixes:
            own = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            renamed = _rename(own, layout.rules)
            beside = layout.outside or {}
            for name, tensor in tensors.items():
                rule = next((rule for rule in beside if re.fullmatch(rule, name)), None)
                if rule is not None and not (prefix and name.startswith(prefix)):
                    renamed[re.sub(rule, beside[rule], name)] = tensor
            for edit in layout.edits:
                renamed = edit(renamed)
            yield layout.name, prefix, renamed


def _rename(own: Tensors, rules: Mapping[str, str | None]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in own.items():
        rule = next((rule for rule in rules if re.fullmatch(rule, name)), None)
        target = name if rule is None else rules[rule]
        if target is not None:
            renamed[name if rule is None else re.sub(rule, target, name)] = tensor
    return renamed


def fuse_qkv(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Join query, key and value, in this order, where all three are there; a missing bias of the key is 0."""
    parts: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    rest = {}
    for name, tensor in own.items():
        found = QKV.fullmatch(name)
        if found is None:
            rest[name] = tensor
        else:
            parts.setdefault((found.group(1), found.group(3)), {})[found.group(2)] = tensor
    for (path, kind), one in parts.items():
        if kind == "bias" and "q" in one:
            one.setdefault("k", torch.zeros_like(one["q"]))
        if one.keys() == {"q", "k", "v"}:
            rest[f"{path}qkv.{kind}"] = torch.cat([one["q"], one["k"], one["v"]])
        else:
            rest |= {f"{path}{part}.{kind}": tensor for part, tensor in one.items()}
    return rest


def flatten_chunks(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Number blocks that were trained in chunks, ``blocks.<chunk>.<block>.``, in one row.

    DINOv2 keeps a block's own number within its chunk; numbers that start anew in each chunk run on.
    """
    pairs = sorted({(int(one[1]), int(one[2])) for name in own if (one := CHUNKED.fullmatch(name))})
    numbers = [block for _, block in pairs]
    row = (
        {pair: pair[1] for pair in pairs}
        if len(set(numbers)) == len(numbers)
        else {pair: place for place, pair in enumerate(pairs)}
    )
    return {
        f"blocks.{row[int(one[1]), int(one[2])]}.{one[3]}"
        if (one := CHUNKED.fullmatch(name))
        else name: tensor
        for name, tensor in own.items()
    }


def _shape_clip(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give CLIP's class token and position embedding the axes of timm's."""
    shaped = dict(own)
    for name, axes in (("cls_token", 1), ("pos_embed", 2)):
        if name in shaped and shaped[name].dim() == axes:
            shaped[name] = shaped[name].reshape(1, -1, shaped[name].shape[-1])
    return shaped


def _number_from_one(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Count stages, convolutions and norms from 1, as torchvision does: ``#0`` becomes ``1``."""
    return {
        re.sub(r"#(\d+)", lambda found: str(int(found[1]) + 1), name): tensor for name, tensor in own.items()
    }


def _merge_registers(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename Hugging Face's mask token so that timm's own rules for DINOv2 with registers apply."""
    if "register_tokens" in own and "mask_token" not in own:
        return {**own, "mask_token": torch.zeros_like(own["cls_token"][:, 0])}
    return own


def _name_mlp(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name DINOv3's MLP as its authors do: fc1 and fc2, or w1, w2 and w3 where it is gated."""
    gated = any(".mlp.w1." in name for name in own)
    up, down = ("w2", "w3") if gated else ("fc1", "fc2")
    return {
        re.sub(r"\.mlp\.(up|down)\.", lambda found: f".mlp.{up if found[1] == 'up' else down}.", name): tensor
        for name, tensor in own.items()
    }


_WB = r"\.(weight|bias)"
_HF_RESNET = r"encoder\.stages\.(\d+)\.layers\.(\d+)"
_HF_BLOCK = r"encoder\.layer\.(\d+)"
LAYOUTS: tuple[Layout, ...] = (
    # torchvision.models.VisionTransformer
    Layout(
        "torchvision ViT",
        r"encoder\.layers\.encoder_layer_0\.ln_1\.weight",
        {
            r"class_token": "cls_token",
            r"conv_proj" + _WB: r"patch_embed.proj.\1",
            r"encoder\.pos_embedding": "pos_embed",
            r"encoder\.ln" + _WB: r"norm.\1",
            r"encoder\.layers\.encoder_layer_(\d+)\.ln_(\d)" + _WB: r"blocks.\1.norm\2.\3",
            r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(weight|bias)": (
                r"blocks.\1.attn.qkv.\2"
            ),
            r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj"
            + _WB: r"blocks.\1.attn.proj.\2",
            r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)" + _WB: r"blocks.\1.mlp.fc1.\2",
            r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)" + _WB: r"blocks.\1.mlp.fc2.\2",
            r"heads\.head" + _WB: r"head.\1",
        },
    ),
    # transformers: ViT, DeiT, ViTMAE, ViTMSN, DINOv2, DINOv2 with registers
    Layout(
        "Hugging Face ViT",
        _HF_BLOCK.replace(r"(\d+)", "0") + r"\.attention\.attention\.query\.weight",
        {
            r"embeddings\.cls_token": "cls_token",
            r"embeddings\.distillation_token": "dist_token",
            r"embeddings\.register_tokens": "register_tokens",
            r"embeddings\.mask_token": "mask_token",
            r"embeddings\.position_embeddings": "pos_embed",
            r"embeddings\.patch_embeddings\.projection" + _WB: r"patch_embed.proj.\1",
            _HF_BLOCK + r"\.attention\.attention\.(q|k|v)(?:uery|ey|alue)" + _WB: r"blocks.\1.attn.\2.\3",
            _HF_BLOCK + r"\.attention\.output\.dense" + _WB: r"blocks.\1.attn.proj.\2",
            _HF_BLOCK + r"\.intermediate\.dense" + _WB: r"blocks.\1.mlp.fc1.\2",
            _HF_BLOCK + r"\.output\.dense" + _WB: r"blocks.\1.mlp.fc2.\2",
            _HF_BLOCK + r"\.layernorm_before" + _WB: r"blocks.\1.norm1.\2",
            _HF_BLOCK + r"\.layernorm_after" + _WB: r"blocks.\1.norm2.\2",
            _HF_BLOCK + r"\.norm(\d)" + _WB: r"blocks.\1.norm\2.\3",
            _HF_BLOCK + r"\.layer_scale(\d)\.lambda1": r"blocks.\1.ls\2.gamma",
            _HF_BLOCK + r"\.mlp\.fc(\d)" + _WB: r"blocks.\1.mlp.fc\2.\3",
            _HF_BLOCK + r"\.mlp\.weights_in" + _WB: r"blocks.\1.mlp.w12.\2",
            _HF_BLOCK + r"\.mlp\.weights_out" + _WB: r"blocks.\1.mlp.w3.\2",
            r"(?:layernorm|norm)" + _WB: r"norm.\1",
            r"pooler\..*": None,
        },
        outside={
            r"(?:classifier|cls_classifier)" + _WB: r"head.\1",
            r"distillation_classifier" + _WB: r"head_dist.\1",
        },
        edits=(fuse_qkv, _merge_registers),
    ),
    # transformers: DINOv3 ViT
    Layout(
        "Hugging Face DINOv3",
        r"layer\.0\.attention\.q_proj\.weight",
        {
            r"embeddings\.cls_token": "cls_token",
            r"embeddings\.register_tokens": "storage_tokens",
            r"embeddings\.mask_token": "mask_token",
            r"embeddings\.patch_embeddings" + _WB: r"patch_embed.proj.\1",
            r"layer\.(\d+)\.attention\.(q|k|v)_proj" + _WB: r"blocks.\1.attn.\2.\3",
            r"layer\.(\d+)\.attention\.o_proj" + _WB: r"blocks.\1.attn.proj.\2",
            r"layer\.(\d+)\.norm(\d)" + _WB: r"blocks.\1.norm\2.\3",
            r"layer\.(\d+)\.layer_scale(\d)\.lambda1": r"blocks.\1.ls\2.gamma",
            r"layer\.(\d+)\.mlp\.gate_proj" + _WB: r"blocks.\1.mlp.w1.\2",
            r"layer\.(\d+)\.mlp\.up_proj" + _WB: r"blocks.\1.mlp.up.\2",
            r"layer\.(\d+)\.mlp\.down_proj" + _WB: r"blocks.\1.mlp.down.\2",
        },
        edits=(fuse_qkv, _name_mlp),
    ),
    # transformers: ResNet
    Layout(
        "Hugging Face ResNet",
        r"encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight",
        {
            r"embedder\.embedder\.convolution\.(\w+)": r"conv1.\1",
            r"embedder\.embedder\.normalization\.(\w+)": r"bn1.\1",
            _HF_RESNET + r"\.shortcut\.convolution\.(\w+)": (r"layer#\1.\2.downsample.0.\3"),
            _HF_RESNET + r"\.shortcut\.normalization\.(\w+)": (r"layer#\1.\2.downsample.1.\3"),
            _HF_RESNET + r"\.layer\.(\d)\.convolution\.(\w+)": r"layer#\1.\2.conv#\3.\4",
            _HF_RESNET + r"\.layer\.(\d)\.normalization\.(\w+)": r"layer#\1.\2.bn#\3.\4",
        },
        outside={r"classifier\.1" + _WB: r"fc.\1"},
        edits=(_number_from_one,),
    ),
    # OpenMMLab: mmpretrain, mmcls, mmselfsup
    Layout(
        "OpenMMLab ViT",
        r"layers\.0\.(?:ln1|norm1)\.weight",
        {
            r"patch_embed\.projection" + _WB: r"patch_embed.proj.\1",
            r"layers\.(\d+)\.(?:ln|norm)(\d)" + _WB: r"blocks.\1.norm\2.\3",
            r"layers\.(\d+)\.attn\.(qkv|proj)" + _WB: r"blocks.\1.attn.\2.\3",
            r"layers\.(\d+)\.attn\.gamma1\.weight": r"blocks.\1.ls1.gamma",
            r"layers\.(\d+)\.ffn\.gamma2\.weight": r"blocks.\1.ls2.gamma",
            r"layers\.(\d+)\.ffn\.layers\.0\.0" + _WB: r"blocks.\1.mlp.fc1.\2",
            r"layers\.(\d+)\.ffn\.layers\.1" + _WB: r"blocks.\1.mlp.fc2.\2",
            r"(?:ln|norm)1" + _WB: r"norm.\1",
        },
        outside={r"head\.(?:layers\.head|head|fc)" + _WB: r"head.\1"},
    ),
    # OpenAI's CLIP and OpenCLIP's own ViT
    Layout(
        "CLIP ViT, whose activation leaves no mark in the weights: OpenAI's is QuickGELU",
        # The text tower has blocks of the same names, and may have the same sizes.
        r"class_embedding",
        {
            r"class_embedding": "cls_token",
            r"positional_embedding": "pos_embed",
            r"conv1\.weight": "patch_embed.proj.weight",
            r"ln_pre" + _WB: r"norm_pre.\1",
            r"ln_post" + _WB: r"norm.\1",
            r"transformer\.resblocks\.(\d+)\.ln_(\d)" + _WB: r"blocks.\1.norm\2.\3",
            r"transformer\.resblocks\.(\d+)\.ls_(\d)\.gamma": r"blocks.\1.ls\2.gamma",
            r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)": r"blocks.\1.attn.qkv.\2",
            r"transformer\.resblocks\.(\d+)\.attn\.out_proj" + _WB: r"blocks.\1.attn.proj.\2",
            r"transformer\.resblocks\.(\d+)\.mlp\.c_fc" + _WB: r"blocks.\1.mlp.fc1.\2",
            r"transformer\.resblocks\.(\d+)\.mlp\.c_proj" + _WB: r"blocks.\1.mlp.fc2.\2",
            # The projection into the space shared with text: no classifier.
            r"proj": None,
        },
        edits=(_shape_clip,),
    ),
    Layout(
        "VISSL ViT, whose layer norms have an epsilon of 1e-5 where timm's have 1e-6",
        r"pos_embedding",
        {r"class_token": "cls_token", r"pos_embedding": "pos_embed"},
    ),
    # DINOv2 trained with block_chunks > 0
    Layout("blocks in chunks", r"blocks\.0\.0\.norm1\.weight", {}, edits=(flatten_chunks,)),
)
