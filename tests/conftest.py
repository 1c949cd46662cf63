"""What every test shares: where real data stand, and a cache folder of its own."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and checkpoints; tests that need it are skipped where it is absent."""
    named = os.environ.get("PROBEKIT_SHARED_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data are not here: name their folder in PROBEKIT_SHARED_DATA")
    return folder


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point probekit's cache at an empty folder, so that no test reads what another one left."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PROBEKIT_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Put back the level of probekit's log, which the command line sets for its process."""
    log = logging.getLogger("probekit")
    before = log.level
    yield
    log.setLevel(before)


# Where CI is set, property tests draw the same examples every time: a new find belongs to a developer's run
# or to a campaign, not to somebody else's change.
settings.register_profile("seeded", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("seeded")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3-compatible server on this machine, in a process of its own."""
    pytest.importorskip("s3fs", reason="object storage needs the extra [remote]")
    pytest.importorskip("moto", reason="the local S3 server needs the extra [campaign]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                pytest.fail("the S3 server did not start")
            time.sleep(0.1)


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()
