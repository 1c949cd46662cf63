"""Imports go one way, and what redraws figures never loads torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "timm", "captum")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_import_contracts_are_kept():
    code = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as run; run()"
    )
    done = run("-c", code, "--config", "setup.cfg", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def heavy_after(code: str) -> str:
    done = run("-c", f"import sys\n{code}\nprint(*({set(HEAVY)!r} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_probekit_loads_nothing_heavy():
    assert heavy_after("import probekit") == ""


def test_the_check_sees_torch():
    assert "torch" in heavy_after("import torch")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cli", "data", "figures", "plan", "reporting", "results"])
def test_what_needs_tables_only_loads_nothing_heavy(name):
    if importlib.util.find_spec(f"probekit.{name}") is None:
        pytest.skip(f"probekit.{name} is not built yet")
    code = (
        f"import importlib, pkgutil, probekit.{name} as top\n"
        "for module in pkgutil.walk_packages(getattr(top, '__path__', []), top.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
    )
    assert heavy_after(code) == ""
