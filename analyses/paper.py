"""What would the whole study take, on the authors' own checkpoints and the benchmarks of the paper?

Source: Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?" (ICLR 2021):
the 24 ResNet-50 that the authors released, ImageNet, VOC07, COCO, Cityscapes, MAFL and mini-ImageNet. For a
laboratory with accelerators: ``--dry-run`` says which files are there, how many trainings there are, and how
many hours they may take. Put checkpoints and data where the plan says, or say with ``--set`` where they are.

Command: ``probekit run analyses/paper.py --out runs/paper --dry-run``

Minutes: seconds for the dry run; without it, hundreds of hours of one accelerator, by the speed that the plan
assumes. Only random weights on drawn images were run (``--smoke``). The paper's own schedules and sizes were
not to be had: those of VOC07 are MoCo's (24,000 steps of 16 images), the others are choices.

Expected: (from the paper) VOC07 AP 46.6 with MoCo, 42.4 supervised; see ``paper_numbers.csv``.

Would falsify it: a supervised ResNet-50 on a par with MoCo's on VOC07 under equal schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from probekit import Plan, ResultTable, diagnose, pretrain, probe, reconstruct, reset_curves, transfer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETS = ("imagenet", "imagenet1over10", "imagenet100", "places", "celeba", "coco", "synthia")
LADDER = ("f", "fr", "frc", "frcg")
RELEASED = (
    *(f"{arm}_{one}" for arm in ("moco_v2", "supervised") for one in SETS),
    *(f"{arm}_imagenet_aug_{one}" for arm in ("moco_v2", "supervised") for one in LADDER),
    "exemplar_v1",
    "exemplar_v2",
)
# Steps of the preset ``paper``; random draws of the architecture beside models that are only read.
INVERSION_STEPS, CONTROLS = 3000, 3
MAIN = ("moco_v2_imagenet", "supervised_imagenet", "exemplar_v2")
# What all trainings of detectors share.
DETECTORS = {"task": "detection/c4-norm", "batch_size": 16, "optimiser": "sgd", "lr": [0.01, 0.02, 0.04]}
VERBS: Mapping[str, Callable[..., ResultTable]] = {
    "probe": probe,
    "reconstruct": reconstruct,
    "diagnose": diagnose,
    "reset": reset_curves,
    "transfer": transfer,
    "pretrain": pretrain,
}

PLAN = Plan(
    "analyses/paper.py",
    {
        "arch": "resnet50",
        "checkpoints": "good_transfer",
        # Multiply-adds of a forward pass at 224 pixels, and those that an accelerator does in a second.
        "forward": 4.1e9,
        "speed": 2e13,
        "stages": {
            "linear": {
                "verb": "probe",
                "models": list(RELEASED),
                "data": "imagenet/",
                "size": 224,
                "images": 1_331_167,
                "settings": {"taps": ["stages", "penultimate"], "shots": [], "dtype": "float16"},
            },
            "inversion": {
                "verb": "reconstruct",
                "models": list(MAIN),
                "data": "imagenet/,split=val,limit=8",
                "size": 224,
                "settings": {
                    "method": "inversion",
                    "preset": "paper",
                    "taps": ["layer1", "layer2", "layer3", "layer4"],
                    "shown": 8,
                    "draws": 3,
                },
            },
            "voc07": {
                "verb": "diagnose",
                "models": list(RELEASED),
                "data": "VOC2007/",
                "size": 640,
                "settings": {**DETECTORS, "steps": 24_000, "trials": 5},
            },
            "voc07-levels": {
                "verb": "reset",
                "models": list(MAIN),
                "data": "VOC2007/",
                "size": 640,
                "settings": {**DETECTORS, "steps": 24_000, "trials": 5, "modes": ["random", "stats"]},
            },
            "coco": {
                "verb": "diagnose",
                "models": list(MAIN),
                "data": "coco/",
                "size": 800,
                "settings": {**DETECTORS, "steps": 90_000, "trials": 1},
            },
            "cityscapes": {
                "verb": "transfer",
                "models": list(MAIN),
                "data": "cityscapes/",
                "size": 768,
                "settings": {
                    "task": "segmentation/deeplabv3",
                    "batch_size": 16,
                    "steps": 40_000,
                    "trials": 3,
                },
            },
            "mafl": {
                "verb": "transfer",
                "models": list(RELEASED),
                "data": "mafl/",
                "size": 224,
                "settings": {"task": "landmarks", "batch_size": 64, "steps": 10_000, "trials": 5},
            },
            # Trained on the base classes, asked of the novel ones.
            "mini-imagenet": {
                "verb": "pretrain",
                "data": "mini-imagenet/base",
                "size": 84,
                "settings": {
                    "arms": ["ce", "moco-v2", "exemplar-v2"],
                    "arch": "resnet18",
                    "epochs": 200,
                    "batch_size": 256,
                    "seeds": 3,
                    "queue": 16_384,
                },
                "images": 38_400,
                "novel": {"data": "mini-imagenet/novel", "task": "episodes/novel", "tuned": False},
            },
        },
    },
)


def run(plan: Plan) -> dict[str, ResultTable]:
    """Run every stage; what is finished is found again."""
    settings = plan.settings
    places = {name: settings[name] for name in ("store", "device", "jobs") if name in settings}
    tables = {}
    for name, stage in settings["stages"].items():
        given = {"data": stage["data"], **stage["settings"], **places}
        if stage["verb"] != "pretrain":
            given["models"] = [_words(settings, one, stage["size"]) for one in stage["models"]]
        tables[name] = VERBS[stage["verb"]](**given)
        if "novel" in stage:
            tables[f"{name}-novel"] = _novel(tables[name], stage, places)
    return tables


def _words(settings: Mapping[str, Any], name: str, size: int) -> str:
    """Return the words that load a checkpoint, or a random network in its place."""
    folder = settings["checkpoints"]
    weights = f"{folder}/{name}.pth" if folder else "random"
    return f"{name}={settings['arch']}:{weights},size={size}"


def _novel(table: ResultTable, stage: Mapping[str, Any], places: Mapping[str, Any]) -> ResultTable:
    """Ask the arms just trained of classes that they never saw; a pretraining seed is a trial."""
    own = dict(stage["novel"])
    with TemporaryDirectory() as folder:
        table.write(folder)
        arms: dict[str, list[str]] = {}
        for place in sorted(Path(folder).glob("**/checkpoints/*/*.pth")):
            words = f"{stage['settings']['arch']}:{place},size={stage['size']}"
            arms.setdefault(place.parent.name, []).append(words)
        return transfer([], own.pop("data"), arms=arms, **own, **places)


def foresee(plan: Plan) -> pd.DataFrame:
    """Say of every stage how much it trains, how long that may take, and what is missing for it.

    Hours are multiply-adds, three times those of a forward pass in training, over those that an accelerator
    does in a second by the plan; reading and scoring come on top.
    """
    settings = plan.settings
    rows = []
    for name, stage in settings["stages"].items():
        models = stage.get("models", ())
        files = [f"{settings['checkpoints']}/{one}.pth" for one in models] if settings["checkpoints"] else []
        data = [one["data"].partition(",")[0] for one in (stage, stage.get("novel")) if one]
        missing = [place for place in files if not Path(place).exists()]
        needed = [place for place in data if not Path(place).exists()]
        if missing:
            needed.append(f"{len(missing)} of {len(files)} checkpoints in {settings['checkpoints']}/")
        cells, passes = _effort(stage)
        work = passes * settings["forward"] * (stage["size"] / 224) ** 2
        rows.append(
            {
                "stage": name,
                "verb": stage["verb"],
                "data": stage["data"],
                "models": len(models) or len(stage["settings"]["arms"]),
                "cells": cells,
                "hours": round(work / settings["speed"] / 3600, 1),
                "missing": ", ".join(needed) or "nothing",
            }
        )
    return pd.DataFrame(rows)


def _effort(stage: Mapping[str, Any]) -> tuple[int, float]:
    """Return how many cells a stage has, and images passed forward; a step of training counts as three."""
    own, models = stage["settings"], len(stage.get("models", ()))
    if stage["verb"] == "pretrain":
        cells = len(own["arms"]) * own["seeds"]
        return cells, 3 * 2 * cells * own["epochs"] * stage["images"]
    if stage["verb"] == "probe":
        cells = models + CONTROLS
        return cells, float(cells * stage["images"])
    if stage["verb"] == "reconstruct":
        cells = models + CONTROLS
        return cells, 3.0 * cells * len(own["taps"]) * own["shown"] * own["draws"] * INVERSION_STEPS
    # Two states, or eleven: whole, scratch, four ends of a curve in each mode, and matched statistics alone.
    states = 2 if stage["verb"] != "reset" else 3 + 4 * len(own["modes"])
    rates, trials = len(own.get("lr", (0, 0, 0))), own["trials"]
    cells = models * states * (rates + trials - 1)
    return cells, 3.0 * cells * own["steps"] * own.get("batch_size", 64)


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw what every stage supports."""
    from probekit import figures

    drawings = {
        "probe": figures.draw_probe,
        "reconstruct": figures.draw_reconstruction,
        "diagnose": figures.draw_diagnosis,
        "reset": figures.draw_transfer,
        "transfer": figures.draw_transfer,
        "pretrain": figures.draw_pretraining,
    }
    return {
        f"{stage}-{kind}": figure
        for stage, table in tables.items()
        for kind, figure in drawings[table.provenance["analysis"]](table).items()
    }


def smoke(plan: Plan) -> Plan:
    """Shrink every stage to seconds: random weights, drawn images, a few steps."""
    scenes, source = "shapeworld/scenes,train=20,test=10", "shapeworld/source,train=200,test=100"
    data = {
        "linear": source,
        "inversion": "shapeworld/source,train=20,test=20",
        "voc07": f"{scenes},annotations=boxes",
        "voc07-levels": f"{scenes},annotations=boxes",
        "coco": f"{scenes},annotations=boxes",
        "cityscapes": f"{scenes},annotations=masks",
        "mafl": f"{scenes},annotations=keypoints",
        "mini-imagenet": source,
    }
    training = {"steps": 1, "trials": 1, "batch_size": 4, "lr": [0.001]}
    few: dict[str, dict[str, Any]] = {
        "reset": {**training, "modes": ["random"]},
        "probe": {"taps": ["layer4"], "random": 0, "permutations": 1, "penalties": [1.0]},
        "reconstruct": {
            "taps": ["layer1"],
            "preset": "preview",
            "steps": 20,
            "shown": 1,
            "draws": 1,
            "random": 0,
            "permutations": 1,
        },
        "pretrain": {
            "arch": "resnet10_w16",
            "arms": ["ce"],
            "epochs": 1,
            "seeds": 2,
            "batch_size": 40,
            "queue": 40,
        },
    }
    stages = {}
    for name, stage in plan.settings["stages"].items():
        own = {**stage["settings"], **few.get(stage["verb"], training)}
        stages[name] = {
            **stage,
            "data": data[name],
            "size": 96 if name == "cityscapes" else 48,
            "settings": own,
        }
        if "models" in stage:
            stages[name]["models"] = stage["models"][:1]
        if "novel" in stage:
            stages[name]["novel"] = {**stage["novel"], "data": "shapeworld/unseen,train=100,test=200"}
    return plan.having(arch="resnet10_w16", checkpoints=None, stages=stages)
