"""Tables for people: one row per model, one column per tap, in HTML, Markdown and LaTeX."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from probekit.errors import InputError, near_names
from probekit.results.choosing import PRIMARY, best_rows
from probekit.results.metrics import MetricFacts, kind_words, metric_facts
from probekit.results.schema import SCHEMA

if TYPE_CHECKING:
    from probekit.results.table import ResultTable

# More blocks than this would fill a notebook page.
SUMMARY_BLOCKS = 4
BEST, SECOND = 1, 2

Pick = Callable[[str, int], str]


@dataclass(frozen=True)
class Cell:
    """One number with its interval; NaN where there is none, ``status`` says why there is no value."""

    value: float
    low: float = float("nan")
    high: float = float("nan")
    status: str = ""

    def text(self, decimals: int, *, percent: bool, sign: str = "±") -> str:
        """Return ``value ± half interval``, a dash where there is no value."""
        if np.isnan(self.value):
            return "–"
        factor = 100.0 if percent else 1.0
        text = fixed(self.value * factor, decimals)
        half = (self.high - self.low) / 2.0 * factor
        return text if np.isnan(half) else f"{text} {sign} {half:.{decimals}f}"


@dataclass(frozen=True)
class Grid:
    """Cells by row and column, with what they measure.

    Attributes:
        title: Metric and target in words.
        corner: Names of the row labels' parts, such as ``("model", "target")``.
        rows: One tuple of labels per row.
        columns: Column labels.
        cells: Row by row; None where the table has no such row.
        controls: Whether each row is a random-init control, which is never marked.
        facts: Facts of the metric.
        ci_kind: Kind of the intervals, '' if mixed or absent.
    """

    title: str
    corner: tuple[str, ...]
    rows: list[tuple[str, ...]]
    columns: list[str]
    cells: list[list[Cell | None]]
    controls: list[bool]
    facts: MetricFacts
    ci_kind: str

    def frame(self, *, decimals: int, percent: bool) -> pd.DataFrame:
        """Return the grid as text in a pandas frame."""
        texts = [["" if c is None else c.text(decimals, percent=percent) for c in row] for row in self.cells]
        index: pd.Index[Any]
        if len(self.corner) == 1:
            index = pd.Index([row[0] for row in self.rows], name=self.corner[0])
        else:
            index = pd.MultiIndex.from_tuples(self.rows, names=list(self.corner))
        return pd.DataFrame(texts, index=index, columns=self.columns)

    @property
    def by_column(self) -> bool:
        """Whether marks compare models within a column; otherwise taps within a row."""
        trained = [row for row, control in zip(self.cells, self.controls, strict=True) if not control]
        return any(sum(row[j] is not None for row in trained) > 1 for j in range(len(self.columns)))

    def marks(self) -> list[list[int]]:
        """Return 1 at the best, 2 at the second best cell of each column or row, else 0; ties share one."""
        marks = [[0] * len(self.columns) for _ in self.rows]
        if self.facts.higher_is_better is None:
            return marks
        trained = [i for i, control in enumerate(self.controls) if not control]
        lines = (
            [[(i, j) for i in trained] for j in range(len(self.columns))]
            if self.by_column
            else [[(i, j) for j in range(len(self.columns))] for i in trained]
        )
        for line in lines:
            held = {(i, j): cell.value for i, j in line if (cell := self.cells[i][j]) is not None}
            held = {place: value for place, value in held.items() if not np.isnan(value)}
            order = sorted(set(held.values()), reverse=self.facts.higher_is_better)
            for (i, j), value in held.items():
                rank = order.index(value) + 1
                marks[i][j] = rank if rank <= SECOND and len(held) > 1 else 0
        return marks

    @property
    def note(self) -> str:
        """What marks and intervals mean, in one sentence each."""
        parts = []
        if self.facts.higher_is_better is not None:
            parts.append(f"Best and second best {'per column' if self.by_column else 'per row'} are marked")
        if any(cell is not None and not np.isnan(cell.low) for row in self.cells for cell in row):
            kind = f" ({kind_words(self.ci_kind)})" if self.ci_kind else ""
            parts.append(f"± is half the width of the interval{kind}")
        return "; ".join(parts) + ("; marks are not a test." if parts else "")


def fixed(value: float, decimals: int) -> str:
    """Write a number with fixed digits, a true minus sign, and no minus before zero.

    Examples:
        >>> fixed(-0.25, 1), fixed(-0.0001, 3)
        ('−0.2', '0.000')
    """
    text = f"{value:.{decimals}f}"
    return text.replace("-", "") if not text.strip("-0.") else text.replace("-", "−")


def primary_metrics(frame: pd.DataFrame) -> list[str]:
    """Return the metrics a summary shows: accuracy, mean_ap and r2 where present, else the first one."""
    present = [str(metric) for metric in frame["metric"].unique()]
    return [metric for metric in PRIMARY if metric in present] or present[:1]


def grid(table: ResultTable, metric: str | None, target: str | None, columns: str) -> Grid:
    """Arrange the rows of one metric.

    Raises:
        InputError: If a name is unknown, or several rows would fall into one cell.
    """
    rows, metric = _rows_of(table, metric, target)
    targets = list(rows["target"].unique())
    if columns == "target":
        kept = set(best_rows(table.frame, metric).index)
        rows = pd.concat([part[part.index.isin(kept)] for _, part in rows.groupby("target", sort=False)])
    heads = column_values(rows, columns)
    split_by = [name for name in ("data", "target") if name != columns and rows[name].nunique() > 1]
    labels = list(rows[["model", *split_by]].itertuples(index=False, name=None))
    row_order, column_order = list(dict.fromkeys(labels)), _ordered(rows, heads, columns)
    cells: list[list[Cell | None]] = [[None] * len(column_order) for _ in row_order]
    places = {name: place for place, name in enumerate(row_order)}
    for label, head, row in zip(labels, heads, rows.to_dict("records"), strict=True):
        i, j = places[label], column_order.index(head)
        if cells[i][j] is not None:
            raise InputError(
                f"one row of {metric!r} per model and {columns}",
                f"several for {' · '.join(label)} at {head}",
                "Narrow the table with `where`, or choose other `columns`, such as a key of `params`",
            )
        status = "" if row["status"] == "ok" else str(row["status"])
        cells[i][j] = Cell(row["value"], row["ci_low"], row["ci_high"], status)
    controls = set(table.controls)
    data = [str(name) for name in rows["data"].unique() if name] if rows["data"].nunique() == 1 else []
    kinds = [kind for kind in rows["ci_kind"].unique() if kind]
    facts = metric_facts(metric)
    return Grid(
        title=" · ".join(
            [facts.axis, *([str(targets[0])] if len(targets) == 1 and targets[0] else []), *data]
        ),
        corner=("model", *split_by),
        rows=[tuple(str(part) for part in label) for label in row_order],
        columns=column_order,
        cells=cells,
        controls=[label[0] in controls for label in row_order],
        facts=facts,
        ci_kind=kinds[0] if len(kinds) == 1 else "",
    )


def column_values(rows: pd.DataFrame, name: str) -> list[str]:
    """Return a column of the schema, or a key of the params, as text.

    Raises:
        InputError: If it is neither.
    """
    if name in SCHEMA:
        return [_text(value) for value in rows[name]]
    params = [json.loads(text) for text in rows["params"]]
    if not any(name in one for one in params):
        known = [*SCHEMA, *dict.fromkeys(key for one in params for key in one)]
        raise InputError("a column or a key of params", repr(name), f"Nearest: {near_names(name, known)}")
    return [_text(one.get(name)) for one in params]


def markdown(made: Grid, decimals: int, percent: bool) -> str:
    """Return a pipe table: best bold, second in italics."""

    def mark(text: str, rank: int) -> str:
        return {BEST: f"**{text}**", SECOND: f"_{text}_"}.get(rank, text)

    head = [_escape_markdown(name) for name in (*made.corner, *made.columns)]
    align = [":---"] * len(made.corner) + ["---:"] * len(made.columns)
    lines = [head, align]
    lines += _body(made, decimals, percent, mark, _escape_markdown)
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return text.replace("| " + " | ".join(align) + " |", "|" + "|".join(align) + "|")


def latex(made: Grid, decimals: int, percent: bool, caption: str | None, label: str | None) -> str:
    """Return a booktabs table; with a caption or label it stands in a ``table`` environment."""

    def mark(text: str, rank: int) -> str:
        value, _, half = text.partition(" ± ")
        value = value.replace("−", "$-$").replace("–", "--")
        value = {BEST: rf"\textbf{{{value}}}", SECOND: rf"\underline{{{value}}}"}.get(rank, value)
        return rf"{value} {{\scriptsize$\pm$ {half}}}" if half else value

    head = [escape_latex(name) for name in (*made.corner, *made.columns)]
    body = _body(made, decimals, percent, mark, escape_latex)
    lines = [
        rf"\begin{{tabular}}{{{'l' * len(made.corner)}{'c' * len(made.columns)}}}",
        r"\toprule",
        " & ".join(head) + r" \\",
        r"\midrule",
        *(" & ".join(line) + r" \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if caption is None and label is None:
        return "\n".join(["% needs \\usepackage{booktabs}", *lines])
    outer = ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering"]
    outer += [rf"\caption{{{escape_latex(caption)}}}"] if caption is not None else []
    outer += [rf"\label{{{label}}}"] if label is not None else []
    return "\n".join([*outer, *lines, r"\end{table}"])


def html(made: Grid, *, decimals: int = 3, percent: bool = False) -> str:
    """Return an HTML table: best bold, second underlined; every name is escaped."""

    def mark(text: str, rank: int) -> str:
        value, _, half = text.partition(" ± ")
        value = {BEST: f"<b>{value}</b>", SECOND: f"<u>{value}</u>"}.get(rank, value)
        return f'{value} <small style="opacity:.65">± {half}</small>' if half else value

    head = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in made.corner)
    # A heading that is empty is not read aloud.
    head += "".join(f'<th style="text-align:right">{escape(name) or "–"}</th>' for name in made.columns)
    parts = len(made.corner)
    body = ""
    for line in _body(made, decimals, percent, mark, escape):
        cells = "".join(f'<th style="text-align:left;font-weight:normal">{one}</th>' for one in line[:parts])
        cells += "".join(
            f'<td style="text-align:right;white-space:nowrap">{one}</td>' for one in line[parts:]
        )
        body += f"<tr>{cells}</tr>"
    caption = f'<caption style="text-align:left;caption-side:top"><b>{escape(made.title)}</b></caption>'
    note = f'<p style="font-size:smaller;opacity:.7">{escape(made.note)}</p>' if made.note else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def summary_html(table: ResultTable) -> str:
    """Return what a notebook shows of a table: its primary metrics, model by tap."""
    head = f"<p><code>{escape(repr(table))}</code></p>"
    if not len(table):
        return head
    pairs = [
        (metric, target)
        for metric in primary_metrics(table.frame)
        for target in table.frame.loc[table.frame["metric"] == metric, "target"].unique()
    ]
    blocks = []
    for metric, target in pairs[:SUMMARY_BLOCKS]:
        try:
            blocks.append(html(grid(table.where(target=target), metric, None, "tap")))
        except InputError as error:  # several rows a cell: say how to narrow instead of showing nothing
            blocks.append(f"<p>{escape(metric)}: {escape(str(error))}</p>")
    more = len(pairs) - SUMMARY_BLOCKS
    rest = f"<p>… and {more} more: <code>table.wide(metric=…, target=…)</code></p>" if more > 0 else ""
    return head + "".join(blocks) + rest


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "\n": " ", "\r": " ",
}  # fmt: skip


def escape_latex(text: str) -> str:
    r"""Write any text so that LaTeX prints it as it is.

    Examples:
        >>> escape_latex("layer_1 & 50%")
        'layer\\_1 \\& 50\\%'
    """
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _escape_markdown(text: str) -> str:
    text = " ".join(text.split("\n"))
    for letter in "\\`*_|<>[]":
        text = text.replace(letter, f"\\{letter}")
    return text


def _body(
    made: Grid, decimals: int, percent: bool, mark: Pick, escaped: Callable[[str], str]
) -> list[list[str]]:
    lines = []
    for label, row, ranks in zip(made.rows, made.cells, made.marks(), strict=True):
        texts = ["" if one is None else one.text(decimals, percent=percent) for one in row]
        lines.append(
            [escaped(part) for part in label] + [mark(*pair) for pair in zip(texts, ranks, strict=True)]
        )
    return lines


def _rows_of(table: ResultTable, metric: str | None, target: str | None) -> tuple[pd.DataFrame, str]:
    frame = table.frame[~table.frame["split"].isin(("train", "val"))]
    if not len(frame):
        raise InputError("a table with rows", "none", "Check what it was narrowed to")
    metric = metric or primary_metrics(frame)[0]
    for column, value in {"metric": metric, "target": target}.items():
        known = [str(name) for name in frame[column].unique()]
        if value is not None and value not in known:
            raise InputError(f"a {column} of the table", repr(value), f"Nearest: {near_names(value, known)}")
    rows = frame[frame["metric"] == metric]
    return (rows if target is None else rows[rows["target"] == target]), metric


def _ordered(rows: pd.DataFrame, heads: Sequence[str], columns: str) -> list[str]:
    """Order taps and blocks by depth, numbers by value, anything else by first appearance."""
    unique = list(dict.fromkeys(heads))
    if columns in ("tap", "block", "depth"):
        depths = dict(zip(reversed(list(heads)), reversed(rows["depth"].tolist()), strict=True))
        if not any(np.isnan(depths[head]) for head in unique):
            return sorted(unique, key=lambda head: depths[head])
    try:
        return sorted(unique, key=float)
    except ValueError:
        return unique


def _text(value: Any) -> str:  # noqa: ANN401 - any JSON value or cell
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
