"""Committed figures and pages are what the code draws of committed tables, where torch is not installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

REPORTS = sorted(one.parent for one in (ROOT / "reports").glob("*/plan.yaml"))
WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "captum"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
"""


def run_without_torch(code: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_analysis_is_loaded_without_torch():
    run_without_torch(
        """
from pathlib import Path
from probekit.running import load_analysis

for one in sys.argv[1:]:
    load_analysis(Path(one))
""",
        *(str(one) for one in (ROOT / "analyses").glob("[!_]*.py")),
    )


@pytest.mark.campaign
@pytest.mark.parametrize("report", REPORTS, ids=lambda one: one.name)
def test_a_report_is_drawn_again_byte_for_byte(report: Path, tmp_path: Path):
    copy = tmp_path / report.name
    shutil.copytree(report, copy)
    shutil.rmtree(copy / "figures")
    (copy / "index.html").unlink()
    run_without_torch(
        """
from probekit.cli.main import app

app(["report", sys.argv[1]])
""",
        str(copy),
    )
    before, after = (
        {str(one.relative_to(place)): one.read_bytes() for one in place.rglob("*") if one.is_file()}
        for place in (report, copy)
    )
    assert set(before) == set(after)
    assert [name for name in before if before[name] != after[name]] == []
