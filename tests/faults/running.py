"""Verbs of the command line in processes that die when they are told to, and what they leave."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

# Loaded once, by the server that all processes are forked from.
import probekit.cli.main

_PRELOADED = ["tests.faults.running"]
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate", "os.rmdir"}
# Columns and metrics that say when and how fast, and nothing else.
_TIMES = ("images_per_s", "seconds")

# What a process says goes to a file as well.
LARGEST_SAID = 64 << 10

MODEL = "resnet10_w16:bundled@ce,size=32"
DATA = "shapeworld/unseen,train=60,test=30"
VERBS: dict[str, list[str]] = {
    "extract": ["extract", "-m", MODEL, "-d", DATA, "--taps", "stages", "--batch-size", "2",
                "--engine", "eager", "--export", "OUT/export"],
    "pretrain": ["pretrain", "-a", "ce", "-d", "shapeworld/source,train=64,test=32", "--arch", "resnet10_w16",
                 "--epochs", "3", "--batch-size", "16", "--lr", "0.01", "--no-random",
                 "--taps", "penultimate", "-o", "OUT"],
    "transfer": ["transfer", "-m", MODEL, "-d", DATA, "--steps", "3", "--batch-size", "8", "--lr", "0.01",
                 "--trials", "2", "-o", "OUT"],
    "reset": ["reset", "-m", MODEL, "-d", DATA, "--steps", "2", "--batch-size", "8", "--lr", "0.01",
              "--trials", "2", "--curve", "prefix", "--curve", "rewind", "--mode", "random", "-o", "OUT"],
    "reconstruct": ["reconstruct", "-m", MODEL, "-d", DATA, "--no-random", "--taps", "levels",
                    "--permutations", "1", "-o", "OUT"],
    "report": ["report", "OUT"],
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """What befalls a process before its n-th change of a file, or after some seconds, and from then on.

    Args:
        change: Number of the change.
        seconds: A time instead, for ``killed`` alone.
        what: ``killed``; ``full`` and ``read-only``, a disk that takes no change; ``gone``, a store that is
            moved away under the process; ``clock``, a clock of the wall that jumps by years at each look.
    """

    change: int | None = None
    seconds: float | None = None
    what: str = "killed"


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    code: int
    said: str
    changes: int
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether it was killed by the fault."""
        return self.code == -signal.SIGKILL


def run_verb(verb: str, work: Path, fault: Fault = Fault()) -> Ended:
    """Run a verb in a process of its own, with its store and output under ``work``.

    Args:
        verb: A key of VERBS.
        work: Folder of ``store`` and ``out``.
        fault: When to die.
    """
    work.mkdir(parents=True, exist_ok=True)
    said, counted = work.parent / f"{work.name}.said", work.parent / f"{work.name}.changes"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_child, args=(_words(verb, work), work, fault, said, counted))
    began = time.monotonic()
    process.start()
    if fault.seconds is not None:
        process.join(fault.seconds)
        if process.is_alive():
            process.kill()
    process.join(240)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{verb} did not end in 240 s: {said.read_text()[-2000:]}")
    changes = int(counted.read_text()) if counted.exists() else 0
    counted.unlink(missing_ok=True)
    return Ended(process.exitcode or 0, said.read_text(), changes, time.monotonic() - began)


def _words(verb: str, work: Path) -> list[str]:
    words = [word.replace("OUT", str(work / "out")) for word in VERBS[verb]]
    return words if verb == "report" else [*words, "--store", str(work / "store"), "--device", "cpu"]


def _child(words: list[str], work: Path, fault: Fault, said: Path, counted: Path) -> None:
    os.environ["COLUMNS"] = "110"
    os.environ["PROBEKIT_CACHE"] = str(work / "store")
    with said.open("w", buffering=1) as spoken:
        os.dup2(spoken.fileno(), 1)
        os.dup2(spoken.fileno(), 2)
    count = 0
    # Once: what a fault does to files must not call it again.
    lock, befallen = threading.RLock(), False

    def watch(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count, befallen
        if event not in _FILE_EVENTS or not str(given[0]).startswith(f"{work}/"):
            return
        if event == "open" and not _writes(given):
            return
        with lock:
            count += 1
            if fault.change is None or count < fault.change:
                return
            first, befallen = not befallen, True
            _befall(fault.what, first, work)

    if fault.what == "clock":
        _let_the_clock_jump()
    sys.addaudithook(watch)
    sys.argv = ["probekit", *words]
    try:
        probekit.cli.main.main()
    finally:
        sys.stdout.flush()
        counted.write_text(str(count))


def _befall(what: str, first: bool, work: Path) -> None:
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "gone":
        if first and (work / "store").exists():
            (work / "store").rename(work / "gone")
    elif what in ("full", "read-only"):
        # Libraries that open files by themselves are met by the system's own limit.
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_SAID, resource.RLIM_INFINITY))
        number = errno.ENOSPC if what == "full" else errno.EROFS
        raise OSError(number, os.strerror(number))


def _let_the_clock_jump() -> None:
    stream = random.Random(0)
    years = 365 * 86400
    time.time = lambda: stream.uniform(0, 80 * years)
    time.time_ns = lambda: int(time.time() * 1e9)


def _writes(given: tuple[Any, ...]) -> bool:
    mode, flags = (*given, None, None)[1:3]
    return any(one in mode for one in "wax+") if isinstance(mode, str) else bool((flags or 0) & _WRITING)


class Undisturbed:
    """What a verb leaves when nothing happens to it.

    Args:
        verb: A key of VERBS.
        place: Folder of its own.
    """

    def __init__(self, verb: str, place: Path) -> None:
        self.verb, self.work = verb, place / "undisturbed"
        self.before = place / "before"
        self.before.mkdir(parents=True)
        if verb == "report":
            # It draws again what another verb left.
            run_verb("transfer", self.before)
        copied(self.before, self.work)
        self.ended = run_verb(verb, self.work)
        assert self.ended.code == 0, self.ended.said
        self.results = results(verb, self.work)
        assert self.results

    def start(self, place: Path) -> Path:
        """Return a folder as it was before the verb ran."""
        return copied(self.before, place)


def results(verb: str, work: Path) -> dict[str, Any]:
    """Return what a verb left under ``out``: tables without times, arrays and weights as bytes.

    Figures and page of ``report``, which makes nothing else, as bytes too. A file that a killed process was
    writing stays beside, under a hidden name that nothing reads: it does not count.
    """
    found: dict[str, Any] = {}
    out = work / "out"
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name.startswith("."):
            continue
        if path.name == "table.parquet":
            frame = pd.read_parquet(path).drop(columns=["run_id"])
            frame = frame[~frame["metric"].isin(_TIMES)]
            found[name] = frame.to_json()
        elif path.is_file() and (verb == "report" or path.suffix in (".npz", ".npy", ".pth")):
            found[name] = path.read_bytes()
    return found


def copied(work: Path, place: Path) -> Path:
    """Return a copy of what a verb left."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(work, place)
    return place


def main() -> None:
    """Run a verb as one of several ranks: ``-m tests.faults.running VERB WORK DYING CHANGE``."""
    verb, work, dying, change = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
    rank = os.environ["RANK"]
    work.mkdir(parents=True, exist_ok=True)
    fault = Fault(change=change if int(rank) == dying else None)
    places = (work.parent / f"{work.name}.{rank}.{kind}" for kind in ("said", "changes"))
    _child(_words(verb, work), work, fault, *places)


if __name__ == "__main__":
    main()
