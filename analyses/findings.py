"""Do the three findings hold on arms that differ in nothing but their objective?

Source: Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?" (ICLR 2021).
F1: what transfers is low and mid level. F2: invariance inside classes, enforced by supervised training, hurts
by misalignment of tasks. F3: exemplar-based supervised pretraining repairs it. Each is judged by the rules of
``findings_rules.yaml`` on pretraining seeds of the arms: supported, refuted or inconclusive, and why. Other
explanations are arms as well: a projector, crops alone, draws with the statistics of the weights. What the
paper reports stands in ``paper_numbers.csv``.

Command: ``probekit run analyses/findings.py --out reports/findings``

Minutes: 30 on two cores, with tests beside, to take the errors of 30 detectors apart, where everything before
is finished; 150 of one core for the trainings of detectors and key points; probes and geometry of 34
checkpoints were not timed by themselves.

Expected: (five seeds, ShapeWorld) F1 inconclusive: MoCo gains nothing on boxes in 200 steps (.000 [−.001,
.002] of AP), so that no share of it can be told. F2 refuted: cross-entropy is far more invariant inside
classes (ICC higher by .73 [.71, .75]), keeps the place as well as MoCo, and is better on boxes by .144 [.074,
.214]. F3 inconclusive: Exemplar is not told from MoCo, neither linearly nor on boxes. The world's classes are
what its boxes ask for, and arms without labels do not know them: it is another case than ImageNet and VOC.

Would falsify it: a falsifier of a finding, as the rules name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from ladders.arms import seed_words
from verdicts.judging import Verdict, judge, rule_rows, verdict_row
from verdicts.plotting import plot_rules
from verdicts.values import of_errors, of_models, of_states

from probekit import Plan, ResultTable, diagnose, measure_geometry, probe, reset_curves, transfer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCENES = "shapeworld/scenes,train=3000,test=2000"
PLAN = Plan(
    "analyses/findings.py",
    {
        "rules": "analyses/findings_rules.yaml",
        # Where ``analyses/pretraining.py`` left the arms; their folders in it, ARM_RUNG.
        "checkpoints": "reports/pretraining/tables/pretrain/checkpoints",
        "arms": {
            "ce": "ce_images",
            "ce-mlp": "ce-mlp_images",
            "supcon": "supcon_3x-images",
            "moco-v2": "moco-v2_images",
            "exemplar-v2": "exemplar-v2_images",
            "crop-only": "moco-v2_crop-only",
            "moco-v2, 2-classes": "moco-v2_2-classes",
            "exemplar-v2, 2-classes": "exemplar-v2_2-classes",
        },
        "seeds": 5,
        "fewer_seeds": {"crop-only": 3, "moco-v2, 2-classes": 3, "exemplar-v2, 2-classes": 3},
        # Those of which levels are reset; the others learn tasks whole.
        "reset": ["ce", "moco-v2"],
        "whole": ["ce-mlp", "supcon", "exemplar-v2"],
        "own": "shapeworld/source,train=3000,test=1000",
        "unseen": "shapeworld/unseen,train=1000,test=1000",
        "tasks": {
            "boxes": ["detection", f"{SCENES},annotations=boxes"],
            "parts": ["landmarks", f"{SCENES},annotations=keypoints"],
        },
        # Tasks whose errors are taken apart.
        "diagnosed": ["boxes"],
        "size": 64,
        "steps": 200,
        "batch_size": 32,
        "lr": [0.001, 0.003, 0.01],
        "precision": "bfloat16",
        "permutations": 3,
        "taps": "levels",
    },
)

CURVES: dict[str, Any] = {"curves": ["prefix", "suffix"], "modes": ["random", "stats"]}


def run(plan: Plan) -> dict[str, ResultTable]:
    """Measure what the rules weigh, and judge the findings."""
    s = plan.settings
    places = {name: s[name] for name in ("store", "device", "jobs") if name in s}
    words = {arm: _words(s, arm) for arm in s["arms"]}
    models = [f"{_name(arm, seed)}={one}" for arm, own in words.items() for seed, one in enumerate(own)]
    read: dict[str, Any] = {"taps": s["taps"], "permutations": s["permutations"], "random": 0, **places}
    tables = {
        "own": probe(models, s["own"], targets=["class"], shots=[], equal_d=False, **read),
        "unseen": probe(models, s["unseen"], targets=["class"], shots=[], equal_d=False, **read),
        "inside": measure_geometry(models, s["own"], target="class", **read),
    }
    how = {name: s[name] for name in ("steps", "batch_size", "lr", "precision")} | places
    for task, (kind, data) in s["tasks"].items():
        sized = {arm: _words(s, arm, s["size"]) for arm in s["arms"]}
        parts = {arm: sized[arm] for arm in s["reset"]}, {arm: sized[arm] for arm in s["whole"]}
        tables[task] = reset_curves([], data, arms=parts[0], task=kind, **CURVES, **how)
        if parts[1]:
            tables[f"{task}-whole"] = transfer([], data, arms=parts[1], task=kind, **how)
        if task in s["diagnosed"]:
            both = parts[0] | parts[1]
            tables[f"{task}-errors"] = diagnose(data=data, arms=both, permutations=s["permutations"], **how)
    values = _values(tables, s["tasks"])
    rules = yaml.safe_load(Path(s["rules"]).read_text(encoding="utf-8"))
    verdicts = {name: judge(values, one, float(rules["alpha"])) for name, one in rules["findings"].items()}
    return {"verdicts": _table(verdicts, rules, values), **tables}


def _words(settings: Mapping[str, Any], arm: str, size: int | None = None) -> list[str]:
    """Return the words that load every pretraining seed of an arm."""
    count = settings["fewer_seeds"].get(arm, settings["seeds"])
    return seed_words(f"{settings['checkpoints']}/{settings['arms'][arm]}", count, size)


def _name(arm: str, seed: int) -> str:
    """Return the name of a model, ``ARM seed-SEED RUNG``."""
    base, _, rung = arm.partition(", ")
    return f"{base} seed-{seed} {rung or 'images'}"


def _values(tables: Mapping[str, ResultTable], tasks: Mapping[str, Any]) -> pd.DataFrame:
    """Return every quantity of every arm and seed."""
    found = [
        of_models(tables["own"], "own", "accuracy", ["class"]),
        of_models(tables["unseen"], "unseen", "accuracy", ["class"]),
        of_models(tables["inside"], "icc", "icc", ["class"]),
        of_models(tables["inside"], "place", "within_class_r2", ["x", "y"], "grid(3)"),
        of_models(tables["inside"], "hue", "within_class_r2", ["hue"], "grid(3)"),
    ]
    for task in tasks:
        found += [of_states(tables[name], task) for name in (task, f"{task}-whole") if name in tables]
        if f"{task}-errors" in tables:
            found.append(of_errors(tables[f"{task}-errors"], task, {"error_loc": "loc"}))
    return pd.concat(found, ignore_index=True)


def _table(verdicts: Mapping[str, Verdict], rules: Mapping[str, Any], values: pd.DataFrame) -> ResultTable:
    """Return verdicts and rules as rows; the values they weigh are attached."""
    rows = [
        row
        for name, one in verdicts.items()
        for row in (verdict_row(name, rules["findings"][name]["says"], one), *rule_rows(name, one))
    ]
    table = ResultTable.from_rows(rows)
    return ResultTable(table.frame, {"analysis": "findings", "rules": rules}, {"values.parquet": values})


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw every rule against its bound, and the errors of detectors."""
    from probekit.figures import draw_diagnosis, draw_transfer

    figures = {"rules": plot_rules(tables["verdicts"])}
    for name, table in tables.items():
        if name.endswith("-errors"):
            figures |= {f"{kind}-{name}": figure for kind, figure in draw_diagnosis(table).items()}
        elif table.provenance.get("analysis") == "reset":
            figures |= {f"{kind}-{name}": figure for kind, figure in draw_transfer(table).items()}
    return figures


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: two arms of two seeds, few images and steps."""
    return plan.having(
        arms={"ce": "ce_images", "moco-v2": "moco-v2_images"},
        seeds=2,
        fewer_seeds={},
        reset=["moco-v2"],
        whole=["ce"],
        own="shapeworld/source,train=100,test=60",
        unseen="shapeworld/unseen,train=60,test=40",
        tasks={"boxes": ["detection", "shapeworld/scenes,train=60,test=30,annotations=boxes"]},
        diagnosed=[],
        size=48,
        steps=2,
        lr=[0.001],
        precision="float32",
        permutations=1,
        taps="layer4",
    )
