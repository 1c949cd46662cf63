"""One pass, every tap, in order."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from probekit import stream
from probekit.data.transforms import Preprocessing
from probekit.errors import ImageUnreadable, InputError
from probekit.features.streaming import Waiting, divide, pixel_batches, read_batches
from tests.features.conftest import images, small_backbone

TAPS = ["3|gap", "1|gap", "5|raw"]


def test_values_equal_a_hand_written_forward():
    backbone, data = small_backbone(), images(10)
    pixels = np.stack([data.pixels(i, backbone.preprocessing) for i in range(10)])
    with torch.inference_mode():
        x = backbone.prepare(torch.from_numpy(pixels))
        bn = backbone.module[1](backbone.module[0](x))
        three = backbone.module[3](torch.relu(bn))
        five = backbone.module[5](torch.relu(three))
    found = list(stream(backbone, data, TAPS, batch_size=10))
    assert len(found) == 1
    ids, values = found[0]
    assert (ids == data.ids).all()
    assert [str(tap) for tap in values] == TAPS
    for value, expected in zip(values.values(), (three.mean((2, 3)), bn.mean((2, 3)), five), strict=True):
        np.testing.assert_array_equal(value, expected.numpy())


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_ids_come_in_order_for_any_batch_size(batch_size: int):
    data = images()
    ids = np.concatenate([ids for ids, _ in stream(small_backbone(), data, "5", batch_size=batch_size)])
    assert (ids == data.ids).all()


def test_a_stream_can_start_in_the_middle():
    data = images()
    whole = np.concatenate(
        [next(iter(v.values())) for _, v in stream(small_backbone(), data, "5", batch_size=8)]
    )
    rest = np.concatenate(
        [next(iter(v.values())) for _, v in stream(small_backbone(), data, "5", batch_size=8, start=16)]
    )
    np.testing.assert_array_equal(whole[16:], rest)


def test_leaving_early_removes_hooks():
    backbone = small_backbone()
    batches = stream(backbone, images(), "5", batch_size=8)
    next(batches)
    batches.close()
    assert not any(module._forward_hooks for module in backbone.module.modules())


def test_decoding_runs_ahead_and_fails_when_its_batch_is_due():
    class Broken:
        def read(self, index: int):
            if index == 9:
                raise ImageUnreadable("an image", "image 9", "Restore it")
            return np.zeros((12, 12, 3), np.uint8)

    data = replace(images(20), source=Broken())
    batches = pixel_batches(data, Preprocessing(12, 12), divide(np.arange(20), 4))
    assert [rows[0] for rows, _ in (next(batches), next(batches))] == [0, 4]
    with pytest.raises(ImageUnreadable, match="image 9"):
        next(batches)


def test_where_the_time_goes_is_told():
    class Slow:
        def read(self, index: int):
            time.sleep(0.02)
            return np.zeros((12, 12, 3), np.uint8)

    data, backbone = replace(images(16), source=Slow()), small_backbone()
    told = []
    for decoding in (True, False):
        waiting = Waiting()

        def forward(batch: torch.Tensor, pause: float = 0.0 if decoding else 0.3):
            time.sleep(pause)
            return {}

        list(read_batches(backbone, data, forward, divide(np.arange(16), 4), waiting))
        told.append(waiting.bottleneck().split()[0])
    assert told == ["decode", "model"]


def test_the_fused_stream_gives_the_same():
    data, backbone = images(50), small_backbone()
    eager, fused = (
        list(stream(backbone, data, TAPS, batch_size=16, engine=engine)) for engine in ("eager", "fused")
    )
    assert len(eager) == len(fused) == 4
    for (ids, values), (other_ids, other) in zip(eager, fused, strict=True):
        assert (ids == other_ids).all()
        for tap, expected in values.items():
            assert np.linalg.norm(other[tap] - expected) <= 1e-5 * np.linalg.norm(expected)
    with pytest.raises(InputError, match="eager or fused"):
        next(stream(backbone, data, TAPS, engine="auto"))
