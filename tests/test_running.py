"""Plans, analyses and smoke runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from probekit import Plan
from probekit.errors import InputError
from probekit.plan import live_reference
from probekit.running import execute, foresee, load_analysis, shrink

ANALYSES = sorted(Path("analyses").glob("[a-z]*.py"))


def test_unknown_verbs_and_settings_are_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(InputError, match="nearest is probe"):
        execute(Plan("prob", {}), tmp_path / "out")
    with pytest.raises(InputError, match="nearest are taps"):
        execute(Plan("probe", {"models": "a:random", "data": "digits", "tap": "x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plan_of_live_objects_is_refused_by_name():
    plan = Plan("probe", {"models": [live_reference("backbone", "mine", "0")], "data": "digits"})
    with pytest.raises(InputError, match="models"):
        execute(plan, None)


def test_smoke_shrinks_every_data_set():
    plan = shrink(Plan("probe", {"models": ["a:random"], "data": ["digits", "x.npz,limit=5"]}))
    assert plan.settings["data"] == ["digits,limit=120", "x.npz,limit=5"]
    assert plan.settings["permutations"] == 3


@pytest.mark.parametrize("path", ANALYSES, ids=lambda path: path.stem)
def test_every_analysis_asks_a_question_and_says_what_would_falsify_it(path: Path):
    module = load_analysis(path)
    text = module.__doc__
    assert text.split("\n")[0].split(".")[0].count("?") == 1
    for part in ("Source:", "Command:", "Minutes:", "Expected:", "Would falsify it:"):
        assert part in text, part
    assert module.PLAN.verb == str(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", ANALYSES, ids=lambda path: path.stem)
def test_every_analysis_runs_in_seconds_when_shrunk(path: Path, tmp_path: Path):
    plan = load_analysis(path).PLAN
    execute(shrink(plan), tmp_path)
    assert (tmp_path / "index.html").exists()
    assert list((tmp_path / "figures").glob("*.png"))


def test_a_dry_run_of_the_paper_counts_trainings_and_what_is_missing(tmp_path: Path):
    plan = load_analysis(Path("analyses/paper.py")).PLAN
    (tmp_path / "exemplar_v2.pth").touch()
    told = foresee(plan.having(checkpoints=str(tmp_path))).set_index("stage")
    assert set(told.index) == set(plan.settings["stages"])
    assert len(set(plan.settings["stages"]["voc07"]["models"])) == 24
    # Whole and scratch; three rates in the first trial, the best of them in the four others.
    assert told.loc["voc07", "cells"] == 24 * 2 * (3 + 4)
    assert told.loc["voc07", "missing"].startswith("VOC2007/, 23 of 24 checkpoints")
    assert told.loc["voc07", "hours"] == pytest.approx(
        336 * 24_000 * 16 * 3 * 4.1e9 * (640 / 224) ** 2 / 2e13 / 3600, abs=0.05
    )


def test_an_incomplete_analysis_file_is_refused(tmp_path: Path):
    path = tmp_path / "half.py"
    path.write_text("PLAN = None\n")
    with pytest.raises(InputError, match="run, draw, smoke"):
        load_analysis(path)


def test_an_analysis_imports_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_it.py").write_text("ANSWER = 42\n")
    path = tmp_path / "asking.py"
    path.write_text("from beside_it import ANSWER\nPLAN = run = draw = smoke = ANSWER\n")
    assert load_analysis(path).PLAN == 42
