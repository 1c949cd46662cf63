"""Weights that come with the package: the first seed of each pretraining arm. Loads no torch, no timm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from probekit.errors import InputError, near_names

FOLDER = "weights"
SUFFIX = ".safetensors"


def bundled_names() -> list[str]:
    """Return the arms whose weights come with the package, as ``bundled@ARM`` names them.

    Examples:
        >>> "moco-v2" in bundled_names()
        True
    """
    return sorted(path.stem for path in _folder().glob(f"*{SUFFIX}"))


def find_bundled(name: str) -> Path:
    """Return the file of an arm.

    Raises:
        InputError: If there is none of that name.
    """
    known = bundled_names()
    if name not in known:
        raise InputError(
            f"bundled@ARM with an arm among {', '.join(known)}", f"{name!r}" if name else "no arm",
            f"The nearest is {near_names(name, known, 1)}" if name else "Write bundled@ce, for instance",
        )  # fmt: skip
    return _folder() / f"{name}{SUFFIX}"


def bundled_facts(name: str) -> Mapping[str, Any]:
    """Return where the weights of an arm are from: architecture, data, steps, rate, seed, accuracy.

    Raises:
        InputError: If there is none of that name.

    Examples:
        >>> bundled_facts("ce")["arch"]
        'resnet10_w16'
    """
    with find_bundled(name).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        told: Mapping[str, Any] = json.loads(json.loads(file.read(length))["__metadata__"]["probekit"])
    return told


def _folder() -> Path:
    return Path(str(files("probekit.backbones"))) / FOLDER
