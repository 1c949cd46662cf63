"""The verb: models, controls, targets, provenance, repeats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import probekit
from probekit.errors import DataError, InputError
from probekit.features import comparison
from probekit.features.comparison import list_entries
from probekit.probes import sweep
from probekit.probes.sweep import choose_targets
from tests.features.conftest import images, small_backbone

QUICK = {
    "permutations": 2,
    "bootstrap_draws": 100,
    "neighbours": 3,
    "shots": (2,),
    "few_shot_draws": 2,
    "penalties": (1.0, 0.1),
}


def names(entries) -> list[str]:
    return [one.name for one in entries]


def test_each_architecture_brings_its_controls():
    one = list_entries(["a=resnet18:x.pth", "b=resnet18:y.pth"], 2)
    assert names(one) == ["a", "b", "random@0", "random@1"]
    two = list_entries(["a=resnet18:x.pth", "b=resnet50:y.pth,branch=ema"], 1)
    assert names(two) == ["a", "b", "resnet18:random@0", "resnet50:random@0"]
    assert two[3].model.checkpoint == "random@0"
    assert "branch" not in two[3].model.keys
    sized = list_entries(["a=resnet18:x.pth,size=96", "b=resnet18:x.pth"], 1)
    assert names(sized) == ["a", "b", "a:random@0", "b:random@0"]
    assert names(list_entries("resnet18:x.pth", 0)) == ["resnet18"]


def test_two_models_of_one_name_are_refused():
    with pytest.raises(InputError, match="'resnet18' twice"):
        list_entries(["resnet18:x.pth", "resnet18:y.pth"], 0)


def test_targets_are_found_in_any_of_the_data_sets():
    data = [images(name="one"), images(name="two")]
    assert choose_targets(data, None) == {"one": ["class"], "two": ["class"]}
    with pytest.raises(InputError, match="nearest are class"):
        choose_targets(data, ["clas"])


def test_missing_splits_are_found_before_any_image_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def read(*_: object, **__: object) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr(comparison, "extract", read)
    with pytest.raises(DataError, match="'test'"):
        probekit.probe(
            small_backbone(), images().split("train"), taps=["3"], random=0, store=tmp_path, **QUICK
        )


def test_a_table_says_what_made_it(tmp_path: Path):
    table = probekit.probe(small_backbone(), images(), taps=["3", "5"], random=2, store=tmp_path, **QUICK)
    made = table.provenance
    assert made["settings"]["taps"] == ["3", "5"]
    assert made["settings"]["models"][0]["live"] == "backbone"
    assert set(made["models"]) == {"small", "random@0", "random@1"}
    assert made["models"]["random@0"]["control_of"] == "small"
    assert made["data"]["small"]["n"] == {"train": 40, "val": 0, "test": 10}
    assert table.controls == ["random@0", "random@1"]
    assert len(set(table.frame["weights"])) == 3
    again = probekit.probe(small_backbone(), images(), taps=["3", "5"], random=2, store=tmp_path, **QUICK)
    assert again.frame.equals(table.frame)
    assert again.provenance["run_id"] == made["run_id"]


def test_finished_cells_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    original = sweep._probe_tap

    def counted(features, **rest):
        calls.append(features.tap)
        return original(features, **rest)

    monkeypatch.setattr(sweep, "_probe_tap", counted)
    settings = {"random": 0, "store": tmp_path, "equal_d": False, **QUICK}
    probekit.probe(small_backbone(), images(), taps=["3"], **settings)
    probekit.probe(small_backbone(), images(), taps=["3", "5"], **settings)
    probekit.probe(small_backbone(), images(), taps=["5"], **(settings | {"seed": 1}))
    assert calls == ["3|gap", "5|gap", "5|gap"]


def test_attached_scores_and_probes_belong_to_their_rows(tmp_path: Path):
    data, backbone = images(80), small_backbone()
    table = probekit.probe(backbone, data, taps=["3"], random=0, store=tmp_path, **QUICK)
    scores = table.scores("small", "3|gap", "class")
    value = table.where(metric="accuracy").frame["value"].iloc[0]
    assert scores["accuracy"].mean() == pytest.approx(value)
    features = probekit.extract(backbone, data, ["3"], store=tmp_path)["3|gap"]
    test = features.rows("test")
    assert list(scores["id"]) == list(data.ids[test])
    predicted = table.probe("small", "3|gap", "class").predict(features.matrix(test))
    np.testing.assert_array_equal(predicted, scores["prediction"])


@pytest.mark.slow
def test_cells_side_by_side_give_the_same_bits(tmp_path: Path):
    settings = {"random": 0, **QUICK}
    one = probekit.probe(
        small_backbone(), images(), taps=["3", "5"], store=tmp_path / "one", jobs=1, **settings
    )
    two = probekit.probe(
        small_backbone(), images(), taps=["3", "5"], store=tmp_path / "two", jobs=2, **settings
    )
    assert one.frame.equals(two.frame)


def test_ranks_are_sent_to_extract(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="torchrun"):
        probekit.probe("resnet10t:random,size=32", "digits,limit=20")
