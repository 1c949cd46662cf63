"""Checkpoints of arms, in the key layout of the project that each imitates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from probekit.pretraining.arms import Pretraining

Tensors = dict[str, "Tensor"]


def write_checkpoint(path: Path, learner: Pretraining, step: int, *, half: bool = False) -> None:
    """Write what an arm has learnt as other projects' tools expect it.

    ``ce``, ``ce-mlp`` and ``autoencoder`` as torchvision's references (``model``), ``supcon`` as SupContrast
    (``model/module.encoder.…`` and ``head``), the others as MoCo (``state_dict/module.encoder_q.…``).

    Args:
        path: The file.
        learner: Its network, and what is beside it.
        step: Steps done.
        half: Whether numbers are kept in half precision.

    Raises:
        OSError: If the disk is full or cannot be written; a file there before stays.
    """
    import torch

    state = _LAYOUTS[learner.arm.family](learner) | {"arch": learner.setup.arch, "step": step}
    kept = {name: _kept(value, half) for name, value in state.items()}
    # Into an open file: a path's name, with the process number in it, would stand in the archive.
    with replacing(path) as temporary, temporary.open("wb") as opened:
        torch.save(kept, opened)


def _kept(value: Any, half: bool) -> Any:  # noqa: ANN401 - tensors by name, or a plain value
    if not isinstance(value, Mapping):
        return value
    return {
        name: one.detach().cpu().half() if half and one.is_floating_point() else one.detach().cpu().clone()
        for name, one in value.items()
    }


def _as_torchvision(learner: Pretraining) -> dict[str, Any]:
    return {"model": dict(learner.net.state_dict())}


def _as_moco(learner: Pretraining) -> dict[str, Any]:
    """Return the query network; key network and queue serve to go on, and lie in the snapshot for that."""
    return {"state_dict": {f"module.encoder_q.{name}": one for name, one in learner.net.state_dict().items()}}


def _as_supcon(learner: Pretraining) -> dict[str, Any]:
    head = f"{learner.classifier}."
    renamed = {
        f"module.head.{name.removeprefix(head)}" if name.startswith(head) else f"module.encoder.{name}": value
        for name, value in learner.net.state_dict().items()
    }
    return {"model": renamed}


_LAYOUTS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "torchvision": _as_torchvision,
    "MoCo": _as_moco,
    "SupCon": _as_supcon,
}
