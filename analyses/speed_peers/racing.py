"""A race: peers' scripts stand ready in processes of their own and take their rounds in turn."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np

from probekit.files import cache_folder

PEERS = Path(__file__).parent
# A round longer than this is not repeated, in seconds.
LONG_ROUND = 60.0

Facts = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One row of a race: a script, what is asked of it, and the environment variables it starts with."""

    name: str
    script: str
    asks: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


def race(
    methods: Sequence[Method], request: Mapping[str, Any], *, rounds: int, budget: float
) -> dict[str, list[Facts]]:
    """Let methods take rounds in turn.

    Args:
        methods: Who races.
        request: What is asked of all of them.
        rounds: Rounds each; one that took longer than ``LONG_ROUND`` is not repeated.
        budget: Seconds after which a process that has not answered is ended.

    Returns:
        Method → what it said of each round; a single ``{"error": …}`` if it could not.
    """
    said: dict[str, list[Facts]] = {}
    with ExitStack() as stack:
        peers = {}
        for one in methods:
            peer = stack.enter_context(open_peer(one, request))
            ready = peer(None, 2 * budget)
            said[one.name] = [ready] if "error" in ready else []
            if "error" not in ready:
                peers[one.name] = peer
        for _ in range(rounds):
            for name, peer in peers.items():
                if not said[name] or (said[name][-1].get("seconds", np.inf) <= LONG_ROUND):
                    answer = peer("go", 2 * budget)
                    said[name] = [answer] if "error" in answer else [*said[name], answer]
    return said


@contextmanager
def open_peer(method: Method, request: Mapping[str, Any]) -> Iterator[Callable[[str | None, float], Facts]]:
    """Start a peer; what is yielded sends it a line and returns its answer."""
    script = PEERS / f"{method.script}.py"
    try:
        python = _interpreter(script)
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"no environment for it can be made: {error}"
        yield lambda _line, _limit: {"error": message}
        return
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [python, str(script), json.dumps({**request, **method.asks})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, **method.variables},
        )  # fmt: skip

        def ask(line: str | None, limit: float) -> Facts:
            assert process.stdin is not None
            assert process.stdout is not None
            timer = threading.Timer(limit, process.kill)
            timer.start()
            try:
                if line is not None:
                    process.stdin.write(line + "\n")
                    process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            finally:
                late = not timer.is_alive()
                timer.cancel()
            if answer:
                found: Facts = json.loads(answer)
                return found
            log.seek(0)
            last = (log.read().strip().splitlines() or ["it ended without a word"])[-1]
            return {"error": f"no answer within {limit:.0f} s" if late else last[:200]}

        try:
            yield ask
        finally:
            process.kill()
            process.communicate()


def _interpreter(script: Path) -> str:
    """Return the Python to run a peer with: this one if it has all it needs, else one of its own."""
    header = re.search(r"# dependencies = (\[.*\])", script.read_text(encoding="utf-8"))
    assert header is not None, f"{script} names no dependencies"
    needed: list[str] = json.loads(header[1])
    if all(_is_installed(one) for one in needed):
        return sys.executable
    place = cache_folder() / "speed" / "peers" / script.stem
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (place / "complete").exists():
        venv.create(place, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *needed], check=True, stdout=sys.stderr)
        (place / "complete").touch()
    return str(python)


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
