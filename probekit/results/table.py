"""ResultTable: a tidy frame, where it comes from, and what hangs on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from probekit.errors import InputError, near_names
from probekit.files import replacing, safe_name
from probekit.remote import is_url, local_folder
from probekit.results import comparing, merging, presentation
from probekit.results.choosing import best_rows
from probekit.results.fitted import Probe
from probekit.results.schema import SCHEMA, conform, rows_to_frame
from probekit.results.storage import FORMAT, fetch_table, read_folder, send_table, write_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM = "random@"


@dataclass(frozen=True, eq=False)
class ResultTable:
    """Results in tidy form: one metric per row, always in the columns of the schema.

    Attributes:
        frame: The rows; see ``probekit.results.schema``. Columns are put in order and given their types.
        provenance: What made them: models, data, versions, command, settings; JSON values.
        attachments: Relative path → value; the suffix says what it holds: ``.parquet`` a frame,
            ``.npz`` named arrays, ``.npy`` an array, ``.png`` and ``.svg`` bytes, ``.json`` JSON.

    Raises:
        SchemaMismatch: If the frame does not follow the schema.

    Examples:
        >>> table = ResultTable.from_rows([
        ...     {"model": "a", "tap": "layer1", "target": "class", "metric": "accuracy", "value": 0.5},
        ...     {"model": "a", "tap": "layer2", "target": "class", "metric": "accuracy", "value": 0.75},
        ... ])
        >>> table.best("accuracy").frame["tap"].tolist()
        ['layer2']
        >>> print(table.to_markdown("accuracy"))
        | model | layer1 | layer2 |
        |:---|---:|---:|
        | a | _0.500_ | **0.750** |
    """

    frame: pd.DataFrame
    provenance: Mapping[str, Any] = field(default_factory=dict)
    attachments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame", conform(self.frame))
        object.__setattr__(self, "provenance", {"format": FORMAT, **self.provenance})

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        return (
            f"ResultTable({len(self)} rows: {len(self.models)} models, {len(self.taps)} taps, "
            f"{len(self.targets)} targets, {len(self.metrics)} metrics; {len(self.attachments)} attachments)"
        )

    def _repr_html_(self) -> str:
        return presentation.summary_html(self)

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Mapping[str, Any]],
        provenance: Mapping[str, Any] | None = None,
        attachments: Mapping[str, Any] | None = None,
    ) -> ResultTable:
        """Build a table from rows that name only what they know; see ``rows_to_frame``."""
        return cls(rows_to_frame(rows), provenance or {}, attachments or {})

    @classmethod
    def concat(cls, tables: Sequence[ResultTable]) -> ResultTable:
        """Stack tables: facts they share stay, what differs is listed run by run.

        Raises:
            InputError: If there is no table, or one model name stands for different weights, or one
                data name for different images.
        """
        return cls(*merging.merged([(one.frame, one.provenance, one.attachments) for one in tables]))

    # Facts

    @property
    def models(self) -> list[str]:
        """Model names in the order of their first row, random-init controls included."""
        return self._names("model")

    @property
    def controls(self) -> list[str]:
        """Names of the models that are random-init controls."""
        facts = self.provenance.get("models") or {}
        return [one for one in self.models if (facts.get(one) or {}).get("random_init", RANDOM in one)]

    @property
    def trained(self) -> list[str]:
        """Names of the models that are not random-init controls."""
        controls = set(self.controls)
        return [one for one in self.models if one not in controls]

    @property
    def targets(self) -> list[str]:
        """Target names in the order of their first row."""
        return self._names("target")

    @property
    def taps(self) -> list[str]:
        """Taps in the order of their first row."""
        return self._names("tap")

    @property
    def metrics(self) -> list[str]:
        """Metrics in the order of their first row."""
        return self._names("metric")

    # Selecting

    def where(self, **equal: Any) -> ResultTable:  # noqa: ANN401 - a value or several, of any column
        """Keep the rows whose columns equal a value, or one of several.

        Args:
            **equal: Column → value, or a list of values that may occur. A missing value is None.

        Returns:
            A table with the same provenance and attachments; it may be empty.

        Raises:
            InputError: If a name is not a column.

        Examples:
            >>> rows = [{"metric": "bits", "value": 1.0}, {"metric": "r2", "value": 0.1}]
            >>> table = ResultTable.from_rows(rows)
            >>> len(table.where(metric="bits")), len(table.where(metric=["bits", "r2"]))
            (1, 2)
        """
        rows = pd.Series(True, index=self.frame.index)
        for column, wanted in equal.items():
            if column not in SCHEMA:
                raise InputError(
                    "a column of the table", repr(column), f"Nearest: {near_names(column, SCHEMA)}"
                )
            values = wanted if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
            held = self.frame[column].isin([value for value in values if value is not None])
            if None in values:
                held |= self.frame[column].isna() | (self.frame[column] == "").fillna(False)
            rows &= held.astype(bool)
        return ResultTable(self.frame[rows], self.provenance, self.attachments)

    def best(self, metric: str, *, target: str | None = None, model: str | None = None) -> ResultTable:
        """Return the rows of a metric at the best tap of every model, target and data set.

        The tap is chosen on val wherever val scores are known (``val`` in the params, or rows of
        the split ``val``); only where they are not, on the reported value itself, which is optimistic.

        Raises:
            InputError: If the table has no such metric, target or model.
        """
        chosen = self._selected(metric, target, model)
        return ResultTable(best_rows(chosen.frame, metric), self.provenance, self.attachments)

    def probe(self, model: str, tap: str, target: str, *, data: str | None = None) -> Probe:
        """Return the fitted probe of one model, tap and target.

        Args:
            model: Name of the model.
            tap: Tap, as in the column.
            target: Name of the target.
            data: Name of the data set; needed only if the table has several with that target.

        Raises:
            InputError: If there is none, or several.
        """
        return Probe.from_arrays(self._attached("probes", ".npz", model, tap, target, data))

    def scores(self, model: str, tap: str, target: str, *, data: str | None = None) -> pd.DataFrame:
        """Return the per-image scores of one probe: a column ``id``, and one column per comparable metric.

        Raises:
            InputError: If there are none, or several.
        """
        scores: pd.DataFrame = self._attached("scores", ".parquet", model, tap, target, data)
        return scores

    # Looking

    def wide(
        self,
        metric: str | None = None,
        *,
        target: str | None = None,
        columns: str = "tap",
        decimals: int = 3,
        percent: bool = False,
    ) -> pd.DataFrame:
        """Return a table for people: one row per model, one column per tap, ``value ± half interval``.

        Args:
            metric: By default the first of accuracy, mean_ap, r2 that the table has.
            target: One target; by default all of them, in rows of their own if there are several.
            columns: What the columns are: any column of the schema, or a key of ``params`` such as
                ``shots``. With ``target``, the values are those at the tap chosen on val.
            decimals: Digits after the point.
            percent: Multiply by 100.

        Raises:
            InputError: If a name is unknown, or several rows would fall into one cell.
        """
        return presentation.grid(self, metric, target, columns).frame(decimals=decimals, percent=percent)

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return all rows as CSV text, and write it atomically if a path is given."""
        return _written(self.frame.to_csv(index=False, lineterminator="\n"), path)

    def to_parquet(self, path: str | Path) -> None:
        """Write all rows atomically as one Parquet file."""
        with replacing(Path(path)) as temporary:
            self.frame.to_parquet(temporary, index=False)

    def to_markdown(
        self,
        metric: str | None = None,
        *,
        target: str | None = None,
        columns: str = "tap",
        decimals: int = 3,
        percent: bool = False,
        path: str | Path | None = None,
    ) -> str:
        """Return the table of ``wide`` as Markdown: best bold, second in italics; write it to ``path``."""
        made = presentation.grid(self, metric, target, columns)
        return _written(presentation.markdown(made, decimals, percent), path)

    def to_latex(
        self,
        metric: str | None = None,
        *,
        target: str | None = None,
        columns: str = "tap",
        decimals: int = 3,
        percent: bool = False,
        caption: str | None = None,
        label: str | None = None,
        path: str | Path | None = None,
    ) -> str:
        """Return the table of ``wide`` as LaTeX for booktabs: best bold, second underlined, ± intervals."""
        made = presentation.grid(self, metric, target, columns)
        return _written(presentation.latex(made, decimals, percent, caption, label), path)

    def plot(self, kind: str = "depth", **settings: Any) -> Figure:  # noqa: ANN401 - the figure's settings
        """Draw the table: ``depth``, ``few_shot``, ``class_recall`` or ``targets``.

        Args:
            kind: Which figure.
            **settings: Passed on, such as ``metric``, ``target``, ``model``.

        Raises:
            InputError: If the kind is unknown, or the table has nothing to draw.
        """
        from probekit.figures import draw

        return draw(self, kind, **settings)

    # Comparing

    def compare(
        self,
        *,
        metric: str | None = None,
        target: str | None = None,
        by: str = "model",
        baseline: str | None = None,
        at: str = "tap",
        draws: int = 10000,
        level: float = 0.95,
    ) -> ResultTable:
        """Compare probes on the same test images: paired differences, intervals, Holm-adjusted p.

        Args:
            metric: A column of the score attachments; by default the first of accuracy, mean_ap, r2.
            target: By default the only one.
            by: ``model`` compares models at the same tap, ``tap`` compares taps of the same model.
            baseline: Model or tap that all others are compared with; by default every pair is. Random-init
                controls take part only as the baseline.
            at: For ``by='model'``: ``tap`` compares at every tap both models have, ``best`` at the tap
                chosen on val for each.
            draws: Bootstrap resamples of the images.
            level: Coverage of the intervals.

        Returns:
            One row per comparison, metric ``…_difference``, null 0; ``params`` holds ``versus``, ``p`` and
            ``p_holm`` (adjusted over all rows of this table).

        Raises:
            InputError: If names are unknown, per-image scores are missing, or images differ.
        """
        return comparing.compare_table(
            self, metric, target, by=by, baseline=baseline, at=at, draws=draws, level=level
        )

    # Keeping

    def write(self, folder: str | Path) -> None:
        """Write ``table.parquet``, ``table.csv`` (or ``.csv.gz``), attachments, last ``provenance.json``.

        Each file is replaced as a whole; ``provenance.json`` holds the digests of all others.

        Args:
            folder: A path, or a URL of object storage.

        Raises:
            InputError: If an attachment's name or value does not fit its suffix.
            RemoteUnreachable: If object storage cannot be written.
        """
        place = local_folder(folder)
        write_folder(place, self.frame, self.provenance, self.attachments)
        if is_url(folder):
            send_table(place)

    @classmethod
    def read(cls, folder: str | Path) -> ResultTable:
        """Read a written table; attachments are read, and checked, only when asked for.

        Args:
            folder: A path, or a URL of object storage.

        Raises:
            InputError, StoreDamaged: If a file is missing or not what was written.
            SchemaMismatch: If it was written in another format.
            RemoteUnreachable: If object storage cannot be read.
        """
        place = local_folder(folder)
        if is_url(folder):
            fetch_table(place)
        return cls(*read_folder(place))

    def _names(self, column: str) -> list[str]:
        return [str(name) for name in self.frame[column].unique() if name != ""]

    def _require(self, column: str, value: str) -> None:
        known = self._names(column)
        if value not in known:
            raise InputError(f"a {column} of the table", repr(value), f"Nearest: {near_names(value, known)}")

    def _attached(self, kind: str, suffix: str, model: str, tap: str, target: str, data: str | None) -> Any:  # noqa: ANN401 - by suffix
        for column, value in {"model": model, "tap": tap, "target": target}.items():
            self._require(column, value)
        rows = self.where(model=model, tap=tap, target=target).frame
        if data is None and rows["data"].nunique() > 1:
            several = ", ".join(rows["data"].unique())
            raise InputError(f"one data set with the target {target!r}", several, "Name it with `data=`")
        if data is not None:
            rows = rows[rows["data"] == data]
        places = rows[["run_id", "data"]].drop_duplicates().itertuples(index=False, name=None)
        keys = [
            key
            for run, name in places
            for key in attachment_keys(kind, suffix, run, name, model, tap, target)
        ]
        for key in keys:
            if key in self.attachments:
                return self.attachments[key]
        wanted = keys[-1] if keys else f"{kind} of {model} at {tap}"
        raise InputError(
            f"the attachment {wanted!r}",
            f"{len(self.attachments)} attachments without it",
            f"Nearest: {near_names(wanted, self.attachments) or 'none'}",
        )

    def _selected(self, metric: str, target: str | None, model: str | None) -> ResultTable:
        """Narrow to what is named and known; the metric keeps its companions for choosing on val."""
        self._require("metric", metric)
        narrowed: ResultTable = self
        for column, value in {"target": target, "model": model}.items():
            if value is not None:
                self._require(column, value)
                narrowed = narrowed.where(**{column: value})
        return narrowed


def attachment_keys(
    kind: str, suffix: str, run: str, data: str, model: str, tap: str, target: str
) -> list[str]:
    """Return where a probe's attachment may stand, most specific first.

    A table stacked from several runs keeps what would collide under the run's name, one of several data
    sets under the data set's.

    Examples:
        >>> attachment_keys("probes", ".npz", "", "flowers", "a", "layer1", "class")
        ['probes/flowers/a/layer1/class.npz', 'probes/a/layer1/class.npz']
    """
    short = "/".join(safe_name(part) for part in (model, tap, target)) + suffix
    keys = [f"{kind}/{safe_name(data)}/{short}"] if data else []
    keys.append(f"{kind}/{short}")
    return ([f"{safe_name(run)}/{key}" for key in keys] if run else []) + keys


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        with replacing(Path(path)) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return text
