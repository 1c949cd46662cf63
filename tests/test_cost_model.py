"""What docs/cluster.md foretells of an extraction is what it leaves."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from probekit import extract
from probekit.features import store as feature_store
from probekit.features.streaming import BATCH_SIZE
from tests.conftest import ROOT
from tests.features.conftest import images, small_backbone

HEADER = 128
STAGES = (64, 256, 512, 1024, 2048)


def rows_a_file(row_bytes: int, batch: int, most: int) -> int:
    rows = 16 * batch
    while rows > batch and rows * row_bytes > most:
        rows //= 2
    return rows


def foretold(n: int, widths: tuple[int, ...], size: int, batch: int, most: int = 2**26) -> tuple[int, int]:
    """Return the bytes and the number of files that the page says."""
    files = sum(math.ceil(n / rows_a_file(size * width, batch, most)) for width in widths)
    return n * size * sum(widths) + HEADER * files, files


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("most", [2**26, 3000])
def test_bytes_and_files_of_an_extraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype, most):
    monkeypatch.setattr(feature_store, "PART_BYTES", most)
    taps = {"3|gap": 6, "5|grid(2)": 20, "0|grid(3)": 36}
    extract(small_backbone(), images(150), list(taps), store=tmp_path, batch_size=4, dtype=dtype)
    parts = sorted(tmp_path.rglob("part-*.npy"))
    size, widths = np.dtype(dtype).itemsize, tuple(taps.values())
    assert (sum(one.stat().st_size for one in parts), len(parts)) == foretold(150, widths, size, 4, most)
    for width in widths:
        rows = rows_a_file(size * width, 4, most)
        lengths = [len(np.load(one)) for one in parts if np.load(one, mmap_mode="r").shape[1] == width]
        assert lengths == [rows] * (150 // rows) + [150 % rows] * (150 % rows > 0)


def test_the_table_follows_from_the_formulas():
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:ImageNet|LAION)[^|]*\|(.+)\|$", text, re.MULTILINE)
    assert len(rows) == 3
    for row in rows:
        n, single, half, files, fewer, slow, fast = (float(one.replace(",", "")) for one in row.split("|"))
        foreseen = [foretold(int(n), STAGES, size, BATCH_SIZE) for size in (4, 2)]
        assert [single, half] == [pytest.approx(one / 1e9, abs=0.051) for one, _ in foreseen]
        assert [files, fewer] == [foreseen[0][1], foretold(int(n), STAGES, 4, 256)[1]]
        assert (slow, fast) == (
            pytest.approx(n / 14 / 3600, abs=0.051),
            pytest.approx(n / 8000 / 3600, abs=0.0051),
        )
