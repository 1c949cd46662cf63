"""Features on object storage: the bytes of a local store, whatever happens on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probekit import extract
from probekit.errors import RemoteUnreachable, StoreDamaged
from probekit.features import extraction, store
from probekit.features.features import Features
from probekit.remote import address_of
from tests.features.conftest import images, small_backbone

TAPS = ["0", "3"]
# Two taps of 50 images in parts of 16.
PARTS = 8

pytest.importorskip("s3fs", reason="object storage needs the extra [remote]")
pytestmark = pytest.mark.campaign


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PART_BYTES", 1)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Go to a machine with a cache of its own."""

    def go(name: str) -> Path:
        monkeypatch.setenv("PROBEKIT_CACHE", str(tmp_path / name))
        return tmp_path / name

    return go


def read(place: str | Path) -> dict[str, Features]:
    return extract(small_backbone(), images(), TAPS, store=place, batch_size=16, engine="eager", device="cpu")


def values(found: Mapping[str, Features]) -> dict[str, bytes]:
    return {tap: np.asarray(one.values).tobytes() for tap, one in found.items()}


def objects(url: str) -> dict[str, bytes]:
    """Return name → content of all objects under a URL."""
    import s3fs

    system, root = s3fs.S3FileSystem(), url.removeprefix("s3://")
    system.invalidate_cache()
    return {name.removeprefix(f"{root}/"): system.cat_file(name) for name in system.find(root)}


def counting_sends(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[str]:
    """Note what the store sends; the n-th fails as a network does."""
    sent: list[str] = []

    def send(path: Path) -> None:
        if address_of(path) is None:
            return
        if len(sent) + 1 == fail_at:
            raise RemoteUnreachable(f"to read and write {path.name}", "no network", "Try again")
        sent.append(path.name)
        original(path)

    original = store.send
    monkeypatch.setattr(store, "send", send)
    return sent


def computing_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(extraction, "_run", fail)


def test_the_bytes_are_those_of_a_local_store_and_a_second_machine_reads_them(
    bucket: str, tmp_path: Path, machine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    local = read(tmp_path / "local")
    assert values(read(f"{bucket}/store")) == values(local)
    there = objects(f"{bucket}/store")
    same = [name for name in there if "journal-" not in name and name != ".probekit"]
    assert len([name for name in same if name.endswith(".npy")]) == PARTS
    assert all((tmp_path / "local" / name).read_bytes() == there[name] for name in same)
    assert len([name for name in there if "journal-" in name]) == PARTS

    machine("second")
    computing_nothing(monkeypatch)
    assert values(read(f"{bucket}/store/")) == values(local)
    assert objects(f"{bucket}/store") == there


def test_a_second_machine_needs_no_network_of_neurons(
    bucket: str, machine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    words = "resnet10_w16:random", "shapeworld/unseen,train=60,test=30", "penultimate"
    first = extract(*words, store=bucket, device="cpu")
    machine("second")
    monkeypatch.setattr(extraction, "open_model", None)
    assert values(extract(*words, store=bucket, device="cpu")) == values(first)


@pytest.mark.parametrize("fail_at", [1, 3, 6])
def test_what_could_not_be_sent_is_sent_by_the_next_run(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
):
    with monkeypatch.context() as once:
        counting_sends(once, fail_at)
        with pytest.raises(RemoteUnreachable, match="no network"):
            read(f"{bucket}/store")
    kept = {name: content for name, content in objects(f"{bucket}/store").items() if "part-" in name}
    sent = counting_sends(monkeypatch)
    assert values(read(f"{bucket}/store")) == values(read(tmp_path / "local"))
    # Index, parts and journals, each once in all.
    assert len(sent) == 2 * PARTS - len(kept) + (fail_at == 1)
    assert {name: objects(f"{bucket}/store")[name] for name in kept} == kept


def test_an_interrupted_run_goes_on_on_another_machine(
    bucket: str, tmp_path: Path, machine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as once:
        counting_sends(once, fail_at=5)  # the second part, but not its journal, has arrived
        with pytest.raises(RemoteUnreachable):
            read(f"{bucket}/store")
    done = [name for name in objects(f"{bucket}/store") if "journal-" in name]
    assert len(done) == 1
    machine("second")
    sent = counting_sends(monkeypatch)
    assert values(read(f"{bucket}/store")) == values(read(tmp_path / "local"))
    assert len(sent) == 2 * (PARTS - len(done))


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted"])
@pytest.mark.parametrize("what", ["part-00001.npy", "journal-part-00001.jsonl"])
def test_damage_is_named_and_what_is_deleted_is_made_again(
    bucket: str, machine: Callable[[str], Path], damage: str, what: str
):
    import s3fs

    whole = values(read(f"{bucket}/store"))
    there = objects(f"{bucket}/store")
    name = next(name for name in there if name.endswith(f"/{what}"))
    url, system = f"{bucket}/store/{name}", s3fs.S3FileSystem()
    half = len(there[name]) // 2
    if damage == "deleted":
        system.rm_file(url)
    else:
        changed = [there[name][half] ^ 1, *there[name][half + 1 :]] if damage == "flipped" else []
        system.pipe_file(url, there[name][:half] + bytes(changed))
    machine("second")
    # Without its journal a part was never finished.
    if (what, damage) != ("journal-part-00001.jsonl", "deleted"):
        folder = url.rpartition("/")[0]
        with pytest.raises(StoreDamaged, match=f"Delete {folder} there and run again"):
            values(read(f"{bucket}/store"))
        system.rm(folder, recursive=True)
    assert values(read(f"{bucket}/store")) == whole
    assert objects(f"{bucket}/store") == there


def test_a_damaged_copy_here_is_fetched_again(bucket: str, machine: Callable[[str], Path]):
    whole = values(read(f"{bucket}/store"))
    here = machine("second")
    assert values(read(f"{bucket}/store")) == whole
    for path in here.rglob("part-*.npy"):
        path.write_bytes(path.read_bytes()[:-1])
    assert values(read(f"{bucket}/store")) == whole


def test_who_comes_first_decides_and_what_was_begun_otherwise_is_forgotten(
    bucket: str, machine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    import s3fs

    first = machine("first")
    read(f"{bucket}/store")
    s3fs.S3FileSystem().rm(f"{bucket}/store", recursive=True)
    machine("second")
    extract(small_backbone(), images(), TAPS, store=f"{bucket}/store", batch_size=8, engine="eager")
    there = objects(f"{bucket}/store")
    monkeypatch.setenv("PROBEKIT_CACHE", str(first))
    assert {one.provenance["engine"]["batch_size"] for one in read(f"{bucket}/store").values()} == {8}
    assert objects(f"{bucket}/store") == there


def test_ranks_on_two_machines_fill_one_store(
    bucket: str, tmp_path: Path, machine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    local = values(read(tmp_path / "local"))
    monkeypatch.setattr(extraction, "CHUNK_BATCHES", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    original = extraction._run

    def other_rank_meanwhile(*settings: Any) -> None:
        original(*settings)
        monkeypatch.setattr(extraction, "_run", original)
        with monkeypatch.context() as there:
            there.setenv("PROBEKIT_CACHE", str(tmp_path / "rank 1"))
            there.setenv("RANK", "1")
            assert values(read(f"{bucket}/store")) == local

    monkeypatch.setattr(extraction, "_run", other_rank_meanwhile)
    machine("rank 0")
    monkeypatch.setenv("RANK", "0")
    assert values(read(f"{bucket}/store")) == local


def test_missing_credentials_and_buckets_are_told_before_any_work(
    bucket: str, monkeypatch: pytest.MonkeyPatch
):
    import s3fs

    computing_nothing(monkeypatch)
    with pytest.raises(RemoteUnreachable, match="s3://no-such-bucket/store"):
        read("s3://no-such-bucket/store")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RemoteUnreachable, match="credentials"):
        read(f"{bucket}/store")
