"""``probekit diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probekit.cli import options


def diagnose(
    model: options.Models = None,
    data: options.OneData = None,
    detections: Annotated[
        Path | None,
        typer.Option(help="In place of models: a JSON file of detections in COCO's results format."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="detection, detection/c4 or detection/c4-norm [default: detection].")
    ] = None,
    target: options.Target = None,
    similar: Annotated[
        list[str] | None, typer.Option(help="Similar classes joined by +, as in cat+dog; repeat.")
    ] = None,
    permutations: Annotated[
        int | None, typer.Option(min=0, help="Ways to exchange boxes among images, for nulls [default: 20].")
    ] = None,
    frozen: options.Frozen = False,
    trials: options.Trials = None,
    folds: options.Folds = None,
    steps: options.Steps = None,
    batch_size: options.TrainingBatch = None,
    lr: options.Rates = None,
    fraction: options.Fraction = None,
    out: options.Out = None,
    precision: options.Precision = None,
    config: options.Config = None,
    changes: options.Changes = None,
    store: options.Store = None,
    device: options.Device = None,
    jobs: options.Jobs = 1,
    smoke: options.Smoke = False,
    dry_run: options.DryRun = False,
) -> None:
    """Say why detections are wrong: what each type of error costs, and what the best boxes are.

    Example: probekit diagnose -m lite0=tf_efficientnet_lite0:wheel,size=96 -d cells/ --folds 5 -o runs/cells

    Of another detector: probekit diagnose --detections results.json -d coco/ -o runs/coco
    """
    from probekit.cli.run import run_plan

    flags = {
        "models": model,
        "data": data,
        "detections": str(detections) if detections is not None else None,
        "task": task,
        "target": target,
        "similar": similar,
        "permutations": permutations,
        "tuned": False if frozen else None,
        "trials": trials,
        "folds": folds,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "fraction": fraction,
        "precision": precision,
    }
    plan, place = options.build_plan("diagnose", config, flags, changes), out or "runs/diagnose"
    run_plan(plan, place, smoke=smoke, dry_run=dry_run, store=store, device=device, jobs=jobs)
