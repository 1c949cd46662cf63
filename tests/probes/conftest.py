"""Features with a known answer."""

from __future__ import annotations

import numpy as np

from probekit.data.targets import Target
from probekit.features.features import Features
from probekit.probes.protocol import Protocol, Roles, TapData

QUICK = Protocol(
    penalties=(1.0, 0.1, 0.01, 0.001),
    permutations=5,
    bootstrap_draws=400,
    neighbours=5,
    shots=(1, 5),
    few_shot_draws=3,
)


def gaussians(n: int = 600, d: int = 6, classes: int = 3, distance: float = 3.0, seed: int = 0):
    """Return (n, d) features around one centre a class, and the labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = random.normal(size=(classes, d))
    centres *= distance / np.linalg.norm(centres, axis=1, keepdims=True)
    return (centres[labels] + random.normal(size=(n, d))).astype(np.float32), labels


def roles_of(n: int) -> Roles:
    return Roles(np.arange(0, n // 2), np.arange(n // 2, n * 5 // 8), np.arange(n * 5 // 8, n))


def features_of(values: np.ndarray, targets: dict[str, Target] | None = None) -> Features:
    n = len(values)
    roles = roles_of(n)
    splits = np.full(n, "train", dtype="<U5")
    splits[roles.val], splits[roles.test] = "val", "test"
    facts = {"block": "layer1", "level": "low", "depth": 0.0, "readout": "gap"}
    ids = np.array([f"image {i}" for i in range(n)])
    return Features(values, "N D", ids, splits, targets or {}, "layer1|gap", facts)


def tap_data(values: np.ndarray) -> TapData:
    return TapData.of(features_of(values), roles_of(len(values)))
