"""Snapshots of a training: whole or absent on disk, and loaded without running anything they hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.errors import InputError
from probekit.files import replacing

if TYPE_CHECKING:
    import torch


def write_snapshot(path: Path, state: dict[str, Any]) -> None:
    """Put a snapshot in the place of the one before, once it is whole on disk.

    Args:
        path: The file.
        state: Tensors and plain values, in dicts and lists.

    Raises:
        OSError: If the disk is full or cannot be written; the snapshot before stays.
    """
    import torch

    with replacing(path) as temporary:
        torch.save(state, temporary)


def read_snapshot(path: Path, device: torch.device) -> dict[str, Any] | None:
    """Return a snapshot, or None if there is none.

    Raises:
        InputError: If the file is damaged.
    """
    import pickle

    import torch

    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, OSError) as error:
        raise InputError(
            f"a whole snapshot at {path}", f"{type(error).__name__}: {error}", "Delete it to begin anew"
        ) from error
    return state
