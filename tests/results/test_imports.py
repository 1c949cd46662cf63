"""Tables, figures and pages need neither weights nor images: torch stays out."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
import probekit.results.table, probekit.results.fitted, probekit.figures, probekit.reporting.page
table = probekit.results.table.ResultTable.from_rows([
    {"model": "a", "tap": tap, "target": "y", "metric": "accuracy", "value": 0.5, "depth": depth, "n": 5}
    for tap, depth in (("t0", 0.0), ("t1", 1.0))
])
figure = table.plot()
heavy = {"torch", "torchvision", "timm", "captum", "matplotlib.pyplot", "sklearn"} & set(sys.modules)
print(sorted(heavy))
"""


@pytest.mark.slow
def test_tables_figures_and_pages_reach_no_torch():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
