"""The system's Chromium, driven by playwright; without them every test here is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.opening import FLAGS, find_chromium
from tests.browser.planted import hostile_page, many_checkpoints_page


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra [campaign]")
    where = find_chromium()
    if where is None:
        pytest.skip("no Chromium is installed, and none is named in CHROMIUM")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=where, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core."""
    return pytest.importorskip("axe_playwright_python.base", reason="needs the extra [campaign]").AXE_SCRIPT


@pytest.fixture(scope="session")
def pdfium() -> Any:
    """What renders printed sheets."""
    return pytest.importorskip("pypdfium2", reason="needs the extra [campaign]")


@pytest.fixture(scope="session")
def planted(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of planted tables, by name."""
    made = {"hostile": hostile_page, "many_checkpoints": many_checkpoints_page}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in made.items()}
