"""Arms over their seeds: means, and differences from random init and from cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probekit import ResultTable
from probekit.functional import t_interval, welch_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM = "random init"
METRICS = ("accuracy", "r2")
ARCH = "resnet10_w16"
# Arms of equal images, and of equal time, by the names of their rungs.
IMAGES, TIME = "images", "time"
_SAME = ["target", "metric", "tap"]
_WHERE = ["data", "split", "block", "level", "depth", "readout"]


def seed_words(folder: str, seeds: int, size: int | None = None) -> list[str]:
    """Return the words that load every seed of an arm that ``analyses/pretraining.py`` left in a folder.

    Args:
        folder: Holds ``seed-0.pth`` and so on.
        seeds: How many.
        size: Side of the input in pixels; None takes that of pretraining.

    Examples:
        >>> seed_words("checkpoints/ce_images", 1, 64)
        ['resnet10_w16:checkpoints/ce_images/seed-0.pth,size=64']
    """
    ending = "" if size is None else f",size={size}"
    return [f"{ARCH}:{folder}/seed-{seed}.pth{ending}" for seed in range(seeds)]


def over_seeds(probed: ResultTable, metrics: Sequence[str] = METRICS) -> ResultTable:
    """Return mean and differences of every arm, rung, target and tap, a pretraining seed a unit.

    Means have a t-interval over seeds. ``…_difference`` rows say ARM − random init, by Welch's interval for
    unequal variances, and ARM − ce at the same images, paired by seed; of the latter, ``status`` says why a
    difference does not count: an interval that holds 0, or another sign at equal time.

    Args:
        probed: Of models called ``ARM seed-SEED RUNG`` and of their random-init controls.
        metrics: What is compared.
    """
    frame = _units(probed, metrics)
    return ResultTable.from_rows([*_means(frame), *_from_random(frame), *_from_supervised(frame)])


def _units(probed: ResultTable, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Return the rows of some metrics with arm, seed and rung."""
    frame = probed.where(metric=[one for one in metrics if one in probed.metrics]).frame
    words = frame["model"].astype(str).str.split(" ")
    control = frame["model"].isin(probed.controls)
    frame = frame.assign(arm=words.str[0], seed=words.str[1], rung=words.str[-1])
    frame.loc[control, ["arm", "rung"]] = RANDOM, ""
    frame.loc[control, "seed"] = frame.loc[control, "model"]
    return frame[frame["value"].notna()]


def name(arm: str, rung: str) -> str:
    """Return what an arm of a rung is called in tables and figures."""
    return arm if not rung or rung == IMAGES else f"{arm}, {rung}"


def _means(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for (arm, rung, *_), rows in frame.groupby(["arm", "rung", *_SAME], sort=False):
        yield _row(rows, str(arm), str(rung), "") | _interval(rows["value"].to_numpy(float))


def _from_random(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for _, every in frame.groupby(_SAME, sort=False):
        random = every.loc[every["arm"] == RANDOM, "value"].to_numpy(float)
        for (arm, rung), rows in every[every["arm"] != RANDOM].groupby(["arm", "rung"], sort=False):
            values = rows["value"].to_numpy(float)
            row = _row(rows, str(arm), str(rung), "_difference") | {"params": {"from": RANDOM}}
            row["value"] = float(values.mean() - random.mean()) if len(random) else None
            if min(len(values), len(random)) > 1:
                low, high = welch_interval(values, random)
                row |= {"ci_low": low, "ci_high": high, "ci_kind": "t,seeds and draws"}
            yield row


def _from_supervised(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for _, every in frame.groupby(_SAME, sort=False):
        at = {rung: _by_seed(every, rung) for rung in (IMAGES, TIME)}
        supervised = at[IMAGES].get("ce")
        if supervised is None:
            continue
        for arm, values in at[IMAGES].items():
            if arm == "ce":
                continue
            rows = every[(every["arm"] == arm) & (every["rung"] == IMAGES)]
            found = _interval((values - supervised).dropna().to_numpy(float))
            in_time = at[TIME].get(arm)
            other = np.nan if in_time is None else float((in_time - supervised).dropna().mean())
            yield _row(rows, arm, IMAGES, "_difference") | found | {
                "params": {"from": "ce", "at_equal_time": None if np.isnan(other) else other},
                "status": _why_not(found, other),
            }  # fmt: skip


def _by_seed(frame: pd.DataFrame, rung: str) -> dict[str, pd.Series[float]]:
    own = frame[frame["rung"] == rung]
    return {str(arm): rows.set_index("seed")["value"] for arm, rows in own.groupby("arm", sort=False)}


def _why_not(found: Mapping[str, Any], in_time: float) -> str:
    """Return ``ok``, or why a difference at equal images does not count."""
    if "ci_low" not in found:
        return "does not count: one seed"
    if found["ci_low"] <= 0 <= found["ci_high"]:
        return "does not count: the interval holds 0"
    if np.isnan(in_time):
        return "does not count yet: not trained for equal time"
    return "ok" if in_time * found["value"] > 0 else "does not count: another sign at equal time"


def _interval(values: NDArray[np.floating[Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"value": float(values.mean()) if len(values) else None, "n": len(values)}
    if len(values) > 1:
        low, high = t_interval(values)
        row |= {"ci_low": low, "ci_high": high, "ci_kind": "t,seeds"}
    return row


def _row(rows: pd.DataFrame, arm: str, rung: str, ending: str) -> dict[str, Any]:
    first = rows.iloc[0]
    told = {
        key: first[key] for key in ("data", "split", "target", "tap", "block", "level", "depth", "readout")
    }
    told |= {"n_classes": first["n_classes"], "arch": first["arch"], "n": len(rows)}
    return told | {"analysis": "arms", "model": name(arm, rung), "metric": f"{first['metric']}{ending}"}


def draw_arms(probed: ResultTable) -> Figure:
    """Draw every arm against random init at the deepest pooled tap: a panel a target, a point a seed.

    Args:
        probed: As in ``over_seeds``.
    """
    from probekit.figures.style import add_footer, finish, looks, new_figure, plain, styled

    frame = _units(probed)
    tap = frame.loc[frame["readout"] == "gap"].sort_values("depth")["tap"].iloc[-1]
    frame = frame[frame["tap"] == tap]
    frame["name"] = [name(*both) for both in zip(frame["arm"], frame["rung"], strict=True)]
    arms = [one for one in dict.fromkeys(frame["name"]) if one != RANDOM]
    targets = [str(one) for one in dict.fromkeys(frame["target"])]
    look = looks(list(dict.fromkeys(frame["arm"])))
    columns = min(4, len(targets))
    lines = -(-len(targets) // columns)
    with styled():
        figure = new_figure(1.3 + 1.55 * columns, 0.8 + lines * (0.7 + 0.17 * len(arms)))
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for spare in grid[len(targets) :]:
            spare.remove()
        for axes, target in zip(grid, targets, strict=False):
            own = frame[frame["target"] == target]
            random = own.loc[own["name"] == RANDOM, "value"]
            if len(random):
                axes.axvspan(random.min(), random.max(), color="0.85", linewidth=0)
                axes.axvline(random.mean(), color="0.4", linewidth=0.8, linestyle=":")
            for place, arm in enumerate(arms):
                rows = own[own["name"] == arm]
                if not len(rows):
                    continue
                colour, values = look[str(rows["arm"].iloc[0])].colour, rows["value"].to_numpy(float)
                axes.scatter(values, np.full(len(values), place), s=9, color=colour, alpha=0.5, linewidth=0)
                found = _interval(values)
                ends = [[found["value"] - found["ci_low"]], [found["ci_high"] - found["value"]]] if (
                    "ci_low" in found
                ) else None  # fmt: skip
                axes.errorbar(
                    found["value"], place, xerr=ends, fmt=look[str(rows["arm"].iloc[0])].marker,
                    color=colour, markersize=4, linewidth=1, capsize=2,
                )  # fmt: skip
            axes.set_yticks(range(len(arms)), [plain(one) for one in arms])
            axes.set_ylim(len(arms) - 0.5, -0.5)
            axes.set_title(plain(target))
            axes.set_xlabel("Accuracy" if "accuracy" in set(own["metric"]) else "R²")
        notes = [
            f"Read at {tap}", "Small points: seeds of pretraining", "Bars: 95 % t-interval over seeds",
            "Grey: random init, its mean dotted",
        ]  # fmt: skip
        add_footer(figure, notes)
    return finish(figure, "What each arm keeps, a pretraining seed a point, beside random init.")


def draw_depth(table: ResultTable, panels: Mapping[str, tuple[str, str | None]], notes: list[str]) -> Figure:
    """Draw means of arms over their seeds against depth, a panel a quantity.

    Args:
        table: Of models called as in ``over_seeds``.
        panels: Title → metric, and its target; None for any.
        notes: For the footer.
    """
    from probekit.figures.style import add_footer, add_legend, finish, looks, new_figure, plain, styled
    from probekit.results.metrics import metric_facts

    frame = _units(table, [metric for metric, _ in panels.values()])
    look = looks(list(dict.fromkeys(frame["arm"])))
    with styled():
        figure = new_figure(1.2 + 2.3 * len(panels), 3.0)
        handles: dict[str, Any] = {}
        axes_of = figure.subplots(1, len(panels), squeeze=False).ravel()
        for axes, (title, (metric, target)) in zip(axes_of, panels.items(), strict=True):
            own = frame[(frame["metric"] == metric) & ((frame["target"] == target) if target else True)]
            for arm, rows in own.groupby("arm", sort=False):
                by_depth = rows.groupby("depth")["value"]
                means, name = by_depth.mean(), str(arm)
                grey = {"color": "0.5", "linestyle": ":"} if name == RANDOM else {
                    "color": look[name].colour, "marker": look[name].marker, "linestyle": look[name].dashes,
                }  # fmt: skip
                (handles[plain(name)],) = axes.plot(means.index, means, markersize=4, **grey)
                ends = [t_interval(one.to_numpy(float)) for _, one in by_depth if len(one) > 1]
                if len(ends) == len(means):
                    low, high = np.transpose(ends)
                    axes.fill_between(means.index, low, high, color=grey["color"], alpha=0.12, linewidth=0)
            axes.set_title(plain(title))
            axes.set_xlabel("Depth")
            axes.set_ylabel(metric_facts(metric).axis)
        add_legend(figure, list(handles.values()), list(handles))
        add_footer(figure, ["Bands: 95 % t-interval over pretraining seeds", *notes])
    return finish(figure, "What each arm keeps by depth, means over pretraining seeds.")
