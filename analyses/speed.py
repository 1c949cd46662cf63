"""Is probekit as fast as it can be, and faster than what people use? Extraction, probes, both, and growth.

Each method is a script of ``analyses/speed_peers/`` in a process of its own. All processes of a cell stand
ready at once and take their rounds in turn, so that a slow minute of the machine meets every one of them;
told are medians and ranges. A peer whose dependencies are not installed here gets an environment of its own.

Source: the documentation of each peer; the best settings of scikit-learn are looked for tap by tap.

Command: ``probekit run analyses/speed.py --out reports/speed``

Minutes: about 100 on two cores with the whole grid, 60 with the committed report's part of it; finished
cells are kept and found again.

Expected: on two cores, five taps of EfficientNet-Lite0 at 96 px 3.5 to 4 times as fast as the fastest peer
and as fast as a compiled forward pass that reads nothing; sweeps of ten penalties, choice included, 4 times
as fast as scikit-learn at its best settings on narrow taps and 10 times on the widest, at a proven gap of at
most 1e-4 for what is chosen and test accuracy within 0.2 points; from JPEG files to probes twice as fast as
by hand. Planted rows of 1,000 classes, one thread (``reports/speed_many_classes``): 1.7 times as fast as
scikit-learn at D = 320 and 10,000 or 50,000 rows, which stops 30 and 330 times further from the optimum of
the penalty that is chosen; at D = 2,048 and 10,000 rows, 2.6 times its time, 38 times nearer; at D = 2,048
and 50,000 rows (``reports/speed_widest``), 1.4 times its time as extrapolated from one penalty. Steps of MoCo
v2, views included, one thread (``reports/speed_training``): twice as many images a second as lightly.

Would falsify it: on a quiet machine, any peer that is faster at the same precision of result.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from speed_peers.races import (
    CLASSES,
    LITE0,
    PENALTIES,
    VAL,
    blocks,
    places,
    race_end_to_end,
    race_on_images,
    race_on_planted,
)
from speed_peers.racing import PEERS, Facts, Method, race

import probekit
from probekit import Plan, ResultTable
from probekit.compute import software_versions
from probekit.figures.style import COLOURS, MARKERS
from probekit.files import append_line, cache_folder, digest_file, digest_json, read_lines
from probekit.progress import progress_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/speed.py",
    {
        "rounds": 3,
        "threads": 2,
        # Names of those who race; all of them if there is none.
        "methods": [],
        "budget_s": 600,
        # Architecture, side in pixels, images a round.
        "networks": [
            ["tf_efficientnet_lite0", 96, 512],
            ["tf_efficientnet_lite0", 224, 128],
            ["mobilenetv2_100", 224, 128],
            ["resnet50", 224, 64],
            ["vit_small_patch16_224", 224, 64],
        ],
        # The ten first classes of these images, as many for train as there are rows.
        "probes": {"data": "shapeworld/source,train=25000,test=5000", "rows": 10_000, "penalties": 10},
        # One round; one penalty is timed, and the row says so, where five would take a peer longer than the
        # budget here. Cells of more products a pass (rows × D × classes) than ``most`` are left out.
        "grid": {
            "d": [24, 320, 2048],
            "classes": [10, 100, 1000],
            "rows": [10_000, 50_000],
            "budget_s": 40,
            "most": 2.5e10,
        },
        "end_to_end": {"train": 10_000, "test": 2_000},
        "training": {"images": 2_048, "size": 48, "batch_size": 128, "queue": 1_024},
        "growth": {
            "images": [1_000, 10_000, 100_000],
            "taps": [5, 1, 16],
            "rows": [10_000, 100_000, 1_000_000],
        },
    },
)

BATCH_SIZE = 64
# Best objective gap anybody is asked for, relative, when the fastest settings of a peer are looked for.
GAP = 3e-4
# probekit and the bare forward pass keep freed memory; that is a setting of glibc, read at start.
KEEPING = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

EXTRACTION = (
    Method("probekit", "probekit_stream"),
    Method("bare forward, eager", "bare", {"compiled": False}, KEEPING),
    Method("bare forward, compiled", "bare", {"compiled": True}, KEEPING),
    Method("plain hooks", "plain_hooks"),
    Method("torchvision create_feature_extractor", "torchvision_graph"),
    Method("timm features_only", "timm_features"),
    Method("timm forward_intermediates", "timm_intermediates"),
    Method("thingsvision", "thingsvision_maps"),
)
_ARMS = ("ce", "supcon", "moco-v2", "exemplar-v2", "autoencoder")
PROBEKIT = Method("probekit", "probekit_path", {"race": True})
_SKLEARN = {"precision": "float32", "max_iter": 5_000}
SKLEARN = tuple(
    Method(
        f"scikit-learn, float32, one thread, tol {tol:.0e}",
        "sklearn_lbfgs",
        {**_SKLEARN, "tol": tol},
        ONE_THREAD,
    )
    for tol in (1e-4, 1e-5, 1e-6)
)
_LBFGS = Method("torch L-BFGS", "torch_lbfgs", {"max_iter": 5_000, "tol": 1e-5})
_HEADS = Method("SGD heads", "sgd_heads")
PROBES = (
    PROBEKIT,
    Method("probekit, every penalty", "probekit_path", {"race": False}),
    *SKLEARN,
    Method("scikit-learn, float32, all threads, tol 1e-05", "sklearn_lbfgs", {**_SKLEARN, "tol": 1e-5}),
    Method(
        "scikit-learn, defaults, until converged",
        "sklearn_lbfgs",
        {"precision": "float64", "max_iter": 5_000, "tol": 1e-4},
    ),
    Method("scikit-learn, defaults", "sklearn_lbfgs", {"precision": "float64", "max_iter": 100, "tol": 1e-4}),
    Method("LogisticRegressionCV", "sklearn_cv", {"max_iter": 5_000, "tol": 1e-5}, ONE_THREAD),
    _LBFGS,
    _HEADS,
)
SKLEARN_BEST = "scikit-learn, best settings"
# Of these, the fastest whose gap is small enough (else the closest) counts as the best settings, tap by tap.
_ONES = {one.name for one in PROBES if one.name.startswith("scikit-learn, float32")}
TRAINING = (
    *(Method(f"probekit, {arm}", "pretrain_probekit", {"arm": arm}) for arm in _ARMS),
    *(
        Method(f"lightly, moco-v2, {workers} workers", "pretrain_lightly", {"workers": workers})
        for workers in (0, 2)
    ),
)
GRID = (PROBEKIT, SKLEARN[1], _LBFGS, _HEADS)


def run(plan: Plan) -> dict[str, ResultTable]:
    """Measure every cell; what is finished is kept in the cache folder."""
    settings = plan.settings
    folder = cache_folder() / "speed" / _digest(settings)
    journal = folder / "cells.jsonl"
    done = {line["key"]: line["found"] for line in read_lines(journal)}
    cells = list(_cells(settings, folder / "work"))
    with progress_bar(len(cells), "Measuring", "cell") as bar:
        for facts, measure in cells:
            key = digest_json(facts)
            if key not in done:
                done[key] = measure()
                append_line(journal, {"key": key, "cell": facts, "found": done[key]})
            bar.update(1)
    found = [(facts, done[digest_json(facts)]) for facts, _ in cells]
    shutil.rmtree(folder / "work", ignore_errors=True)
    provenance = {**software_versions(), "cores": len(os.sched_getaffinity(0)), "processor": _processor()}
    return {
        part: ResultTable.from_rows(list(_rows(part, found)), provenance)
        for part in dict.fromkeys(facts["part"] for facts, _ in found)
    }


def _cells(settings: Mapping[str, Any], work: Path) -> Iterator[tuple[Facts, Callable[[], Facts]]]:
    """Yield what stands for a cell, and what measures it."""
    race_here = partial(race, rounds=settings["rounds"], budget=settings["budget_s"])
    extracting, probing, solving, training = (
        [one for one in methods if not settings["methods"] or one.name in settings["methods"]]
        for methods in (EXTRACTION, PROBES, GRID, TRAINING)
    )
    for arch, size, images in settings["networks"]:
        facts: Facts = {"part": "extraction", "arch": arch, "size": size, "images": images}
        asks = {**facts, **places(arch), "threads": settings["threads"], "batch_size": BATCH_SIZE}
        yield facts, partial(race_here, extracting, asks)
    probes, grid = settings["probes"], settings["grid"]
    if probes["rows"]:
        penalties = PENALTIES[np.linspace(0, len(PENALTIES) - 1, probes["penalties"]).round().astype(int)]
        asks = {"classes": CLASSES, "train": probes["rows"], "penalties": penalties.tolist()}
        common = {**asks, "val": VAL, "threads": settings["threads"], "budget_s": settings["budget_s"]}
        for place in range(5):
            facts = {"part": "probes", "data": probes["data"], "tap": place, **asks}
            yield facts, partial(race_on_images, facts, common, work, probing, race_here)
    if settings["end_to_end"]:
        facts = {"part": "end_to_end", **settings["end_to_end"]}
        # Minutes a round: one of them.
        yield facts, partial(race_end_to_end, facts, settings["threads"], 1, work)
    if settings["training"]:
        facts = {"part": "training", **settings["training"]}
        yield facts, partial(race_here, training, {**settings["training"], "threads": settings["threads"]})
    for asks in _growth(settings["growth"]):
        facts = {"part": "growth", **asks}
        # The peak of a process never falls: each process has one round.
        alone = partial(race, [Method("probekit", "growth")], rounds=1, budget=settings["budget_s"])
        yield facts, partial(alone, {**asks, "threads": settings["threads"]})
    for rows in grid.get("rows", ()):
        for classes in grid["classes"]:
            for d in grid["d"]:
                if rows * classes * d > grid["most"]:
                    continue
                facts = {
                    "part": "grid",
                    "d": d,
                    "classes": classes,
                    "train": rows,
                    "penalties": PENALTIES[::3].tolist(),
                }
                common = {**facts, "val": VAL, "threads": settings["threads"], "budget_s": grid["budget_s"]}
                once = partial(race, rounds=1, budget=settings["budget_s"])
                yield facts, partial(race_on_planted, facts, common, work, solving, once)


# Cells


def _growth(settings: Mapping[str, Any]) -> Iterator[Facts]:
    """Yield what is asked of ``growth.py``: more images, more taps, more rows."""
    if not settings:
        return
    paths = blocks(LITE0)
    few, *more = settings["taps"]
    for images, taps in [
        *((n, few) for n in settings["images"]),
        *((settings["images"][0], k) for k in more),
    ]:
        yield {
            "arch": LITE0,
            "size": 96,
            "images": images,
            "taps": [f"{path}|gap" for path in paths[-taps:]],
        }
    for rows in settings["rows"]:
        yield {"rows": rows, "d": 64, "classes": CLASSES, "penalties": [1.0, 0.1, 0.01]}


# Table


def _rows(part: str, found: Sequence[tuple[Facts, Facts]]) -> Iterator[Facts]:
    """Yield a row a method and cell; of probes also the sum over taps."""
    cells = [(facts, one) for facts, one in found if facts["part"] == part]
    for facts, one in cells:
        yield from ROWS[part](facts, one)
    if part == "probes":
        yield from _sums(pd.DataFrame(one for facts, cell in cells for one in _probe_rows(facts, cell)))


def _row(
    part: str, name: str, answers: Sequence[Facts], value: Callable[[Facts], float], metric: str
) -> Facts:
    """Return median and range over rounds, or why there is none; of the last round what else it said."""
    row: Facts = {"analysis": "speed", "target": part, "model": name, "metric": metric, "n": len(answers)}
    if "error" in answers[-1]:
        return row | {"status": answers[-1]["error"], "n": 0}
    values = [value(one) for one in answers]
    told = {
        key: one
        for key, one in answers[-1].items()
        if key not in {"seconds", "images", "taps", "extrapolated"}
    }
    return row | {
        "value": float(np.median(values)), "ci_low": min(values), "ci_high": max(values),
        "ci_kind": f"range,{len(values)}", "params": told,
        "status": "extrapolated from one penalty" if answers[-1].get("extrapolated") else "ok",
    }  # fmt: skip


def _seconds(answer: Facts) -> float:
    return float(answer["seconds"])


def _extraction_rows(facts: Facts, found: Facts) -> Iterator[Facts]:
    for name, answers in found.items():
        row = _row(
            "extraction", name, answers, lambda one: one["images"] / one["seconds"], "images_per_second"
        )
        yield row | {"arch": facts["arch"], "weights": "random", "data": f"noise, {facts['size']} px"}


def _probe_rows(facts: Facts, found: Facts) -> Iterator[Facts]:
    said = found["said"]
    known = {
        name: answers[-1]["gap"] for name, answers in said.items() if name in _ONES and "gap" in answers[-1]
    }
    # Where none comes as close as asked, the closest of them.
    near = [name for name, gap in known.items() if gap <= max(GAP, min(known.values()))]
    best = sorted(near, key=lambda name: float(np.median([_seconds(one) for one in said[name]])))[:1]
    named = [*said.items(), *((SKLEARN_BEST, said[name]) for name in best)]
    for name, answers in named:
        row = _row(facts["part"], name, answers, _seconds, "seconds")
        yield row | {
            "arch": LITE0 if found["name"] else "", "data": facts.get("data", "planted"),
            "tap": found["name"], "d": found["d"], "n_classes": facts["classes"], "n": facts["train"],
        }  # fmt: skip


def _sums(frame: pd.DataFrame) -> Iterator[Facts]:
    for _, rows in frame.groupby("model", sort=False):
        if len(rows) < frame["tap"].nunique() or rows["value"].isna().any():
            continue
        told = [one for one in rows["params"] if "gap" in one]
        first, sums = rows.iloc[0], rows[["value", "ci_low", "ci_high"]].sum()
        same = ("analysis", "target", "model", "arch", "data", "n_classes", "metric", "n", "ci_kind")
        yield {key: first[key] for key in same} | {
            "tap": "all taps",
            "value": sums["value"],
            "ci_low": sums["ci_low"],
            "ci_high": sums["ci_high"],
            "status": "; ".join(sorted(set(rows["status"]) - {"ok"})) or "ok",
            "params": {key: max(one[key] for one in told) for key in ("gap", "gap_chosen") if told},
        }


def _end_to_end_rows(facts: Facts, found: Facts) -> Iterator[Facts]:
    for name, answers in found["said"].items():
        row = _row("end to end", name, answers, _seconds, "seconds")
        yield row | {"arch": LITE0, "data": f"{facts['train'] + facts['test']} JPEG files, 128 px"}


def _training_rows(facts: Facts, found: Facts) -> Iterator[Facts]:
    for name, answers in found.items():
        row = _row("training", name, answers, lambda one: one["images"] / one["seconds"], "images_per_second")
        told = {"arch": "resnet10_w16", "weights": "random", "n": facts["images"]}
        yield row | told | {"data": f"noise, {facts['size']} px, two views"}


def _growth_rows(facts: Facts, found: Facts) -> Iterator[Facts]:
    (answers,) = found.values()
    many = facts.get("images") or facts["rows"]
    name = "extract" if "images" in facts else "fit_softmax"
    told = {"n": many, "tap": f"{len(facts['taps'])} taps" if "taps" in facts else ""}
    yield _row("growth", name, answers, _seconds, "seconds") | told
    yield _row("growth", name, answers, lambda one: one["growth_bytes"] / 1e6, "peak_growth") | told


ROWS: dict[str, Callable[[Facts, Facts], Iterator[Facts]]] = {
    "extraction": _extraction_rows,
    "probes": _probe_rows,
    "grid": _probe_rows,
    "end_to_end": _end_to_end_rows,
    "growth": _growth_rows,
    "training": _training_rows,
}


# Figures


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw each race, and how time and memory grow."""
    from probekit.figures.style import styled

    drawn: dict[str, Callable[[pd.DataFrame], Figure]] = {
        "extraction": partial(
            _draw_rates,
            note="Median and range over rounds in turn. Five taps, pooled; the bare pass reads nothing.",
        ),
        "probes": _draw_probes,
        "grid": _draw_grid,
        "growth": _draw_growth,
        "training": partial(
            _draw_rates,
            note="Median and range over rounds in turn; an image is two views, made and trained on.",
        ),
    }
    with styled():
        return {part: one(tables[part].frame) for part, one in drawn.items() if part in tables}


def _points(axes: Axes, rows: pd.DataFrame, names: Sequence[str]) -> None:
    """Draw medians and ranges, a line of the axis each method."""
    for _, row in rows.dropna(subset=["value"]).iterrows():
        place = names.index(row["model"])
        colour = COLOURS[1] if row["model"].startswith("probekit") else COLOURS[0]
        filled = colour if row["status"] == "ok" else "none"
        axes.plot([row["ci_low"], row["ci_high"]], [place, place], color=colour, linewidth=1.2)
        axes.plot(row["value"], place, "o", color=colour, markerfacecolor=filled, markersize=4.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _draw_rates(frame: pd.DataFrame, note: str) -> Figure:
    from probekit.figures.style import finish, new_figure

    names, cells = list(dict.fromkeys(frame["model"])), frame.groupby(["arch", "data"], sort=False)
    figure = new_figure(3.0 + 1.35 * len(cells), 2.9)
    panels = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
    for axes, ((arch, data), rows) in zip(panels, cells, strict=True):
        _points(axes, rows, names)
        axes.set_title(f"{str(arch).removeprefix('tf_')}\n{str(data).removeprefix('noise, ')}", fontsize=7)
        axes.set_xlim(left=0)
    figure.supxlabel("Images per second", fontsize=8)
    return finish(figure, note)


def _draw_probes(frame: pd.DataFrame) -> Figure:
    from matplotlib.ticker import LogLocator, NullFormatter

    from probekit.figures.style import finish, new_figure

    rows = frame[frame["tap"] == "all taps"].sort_values("value")
    figure = new_figure(6.4, 3.2)
    axes = figure.subplots()
    _points(axes, rows, list(rows["model"]))
    axes.set(xscale="log", xlabel="Seconds for five taps and ten penalties")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    return finish(
        figure,
        "Sum over taps of medians; ranges of rounds taken in turn. Hollow: extrapolated from one penalty.",
    )


def _draw_grid(frame: pd.DataFrame) -> Figure:
    from probekit.figures.style import finish, new_figure

    sizes = sorted(set(frame["n"]))
    figure = new_figure(6.4, 2.8)
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        for number, classes in enumerate(sorted(set(frame["n_classes"]))):
            here = frame[(frame["n"] == size) & (frame["n_classes"] == classes)]
            wide = here.pivot_table(index="d", columns="model", values="value")
            if {"probekit", SKLEARN[1].name} <= set(wide.columns):
                ratio = (wide[SKLEARN[1].name] / wide["probekit"]).dropna()
                axes.plot(
                    ratio.index,
                    ratio,
                    MARKERS[number] + "-",
                    color=COLOURS[number],
                    label=f"{classes} classes",
                )
        axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
        axes.set(xscale="log", yscale="log", xlabel="D", title=f"{size:,} rows")
    panels[0].set_ylabel("Times faster than scikit-learn")
    panels[0].legend()
    return finish(
        figure, "Ratio of medians. scikit-learn in float32 on one thread at tolerance 1e-5; dashed: as fast."
    )


def _draw_growth(frame: pd.DataFrame) -> Figure:
    from probekit.figures.style import finish, new_figure

    figure = new_figure(6.4, 2.6)
    left, right = figure.subplots(1, 2)
    for axes, metric in ((left, "seconds"), (right, "peak_growth")):
        rows = frame[frame["metric"] == metric]
        for number, ((model, tap), some) in enumerate(rows.groupby(["model", "tap"], sort=False)):
            some = some.sort_values("n")
            axes.plot(
                some["n"],
                some["value"],
                MARKERS[number] + "-",
                color=COLOURS[number],
                label=f"{model} {tap}".strip(),
            )
        axes.set(xscale="log", xlabel="Images or rows")
    left.set(yscale="log", ylabel="Seconds")
    right.set_ylabel("Growth of the peak (MB)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return finish(
        figure, "Growth is counted from the peak that the model, one batch and a small run had reached."
    )


def smoke(plan: Plan) -> Plan:
    """Shrink to one small network and one race on few rows, of a few who need no environment of their own."""
    return plan.having(
        rounds=1,
        methods=["probekit", "plain hooks", SKLEARN[1].name, "probekit, moco-v2"],
        networks=[["test_efficientnet", 64, 64]],
        probes={"data": "", "rows": 0, "penalties": 0},
        grid={"d": [8], "classes": [3], "rows": [200], "budget_s": 20, "most": 1e9},
        end_to_end={},
        growth={},
        training={"images": 64, "size": 32, "batch_size": 32, "queue": 32},
    )


def _processor() -> str:
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((one.partition(":")[2].strip() for one in lines if one.startswith("model name")), "")


def _digest(settings: Mapping[str, Any]) -> str:
    """Return what stands for the code under test; a finished cell counts for it only."""
    root = Path(probekit.__file__).parent
    code = [*root.rglob("*.py"), *PEERS.glob("*.py")]
    common = {key: settings[key] for key in ("rounds", "threads", "budget_s", "methods")}
    return digest_json([common, software_versions(), sorted(digest_file(path) for path in code)])[:16]
