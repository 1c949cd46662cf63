"""One style for every figure: colours fixed by model order, sizes, fonts, captions."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe and Ito's palette (jfly.uni-koeln.de/color), told apart with any colour vision; the pale yellow
# comes last and black stays for text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
INK, MUTED, FAINT, RANDOM_GREY = "#222222", "#666666", "#EDEDED", "#8A8A8A"
OTHER_GREY = "#B4BCC4"

# One panel of a grid, in inches, and the widest a figure gets on a page.
PANEL_WIDTH, PANEL_HEIGHT, FULL_WIDTH = 3.5, 2.75, 9.6
# Letters of the footer's size that fit into an inch.
_LETTERS_PER_INCH = 20.0
# Lines of a legend that a figure has room for, and the inches of a line.
_LEGEND_LINES, _LEGEND_LINE = 8, 0.18

_RC: dict[str, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "text.color": INK,
    "text.usetex": False,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 100.0,
    "savefig.dpi": 160.0,
    "savefig.bbox": "standard",
    "svg.fonttype": "path",
    "svg.hashsalt": "probekit",
    "path.simplify": True,
}
# Fonts for names outside Latin, Greek and Cyrillic: the first installed ones are added.
_FALLBACKS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Zen Hei", "PingFang SC",
    "Hiragino Sans", "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS",
)  # fmt: skip


class Drawing(Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        return render(self, "png")


@dataclass(frozen=True)
class Look:
    """How one model is drawn, in every figure of a table."""

    colour: str
    marker: str
    dashes: Any


@contextmanager
def styled() -> Iterator[None]:
    """Draw in probekit's style; matplotlib's own settings are as before afterwards."""
    settings: Any = {**_RC, "font.family": list(_families())}
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that arranges itself; sizes in inches."""
    return Drawing(figsize=(width, height), layout="constrained")


def looks(models: Sequence[str]) -> dict[str, Look]:
    """Give every model its colour, marker and dashes, by its place in the table.

    Examples:
        >>> looks(["a", "b"])["b"].colour
        '#D55E00'
    """
    count = len(COLOURS)
    return {
        name: Look(COLOURS[i % count], MARKERS[i % count], DASHES[(i // count) % len(DASHES)])
        for i, name in enumerate(models)
    }


def plain(text: str, limit: int = 60) -> str:
    r"""Return a name as matplotlib must be given it: no formulas, no hidden legend entries, not too long.

    Examples:
        >>> plain("price in $"), plain("_private"), plain("a" * 9, 5)
        ('price in \\$', ' _private', 'aaaa…')
    """
    text = " ".join(text.split()) if text.strip() else text
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def add_footer(figure: Figure, sentences: Sequence[str]) -> None:
    """Write below the figure what its numbers are: n, kinds of interval and null, what markers mean."""
    text = " ".join(f"{one.rstrip('.')}." for one in sentences if one)
    width = int(figure.get_figwidth() * _LETTERS_PER_INCH)
    lines = "\n".join(textwrap.wrap(text, width))
    figure.supxlabel(lines, x=0.008, ha="left", fontsize=6.8, color=MUTED, linespacing=1.35)


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Write the legend above all panels, in as many columns as fit; a long one makes the figure higher."""
    width = figure.get_figwidth()
    columns = next((n for n in range(len(labels), 1, -1) if _legend_width(labels, n) <= width), 1)
    lines = -(-len(labels) // columns)
    if lines > _LEGEND_LINES:
        # Otherwise it would press the panels flat, or lie over them; two lines had room in every figure.
        figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * (lines - 2))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, columnspacing=1.4)


def _legend_width(labels: Sequence[str], columns: int) -> float:
    """Estimate the inches a legend takes; matplotlib fills it column by column."""
    # The first columns take one more where the labels do not come out even.
    least, more = divmod(len(labels), columns)
    ends = np.cumsum([least + (place < more) for place in range(columns)])
    parts = [labels[end - least - (place < more) : end] for place, end in enumerate(ends)]
    return sum(0.62 + 0.08 * max(len(label) for label in part) for part in parts)


def strip_axes(axes: Axes) -> None:
    """Take frame and tick marks off, for heat-maps."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def finish(figure: Figure, caption: str) -> Figure:
    """Arrange the figure once and for all, and give it its caption, read back by ``figure.get_label()``.

    Arranging again at every save would move things by fractions of a point, and takes most of the time.
    ``figure.set_layout_engine("constrained")`` turns it on again.
    """
    engine = figure.get_layout_engine()
    if figure.axes and engine is not None:
        with styled(), _quiet():
            engine.execute(figure)
    figure.set_layout_engine("none")
    figure.set_label(caption)
    return figure


def render(figure: Figure, form: str) -> bytes:
    """Return the figure as ``svg`` or ``png`` bytes, the same for the same figure.

    Examples:
        >>> figure = new_figure(1, 1)
        >>> render(figure, "svg") == render(figure, "svg")
        True
    """
    # ``savefig`` draws everything twice, the first time to arrange what ``finish`` has arranged already.
    held, shown, dpi = io.BytesIO(), figure.canvas, figure.dpi
    try:
        with styled(), _quiet():
            figure.set_facecolor(matplotlib.rcParams["savefig.facecolor"])
            figure.set_dpi(matplotlib.rcParams["savefig.dpi"])
            # Without metadata of ours, matplotlib writes the time of day and its version into the file.
            canvas: Any = FigureCanvasSVG(figure) if form == "svg" else FigureCanvasAgg(figure)
            if form == "svg":
                canvas.print_svg(held, metadata={"Date": None, "Creator": None})
            else:
                canvas.print_png(held, metadata={"Software": None})
    finally:
        figure.set_canvas(shown)
        figure.set_dpi(dpi)
    return held.getvalue()


class Prints:
    """A figure's files, each rendered once however often it is asked for.

    Attributes:
        figure: Which, not to be changed any more.
    """

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self._files: dict[str, bytes] = {}

    @classmethod
    def of(cls, figure: Figure | Prints) -> Prints:
        """Take a figure, or its prints as they are."""
        return figure if isinstance(figure, Prints) else cls(figure)

    def get(self, form: str) -> bytes:
        """Return the figure as ``svg`` or ``png`` bytes."""
        if form not in self._files:
            self._files[form] = render(self.figure, form)
        return self._files[form]


@contextmanager
def _quiet() -> Iterator[None]:
    """Draw names in a script no installed font has as boxes, without a warning for every letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@lru_cache(maxsize=1)
def _families() -> tuple[str, ...]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in _FALLBACKS if name in installed))
