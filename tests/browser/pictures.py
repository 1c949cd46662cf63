"""Screenshots kept in reports/browser: ``python -m tests.browser.pictures`` takes them again."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.browser.opening import DESKTOP, FLAGS, PHONE, find_chromium, opened
from tests.browser.planted import hostile_page, many_checkpoints_page
from tests.conftest import ROOT

KEPT = ROOT / "reports" / "browser"
COMMITTED = {
    "depth_probe": ROOT / "reports/depth_probe/index.html",
    "first_look": ROOT / "reports/notebooks/first_look_at_a_checkpoint.html",
}
PLACES = {"top": "header, body", "headline": "#headline", "figures": "#figures"}
SIZES = {"phone": PHONE, "desktop": DESKTOP}
# A desktop's is kept at half its size.
WIDTHS = {"phone": 390, "desktop": 640}
# The font that every Debian with Chromium has.
_FONT = "body { font-family: 'DejaVu Sans' !important; }"
_QUALITY = 80


def take(browser: Any, path: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield (what, picture): a window full at the top, the headline and the figures, by size."""
    for size, window in SIZES.items():
        with opened(browser, path, window) as one:
            one.page.add_style_tag(content=_FONT)
            for place, selector in PLACES.items():
                found = one.page.locator(selector)
                if not found.count():
                    continue
                found.first.evaluate("one => one.scrollIntoView({block: 'start', behavior: 'instant'})")
                picture = Image.open(io.BytesIO(one.page.screenshot())).convert("RGB")
                height = round(picture.height * WIDTHS[size] / picture.width)
                yield f"{place}-{size}", picture.resize((WIDTHS[size], height), Image.Resampling.LANCZOS)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the share of places where two pictures differ clearly, once blurred by a few pixels."""
    if one.size != other.size:
        return 1.0
    small = [np.asarray(each.reduce(4).convert("L"), dtype=np.int16) for each in (one, other)]
    return float((np.abs(small[0] - small[1]) > 24).mean())


def main() -> None:
    """Take all of them again."""
    from playwright.sync_api import sync_playwright

    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        planted = {
            "hostile": hostile_page(Path(folder) / "hostile"),
            "many_checkpoints": many_checkpoints_page(Path(folder) / "many"),
        }
        for name, path in {**COMMITTED, **planted}.items():
            for what, picture in take(browser, path):
                picture.save(KEPT / f"{name}-{what}.jpg", quality=_QUALITY)
        browser.close()


if __name__ == "__main__":
    main()
