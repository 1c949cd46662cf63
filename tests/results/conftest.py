"""The synthetic probe table, made once."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SYNTHETIC = runpy.run_path(str(Path(__file__).with_name("synthetic.py")))


@pytest.fixture(scope="session")
def make_table():
    """The function that makes a synthetic probe table."""
    return SYNTHETIC["synthetic_probe_table"]


@pytest.fixture(scope="session")
def table(make_table):
    """Three models, eight taps, a class target, two continuous ones, few-shot rows, three random draws."""
    return make_table()
