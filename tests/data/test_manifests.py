from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.data.manifests import inside_zip, locate, read_columns, table_targets
from probekit.data.specs import parse_targets
from probekit.errors import DataError, ImageUnreadable, InputError

TABLE = {
    "file": ["1.png", "2.png", "3.png", "4.png"],
    "split": ["train", "train", "test", "test"],
    "breed": ["pug", "lab", "pug", "lab"],
    "age": ["10", "9", "10", "9"],
    "x": ["0.5", "1", "2e0", "-1"],
    "caption": ["one", "two", "three", "four"],
    "origin": ["web"] * 4,
    "label_tail": ["0", "1", "1", "0"],
    "label_ears": ["1", "1", "true", "False"],
}


def targets(words: str | None = None, **changes):
    return table_targets({**TABLE, **changes}, parse_targets(words))


def test_columns_become_targets_by_their_values(caplog):
    with caplog.at_level(logging.INFO):
        made = targets()
    assert list(made) == ["breed", "age", "x", "label"]
    assert made["breed"].classes == ("lab", "pug")
    assert made["age"].classes == ("9", "10")
    assert made["x"].kind == "continuous"
    assert made["x"].values[:, 0].tolist() == [0.5, 1.0, 2.0, -1.0]
    assert made["label"].classes == ("tail", "ears")
    assert made["label"].values.tolist() == [[False, True], [True, True], [True, True], [False, False]]
    assert "caption (all values differ), origin (one value)" in caplog.text


def test_lists_of_labels():
    made = targets(labels=["cat;dog", "", "dog", " dog ; cat ;"])["labels"]
    assert made.kind == "multilabel"
    assert made.classes == ("cat", "dog")
    assert made.values.tolist() == [[True, True], [False, False], [False, True], [True, True]]


def test_targets_are_chosen_in_order_and_kinds_forced():
    made = targets("age:continuous,breed,x+age:continuous,caption,label_tail+label_ears")
    assert [(name, one.kind) for name, one in made.items()] == [
        ("age", "continuous"),
        ("breed", "class"),
        ("x+age", "continuous"),
        ("caption", "class"),
        ("label_tail+label_ears", "multilabel"),
    ]
    assert made["x+age"].classes == ("x", "age")
    assert targets("label")["label"].classes == ("tail", "ears")
    assert targets("x:class")["x"].n_classes == 4
    assert targets("breed:multilabel")["breed"].classes == ("lab", "pug")


@pytest.mark.parametrize(
    ("words", "changes", "error", "said"),
    [
        ("bread", {}, InputError, "Near: breed"),
        ("breed+age:class", {}, InputError, "one column"),
        ("breed:continuous", {}, DataError, "'pug' in row 1, 4 such cells"),
        ("x+age:multilabel", {}, DataError, "0 or 1"),
        ("origin", {}, DataError, "at least 2 classes"),
        (None, {"x": ["0.5", "", "1", "2"]}, DataError, "1 empty cells, first in row 2"),
        (None, {"breed": ["pug", "", "pug", "lab"]}, DataError, "empty"),
        (None, {"x": ["0.5", "nan", "1", "2"]}, DataError, "NaN or infinite"),
    ],
)
def test_what_cannot_be_a_target_is_refused(words, changes, error, said):
    with pytest.raises(error, match=said):
        targets(words, **changes)


def test_table_without_targets_says_why():
    with pytest.raises(DataError, match=r"name \(all values differ\)"):
        table_targets({"file": ["a", "b"], "name": ["x", "y"]}, None)


@settings(deadline=None, max_examples=30)
@given(cells=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=8))
def test_floats_are_read_exactly(cells):
    made = table_targets({"x": [repr(cell) for cell in cells]}, parse_targets("x:continuous"))
    assert made["x"].values[:, 0].tolist() == cells


def test_csv_with_quotes_and_a_mark_at_its_start(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text('\ufefffile, breed\n"a, b.png",x\n\nc.png, y\n', encoding="utf-8")
    assert read_columns(path) == {"file": ["a, b.png", "c.png"], "breed": ["x", "y"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 rows"),
        ("file,breed\n", "1 rows"),
        ("file,breed\na.png\n", "1 in row 1"),
        ("file,file\na,b\n", "names that differ"),
        ('file\n"a\n', "comma-separated"),
    ],
)
def test_broken_csv_is_refused(tmp_path: Path, text, said):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_columns(path)


def test_parquet_reads_like_csv(tmp_path: Path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "a.parquet"
    frame = {"file": ["a", "b"], "n": [1, 2], "x": [1.0, None], "l": [["p", "q"], []], "t": [True, False]}
    pandas.DataFrame(frame).to_parquet(path)
    assert read_columns(path) == {
        "file": ["a", "b"],
        "n": ["1", "2"],
        "x": ["1.0", ""],
        "l": ["p;q", ""],
        "t": ["True", "False"],
    }
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="Parquet"):
        read_columns(path)


def test_files_are_found_beside_the_table_under_a_root_or_in_a_zip(tmp_path: Path):
    for name in ("a.png", "in/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("deep/a.png", "x")
        archive.writestr("deep/list.csv", "file,y\na.png,1\n")
    table = tmp_path / "list.csv"
    assert locate({"path": ["./a.png", "in/b.png"]}, table, None)[1] == ["a.png", "in/b.png"]
    assert locate({"file": ["b.png"]}, table, str(tmp_path / "in"))[1] == ["b.png"]
    assert locate({"file": ["deep/a.png"]}, table, str(tmp_path / "c.zip"))[1] == ["deep/a.png"]
    assert locate({"file": ["a.png"]}, table, str(tmp_path / "c.zip" / "deep"))[1] == ["deep/a.png"]
    inner = tmp_path / "c.zip" / "deep" / "list.csv"
    assert inside_zip(inner) == (tmp_path / "c.zip", "deep/list.csv")
    columns = read_columns(inner)
    assert locate(columns, inner, None)[1] == ["deep/a.png"]
    with pytest.raises(DataError, match=r"no\.csv"):
        read_columns(tmp_path / "c.zip" / "no.csv")


def test_missing_files_are_listed(tmp_path: Path):
    names = [f"{number}.png" for number in range(8)]
    with pytest.raises(ImageUnreadable, match=r"8 missing: '0.png', .*'4.png'\. "):
        locate({"file": names}, tmp_path / "list.csv", None)
    with pytest.raises(DataError, match="column 'file' or 'path'"):
        locate({"name": names}, tmp_path / "list.csv", None)
    with pytest.raises(DataError, match="root="):
        locate({"file": names}, tmp_path / "list.csv", str(tmp_path / "none"))
