"""What is no PyTorch checkpoint is named, with what to do about it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from probekit.backbones.checkpoint import open_checkpoint
from probekit.errors import CheckpointError, UnsafeCheckpoint

ARRAYS = {"base/conv": {"w": np.ones((3, 3, 3, 8), np.float32)}}


def zipped(*names):
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w") as opened:
        for name in names:
            opened.writestr(name, "x")
    return into.getvalue()


def tarred(*names):
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w") as opened:
        for name in names:
            opened.addfile(tarfile.TarInfo(name))
    return into.getvalue()


def npz():
    into = io.BytesIO()
    np.savez(into, **{"embedding/kernel": np.ones(2)})
    return into.getvalue()


# Name of the file, its bytes, what is said of it, what to do.
FILES = [
    ("empty.pth", b"", "which is empty", "download it again"),
    ("text.pth", b"some notes\nmore", "a text that begins 'some notes'", "again"),
    ("page.pth", b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page", "Download the file itself"),
    ("page.pth", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page", "Download"),
    ("w.safetensors", b"<html>" + b"x" * 4000, "a web page", "Download"),
    (
        "model.safetensors",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "git-lfs pointer",
        "git lfs pull",
    ),
    (
        "index.json",
        b'{"metadata": {}, "weight_map": {"a": "b"}}',
        "index of a checkpoint in shards",
        "folder",
    ),
    ("config.json", b'{"hidden_size": 768}', "a JSON text", "beside it"),
    ("a.pth.gz", gzip.compress(b"x"), "packed with gzip", "Unpack"),
    ("a.pth.xz", lzma.compress(b"x"), "packed with xz", "Unpack"),
    ("a.pth.bz2", bz2.compress(b"x"), "packed with bzip2", "Unpack"),
    ("a.pth.zst", b"\x28\xb5\x2f\xfd\x00\x00", "packed with zstd", "Unpack"),
    ("a.zip", zipped("readme.md", "weights/a.pth"), r"a zip of other files \(readme\.md", "Unpack"),
    ("a.zip", zipped(), r"a zip of other files|cannot be read", "Unpack|whole"),
    (
        "ViT-B-32.pt",
        zipped("a/data.pkl", "a/constants.pkl"),
        "TorchScript.*CLIP",
        r"torch\.jit\.load\('ViT-B-32",
    ),
    ("a.pt", zipped("a/model.json", "a/code/__torch__.py"), "TorchScript", "state_dict"),
    ("a.pt2", zipped("a/archive_format", "a/models/model.json"), r"torch\.export", r"torch\.export\.load"),
    ("a.pt2", zipped("serialized_exported_program.json"), r"torch\.export", r"torch\.export\.load"),
    ("a.keras", zipped("metadata.json", "config.json", "model.weights.h5"), "Keras", "tensorflow"),
    ("a.npz", npz(), "NumPy arrays", "from_numpy"),
    ("a.npy", b"\x93NUMPY\x01\x00", r"a NumPy array", "from_numpy"),
    ("a.h5", b"\x89HDF\r\n\x1a\n\x00\x00", "HDF5", "tensorflow"),
    ("a.onnx", b"\x08\x07\x12\x07pytorch\x1a", "an ONNX model", "exported from"),
    ("a.bin", b"\x08\x08\x12\x07pytorch\x1a", "an ONNX model", "exported from"),
    ("saved_model.pb", b"\x08\x01\x12\x9a", "a TensorFlow graph", "tensorflow"),
    ("frozen.pb", b"\x0a\x20\x0a\x05input", "a TensorFlow graph", "tensorflow"),
    ("m.tflite", b"\x1c\x00\x00\x00TFL3\x14\x00", "TensorFlow Lite", "tensorflow"),
    ("model.ckpt-100.index", b"\x00" * 50, "TensorFlow checkpoint", "transposed"),
    ("model.ckpt.data-00000-of-00001", b"\x00" * 50, "TensorFlow checkpoint", "transposed"),
    ("renamed", b"\x00" * 50 + bytes.fromhex("57fb808b247547db"), "index of a TensorFlow", "transposed"),
    ("flax_model.msgpack", b"\x81\xa6params\x80", "Flax", "flax"),
    ("checkpoint_5", b"\x82\xa6params\x81\xa3abc\x01\xa5other\x02", "Flax", "flax"),
    ("haiku.pkl", pickle.dumps(ARRAYS), "pickle of NumPy arrays", "own library"),
    ("haiku.pkl", pickle.dumps(ARRAYS, 2), "pickle of NumPy arrays", "own library"),
    (
        "jax.pkl",
        b"\x80\x02cjax._src.array\n_reconstruct_array\n.",
        r"pickle of JAX.*jax\._src",
        "own library",
    ),
    ("plain.pkl", pickle.dumps({"a": [1, 2]}), "pickle of plain values", r"torch\.save"),
    ("a.gguf", b"GGUF\x03\x00\x00\x00", "GGUF", "made from"),
    ("photo.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", "an image", "checkpoint"),
    ("__0_0.distcp", b"PK\x05\x06" + b"\x00" * 18, "shard of a distributed", "folder"),
    ("a.tar", tarred("weights.pth"), "a tar archive", "Unpack"),
    ("a.pth.tar", tarred("storages", "tensors", "pickle"), r"torch before 0\.1\.10", "state_dict"),
]


@pytest.mark.parametrize(
    ("name", "content", "said", "todo"), FILES, ids=[f"{i}-{one[0]}" for i, one in enumerate(FILES)]
)
def test_a_foreign_file_is_named_and_what_to_do(tmp_path, name, content, said, todo):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"(?s){said}.*({todo})") as caught:
        open_checkpoint(path)
    assert not isinstance(caught.value, UnsafeCheckpoint)


def test_a_pickle_of_objects_is_unsafe_and_lists_them(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02ccollections\nOrderedDict\ncb.module\nNet\n\x86.")
    with pytest.raises(
        UnsafeCheckpoint, match=r"plain pickle that needs b\.module\.Net, collections\.OrderedDict"
    ):
        open_checkpoint(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:")
def test_a_real_torchscript_program_is_named(tmp_path):
    path = tmp_path / "a.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(CheckpointError, match="TorchScript"):
        open_checkpoint(path)


# Files inside, what is said of the folder, what to do.
FOLDERS = [
    ((".metadata", "__0_0.distcp"), r"distributed checkpoint of torch \(DCP\)", "dcp_to_torch"),
    (("latest", "zero_to_fp32.py", "global_step1"), "DeepSpeed", "zero_to_fp32"),
    (("saved_model.pb", "variables"), "SavedModel", "tensorflow"),
    (
        ("checkpoint", "model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001"),
        "TensorFlow checkpoint",
        "transposed",
    ),
    (("_METADATA", "manifest.ocdbt", "d"), "Orbax", "flax"),
    (("config.json", "flax_model.msgpack"), "Flax or TensorFlow weights only", "transformers"),
    (("config.json", "README.md"), r"config\.json but no weights", r"model\.safetensors"),
    (("a.pth", "b.pth"), r"the folder .* with a\.pth, b\.pth", "file inside"),
    ((), "with nothing", "file inside"),
]


@pytest.mark.parametrize(("names", "said", "todo"), FOLDERS)
def test_a_folder_without_weights_is_named(tmp_path, names, said, todo):
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(CheckpointError, match=f"(?s){said}.*{todo}"):
        open_checkpoint(tmp_path)
