"""``probekit similarity``."""

from __future__ import annotations

from typing import Annotated

import typer

from probekit.cli import options


def similarity(
    model: options.Models = None,
    data: options.Data = None,
    taps: options.Taps = None,
    out: options.Out = None,
    random: Annotated[
        int | None, typer.Option(min=0, help="Random-init controls an architecture [default: 1].")
    ] = None,
    no_random: options.NoRandom = False,
    permutations: Annotated[
        int | None,
        typer.Option(min=0, help="New pairings behind nulls without formula [default: 5]."),
    ] = None,
    subsample: Annotated[int | None, typer.Option(min=20, help="Most images [default: 5000].")] = None,
    pairwise: Annotated[
        int | None, typer.Option(min=20, help="Most images of RSA and mutual neighbours [default: 1000].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Fixes subsamples, groups and pairings [default: 0].")
    ] = None,
    precision: options.Precision = None,
    batch_size: options.BatchSize = None,
    config: options.Config = None,
    changes: options.Changes = None,
    store: options.Store = None,
    device: options.Device = None,
    jobs: options.Jobs = 1,
    smoke: options.Smoke = False,
    dry_run: options.DryRun = False,
) -> None:
    """Measure how alike layers are, all against all: tables, heat-maps and a page under --out.

    Example: probekit similarity -m sup=resnet50:sup.pth -m moco=resnet50:moco.pth -d flowers/ -o runs/flowers
    """
    from probekit.cli.run import run_plan

    flags = {
        "models": model,
        "data": data,
        "taps": options.split_taps(taps),
        "random": 0 if no_random else random,
        "permutations": permutations,
        "subsample": subsample,
        "pairwise": pairwise,
        "seed": seed,
        "precision": precision,
        "batch_size": batch_size,
    }
    plan, place = options.build_plan("similarity", config, flags, changes), out or "runs/similarity"
    run_plan(
        plan,
        place,
        smoke=smoke,
        dry_run=dry_run,
        store=store,
        device=device,
        jobs=jobs,
    )
