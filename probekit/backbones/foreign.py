"""What a file or folder without PyTorch weights is, told from its first bytes, and what to do with it."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path

from probekit.backbones.pickles import DAMAGE, LEGACY, list_globals
from probekit.errors import CheckpointError, UnsafeCheckpoint

HEAD_BYTES = 1024
UNPACK = "Unpack it and name the file inside"
TENSORFLOW = (
    "Read its variables with tensorflow, give them the names and axis order of a PyTorch module "
    "(kernels are stored transposed), and torch.save the dict"
)
FLAX = (
    "Read it with flax, give its arrays the names and axis order of a PyTorch module (kernels are stored "
    "transposed), and torch.save the dict"
)
HAIKU = (
    "A pickle runs code: where you trust it, open it once in its own library, turn the arrays into tensors "
    "under the names of a PyTorch module, and torch.save the dict"
)
NUMPY = "Turn its arrays into tensors, {name: torch.from_numpy(array)}, and torch.save the dict"
AGAIN = "Download the file itself again"

# First bytes → what it is, what to do. Longer ones stand first.
MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs.github.com/spec",
        "a git-lfs pointer, not the file it points to",
        "Run `git lfs pull` in its repository",
    ),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes (.h5)", TENSORFLOW),
    (b"\xfd7zXZ\x00", "a file packed with xz", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a file packed with 7-Zip", UNPACK),
    (b"\x93NUMPY", "a NumPy array (.npy)", NUMPY),
    (b"\x89PNG", "an image", "Name a checkpoint"),
    (b"\xff\xd8\xff", "an image", "Name a checkpoint"),
    (b"\x28\xb5\x2f\xfd", "a file packed with zstd", UNPACK),
    (
        b"GGUF",
        "a GGUF file: quantised weights of a language model, in most cases",
        "Use the PyTorch or safetensors weights it was made from",
    ),
    (b"PAR1", "a Parquet table", "Name a checkpoint"),
    (b"%PDF", "a PDF document", "Name a checkpoint"),
    (b"\x7fELF", "a compiled program", "Name a checkpoint"),
    (b"BZh", "a file packed with bzip2", UNPACK),
    (b"\x1f\x8b", "a file packed with gzip", UNPACK),
)
# Names inside a zip that torch.save did not write → what it is, what to do. The first that matches counts.
ZIPS: tuple[tuple[str, str, str], ...] = (
    (
        r"constants\.pkl$|(^|/)code/__torch__",
        "a TorchScript program, such as OpenAI's CLIP files",
        "Where you trust it, take its weights once: "
        "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pth')",
    ),
    (
        r"archive_format$|serialized_exported_program\.json$",
        "a program of torch.export (.pt2)",
        "Take its weights once: torch.save(dict(torch.export.load(FILE).state_dict), 'weights.pth')",
    ),
    (r"model\.weights\.h5$", "a Keras model (.keras)", TENSORFLOW),
    (r"\.npy$", "NumPy arrays (.npz)", NUMPY),
)


def refuse_foreign(path: Path, head: bytes) -> None:
    """Refuse what holds no PyTorch weights, in words of its own.

    Args:
        path: The file.
        head: Its first bytes, 1024 of them where there are as many.

    Raises:
        CheckpointError: If it is something else, known by its first bytes, its name or its end.
        UnsafeCheckpoint: If it is a pickle of objects.
    """
    for magic, what, todo in MAGIC:
        if head.startswith(magic):
            raise _not_weights(path, what, todo)
    for found in (_told_by_name(path, head), _told_by_bytes(path, head), _text(head)):
        if found is not None:
            raise _not_weights(path, *found)
    if head[:1] == b"\x80" and LEGACY not in head[:32]:
        _refuse_pickle(path)


def refuse_zip(path: Path) -> None:
    """Refuse a zip that torch.save did not write; one that is cut short is left to the reader of zips.

    Raises:
        CheckpointError: If it holds something else, named.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            names = opened.namelist()
    except DAMAGE:
        return
    for pattern, what, todo in ZIPS:
        if any(re.search(pattern, name) for name in names):
            raise _not_weights(path, what, todo.replace("FILE", repr(path.name)))
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        examples = ", ".join(names[:3]) or "nothing"
        raise _not_weights(path, f"a zip of other files ({examples})", UNPACK)


def folder_advice(path: Path) -> tuple[str, str]:
    """Say what a folder without readable weights is, and what to do with it."""
    names = {one.name for one in path.iterdir()}
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return (
            f"{path}, a distributed checkpoint of torch (DCP)",
            "Make one file of it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{path.name} weights.pth",
        )
    if "zero_to_fp32.py" in names or any("zero_pp_rank" in name for name in names):
        return f"{path}, a checkpoint of DeepSpeed", "Make one file of it with its zero_to_fp32.py"
    if "saved_model.pb" in names:
        return f"{path}, a TensorFlow SavedModel", TENSORFLOW
    if names & {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "_sharding"}:
        return f"{path}, a JAX checkpoint of Orbax", FLAX
    if any(name.endswith(".index") for name in names):
        return f"{path}, a TensorFlow checkpoint", TENSORFLOW
    if names & {"flax_model.msgpack", "tf_model.h5"}:
        return f"{path}, with Flax or TensorFlow weights only", "Save it with transformers as PyTorch weights"
    if "config.json" in names:
        return (
            f"{path}, which holds config.json but no weights",
            "Add model.safetensors or pytorch_model.bin, with all its shards",
        )
    listed = ", ".join(sorted(names)[:5]) or "nothing"
    return f"the folder {path} with {listed}", "Name the file inside it"


def _not_weights(path: Path, what: str, todo: str) -> CheckpointError:
    return CheckpointError("a PyTorch or safetensors checkpoint", f"{what}: {path}", todo)


def _told_by_name(path: Path, head: bytes) -> tuple[str, str] | None:
    name = path.name
    if re.search(r"\.data-\d{5}-of-\d{5}$|\.ckpt(-\d+)?\.(index|meta)$", name):
        return "a part of a TensorFlow checkpoint", TENSORFLOW
    if name.endswith(".distcp"):
        return "one shard of a distributed checkpoint of torch (DCP)", "Name its folder for what to do"
    if name.endswith(".msgpack"):
        return "a Flax checkpoint (msgpack)", FLAX
    if name.endswith((".pb", ".pbtxt")):
        return "a TensorFlow graph", TENSORFLOW
    if name.endswith(".onnx") and head[:1] == b"\x08":
        return _ONNX
    return None


_ONNX = (
    "an ONNX model",
    "Use the PyTorch weights it was exported from: an exported graph has lost the names of its layers",
)


def _told_by_bytes(path: Path, head: bytes) -> tuple[str, str] | None:
    if re.match(rb"\x08\x01\x12", head):
        return "a TensorFlow graph (SavedModel)", TENSORFLOW
    if re.match(rb"\x08[\x02-\x1f][\x12\x3a]", head):
        return _ONNX
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model", TENSORFLOW
    # A map whose first key is a text: what msgpack begins with.
    if re.match(rb"([\x81-\x8f]|\xde..|\xdf....)([\xa1-\xbf]|\xd9.)[\w/]", head, re.DOTALL):
        return "a Flax checkpoint (msgpack)", FLAX
    if head[257:262] == b"ustar":
        return _tar(path)
    with path.open("rb") as opened:
        opened.seek(max(0, path.stat().st_size - 8))
        if opened.read(8) == bytes.fromhex("57fb808b247547db"):
            return "the index of a TensorFlow checkpoint", TENSORFLOW
    return None


def _tar(path: Path) -> tuple[str, str]:
    try:
        with tarfile.open(path, "r:") as opened:
            names = {member.name for member in opened}
    except (tarfile.TarError, *DAMAGE):
        names = set()
    if {"storages", "tensors", "pickle"} <= names:
        return (
            "a file of torch before 0.1.10 (a tar archive)",
            "Where you trust it, open it once with torch.load(weights_only=False) and save its state_dict()",
        )
    return "a tar archive", UNPACK


def _text(head: bytes) -> tuple[str, str] | None:
    """Tell what kind of text it is; None for anything that is not text."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return None
        text = head[: error.start].decode("utf-8")
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        return None
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith(("<!doctype html", "<html", "<?xml", "<!--", "<head", "<error")):
        return "a web page, where a download failed or asked for a login", AGAIN
    if '"weight_map"' in text:
        return "the index of a checkpoint in shards", "Name the folder it stands in"
    if start.startswith(("{", "[")):
        return "a JSON text", "Name the file with the weights beside it"
    first = (text.strip().splitlines() or [""])[0][:60]
    return f"a text that begins {first!r}", AGAIN


def _refuse_pickle(path: Path) -> None:
    """Refuse a pickle that torch.save did not write; list what it asks for.

    Raises:
        CheckpointError: If it holds arrays or plain values.
        UnsafeCheckpoint: If it asks for anything else.
    """
    try:
        names = sorted(list_globals(io.BytesIO(path.read_bytes())))
    except DAMAGE:
        return  # no whole pickle: the reader of checkpoints says so
    roots = {name.partition(".")[0] for name in names}
    if roots & {"jax", "jaxlib", "haiku", "flax", "optax"}:
        raise _not_weights(path, f"a pickle of JAX or Haiku ({', '.join(names)})", HAIKU)
    if roots and roots <= {"numpy", "_codecs", "collections"}:
        raise _not_weights(path, "a pickle of NumPy arrays, as Haiku and Detectron write", HAIKU)
    if not names:
        raise _not_weights(path, "a pickle of plain values", "Save the module's state_dict() with torch.save")
    raise UnsafeCheckpoint(
        "a file written by torch.save",
        f"{path}, a plain pickle that needs {', '.join(names)}",
        "Where you trust it, save its weights with torch.save, and load that; nothing of it was run",
    )
