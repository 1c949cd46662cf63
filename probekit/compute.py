"""Where and how numbers are computed: device, threads, versions of the libraries that compute them."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from probekit.errors import InputError

if TYPE_CHECKING:
    import torch

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The libraries whose version may change a number.
COUNTED = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow", "pandas")


def software_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that compute, read without importing them."""
    versions = {}
    for name in COUNTED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def choose_device(wanted: str | None = None) -> torch.device:
    """Return the device to compute on.

    Args:
        wanted: A torch device such as ``"cpu"`` or ``"cuda:1"``; None takes CUDA, else MPS, else CPU.

    Raises:
        InputError: If the device is unknown or not on this machine.
    """
    import torch

    if wanted is None:
        if torch.cuda.is_available():
            # One device a process, where torchrun starts several on a machine.
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InputError(f"a device among {', '.join(present)}", repr(wanted), "Choose one") from error
    if not present.get(device.type, False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise InputError(f"a device of this machine ({here})", repr(wanted), "Choose one, or leave it out")
    return device


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch with a given number of CPU threads, then restore the number it had.

    Sums over threads round differently, so equal bytes need an equal count.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread: torch, and the BLAS behind NumPy and SciPy.

    Results then do not depend on how many cells run side by side, and the thread pools of the two libraries
    do not fight over the cores.
    """
    from threadpoolctl import threadpool_limits

    with torch_threads(1), threadpool_limits(1):
        yield


def rank() -> tuple[int, int]:
    """Return which of how many processes this is, as ``torchrun`` says: ``RANK`` and ``WORLD_SIZE``.

    Raises:
        InputError: If the two are not numbers that fit each other.

    Examples:
        >>> rank()
        (0, 1)
    """
    words = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        number, count = (int(word) for word in words)
    except ValueError:
        number, count = -1, 0
    if not 0 <= number < count:
        raise InputError(
            "RANK from 0 to WORLD_SIZE − 1", f"RANK={words[0]}, WORLD_SIZE={words[1]}", "Start with torchrun"
        )
    return number, count


def cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed activations instead of returning it to the system.

    By default every activation over 128 KiB is mapped afresh, and each of its pages faults in again when it
    is written: about half the time of a forward pass on a CPU. Numbers are not touched.

    Returns:
        Whether the settings were taken; False without glibc.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        taken = libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30), libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    except (OSError, AttributeError):
        return False
    return all(taken)


def engine_facts(
    device: torch.device, batch_size: int, *, path: str = "eager", precision: str = "float32"
) -> dict[str, Any]:
    """Return what decides the last bits of an activation, for the manifest of a feature store.

    Two runs whose facts are equal give equal bytes; no time, host or process stands in them.

    Args:
        device: Where it computes.
        batch_size: Images a forward pass.
        path: ``eager`` or ``fused``; see ``probekit.features.trial``.
        precision: ``float32`` or ``bfloat16``.
    """
    import torch

    versions = software_versions()
    capability = device.type
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
    elif device.type == "cuda":
        capability = torch.cuda.get_device_name(device)
    return {
        "path": path,
        "precision": precision,
        "device": device.type,
        "capability": capability,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "batch_size": batch_size,
        "torch": versions["torch"],
        "timm": versions["timm"],
    }
