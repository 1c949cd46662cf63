"""Result tables: written and read, narrowed, stacked."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from probekit.errors import InputError, SchemaMismatch
from probekit.results import storage
from probekit.results.fitted import Probe
from probekit.results.schema import SCHEMA
from probekit.results.table import ResultTable, attachment_keys

ROW = {
    "model": "a",
    "data": "set",
    "target": "y",
    "tap": "t",
    "metric": "accuracy",
    "value": 0.5,
    "run_id": "r1",
}


def small(run="r1", **changes):
    row = {**ROW, "run_id": run, **changes}
    return ResultTable.from_rows([row], {"run_id": run, "models": {row["model"]: {"weights": "11"}}})


class TestWriting:
    def test_a_table_comes_back_bit_for_bit(self, table, tmp_path):
        table.write(tmp_path)
        again = ResultTable.read(tmp_path)
        pd.testing.assert_frame_equal(again.frame, table.frame, check_exact=True)
        assert again.provenance == table.provenance
        assert set(again.attachments) == set(table.attachments)
        key = (
            "scores/flowers/moco/layer4.2_gap-"
            + next(iter(again.attachments)).split("_gap-")[1][:8]
            + "/species.parquet"
        )
        key = next(
            one for one in again.attachments if one.startswith("scores/flowers/moco") and "species" in one
        )
        pd.testing.assert_frame_equal(again.attachments[key], table.attachments[key])

    def test_every_kind_of_attachment_survives(self, tmp_path):
        held = {
            "a/frame.parquet": pd.DataFrame({"id": ["x", "y"], "v": [0.5, 1.5]}),
            "a/arrays.npz": {"w": np.arange(3), "names": np.array(["é", "b"])},
            "map.npy": np.eye(2, dtype=np.float32),
            "p.png": b"\x89PNG",
            "s.svg": b"<svg/>",
            "j.json": {"k": [1, None]},
        }
        ResultTable(small().frame, {}, held).write(tmp_path)
        read = ResultTable.read(tmp_path).attachments
        pd.testing.assert_frame_equal(read["a/frame.parquet"], held["a/frame.parquet"])
        assert read["a/arrays.npz"]["names"].tolist() == ["é", "b"]
        assert read["map.npy"].dtype == np.float32
        assert (read["p.png"], read["s.svg"], read["j.json"]) == (b"\x89PNG", b"<svg/>", {"k": [1, None]})

    def test_equal_tables_have_equal_bytes(self, table, tmp_path):
        for name in ("one", "two"):
            ResultTable(table.frame, table.provenance, dict(list(table.attachments.items())[:4])).write(
                tmp_path / name
            )
        files = sorted(
            path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()
        )
        assert len(files) == 7
        for name in files:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name

    def test_a_read_table_can_be_written_again_over_itself(self, table, tmp_path):
        part = ResultTable(table.frame, table.provenance, dict(list(table.attachments.items())[:4]))
        part.write(tmp_path)
        ResultTable.read(tmp_path).write(tmp_path)
        assert len(dict(ResultTable.read(tmp_path).attachments)) == 4

    def test_the_csv_holds_all_rows_and_columns(self, table, tmp_path):
        ResultTable(table.frame).write(tmp_path)
        read = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
        assert list(read.columns) == list(SCHEMA)
        assert len(read) == len(table)
        assert table.to_csv() == (tmp_path / "table.csv").read_text()

    def test_the_text_of_a_large_table_is_compressed(self, table, tmp_path, monkeypatch):
        ResultTable(table.frame).write(tmp_path)
        monkeypatch.setattr(storage, "MOST_PLAIN_BYTES", 100)
        ResultTable(table.frame).write(tmp_path)
        assert not (tmp_path / "table.csv").exists()
        read = pd.read_csv(tmp_path / "table.csv.gz", keep_default_na=False)
        assert len(read) == len(table)
        assert gzip.decompress((tmp_path / "table.csv.gz").read_bytes()).decode() == table.to_csv()
        first = (tmp_path / "table.csv.gz").read_bytes()
        again = ResultTable.read(tmp_path)
        again.write(tmp_path / "again")
        assert (tmp_path / "again" / "table.csv.gz").read_bytes() == first
        assert dict(again.attachments) == {}
        monkeypatch.undo()
        again.write(tmp_path)
        assert not (tmp_path / "table.csv.gz").exists()

    @pytest.mark.parametrize(
        "key", ["/abs.npy", "../up.npy", "a//b.npy", "a.txt", "table.parquet", "a\\b.npy", "noending"]
    )
    def test_keys_that_could_leave_the_folder_are_refused(self, key, tmp_path):
        with pytest.raises(InputError, match="attachment"):
            ResultTable(small().frame, {}, {key: np.zeros(1)}).write(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_values_that_do_not_fit_their_suffix_are_named(self, tmp_path):
        with pytest.raises(InputError, match=r"'a.parquet'.*list"):
            ResultTable(small().frame, {}, {"a.parquet": [1]}).write(tmp_path)
        with pytest.raises(InputError, match=r"'a.npz'"):
            ResultTable(small().frame, {}, {"a.npz": {"o": np.array([{}], dtype=object)}}).write(tmp_path)


class TestReading:
    def test_missing_damaged_and_foreign_folders_are_told_apart(self, table, tmp_path):
        with pytest.raises(InputError, match="nothing there"):
            ResultTable.read(tmp_path / "absent")
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(InputError, match="notes.txt"):
            ResultTable.read(tmp_path)
        part = ResultTable(table.frame, {}, {"m.npy": np.zeros(3), "n.npy": np.ones(3)})
        part.write(tmp_path)
        (tmp_path / "m.npy").write_bytes(b"other")
        (tmp_path / "n.npy").unlink()
        read = ResultTable.read(tmp_path)
        with pytest.raises(InputError, match="other content"):
            read.attachments["m.npy"]
        with pytest.raises(InputError, match="nothing there"):
            read.attachments["n.npy"]
        whole = (tmp_path / "table.parquet").read_bytes()
        (tmp_path / "table.parquet").write_bytes(whole[:-1])
        with pytest.raises(InputError, match="table.parquet"):
            ResultTable.read(tmp_path)
        (tmp_path / "table.parquet").unlink()
        with pytest.raises(InputError, match="nothing there"):
            ResultTable.read(tmp_path)

    @pytest.mark.parametrize(("key", "value"), [("format", 2), ("schema_version", 99)])
    def test_other_formats_are_refused(self, key, value, tmp_path):
        small().write(tmp_path)
        stored = json.loads((tmp_path / "provenance.json").read_text())
        (tmp_path / "provenance.json").write_text(json.dumps({**stored, key: value}))
        with pytest.raises(SchemaMismatch, match=str(value)):
            ResultTable.read(tmp_path)

    def test_a_provenance_that_points_outside_is_refused(self, tmp_path):
        small().write(tmp_path)
        stored = json.loads((tmp_path / "provenance.json").read_text())
        stored["files"]["../secret.json"] = "0" * 64
        (tmp_path / "provenance.json").write_text(json.dumps(stored))
        with pytest.raises(InputError, match="relative path"):
            ResultTable.read(tmp_path)

    def test_broken_json_is_named(self, tmp_path):
        (tmp_path / "provenance.json").write_text("{")
        with pytest.raises(InputError, match="valid JSON"):
            ResultTable.read(tmp_path)
        (tmp_path / "provenance.json").write_text("[]")
        with pytest.raises(InputError, match="other JSON"):
            ResultTable.read(tmp_path)


class TestSelecting:
    def test_where_takes_values_lists_and_none(self, table):
        assert table.where(model="moco", metric="r2").models == ["moco"]
        assert table.where(model=["moco", "exemplar"]).models == ["moco", "exemplar"]
        assert len(table.where(d=None)) == 0
        assert len(table.where(split=None)) == 0
        assert len(table.where(d=2048)) == len(table.frame[table.frame["d"] == 2048])
        with pytest.raises(InputError, match="model"):
            table.where(modle="x")

    def test_where_keeps_provenance_and_attachments(self, table):
        part = table.where(model="moco")
        assert part.provenance == table.provenance
        assert part.attachments is table.attachments

    def test_controls_are_found_by_provenance_and_else_by_name(self, table):
        assert table.controls == ["random@0", "random@1", "random@2"]
        assert table.trained == ["supervised", "moco", "exemplar"]
        bare = ResultTable(table.frame)
        assert bare.controls == table.controls
        named = ResultTable.from_rows([ROW], {"models": {"a": {"random_init": True}}})
        assert named.controls == ["a"]

    def test_probes_and_scores_hang_on_their_rows(self, table):
        probe = table.probe("moco", "layer4.2|gap", "species")
        assert isinstance(probe, Probe)
        assert (probe.tap, probe.target) == ("layer4.2|gap", "species")
        scores = table.scores("moco", "layer4.2|gap", "species")
        row = table.where(model="moco", tap="layer4.2|gap", metric="accuracy").frame
        assert scores["accuracy"].mean() == pytest.approx(row["value"].iloc[0], abs=1e-12)
        with pytest.raises(InputError, match=r"layer4.9.*layer4.2"):
            table.probe("moco", "layer4.9|gap", "species")
        with pytest.raises(InputError, match="attachment"):
            ResultTable(table.frame).probe("moco", "layer4.2|gap", "species")

    def test_attachments_without_the_data_set_in_their_path_are_found_too(self):
        key = attachment_keys("probes", ".npz", "r1", "set", "a", "t", "y")[-1]
        assert key == "probes/a/t/y.npz"
        probe = Probe(
            np.ones((1, 1)), np.zeros(1), np.zeros(1), np.ones(1), [True], ("y",), "continuous", "t", 1, "y"
        )
        table = ResultTable(small().frame, {}, {key: probe.to_arrays()})
        assert table.probe("a", "t", "y").target == "y"

    def test_two_data_sets_with_one_target_must_be_told_apart(self):
        both = ResultTable.concat([small(), small(data="other")])
        with pytest.raises(InputError, match=r"set, other.*data="):
            both.scores("a", "t", "y")


class TestStacking:
    def test_rows_attachments_and_shared_facts_are_kept(self):
        one = ResultTable(
            small().frame, {"run_id": "r1", "seed": 0, "models": {"a": {"weights": "1"}}}, {"x.json": 1}
        )
        two = ResultTable(
            small("r2", model="b").frame,
            {"run_id": "r2", "seed": 0, "models": {"b": {"weights": "2"}}},
            {"y.json": 2},
        )
        both = ResultTable.concat([one, two])
        assert both.models == ["a", "b"]
        assert both.provenance["seed"] == 0
        assert list(both.provenance["models"]) == ["a", "b"]
        assert [run["run_id"] for run in both.provenance["runs"]] == ["r1", "r2"]
        assert both.attachments == {"x.json": 1, "y.json": 2}

    def test_one_name_for_two_weights_is_refused(self):
        other = ResultTable(small("r2").frame, {"models": {"a": {"weights": "22"}}})
        with pytest.raises(InputError, match=r"'a'.*11 and 22"):
            ResultTable.concat([small(), other])

    def test_colliding_attachments_of_two_runs_are_both_found(self):
        key = "scores/a/t/y.parquet"
        tables = [
            ResultTable(
                small(run, model="a", tap="t").frame, {"run_id": run}, {key: pd.DataFrame({"run": [run]})}
            )
            for run in ("r1", "r2")
        ]
        both = ResultTable.concat(tables)
        assert both.where(run_id="r1").scores("a", "t", "y")["run"].tolist() == ["r1"]
        assert both.where(run_id="r2").scores("a", "t", "y")["run"].tolist() == ["r2"]

    def test_parts_of_one_table_can_be_put_together_again(self, table):
        parts = [table.where(model=name) for name in table.models]
        whole = ResultTable.concat(parts)
        assert len(whole) == len(table)
        assert whole.attachments.keys() == table.attachments.keys()
        assert whole.provenance == table.provenance

    def test_nothing_cannot_be_stacked_but_empty_tables_can(self):
        with pytest.raises(InputError, match="at least one table"):
            ResultTable.concat([])
        assert len(ResultTable.concat([ResultTable.from_rows([]), ResultTable.from_rows([])])) == 0


def test_the_constructor_gives_columns_their_order_and_type(table):
    loose = table.frame.assign(analysis="again", pretrain_seed=None, trial_seed=3)[list(SCHEMA)[::-1]]
    made = ResultTable(loose).frame
    assert {name: str(dtype) for name, dtype in made.dtypes.items()} == SCHEMA
    assert made["trial_seed"].tolist() == [3] * len(made)
    with pytest.raises(SchemaMismatch, match="'extra'"):
        ResultTable(table.frame.assign(extra=1))
