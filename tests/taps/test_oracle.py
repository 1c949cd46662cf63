"""Activations, strides and channels against what timm returns and declares itself."""

from __future__ import annotations

import math

import pytest
import torch

from probekit.taps.facts import layer_facts, list_blocks
from probekit.taps.layers import list_layers, resolve_taps
from probekit.taps.readout import map_size
from probekit.taps.record import record
from probekit.taps.structure import is_within
from probekit.taps.tap import Tap

# Architecture, input size, settings that make it small.
SMALL = {
    "resnet18": (64, {}),
    "regnetx_002": (64, {}),
    "efficientnet_b0": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "convnext_atto": (64, {}),
    "vit_tiny_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "vit_small_patch14_reg4_dinov2": (56, {"img_size": 56, "depth": 4}),
    "vit_base_patch16_gap_224": (64, {"img_size": 64, "depth": 4, "embed_dim": 64, "num_heads": 4}),
    "swin_tiny_patch4_window7_224": (128, {"img_size": 128, "embed_dim": 24, "num_heads": (1, 2, 4, 8)}),
    "mixer_s16_224": (64, {"img_size": 64}),
    "poolformer_s12": (64, {}),
    "densenet121": (64, {}),
    "resnest14d": (64, {}),
    "hrnet_w18_small": (64, {}),
    "pvt_v2_b0": (64, {}),
    "mobilevit_xxs": (64, {}),
    "xcit_nano_12_p16_224": (64, {"depth": 4}),
}
# Where the module that timm declares is not the one that returns the intermediate.
ELSEWHERE = {
    "hrnet_w18_small": ["act1", *(f"incre_modules.{branch}" for branch in range(4))],
}
FAST = (
    "resnet18",
    "efficientnet_b0",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "poolformer_s12",
)


def marked(archs):
    return [pytest.param(arch, marks=[] if arch in FAST else pytest.mark.slow) for arch in archs]


ALL = marked(SMALL)
HIERARCHICAL = marked(arch for arch in SMALL if not arch.startswith(("vit", "deit", "mixer", "xcit")))


@pytest.fixture(scope="module")
def built(from_timm):
    known = {}

    def build(arch):
        if arch not in known:
            size, settings = SMALL[arch]
            known[arch] = from_timm(arch, size, **settings)
        return known[arch]

    return build


@pytest.mark.parametrize("arch", ALL)
def test_blocks_equal_timms_intermediates(built, images, arch):
    backbone = built(arch)
    batch = images(2, SMALL[arch][0])
    with torch.no_grad():
        expected = backbone.module.forward_intermediates(batch, norm=False, intermediates_only=True)
    paths = ELSEWHERE.get(arch) or [info["module"] for info in backbone.module.feature_info]
    facts = layer_facts(backbone)
    with record(backbone, [Tap(path, readout="raw") for path in paths]) as run:
        found = run(batch)
    assert len(found) == len(expected)
    for (tap, value), wanted in zip(found.items(), expected, strict=True):
        layout = facts.layout(tap)
        if layout.axes == "NLC":
            patches = value[:, layout.prefix_tokens :].transpose(1, 2)
            value = patches.reshape(len(value), -1, *layout.grid)
        assert torch.equal(value, wanted), str(tap)


@pytest.mark.parametrize("arch", ALL)
def test_strides_and_channels_are_those_timm_declares(built, arch):
    backbone = built(arch)
    facts = layer_facts(backbone)
    for info in backbone.module.feature_info:
        tap = Tap(info["module"])
        if not facts.trace.calls.get(tap.path) or len(facts.trace.calls[tap.path][0].returned.entries) != 1:
            continue  # HRNet's parallel branches
        value, layout = facts.value(tap), facts.layout(tap)
        grid = map_size(layout, value.shape[1:]) or layout.grid
        channels = value.shape[1] if layout.axes == "NCHW" else value.shape[-1]
        assert channels == info["num_chs"], tap.path
        assert facts.trace.size / grid[0] == info["reduction"], tap.path


@pytest.mark.parametrize("arch", HIERARCHICAL)
def test_stages_have_the_strides_and_levels_of_the_rule(built, arch):
    blocks = {block.path: block for block in list_blocks(built(arch))}
    stages = [blocks[tap.path] for tap in resolve_taps(built(arch), "stages")]
    assert [stage.stride for stage in stages[-4:]] == [4, 8, 16, 32]
    for stage in stages:
        octaves = math.log2(32 / stage.stride)
        assert stage.level == ("high" if octaves == 0 else "mid" if octaves <= 2 else "low")
    declared = [info["num_chs"] for info in built(arch).module.feature_info][-4:]
    if arch != "hrnet_w18_small":
        widths = [layer_facts(built(arch)).value(stage.tap).shape for stage in stages[-4:]]
        channels_last = built(arch).channels_last or arch == "pvt_v2_b0"
        found = [shape[-1] if channels_last else shape[1] for shape in widths]
        # timm counts MobileViT's final convolution in; here the tail is left out of the stages.
        assert found[:3] == declared[:3]
        assert found[3] == (80 if arch == "mobilevit_xxs" else declared[3])


@pytest.mark.parametrize("arch", ALL)
def test_blocks_share_out_the_parameters_and_run_in_order(built, arch):
    backbone = built(arch)
    blocks = list_blocks(backbone)
    calls = layer_facts(backbone).trace.calls
    assert len({block.path for block in blocks}) == len(blocks)
    assert [block.depth for block in blocks] == [place / (len(blocks) - 1) for place in range(len(blocks))]
    ends = [calls[block.path][-1].ended for block in blocks]
    assert ends == sorted(ends)
    assert {block.level for block in blocks} == {"low", "mid", "high"}
    heads = [backbone.classifier, "head_dist"]  # the distilled network's second classifier is no block
    for name, _ in backbone.module.named_parameters():
        holders = sum(block.holds(name) for block in blocks)
        assert holders == (0 if any(is_within(name, head) for head in heads) else 1), name


@pytest.mark.parametrize("arch", ALL)
def test_penultimate_is_what_the_classifier_is_given(built, images, arch):
    backbone = built(arch)
    batch = images(2, SMALL[arch][0])
    net = backbone.module
    with torch.no_grad():
        features = net.forward_features(batch)
        # The distilled network's own features average two tokens; each of its classifiers is given one.
        features = features[:, 0] if "distilled" in arch else net.forward_head(features, pre_logits=True)
    with record(backbone, "penultimate") as run:
        (value,) = run(batch).values()
    assert torch.equal(value, features.flatten(1))


@pytest.mark.parametrize("arch", ALL)
def test_early_stop_changes_no_bit(built, images, arch):
    backbone = built(arch)
    batch = images(3, SMALL[arch][0])
    taps = resolve_taps(backbone, ["levels"])[:2]
    results = []
    for early in (True, False):
        with record(backbone, taps, stop_early=early) as run:
            results.append(run(batch))
    assert list(results[0]) == taps
    assert all(torch.equal(results[0][tap], results[1][tap]) for tap in taps)


def test_gap_of_swin_is_over_rows_and_columns(built, images):
    backbone = built("swin_tiny_patch4_window7_224")
    with record(backbone, ["layers.1", "layers.1|raw"]) as run:
        pooled, raw = run(images(2, 128)).values()
    assert list_layers(backbone).set_index("path").layout["layers.1"] == "NHWC"
    assert raw.shape == (2, 48, 16, 16)
    assert pooled.shape == (2, 48)
    torch.testing.assert_close(pooled, raw.mean((2, 3)))


@pytest.mark.slow
def test_patch_mean_leaves_class_and_register_tokens_out(built, images):
    for arch, prefix in {"vit_small_patch14_reg4_dinov2": 5, "deit_tiny_distilled_patch16_224": 2}.items():
        backbone = built(arch)
        with record(
            backbone, [f"blocks.2|{way}" for way in ("tokens", "patch_mean", "cls", "grid(2)")]
        ) as run:
            tokens, patches, cls, grid = run(images(2, SMALL[arch][0])).values()
        torch.testing.assert_close(patches, tokens[:, prefix:].mean(1))
        assert torch.equal(cls, tokens[:, 0])
        assert grid.shape == (2, tokens.shape[2] * 4)
        # The patches lie on an even grid, so the mean over its quarters is the mean over all.
        torch.testing.assert_close(grid.reshape(2, -1, 4).mean(2), patches)
