"""Parts, journals and manifests of the feature store."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probekit.errors import NonFiniteFeatures, StoreDamaged
from probekit.features import store
from probekit.features.store import PartWriter, TapFolder, open_store

KEY = {"weights": "w", "index": "i"}
ENGINE = {"threads": 1, "batch_size": 4}
ROWS = np.arange(30, dtype=np.float32).reshape(10, 3)
IDS = np.array([f"image {i}" for i in range(10)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TapFolder:
    monkeypatch.setattr(store, "PART_BYTES", 4 * 3 * 4)  # one batch a part
    index = pd.DataFrame({"id": IDS, "split": "train"})
    place = open_store(tmp_path, KEY, ENGINE, index)
    tap = TapFolder.of(place, "layer1|gap", "float32")
    tap.declare({"tap": "layer1|gap", "axes": "N D", "shape": [3], "dtype": "float32"}, batch_size=4)
    return tap


def write(folder: TapFolder, stop: int = 10) -> None:
    with PartWriter(folder, 10) as writer:
        for start in range(0, stop, 4):
            if writer.wants(start):
                writer.append(start, ROWS[start : start + 4], IDS[start : start + 4])


def rows_done(folder: TapFolder) -> int:
    return sum(part.rows for part in folder.finished().values())


def test_rows_come_back_in_order(folder: TapFolder):
    write(folder)
    values = folder.values(10)
    assert values is not None
    assert len(values.parts) == 3
    assert (np.asarray(values) == ROWS).all()
    assert (values.take(np.array([9, 0, 5])) == ROWS[[9, 0, 5]]).all()
    assert [np.load(part.path).shape for part in values.parts] == [(4, 3), (4, 3), (2, 3)]


def test_an_interrupted_part_leaves_no_trace_and_is_written_again(folder: TapFolder):
    write(folder, stop=4)
    with pytest.raises(KeyboardInterrupt), PartWriter(folder, 10) as writer:
        writer.append(4, ROWS[4:6], IDS[4:6])
        raise KeyboardInterrupt
    assert folder.values(10) is None
    assert rows_done(folder) == 4
    write(folder)
    assert (np.asarray(folder.values(10)) == ROWS).all()
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "journal.jsonl",
        "part-00000.npy",
        "part-00001.npy",
        "part-00002.npy",
        "tap.json",
    ]


def test_a_part_without_its_journal_line_is_written_again(folder: TapFolder):
    write(folder)
    journal = folder.path / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))
    assert rows_done(folder) == 8
    write(folder)
    assert (np.asarray(folder.values(10)) == ROWS).all()


@pytest.mark.parametrize(
    ("before", "after"),
    [('"part"', '"pbrt"'), ('"start":4', '"start":"4"'), ('"part-00001.npy"', '"../part-00001.npy"')],
)
def test_a_journal_that_tells_of_no_part_is_named(folder: TapFolder, before: str, after: str):
    write(folder)
    journal = folder.path / "journal.jsonl"
    text = journal.read_text(encoding="utf-8")
    assert before in text
    journal.write_text(text.replace(before, after), encoding="utf-8")
    with pytest.raises(StoreDamaged, match=r"journal\.jsonl"):
        folder.values(10)


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damaged_parts_are_never_used(folder: TapFolder, damage: str):
    write(folder)
    part = folder.path / "part-00001.npy"
    data = bytearray(part.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        part.write_bytes(data)
        values = folder.values(10)
        assert values is not None
        with pytest.raises(StoreDamaged, match="part-00001"):
            np.asarray(values)
    else:
        part.unlink() if damage == "delete" else part.write_bytes(data[:-4])
        assert folder.values(10) is None
        assert sorted(folder.finished()) == [0, 8]


@pytest.mark.parametrize(("value", "named"), [(np.nan, "NaN"), (np.inf, "infinity"), (1e5, "overflow")])
def test_non_finite_rows_name_tap_and_image(tmp_path: Path, value: float, named: str):
    place = open_store(tmp_path, KEY, ENGINE, pd.DataFrame({"id": IDS, "split": "train"}))
    tap = TapFolder.of(place, "fc", "float16")
    tap.declare({"tap": "fc", "axes": "N D", "shape": [3], "dtype": "float16"}, batch_size=4)
    bad = ROWS[:4].copy()
    bad[2, 1] = value
    with pytest.raises(NonFiniteFeatures, match=f"{named}.*image 2"), PartWriter(tap, 10) as writer:
        writer.append(0, bad, IDS[:4])


def test_unknown_format_numbers_are_refused_by_name(folder: TapFolder):
    path = folder.path / "tap.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 7'))
    with pytest.raises(StoreDamaged, match="format 7"):
        folder.facts()


def test_a_directory_of_another_key_is_refused(tmp_path: Path):
    index = pd.DataFrame({"id": IDS, "split": "train"})
    place = open_store(tmp_path, KEY, ENGINE, index)
    manifest = place / "manifest.json"
    facts = json.loads(manifest.read_text().replace('"w"', '"v"'))
    manifest.write_text(json.dumps(facts))
    with pytest.raises(StoreDamaged, match=r"manifest\.json as it was written; got other content"):
        open_store(tmp_path, KEY, ENGINE, index)
    # As stores of earlier versions have it: without a digest.
    del facts["digest"]
    manifest.write_text(json.dumps(facts))
    with pytest.raises(StoreDamaged, match="another key"):
        open_store(tmp_path, KEY, ENGINE, index)


def test_part_length_does_not_depend_on_other_taps(folder: TapFolder):
    facts = folder.facts()
    assert facts is not None
    assert facts["part_rows"] == 4


@pytest.mark.parametrize(("width", "batches"), [(1, 16), (1000, 16), (10**5, 2), (10**9, 1)])
def test_parts_divide_a_chunk(tmp_path: Path, width: int, batches: int):
    tap = TapFolder.of(tmp_path, "wide", "float32")
    facts = tap.declare({"tap": "wide", "axes": "N D", "shape": [width], "dtype": "float32"}, batch_size=64)
    assert facts["part_rows"] == batches * 64
    assert store.CHUNK_BATCHES % batches == 0


def test_ranks_write_side_by_side_what_one_process_writes(folder: TapFolder, tmp_path: Path):
    write(folder)
    place = open_store(tmp_path / "ranks", KEY, ENGINE, pd.DataFrame({"id": IDS, "split": "train"}))
    shared = TapFolder.of(place, "layer1|gap", "float32")
    shared.declare({"tap": "layer1|gap", "axes": "N D", "shape": [3], "dtype": "float32"}, batch_size=4)
    for number, starts in ((1, [4]), (0, [0, 8])):
        with PartWriter(shared, 10, number) as writer:
            for start in starts:
                assert writer.wants(start)
                writer.append(start, ROWS[start : start + 4], IDS[start : start + 4])
        assert (shared.values(10) is None) == (number == 1)
    assert (np.asarray(shared.values(10)) == ROWS).all()
    for part in folder.path.glob("part-*.npy"):
        assert part.read_bytes() == (shared.path / part.name).read_bytes()
    assert {path.name for path in shared.path.glob("journal*")} == {"journal.jsonl", "journal-1.jsonl"}


def test_whoever_writes_the_manifest_first_decides(tmp_path: Path):
    index = pd.DataFrame({"id": IDS, "split": "train"})
    place = open_store(tmp_path, KEY, ENGINE, index)
    open_store(tmp_path, KEY, ENGINE | {"threads": 2}, index)
    assert store.read_facts(place / "manifest.json")["engine"]["threads"] == 1


def test_chosen_rows_come_from_their_parts_in_the_order_given(folder: TapFolder):
    write(folder)
    values = folder.values(10)
    assert values is not None
    rows = np.array([9, 0, 0, 5, 9, 3])
    assert (values.take(rows) == ROWS[rows]).all()
    assert values.take(np.array([], np.intp)).shape == (0, 3)
