"""Which models a figure names when there are more of them than can be told apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probekit.figures import style
from probekit.results.metrics import metric_facts
from probekit.results.presentation import primary_metrics
from probekit.results.table import ResultTable

# Looks that differ; from more models on, as many are named as there are colours.
MOST_MODELS = len(style.COLOURS) * len(style.DASHES)
NAMED = len(style.COLOURS)


def foremost(table: ResultTable, models: Sequence[str]) -> list[str]:
    """Return the models that a figure names, in their order: all, or a few of very many.

    The few are taken evenly from the best to the worst: the best alone would lie on top of each other.

    Args:
        table: Where they are judged: by their best tap in its first primary metric, as a mean rank over
            data sets and targets. Where neither end of that is better, they are taken evenly from the order.
        models: Those that there are to draw.

    Examples:
        >>> rows = [{"model": f"step{i:02d}", "metric": "icc", "value": (30 - i) ** 2} for i in range(60)]
        >>> table = ResultTable.from_rows(rows)
        >>> foremost(table, table.trained)[0], foremost(table, ["step02", "step00"])
        ('step00', ['step02', 'step00'])
    """
    if len(models) <= MOST_MODELS:
        return list(models)
    ranked = _ranked(table, models)
    places = np.linspace(0, len(ranked) - 1, NAMED).round().astype(int)
    chosen = {ranked[place] for place in places}
    return [model for model in models if model in chosen]


def _ranked(table: ResultTable, models: Sequence[str]) -> list[str]:
    frame = table.frame[table.frame["model"].isin(models) & ~table.frame["split"].isin(("train", "val"))]
    metrics = primary_metrics(frame)
    better = metric_facts(metrics[0]).higher_is_better if metrics else None
    if better is None:
        return list(models)
    groups = frame[frame["metric"] == metrics[0]].groupby(["data", "target", "model"], sort=False)["value"]
    best = groups.max() if better else groups.min()
    ranks = best.groupby(["data", "target"]).rank(ascending=not better).groupby("model").mean()
    return [str(model) for model in ranks.reindex(list(models)).sort_values(kind="stable").index]


def naming_note(table: ResultTable, named: int, models: int) -> str:
    """Say which of the models a figure names, '' if it names all."""
    if named == models:
        return ""
    facts = metric_facts(primary_metrics(table.frame)[0])
    if facts.higher_is_better is None:
        return f"Named: {named} of {models} models, evenly from their order"
    return f"Named: {named} of {models} models, evenly from the best to the worst by {facts.label.lower()}"
