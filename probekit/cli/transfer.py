"""``probekit transfer``."""

from __future__ import annotations

from probekit.cli import options


def transfer(
    model: options.Models = None,
    data: options.OneData = None,
    task: options.Task = None,
    target: options.Target = None,
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
    """Learn a task from whole backbones and from scratch: what is pretraining worth for it?

    Example: probekit transfer -m lite0=tf_efficientnet_lite0:wheel,size=96 -d signs/ -o runs/signs
    """
    from probekit.cli.run import run_plan

    flags = {
        "models": model,
        "data": data,
        "task": task,
        "target": target,
        "tuned": False if frozen else None,
        "trials": trials,
        "folds": folds,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "fraction": fraction,
        "precision": precision,
    }
    plan, place = options.build_plan("transfer", config, flags, changes), out or "runs/transfer"
    run_plan(plan, place, smoke=smoke, dry_run=dry_run, store=store, device=device, jobs=jobs)
