"""A report's plan, run again where nothing is kept, gives its numbers: whole, or a part drawn each day."""

from __future__ import annotations

import datetime
import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.conftest import ROOT

log = logging.getLogger(__name__)
PLANS = {one.parent.name: one for one in sorted((ROOT / "reports").glob("*/plan.yaml"))}
# Under half an hour: run again whole.
SHORT = {
    *(
        "class_geometry",
        "class_geometry_cifar",
        "class_geometry_factors",
        "depth_probe",
        "invariance_transfer",
    ),
    *("level_similarity", "perturbation_invariance", "pixel_decodability"),
}
# They say how long something takes, on a machine at rest.
TIMED = {name for name in PLANS if name.startswith("speed")}
TIMES = ("seconds", "images_per_s", "steps_per_s")
FACTS = ["model", "data", "split", "target", "tap", "metric", "pretrain_seed", "trial_seed", "params"]
NUMBERS = ["value", "ci_low", "ci_high", "null", "null_low", "null_high", "n", "d", "status"]


def part_of(plan: Mapping[str, Any], stream: random.Random) -> dict[str, Any]:
    """Return changes of a plan that leave one model, arm, rung and task of it."""
    changes: dict[str, Any] = {}
    for name in ("models", "data", "names"):
        if isinstance(plan.get(name), list):
            changes[name] = [stream.choice(plan[name])]
    for name in ("arms", "tasks", "rungs"):
        if isinstance(plan.get(name), dict):
            chosen = stream.choice(sorted(plan[name]))
            changes[name] = {chosen: plan[name][chosen]}
    if isinstance(plan.get("seeds"), int):
        changes["seeds"] = 1
    if plan.get("names") == "*":
        changes["names"] = stream.choice(["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
    if "race" in plan:
        changes["race"] = None
    for name in ("whole", "reset"):
        if isinstance(plan.get(name), list | dict):
            changes[name] = type(plan[name])()
    return changes


def rows(table: Path) -> pd.DataFrame:
    frame = pd.read_parquet(table / "table.parquet").drop(columns=["run_id"])
    return frame[~frame.metric.isin(TIMES)].reset_index(drop=True)


def run_again(plan: Path, changes: Mapping[str, Any], place: Path) -> dict[str, pd.DataFrame]:
    """Run a plan with an empty store and return its tables."""
    sets = [word for name, value in changes.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    done = subprocess.run(
        [sys.executable, "-m", "probekit", "run", str(plan), *sets, "--out", str(place / "report")],
        cwd=ROOT,
        env={**os.environ, "PROBEKIT_CACHE": str(place / "store")},
        capture_output=True,
        text=True,
    )
    if "no such file" in done.stderr and " data/" in done.stderr:
        pytest.skip(f"its images are not here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    return {one.name: rows(one) for one in (place / "report" / "tables").iterdir()}


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", sorted(SHORT))
def test_whole(name: str, tmp_path: Path):
    again = run_again(PLANS[name], {}, tmp_path)
    assert again
    for table, frame in again.items():
        pd.testing.assert_frame_equal(frame, rows(PLANS[name].parent / "tables" / table), check_exact=True)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", sorted(set(PLANS) - SHORT - TIMED))
def test_a_part(name: str, tmp_path: Path):
    stream = random.Random(f"{name}:{datetime.date.today()}")
    changes = part_of(yaml.safe_load(PLANS[name].read_text(encoding="utf-8")), stream)
    log.info("%s: %s", name, changes)
    compared = 0
    for table, frame in run_again(PLANS[name], changes, tmp_path).items():
        before = rows(PLANS[name].parent / "tables" / table)
        seeds = before.pretrain_seed.notna().any()
        # What counts seeds together is other than the report's: fewer are there.
        found = frame[frame.pretrain_seed.notna()] if seeds else frame
        both = found.merge(before, on=FACTS, suffixes=("", "_before"))
        for number in ["value"] if seeds else NUMBERS:
            pd.testing.assert_series_equal(
                both[number], both[f"{number}_before"], check_names=False, check_exact=True
            )
        compared += len(both)
    log.info("%s: %d rows", name, compared)
    assert compared
