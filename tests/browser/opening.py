"""A page in headless Chromium, without a network: what it asks for and what it complains of."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Size = tuple[int, int]
PHONE: Size = (390, 844)
DESKTOP: Size = (1280, 900)
# A4 between the margins that the style asks for, at 96 to the inch.
PAPER: Size = (703, 1017)
# Chromium's sandbox does not start for root, as in containers; the pages are ours.
FLAGS = ("--no-sandbox", "--disable-gpu")


@dataclass
class Opened:
    """A page that is open.

    Attributes:
        page: Playwright's page.
        address: Its own address.
        errors: Messages of level error and exceptions.
        requests: Addresses asked for.
    """

    page: Any
    address: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def find_chromium() -> str | None:
    """Return where the system's Chromium is, or None; ``CHROMIUM`` names another one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def opened(
    browser: Any, path: Path, size: Size, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Opened]:
    """Open a file in a window of a size, offline and in a context of its own."""
    phone = size == PHONE
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        is_mobile=phone,
        has_touch=phone,
        offline=True,
        color_scheme=scheme,
    )
    page = context.new_page()
    one = Opened(page, path.resolve().as_uri())
    page.on("console", lambda said: one.errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: one.errors.append(str(error)))
    page.on("request", lambda asked: one.requests.append(asked.url))
    try:
        page.goto(one.address, wait_until="load")
        # A picture that cannot be decoded is found by its size.
        page.evaluate("Promise.all([...document.images].map(one => one.decode().catch(() => null)))")
        yield one
    finally:
        context.close()
