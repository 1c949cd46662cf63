"""What a page must not do, each as a function that returns its complaints."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.browser.opening import PAPER, Opened

# Below this, letters are not read on a phone.
LEAST_LETTERS = 11.9
# Rows like those before them: axe takes minutes for thousands.
_ROWS_LIKE_OTHERS = "document.querySelectorAll('tbody tr:nth-child(n+31)').forEach(row => row.remove())"
_PICTURES = """() => [...document.querySelectorAll('img, svg')].flatMap(one => {
    const box = one.getBoundingClientRect(), told = one.tagName === 'IMG' ? one.alt : one.ariaLabel;
    const drawn = one.tagName !== 'IMG' || (one.complete && one.naturalWidth > 0 && one.naturalHeight > 0);
    const seen = box.width > 0 && box.height > 0 && one.checkVisibility();
    const start = one.outerHTML.slice(0, 80);
    return seen && drawn && told ? [] : [`${start}: seen ${seen}, drawn ${drawn}, told ${told}`];
})"""
_LETTERS = """least => {
    const found = new Set(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let text = texts.nextNode(); text; text = texts.nextNode()) {
        const holder = text.parentElement, size = parseFloat(getComputedStyle(holder).fontSize);
        if (size < least && text.data.trim() && holder.checkVisibility())
            found.add(`${holder.tagName}.${holder.className}: ${size} px`);
    }
    return [...found];
}"""
# Figures whose letters shrink with them.
_SHRUNK = """() => [...document.querySelectorAll('figure img')].filter(
    one => one.getBoundingClientRect().width < 0.9 * one.getAttribute('width')).map(one => one.alt)"""
_WIDER = """width => [...document.querySelectorAll('table, img, pre, svg, figure')].filter(one =>
    one.checkVisibility() && one.getBoundingClientRect().right > width + 1
    ).map(one => `${one.tagName} in ${one.closest('section')?.id}: ${one.scrollWidth} px`)"""
_INTERACTIVE = """() => {
    const all = [...document.querySelectorAll('a[href], summary, [tabindex]')];
    window.wanted = all.filter(one => one.checkVisibility());
    return window.wanted.map(one => one.outerHTML.slice(0, 90));
}"""
_FOCUSED = """() => {
    const one = document.activeElement, style = getComputedStyle(one);
    const shown = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
    return [window.wanted.indexOf(one), shown];
}"""


def requests_elsewhere(opened: Opened) -> list[str]:
    """Return what was asked for beside the page itself and addresses that hold their data."""
    return [one for one in opened.requests if one != opened.address and not one.startswith("data:")]


def broken_pictures(page: Any) -> list[str]:
    """Return pictures without size, content or words."""
    return page.evaluate(_PICTURES)


def sideways(page: Any) -> list[str]:
    """Say whether the whole page scrolls sideways; tables and figures may, in boxes of their own."""
    wide, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    return [f"{wide} px in a window of {window}"] if wide > window else []


def small_letters(page: Any) -> list[str]:
    """Return kinds of text too small to be read, and figures so shrunk that theirs are."""
    return page.evaluate(_LETTERS, LEAST_LETTERS) + page.evaluate(_SHRUNK)


def axe_violations(page: Any, script: str) -> list[str]:
    """Return violations that axe calls moderate, serious or critical; removes rows like those before them."""
    page.evaluate(_ROWS_LIKE_OTHERS)
    page.evaluate(script)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [
        f"{one['id']} ({one['impact']}), {len(one['nodes'])} times: {one['nodes'][0]['html'][:120]}"
        for one in found
        if one["impact"] != "minor"
    ]


def unreached(page: Any) -> list[str]:
    """Return what Tab does not reach, or reaches without showing it."""
    wanted = page.evaluate(_INTERACTIVE)
    shown: dict[int, bool] = {}
    for _ in range(len(wanted)):
        page.keyboard.press("Tab")
        place, visible = page.evaluate(_FOCUSED)
        shown[place] = visible
    return [one for place, one in enumerate(wanted) if not shown.get(place)]


def cut_in_print(page: Any) -> list[str]:
    """Return what is wider than the paper; leaves the page as it is printed."""
    page.emulate_media(media="print")
    page.set_viewport_size({"width": PAPER[0], "height": PAPER[1]})
    return sideways(page) + page.evaluate(_WIDER, PAPER[0])


def faulty_sheets(page: Any, pdfium: Any) -> list[str]:
    """Print to PDF and return sheets that are empty or have ink in their right margin."""
    sheets = pdfium.PdfDocument(page.pdf(format="A4", print_background=False, prefer_css_page_size=False))
    faults = [] if len(sheets) else ["no sheets"]
    for number, sheet in enumerate(sheets, 1):
        ink = np.asarray(sheet.render(scale=1).to_pil().convert("L")) < 200
        if not ink.any():
            faults.append(f"sheet {number} is empty")
        # The style asks for 12 mm, which are 34 points.
        if ink[:, -28:].any():
            faults.append(f"sheet {number} has ink in its right margin")
    return faults
