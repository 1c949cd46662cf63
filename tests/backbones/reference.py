"""Tiny networks under the names that other projects give their parts: what a renaming must equal.

Each computes with its own names, so that a swapped pair of weights shows in its output.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, DEPTH, PATCH, SIZE = 16, 2, 2, 8, 32
TOKENS = (SIZE // PATCH) ** 2


class Holder(nn.Module):
    """A place for parts by name."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_parameter(name, nn.Parameter(part))


def attend(q, k, v):
    split = [one.unflatten(2, (HEADS, -1)).transpose(1, 2) for one in (q, k, v)]
    weights = torch.softmax(split[0] @ split[1].transpose(2, 3) * (WIDTH // HEADS) ** -0.5, -1)
    return (weights @ split[2]).transpose(1, 2).flatten(2)


def draw(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in module.parameters():
            one.copy_(torch.randn(one.shape, generator=generator) * 0.3)
    return module.eval()


def norm():
    return nn.LayerNorm(WIDTH, eps=1e-6)


class HuggingFaceViT(nn.Module):
    """transformers' ViT and DINOv2, with registers, LayerScale or a gated MLP as asked for."""

    def __init__(self, *, scale=False, registers=0, gated=False, classes=3):
        super().__init__()
        self.registers, self.gated, self.scale = registers, gated, scale
        tokens = {"cls_token": torch.zeros(1, 1, WIDTH), "mask_token": torch.zeros(1, WIDTH)}
        if registers:
            tokens["register_tokens"] = torch.zeros(1, registers, WIDTH)
        self.embeddings = Holder(
            **tokens,
            position_embeddings=torch.zeros(1, TOKENS + 1, WIDTH),
            patch_embeddings=Holder(projection=nn.Conv2d(3, WIDTH, PATCH, PATCH)),
        )
        self.encoder = Holder(layer=nn.ModuleList(self.block() for _ in range(DEPTH)))
        self.layernorm = norm()

    def block(self):
        linear = {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
        parts = {
            "attention": Holder(attention=Holder(**linear), output=Holder(dense=nn.Linear(WIDTH, WIDTH)))
        }
        if not self.scale:
            parts |= {
                "layernorm_before": norm(),
                "layernorm_after": norm(),
                "intermediate": Holder(dense=nn.Linear(WIDTH, 4 * WIDTH)),
                "output": Holder(dense=nn.Linear(4 * WIDTH, WIDTH)),
            }
            return Holder(**parts)
        mlp = (
            Holder(weights_in=nn.Linear(WIDTH, 64), weights_out=nn.Linear(32, WIDTH))
            if self.gated
            else Holder(fc1=nn.Linear(WIDTH, 4 * WIDTH), fc2=nn.Linear(4 * WIDTH, WIDTH))
        )
        scales = {f"layer_scale{i}": Holder(lambda1=torch.ones(WIDTH)) for i in (1, 2)}
        return Holder(**parts, norm1=norm(), norm2=norm(), mlp=mlp, **scales)

    def mlp(self, block, x):
        if not self.scale:
            return block.output.dense(F.gelu(block.intermediate.dense(x)))
        if self.gated:
            gate, value = block.mlp.weights_in(x).chunk(2, -1)
            return block.mlp.weights_out(F.silu(gate) * value)
        return block.mlp.fc2(F.gelu(block.mlp.fc1(x)))

    def forward(self, images):
        parts = self.embeddings
        x = parts.patch_embeddings.projection(images).flatten(2).transpose(1, 2)
        x = torch.cat([parts.cls_token.expand(len(x), -1, -1), x], 1) + parts.position_embeddings
        if self.registers:
            x = torch.cat([x[:, :1], parts.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        for block in self.encoder.layer:
            first, second = (
                (block.norm1, block.norm2) if self.scale else (block.layernorm_before, block.layernorm_after)
            )
            one = block.layer_scale1.lambda1 if self.scale else 1
            two = block.layer_scale2.lambda1 if self.scale else 1
            own, y = block.attention.attention, first(x)
            x = x + one * block.attention.output.dense(attend(own.query(y), own.key(y), own.value(y)))
            x = x + two * self.mlp(block, second(x))
        return self.layernorm(x)


class OpenMMLabViT(nn.Module):
    """mmpretrain's VisionTransformer."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, TOKENS + 1, WIDTH))
        self.patch_embed = Holder(projection=nn.Conv2d(3, WIDTH, PATCH, PATCH))
        self.layers = nn.ModuleList(
            Holder(
                ln1=norm(),
                attn=Holder(qkv=nn.Linear(WIDTH, 3 * WIDTH), proj=nn.Linear(WIDTH, WIDTH)),
                ln2=norm(),
                ffn=Holder(
                    layers=nn.ModuleList(
                        [nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU()), nn.Linear(4 * WIDTH, WIDTH)]
                    )
                ),
            )
            for _ in range(DEPTH)
        )
        self.ln1 = norm()

    def forward(self, images):
        x = self.patch_embed.projection(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.layers:
            x = x + block.attn.proj(attend(*block.attn.qkv(block.ln1(x)).chunk(3, -1)))
            y = block.ln2(x)
            for part in block.ffn.layers:
                y = part(y)
            x = x + y
        return self.ln1(x)


class ClipVisual(nn.Module):
    """The visual tower of OpenAI's CLIP; attention is torch's own."""

    def __init__(self):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.positional_embedding = nn.Parameter(torch.zeros(TOKENS + 1, WIDTH))
        self.proj = nn.Parameter(torch.zeros(WIDTH, 5))
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.ln_pre, self.ln_post = norm(), norm()
        self.transformer = Holder(
            resblocks=nn.ModuleList(
                Holder(
                    attn=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
                    ln_1=norm(),
                    mlp=Holder(c_fc=nn.Linear(WIDTH, 4 * WIDTH), c_proj=nn.Linear(4 * WIDTH, WIDTH)),
                    ln_2=norm(),
                )
                for _ in range(DEPTH)
            )
        )

    def forward(self, images):
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, need_weights=False)[0]
            y = block.mlp.c_fc(block.ln_2(x))
            x = x + block.mlp.c_proj(y * torch.sigmoid(1.702 * y))
        return self.ln_post(x)
