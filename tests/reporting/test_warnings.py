"""Cautions: each appears exactly where its reason stands in the table."""

from __future__ import annotations

import copy
import json

import pytest

from probekit.reporting.warnings import SEVERITIES, list_cautions
from probekit.results.table import ResultTable


def clean(table, **facts):
    """Change a table until nothing is left to mind, then add what the test is about."""
    provenance = copy.deepcopy(dict(table.provenance))
    provenance["data"]["flowers"] |= {"seen_in_pretraining": "no", "skipped": 0}
    provenance["level_shares"] = {}
    frame = table.frame.copy()
    frame["d"] = frame["d"].where(frame["d"].isna(), 100).astype("Int64")
    # Two checkpoints behind one name make two seeds.
    frame.loc[frame["tap"] == "layer1.0|gap", "pretrain_seed"] = 1
    frame.loc[frame["tap"] != "layer1.0|gap", "pretrain_seed"] = 2
    return ResultTable(frame, provenance | facts)


def texts(table):
    return [text for _, text in list_cautions(table)]


def with_params(table, **changed):
    changes = [
        json.dumps(json.loads(text) | changed, sort_keys=True, separators=(",", ":"))
        for text in table.frame["params"]
    ]
    return ResultTable(table.frame.assign(params=changes), table.provenance)


def only(table, words):
    found = [text for text in texts(table) if words in text]
    assert len(found) == 1, texts(table)
    return found[0]


def test_a_sound_table_has_none(table):
    assert list_cautions(clean(table)) == []


def test_a_realistic_one_has_its_limits_listed_most_serious_first(table):
    found = list_cautions(table)
    order = [SEVERITIES.index(severity) for severity, _ in found]
    assert order == sorted(order)
    assert len(found) == 5


def test_few_test_images(table, make_table):
    small = clean(make_table(n_test=60))
    assert only(small, "only 60 images").startswith("species, angle_deg, size_px: ")
    assert "rarest class has" in only(small, "rarest class")


def test_data_sets_with_one_target_name_are_told_apart(table, make_table):
    birds = make_table(n_test=60)
    both = ResultTable.concat([ResultTable(table.frame), ResultTable(birds.frame.assign(data="birds"))])
    assert only(both, "only 60 images").startswith("species (birds), angle_deg (birds), size_px (birds): ")


def test_images_per_class_without_counts_of_their_own(table):
    frame = clean(table).frame
    few = frame[frame["metric"] != "class_recall"].assign(n_classes=50)
    assert "has 8 images" in only(ResultTable(few, clean(table).provenance), "rarest class")


def test_fewer_fitting_images_than_ten_per_feature(table):
    frame = clean(table).frame
    wide = frame.copy()
    wide.loc[wide["tap"] == "layer4.2|gap", "d"] = 161
    text = only(ResultTable(wide, clean(table).provenance), "fitting images per feature")
    assert "at 1 of 8 taps (1600 images, D up to 161)" in text
    wide.loc[wide["tap"] == "layer4.2|gap", "d"] = 160
    assert texts(ResultTable(wide, clean(table).provenance)) == []


@pytest.mark.parametrize(("edge", "words"), [("low", "weakest"), ("high", "strongest")])
def test_penalties_at_the_edge_of_the_grid(table, edge, words):
    assert "72 of 72" in only(with_params(clean(table), penalty_edge=edge), words)


def test_probes_that_did_not_converge_are_serious(table):
    found = list_cautions(with_params(clean(table), converged=False))
    assert found[0].severity == "serious"
    assert "did not reach" in found[0].text


def test_unequal_preprocessing_and_input_size(table):
    provenance = copy.deepcopy(dict(clean(table).provenance))
    usual = provenance["models"]["moco"]["preprocessing"]
    provenance["models"]["moco"]["preprocessing"] = usual | {"size": 448, "std": [0.5, 0.5, 0.5]}
    table = ResultTable(clean(table).frame, provenance)
    assert "moco: 448 px" in only(table, "input size")
    assert "0.5/0.5/0.5" in only(table, "in preprocessing")
    provenance["models"]["moco"]["preprocessing"] = usual
    provenance["models"]["random@0"]["preprocessing"] = {"size": 1}
    assert texts(ResultTable(table.frame, provenance)) == []


@pytest.mark.parametrize(("seen", "severity"), [("yes", "serious"), ("unknown", "note")])
def test_images_seen_in_pretraining(table, seen, severity):
    provenance = copy.deepcopy(dict(clean(table).provenance))
    provenance["data"]["flowers"]["seen_in_pretraining"] = seen
    (found,) = list_cautions(
        ResultTable(table.where().frame.assign(d=None, pretrain_seed=range(len(table))), provenance)
    )
    assert found.severity == severity
    assert "flowers" in found.text


def test_one_checkpoint_is_one_seed(table):
    frame = clean(table).frame.assign(pretrain_seed=None)
    only(ResultTable(frame, clean(table).provenance), "Indicative")
    assert texts(ResultTable(frame, clean(table).provenance).where(model="moco")) != texts(ResultTable(frame))
    assert not any("Indicative" in text for text in texts(ResultTable(frame).where(model="moco")))


def test_skipped_images_statuses_and_provenance_warnings(table):
    provenance = copy.deepcopy(dict(clean(table).provenance))
    provenance["data"]["flowers"]["skipped"] = 1
    provenance["warnings"] = ["two checkpoints share a file"]
    frame = clean(table).frame
    dead = (frame["model"] == "random@0") & (frame["tap"] == "layer4.2|gap") & (frame["metric"] == "accuracy")
    frame.loc[dead, ["value", "ci_low", "ci_high"]] = float("nan")
    frame.loc[dead, "status"] = "dead at initialisation"
    made = ResultTable(frame, provenance)
    assert "left out 1 image that" in only(made, "could not be read")
    assert only(made, "two checkpoints")
    assert "1 values of accuracy are undefined: dead at initialisation (random@0 at layer4.2|gap)" in only(
        made, "dead"
    )


def test_taps_chosen_on_test(table):
    blind = clean(table).frame.assign(params="{}")
    assert "optimistic" in only(ResultTable(blind, clean(table).provenance), "accuracy: no val scores")


def test_missing_controls(table):
    bare = clean(table).where(model=table.trained)
    assert only(bare, "No random-init control")


def test_level_shares_stand_beside_level_statements(table):
    shares = {
        "supervised": {"high": {"parameters": 0.64, "flops": 0.2}, "low": {"parameters": 0.01, "flops": None}}
    }
    made = clean(table, level_shares=shares)
    assert "low 1 % and ?, high 64 % and 20 %" in only(made, "Shares of parameters")
    assert texts(ResultTable(made.frame.assign(level=""), made.provenance)) == []


def test_tables_of_other_kinds_and_empty_ones_pass(table):
    assert list_cautions(ResultTable.from_rows([])) == []
    other = ResultTable.from_rows([{"model": "a", "metric": "effective_rank", "value": 12.0}])
    assert list_cautions(other) == []
    assert list_cautions(table.compare(target="species", metric="accuracy", baseline="moco", draws=100))
