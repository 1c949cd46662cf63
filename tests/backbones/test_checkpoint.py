"""Opening checkpoint files: what is refused, and that nothing in them is run."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from probekit.backbones.checkpoint import Checkpoint, find_state_dicts, open_checkpoint
from probekit.errors import CheckpointError, UnsafeCheckpoint
from probekit.files import canonical_json

WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.running_mean": torch.ones(2)}


class Hostile:
    """Runs a command when an ordinary unpickler meets it."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


def save(value, path, zipped=True):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, zipped):
    flag = tmp_path / "ran"
    path = save({"state_dict": WEIGHTS, "extra": Hostile(flag)}, tmp_path / "a.pth", zipped)
    with pytest.raises(UnsafeCheckpoint, match=r"(posix|nt)\.system"):
        open_checkpoint(path)
    assert not flag.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_plain_pickle_is_refused_and_not_run(tmp_path, protocol):
    flag = tmp_path / "ran"
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": Hostile(flag)}, protocol=protocol))
    with pytest.raises(UnsafeCheckpoint, match=r"(posix|nt)\.system"):
        open_checkpoint(path)
    assert not flag.exists()


def test_a_pickled_module_is_refused_by_name(tmp_path):
    path = save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(UnsafeCheckpoint, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        open_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_and_scores_beside_the_weights_are_left_out(tmp_path, zipped):
    beside = {"args": argparse.Namespace(lr=0.1, out=Path("x")), "best": np.float64(3.5), "epoch": 3}
    opened = open_checkpoint(save({"teacher": WEIGHTS, **beside}, tmp_path / "a.pth", zipped))
    assert torch.equal(opened["teacher"]["conv.weight"], WEIGHTS["conv.weight"])
    assert not isinstance(opened["args"], argparse.Namespace)
    assert [one.label for one in find_state_dicts(opened)] == ["teacher"]


def test_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(WEIGHTS, path)
    assert torch.equal(open_checkpoint(path)["conv.weight"], WEIGHTS["conv.weight"])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="safetensors"):
        open_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
@settings(deadline=None, max_examples=30)
@given(share=st.floats(0.0, 0.999))
def test_a_file_cut_short_is_refused(tmp_path_factory, zipped, share):
    path = save({"state_dict": WEIGHTS}, tmp_path_factory.mktemp("cut") / "a.pth", zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


@settings(deadline=None, max_examples=50)
@given(at=st.integers(0, 10**6), value=st.integers(0, 255), zipped=st.booleans())
def test_an_altered_byte_opens_or_is_refused(tmp_path_factory, at, value, zipped):
    path = save({"state_dict": WEIGHTS}, tmp_path_factory.mktemp("altered") / "a.pth", zipped)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    path.write_bytes(bytes(data))
    with suppress(CheckpointError):
        find_state_dicts(open_checkpoint(path))


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=1, max_size=200))
def test_arbitrary_bytes_are_refused_in_words(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "a.pth"
    path.write_bytes(data)
    with suppress(CheckpointError):
        open_checkpoint(path)


def test_what_is_no_checkpoint_is_refused_in_words(tmp_path):
    cases = {
        "empty.pth": (b"", "empty"),
        "array.pth": (b"\x93NUMPY\x01\x00", "NumPy"),
        "t.pth": (b"text", "read"),
    }
    for name, (content, said) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            open_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"Nearby lie array\.pth"):
        open_checkpoint(tmp_path / "arrays.pth")
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as opened:
        opened.writestr("a.txt", "a")
    with pytest.raises(CheckpointError, match="a zip of other files"):
        open_checkpoint(tmp_path / "z.pth")


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("config.json", "model.safetensors"),
        (".metadata", "distributed"),
        ("saved_model.pb", "TensorFlow"),
        ("a.pth", "file inside"),
    ],
)
def test_a_folder_is_refused_with_advice(tmp_path, inside, said):
    (tmp_path / inside).write_text("x")
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path)


def test_state_dicts_are_found_at_any_depth_of_five():
    nested = {"classy_state_dict": {"base_model": {"model": {"trunk": WEIGHTS, "heads": WEIGHTS}}}}
    assert [one.label for one in find_state_dicts(nested)] == ["classy_state_dict/base_model/model/trunk"]
    deep = {"a": {"b": {"c": {"d": {"e": WEIGHTS}}}}}
    assert find_state_dicts(deep) == []


def test_optimizers_and_sparse_mappings_are_passed_over():
    half = {"a": torch.ones(1), "b": 1}
    opened = {"optimizer": WEIGHTS, "queue": WEIGHTS, "few": half, 3: WEIGHTS, "model": WEIGHTS}
    assert [one.label for one in find_state_dicts(opened)] == ["model"]
    assert find_state_dicts(torch.ones(2)) == []


def test_the_report_says_it_on_one_line_without_folders():
    report = Checkpoint(
        "/home/someone/moco.pth.tar",
        "00",
        branch="online",
        container="state_dict",
        prefix="module.encoder_q.",
        matched=9,
        missing=("fc.weight", "bn1.num_batches_tracked"),
        unexpected=("odd",),
        alternatives=("ema (state_dict/module.encoder_k)",),
    ).noted("one note")
    assert report.summary() == (
        "moco.pth.tar; branch online; at state_dict/module.encoder_q; "
        "9 entries matched, 1 missing (fc.weight), 1 batch counters missing, 1 unexpected (odd); "
        "also there: ema (state_dict/module.encoder_k); one note"
    )
    assert "someone" not in canonical_json(report.facts())
    assert Checkpoint("random@3").random_init
    assert not report.random_init
