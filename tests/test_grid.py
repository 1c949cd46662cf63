"""Finished cells are read back; unfinished ones are computed."""

from pathlib import Path

import pytest

from probekit.grid import run_cells


def save(value: int, place: Path) -> None:
    unfinished = place.with_name(f".{place.name}")
    unfinished.mkdir(parents=True)
    (unfinished / "value").write_text(str(value))
    unfinished.rename(place)


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
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_without_a_folder_nothing_is_kept():
    assert run_cells({"a": lambda: 7}, folder=None, save=save, load=load) == {"a": 7}
