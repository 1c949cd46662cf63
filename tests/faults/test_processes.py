"""Ranks and workers that die: the run says so, and any number of others goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from probekit import ResultTable, transfer
from tests.faults.running import DATA, MODEL, results

ROOT = Path(__file__).parents[2]
KILLS = 12


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_a_rank_that_dies_fails_the_run_and_other_ranks_go_on(tmp_path: Path):
    assert launched(tmp_path / "alone", 1).returncode == 0
    alone = stored(tmp_path / "alone")
    assert alone
    for number in range(KILLS):
        stream, work = random.Random(number), tmp_path / f"killed {number}"
        ranks = stream.choice([2, 3])
        ended = launched(work, ranks, dying=stream.randrange(ranks), change=stream.randint(1, 20))
        assert ended.returncode == 1, ended.stderr
        assert "Signal 9 (SIGKILL) received" in ended.stderr
        again = launched(work, stream.choice([count for count in (1, 2, 3) if count != ranks]))
        assert again.returncode == 0, again.stderr
        assert stored(work) == alone
        assert results("extract", work) == results("extract", tmp_path / "alone")


def launched(work: Path, ranks: int, dying: int = -1, change: int = 0) -> subprocess.CompletedProcess[str]:
    """Extract in so many ranks, one of which dies before its n-th change of a file."""
    words = ["--nproc-per-node", str(ranks), "-m", "tests.faults.running", "extract", str(work)]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, str(dying), str(change)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def stored(work: Path) -> dict[str, bytes]:
    """Return features and what describes them; a journal is one rank's."""
    files = [path for path in (work / "store").rglob("*") if path.is_file() and not path.name.startswith(".")]
    kept = [path for path in files if path.suffix != ".lock" and "journal" not in path.name]
    return {str(path.relative_to(work)): path.read_bytes() for path in kept}


@pytest.mark.campaign
@pytest.mark.timeout(1200)
def test_a_grid_outlives_a_worker(tmp_path: Path):
    distributed = pytest.importorskip("distributed", reason="needs probekit-vision[cluster]")
    import joblib

    settings: dict[str, Any] = {"trials": 6, "steps": 20, "batch_size": 8, "lr": [1e-3]}
    alone = transfer(MODEL, DATA, store=tmp_path / "alone", **settings)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
        as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config(backend="dask"),
    ):  # fmt: skip
        lost: list[int] = []
        watch = threading.Thread(target=kill_a_worker, args=(client, tmp_path / "spread", lost), daemon=True)
        watch.start()
        spread = transfer(MODEL, DATA, store=tmp_path / "spread", jobs=2, **settings)
        watch.join(10)
    assert lost
    assert numbers(spread) == numbers(alone)


def kill_a_worker(client: Any, store: Path, lost: list[int]) -> None:
    """Kill a worker as soon as a training is finished, in the middle of the next ones."""
    while not list(store.rglob("seal.json")):
        time.sleep(0.05)
    worker = next(iter(client.run(os.getpid).values()))
    os.kill(worker, signal.SIGKILL)
    lost.append(worker)


def numbers(table: ResultTable) -> list[tuple[Any, ...]]:
    """Return what was measured, but for times."""
    frame = table.frame.query("metric in ('accuracy', 'balanced_accuracy', 'gain')")
    return list(frame[["model", "metric", "value", "params", "status"]].itertuples(index=False, name=None))
