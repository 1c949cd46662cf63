"""How weights move: optimiser, learning rate by step."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from probekit.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

OPTIMISERS = ("sgd", "adamw")


@dataclass(frozen=True)
class Optimisation:
    """How long and how fast weights are trained.

    Attributes:
        steps: Optimiser steps.
        lr: Largest learning rate.
        optimiser: ``sgd``, with Nesterov's momentum of 0.9, or ``adamw``.
        weight_decay: Of matrices and kernels; biases, gains of norms and other vectors have none.
        warmup: Steps over which the learning rate rises from 0; then it falls to 0 along a cosine.
        clip: Largest norm of the gradient; None leaves it as it is.
        ema: Decay of the running mean of the weights that is kept beside them; 0 keeps none.

    Raises:
        InputError: If a value is out of range.
    """

    steps: int
    lr: float
    optimiser: str = "sgd"
    weight_decay: float = 1e-4
    warmup: int = 0
    clip: float | None = None
    ema: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warmup <= self.steps:
            raise InputError(
                "at least one step, and a warm-up no longer than all of them",
                f"{self.steps} steps, warm-up {self.warmup}", "Give more steps",
            )  # fmt: skip
        if not (0 < self.lr < math.inf and 0 <= self.weight_decay < math.inf and 0 <= self.ema < 1):
            raise InputError(
                "a positive learning rate, a weight decay of at least 0 and an EMA decay in [0, 1)",
                f"{self.lr}, {self.weight_decay} and {self.ema}", "0.1, 1e-4 and 0 are common",
            )  # fmt: skip
        if self.optimiser not in OPTIMISERS:
            raise InputError(
                f"an optimiser among {', '.join(OPTIMISERS)}", repr(self.optimiser), "Choose one"
            )

    def facts(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0.

        Examples:
            >>> plan = Optimisation(steps=10, lr=1.0, warmup=2)
            >>> [round(plan.rate(step), 3) for step in (0, 1, 2, 6, 9)]
            [0.5, 1.0, 1.0, 0.5, 0.038]
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        through = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * through))

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of a module's trainable parameters."""
        import torch

        trained = [one for one in module.parameters() if one.requires_grad]
        groups = [
            {"params": [one for one in trained if one.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [one for one in trained if one.dim() <= 1], "weight_decay": 0.0},
        ]
        if self.optimiser == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr)
        return torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True)
