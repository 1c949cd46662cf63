"""The engine is decided once, proven, written down and obeyed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from probekit import extract
from probekit.errors import FusionImpossible, InputError
from probekit.features import fusion, trial
from probekit.features.streaming import first_batch
from tests.features.conftest import images, small_backbone
from tests.features.test_extraction import everything

TAPS = ["1|gap", "3|gap", "5|raw"]


def engine_of(folder: Path) -> dict:
    (manifest,) = folder.glob("features/*/manifest.json")
    return json.loads(manifest.read_text())["engine"]


def test_fused_features_equal_eager_ones(tmp_path: Path):
    backbone, data = small_backbone(), images()
    eager, fused = (
        extract(backbone, data, TAPS, store=tmp_path / path, engine=path, batch_size=16)
        for path in ("eager", "fused")
    )
    for tap, features in fused.items():
        expected = np.asarray(eager[tap].values)
        assert np.linalg.norm(np.asarray(features.values) - expected) <= 1e-5 * np.linalg.norm(expected)
    assert [engine_of(tmp_path / path)["path"] for path in ("eager", "fused")] == ["eager", "fused"]


def test_the_decision_is_obeyed_by_taps_that_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone, data, paths = small_backbone(), images(), []
    original = trial.open_forward

    def watched(trial, taps, engine):
        paths.append(engine["path"])
        return original(trial, taps, engine)

    monkeypatch.setattr(trial, "open_forward", watched)
    extract(backbone, data, "3|gap", store=tmp_path, engine="fused", batch_size=16)
    extract(backbone, data, "5|gap", store=tmp_path, engine="eager")
    assert paths == ["fused", "fused"]


@pytest.mark.parametrize(("fused_s", "path"), [(0.5, "fused"), (2.0, "eager")])
def test_the_faster_path_is_taken_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused_s: float, path: str
):
    timed = []

    def seconds(forward, batch):
        timed.append(forward)
        return fused_s if forward.__module__ == fusion.__name__ else 1.0

    monkeypatch.setattr(trial, "_seconds", seconds)
    monkeypatch.setattr(trial, "WORTH_S", 5.0)
    extract(small_backbone(), images(64), TAPS, store=tmp_path, batch_size=4)
    assert engine_of(tmp_path)["path"] == path
    assert timed
    timed.clear()
    extract(small_backbone(seed=1), images(64), TAPS, store=tmp_path, batch_size=4)  # other weights
    assert not timed
    assert len(list(tmp_path.glob("trials/*.json"))) == 1


def test_a_remembered_decision_is_proven_for_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial, "_seconds", lambda one, _: 0.5 if one.__module__ == fusion.__name__ else 1.0)
    monkeypatch.setattr(trial, "WORTH_S", 5.0)
    extract(small_backbone(), images(64), TAPS, store=tmp_path / "one", batch_size=4)
    assert engine_of(tmp_path / "one")["path"] == "fused"
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "trials").rename(tmp_path / "two" / "trials")
    # These weights are not read right by it: the plain pass is taken, where the trial said fused.
    monkeypatch.setattr(trial, "TOLERANCE", 0.0)
    extract(small_backbone(seed=1), images(64), TAPS, store=tmp_path / "two", batch_size=4)
    assert engine_of(tmp_path / "two")["path"] == "eager"


def test_short_runs_are_not_worth_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial, "_proven", lambda *_: pytest.fail("traced"))
    extract(small_backbone(), images(64), TAPS, store=tmp_path, batch_size=4)
    assert engine_of(tmp_path)["path"] == "eager"


@pytest.mark.parametrize("wrong", [1 + 1e-4, float("nan")])
def test_a_pass_that_is_off_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float):
    def off(backbone, taps, batch, **precision):
        right = fusion.fuse(backbone, taps, batch)
        return lambda batch: {tap: value * wrong for tap, value in right(batch).items()}

    monkeypatch.setattr(trial, "fuse", off)
    monkeypatch.setattr(trial, "WORTH_S", 0.0)
    extract(small_backbone(), images(64), TAPS, store=tmp_path / "auto", batch_size=4)
    assert engine_of(tmp_path / "auto")["path"] == "eager"
    with pytest.raises(FusionImpossible, match="relative error"):
        extract(small_backbone(), images(), TAPS, store=tmp_path / "asked", engine="fused")
    assert not (tmp_path / "asked" / "features").exists()


def test_fusion_is_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    traced = []

    def counted(backbone, taps, batch, **precision):
        traced.append(taps)
        return fusion.fuse(backbone, taps, batch, **precision)

    monkeypatch.setattr(trial, "fuse", counted)
    monkeypatch.setattr(trial, "_seconds", lambda one, _: 0.5 if one.__module__ == fusion.__name__ else 1.0)
    monkeypatch.setattr(trial, "WORTH_S", 5.0)
    extract(small_backbone(), images(64), TAPS, store=tmp_path, batch_size=4)
    assert engine_of(tmp_path)["path"] == "fused"
    assert len(traced) == 1


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_bfloat16_states_what_it_costs(tmp_path: Path, engine: str):
    backbone, data = small_backbone(), images()
    exact = extract(backbone, data, TAPS, store=tmp_path, batch_size=50)
    narrow = extract(backbone, data, TAPS, store=tmp_path, precision="bfloat16", engine=engine, batch_size=50)
    for tap, features in narrow.items():
        expected = np.asarray(exact[tap].values)
        off = np.linalg.norm(np.asarray(features.values) - expected) / np.linalg.norm(expected)
        assert 1e-4 < off < 0.05
        assert features.facts["relative_error"] == pytest.approx(off, rel=1e-3)
        assert "relative_error" not in exact[tap].facts


def test_unknown_words_are_refused(tmp_path: Path):
    for setting in ({"precision": "int4"}, {"engine": "warp"}):
        with pytest.raises(InputError, match="among"):
            extract(small_backbone(), images(), "3", store=tmp_path, **setting)


RANKED = """
    import sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from probekit import extract
    from tests.features.conftest import images, small_backbone
    found = extract(small_backbone(), images(200), ["3|gap", "5|raw"], store=Path(sys.argv[1]), batch_size=4,
                    engine="fused")
    print(sorted(found))
"""


def ranked(folder: Path, number: int, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RANKED), str(folder)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        env=os.environ | {"RANK": str(number), "WORLD_SIZE": str(count)},
    )  # fmt: skip


def without_journals(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in everything(folder).items() if "journal" not in name}


@pytest.mark.slow
def test_any_number_of_ranks_leaves_the_same_bytes(tmp_path: Path):
    assert "5|raw" in ranked(tmp_path / "one", 0, 1).communicate()[0]
    side_by_side = [ranked(tmp_path / "three", number, 3) for number in range(3)]
    for process in side_by_side:
        process.communicate()
        assert process.returncode == 0
    assert without_journals(tmp_path / "one") == without_journals(tmp_path / "three")
    # A rank that was lost starts alone, and another number of ranks goes on.
    assert ranked(tmp_path / "lost", 1, 3).communicate()[0] == "[]\n"
    assert "5|raw" in ranked(tmp_path / "lost", 0, 1).communicate()[0]
    assert without_journals(tmp_path / "one") == without_journals(tmp_path / "lost")


def test_the_first_batch_is_the_first_for_every_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    backbone, data = small_backbone(), images()
    batch = first_batch(backbone, data, 8)
    pixels = np.stack([data.pixels(i, backbone.preprocessing) for i in range(8)])
    assert torch.equal(batch, backbone.prepare(torch.from_numpy(pixels)))
