"""Where weights come from: opening a file without running what it holds, and the report on it."""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from probekit.errors import CheckpointError, UnsafeCheckpoint, near_names

# Changes whenever the same file and architecture would be matched differently.
KEY_MAP_VERSION = 1

DEPTH = 5
TENSOR_SHARE = 0.8
# Containers that hold no backbone, whatever project wrote them.
IGNORED = {
    *("optimizer", "opt", "optimizers", "optimizer_state", "optimizer_states", "optimizer_state_dict"),
    *("scheduler", "lr_scheduler", "lr_schedulers", "scaler", "fp16_scaler", "grad_scaler", "amp"),
    *("predictor", "head", "heads", "queue", "dino_loss", "callbacks", "loops"),
    *("args", "config", "hyper_parameters", "meta", "message_hub"),
}
FOREIGN = {
    b"\x93NUM": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"\x08\x01\x12": "an ONNX or TensorFlow graph",
}
# What a damaged or foreign file can make torch.load and the unpickler raise.
DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    AssertionError,
    struct.error,
    OSError,
    OverflowError,
    MemoryError,
    ImportError,
)


@dataclass(frozen=True)
class Checkpoint:
    """Where the weights of a backbone come from, and how they were matched.

    Attributes:
        source: The word (``random@0``, ``pretrained``, ``wheel``, ``memory``) or the path of the file.
        digest: SHA-256 of the file; None without one.
        branch: ``online`` or ``ema`` where the file says so, else empty.
        container: Path of the state dict within the file, such as ``state_dict``; empty at the top.
        prefix: What stands before the backbone's own names, such as ``module.encoder_q.``.
        key_map_version: Version of the matching rules.
        matched: How many entries of the backbone's state dict were filled.
        missing: Entries not found: the classifier's (then zero), counters, whole-number buffers (as built).
        unexpected: Entries of the state dict nothing was found for, and that no rule expects.
        alternatives: Other branches in the file.
        notes: Everything else worth saying, in words.

    Examples:
        >>> Checkpoint("random@0").summary()
        'random@0'
    """

    source: str
    digest: str | None = None
    branch: str = ""
    container: str = ""
    prefix: str = ""
    key_map_version: int = KEY_MAP_VERSION
    matched: int = 0
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """The word, or the file's name without its folder."""
        return Path(self.source).name if self.digest is not None else self.source

    @property
    def random_init(self) -> bool:
        """Whether these are the weights of a random draw."""
        return self.source.startswith("random@")

    @property
    def coverage(self) -> str:
        """How the backbone was filled, in words; empty where nothing was matched."""
        if not self.matched:
            return ""
        parts = [f"{self.matched} entries matched"]
        counters = [name for name in self.missing if name.endswith("num_batches_tracked")]
        others = tuple(name for name in self.missing if name not in counters)
        if others:
            parts.append(f"{len(others)} missing ({_examples(others)})")
        if counters:
            parts.append(f"{len(counters)} batch counters missing")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected ({_examples(self.unexpected)})")
        return ", ".join(parts)

    def noted(self, *notes: str) -> Checkpoint:
        """Return a copy that carries more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def summary(self) -> str:
        """Say it on one line."""
        place = "/".join(part for part in (self.container, self.prefix.rstrip(".")) if part)
        parts = [
            self.word,
            f"branch {self.branch}" if self.branch else "",
            f"at {place}" if place else "",
            self.coverage,
            f"also there: {', '.join(self.alternatives)}" if self.alternatives else "",
            *self.notes,
        ]
        return "; ".join(part for part in parts if part)

    def facts(self) -> dict[str, Any]:
        """Return the report as JSON values; the file goes by its name, without its folder."""
        return {
            "source": self.word,
            "digest": self.digest,
            "branch": self.branch,
            "container": self.container,
            "prefix": self.prefix,
            "key_map_version": self.key_map_version,
            "matched": self.matched,
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "alternatives": list(self.alternatives),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class StateDict:
    """A mapping from names to tensors found in a checkpoint; ``label`` is its path in there."""

    label: str
    tensors: Mapping[str, torch.Tensor]


class _Inert:
    """Stands in for an object that a checkpoint carries along: takes anything, does nothing."""

    def __new__(cls, *_args: object, **_settings: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_args: object, **_settings: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...


# What checkpoints commonly carry beside the weights (settings, a best score): left out, never imported.
INERT = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Int64DType",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
)


def open_checkpoint(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Open a checkpoint file without running any code it may hold.

    ``.safetensors`` goes through safetensors, all else through ``torch.load(weights_only=True)`` on the CPU,
    memory-mapped where the format allows. Settings and scores saved along with the weights become empty
    stand-ins.

    Raises:
        CheckpointError: If the file is missing, a folder, empty, cut short or not a checkpoint.
        UnsafeCheckpoint: If it needs any other object of a library to be built; the message lists them.
    """
    head = _first_bytes(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            raise CheckpointError(
                "a PyTorch or safetensors checkpoint", f"{what}: {path}", "Convert it to a PyTorch state dict"
            )
    zipped = head.startswith(b"PK\x03\x04")
    if zipped:
        _check_zip(path)
    stand_ins: list[Any] = [(_Inert, name) for name in INERT]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Detected pickle protocol"
            )  # it is then refused, or read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except DAMAGE as error:
        unsafe = _unsafe_globals(path, zipped) or re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
        if unsafe:
            raise UnsafeCheckpoint(
                "a checkpoint of tensors, numbers and text",
                f"{path}, which also needs {', '.join(unsafe)}",
                "Save its state_dict() alone where you trust it, and load that; nothing of it was run",
            ) from error
        raise CheckpointError(
            "a PyTorch or safetensors checkpoint",
            f"{path}, which cannot be read ({type(error).__name__})",
            "Check that it was copied or downloaded whole",
        ) from error


def find_state_dicts(opened: Any) -> list[StateDict]:  # noqa: ANN401 - whatever the file holds
    """Return every mapping, to a depth of 5, at least 80 % of whose values are tensors under text names.

    Optimizers, schedulers and the like are passed over.

    Examples:
        >>> found = find_state_dicts({"epoch": 3, "state_dict": {"fc.weight": torch.zeros(2, 2)}})
        >>> [one.label for one in found]
        ['state_dict']
    """
    return list(_walk(opened, ()))


def _walk(value: Any, path: tuple[str, ...]) -> Iterator[StateDict]:  # noqa: ANN401 - whatever the file holds
    if not isinstance(value, Mapping) or len(path) >= DEPTH:
        return
    tensors = {
        key: one.detach()
        for key, one in value.items()
        if isinstance(key, str)
        and isinstance(one, torch.Tensor)
        and one.layout == torch.strided
        and not one.is_quantized
    }
    if tensors and len(tensors) >= TENSOR_SHARE * len(value):
        yield StateDict("/".join(path), tensors)
    for key, one in value.items():
        if isinstance(key, str) and key not in IGNORED:
            yield from _walk(one, (*path, key))


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError("a checkpoint file", f"the folder {path}", _folder_advice(path))
    if not path.exists():
        beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        near = near_names(path.name, beside, 3)
        raise CheckpointError(
            "a checkpoint file", f"no file at {path}", f"Nearby lie {near}" if near else "Check the path"
        )
    try:
        with path.open("rb") as opened:
            head = opened.read(8)
    except OSError as error:
        raise CheckpointError("a readable file", f"{path} ({error.strerror})", "Check its rights") from error
    if not head:
        raise CheckpointError("a checkpoint file", f"{path}, which is empty", "Copy or download it again")
    return head


def _check_zip(path: Path) -> None:
    """Refuse zips that torch.save did not write; one that is cut short is left to torch."""
    try:
        with zipfile.ZipFile(path) as opened:
            names = {name.rpartition("/")[2] for name in opened.namelist()}
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return
    what = "a zip of other files" if "data.pkl" not in names else "a TorchScript program"
    if "data.pkl" not in names or "constants.pkl" in names:
        raise CheckpointError(
            "a file written by torch.save", f"{what}: {path}", "Save the module's state_dict()"
        )


def _folder_advice(path: Path) -> str:
    if (path / ".metadata").exists():
        return "Turn this distributed checkpoint into one file with torch.distributed.checkpoint.format_utils"
    if (path / "config.json").exists():
        return "Name the file with the weights inside it, such as model.safetensors"
    if (path / "saved_model.pb").exists() or list(path.glob("*.index")):
        return "Convert this TensorFlow checkpoint to a PyTorch state dict"
    return "Name the file inside it"


def _open_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            "a safetensors file",
            f"{path}, which cannot be read ({error})",
            "Check that it was copied or downloaded whole",
        ) from error


def _unsafe_globals(path: Path, zipped: bool) -> list[str]:
    """Return the objects a pickle asks for that are neither tensors nor stand-ins, without running it."""
    if zipped:
        try:
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except DAMAGE:
            return []
        return sorted(set(found) - set(INERT))
    return sorted(name for name in _legacy_globals(path) if not _known(name))


def _legacy_globals(path: Path) -> set[str]:
    """List the globals of the pickles that stand one after another at the head of an old checkpoint."""
    found: set[str] = set()
    strings: list[str] = []
    with path.open("rb") as opened:
        try:
            # Magic number, protocol, system, weights; then storages, which are no pickles.
            for _ in range(5):
                for operation, argument, _position in pickletools.genops(opened):
                    if operation.name in {"GLOBAL", "INST"}:
                        found.add(".".join(str(argument).split(" ")))
                    elif operation.name == "STACK_GLOBAL" and len(strings) > 1:
                        found.add(".".join(strings[-2:]))
                    elif isinstance(argument, str):
                        strings.append(argument)
        except DAMAGE:
            pass  # the end of the pickles, or of what can be read of them
    return found


def _known(name: str) -> bool:
    return (
        name in INERT
        or name in {"collections.OrderedDict", "_codecs.encode"}
        or bool(re.fullmatch(r"torch\.(\w*Storage|_utils\._rebuild_\w+|nn\.parameter\.Parameter|Size)", name))
    )


def _examples(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
