"""Ten times the rows take no more memory: features stay on disk, and what is made of them goes there."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from probekit.functional import rows as functional_rows
from probekit.functional.rows import empty_rows
from tests.scale.measuring import VERBS, measure, measure_apart, open_taps, write_taps

log = logging.getLogger(__name__)
FEW, MANY, TAPS = 100_000, 1_000_000, 5
MOST_GROWTH = 200e6


@pytest.fixture
def folder(tmp_path: Path):
    yield tmp_path
    # Gigabytes, which pytest would keep.
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.campaign
@pytest.mark.timeout(6 * 3600)
def test_a_million_rows_in_the_memory_of_a_hundred_thousand(folder: Path):
    peaks: dict[str, list[int]] = {verb: [] for verb in VERBS}
    for count in (FEW, MANY):
        write_taps(folder / str(count), count, TAPS)
        for verb in VERBS:
            found = measure_apart(verb, folder / str(count), count, folder)
            log.info("%s of %d rows: %s", verb, count, found)
            peaks[verb].append(found["peak"] - found["ids_and_targets"])
    growth = {verb: many - few for verb, (few, many) in peaks.items()}
    assert max(growth.values()) < MOST_GROWTH, growth


def test_files_in_place_of_memory_change_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_taps(tmp_path / "store", 600, 1)
    taps = open_taps(tmp_path / "store", 600)
    in_memory = measure("probe", taps)[0]
    asked: list[int] = []
    reserve = functional_rows._reserved

    def noted(file: int, size: int) -> bool:
        asked.append(size)
        return reserve(file, size)

    monkeypatch.setattr(functional_rows, "MEMORY_BYTES", 1)
    monkeypatch.setattr(functional_rows, "_BLOCK_BYTES", 8 * 256 * 64)
    monkeypatch.setattr(functional_rows, "_reserved", noted)
    on_disk = measure("probe", taps)[0]
    assert len(asked) > 5
    columns = ["metric", "value", "ci_low", "ci_high", "null"]
    left, right = (one.frame[columns].set_index("metric") for one in (in_memory, on_disk))
    np.testing.assert_allclose(left.to_numpy(float), right.to_numpy(float), rtol=1e-4)


def test_a_full_disk_leaves_memory(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(functional_rows, "MEMORY_BYTES", 1)
    monkeypatch.setattr(functional_rows.os, "posix_fallocate", full, raising=False)
    rows = empty_rows((3, 2), np.float32)
    rows[:] = 1
    assert rows.base is None


def test_what_lies_in_a_file_is_an_array_like_any_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(functional_rows, "MEMORY_BYTES", 1)
    rows = empty_rows((3, 2), np.float32)
    rows[1:] = 5
    assert type(rows) is np.ndarray
    assert isinstance(rows.base, np.memmap)
    assert rows.sum() == 20
    assert empty_rows((0, 4), np.float64).shape == (0, 4)
