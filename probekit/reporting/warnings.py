"""What a reader should know before believing a table: a pure function of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from probekit.results.choosing import PRIMARY, choose_taps
from probekit.results.presentation import primary_metrics
from probekit.results.schema import LEVELS, OK, read_params
from probekit.results.table import ResultTable

SEVERITIES = ("serious", "caution", "note")

# Below these, intervals are wide or misleading.
FEW_IMAGES, FEW_PER_CLASS, ROWS_PER_COLUMN = 100, 10, 10


class Caution(NamedTuple):
    """One thing to know: ``serious`` (do not rely on it), ``caution`` (mind it) or ``note``."""

    severity: str
    text: str


def list_cautions(table: ResultTable) -> list[Caution]:
    """Return what limits the table's claims, the most serious first.

    Args:
        table: Any result table; facts it does not have are passed over.

    Examples:
        >>> table = ResultTable.from_rows([
        ...     {"model": "a", "target": "y", "tap": "t", "metric": "accuracy", "value": 0.9, "n": 40}])
        >>> list_cautions(table)[0].text
        'y: only 40 images in the test split; intervals are wide and rankings of taps unsure.'
    """
    found = [caution for check in _CHECKS for caution in check(table)]
    unique = list(dict.fromkeys(found))
    return sorted(unique, key=lambda caution: SEVERITIES.index(caution.severity))


def _few_images(table: ResultTable) -> Iterable[Caution]:
    counts = _labelled(table, _judged(table)).groupby("label", sort=False)["n"].min().dropna()
    few = counts[counts < FEW_IMAGES]
    if len(few):
        yield Caution(
            "caution",
            f"{_name(few.index)}only {_images(int(few.min()))} in the test split; intervals are wide and "
            "rankings of taps unsure.",
        )


def _few_per_class(table: ResultTable) -> Iterable[Caution]:
    recalls = _labelled(table, table.frame[table.frame["metric"] == "class_recall"])
    least: dict[str, int] = {}
    for target, own in _labelled(table, _judged(table)).groupby("label", sort=False):
        if own["metric"].iloc[0] != "accuracy":
            continue
        counts = recalls.loc[recalls["label"] == target, "n"].dropna()
        if len(counts):
            least[str(target)] = int(counts.min())
        elif own["n"].notna().any() and own["n_classes"].notna().any():
            # Without counts of their own, classes are taken as equally frequent.
            least[str(target)] = int(own["n"].min() // max(own["n_classes"].max(), 1))
    few = {target: count for target, count in least.items() if count < FEW_PER_CLASS}
    if few:
        yield Caution(
            "caution",
            f"{_name(few)}the rarest class has {_images(min(few.values()))} in the test split; read no "
            "single class.",
        )


def _few_training(table: ResultTable) -> Iterable[Caution]:
    rows = _judged(table)
    counts = pd.Series(
        [params.get("n_train") for params in read_params(rows)], index=rows.index, dtype="float64"
    )
    short = rows[
        counts.notna() & rows["d"].notna() & (counts < ROWS_PER_COLUMN * rows["d"].astype("float64"))
    ]
    if len(short):
        least = int(counts.loc[short.index].min())
        boxes = table.provenance.get("analysis") == "boxes"
        units = "regions" if boxes else "images"
        yield Caution(
            "caution",
            f"Fewer than {ROWS_PER_COLUMN} fitting {units} per feature at {short['tap'].nunique()} of "
            f"{rows['tap'].nunique()} taps ({least} {units}, D up to {int(short['d'].max())}): the penalty "
            f"decides much of what is found there{'' if boxes else '; see accuracy at equal D'}.",
        )


_EDGES = {
    "low": ("weakest", "a wider grid may score higher there"),
    "high": ("strongest", "either there is little to find there, or a wider grid would score higher"),
}


def _penalty_edges(table: ResultTable) -> Iterable[Caution]:
    rows = _judged(table)
    params = read_params(rows)
    for edge, (penalty, meaning) in _EDGES.items():
        places = [
            f"{model} at {tap}"
            for model, tap, one in zip(rows["model"], rows["tap"], params, strict=True)
            if one.get("penalty_edge") == edge
        ]
        if places:
            yield Caution(
                "caution",
                f"The {penalty} penalty of the grid was chosen for {len(places)} of {len(rows)} probes "
                f"({_few(list(dict.fromkeys(places)))}): {meaning}.",
            )


def _not_converged(table: ResultTable) -> Iterable[Caution]:
    rows = _judged(table)
    places = [
        f"{model} at {tap}"
        for model, tap, one in zip(rows["model"], rows["tap"], read_params(rows), strict=True)
        if one.get("converged") is False
    ]
    if places:
        yield Caution("serious", f"{len(places)} probes did not reach the stated gap ({_few(places)}).")


def _unequal_preprocessing(table: ResultTable) -> Iterable[Caution]:
    facts = _model_facts(table)
    for key, words in (("size", "input size"), (None, "preprocessing")):
        values: dict[str, list[str]] = {}
        for name in table.trained:
            preprocessing = facts.get(name, {}).get("preprocessing")
            if not isinstance(preprocessing, Mapping):
                continue
            if key is None:
                rest = {one: value for one, value in preprocessing.items() if one not in ("size", "resize")}
                text = ", ".join(f"{one} {_short(value)}" for one, value in sorted(rest.items()))
            else:
                text = f"{preprocessing.get(key)} px"
            values.setdefault(text, []).append(name)
        if len(values) > 1:
            parts = "; ".join(f"{_few(names)}: {text}" for text, names in values.items())
            yield Caution(
                "caution", f"Models differ in {words} ({parts}): their differences mix it with the weights."
            )


def _seen_in_pretraining(table: ResultTable) -> Iterable[Caution]:
    for name, facts in _facts(table, "data").items():
        seen = facts.get("seen_in_pretraining", "unknown")
        if seen == "yes":
            yield Caution(
                "serious", f"{name}: these images were used in pretraining; scores do not measure transfer."
            )
        elif seen != "no":
            yield Caution("note", f"{name}: whether these images were used in pretraining is unknown.")


def _one_seed(table: ResultTable) -> Iterable[Caution]:
    rows = table.frame[table.frame["model"].isin(table.trained)]
    if not len(rows) or len(table.trained) < 2:
        return
    weights = rows.groupby("model")["weights"].nunique()
    seeds = rows.groupby("model")["pretrain_seed"].nunique()
    if int(weights.max()) <= 1 and int(seeds.max()) <= 1:
        yield Caution(
            "caution",
            "Indicative: every model is one checkpoint, so one pretraining seed. Differences hold for these "
            "weights; whether they hold for the way of training, one seed cannot tell.",
        )


def _skipped(table: ResultTable) -> Iterable[Caution]:
    for name, facts in _facts(table, "data").items():
        count = facts.get("skipped") or 0
        if count:
            yield Caution(
                "note",
                f"{name}: left out {_images(int(count))} that could not be read.",
            )


def _statuses(table: ResultTable) -> Iterable[Caution]:
    rows = table.frame[table.frame["status"] != OK]
    for status, own in rows.groupby("status", sort=False):
        where = [
            f"{model} at {tap}" if tap else model for model, tap in zip(own["model"], own["tap"], strict=True)
        ]
        trained = own["model"].isin(table.trained).any()
        unique = list(dict.fromkeys(where))
        metrics = _few(list(dict.fromkeys(own["metric"])))
        yield Caution(
            "caution" if trained else "note",
            f"{len(own)} values of {metrics} are undefined: {str(status).rstrip('.')} ({_few(unique)}).",
        )


def _level_shares(table: ResultTable) -> Iterable[Caution]:
    if not table.frame["level"].isin(LEVELS).any():
        return
    shares = _facts(table, "level_shares")
    archs = {name: str(facts.get("arch", name)) for name, facts in _model_facts(table).items()}
    said = set()
    for name in table.trained:
        arch = archs.get(name, name)
        levels = shares.get(name) or {}
        if arch in said or not levels:
            continue
        said.add(arch)
        parts = ", ".join(
            f"{level} {_percent(levels[level].get('parameters'))} and {_percent(levels[level].get('flops'))}"
            for level in LEVELS
            if level in levels
        )
        yield Caution(
            "note",
            f"Shares of parameters and FLOPs by level in {arch}: {parts}. Levels are unequal: compare them "
            "only within one architecture.",
        )


def _chosen_on_test(table: ResultTable) -> Iterable[Caution]:
    trained = set(table.trained)
    for metric in [one for one in primary_metrics(table.frame) if one in PRIMARY]:
        choices = choose_taps(table.frame, metric)
        on_test = [
            model for (_, model, _), choice in choices.items() if choice.on == "test" and model in trained
        ]
        names = _few(list(dict.fromkeys(on_test)))
        taps = table.frame.loc[table.frame["metric"] == metric].groupby("model")["tap"].nunique()
        if on_test and int(taps.max()) > 1:
            yield Caution(
                "caution",
                f"{metric}: no val scores, so the best tap of {names} was chosen on the reported test value, "
                "which is optimistic.",
            )


def _no_controls(table: ResultTable) -> Iterable[Caution]:
    judged = _judged(table)
    if len(judged) and not table.controls and set(judged["metric"]) & set(PRIMARY):
        yield Caution("note", "No random-init control: how much the architecture alone gives is not known.")


def _from_provenance(table: ResultTable) -> Iterable[Caution]:
    for text in table.provenance.get("warnings") or []:
        yield Caution("caution", str(text))


_CHECKS: tuple[Callable[[ResultTable], Iterable[Caution]], ...] = (
    _seen_in_pretraining,
    _not_converged,
    _from_provenance,
    _one_seed,
    _few_images,
    _few_per_class,
    _few_training,
    _penalty_edges,
    _unequal_preprocessing,
    _chosen_on_test,
    _statuses,
    _skipped,
    _no_controls,
    _level_shares,
)


def _judged(table: ResultTable) -> pd.DataFrame:
    """Return the defined, scored rows of trained models in the metrics a table is judged by."""
    frame = table.frame
    scored = ~frame["split"].isin(("train", "val")) & (frame["status"] == OK)
    return frame[scored & frame["model"].isin(table.trained) & frame["metric"].isin(primary_metrics(frame))]


def _labelled(table: ResultTable, rows: pd.DataFrame) -> pd.DataFrame:
    """Add what a target is called: its name, with that of its data set where there are several."""
    if table.frame["data"].nunique() < 2:
        return rows.assign(label=rows["target"])
    return rows.assign(label=rows["target"] + " (" + rows["data"] + ")")


def _facts(table: ResultTable, key: str) -> dict[str, Any]:
    found = table.provenance.get(key)
    return dict(found) if isinstance(found, Mapping) else {}


def _model_facts(table: ResultTable) -> dict[str, Mapping[str, Any]]:
    return {name: facts or {} for name, facts in _facts(table, "models").items()}


def _name(targets: Iterable[Any]) -> str:
    names = [str(one) for one in targets if one]
    return f"{_few(names)}: " if names else ""


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}".replace("%", " %")


def _short(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return "/".join(f"{one:g}" for one in value) if isinstance(value, list | tuple) else str(value)


def _few(names: list[str], limit: int = 4) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
