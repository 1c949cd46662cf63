"""Reading what torch.save wrote without running it: what a pickle asks for, and what stands in for that."""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
import threading
import warnings
import zipfile
import zlib
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from probekit.errors import CheckpointError, UnsafeCheckpoint

# What a damaged or foreign file can make torch.load and the readers of pickles and zips raise.
DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    ArithmeticError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    OSError,
    MemoryError,
    ImportError,
)
# Settings, scores, histories and clocks that training code saves along with weights: a name, or all below it.
INERT = (
    *("argparse", "types.SimpleNamespace", "pathlib", "datetime", "decimal", "fractions", "uuid", "typing"),
    *("collections.defaultdict", "collections.deque", "copyreg._reconstructor"),
    *("omegaconf", "hydra", "yacs", "easydict", "addict", "munch", "ml_collections", "absl.flags"),
    *("mmengine", "mmcv.utils.config", "mmcv.utils.logging", "fvcore.common.config", "detectron2.config"),
    *("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities"),
    *("numpy", "fairscale.optim", "classy_vision.generic", "vissl.config", "vissl.utils.hydra_config"),
    *("torch.torch_version", "torch._C.Generator"),
    # Types as settings name them, and how a pickle reaches a method: nothing of Python's own is ever handed
    # over, so that a call to one of these gives an empty stand-in too.
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "frozenset", "str", "bytes", "int", "float")),
    *(f"builtins.{name}" for name in ("bool", "object", "slice", "range", "getattr")),
)
LISTS = ("collections.deque", "builtins.list")
# What torch's own weights-only reader knows; it is the judge, this only keeps its names out of messages.
KNOWN = re.compile(
    r"torch\.(\w*Storage|storage\.\w+|(cuda\.|sparse\.|cuda\.sparse\.)?\w*Tensor|Size|device|(per_tensor|per_channel)_\w+"
    r"|bool|half|double|short|long|q?u?int\d*|bfloat16|c?float\d+\w*|complex\d+|quint\w+|bits\w+"
    r"|_utils\._rebuild_\w+|_tensor\._rebuild_\w+|nn\.parameter\.Parameter|serialization\._get_layout)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|bytearray|complex)"
)
# The first pickle of a file that torch wrote before 2020: a number of ten bytes.
LEGACY = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
LEGACY_PICKLES = 5
_MARK = object()
_ALONE = threading.Lock()


class _PassesForDict(type):
    # torch sets items on a dict only, told by the type's equality; a stand-in may be another kind of dict.
    def __eq__(cls, other: object) -> bool:
        return other is cls or other is dict

    def __hash__(cls) -> int:
        return type.__hash__(cls)


class StandIn(dict[Any, Any], metaclass=_PassesForDict):
    """Stands in for an object that a checkpoint carries along: takes anything, does nothing.

    It keeps what is put into it by key, since that may be weights; settings of an object are dropped.

    Attributes:
        name: What it stands for, such as ``argparse.Namespace``.
    """

    __slots__ = ()
    name = ""

    def __new__(cls, *_args: object, **_settings: object) -> StandIn:  # noqa: D102
        return super().__new__(cls)

    def __init__(self, *args: object, **_settings: object) -> None:
        super().__init__(args[0] if len(args) == 1 and isinstance(args[0], dict) else {})

    def __setstate__(self, _state: object) -> None: ...

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other


def is_inert(name: str) -> bool:
    """Whether an object of that name may be left out: it belongs to a family that only carries settings.

    Examples:
        >>> is_inert("omegaconf.dictconfig.DictConfig"), is_inert("numpyro.sample"), is_inert("os.system")
        (True, False, False)
    """
    return any(name == family or name.startswith(f"{family}.") for family in INERT)


def list_globals(opened: IO[bytes]) -> set[str]:
    """List the objects of modules that a pickle asks for, by dotted name, without running it.

    The stack is followed in words, so that names are found however they get there. One that is not written
    down in the pickle is listed as ``?``.

    Args:
        opened: Stands at the start of the pickle, and at its end afterwards.

    Raises:
        ValueError and others of DAMAGE: If it is not a whole pickle.

    Examples:
        >>> import collections, io, pickle
        >>> sorted(list_globals(io.BytesIO(pickle.dumps([collections.Counter, len]))))
        ['builtins.len', 'collections.Counter']
    """
    found: set[str] = set()
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on escapes in damaged names
        operations = list(pickletools.genops(opened))
    for operation, argument, _position in operations:
        name = operation.name
        if name in {"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"}:
            memo[len(memo) if name == "MEMOIZE" else int(argument or 0)] = stack[-1] if stack else None
            continue
        taken = _take(stack, operation)
        if name in {"GLOBAL", "INST"}:
            found.add(_today(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            texts = [one for one in taken if isinstance(one, str)]
            found.add(_today(*texts) if len(texts) == 2 else "?")
        elif name in {"EXT1", "EXT2", "EXT4"}:
            found.add("?")
        value = memo.get(int(argument or 0)) if name in {"GET", "BINGET", "LONG_BINGET"} else None
        if isinstance(argument, str) and ("UNICODE" in name or "STRING" in name):
            value = argument
        stack += [_MARK if one is pickletools.markobject else value for one in operation.stack_after]
    return found


def _take(stack: list[Any], operation: pickletools.OpcodeInfo) -> list[Any]:
    """Take from a stack what an operation takes; return it in order, without marks."""
    before = list(operation.stack_before)
    if pickletools.markobject in before:
        while stack and stack.pop() is not _MARK:
            pass
        before = before[: before.index(pickletools.markobject)]
    count = min(len(before), len(stack))
    taken = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return taken


def _today(module: str, name: str) -> str:
    """Return a dotted name as Python 3 has it."""
    module, name = NAME_MAPPING.get((module, name), (module, name))
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def open_pickle(path: Path, zipped: bool) -> Any:  # noqa: ANN401 - whatever the file holds
    """Read a file that torch.save wrote, on the CPU, without importing or running anything it names.

    Objects of inert families become stand-ins; those of torch's list of safe ones are built; any other is
    refused. A zip is memory-mapped, and checked against its own checksums.

    Args:
        path: The file.
        zipped: Whether it is a zip, as torch has written since 2020.

    Raises:
        UnsafeCheckpoint: If it asks for another object; the message lists them all.
        CheckpointError: If it is damaged.
    """
    try:
        names = _zip_globals(path) if zipped else _legacy_globals(path)
    except DAMAGE as error:
        raise damaged(path, error) from error
    stand_ins: list[Any] = [(_stand_in(name), name) for name in sorted(names) if is_inert(name)]
    try:
        stored = zipped and _check_records(path)
        with _only(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols and old storages: it is read, or refused
            if path.suffix == ".safetensors":  # torch goes by the name, and this is something else
                with path.open("rb") as opened:
                    return torch.load(opened, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=stored)
    except DAMAGE as error:
        unsafe = sorted(name for name in names if not is_inert(name) and not KNOWN.fullmatch(name))
        if unsafe:
            raise _unsafe(path, unsafe) from error
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file that cannot be read."""
    if "Unsupported operand" in str(error):
        return CheckpointError(
            "a checkpoint in pickle protocol 2, torch's own",
            f"{path}, written with another pickle protocol",
            "Save it again with torch.save and without pickle_protocol",
        )
    return CheckpointError(
        "a whole PyTorch or safetensors checkpoint",
        f"{path}, which cannot be read ({type(error).__name__}: {_first_line(error)})",
        "Check that it was copied or downloaded whole",
    )


def _first_line(error: Exception) -> str:
    return re.sub(r"\x1b\[\w+", "", (str(error).strip().splitlines() or ["no reason given"])[0])[:120]


@contextmanager
def _only(stand_ins: list[Any]) -> Iterator[None]:
    """Let torch build its own safe objects and the stand-ins, but nothing a library has declared safe."""
    with _ALONE:
        declared = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            with torch.serialization.safe_globals(stand_ins):
                yield
        finally:
            torch.serialization.add_safe_globals(declared)


def _stand_in(name: str) -> Any:  # noqa: ANN401 - a class, or a function where torch wants a real list
    if name in LISTS:
        return _make_list
    return _PassesForDict(name.rpartition(".")[2], (StandIn,), {"__slots__": (), "name": name})


def _make_list(*args: object) -> list[Any]:
    """Make a plain list, since torch appends to nothing else."""
    return list(args[0]) if args and isinstance(args[0], (list, tuple)) else []


def _zip_globals(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as opened:
        record = next(one for one in opened.infolist() if one.filename.rpartition("/")[2] == "data.pkl")
        if not record.CRC:
            record.CRC = None  # type: ignore[assignment] # torch can leave checksums out: zero stands for none
        with opened.open(record) as pickled:
            return list_globals(pickled)


def _legacy_globals(path: Path) -> set[str]:
    """List the globals of the pickles that stand one after another at the head of an old checkpoint."""
    found: set[str] = set()
    with path.open("rb") as opened:
        for _ in range(LEGACY_PICKLES):
            found |= list_globals(opened)
    return found


def _check_records(path: Path) -> bool:
    """Compare a zip with its checksums; return whether it may be memory-mapped, being uncompressed.

    Raises:
        zipfile.BadZipFile: If a record differs from its checksum. Zero stands for none.
    """
    stored = True
    with zipfile.ZipFile(path) as opened:
        for record in opened.infolist():
            stored = stored and record.compress_type == zipfile.ZIP_STORED
            if record.CRC:
                with opened.open(record) as content:
                    while content.read(1 << 20):
                        pass
    return stored


def _unsafe(path: Path, names: list[str]) -> UnsafeCheckpoint:
    """Say what a file asks for, and which kind of file does."""
    todo = "Save its state_dict() alone where you trust it, and load that; nothing of it was run"
    if any(name.startswith("torch.distributed") for name in names):
        todo = (
            "It holds one process's shards: gather the full state dict in the run that trained it, save that"
        )
    elif any(name.startswith("torch.nn.modules.") for name in names):
        todo = (
            "It holds whole modules as code and weights. Where you trust it, open it once with "
            "torch.load(weights_only=False), save module.state_dict(), and load that; nothing of it was run"
        )
    return UnsafeCheckpoint(
        "a checkpoint of tensors, numbers and text", f"{path}, which also needs {', '.join(names)}", todo
    )
