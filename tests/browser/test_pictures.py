"""Pages look as they did, within a tolerance: text may move by a pixel, layout may not."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.browser.pictures import COMMITTED, KEPT, difference, take

# Measured on depth_probe: 0 between runs of one Chromium; at the most changed place .008 for letters of 16 px
# instead of 15, .006 for another accent, .13 for other margins, .17 for figures without frames.
TOLERANCE = 0.004

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("name", [*COMMITTED, "hostile", "many_checkpoints"])
def test_a_page_looks_as_it_did(browser, planted, name):
    path = COMMITTED.get(name) or planted[name]
    differences = {}
    for what, picture in take(browser, path):
        with Image.open(KEPT / f"{name}-{what}.jpg") as kept:
            differences[what] = difference(picture, kept.convert("RGB"))
    assert len(differences) >= 2
    assert {what: one for what, one in differences.items() if one > TOLERANCE} == {}


def test_the_pictures_are_small():
    assert sum(one.stat().st_size for one in KEPT.glob("*.jpg")) < 2_000_000
