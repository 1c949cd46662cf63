"""Finished cells are read back; unfinished ones are computed."""

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from probekit.errors import InputError
from probekit.files import finish_folder
from probekit.grid import alone_at, run_cells


def save(value: int, place: Path) -> None:
    unfinished = place.with_name(f".{place.name}")
    unfinished.mkdir(parents=True)
    (unfinished / "value").write_text(str(value))
    finish_folder(unfinished, place)


def load(place: Path) -> int:
    return int((place / "value").read_text())


def test_finished_cells_are_not_computed_again(tmp_path: Path):
    calls: list[int] = []

    def cell(value: int):
        def compute() -> int:
            calls.append(value)
            return value

        return compute

    first = run_cells({"a": cell(1), "b": cell(2)}, folder=tmp_path, save=save, load=load)
    second = run_cells({"b": cell(2), "c": cell(3), "a": cell(1)}, folder=tmp_path, save=save, load=load)
    assert first == {"a": 1, "b": 2}
    assert list(second.items()) == [("b", 2), ("c", 3), ("a", 1)]
    assert calls == [1, 2, 3]


def test_an_interruption_keeps_what_was_finished(tmp_path: Path):
    def fail() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells({"a": lambda: 1, "b": fail}, folder=tmp_path, save=save, load=load)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.lock", "a"]


def test_without_a_folder_nothing_is_kept():
    assert run_cells({"a": lambda: 7}, folder=None, save=save, load=load) == {"a": 7}


ONE_OF_TWO = """
import sys, time
from pathlib import Path
from probekit.files import finish_folder
from probekit.grid import run_cells

folder, name = Path(sys.argv[1]), sys.argv[2]

def compute():
    with (folder / "computed").open("a") as told:
        told.write(name)
    time.sleep(1)
    return name

def save(value, place):
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "value").write_text(value)
    finish_folder(folder / "unfinished", place)

found = run_cells({"a": compute}, folder=folder, save=save, load=lambda place: (place / "value").read_text())
print(found["a"])
"""


def test_a_cell_that_two_processes_want_is_computed_by_one(tmp_path: Path):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, str(tmp_path), name], stdout=subprocess.PIPE, text=True
        )
        for name in "xy"
    ]
    found = [one.communicate(timeout=60)[0].strip() for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert found[0] == found[1] == (tmp_path / "computed").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "computed"]


HOLDER = """
import sys, time
from pathlib import Path
from probekit.grid import alone_at

with alone_at(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    reached = threading.Event()

    def wait() -> None:
        with alone_at(tmp_path / "a"):
            reached.set()

    waiting = threading.Thread(target=wait)
    with caplog.at_level(logging.WARNING, "probekit"):
        waiting.start()
        time.sleep(0.3)
        assert not reached.is_set()
        holder.kill()
        waiting.join(timeout=30)
    holder.communicate()
    assert reached.is_set()
    assert f"Another process is at {tmp_path / 'a'}" in caplog.text


def test_a_cell_that_failed_keeps_its_lock_file_for_the_next(tmp_path: Path):
    def fail() -> int:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run_cells({"a": fail}, folder=tmp_path, save=save, load=load)
    assert run_cells({"a": lambda: 2}, folder=tmp_path, save=save, load=load) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no flock")])
def test_where_no_lock_is_to_be_had_the_cell_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
):
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with caplog.at_level(logging.WARNING, "probekit"):
        assert run_cells({"a": lambda: 2}, folder=tmp_path, save=save, load=load) == {"a": 2}
    assert f"No lock at {tmp_path / 'a'}: {error}" in caplog.text


@pytest.mark.parametrize("damage", ["other", "gone", "unsealed", "foreign", "empty"])
def test_a_finished_cell_that_was_changed_is_refused_by_name(tmp_path: Path, damage: str):
    run_cells({"a": lambda: 12}, folder=tmp_path, save=save, load=load)
    value, seal = tmp_path / "a" / "value", tmp_path / "a" / "seal.json"
    if damage == "other":
        value.write_text("13")
    elif damage == "empty":
        seal.write_text('{"format": 1}')
    elif damage == "foreign":
        seal.write_text(seal.read_text().replace('"format": 1', '"format": 9'))
    else:
        (value if damage == "gone" else seal).unlink()
    with pytest.raises(InputError, match="Delete this folder") as error:
        run_cells({"a": lambda: 12}, folder=tmp_path, save=save, load=load)
    assert str(value if damage in ("other", "gone") else tmp_path / "a") in str(error.value)
