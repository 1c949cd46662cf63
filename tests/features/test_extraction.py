"""Features are computed once and found again by what made them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from probekit import extract, stream
from probekit.compute import torch_threads
from probekit.errors import InputError, StoreDamaged, StoreTooBig, TapNotFound
from probekit.features import extraction, store, trial
from probekit.features.streaming import read_batches
from probekit.features.trial import open_forward
from tests.features.conftest import images, small_backbone


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The taps of every pass over the images."""
    seen: list[list[str]] = []

    def counted(trial, taps, engine):
        seen.append([str(tap) for tap in taps])
        return open_forward(trial, taps, engine)

    monkeypatch.setattr(trial, "open_forward", counted)
    return seen


def test_features_equal_the_stream(store: Path):
    backbone, data = small_backbone(), images()
    features = extract(backbone, data, ["3|gap", "5|grid(2)"], store=store, batch_size=8)
    batches = [values for _, values in stream(backbone, data, ["3|gap", "5|grid(2)"], batch_size=8)]
    for place, one in enumerate(features.values()):
        expected = np.concatenate([list(values.values())[place] for values in batches])
        np.testing.assert_array_equal(one.matrix(), expected)
    assert list(features) == ["3|gap", "5|grid(2)"]
    assert features["5|grid(2)"].shape == (50, 20)


def test_only_missing_taps_are_computed(store: Path, passes: list[list[str]]):
    backbone, data = small_backbone(), images()
    extract(backbone, data, ["3|gap"], store=store)
    extract(backbone, data, ["3|gap", "5|gap"], store=store)
    extract(backbone, data, ["5|gap", "3|gap"], store=store)
    assert passes == [["3|gap"], ["5|gap"]]


def test_a_and_b_leave_the_bytes_of_a_then_b(tmp_path: Path):
    backbone, data = small_backbone(), images()
    extract(backbone, data, ["3|gap", "5|gap"], store=tmp_path / "one")
    extract(backbone, data, ["5|gap"], store=tmp_path / "two")
    extract(backbone, data, ["3|gap"], store=tmp_path / "two")
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


def test_what_features_depend_on_is_in_the_key(store: Path, passes: list[list[str]]):
    data = images()
    extract(small_backbone(), data, "3|gap", store=store)
    extract(small_backbone(seed=1), data, "3|gap", store=store)  # weights
    extract(small_backbone(size=10), data, "3|gap", store=store)  # transform
    extract(small_backbone(), images(seed=1), "3|gap", store=store)  # images
    extract(small_backbone(), data, "3|max", store=store)  # readout
    extract(small_backbone(), data, "3|gap", store=store, dtype="float16")  # storage type
    assert len(passes) == 6
    extract(small_backbone(), data, "3|gap", store=store)
    assert len(passes) == 6


def test_code_is_in_the_key(store: Path, passes: list[list[str]]):
    backbone, changed = small_backbone(), small_backbone()
    changed.module[0].stride = (2, 2)  # equal weights, another function
    one = extract(backbone, images(), "3|gap", store=store)["3|gap"].matrix()
    other = extract(changed, images(), "3|gap", store=store)["3|gap"].matrix()
    assert len(passes) == 2
    assert not np.allclose(one, other)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_an_interrupted_extraction_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
):
    monkeypatch.setattr(store, "PART_BYTES", 8 * 5 * 4)
    backbone, data, taps = small_backbone(), images(), ["3|gap", "5|raw"]
    extract(backbone, data, taps, store=tmp_path / "whole", batch_size=8)

    def interrupted(*args, **settings):
        for place, batch in enumerate(read_batches(*args, **settings)):
            if place == stop:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "read_batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(backbone, data, taps, store=tmp_path / "resumed", batch_size=8)
    assert everything(tmp_path / "whole") != everything(tmp_path / "resumed")
    extract(backbone, data, taps, store=tmp_path / "resumed", batch_size=8)
    assert everything(tmp_path / "whole") == everything(tmp_path / "resumed")


KILLED = """
    import sys, time
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from probekit import extract
    from probekit.features import extraction, store
    from probekit.features.streaming import read_batches
    from tests.features.conftest import images, small_backbone
    store.PART_BYTES = 8 * 5 * 4

    def slow(*args, **settings):
        for batch in read_batches(*args, **settings):
            print("batch", flush=True)
            time.sleep(0.05)
            yield batch

    extraction.read_batches = slow
    extract(small_backbone(), images(200), ["3|gap", "5|raw"], store=Path(sys.argv[1]), batch_size=8)
    print("done", flush=True)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_store_that_is_finished_to_the_same_bytes(tmp_path: Path):
    def run(folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole).communicate()[0].endswith("done\n")
    with run(killed) as process:
        assert process.stdout is not None
        for _ in range(12):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert 0 < len(list(killed.rglob("part-*.npy"))) < len(list(whole.rglob("part-*.npy")))
    assert run(killed).communicate()[0].endswith("done\n")
    assert everything(whole) == {
        name: data for name, data in everything(killed).items() if not name.endswith(".tmp")
    }


@pytest.mark.slow
def test_a_repeat_in_words_needs_neither_torch_nor_timm(tmp_path: Path):
    script = textwrap.dedent("""
        import sys
        from probekit import extract
        features = extract("resnet10t:random,size=32", "digits,limit=20", "stages", store=sys.argv[1])
        total = sum(float(one.matrix().sum()) for one in features.values())
        print(total, "torch" in sys.modules, "timm" in sys.modules)
    """)
    runs = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    first, second = (run.stdout.split() for run in runs)
    assert first[1:] == ["True", "True"]
    assert second[1:] == ["False", "False"]
    assert first[0] == second[0]


def test_a_repeat_keeps_the_order_asked_for(store: Path):
    taps = ["layer4.0", "layer1.0", "penultimate", "layer2.0"]
    request = ("resnet10t:random,size=32", "digits,limit=10", taps)
    first, second = (list(extract(*request, store=store)) for _ in range(2))
    assert first == second == ["layer4.0|gap", "layer1.0|gap", "fc:in|raw", "layer2.0|gap"]


def test_changed_checkpoint_files_never_hit(tmp_path: Path):
    path = tmp_path / "net.pth"
    import timm

    values = []
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(timm.create_model("resnet10t").state_dict(), path)
        os.utime(path, ns=(1, 1))  # the same time, size and name; only bytes and inode differ
        found = extract(
            f"resnet10t:{path},size=32", "digits,limit=10", "penultimate", store=tmp_path / "store"
        )
        values.append(next(iter(found.values())).matrix())
    assert not np.allclose(*values)


def test_errors_come_before_any_image_is_read(
    store: Path, passes: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    backbone, data = small_backbone(), images()
    with pytest.raises(TapNotFound):
        extract(backbone, data, "nowhere", store=store)
    with pytest.raises(InputError, match="float32"):
        extract(backbone, data, "3", store=store, dtype="int8")
    with pytest.raises(InputError, match="batch size"):
        extract(backbone, data, "3", store=store, batch_size=0)
    monkeypatch.setattr(extraction.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(StoreTooBig, match="GB"):
        extract(backbone, data, "5|raw", store=store)
    assert passes == []


def test_another_engine_may_not_append(store: Path, monkeypatch: pytest.MonkeyPatch):
    backbone, data = small_backbone(), images()
    extract(backbone, data, "3|gap", store=store)
    original = extraction.engine_facts
    monkeypatch.setattr(
        extraction, "engine_facts", lambda *args, **path: original(*args, **path) | {"capability": "other"}
    )
    extract(backbone, data, "3|gap", store=store)  # reading is fine
    with pytest.raises(StoreDamaged, match="capability"):
        extract(backbone, data, "5|gap", store=store)


def test_the_manifest_decides_batches_and_threads(store: Path, monkeypatch: pytest.MonkeyPatch):
    backbone, data = small_backbone(), images()
    extract(backbone, data, "3|gap", store=store, batch_size=8)
    sizes = []

    def watched(backbone, images, forward, batches, waiting, **settings):
        sizes.append((len(batches[0]), torch.get_num_threads()))
        return read_batches(backbone, images, forward, batches, waiting, **settings)

    monkeypatch.setattr(extraction, "read_batches", watched)
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        extract(backbone, data, "5|gap", store=store, batch_size=16)
    assert sizes == [(8, before)]


def test_maps_are_not_flattened_by_guess(store: Path):
    features = extract(small_backbone(), images(), "5|raw", store=store)["5|raw"]
    assert features.axes == "N D H W"
    with pytest.raises(Exception, match="readout"):
        features.matrix()


def test_time_passed_leaves_no_trace(tmp_path: Path):
    extract(small_backbone(), images(), "3|gap", store=tmp_path / "one")
    time.sleep(0.01)
    extract(small_backbone(), images(), "3|gap", store=tmp_path / "two")
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


def test_an_estimate_keeps_nothing(store: Path):
    found = extraction.estimate(small_backbone(), images(), ["3|gap", "5|raw"])
    assert found["images"] == 50
    assert found["taps"] == 2
    assert found["size_bytes"] == 50 * 4 * (6 + 5 * 6 * 6)
    assert not store.exists()
