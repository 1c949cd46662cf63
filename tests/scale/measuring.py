"""Made features in a store, and the anonymous memory that a process takes to measure them.

Run as a program, ``python -m tests.scale.measuring VERB FOLDER ROWS``, it prints one JSON object.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from probekit.data.targets import Target
from probekit.features.features import Features
from probekit.features.store import PartWriter, TapFolder
from probekit.results.table import ResultTable

WIDTH, CLASSES, BATCH = 256, 10, 256
VERBS = ("probe", "neighbours", "code", "geometry", "similarity")
QUERIES = 1000
_FACTS = {"block": "layer1", "level": "low", "depth": 0.0, "readout": "gap"}


def write_taps(place: Path, rows: int, taps: int) -> None:
    """Write taps of normal features around class means that lie a little apart, as an extraction does."""
    random = np.random.default_rng(0)
    for tap in range(taps):
        centres = random.normal(size=(CLASSES, WIDTH), scale=0.1).astype(np.float32)
        folder = TapFolder.of(place, f"tap{tap}|gap", "float32")
        folder.declare({"tap": f"tap{tap}|gap", "axes": "N D", "shape": [WIDTH], "dtype": "float32"}, BATCH)
        with PartWriter(folder, rows) as writer:
            for start in range(0, rows, BATCH):
                count = min(BATCH, rows - start)
                values = random.standard_normal((count, WIDTH), np.float32)
                values += centres[(start + np.arange(count)) % CLASSES]
                writer.append(start, values, np.full(count, "made"))


def open_taps(place: Path, rows: int) -> list[Features]:
    """Open the taps of a folder."""
    target = Target(np.arange(rows) % CLASSES, "class", tuple(f"class {c}" for c in range(CLASSES)))
    ids = np.array([f"{row:07d}" for row in range(rows)])
    splits = np.array(["train", "train", "train", "val", "test"])[np.arange(rows) // CLASSES % 5]
    found = []
    for path in sorted(place.iterdir()):
        folder = TapFolder(path)
        facts, values = folder.facts(), folder.values(rows)
        assert facts is not None
        assert values is not None
        provenance = {"key": place.name}
        found.append(
            Features(values, "N D", ids, splits, {"class": target}, facts["tap"], _FACTS, provenance)
        )
    return found


def measure(verb: str, taps: list[Features]) -> list[ResultTable]:
    """Run one verb's cells, tap by tap, as a sweep does."""
    from probekit.functional.neighbours import nearest_neighbours
    from probekit.geometry.cell import GeometrySettings, geometry_of_tap
    from probekit.probes.cell import probe_tap
    from probekit.probes.description_length import description_rows
    from probekit.probes.protocol import Protocol, Roles, TapData
    from probekit.similarity.cell import Layer, similarity_of_tap
    from probekit.similarity.side import SimilaritySettings

    target = taps[0].targets["class"]
    roles = Roles(*(taps[0].rows(role) for role in ("train", "val", "test")))
    tables = []
    for one in taps:
        if verb == "neighbours":
            # The time grows with their number, the memory does not.
            found = nearest_neighbours(one.matrix(roles.fitting), one.matrix(roles.test[:QUERIES]), k=20)
            assert found[0].shape == (QUERIES, 20)
            continue
        if verb == "code":
            protocol = Protocol((1.0, 0.1, 0.01), permutations=1, bootstrap_draws=200, orders=1)
            rows = description_rows(TapData.of(one, roles), "class", target, protocol)
            assert rows[0]["value"] < np.log2(CLASSES)
            continue
        if verb == "probe":
            protocol = Protocol(
                (1.0, 0.1, 0.01), permutations=2, bootstrap_draws=200, neighbours=0, shots=(5,)
            )
            table = probe_tap(one, {"class": target}, roles, protocol, WIDTH // 2)
        elif verb == "geometry":
            table = geometry_of_tap(
                one, name="class", target=target, roles=roles, split="unknown",
                settings=GeometrySettings(permutations=2),
            )  # fmt: skip
        else:
            others = [Layer("made", other.tap, other) for other in taps]
            table = similarity_of_tap(one, others=others, settings=SimilaritySettings())
        assert (table.frame["status"] == "ok").any()
        tables.append(table)
    return tables


class AnonymousMemory:
    """The most anonymous memory this process took, asked for every 50 ms."""

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> AnonymousMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            told = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
            assert told is not None
            self.peak = max(self.peak, 1024 * int(told[1]))
            if self._ended.wait(0.05):
                return


def measure_apart(verb: str, place: Path, rows: int, work: Path) -> dict[str, Any]:
    """Measure the taps of a folder in a process of its own: peak and what stood before, in bytes; seconds."""
    command = [sys.executable, "-m", "tests.scale.measuring", verb, str(place), str(rows)]
    # Large matrices go to temporary files.
    environment = os.environ | {"TMPDIR": str(work)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(verb: str, place: str, rows: str) -> None:
    """Print the peak of anonymous memory, what of it ids and targets take, and the seconds."""
    taps = open_taps(Path(place), int(rows))
    # Opened alike by all taps.
    held = taps[0].ids.nbytes + taps[0].splits.nbytes + taps[0].targets["class"].values.nbytes
    began = time.monotonic()
    with AnonymousMemory() as memory:
        measure(verb, taps)
    told = {"peak": memory.peak, "ids_and_targets": held, "seconds": round(time.monotonic() - began, 1)}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
