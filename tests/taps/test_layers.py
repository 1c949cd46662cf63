from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from torch import nn

from probekit.errors import InputError, LayoutUnknown, NoClassToken, TapDidNotFire, TapNotFound
from probekit.taps.facts import layer_facts, list_blocks
from probekit.taps.layers import PRESETS, level_shares, list_layers, resolve_taps, tap_facts
from probekit.taps.structure import is_within
from probekit.taps.tap import Tap, parse_tap


def texts(backbone, taps):
    return [str(tap) for tap in resolve_taps(backbone, taps)]


def conv(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.down = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride=stride)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.down(x)).relu()


class CifarResNet20(nn.Module):
    """Three stages of three blocks at strides 1, 2 and 4 (He et al. 2016, section 4.2)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 4), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(*(BasicBlock(4, 4, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(BasicBlock(4, 8, 2), *(BasicBlock(8, 8, 1) for _ in range(2)))
        self.layer3 = nn.Sequential(BasicBlock(8, 16, 2), *(BasicBlock(16, 16, 1) for _ in range(2)))
        self.linear = nn.Linear(16, 10)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


# ---- the layer table --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet(from_timm):
    return from_timm("resnet18", 224)


def test_table_agrees_with_a_count_of_its_own(resnet):
    table = list_layers(resnet).set_index("path")
    modules = dict(resnet.module.named_modules())
    assert set(table.index) == set(modules) - {""}
    shapes: dict[str, torch.Tensor] = {}

    def keep(path):
        return lambda module, given, returned: shapes.update({path: returned})

    handles = [module.register_forward_hook(keep(path)) for path, module in modules.items() if path]
    with torch.no_grad():
        resnet.module(torch.zeros(1, 3, 224, 224))
    for handle in handles:
        handle.remove()
    assert list(table.index[table.calls > 0]) == list(shapes)
    for path, out in shapes.items():
        row = table.loc[path]
        assert row["shape"] == tuple(out.shape[1:]), path
        assert row["layout"] == {4: "NCHW", 2: "NC"}[out.ndim], path
        assert row["raw_bytes"] == 4 * out[0].numel(), path
        assert row["readout_bytes"] == 4 * out.shape[1], path
        assert row["parameters"] == sum(p.numel() for p in modules[path].parameters()), path
    # Multiply-adds by hand, two operations each: outputs × inputs per output.
    macs = {
        path: shapes[path][0].numel() * module.weight[0].numel()
        for path, module in modules.items()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    total = sum(macs.values())
    assert total == pytest.approx(1.8141e9, rel=1e-3), "1.8e9 multiply-adds at 224 px (He et al.)"
    for path, count in macs.items():
        assert table.loc[path, "flops_share"] == pytest.approx(count / total)
    assert table.loc["layer1", "flops_share"] == pytest.approx(
        sum(count for path, count in macs.items() if path.startswith("layer1.")) / total
    )


def test_columns_have_plain_types(resnet):
    table = list_layers(resnet)
    numbers = ["calls", "depth", "stride", "parameters", "flops_share", "raw_bytes", "readout_bytes"]
    assert all(pd.api.types.is_numeric_dtype(table[name]) for name in numbers)
    assert table.path.is_unique
    assert set(table.level) == {"low", "mid", "high"}
    assert table.depth.between(0, 1).all()


def test_one_forward_serves_all_questions(as_backbone):
    backbone = as_backbone(CifarResNet20())
    count = []
    backbone.module.register_forward_pre_hook(lambda *a: count.append(1))
    list_layers(backbone), resolve_taps(backbone, "blocks"), level_shares(backbone), list_layers(backbone)
    assert len(count) == 1
    changed = dataclasses.replace(backbone, levels={"layer1": "low", "layer2": "low", "layer3": "high"})
    assert changed.cache is backbone.cache
    assert {block.level for block in list_blocks(changed)} == {"low", "high"}
    assert {block.level for block in list_blocks(backbone)} == {"low", "mid", "high"}


def test_aliases_and_modules_never_called_are_listed(as_backbone, images):
    from probekit.taps.record import record

    net = CifarResNet20()
    net.features = net.layer1
    net.unused = nn.Linear(3, 3)
    backbone = as_backbone(net)
    table = list_layers(backbone).set_index("path")
    assert table.index[-1] == "unused"
    assert table.calls["unused"] == 0
    assert table.block["unused"] == ""
    assert table.loc["features.1.conv1", "shape"] == table.loc["layer1.1.conv1", "shape"]
    with record(backbone, ["features.1", "layer1.1"]) as run:
        one, other = run(images(2, 32)).values()
    assert torch.equal(one, other)


def test_attention_is_counted(from_timm):
    table = list_layers(from_timm("vit_tiny_patch16_224", img_size=64, depth=3)).set_index("path")
    # Scores and weighted sum: 2 × tokens² × width multiply-adds; linear layers: 12 × tokens × width².
    tokens, width = 17, 192
    attention = 2 * tokens**2 * width + 4 * tokens * width**2
    block = attention + 8 * tokens * width**2
    assert table.flops_share["blocks.1.attn"] / table.flops_share["blocks.1"] == pytest.approx(
        attention / block
    )


# ---- blocks, levels, presets ------------------------------------------------------------------------------


def test_resnet18_blocks(resnet):
    blocks = list_blocks(resnet)
    assert [block.path for block in blocks] == [
        "maxpool", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0",
        "layer4.1",
    ]  # fmt: skip
    assert blocks[0].members == ("conv1", "bn1")
    assert [block.stride for block in blocks] == [4, 4, 4, 8, 8, 16, 16, 32, 32]
    assert [block.level for block in blocks] == ["low"] * 3 + ["mid"] * 4 + ["high"] * 2
    assert [block.depth for block in blocks] == pytest.approx(np.linspace(0, 1, 9))


def test_resnet_presets(resnet):
    assert texts(resnet, "stages") == ["layer1.1|gap", "layer2.1|gap", "layer3.1|gap", "layer4.1|gap"]
    assert texts(resnet, "levels") == ["layer1.1|gap", "layer3.1|gap", "layer4.1|gap"]
    assert texts(resnet, ["low", "mid", "high"]) == texts(resnet, "blocks")
    assert texts(resnet, "penultimate") == ["fc:in|raw"]
    assert texts(resnet, "levels|grid(2)") == ["layer1.1|grid(2)", "layer3.1|grid(2)", "layer4.1|grid(2)"]
    assert texts(resnet, ["high", "stages"]) == ["layer4.0|gap", "layer4.1|gap", *texts(resnet, "stages")[:3]]


def test_presets_of_a_net_with_one_stride(from_timm):
    vit = from_timm("vit_tiny_patch16_224", img_size=64)
    assert texts(vit, "stages") == texts(vit, "levels") == ["blocks.3|cls", "blocks.7|cls", "blocks.11|cls"]
    assert texts(vit, "low") == [f"{path}|cls" for path in ("pos_drop", *(f"blocks.{i}" for i in range(4)))]
    assert texts(vit, "penultimate") == ["head:in|raw"]
    headless = from_timm("vit_tiny_patch16_224", img_size=64, num_classes=0)
    assert texts(headless, "penultimate") == ["norm|cls"]


def test_cifar_resnet20_has_thirds_of_nine_blocks(as_backbone):
    blocks = list_blocks(as_backbone(CifarResNet20()))
    assert [block.path for block in blocks[1:]] == [
        f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(3)
    ]
    assert [block.stride for block in blocks] == [1] * 4 + [2] * 3 + [4] * 3
    assert [block.level for block in blocks] == ["low"] * 4 + ["mid"] * 3 + ["high"] * 3


def test_plain_sequences_of_layers(as_backbone):
    encoder = nn.Sequential(
        conv(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 8, 2), nn.ReLU(), nn.MaxPool2d(2), conv(8, 8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    blocks = list_blocks(as_backbone(encoder, classifier="10"))
    assert [(block.path, block.members, block.stride) for block in blocks] == [
        ("2", ("0", "1"), 2), ("5", ("3",), 8), ("7", ("6",), 8),
    ]  # fmt: skip

    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(conv(3, 4, 2), nn.ReLU(), conv(4, 8, 2), nn.ReLU())
            self.decoder = nn.Sequential(
                nn.ConvTranspose2d(8, 4, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, stride=2)
            )

        def forward(self, x):
            return self.decoder(self.encoder(x))

    blocks = list_blocks(as_backbone(Autoencoder()))
    assert [block.path for block in blocks] == ["encoder.1", "encoder.3", "decoder.1", "decoder.2"]
    assert [block.stride for block in blocks] == [2, 4, 2, 1]
    vgg = torchvision.models.vgg.make_layers([8, "M", 8, 8, "M", 8, 8, "M"])
    assert texts(as_backbone(vgg), "stages") == ["4|gap", "9|gap", "12|gap"]


def test_layers_without_containers(as_backbone):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2, self.conv3 = conv(3, 4, 2), conv(4, 4, 2), conv(4, 4, 2)
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            for layer in (self.conv1, self.conv2, self.conv3):
                x = layer(x).relu()
            return self.fc(x.mean((2, 3)))

    assert texts(as_backbone(Plain()), "levels") == ["conv1|gap", "conv2|gap", "conv3|gap"]


def test_stages_wrappers_and_residuals_outside_modules(as_backbone):
    class Stage(nn.Module):
        def __init__(self, inputs, outputs, count):
            super().__init__()
            self.down = nn.Conv2d(inputs, outputs, 2, stride=2)
            self.blocks = nn.ModuleList([BasicBlock(outputs, outputs, 1) for _ in range(count)])

        def forward(self, x):
            x = self.down(x)
            for block in self.blocks:
                x = x + block(x)
            return x

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 1), Stage(4, 8, 2), Stage(8, 16, 1), Stage(16, 16, 2))
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.net(x * self.scale)

    blocks = list_blocks(as_backbone(Wrapped()))
    assert [block.path for block in blocks] == [
        "net.1.down", "net.1.blocks.0", "net.1.blocks.1", "net.2.blocks.0", "net.3.blocks.0",
        "net.3.blocks.1",
    ]  # fmt: skip
    assert blocks[0].members == ("scale", "net.0", "net.1.down")
    assert blocks[3].members == ("net.2.blocks.0", "net.2.down")


def test_blocks_and_levels_given_by_the_user(as_backbone):
    net = CifarResNet20()
    backbone = as_backbone(
        net,
        blocks=["layer3", "layer1", "layer2"],
        levels={"layer1": "low", "layer2": "low", "layer3": "high"},
    )
    assert [(block.path, block.level) for block in list_blocks(backbone)] == [
        ("layer1", "low"), ("layer2", "low"), ("layer3", "high"),
    ]  # fmt: skip
    assert texts(backbone, "levels") == ["layer2|gap", "layer3|gap"]
    with pytest.raises(InputError, match=r"none for 'layer2.0'"):
        list_blocks(as_backbone(net, levels={"layer1": "low", "layer3": "high"}))
    with pytest.raises(InputError, match="'top'"):
        list_blocks(as_backbone(net, levels={"layer1": "low", "layer2": "top", "layer3": "high"}))
    with pytest.raises(TapNotFound, match="layer1"):
        list_blocks(dataclasses.replace(backbone, blocks=("layer9",)))
    net.unused = nn.Linear(2, 2)
    with pytest.raises(TapDidNotFire, match="unused"):
        list_blocks(as_backbone(net, blocks=["layer1", "unused"]))


def test_too_few_blocks_for_levels(as_backbone):
    net = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4))
    backbone = as_backbone(net)
    assert len(list_layers(backbone)) == 3
    assert texts(backbone, "blocks") == ["1|gap", "2|gap"]
    for preset in ("levels", "low", "high"):
        with pytest.raises(InputError, match="levels="):
            resolve_taps(backbone, preset)
    with pytest.raises(InputError, match="levels="):
        level_shares(backbone)


def test_level_shares_of_resnet50(from_timm):
    backbone = from_timm("resnet50")
    shares = level_shares(backbone)
    assert shares["high"]["parameters"] == pytest.approx(0.64, abs=0.01), "design: high holds 64 %"
    for kind in ("parameters", "flops"):
        assert sum(share[kind] for share in shares.values()) == pytest.approx(1)
    sizes = {name: p.numel() for name, p in backbone.module.named_parameters() if not name.startswith("fc")}
    high = sum(size for name, size in sizes.items() if name.startswith("layer4"))
    assert shares["high"]["parameters"] == pytest.approx(high / sum(sizes.values()))


# ---- the words for taps -----------------------------------------------------------------------------------


def test_patterns(resnet):
    assert texts(resnet, "layer?.1") == [f"layer{stage}.1|gap" for stage in (1, 2, 3, 4)]
    assert texts(resnet, "layer[!12].0|max") == ["layer3.0|max", "layer4.0|max"]
    assert texts(resnet, "layer2.*") == ["layer2.0|gap", "layer2.1|gap"]
    assert texts(resnet, "layer4.1.conv*:in") == ["layer4.1.conv1:in|gap", "layer4.1.conv2:in|gap"]
    assert "layer4.1.bn2|gap" in texts(resnet, "layer4.**")
    assert texts(resnet, r"re:layer\d\.0") == [f"layer{stage}.0|gap" for stage in (1, 2, 3, 4)]
    assert texts(resnet, r"re:(conv1|fc)|raw") == ["conv1|raw", "fc|raw"]


def test_patterns_take_every_call(as_backbone):
    backbone = as_backbone(torchvision.models.resnet18(), 64)
    assert texts(backbone, "layer1.0.rel*") == ["layer1.0.relu#0|gap", "layer1.0.relu#1|gap"]
    assert texts(backbone, "layer1.*.relu#1") == ["layer1.0.relu#1|gap", "layer1.1.relu#1|gap"]


def test_resolving_again_changes_nothing(resnet, from_timm):
    hrnet = from_timm("hrnet_w18_small")
    for backbone in (resnet, hrnet):
        for preset in PRESETS:
            resolved = resolve_taps(backbone, preset)
            assert resolve_taps(backbone, resolved) == resolved
            assert [parse_tap(str(tap)) for tap in resolved] == resolved
    assert texts(hrnet, "stages")[1:3] == ["stage2.0@1|gap", "stage3.0@2|gap"]


def test_a_tap_means_the_module_though_a_preset_has_its_name(from_timm):
    vit = from_timm("vit_tiny_patch16_224", img_size=64, depth=3)
    assert texts(vit, Tap("blocks")) == ["blocks|cls"]
    assert len(texts(vit, "blocks")) == 4


@pytest.mark.parametrize("word", ["", "layer1|mean", "a b", "layer1:out", "re:("])
def test_words_without_the_form_of_a_tap(resnet, word):
    with pytest.raises(InputError):
        resolve_taps(resnet, word)


def test_nothing_asked_for(resnet):
    with pytest.raises(InputError, match="at least one tap"):
        resolve_taps(resnet, [])


# ---- facts of taps ----------------------------------------------------------------------------------------


def test_facts_of_taps(resnet):
    def facts(text):
        return tap_facts(resnet, resolve_taps(resnet, text)[0])

    assert facts("layer2.0") == {
        "block": "layer2.0", "level": "mid", "depth": 3 / 8, "stride": 8.0, "layout": "NCHW",
        "shape": (128, 28, 28), "readout": "gap", "axes": "N D", "readout_shape": (128,), "bytes": 512,
    }  # fmt: skip
    assert facts("layer2.0.conv1|raw")["block"] == "layer2.0"
    assert facts("layer2.0.conv1|raw")["axes"] == "N D H W"
    assert facts("layer2")["block"] == "layer2.1"
    assert facts("layer2:in")["block"] == "layer1.1"
    assert facts("layer2.0:in")["block"] == "layer1.1"
    assert facts("conv1")["block"] == "maxpool"
    assert facts("fc:in")["block"] == facts("fc")["block"] == "layer4.1"
    assert facts("fc:in")["depth"] == 1
    assert facts("layer4|tokens")["readout_shape"] == (49, 512)


def test_facts_need_an_explicit_readout(resnet):
    with pytest.raises(Exception, match="resolve_taps"):
        tap_facts(resnet, Tap("layer1"))


# ---- layouts ----------------------------------------------------------------------------------------------


def layout(backbone, path):
    facts = layer_facts(backbone)
    return facts.layout(Tap(path)).axes


def test_layouts_within_convnext(from_timm):
    backbone = from_timm("convnextv2_atto", 64, conv_mlp=False)
    block = "stages.1.blocks.0"
    parts = ("conv_dw", "norm", "mlp.fc1", "mlp.act", "mlp.grn", "mlp")
    assert [layout(backbone, f"{block}.{part}") for part in parts] == [
        "NCHW", "NHWC", "NHWC", "NHWC", "NHWC", "NHWC",
    ]  # fmt: skip
    assert layout(backbone, block) == layout(backbone, "stages.1") == layout(backbone, "stem") == "NCHW"


def test_layouts_within_swin(from_timm):
    backbone = from_timm(
        "swin_tiny_patch4_window7_224", 112, img_size=112, depths=(1, 1), embed_dim=24, num_heads=(1, 2)
    )
    assert layout(backbone, "layers.0") == layout(backbone, "layers.1.blocks.0.norm1") == "NHWC"
    assert layout(backbone, "patch_embed.proj") == "NCHW"
    assert layout(backbone, "layers.0.blocks.0.attn.qkv") == "unknown"
    assert layout(backbone, "head.fc") == "NC"


def test_tokens_know_their_prefix_and_grid(from_timm):
    backbone = from_timm("vit_small_patch14_reg4_dinov2", 56, img_size=56, depth=2, embed_dim=32, num_heads=2)
    known = layer_facts(backbone).layout(Tap("blocks.1"))
    assert (known.axes, known.prefix_tokens, known.has_class_token, known.grid) == ("NLC", 5, True, (4, 4))


@pytest.mark.parametrize("declared", [0, 1])
def test_a_class_token_that_joins_late_is_never_a_patch(from_timm, declared):
    xcit = from_timm("xcit_nano_12_p16_224", depth=3, embed_dim=32, num_heads=2)
    xcit = dataclasses.replace(xcit, prefix_tokens=declared, has_class_token=declared == 1)
    early, late = (layer_facts(xcit).layout(Tap(path)) for path in ("blocks.2", "cls_attn_blocks.1"))
    assert (early.prefix_tokens, early.has_class_token, early.grid) == (0, False, (4, 4))
    assert (late.prefix_tokens, late.has_class_token, late.grid) == (1, declared == 1, (4, 4))
    with pytest.raises(NoClassToken):
        resolve_taps(xcit, "blocks.2|cls")
    # CaiT's last blocks return the class token alone, which is no grid of one patch.
    cait = from_timm("cait_xxs24_224", img_size=64, depth=3, embed_dim=32, num_heads=2)
    cait = dataclasses.replace(cait, prefix_tokens=declared, has_class_token=declared == 1)
    alone = layer_facts(cait).layout(Tap("blocks_token_only.1"))
    assert (alone.axes, alone.has_class_token, alone.grid) == ("NLC", declared == 1, None)
    assert {block.stride for block in list_blocks(cait)} == {16}


def test_queries_per_head_are_no_maps(from_timm):
    vit = from_timm("vit_tiny_patch16_224", img_size=64, depth=3, qk_norm=True)
    assert layout(vit, "blocks.0.attn.q_norm") == "unknown"
    with pytest.raises(LayoutUnknown):
        resolve_taps(vit, "blocks.0.attn.q_norm")


def test_tokens_of_a_net_that_says_nothing(as_backbone):
    class Tokens(nn.Module):
        def __init__(self, extra):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 8, stride=8)
            self.extra = nn.Parameter(torch.zeros(1, extra, 8)) if extra else None
            self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(3)])

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            if self.extra is not None:
                x = torch.cat([self.extra.expand(len(x), -1, -1), x], 1)
            for block in self.blocks:
                x = x + block(x)
            return x

    for extra in (0, 3):
        backbone = as_backbone(Tokens(extra))
        known = layer_facts(backbone).layout(Tap("blocks.1"))
        assert (known.axes, known.prefix_tokens, known.has_class_token, known.grid) == (
            "NLC",
            extra,
            False,
            (4, 4),
        )
        assert texts(backbone, "blocks.1") == ["blocks.1|patch_mean"]
    backbone = as_backbone(Tokens(40))
    assert texts(backbone, "blocks.1|tokens") == ["blocks.1|tokens"]
    with pytest.raises(LayoutUnknown, match="prefix_tokens"):
        resolve_taps(backbone, "blocks.1")
    stated = dataclasses.replace(backbone, prefix_tokens=40)
    assert texts(stated, "blocks.1") == ["blocks.1|patch_mean"]


def test_a_map_used_both_ways_has_no_known_layout(as_backbone):
    class Rows(nn.Module):
        """A linear layer along the columns of a channels-first map."""

        def __init__(self):
            super().__init__()
            self.conv, self.along, self.out = conv(3, 4), nn.Linear(32, 32), conv(4, 4)

        def forward(self, x):
            return self.out(self.along(self.conv(x)))

    backbone = as_backbone(Rows())
    assert layout(backbone, "along") == "unknown"
    assert layout(backbone, "out") == "NCHW"


def test_every_parameter_belongs_to_one_block_or_the_classifier(as_backbone):
    net = torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    for backbone in (
        as_backbone(CifarResNet20()),
        as_backbone(net),
        as_backbone(torchvision.models.densenet121(), 64),
    ):
        for name, _ in backbone.module.named_parameters():
            holders = [block.path for block in list_blocks(backbone) if block.holds(name)]
            assert len(holders) == (0 if is_within(name, backbone.classifier) else 1), name
