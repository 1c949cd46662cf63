"""Figures inside a page: as data, within a budget of bytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from probekit.figures.style import Prints

# Above this an SVG takes longer to draw than a PNG of it.
LARGE_SVG_BYTES = 400_000
_TYPES = {"svg": "image/svg+xml", "png": "image/png"}


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure as a data address; ``source`` is '' where it was left out to keep the page small."""

    name: str
    caption: str
    source: str
    width: int
    height: int


def embed_figures(figures: Mapping[str, Figure | Prints]) -> list[EmbeddedFigure]:
    """Encode figures in order: as SVG, or as PNG where the SVG is large.

    An image address keeps every figure's drawing instructions to itself: names in one figure cannot clash
    with another's, and nothing in it can run.
    """
    embedded = []
    for name, given in figures.items():
        prints = Prints.of(given)
        figure, (form, content) = prints.figure, _smallest(prints)
        # 96 CSS pixels are an inch.
        width, height = (round(96 * float(inches)) for inches in figure.get_size_inches())
        source = f"data:{_TYPES[form]};base64,{base64.b64encode(content).decode('ascii')}"
        caption = str(figure.get_label() or name)
        embedded.append(EmbeddedFigure(name, caption, source, width, height))
    return embedded


def within_budget(figures: Sequence[EmbeddedFigure], budget_bytes: int) -> list[EmbeddedFigure]:
    """Leave out, in order, the figures that no longer fit."""
    kept, spent = [], 0
    for one in figures:
        fits = spent + len(one.source) <= budget_bytes
        spent += len(one.source) if fits else 0
        kept.append(one if fits else replace(one, source=""))
    return kept


def _smallest(prints: Prints) -> tuple[str, bytes]:
    svg = prints.get("svg")
    if len(svg) <= LARGE_SVG_BYTES:
        return "svg", svg
    png = prints.get("png")
    return ("png", png) if len(png) < len(svg) else ("svg", svg)
