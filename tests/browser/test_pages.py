"""Every page, as people open it: on a desktop, on a phone, by keyboard, on paper."""

from __future__ import annotations

from pathlib import Path

import pytest

from probekit.reporting.page import MAX_BYTES
from tests.browser.checks import (
    axe_violations,
    broken_pictures,
    cut_in_print,
    faulty_sheets,
    requests_elsewhere,
    sideways,
    small_letters,
    unreached,
)
from tests.browser.opening import DESKTOP, PHONE, opened
from tests.browser.planted import HOSTILE, RUNS, STEPS
from tests.conftest import ROOT

PLANTED = ("hostile", "many_checkpoints")
COMMITTED = sorted([*(ROOT / "reports").glob("*/index.html"), *(ROOT / "reports/notebooks").glob("*.html")])
NAMES = [str(one.relative_to(ROOT / "reports")) for one in COMMITTED]

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(1800)]


@pytest.fixture(params=[*PLANTED, *NAMES])
def path(request: pytest.FixtureRequest, planted: dict[str, Path]) -> Path:
    return planted.get(request.param) or ROOT / "reports" / request.param


def test_a_page_on_a_desktop(browser, axe, path):
    with opened(browser, path, DESKTOP) as one:
        complaints = broken_pictures(one.page) + sideways(one.page) + unreached(one.page)
        complaints += axe_violations(one.page, axe)
        assert one.errors + requests_elsewhere(one) + complaints == []


def test_a_page_on_a_phone(browser, axe, path):
    with opened(browser, path, PHONE) as one:
        complaints = broken_pictures(one.page) + sideways(one.page) + small_letters(one.page)
        complaints += axe_violations(one.page, axe)
        assert one.errors + requests_elsewhere(one) + complaints == []


def test_a_page_on_paper(browser, pdfium, path):
    with opened(browser, path, DESKTOP) as one:
        assert cut_in_print(one.page) + faulty_sheets(one.page, pdfium) == []


@pytest.mark.parametrize("name", PLANTED)
def test_contrast_in_the_dark(browser, axe, planted, name):
    with opened(browser, planted[name], DESKTOP, "dark") as one:
        assert axe_violations(one.page, axe) == []


def test_no_name_runs_and_all_are_read(browser, planted):
    with opened(browser, planted["hostile"], DESKTOP) as one:
        assert one.page.title() == HOSTILE[0]
        text = one.page.locator("body").text_content()
        assert [name for name in HOSTILE if name not in text] == []
        assert one.page.locator("script").count() == one.page.locator("h1 *:not(.badge)").count() == 0


def test_two_hundred_checkpoints_are_usable(browser, planted):
    assert planted["many_checkpoints"].stat().st_size < MAX_BYTES
    with opened(browser, planted["many_checkpoints"], DESKTOP) as one:
        values = one.page.locator("#headline table >> nth=0").locator("td.value").all_inner_texts()
        ranked = [float(text.split()[0]) for text in values]
        assert len(ranked) == RUNS * STEPS
        assert ranked == sorted(ranked, reverse=True)
        boxes = one.page.eval_on_selector_all(
            "section > .scroll", "all => all.map(one => one.clientHeight / window.innerHeight)"
        )
        assert max(boxes) < 1, "a table is higher than the window"
        assert one.page.evaluate("document.documentElement.scrollHeight") < 15_000
