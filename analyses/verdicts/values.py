"""From tables of results to the values that rules weigh: quantity, arm, pretraining seed, value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import pandas as pd

from probekit import ResultTable

COLUMNS = ["quantity", "arm", "seed", "value"]
# Levels of a backbone that are kept and not drawn anew → what such a state is called in rules.
STATES: Mapping[tuple[str, ...], str] = {("low", "mid"): "low_mid", ("mid", "high"): "mid_high"}
# First metrics of tasks; of those in the second line less is better.
SCORES = ("accuracy", "ap", "mean_iou")
ERRORS = ("normalised_error",)


def of_models(
    table: ResultTable, quantity: str, metric: str, targets: Iterable[str], readout: str = "gap"
) -> pd.DataFrame:
    """Return one metric of the deepest tap of every model, mean over targets.

    Args:
        table: Of models called ``ARM seed-SEED RUNG``; the rung ``images`` is left out of the arm's name.
        quantity: What it is called in rules.
        metric: Which.
        targets: Which; their mean is the value.
        readout: Of the tap.
    """
    asked = list(targets)
    frame = table.frame[(table.frame["metric"] == metric) & table.frame["target"].isin(asked)]
    frame = frame[(frame["readout"] == readout) & ~frame["model"].isin(table.controls)]
    frame = frame[frame["depth"] == frame["depth"].max()]
    words = frame["model"].astype(str).str.split(" ")
    rung = words.str[-1]
    named = pd.DataFrame(
        {
            "quantity": quantity,
            "arm": words.str[0].where(rung == "images", words.str[0] + ", " + rung),
            "seed": words.str[1].str.removeprefix("seed-").astype(int),
            "value": frame["value"].astype(float),
            "target": frame["target"].astype(str),
        }
    )
    wide = named.pivot_table(index=COLUMNS[:3], columns="target", values="value", aggfunc="first")
    # A seed without one of the targets has no value: the mean of the others would be another quantity.
    return wide.reindex(columns=asked).mean(axis=1, skipna=False).rename("value").reset_index()


def of_states(table: ResultTable, task: str) -> pd.DataFrame:
    """Return what every arm and seed scores, whole, from scratch and with some levels kept; more is better.

    Args:
        table: Of ``reset_curves`` or ``transfer`` with arms.
        task: What the task is called in rules.
    """
    frame = table.frame[table.frame["pretrain_seed"].notna()]
    metric = next(one for one in (*SCORES, *ERRORS) if one in set(frame["metric"]))
    sign = -1.0 if metric in ERRORS else 1.0
    rows = []
    for _, row in frame[(frame["metric"] == metric) & frame["value"].notna()].iterrows():
        state = _state(json.loads(row["params"]))
        if state:
            rows.append([f"{task}.{state}", row["model"], int(row["pretrain_seed"]), sign * row["value"]])
    return pd.DataFrame(rows, columns=COLUMNS).drop_duplicates(COLUMNS[:3])


def of_errors(table: ResultTable, task: str, metrics: Mapping[str, str]) -> pd.DataFrame:
    """Return errors of detectors made from whole backbones.

    Args:
        table: Of ``diagnose`` with arms.
        task: What the task is called in rules.
        metrics: Metric → what it is called in rules.
    """
    frame = table.frame[table.frame["pretrain_seed"].notna() & table.frame["metric"].isin(list(metrics))]
    whole = frame[[json.loads(one)["mode"] == "" for one in frame["params"]]]
    return pd.DataFrame(
        {
            "quantity": [f"{task}.{metrics[metric]}" for metric in whole["metric"]],
            "arm": whole["model"].astype(str),
            "seed": whole["pretrain_seed"].astype(int),
            "value": whole["value"].astype(float),
        }
    )


def _state(params: Mapping[str, object]) -> str:
    kept, mode = tuple(str(one) for one in params["kept"]), str(params["mode"])  # type: ignore[attr-defined]
    if not mode:
        return "score"
    if not kept:
        return {"random": "scratch", "stats": "stats"}.get(mode, "")
    return STATES.get(kept, "") if mode == "random" else ""
