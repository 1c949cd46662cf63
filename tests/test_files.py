"""Atomic writes, journals and digests."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import InputError
from probekit.files import (
    CHUNK_BYTES,
    append_line,
    cache_folder,
    canonical_json,
    digest_bytes,
    digest_file,
    file_identity,
    read_json,
    read_lines,
    replacing,
    safe_name,
    write_json,
)


def test_replacing_leaves_the_old_file_after_an_error(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("size", [0, 10, CHUNK_BYTES + 10])
def test_a_file_that_holds_the_same_is_left_alone(tmp_path: Path, size: int):
    path = tmp_path / "a"
    path.write_bytes(bytes(size))
    number = path.stat().st_ino
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(size))
    assert path.stat().st_ino == number
    assert list(tmp_path.iterdir()) == [path]
    for content in (bytes(size) + b"1", bytes(max(size - 1, 0)) + b"1"):
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        assert path.read_bytes() == content


def test_journal_survives_a_torn_last_line(tmp_path: Path):
    journal = tmp_path / "journal.jsonl"
    append_line(journal, {"part": 0})
    append_line(journal, {"part": 1})
    with journal.open("a") as torn:
        torn.write('{"part": 2, "ro')
    assert read_lines(journal) == [{"part": 0}, {"part": 1}]
    append_line(journal, {"part": 2})
    assert read_lines(journal) == [{"part": 0}, {"part": 1}, {"part": 2}]


def test_journal_damaged_in_the_middle_is_refused(tmp_path: Path):
    journal = tmp_path / "journal.jsonl"
    journal.write_text('{"part": 0}\n{"par\n{"part": 2}\n')
    with pytest.raises(InputError, match="line 2"):
        read_lines(journal)


def test_read_json_names_the_damaged_file(tmp_path: Path):
    path = tmp_path / "manifest.json"
    write_json(path, {"a": 1})
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(InputError, match="manifest.json"):
        read_json(path)


def test_canonical_json_refuses_nan():
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"value": float("nan")})


def test_digest_file_is_that_of_its_bytes(tmp_path: Path):
    path = tmp_path / "a.bin"
    data = bytes(range(256)) * 5000
    path.write_bytes(data)
    assert digest_file(path) == digest_bytes(data)


def test_file_identity_changes_when_a_file_is_replaced(tmp_path: Path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    before = file_identity(path)
    with replacing(path) as temporary:
        temporary.write_bytes(b"two")
    assert file_identity(path) != before


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PROBEKIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PROBEKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "probekit"


@given(st.text(max_size=120), st.text(max_size=120))
@settings(deadline=None, max_examples=200)
def test_safe_names_stay_in_one_folder_and_differ(one: str, other: str):
    name = safe_name(one)
    assert name
    assert "/" not in name
    assert "\\" not in name
    assert name not in {".", ".."}
    assert not name.startswith(".")
    if one != other:
        assert name != safe_name(other)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
@settings(deadline=None, max_examples=50)
def test_canonical_json_reads_back(value: object):
    assert json.loads(canonical_json(value)) == value
