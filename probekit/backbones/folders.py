"""Checkpoints that are folders: config.json beside one file of weights, or beside shards with an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from probekit.backbones.foreign import folder_advice
from probekit.errors import CheckpointError, InputError
from probekit.files import read_json

CONFIG = "config.json"
# In the order in which they are preferred.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def list_files(folder: Path) -> tuple[str, ...]:
    """List the files of a checkpoint folder that are read: config, index, weights; the config first.

    Raises:
        CheckpointError: If it holds no weights that can be read, a shard is missing, or the index names a
            file outside the folder.
    """
    found = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        came, todo = folder_advice(folder)
        raise CheckpointError("a checkpoint file, or a folder with config.json and weights", came, todo)
    config = (CONFIG,) if (folder / CONFIG).is_file() else ()
    if not found.endswith(".index.json"):
        return (*config, found)
    shards = sorted(set(read_index(folder / found).values()))
    for shard in shards:
        # A Windows path splits at every separator there is.
        if len(PureWindowsPath(shard).parts) != 1 or shard == "..":
            raise CheckpointError(
                "the names of shards beside their index",
                f"{shard!r} in {folder / found}",
                "Do not use this checkpoint: a shard may not stand elsewhere",
            )
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"all {len(shards)} shards of {folder / found}",
            f"no {', '.join(missing)}",
            "Copy or download them too",
        )
    return (*config, found, *shards)


def read_index(path: Path) -> Mapping[str, str]:
    """Read which shard holds each tensor.

    Raises:
        CheckpointError: If the index does not say so.
    """
    index = read_object(path).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(one, str) for one in index.values()):
        raise CheckpointError("an index with a weight_map from tensors to shards", str(path), "Restore it")
    return index


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CheckpointError: If it holds anything else.
    """
    try:
        value = read_json(path)
    except InputError as error:
        raise CheckpointError(error.expected, error.came, "Copy or download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"a JSON object in {path}", type(value).__name__, "Copy or download it again")
    return value
