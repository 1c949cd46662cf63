"""Killed at any moment, or with any file damaged: the same numbers in the end, or an error that names it."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import pytest

from tests.faults.running import Ended, Fault, Undisturbed, copied, results, run_verb

log = logging.getLogger(__name__)
KILLS, MUTATIONS = 36, 90


def test_a_kill(undisturbed: Undisturbed, tmp_path: Path):
    # The first draw of this stream is a change of a file.
    assert kill_and_go_on(undisturbed, tmp_path / "killed", random.Random(7), 1) == 1


def test_damages(features: Undisturbed, tmp_path: Path):
    outcomes = list(islice(damages(features, tmp_path / "damaged"), 4))
    assert set(outcomes) <= {"named", "same numbers"}


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_many_kills(undisturbed: Undisturbed, tmp_path: Path):
    kills = chain = 0
    while kills < KILLS:
        stream = random.Random(f"{undisturbed.verb}:{chain}")
        kills += kill_and_go_on(undisturbed, tmp_path / "killed", stream, 4)
        chain += 1
    log.info("%s: %d kills", undisturbed.verb, kills)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_many_damages(undisturbed: Undisturbed, tmp_path: Path):
    outcomes = list(islice(damages(undisturbed, tmp_path / "damaged"), MUTATIONS))
    assert set(outcomes) <= {"named", "same numbers"}
    log.info("%s: %s", undisturbed.verb, {one: outcomes.count(one) for one in set(outcomes)})


def kill_and_go_on(undisturbed: Undisturbed, work: Path, stream: random.Random, most: int) -> int:
    """Kill a run up to so many times, let it finish, and compare; return how often it was killed."""
    undisturbed.start(work)
    kills = 0
    for _ in range(most):
        fault = draw_fault(undisturbed.ended, stream)
        ended = run_verb(undisturbed.verb, work, fault)
        if not ended.killed:
            assert ended.code == 0, (fault, ended.said)
            break
        kills += 1
    ended = run_verb(undisturbed.verb, work)
    assert ended.code == 0, ended.said
    assert results(undisturbed.verb, work) == undisturbed.results
    return kills


def draw_fault(ended: Ended, stream: random.Random) -> Fault:
    """Return a moment of a run: a change of a file, or a time."""
    if stream.random() < 0.7:
        return Fault(change=stream.randint(1, ended.changes))
    return Fault(seconds=stream.uniform(0.05, 0.95) * ended.seconds)


def damages(undisturbed: Undisturbed, work: Path) -> Iterator[str]:
    """Yield what came of one damage after the other, but where there was nothing to damage yet."""
    for number in count():
        outcome = damage_and_run(undisturbed, work, random.Random(f"{undisturbed.verb}:{number}"))
        if outcome != "nothing there":
            yield outcome


def damage_and_run(undisturbed: Undisturbed, work: Path, stream: random.Random) -> str:
    """Damage one file of a finished or killed run, run it again, and return what came of it."""
    if stream.random() < 0.5 and undisturbed.verb != "report":
        undisturbed.start(work)
        run_verb(undisturbed.verb, work, draw_fault(undisturbed.ended, stream))
    else:
        copied(undisturbed.work, work)
    files = sorted(damageable(work))
    if not files:
        return "nothing there"
    path = stream.choice(files)
    what = damage(path, stream)
    ended = run_verb(undisturbed.verb, work)
    about = f"{what} {path.relative_to(work)}\n{ended.said[-1500:]}"
    if ended.code == 0:
        assert results(undisturbed.verb, work) == undisturbed.results, about
        return "same numbers"
    assert "Traceback" not in ended.said, about
    names = {path.name, *(one.name for one in path.parents if work in one.parents)}
    assert any(name in ended.said for name in names), about
    return "named"


def damageable(work: Path) -> Iterator[Path]:
    """Yield the files that a verb reads again."""
    for path in work.rglob("*"):
        # Locks hold nothing; figures and pages are drawn anew.
        if path.is_file() and path.suffix != ".lock" and not {"figures", "export"} & set(path.parts):
            yield path


def damage(path: Path, stream: random.Random) -> str:
    """Cut a file short, flip a bit, empty it or take it away; return which."""
    content = path.read_bytes()
    what = stream.choice(["cut", "flipped", "emptied", "deleted"])
    if what == "deleted":
        path.unlink()
    elif what == "emptied" or not content:
        path.write_bytes(b"")
    elif what == "cut":
        path.write_bytes(content[: stream.randrange(len(content))])
    else:
        place = stream.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << stream.randrange(8)
        path.write_bytes(bytes(changed))
    return what
