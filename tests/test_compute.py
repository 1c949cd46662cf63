"""Devices, threads, engine facts."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from probekit.compute import (
    choose_device,
    engine_facts,
    one_thread,
    software_versions,
    torch_threads,
)
from probekit.errors import InputError


def test_the_number_of_threads_is_restored_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), torch_threads(before + 2):
        assert torch.get_num_threads() == before + 2
        raise RuntimeError
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_devices_are_checked_by_name():
    assert choose_device("cpu").type == "cpu"
    assert choose_device().type in {"cpu", "cuda", "mps"}
    with pytest.raises(InputError, match="device"):
        choose_device("abacus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_an_absent_device_is_refused():
    with pytest.raises(InputError, match="cpu"):
        choose_device("cuda")


def test_engine_facts_hold_no_time_or_host():
    one, other = (engine_facts(torch.device("cpu"), 64) for _ in range(2))
    assert one == other
    assert one["threads"] == torch.get_num_threads()
    assert one["torch"] == software_versions()["torch"] == torch.__version__.split("+")[0]


MAPPED = """
import ctypes, torch
from probekit.compute import keep_freed_memory

class Allocations(ctypes.Structure):  # struct mallinfo of malloc.h; hblks counts the blocks mapped singly
    _fields_ = [(name, ctypes.c_int) for name in (
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    ).split()]

mallinfo = ctypes.CDLL(None).mallinfo
mallinfo.restype = Allocations

def mapped():
    before = mallinfo().hblks
    held = torch.ones(16_000_000)  # 64 MB: above the largest threshold that glibc sets by itself
    return mallinfo().hblks - before

print(mapped(), keep_freed_memory(), mapped())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_large_blocks_come_from_the_heap_and_so_are_kept_when_freed():
    # In a process of its own: the setting stays. A block mapped singly returns to the system when freed.
    done = subprocess.run([sys.executable, "-c", MAPPED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True", "0"]
