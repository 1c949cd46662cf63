from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from probekit.errors import (
    AmbiguousOutput,
    LayoutUnknown,
    NoClassToken,
    TapDidNotFire,
    TapError,
    TapFiredManyTimes,
    TapNotFound,
)
from probekit.taps.layers import resolve_taps
from probekit.taps.record import record
from probekit.taps.tap import Tap


class Residual(nn.Module):
    """A stem, two blocks that share one activation each, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Sequential(self.Block(), self.Block())
        self.fc = nn.Linear(4, 5)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            y = self.conv2(self.relu(self.conv1(x)))
            y += x
            return self.relu(y)

    def forward(self, x):
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


class Breaking(Residual):
    """A net whose forward raises where it is told to, or catches what its layers raise."""

    fails = False

    def forward(self, x):
        x = self.body[0](self.stem(x))
        if self.fails:
            raise ValueError("broken on purpose")
        return self.fc(self.body[1](x).mean((2, 3)))


def hooks_on(module):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_backward_hooks",
             "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")  # fmt: skip
    return sum(len(getattr(part, kind)) for part in module.modules() for kind in kinds)


def read(backbone, taps, batch, **settings):
    with record(backbone, taps, **settings) as run:
        return {str(tap): value for tap, value in run(batch).items()}


def reference(module, path, batch, call=0):
    """Keep a copy of what a module returned, made before anything else could touch it."""
    kept = []
    handle = module.get_submodule(path).register_forward_hook(lambda m, a, out: kept.append(out.clone()))
    with torch.no_grad():
        module(batch)
    handle.remove()
    return kept[call]


# ---- what is read is what was there -----------------------------------------------------------------------


@pytest.mark.parametrize("build", [torchvision.models.resnet18, lambda: timm.create_model("resnet18")])
def test_in_place_operations_after_a_tap_do_not_reach_it(as_backbone, images, build):
    torch.manual_seed(0)
    backbone = as_backbone(build(), 64)
    net, batch = backbone.module, images()
    with torch.no_grad():
        first = net.bn1(net.conv1(batch))
        block = net.layer1[0]
        x = net.maxpool(first.clone().relu())
        second = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    taps = ["bn1|raw", "layer1.0.bn2|raw", "bn1|gap", "bn1|max", "layer1.0.bn2|gem"]
    result = read(backbone, taps, batch)
    assert torch.equal(result["bn1|raw"], first)
    assert torch.equal(result["layer1.0.bn2|raw"], second)
    torch.testing.assert_close(result["bn1|gap"], first.mean((2, 3)))
    assert (result["bn1|raw"] < 0).float().mean() > 0.3, "what was read has been rectified"
    kept = read(backbone, taps, batch, gradients=True)
    assert all(torch.equal(kept[tap], result[tap]) for tap in taps)


def test_each_call_of_a_module_is_told_apart(as_backbone, images):
    backbone = as_backbone(torchvision.models.resnet18(), 64)
    batch = images()
    taps = ["layer1.0.relu#1|raw", "layer1.0.relu#0|raw", "layer1.0|raw"]
    result = read(backbone, taps, batch)
    assert list(result) == taps
    assert torch.equal(result[taps[0]], reference(backbone.module, "layer1.0.relu", batch, 1))
    assert torch.equal(result[taps[1]], reference(backbone.module, "layer1.0.relu", batch, 0))
    assert torch.equal(result[taps[0]], result[taps[2]])
    with pytest.raises(TapFiredManyTimes, match=r"layer1\.0\.relu#0, layer1\.0\.relu#1"):
        resolve_taps(backbone, "layer1.0.relu")
    with pytest.raises(TapDidNotFire, match="below 2"):
        resolve_taps(backbone, "layer1.0.relu#2")


def test_inputs_are_read_before_the_module_runs(as_backbone, images):
    backbone = as_backbone(timm.create_model("resnet18"), 64)
    batch = images()
    result = read(backbone, ["layer2:in|raw", "layer1|raw", "act1:in|raw", "fc:in"], batch)
    assert torch.equal(result["layer2:in|raw"], result["layer1|raw"])
    assert torch.equal(result["act1:in|raw"], reference(backbone.module, "bn1", batch))
    with torch.no_grad():
        assert torch.equal(backbone.module.fc(result["fc:in|raw"]), backbone.module(batch))


def test_early_stop_equals_the_full_forward_bit_for_bit(from_timm, images):
    for arch, taps in {
        "resnet18": ["bn1", "layer1.0.bn2|raw", "layer3"],
        "vit_tiny_patch16_224": ["blocks.2.mlp.act", "blocks.0|tokens", "blocks.3|patch_mean"],
    }.items():
        backbone = from_timm(arch, **({"img_size": 64, "depth": 4} if "vit" in arch else {}))
        early, full = (read(backbone, taps, images(3), stop_early=stop) for stop in (True, False))
        assert list(early) == list(full)
        assert all(torch.equal(early[tap], full[tap]) for tap in early), arch


def test_the_forward_stops_at_the_deepest_tap_and_not_before(as_backbone, images):
    backbone = as_backbone(Residual())
    seen = []
    for path, part in backbone.module.named_modules():
        part.register_forward_pre_hook(lambda m, a, path=path: seen.append(path))
    resolved = resolve_taps(backbone, ["body.0", "stem", "body.0.relu#0"])
    with record(backbone, resolved) as run:
        seen.clear()
        run(images(2, 32))
    assert "body.0" in seen
    assert "body.1" not in seen
    with record(backbone, ["body.1:in"]) as run:
        seen.clear()
        run(images(2, 32))
    assert "body.1" in seen
    assert "body.1.conv1" not in seen
    # A module that fires again later is waited for, though the call asked for is done.
    resolved = resolve_taps(backbone, "body.1.relu#0")
    with record(backbone, resolved) as run:
        seen.clear()
        run(images(2, 32))
    assert seen.count("body.1.relu") == 2
    assert "fc" not in seen


def test_foreign_hooks_that_always_want_to_be_called_are_called(as_backbone, images):
    backbone = as_backbone(Residual())
    called = []
    backbone.module.register_forward_hook(lambda *a: called.append(1), always_call=True)
    with record(backbone, "stem") as run:
        called.clear()
        run(images(2, 32))
    assert called == [1]


class Swallowing(Residual):
    """Catches whatever its layers raise and goes on, as fault-tolerant code does."""

    def forward(self, x):
        x = self.stem(x)
        for block in self.body:
            try:
                x = block(x)
            except Exception:  # noqa: BLE001 - what the test is about
                x = x + 1
        return x


class Rewording(Residual):
    """Catches whatever its layers raise and raises something else."""

    def forward(self, x):
        try:
            return super().forward(x)
        except Exception as error:
            raise RuntimeError("layer failed") from error


@pytest.mark.parametrize("kind", [Swallowing, Rewording])
def test_a_model_that_catches_the_stop_is_run_to_its_end_from_then_on(as_backbone, images, kind):
    torch.manual_seed(0)
    backbone = as_backbone(kind())
    batch = images(2, 32)
    full = read(backbone, ["stem", "body.0"], batch, stop_early=False)
    seen = []
    backbone.module.body[1].register_forward_hook(lambda *a: seen.append(1))
    with record(backbone, ["stem", "body.0"]) as run:
        for count in (1, 2):
            result = {str(tap): value for tap, value in run(batch).items()}
            assert all(torch.equal(result[tap], full[tap]) for tap in full)
            assert len(seen) >= count
    assert hooks_on(backbone.module) == 1


def test_results_come_in_the_order_asked_for_without_duplicates(from_timm, images):
    backbone = from_timm("resnet18")
    taps = ["layer4", "conv1", "layer4|gap", "layer1.0", "fc:in", "layer4#0", Tap("conv1")]
    result = read(backbone, taps, images())
    assert list(result) == ["layer4|gap", "conv1|gap", "layer1.0|gap", "fc:in|raw"]


def test_several_elements_of_one_output(as_backbone, images):
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, stride=2)

        def forward(self, x):
            first = self.a(x)
            return {"fine": first, "1": self.b(first), "note": "text"}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pyramid, self.wrap, self.out = Pyramid(), Wrap(), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.out(self.wrap(self.pyramid(x)["1"])[0])

    class Wrap(nn.Module):
        def forward(self, x):
            return (x, None)

    backbone = as_backbone(Net())
    result = read(backbone, ["pyramid@fine", "pyramid@1", "pyramid.a", "wrap", "wrap@0"], images(2, 32))
    assert torch.equal(result["pyramid@fine|gap"], result["pyramid.a|gap"])
    assert torch.equal(result["pyramid@1|gap"], result["wrap|gap"])
    with pytest.raises(AmbiguousOutput, match="@fine, @1"):
        resolve_taps(backbone, "pyramid")
    with pytest.raises(AmbiguousOutput, match="@fine, @1"):
        resolve_taps(backbone, "pyramid@note")
    with pytest.raises(AmbiguousOutput, match="Leave @0 out"):
        resolve_taps(backbone, "out@0")


def test_autocast_dtypes_are_those_of_the_live_tensors(from_timm, images):
    backbone = from_timm("vit_tiny_patch16_224", img_size=64, depth=3)
    with torch.autocast("cpu", torch.bfloat16):
        result = read(
            backbone, ["patch_embed|tokens", "blocks.0.mlp.act|patch_mean", "blocks.1", "norm"], images()
        )
    assert [value.dtype for value in result.values()] == [
        torch.bfloat16, torch.bfloat16, torch.float32, torch.float32,
    ]  # fmt: skip
    exact = read(backbone, ["blocks.1"], images())
    torch.testing.assert_close(result["blocks.1|cls"], exact["blocks.1|cls"], rtol=0.1, atol=0.1)


# ---- gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", ["raw", "gap", "max", "gem", "grid(2)"])
def test_gradients_are_those_of_the_module_written_out(as_backbone, images, readout):
    torch.manual_seed(0)
    backbone = as_backbone(torchvision.models.resnet18(), 64)
    net, weights = backbone.module, {}

    def through_taps(batch):
        # The deeper tap lets the ReLU run that overwrites what the first one reads.
        with record(backbone, [f"bn1|{readout}", "layer1"], gradients=True) as run:
            return next(iter(run(batch).values()))

    def written_out(batch):
        from probekit.taps.readout import Layout
        from probekit.taps.readout import read as read_out

        return read_out(net.bn1(net.conv1(batch)), readout, Layout("NCHW"))

    gradients = []
    for function in (through_taps, written_out):
        batch = images().requires_grad_()
        values = function(batch)
        weights.setdefault("w", torch.randn(values.shape, generator=torch.Generator().manual_seed(2)))
        (values * weights["w"]).sum().backward()
        gradients.append(batch.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


def test_without_gradients_nothing_keeps_a_graph(as_backbone, images):
    backbone = as_backbone(Residual())
    result = read(backbone, "stem", images(2, 32).requires_grad_())
    assert all(value.is_inference() and value.grad_fn is None for value in result.values())
    with torch.no_grad():
        kept = read(backbone, "stem", images(2, 32).requires_grad_(), gradients=True)
    assert all(value.requires_grad and not value.is_inference() for value in kept.values())


# ---- nothing is left behind -------------------------------------------------------------------------------

BAD = [
    "nowhere",
    "stem#3",
    "stem|cls",
    "stem|grid(99)",
    "body.0.relu",
    "stem@1",
    "stem|tokens|raw",
    "re:(",
    "re:x",
]


@given(
    st.lists(st.sampled_from(["stem", "body.0", "body.1.conv2|raw", "fc:in", "blocks", *BAD]), max_size=4),
    st.sampled_from(["succeeds", "raises in the model", "raises outside", "raises in a layer"]),
    st.booleans(),
    st.booleans(),
    st.sets(st.sampled_from(["", "stem", "body", "body.1.relu"])),
)
@settings(deadline=None, max_examples=50)
def test_hooks_and_training_flags_are_restored_whatever_happens(
    as_backbone, taps, event, early, gradients, training
):
    backbone = as_backbone(Breaking())
    module = backbone.module
    module.train(False)
    for path in training:
        module.get_submodule(path).training = True
    flags = [part.training for part in module.modules()]
    batch = torch.zeros(2, 3, 32, 32)
    try:
        with record(backbone, taps, gradients=gradients, stop_early=early) as run:
            assert not any(part.training for part in module.modules())
            type(module).fails = event == "raises in the model"
            if event == "raises outside":
                raise KeyboardInterrupt
            run(torch.zeros(2, 5, 32, 32) if event == "raises in a layer" else batch)
    except (TapError, ValueError, RuntimeError, KeyboardInterrupt):
        pass
    finally:
        type(module).fails = False
    assert hooks_on(module) == 0
    assert [part.training for part in module.modules()] == flags


def test_an_error_of_the_model_comes_through_as_it_is(as_backbone, images):
    backbone = as_backbone(Breaking())
    with record(backbone, "fc:in") as run:
        Breaking.fails = True
        try:
            with pytest.raises(ValueError, match="broken on purpose"):
                run(images(2, 32))
        finally:
            Breaking.fails = False
        assert len(run(images(2, 32))) == 1, "the recorder must go on after an error"
    assert hooks_on(backbone.module) == 0


def test_weights_and_buffers_are_bit_equal_after_reading(from_timm, images):
    backbone = from_timm("resnet18")
    before = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    backbone.module.train()
    read(backbone, ["blocks", "penultimate"], images())
    assert backbone.module.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.module.state_dict().items())


def test_the_random_state_is_left_alone(as_backbone, images):
    backbone = as_backbone(Residual())
    state = torch.get_rng_state()
    batch = images(2, 32)
    read(backbone, "blocks", batch)
    assert torch.equal(torch.get_rng_state(), state)


# ---- taps that cannot be read -----------------------------------------------------------------------------


def test_dead_taps_name_their_cause(as_backbone, from_timm):
    vit = as_backbone(
        torchvision.models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16
        )
    )
    layer = "encoder.layers.encoder_layer_1.self_attention"
    with pytest.raises(TapDidNotFire, match=f"MultiheadAttention.*{layer}@0"):
        resolve_taps(vit, f"{layer}.out_proj")
    assert str(resolve_taps(vit, f"{layer}@0")[0]) == f"{layer}@0|cls"
    fused = from_timm("vit_tiny_patch16_224", img_size=64, depth=3)
    assert fused.module.blocks[0].attn.fused_attn
    with pytest.raises(TapDidNotFire, match="fused attention"):
        resolve_taps(fused, "blocks.0.attn.attn_drop")
    net = Residual()
    net.unused, net.several = nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)])
    backbone = as_backbone(net)
    with pytest.raises(TapDidNotFire, match="unused branch"):
        resolve_taps(backbone, "unused")
    with pytest.raises(TapDidNotFire, match="list of modules"):
        resolve_taps(backbone, "several")
    with pytest.raises(TapDidNotFire, match="is called"):
        resolve_taps(backbone, "several.*")


def test_typing_errors_are_answered_with_near_names(from_timm):
    backbone = from_timm("resnet18")
    with pytest.raises(TapNotFound, match=r"layer1\.0\.bn1"):
        resolve_taps(backbone, "layer1.0.bn_1")
    with pytest.raises(TapNotFound, match="penultimate"):
        resolve_taps(backbone, "penultimat")
    with pytest.raises(TapNotFound, match="layer"):
        resolve_taps(backbone, "layer9.*")


def test_class_tokens_that_are_not_there(from_timm):
    with pytest.raises(NoClassToken):
        resolve_taps(from_timm("resnet18"), "layer1|cls")
    without = from_timm("vit_base_patch16_gap_224", size=32, img_size=32, depth=3, embed_dim=32)
    assert [str(tap) for tap in resolve_taps(without, "blocks.0")] == ["blocks.0|patch_mean"]
    with pytest.raises(NoClassToken):
        resolve_taps(without, "blocks.0|cls")


def test_windows_that_split_the_batch_have_no_known_layout(from_timm, images):
    backbone = from_timm("swin_tiny_patch4_window7_224", size=112, img_size=112, depths=(1, 1), embed_dim=24,
                         num_heads=(1, 2))  # fmt: skip
    with pytest.raises(LayoutUnknown, match="first axis is not the batch"):
        resolve_taps(backbone, "layers.0.blocks.0.attn")
    result = read(backbone, ["layers.0.blocks.0.attn|raw"], images(2, 112))
    assert result["layers.0.blocks.0.attn|raw"].shape == (2 * 16, 49, 24)


def test_batches_that_are_treated_unlike_the_recorded_one_are_refused(as_backbone, images):
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.calls = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), 1

        def forward(self, x):
            if self.calls == 9:
                x = x[:1]
            x = self.a(x)
            for _ in range(self.calls % 9):
                x = self.b(x)
            return x

    backbone = as_backbone(Fickle())
    with record(backbone, ["a", "b"], stop_early=False) as run:
        run(images(3, 32))
        for calls, error in ((0, TapDidNotFire), (2, TapFiredManyTimes), (9, LayoutUnknown)):
            backbone.module.calls = calls
            with pytest.raises(error):
                run(images(3, 32))


@pytest.mark.slow
def test_compiled_modules_are_refused(as_backbone):
    backbone = as_backbone(Residual())
    outer = nn.Sequential(torch.compile(backbone.module))
    object.__setattr__(backbone, "module", outer)
    with pytest.raises(TapError, match="_orig_mod"), record(backbone, "0"):
        pass
    backbone = as_backbone(Residual())
    backbone.module.body.compile()
    with pytest.raises(TapError, match="compiled in place"), record(backbone, "stem"):
        pass


def test_data_parallel_is_run_to_its_end(as_backbone, images):
    backbone = as_backbone(Residual())
    object.__setattr__(backbone, "module", nn.DataParallel(backbone.module))
    object.__setattr__(backbone, "classifier", None)
    ended = []
    backbone.module.module.register_forward_hook(lambda *a: ended.append(1))
    with record(backbone, "module.stem") as run:
        ended.clear()
        run(images(2, 32))
    assert ended == [1]
