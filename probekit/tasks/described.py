"""Features that pass as they are, beside the logits of a classifier on them."""

from __future__ import annotations

from torch import Tensor, nn


class Described(nn.Module):
    """The head of classification, with what it is given.

    Args:
        width: D features.
        classes: C classes.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, classes))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, D) features and (N, C) logits."""
        return features, self.classifier(features)
