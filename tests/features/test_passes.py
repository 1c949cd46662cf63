"""A store of the fused pass takes every tap that comes later, and every byte stays what it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from probekit import extract
from probekit.errors import FusionImpossible
from probekit.features import extraction, fusion, trial
from probekit.features.streaming import read_batches
from tests.features.conftest import images, small_backbone
from tests.features.test_extraction import everything


@pytest.fixture
def off_at_five(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fusion that is wrong at module 5, by more than rounding."""

    def off(backbone, taps, batch, **precision):
        right = fusion.fuse(backbone, taps, batch, **precision)
        return lambda batch: {
            tap: value * (1.001 if tap.path == "5" else 1) for tap, value in right(batch).items()
        }

    monkeypatch.setattr(trial, "fuse", off)


def passes_of(folder: Path) -> dict[str, dict]:
    files = [json.loads(path.read_text()) for path in folder.glob("features/*/*/tap.json")]
    return {facts["tap"]: facts.get("pass") for facts in files}


@pytest.mark.usefixtures("off_at_five")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_later_tap_that_cannot_be_fused_is_read_plainly(tmp_path: Path, precision: str):
    backbone, data = small_backbone(), images()
    asked = {"precision": precision, "batch_size": 16}
    first = extract(backbone, data, "3|gap", store=tmp_path / "one", engine="fused", **asked)
    before = everything(tmp_path / "one")
    later = extract(backbone, data, ["3|gap", "5|gap"], store=tmp_path / "one", precision=precision)
    plain = extract(backbone, data, "5|gap", store=tmp_path / "two", engine="eager", **asked)
    np.testing.assert_array_equal(later["5|gap"].matrix(), plain["5|gap"].matrix())
    np.testing.assert_array_equal(later["3|gap"].matrix(), first["3|gap"].matrix())
    assert later["5|gap"].facts == plain["5|gap"].facts  # what bfloat16 costs is measured on that pass
    assert [later[tap].provenance["engine"]["path"] for tap in ("3|gap", "5|gap")] == ["fused", "eager"]
    assert passes_of(tmp_path / "one") == {
        "3|gap": {"path": "fused", "taps": ["3|gap"]},
        "5|gap": {"path": "eager", "taps": ["5|gap"]},
    }
    after = everything(tmp_path / "one")
    assert {name: after[name] for name in before} == before


@pytest.mark.usefixtures("off_at_five")
def test_fused_in_so_many_words_is_still_refused(tmp_path: Path):
    backbone, data = small_backbone(), images()
    extract(backbone, data, "3|gap", store=tmp_path, engine="fused")
    before = everything(tmp_path)
    with pytest.raises(FusionImpossible, match="at 5"):
        extract(backbone, data, "5|gap", store=tmp_path, engine="fused")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("path", ["fused", "eager"])
def test_what_is_written_down_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str):
    backbone, data = small_backbone(), images()
    extract(backbone, data, "3|gap", store=tmp_path, engine="fused", batch_size=16)
    if path == "eager":
        with monkeypatch.context() as patch:
            patch.setattr(trial, "TOLERANCE", 0.0)
            expected = extract(backbone, data, "5|gap", store=tmp_path)["5|gap"].matrix().copy()
    else:
        expected = extract(backbone, data, "5|gap", store=tmp_path)["5|gap"].matrix().copy()
    assert passes_of(tmp_path)["5|gap"]["path"] == path
    for part in tmp_path.glob("features/*/5*/part-*.npy"):
        part.unlink()
    if path == "fused":
        # A machine that cannot do what is written down refuses.
        with monkeypatch.context() as patch, pytest.raises(FusionImpossible):
            patch.setattr(trial, "TOLERANCE", 0.0)
            extract(backbone, data, "5|gap", store=tmp_path)
    np.testing.assert_array_equal(
        extract(backbone, data, "5|gap", store=tmp_path)["5|gap"].matrix(), expected
    )


@pytest.mark.parametrize("tap", ["0|gap", "3|gap"])
def test_taps_that_were_read_together_are_finished_together(tmp_path: Path, tap: str):
    backbone, data, taps = small_backbone(), images(), ["0|gap", "3|gap"]
    # Reading the convolution keeps batch norm from being folded into it, which tap 3 sees in its last bits.
    alone = extract(backbone, data, "3|gap", store=tmp_path / "alone", engine="fused", batch_size=16)
    whole = extract(backbone, data, taps, store=tmp_path / "whole", engine="fused", batch_size=16)
    assert not np.array_equal(alone["3|gap"].matrix(), whole["3|gap"].matrix())
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (lost,) = (tmp_path / "killed").glob(f"features/*/{tap[0]}*")
    shutil.rmtree(lost)
    extract(backbone, data, taps, store=tmp_path / "killed")
    assert everything(tmp_path / "whole") == everything(tmp_path / "killed")


def test_an_interrupted_tap_goes_on_beside_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone, data = small_backbone(), images(200)
    whole = extract(backbone, data, ["0|gap", "3|gap"], store=tmp_path / "one", engine="fused", batch_size=4)

    def interrupted(*args, **settings):
        for place, batch in enumerate(read_batches(*args, **settings)):
            if place == 20:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extraction, "read_batches", interrupted)
        extract(backbone, data, ["0|gap", "3|gap"], store=tmp_path / "two", engine="fused", batch_size=4)
    found = extract(backbone, data, ["3|gap", "5|gap"], store=tmp_path / "two")
    np.testing.assert_array_equal(found["3|gap"].matrix(), whole["3|gap"].matrix())
    assert passes_of(tmp_path / "two") == {
        "0|gap": {"path": "fused", "taps": ["0|gap", "3|gap"]},
        "3|gap": {"path": "fused", "taps": ["0|gap", "3|gap"]},
        "5|gap": {"path": "fused", "taps": ["5|gap"]},
    }
