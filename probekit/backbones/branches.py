"""Which of a checkpoint's copies of a backbone: online or moving average."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from probekit.backbones.checkpoint import StateDict
from probekit.errors import CheckpointError

_EMA = re.compile(r"(^|_)(ema|teacher|momentum|k|key|target|averaged|swa)(_|$)")
_ONLINE = re.compile(r"(^|_)(student|online|q|query)(_|$)|^base_encoder$")


@dataclass(frozen=True)
class Place:
    """Where in a checkpoint a backbone may stand.

    Attributes:
        state: The state dict.
        prefix: What stands before the backbone's own names; empty or ending in a dot.
        filled: The backbone's entries found there with the right shape, in the backbone's order.
        weight: How many numbers these entries hold.
    """

    state: StateDict
    prefix: str
    filled: tuple[str, ...]
    weight: int

    def __str__(self) -> str:
        return "/".join(part for part in (self.state.label, self.prefix.rstrip(".")) if part) or "top"

    @property
    def words(self) -> list[str]:
        """The parts of its path."""
        return [word for word in re.split(r"[/.]", str(self)) if word]

    def tensor(self, name: str) -> torch.Tensor:
        """Return the tensor for one of the backbone's entries."""
        return self.state.tensors[self.prefix + name]


def assign_roles(places: Sequence[Place]) -> list[str]:
    """Say of each place whether it is the ``online`` branch or its moving average, ``ema``; empty if alone.

    Beside a student, the copy without a name of its own is the teacher (lightly's DINO); beside a moving
    average, it is the online branch.
    """
    named = [
        "ema"
        if any(map(_EMA.search, place.words))
        else "online"
        if any(map(_ONLINE.search, place.words))
        else ""
        for place in places
    ]
    other = "ema" if "online" in named else "online" if "ema" in named else ""
    return [role or other for role in named]


def choose_place(
    places: Sequence[Place], wanted: str | None, file: str
) -> tuple[Place, str, tuple[str, ...]]:
    """Choose the branch to load.

    By default the one each project evaluates: the teacher where there is a student (DINO, iBOT, DINOv2), the
    moving average where timm kept one, else the online branch (MoCo's encoder_q, MoCo v3's base_encoder,
    BYOL).

    Args:
        places: Where the backbone may stand, in the order of the file; at least one.
        wanted: ``online``, ``ema``, a place or a part of its path; None for the default.
        file: What to call the file in messages.

    Returns:
        The place, its role and the alternatives in words.

    Raises:
        CheckpointError: If ``wanted`` is not there, or several branches are left.
    """
    roles = assign_roles(places)
    listed = [f"{role} ({place})" if role else str(place) for place, role in zip(places, roles, strict=True)]
    both = list(zip(places, roles, listed, strict=True))
    if wanted is None:
        wanted_role = _default_role(places, roles)
        chosen = [one for one in both if one[1] == wanted_role]
        if wanted_role is None:
            raise CheckpointError(
                "one backbone in the file",
                f"{file} with {', '.join(listed)}, of which projects evaluate either",
                "Choose with branch=online or branch=ema",
            )
    elif wanted in {"online", "ema"}:
        chosen = [
            one for one in both if one[1] == wanted or (len(both) == 1 and wanted == "online" and not one[1])
        ]
    else:
        chosen = [one for one in both if wanted == str(one[0])] or [
            one for one in both if wanted in one[0].words
        ]
    if not chosen:
        raise CheckpointError(f"a branch {wanted} in {file}", ", ".join(listed), "Choose one of these")
    if len(chosen) > 1 and not all(_equal(chosen[0][0], one[0]) for one in chosen[1:]):
        raise CheckpointError(
            "one backbone in the file",
            f"{file} with several: {', '.join(one[2] for one in chosen)}",
            f"Choose with branch=, such as branch={chosen[0][0]}",
        )
    place, role, text = chosen[0]
    return place, role, tuple(other for other in listed if other != text)


def _default_role(places: Sequence[Place], roles: Sequence[str]) -> str | None:
    """Return the role to load by default, None where the user must say."""
    words = {word for place in places for word in place.words}
    if len(set(roles)) == 1:
        return roles[0]
    if "target_encoder" in words:
        return None
    if any(re.search(r"(^|_)student(_|$)", word) for word in words):
        return "ema"
    if "query_backbone" in words:
        return "ema"  # lightly's MoCo evaluates the momentum copy, which it calls backbone
    if words & {"state_dict_ema", "model_ema"}:
        return "ema"
    return "online"


def _equal(one: Place, other: Place) -> bool:
    return one.filled == other.filled and all(
        torch.equal(one.tensor(name), other.tensor(name)) for name in one.filled
    )
