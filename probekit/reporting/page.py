"""One self-contained HTML page from tables and figures: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from probekit.errors import InputError
from probekit.figures.style import Prints
from probekit.files import safe_name, write_text
from probekit.reporting.embedding import EmbeddedFigure, embed_figures, within_budget
from probekit.reporting.facts import data_rows, general_rows, level_rows, model_rows, reading_rows, run_rows
from probekit.reporting.headline import STRIP_HEIGHT, STRIP_WIDTH, comparison_rows, headline_blocks
from probekit.reporting.likeness import is_similarity, likeness_blocks
from probekit.reporting.warnings import SEVERITIES, Caution, list_cautions
from probekit.results.presentation import grid, html, primary_metrics
from probekit.results.table import ResultTable
from probekit.version import __version__

# Browsers and mail programs stop being pleasant somewhere above this.
MAX_BYTES = 10_000_000
FIGURE_BYTES = 7_000_000
# Rows of the full tables printed on the page, all together; the rest stands in the CSV files.
PRINTED_ROWS = 3000
PRINTED_BLOCKS, PRINTED_COMPARISONS, PRINTED_GRIDS = 40, 60, 12
_COLUMNS = (
    "model", "data", "split", "target", "tap", "level", "depth", "metric", "value", "ci_low", "ci_high",
    "null", "null_low", "null_high", "n", "d", "status", "params",
)  # fmt: skip


def write_page(
    tables: Mapping[str, ResultTable],
    figures: Mapping[str, Figure | Prints],
    path: str | Path,
    *,
    title: str,
    question: str | None = None,
    links: Mapping[str, str] | None = None,
) -> Path:
    """Write the page of a run, atomically, below ten megabytes.

    Args:
        tables: Name → table. Everything on the page comes from them and their provenance.
        figures: Name → figure, in the order to show them; the caption is ``figure.get_label()``.
        path: Where the page goes, usually ``index.html`` in the folder of the run.
        title: Heading of the page.
        question: What the run was to answer, in one sentence.
        links: Name of a table → relative address of its CSV. By default the first of
            ``tables/NAME/table.csv``, ``NAME/table.csv`` and, for a single table, ``table.csv`` that is
            there beside the page, or the same with ``.gz``; figures link to ``figures/NAME.svg`` likewise.

    Returns:
        The path written.

    Raises:
        InputError: If there is no table, or the page cannot be made small enough.
    """
    if not tables:
        raise InputError("at least one table", "none", "Run an analysis first")
    path = Path(path)
    content = _context(tables, path, title, question, links)
    embedded = embed_figures(figures)
    template = _template()
    budget = FIGURE_BYTES
    while True:
        kept = within_budget(embedded, budget)
        content["figures"] = [_linked(one, path) for one in kept]
        text = template.render(**content)
        size = len(text.encode())
        if size < MAX_BYTES:
            write_text(path, text)
            return path
        if not any(one.source for one in kept):
            raise InputError(
                f"a page below {MAX_BYTES / 1e6:g} MB",
                f"{size / 1e6:.1f} MB without figures",
                "Give fewer tables to one page",
            )
        budget //= 2


def _context(
    tables: Mapping[str, ResultTable],
    path: Path,
    title: str,
    question: str | None,
    links: Mapping[str, str] | None,
) -> dict[str, Any]:
    blocks = [block for table in tables.values() for block in headline_blocks(table)]
    likeness = [block for table in tables.values() for block in likeness_blocks(table)]
    comparisons = [row for table in tables.values() for row in comparison_rows(table)]
    cautions = _cautions(tables)
    return {
        "title": title,
        "question": question or "",
        "version": __version__,
        "style": Markup(_resource("page.css")),
        "models": model_rows(tables),
        "data": data_rows(tables),
        "runs": run_rows(tables),
        "levels": level_rows(tables),
        "families": reading_rows(tables),
        "general": general_rows(tables),
        "cautions": cautions,
        "severities": SEVERITIES,
        "blocks": blocks[:PRINTED_BLOCKS],
        "more_blocks": max(0, len(blocks) - PRINTED_BLOCKS),
        "likeness": likeness[:PRINTED_BLOCKS],
        "comparisons": comparisons[:PRINTED_COMPARISONS],
        "more_comparisons": max(0, len(comparisons) - PRINTED_COMPARISONS),
        "strip": {"width": STRIP_WIDTH, "height": STRIP_HEIGHT},
        "indicative": any("Indicative:" in one.text for one in cautions),
        "grids": _grids(tables),
        "tables": _printed(tables, path, links or {}),
    }


def _cautions(tables: Mapping[str, ResultTable]) -> list[Caution]:
    found = [caution for table in tables.values() for caution in list_cautions(table)]
    return sorted(dict.fromkeys(found), key=lambda one: SEVERITIES.index(one.severity))


def _grids(tables: Mapping[str, ResultTable]) -> list[Markup]:
    """Return the primary metrics, model by tap, as HTML that escapes its own names."""
    made: list[Markup] = []
    # Layers against layers fill matrices, which are drawn.
    for table in [one for one in tables.values() if not is_similarity(one)]:
        scored = table.frame[table.frame["metric"].isin(primary_metrics(table.frame))]
        # Other architectures have other taps, so they get tables of their own.
        parts = scored[["metric", "data", "target", "arch"]].drop_duplicates()
        for metric, data, target, arch in parts.itertuples(index=False, name=None):
            part = table.where(data=data or None, target=target or None, arch=arch or None)
            if len(made) == PRINTED_GRIDS:
                return made
            try:
                made.append(Markup(html(grid(part, metric, None, "tap"))))  # every name is escaped there
            except InputError:  # several rows a cell, such as comparisons: the full table has them
                continue
    return made


def _printed(tables: Mapping[str, ResultTable], path: Path, links: Mapping[str, str]) -> list[dict[str, Any]]:
    room = PRINTED_ROWS
    printed = []
    for name, table in tables.items():
        frame = table.frame
        columns = [column for column in _COLUMNS if _filled(frame[column])]
        shown = frame[columns].head(room)
        room -= len(shown)
        printed.append(
            {
                "name": name,
                "columns": columns,
                "rows": [[_text(value) for value in row] for row in shown.itertuples(index=False, name=None)],
                "count": len(frame),
                "link": links.get(name) or _beside(path, name, single=len(tables) == 1),
            }
        )
    return printed


def _beside(path: Path, name: str, *, single: bool) -> str:
    """Return where a table's CSV stands, relative to the page, or ''."""
    folders = [f"tables/{safe_name(name)}/", f"{safe_name(name)}/", *([""] if single else [])]
    for place in (f"{folder}{file}" for folder in folders for file in ("table.csv", "table.csv.gz")):
        if (path.parent / place).is_file():
            return place
    return ""


def _linked(figure: EmbeddedFigure, path: Path) -> dict[str, Any]:
    place = f"figures/{safe_name(figure.name)}.svg"
    return {"figure": figure, "link": place if (path.parent / place).is_file() else ""}


def _filled(column: pd.Series[Any]) -> bool:
    return bool((column.notna() & (column != "").fillna(False)).any())


def _text(value: Any) -> str:  # noqa: ANN401 - one cell
    if value is pd.NA or value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _resource(name: str) -> str:
    return files("probekit.reporting").joinpath(name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _template() -> Any:  # noqa: ANN401 - jinja2 gives no types for templates made from text
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_resource("page.html"))
