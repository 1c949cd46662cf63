"""What every test shares: where real data stand, and a cache folder of its own."""

from __future__ import annotations

import logging
import os
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
