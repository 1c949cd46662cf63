"""From a table of trainings to the weights that come with the package."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from probekit.backbones.bundled import SUFFIX
from probekit.errors import InputError
from probekit.results.table import ResultTable

# Most bytes of a file that comes with the package.
MOST_BYTES = 1_000_000
_TOLD = ("data", "arch", "pretrain_seed", "params")


def bundle_arms(table: ResultTable, models: Sequence[str], folder: Path) -> list[Path]:
    """Write the attached checkpoint of each model as safetensors, with where it is from in its header.

    Args:
        table: That of ``pretrain``.
        models: Names of models in it, such as ``moco-v2 seed 0``.
        folder: Where the files go, one an arm.

    Raises:
        InputError: If a model is not in the table, or a file would be larger than a megabyte.
    """
    return [_bundle(table, model, folder) for model in models]


def _bundle(table: ResultTable, model: str, folder: Path) -> Path:
    rows = table.where(model=model, metric="pretraining_loss").frame
    key = table.provenance["models"][model]["spec"].partition(":")[2]
    state = torch.load(io.BytesIO(table.attachments[key]), weights_only=True)
    tensors = {name: one.contiguous() for name, one in _tensors(state).items()}
    size = sum(one.nbytes for one in tensors.values())
    if size > MOST_BYTES:
        raise InputError(f"at most {MOST_BYTES:,} bytes of weights", f"{size:,} of {model}", "Leave it out")
    row = rows.iloc[0]
    facts = {name: _plain(row[name]) for name in _TOLD}
    arm = facts["params"]["arm"]
    facts["probekit"] = table.provenance["probekit"]
    path = folder / f"{arm}{SUFFIX}"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"probekit": json.dumps(facts, sort_keys=True)})
    return path


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the one mapping of tensors that a checkpoint of ours holds."""
    (found,) = [one for one in state.values() if isinstance(one, Mapping)]
    return dict(found)


def _plain(value: Any) -> Any:  # noqa: ANN401 - a cell of a table
    if isinstance(value, str) and value.startswith("{"):
        return json.loads(value)
    return value.item() if hasattr(value, "item") else value
