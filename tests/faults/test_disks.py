"""Disks that are full, read-only or gone, and clocks that jump: an error that says so, and nothing lost."""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.running import Fault, Undisturbed, copied, results, run_verb

log = logging.getLogger(__name__)
TIMES = 8
# What a verb may come to there, and what it must say then. Afterwards, all go on to the same numbers.
OUTCOMES = {what: {"said", "same numbers"} for what in ("full", "read-only", "gone")} | {
    "clock": {"same numbers"}
}
SAYINGS = {
    "full": ["No space left", "File too large"],
    "read-only": ["Read-only file system", "File too large"],
    "gone": ["No such file", "nothing there", "no such file"],
}


@pytest.mark.parametrize("what", OUTCOMES)
def test_one(features: Undisturbed, tmp_path: Path, what: str):
    assert meet(features, tmp_path / "met", what, random.Random(f"{what}:1")) in OUTCOMES[what]


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("what", OUTCOMES)
def test_many(undisturbed: Undisturbed, tmp_path: Path, what: str):
    streams = [random.Random(f"{undisturbed.verb}:{what}:{number}") for number in range(TIMES)]
    outcomes = [meet(undisturbed, tmp_path / "met", what, stream) for stream in streams]
    assert set(outcomes) <= OUTCOMES[what]
    log.info("%s %s: %s", undisturbed.verb, what, {one: outcomes.count(one) for one in set(outcomes)})


def meet(before: Undisturbed, work: Path, what: str, stream: random.Random) -> str:
    """Run a verb on such a disk, then on a sound one, and compare; return what came of the first run."""
    before.start(work)
    ended = run_verb(before.verb, work, Fault(change=stream.randint(1, before.ended.changes), what=what))
    assert "Traceback" not in ended.said, ended.said
    if ended.code == 0:
        assert results(before.verb, work) == before.results, what
    else:
        assert ended.code == 2, ended.said
        assert any(one in ended.said for one in SAYINGS[what]), ended.said
    if (work / "gone").exists() and stream.random() < 0.5:
        # What was away comes back, in place of what was made meanwhile.
        shutil.rmtree(work / "store", ignore_errors=True)
        (work / "gone").rename(work / "store")
    again = run_verb(before.verb, work)
    assert again.code == 0, again.said
    assert results(before.verb, work) == before.results, what
    return "said" if ended.code else "same numbers"


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_disks_that_are_full(undisturbed: Undisturbed, tmp_path: Path):
    need = sum(path.stat().st_size for path in undisturbed.work.rglob("*") if path.is_file())
    stream = random.Random(undisturbed.verb)
    for share in [stream.uniform(0.02, 0.98) for _ in range(TIMES)]:
        work = tmp_path / "small" / "work"
        with small_disk(work.parent, int(need * share)):
            try:
                undisturbed.start(work)
            except (OSError, shutil.Error):
                continue
            ended = run_verb(undisturbed.verb, work)
            assert "Traceback" not in ended.said, ended.said
            assert ended.code == 0 or "No space left" in ended.said, ended.said
            kept = copied(work, tmp_path / "larger")
        again = run_verb(undisturbed.verb, kept)
        assert again.code == 0, again.said
        assert results(undisturbed.verb, kept) == undisturbed.results


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """Mount a file system of so many bytes, which needs the rights to do so."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)
