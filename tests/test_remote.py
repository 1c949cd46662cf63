"""What stands for a URL here; finished folders, tables and pages on object storage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit import ResultTable
from probekit.errors import InputError, RemoteUnreachable, StoreDamaged
from probekit.files import making_folder
from probekit.grid import run_cells
from probekit.plan import Plan
from probekit.remote import (
    address_of,
    fetch,
    fetch_whole,
    listing,
    local_folder,
    read_small,
    send,
    settle,
    share_folders,
    store_folder,
)
from probekit.running import execute, redraw

fsspec = pytest.importorskip("fsspec", reason="object storage needs the extra [remote]")
URL = "memory://bucket/place"


@pytest.fixture(autouse=True)
def memory() -> Iterator[Any]:
    """An empty storage in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to a machine that has seen nothing."""
    monkeypatch.setenv("PROBEKIT_CACHE", str(tmp_path / "elsewhere"))


def noting_what_is_sent(
    monkeypatch: pytest.MonkeyPatch, memory: Any, before_it_breaks: int | None = None
) -> list[str]:
    """Note the names of what is sent; the network breaks after so many."""
    sent: list[str] = []
    original = type(memory).put_file

    def put_file(self: Any, here: str, name: str, **settings: Any) -> None:
        if len(sent) == before_it_breaks:
            raise OSError("no network")
        sent.append(name)
        original(self, here, name, **settings)

    monkeypatch.setattr(type(memory), "put_file", put_file)
    return sent


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "url",
    ["s3://bucket", "s3://bucket/a/b c", "gs://b/x%3A", "file:///tmp/x", "memory://a/b", "abfs://c@d/e"],
)
def test_a_path_tells_its_url(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("probekit.remote._open", lambda address: (None, address))
    assert address_of(local_folder(url)) == url
    assert address_of(local_folder(f"{url}/") / "c.json") == f"{url}/c.json"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere://bucket/a", "fsspec knows"),
        ("s3://", "a URL such as"),
        ("simplecache::s3://bucket", "a URL such as"),
        ("memory://bucket/../a", "a URL such as"),
        (Path("s3://bucket/a"), "a URL as text"),
    ],
)
def test_what_is_no_url_is_refused(place: str | Path, said: str):
    with pytest.raises(InputError, match=said):
        local_folder(place)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name == "s3fs" or name.startswith("s3fs.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    with pytest.raises(InputError, match=r"probekit-vision\[remote\]"):
        store_folder("s3://bucket/a")


def test_plain_paths_import_no_fsspec():
    code = (
        "import sys; from pathlib import Path; from probekit import remote as r;"
        "p = Path('a/b'); r.send(p); r.settle(p); r.share_folders([p]); r.fetch_whole(p, '', p);"
        "print(r.fetch(p), r.listing(p), r.store_folder('a'), 'fsspec' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "{}", "a", "False"]


@pytest.mark.parametrize("url", [URL, "file"])
def test_files_go_there_and_come_back(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url = f"file://{tmp_path}/there" if url == "file" else url
    folder = store_folder(url)
    path = write(folder / "a" / "b.json", "here")
    assert not fetch(path)
    send(path)
    elsewhere(tmp_path, monkeypatch)
    other = local_folder(url) / "a" / "b.json"
    assert fetch(other)
    assert other.read_text() == "here"
    assert listing(local_folder(url)) == {other: 4, local_folder(url) / ".probekit": 0}
    assert read_small([other, other.with_name("none")]) == {other: b"here"}


def test_of_two_that_settle_a_file_the_first_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settle(write(local_folder(URL) / "a", "first"))
    elsewhere(tmp_path, monkeypatch)
    late = write(local_folder(URL) / "a", "late")
    settle(late)
    assert late.read_text() == "first"


def test_a_file_that_is_settled_meanwhile_is_taken(memory: Any, monkeypatch: pytest.MonkeyPatch):
    path = write(local_folder(URL) / "a", "late")
    asked = iter([False])
    # It comes between the question and the answer.
    monkeypatch.setattr("probekit.remote.fetch", lambda one: next(asked, None) is None and fetch(one))
    memory.pipe_file("/bucket/place/a", b"first")
    settle(path)
    assert path.read_text() == "first"
    assert memory.cat_file("/bucket/place/a") == b"first"


@pytest.mark.parametrize("content", [b"other", None])
def test_an_object_that_is_not_what_was_written_is_named(memory: Any, content: bytes | None):
    folder = local_folder(URL)
    if content is not None:
        memory.pipe_file("/bucket/place/a", content)
    with pytest.raises(StoreDamaged, match=f"{URL}/a;.*Delete {URL} there"):
        fetch_whole(folder / "a", "0" * 64, folder)
    assert not (folder / "a").exists()


# Cells


def save(value: int, place: Path) -> None:
    with making_folder(place) as folder:
        write(folder / "inside" / "value", str(value))


def load(place: Path) -> int:
    return int((place / "inside" / "value").read_text())


def cells(value: int, names: str = "a") -> dict[str, int]:
    folder = store_folder(URL) / "cells"
    return run_cells({name: lambda: value for name in names}, folder=folder, save=save, load=load)


def test_a_cell_is_finished_for_all_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any):
    assert cells(1) == {"a": 1}
    names = [name for name in memory.find("/bucket") if "cells" in name]
    assert names == ["/bucket/place/cells/a/inside/value", "/bucket/place/cells/a/seal.json"]
    elsewhere(tmp_path, monkeypatch)
    assert cells(2, "ab") == {"a": 1, "b": 2}
    assert not list(tmp_path.rglob("*.fetched"))


def test_a_cell_that_another_machine_finishes_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def first_b_elsewhere() -> int:
        with monkeypatch.context() as there:
            elsewhere(tmp_path, there)
            cells(2, "b")
        return 1

    folder = store_folder(URL) / "cells"
    both = {"a": first_b_elsewhere, "b": lambda: 1}
    assert run_cells(both, folder=folder, save=save, load=load) == {"a": 1, "b": 2}


@pytest.mark.parametrize("before", [0, 1])
def test_a_cell_that_could_not_be_sent_is_sent_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any, before: int
):
    with monkeypatch.context() as broken:
        noting_what_is_sent(broken, memory, before)
        with pytest.raises(RemoteUnreachable, match="OSError: no network"):
            cells(1)
    assert not [name for name in memory.find("/bucket") if name.endswith("seal.json")]
    assert cells(2) == {"a": 1}
    elsewhere(tmp_path, monkeypatch)
    assert cells(3) == {"a": 1}


@pytest.mark.parametrize("what", ["seal.json", "inside/value"])
@pytest.mark.parametrize("content", [b'{"files": {"../../a": ""}}', b"", None])
def test_a_damaged_cell_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any, what: str, content: bytes | None
):
    cells(1)
    if content is None:
        memory.rm_file(f"/bucket/place/cells/a/{what}")
    else:
        memory.pipe_file(f"/bucket/place/cells/a/{what}", content)
    elsewhere(tmp_path, monkeypatch)
    if (what, content) == ("seal.json", None):  # never finished
        assert cells(2) == {"a": 2}
        return
    with pytest.raises(StoreDamaged, match=f"Delete {URL}/cells/a there"):
        cells(2)
    memory.rm("/bucket/place/cells/a", recursive=True)
    assert cells(2) == {"a": 2}


def test_sharing_leaves_plain_folders_alone(tmp_path: Path):
    save(1, tmp_path / "a")
    share_folders([tmp_path / "a", tmp_path / "none"])
    assert load(tmp_path / "a") == 1


# Tables and pages


def table(value: float = 0.5) -> ResultTable:
    row = {
        "model": "a",
        "tap": "layer1",
        "target": "class",
        "metric": "accuracy",
        "value": value,
        "depth": 0.5,
    }
    return ResultTable.from_rows([row], {}, {"maps/a.npy": np.arange(3.0)})


def test_a_table_is_read_by_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any):
    sent = noting_what_is_sent(monkeypatch, memory)
    table().write(f"{URL}/tables/probe")
    assert len(sent) == 4
    assert sent[-1] == "/bucket/place/tables/probe/provenance.json"
    elsewhere(tmp_path, monkeypatch)
    again = ResultTable.read(f"{URL}/tables/probe")
    assert again.frame.equals(table().frame)
    # Attachments come when they are asked for.
    assert not list(tmp_path.rglob("a.npy"))
    assert again.attachments["maps/a.npy"].tolist() == [0, 1, 2]
    # Another machine's word is news to one that has read before.
    monkeypatch.setenv("PROBEKIT_CACHE", str(tmp_path / "third"))
    table(0.75).write(f"{URL}/tables/probe")
    elsewhere(tmp_path, monkeypatch)
    assert ResultTable.read(f"{URL}/tables/probe").frame["value"].tolist() == [0.75]


@pytest.mark.parametrize("name", ["table.parquet", "maps/a.npy", "provenance.json"])
def test_a_table_that_lacks_something_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any, name: str
):
    table().write(f"{URL}/tables/probe")
    memory.rm_file(f"/bucket/place/tables/probe/{name}")
    elsewhere(tmp_path, monkeypatch)
    with pytest.raises((InputError, StoreDamaged), match=f"{URL}/tables/probe/{name}"):
        ResultTable.read(f"{URL}/tables/probe").attachments["maps/a.npy"]


def test_a_run_and_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any):
    monkeypatch.setattr("probekit.running.find_verb", lambda name: lambda: table())
    table().write(f"{URL}/tables/geometry")  # an earlier run's
    elsewhere(tmp_path, monkeypatch)
    sent = noting_what_is_sent(monkeypatch, memory)
    execute(Plan("probe", {}), URL)
    assert sent[0] == "/bucket/place/plan.yaml"
    assert sent[-1] == "/bucket/place/tables/probe/provenance.json"
    names = {name.removeprefix("/bucket/place/") for name in memory.find("/bucket")}
    assert {"plan.yaml", "index.html", "tables/probe/provenance.json"} <= names
    page = memory.cat_file("/bucket/place/index.html")
    assert b"geometry" in page
    # Drawn again on a third machine, from what is there alone.
    monkeypatch.setenv("PROBEKIT_CACHE", str(tmp_path / "third"))
    memory.rm_file("/bucket/place/index.html")
    memory.rm("/bucket/place/tables/geometry", recursive=True)
    redraw(URL)
    assert b"geometry" not in memory.cat_file("/bucket/place/index.html")


def test_an_out_that_cannot_be_written_is_known_before_the_work(monkeypatch: pytest.MonkeyPatch, memory: Any):
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(type(memory), "put_file", refused)
    monkeypatch.setattr("probekit.running.find_verb", lambda name: lambda: pytest.fail("worked"))
    with pytest.raises(RemoteUnreachable, match="PermissionError: read only"):
        execute(Plan("probe", {}), URL)


def test_a_training_on_several_machines_needs_a_common_folder(monkeypatch: pytest.MonkeyPatch):
    from probekit import pretrain

    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="all machines see"):
        pretrain("ce", "shapeworld/source,train=64,test=32", arch="resnet10_w16", store=URL)
