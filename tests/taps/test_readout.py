from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import LayoutUnknown, NoClassToken, TapError
from probekit.taps.readout import (
    GEM_EPS,
    Layout,
    check_readout,
    default_readout,
    read,
    readout_axes,
    readout_shape,
)
from probekit.taps.tap import READOUTS

MAP = Layout("NCHW")
VIT = Layout("NLC", 1, has_class_token=True, grid=(2, 3))
LAYOUTS = {
    "NC": Layout("NC"),
    "NCHW": MAP,
    "NHWC": Layout("NHWC"),
    "vit": VIT,
    "registers": Layout("NLC", 5, has_class_token=True, grid=(2, 3)),
    "mixer": Layout("NLC", 0, grid=(2, 3)),
    "class token alone": Layout("NLC", 1, has_class_token=True),
}
SHAPES = {
    "NC": (4, 6), "NCHW": (4, 6, 5, 5), "NHWC": (4, 5, 5, 6), "vit": (4, 7, 6), "registers": (4, 11, 6),
    "mixer": (4, 6, 6), "class token alone": (4, 1, 6),
}  # fmt: skip


def values(name):
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(0))


def test_pooling_of_a_map_by_hand():
    maps = values("NCHW")
    array = maps.numpy()
    np.testing.assert_allclose(read(maps, "gap", MAP), array.mean((2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(read(maps, "max", MAP), array.max((2, 3)))
    gem = np.maximum(array.astype(float), GEM_EPS) ** 3
    np.testing.assert_allclose(read(maps, "gem", MAP), gem.mean((2, 3)) ** (1 / 3), rtol=1e-5)
    np.testing.assert_array_equal(read(maps, "tokens", MAP), array.reshape(4, 6, 25).transpose(0, 2, 1))


def test_grid_averages_quarters_channel_by_channel():
    maps = torch.arange(2 * 2 * 4 * 4, dtype=torch.float32).reshape(2, 2, 4, 4)
    quarters = maps.numpy().reshape(2, 2, 2, 2, 2, 2).mean((3, 5)).reshape(2, 8)
    np.testing.assert_array_equal(read(maps, "grid(2)", MAP), quarters)


def test_tokens_by_hand():
    tokens = values("vit")
    array = tokens.numpy()
    np.testing.assert_array_equal(read(tokens, "cls", VIT), array[:, 0])
    np.testing.assert_allclose(read(tokens, "patch_mean", VIT), array[:, 1:].mean(1), rtol=1e-5, atol=1e-6)
    both = np.concatenate([array[:, 0], array[:, 1:].mean(1)], axis=1)
    np.testing.assert_allclose(read(tokens, "cls+patch_mean", VIT), both, rtol=1e-5, atol=1e-6)
    grid = array[:, 1:].transpose(0, 2, 1).reshape(4, 6, 2, 3)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(grid), 2).flatten(1)
    np.testing.assert_array_equal(read(tokens, "grid(2)", VIT), expected)


def test_registers_are_neither_class_nor_patches():
    tokens = values("registers")
    layout = LAYOUTS["registers"]
    torch.testing.assert_close(read(tokens, "patch_mean", layout), tokens[:, 5:].mean(1))
    torch.testing.assert_close(read(tokens, "max", layout), tokens[:, 5:].amax(1))
    torch.testing.assert_close(read(tokens, "cls", layout), tokens[:, 0])


@pytest.mark.parametrize("readout", ["gap", "max", "gem", "grid(2)", "grid(5)", "tokens", "raw"])
def test_channels_last_reads_as_channels_first(readout):
    maps = values("NCHW")
    torch.testing.assert_close(
        read(maps.permute(0, 2, 3, 1).contiguous(), readout, LAYOUTS["NHWC"]), read(maps, readout, MAP)
    )


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("readout", [*READOUTS, "grid(1)", "grid(2)"])
def test_every_readout_is_a_copy_of_the_stated_shape_or_refused(name, readout):
    activation, layout = values(name), LAYOUTS[name]
    try:
        check_readout(readout, layout, SHAPES[name][1:])
    except TapError:
        with pytest.raises(TapError):
            read(activation, readout, layout)
        return
    result = read(activation, readout, layout)
    assert tuple(result.shape[1:]) == readout_shape(readout, layout, tuple(activation.shape[1:]))
    assert result.ndim == len(readout_axes(readout, layout).split())
    assert result.dtype == activation.dtype
    before = result.clone()
    activation.fill_(7)
    assert torch.equal(result, before), "the result shares memory with the activation"


@pytest.mark.parametrize("readout", ["gap", "max", "gem", "grid(2)", "raw", "tokens"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half(readout, dtype):
    maps = (values("NCHW").abs() * 100).to(dtype)
    result = read(maps, readout, MAP)
    assert result.dtype == dtype
    assert result.isfinite().all()


@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))
@settings(deadline=None, max_examples=50)
def test_a_map_of_one_value_reads_as_that_value(channels, rows, columns, side):
    maps = torch.full((2, channels, rows, columns), 1.5)
    for readout in ("gap", "max", "gem"):
        torch.testing.assert_close(read(maps, readout, MAP), torch.full((2, channels), 1.5))
    if side <= min(rows, columns):
        result = read(maps, f"grid({side})", MAP)
        torch.testing.assert_close(result, torch.full((2, channels * side * side), 1.5))


def test_defaults():
    assert {name: default_readout(layout) for name, layout in LAYOUTS.items()} == {
        "NC": "raw", "NCHW": "gap", "NHWC": "gap", "vit": "cls", "registers": "cls", "mixer": "patch_mean",
        "class token alone": "cls",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("readout", "layout", "error", "says"),
    [
        ("gap", VIT, TapError, "patch_mean"),
        ("patch_mean", MAP, TapError, "gap"),
        ("cls", MAP, NoClassToken, "gap for maps"),
        ("cls", LAYOUTS["mixer"], NoClassToken, "patch_mean"),
        ("cls+patch_mean", LAYOUTS["mixer"], NoClassToken, "patch_mean"),
        ("grid(6)", MAP, TapError, "5×5"),
        ("grid(3)", VIT, TapError, "2×3"),
        ("gem", LAYOUTS["NC"], TapError, "one vector"),
        ("gap", Layout("unknown"), LayoutUnknown, "raw"),
        ("tokens", Layout("unknown"), LayoutUnknown, "raw"),
        ("patch_mean", Layout("NLC", None), LayoutUnknown, "tokens"),
        ("grid(2)", Layout("NLC", 1), LayoutUnknown, "patch_mean"),
        ("auto", MAP, TapError, "explicit"),
    ],
)
def test_what_has_no_meaning_is_refused(readout, layout, error, says):
    name = {"NC": "NC", "NCHW": "NCHW", "NLC": "vit", "unknown": "vit"}[layout.axes]
    with pytest.raises(error, match=says):
        read(values(name), readout, layout)


def test_unknown_layouts_have_no_default():
    for layout in (Layout("unknown"), Layout("NLC", None)):
        with pytest.raises(LayoutUnknown):
            default_readout(layout)


def test_patches_off_the_recorded_grid_are_refused():
    with pytest.raises(TapError, match="2×3 patches"):
        read(torch.zeros(1, 10, 6), "grid(2)", VIT)
