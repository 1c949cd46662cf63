"""Who and what stands behind a page: models, data, runs, metrics, as rows to print."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from probekit.results.families import FAMILIES
from probekit.results.metrics import base_metric, kind_words, metric_facts
from probekit.results.presentation import fixed
from probekit.results.schema import LEVELS
from probekit.results.table import ResultTable

DIGEST_LETTERS = 12


def model_rows(tables: Mapping[str, ResultTable]) -> list[dict[str, str]]:
    """Return one row per trained model, and one per architecture for its random-init controls."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for table in tables.values():
        facts = _facts(table, "models")
        for name in table.trained:
            own = _named(table, name) | dict(facts.get(name) or {})
            rows.setdefault((name, str(own.get("weights", ""))), _model_row(name, own))
        drawn: dict[str, list[str]] = {}
        for name in table.controls:
            own = _named(table, name) | dict(facts.get(name) or {})
            drawn.setdefault(str(own.get("arch", "")), []).append(name)
        for arch, names in drawn.items():
            own = {**_named(table, names[0]), **(facts.get(names[0]) or {})}
            label = ", ".join(names)
            row = _model_row(label, own)
            row |= {"weights": "", "checkpoint": "random init (control)", "coverage": "drawn, not loaded"}
            rows.setdefault((label, arch), row)
    return list(rows.values())


def data_rows(tables: Mapping[str, ResultTable]) -> list[dict[str, Any]]:
    """Return one row per data set: digest, counts by split, targets, what is known of pretraining."""
    rows: dict[str, dict[str, Any]] = {}
    for table in tables.values():
        known = _facts(table, "data")
        for name in [str(one) for one in table.frame["data"].unique() if one]:
            facts = known.get(name) or {}
            counts = facts.get("n") or {}
            targets = [_target(title, one) for title, one in (facts.get("targets") or {}).items()]
            rows.setdefault(
                name,
                {
                    "name": name,
                    "digest": str(facts.get("digest", ""))[:DIGEST_LETTERS],
                    "counts": " / ".join(str(counts.get(role, "–")) for role in ("train", "val", "test")),
                    "targets": targets[:8] + ([f"and {len(targets) - 8} more"] if len(targets) > 8 else []),
                    "seen": str(facts.get("seen_in_pretraining", "unknown")),
                    "skipped": str(facts.get("skipped", "–")),
                },
            )
    return list(rows.values())


def run_rows(tables: Mapping[str, ResultTable]) -> list[dict[str, Any]]:
    """Return one entry per run: command, versions, seed, time and settings."""
    rows: list[dict[str, Any]] = []
    for table in tables.values():
        shared = dict(table.provenance)
        for part in shared.pop("runs", None) or [{}]:
            run = {**shared, **part}
            versions = {"probekit": run.get("probekit"), **(run.get("versions") or {})}
            row = {
                "run_id": str(run.get("run_id", "")),
                "command": str(run.get("command", "")),
                "created": str(run.get("created", "")),
                "wall": _duration(run.get("wall_s")),
                "seed": "" if run.get("seed") is None else str(run["seed"]),
                "versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value),
                "settings": json.dumps(
                    run.get("settings") or {}, indent=1, sort_keys=True, ensure_ascii=False
                ),
            }
            if row not in rows:
                rows.append(row)
    return rows


def reading_rows(tables: Mapping[str, ResultTable]) -> list[dict[str, Any]]:
    """Return how to read what occurs: families of metrics, each with the facts and nulls of its own."""
    rows = _metric_rows(tables)
    families = []
    for one in FAMILIES:
        own = [row for row in rows if row["base"] in one.metrics]
        if own:
            families.append({"title": one.title, "reading": one.reading, "metrics": own})
            rows = [row for row in rows if row not in own]
    others = [{"title": "", "reading": "", "metrics": rows}] if rows else []
    return [*others, *families]


def general_rows(tables: Mapping[str, ResultTable]) -> list[dict[str, str]]:
    """Return what null, random init and interval mean in the analyses that occur."""
    analyses = {str(name) for table in tables.values() for name in table.frame["analysis"].unique()}
    chosen = [words for name, words in _GENERAL.items() if name in analyses] or [_GENERAL["probe"]]
    made = {
        "Null": [one[0] for one in chosen],
        "Random init": [_RANDOM],
        "Interval": [one[1] for one in chosen],
    }
    return [{"term": term, "text": " ".join(dict.fromkeys(texts))} for term, texts in made.items()]


_RANDOM = (
    "The same architecture without training, as a model of its own. What it reaches comes from the "
    "architecture and the images, not from pretraining."
)
# Analysis → what its null and its interval are.
_GENERAL = {
    "probe": (
        "The same metric after its target was destroyed, usually by permuting labels before fitting. What "
        "does not clear the null's range is not there.",
        "How far the value would move with other test images, the fitted probe held fixed. It does not "
        "cover other pretraining seeds.",
    ),
    "geometry": (
        "The same measure after the class labels were permuted among the images: what it shows without any "
        "class. What does not clear the null's range is not there.",
        "How far the value would move with other classes: one class at a time is left out. Measures without "
        "an interval have none that was found to hold.",
    ),
    "similarity": (
        "The same measure after the images of one layer were paired with other images of the other layer: "
        "by a formula where there is one (analytic), else mean and range of some new pairings (permuted). A "
        "value near its null is no likeness, however high it is.",
        "How far the value would move with other images: one group of images at a time is left out. Only "
        "kernel alignment has one; it does not cover other pretraining seeds.",
    ),
    "diagnose": (
        "The same measure after every image was given the true boxes of another one: what is found by "
        "knowing the data set, without looking at the image.",
        "Of a state, how far the mean would move with other trials or folds; folds share most of their "
        "training images, so that theirs is rather too narrow. Of a single training, how far the value would "
        "move with other test images: one group of images at a time is left out.",
    ),
}


def _metric_rows(tables: Mapping[str, ResultTable]) -> list[dict[str, str]]:
    """Return how to read each metric that occurs, and where its null lies."""
    names = dict.fromkeys(name for table in tables.values() for name in table.metrics)
    rows = []
    for name in names:
        facts = metric_facts(name)
        direction = {True: "higher is better", False: "lower is better", None: ""}[facts.higher_is_better]
        ends = [
            f"from {facts.low:g}" if facts.low is not None else "",
            f"to {facts.high:g}" if facts.high is not None else "",
        ]
        parts = [
            direction,
            " ".join(end for end in ends if end),
            f"chance {facts.formula}" if facts.formula else "",
            *_nulls(pd.concat([table.frame[table.frame["metric"] == name] for table in tables.values()])),
        ]
        rows.append(
            {
                "name": name,
                "base": base_metric(name),
                "label": facts.label,
                "reading": facts.reading,
                "facts": "; ".join(filter(None, parts)),
            }
        )
    return rows


def _nulls(rows: pd.DataFrame) -> list[str]:
    """Say in which range the nulls of a metric lie here, kind by kind."""
    made = []
    for kind, own in rows[rows["null"].notna()].groupby("null_kind", sort=False):
        low, high = (fixed(float(own["null"].agg(end)), 3) for end in ("min", "max"))
        span = low if low == high else f"{low} to {high}"
        made.append(f"null {span} ({kind_words(str(kind))})" if kind else f"null {span}")
    return made


def level_rows(tables: Mapping[str, ResultTable]) -> list[dict[str, str]]:
    """Return each architecture's shares of parameters and FLOPs by level."""
    rows: dict[str, dict[str, str]] = {}
    for table in tables.values():
        models = _facts(table, "models")
        for name, shares in _facts(table, "level_shares").items():
            arch = str((models.get(name) or {}).get("arch", name))
            if shares and arch not in rows:
                rows[arch] = {"arch": arch} | {
                    f"{level}_{what}": f"{share:.0%}".replace("%", " %") if share is not None else "–"
                    for level in LEVELS
                    for what in ("parameters", "flops")
                    for share in [(shares.get(level) or {}).get(what)]
                }
    return list(rows.values())


def _model_row(name: str, facts: Mapping[str, Any]) -> dict[str, str]:
    parameters = facts.get("parameters")
    branch = facts.get("branch")
    checkpoint = str(facts.get("checkpoint") or "")
    return {
        "name": name,
        "arch": str(facts.get("arch", "")),
        "weights": str(facts.get("weights", ""))[:DIGEST_LETTERS],
        "checkpoint": f"{checkpoint} ({branch})" if branch and checkpoint else checkpoint,
        "coverage": str(facts.get("coverage", "")),
        "preprocessing": str(facts.get("preprocessing_text", "")),
        "parameters": f"{parameters / 1e6:.1f} M" if isinstance(parameters, int | float) else "",
    }


def _named(table: ResultTable, name: str) -> dict[str, Any]:
    """Return what the rows themselves say of a model, for tables without provenance."""
    rows = table.frame[table.frame["model"] == name]
    return {"arch": rows["arch"].iloc[0], "weights": rows["weights"].iloc[0]} if len(rows) else {}


def _target(name: str, facts: Mapping[str, Any]) -> str:
    kind, count = str(facts.get("kind", "")), len(facts.get("classes") or [])
    words = {"class": f"{count} classes", "multilabel": f"{count} labels"}.get(kind)
    return f"{name} ({words or kind})" if words or kind else name


def _facts(table: ResultTable, key: str) -> dict[str, Any]:
    found = table.provenance.get(key)
    return dict(found) if isinstance(found, Mapping) else {}


def _duration(seconds: Any) -> str:  # noqa: ANN401 - from provenance
    if not isinstance(seconds, int | float):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    )
