"""``probekit reset``."""

from __future__ import annotations

from typing import Annotated

import typer

from probekit.cli import options


def reset(
    model: options.Models = None,
    data: options.OneData = None,
    task: options.Task = None,
    target: options.Target = None,
    curve: Annotated[
        list[str] | None,
        typer.Option(
            help="prefix, suffix, leave-one-out, keep-one, selffer, rewind; repeat [default: prefix, suffix]."
        ),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help="What the others become: random, arch_init, stats, shuffled; initial or checkpoint(STEP) of "
            "the same pretraining; repeat [default: random, stats]."
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Kept or replaced as a whole: level, stage or block [default: level].")
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
    """Keep some levels, replace the others, learn a task: which level carries the transfer?

    Example: probekit reset -m lite0=tf_efficientnet_lite0:wheel,size=96 -d signs/ -o runs/signs
    """
    from probekit.cli.run import run_plan

    flags = {
        "models": model,
        "data": data,
        "task": task,
        "target": target,
        "curves": curve,
        "modes": mode,
        "by": by,
        "tuned": False if frozen else None,
        "trials": trials,
        "folds": folds,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "fraction": fraction,
        "precision": precision,
    }
    plan, place = options.build_plan("reset", config, flags, changes), out or "runs/reset"
    run_plan(plan, place, smoke=smoke, dry_run=dry_run, store=store, device=device, jobs=jobs)
