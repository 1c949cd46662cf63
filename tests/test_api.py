"""The API reference is built from the docstrings, and holds every public name."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser

import pytest

import probekit

pytest.importorskip("pdoc")


class Sections(HTMLParser):
    """Collects the names that a reference has a section for, and what it would fetch from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "section" and given.get("id"):
            self.names.add(given["id"])
        if tag in ("script", "link", "img") and str(given.get("src", given.get("href"))).startswith("http"):
            self.fetched.append(str(given))


@pytest.mark.slow
def test_the_reference_holds_every_public_name(tmp_path):
    command = [sys.executable, "docs/build_api.py", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # What a signature names and pdoc cannot find is a hole in the reference.
    assert "pdoc" not in done.stderr, done.stderr
    page = tmp_path / "probekit.html"
    sections = Sections()
    sections.feed(page.read_text(encoding="utf-8"))
    assert sections.names >= set(probekit.__all__) - {"__version__"}
    assert not sections.fetched
