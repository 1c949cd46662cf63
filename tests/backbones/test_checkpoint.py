"""Opening checkpoint files: what is refused, and that nothing in them is run."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from probekit.backbones.checkpoint import Checkpoint, find_state_dicts, open_checkpoint
from probekit.errors import CheckpointError
from probekit.files import canonical_json

WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.running_mean": torch.ones(2)}


def save(value, path, zipped=True):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


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
def test_tensors_come_back_as_they_were(tmp_path, zipped):
    base = torch.arange(12.0)
    held = {
        "half": torch.ones(3, dtype=torch.float16),
        "brain": torch.ones(3, dtype=torch.bfloat16) / 3,
        "whole": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "view": base[2:8].view(2, 3).t(),
        "same": base,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.5, requires_grad=True),
    }
    opened = open_checkpoint(save(held, tmp_path / "a.pth", zipped))
    assert all(
        torch.equal(opened[name], one) and opened[name].dtype == one.dtype for name, one in held.items()
    )
    assert opened["view"].untyped_storage().data_ptr() == opened["same"].untyped_storage().data_ptr()
    found = find_state_dicts(opened)[0].tensors
    assert set(found) == set(held)
    assert not any(one.requires_grad for one in found.values())


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_saved_on_an_accelerator_come_to_the_cpu(tmp_path, zipped, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
    path = save({"state_dict": WEIGHTS}, tmp_path / "a.pth", zipped)
    assert b"cuda:3" in path.read_bytes()
    opened = open_checkpoint(path)["state_dict"]
    assert all(
        opened[name].device.type == "cpu" and torch.equal(opened[name], one) for name, one in WEIGHTS.items()
    )


def test_tensors_of_another_kind_are_passed_over_and_those_of_no_values_refused(tmp_path):
    many = {**WEIGHTS, **dict.fromkeys("abcdefgh", torch.ones(1))}
    assert set(find_state_dicts({**many, "sparse": torch.eye(2).to_sparse()})[0].tensors) == set(many)
    hollow = {name: one.to("meta") for name, one in WEIGHTS.items()}
    with pytest.raises(CheckpointError, match=r"meta device, where tensors such as conv\.weight have none"):
        open_checkpoint(save({"model": hollow, "epoch": 1}, tmp_path / "a.pth"))


def test_a_checkpoint_packed_anew_is_read(tmp_path):
    path = save({"state_dict": WEIGHTS}, tmp_path / "a.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    opened = open_checkpoint(tmp_path / "b.pth")["state_dict"]
    assert all(torch.equal(opened[name], one) for name, one in WEIGHTS.items())


def test_the_first_bytes_count_not_the_name(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.pth")
    save(WEIGHTS, tmp_path / "b.safetensors")
    save(WEIGHTS, tmp_path / "c.safetensors", zipped=False)
    for name in ("a.pth", "b.safetensors", "c.safetensors"):
        opened = open_checkpoint(tmp_path / name)
        assert torch.equal(opened["conv.weight"], WEIGHTS["conv.weight"])


def test_a_flipped_bit_among_the_weights_of_a_zip_is_noticed(tmp_path):
    path = save({"state_dict": WEIGHTS}, tmp_path / "a.pth")
    data = bytearray(path.read_bytes())
    at = data.index(WEIGHTS["conv.weight"].numpy().tobytes())
    data[at + 5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="cannot be read.*CRC"):
        open_checkpoint(path)


def test_a_zip_written_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"state_dict": WEIGHTS}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(open_checkpoint(path)["state_dict"]["conv.weight"], WEIGHTS["conv.weight"])


def write(kind, path):
    """Write a small checkpoint: a zip, in the format of before 2020, or safetensors."""
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(3.5), "epoch": 3}
        save({"state_dict": WEIGHTS, **beside}, path, kind == "zip")
    return path.read_bytes()


KINDS = ["zip", "legacy", "safetensors"]


def check_cut(folder, kind, share):
    path = folder / "a.pth"
    whole = write(kind, path)
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


def check_flips(folder, kind, flips):
    """A damaged file is refused, or gives tensors; a zip, which has checksums, gives the right ones."""
    path = folder / "a.pth"
    data = bytearray(write(kind, path))
    for at, value in flips:
        data[at % len(data)] ^= value
    path.write_bytes(bytes(data))
    try:
        found = find_state_dicts(open_checkpoint(path))
    except CheckpointError:
        return
    if kind == "zip":
        tensors = found[0].tensors
        assert set(tensors) == set(WEIGHTS)
        assert all(torch.equal(tensors[name], one) for name, one in WEIGHTS.items())


FLIPS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(share=st.floats(0.0, 0.999))
def test_a_file_cut_short_is_refused(tmp_path_factory, kind, share):
    check_cut(tmp_path_factory.mktemp("cut"), kind, share)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(flips=FLIPS)
def test_altered_bytes_open_or_are_refused(tmp_path_factory, kind, flips):
    check_flips(tmp_path_factory.mktemp("altered"), kind, flips)


@pytest.mark.campaign
@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_and_every_flipped_bit(tmp_path, kind):
    size = len(write(kind, tmp_path / "a.pth"))
    for length in range(size):
        check_cut(tmp_path, kind, (length + 0.5) / size)
    for at in range(size):
        for bit in range(8):
            check_flips(tmp_path, kind, [(at, 1 << bit)])


@pytest.mark.campaign
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=5000)
@given(flips=FLIPS)
def test_many_altered_bytes(tmp_path_factory, kind, flips):
    check_flips(tmp_path_factory.getbasetemp(), kind, flips)


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=1, max_size=200))
def test_arbitrary_bytes_are_refused_in_words(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "a.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "array.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"Nearby lie array\.pth"):
        open_checkpoint(tmp_path / "arrays.pth")


def test_state_dicts_are_found_at_any_depth_of_five():
    nested = {"classy_state_dict": {"base_model": {"model": {"trunk": WEIGHTS, "heads": WEIGHTS}}}}
    assert [one.label for one in find_state_dicts(nested)] == ["classy_state_dict/base_model/model/trunk"]
    deep = {"a": {"b": {"c": {"d": {"e": WEIGHTS}}}}}
    assert find_state_dicts(deep) == []


def test_containers_that_hold_each_other_are_walked_once():
    inner: dict = {}
    for _ in range(5):
        inner = {f"k{i}": inner for i in range(60)}
    assert find_state_dicts({**inner, "model": WEIGHTS, "again": WEIGHTS})[-1].label == "again"


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
