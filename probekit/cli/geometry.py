"""``probekit geometry``."""

from __future__ import annotations

from typing import Annotated

import typer

from probekit.cli import options


def geometry(
    model: options.Models = None,
    data: options.Data = None,
    taps: options.Taps = None,
    target: Annotated[str | None, typer.Option(help="Class target [default: the first].")] = None,
    out: options.Out = None,
    random: Annotated[
        int | None, typer.Option(min=0, help="Random-init controls an architecture [default: 3].")
    ] = None,
    no_random: options.NoRandom = False,
    permutations: Annotated[
        int | None, typer.Option(min=0, help="Permuted labellings behind each null [default: 20].")
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Most pairs of classes of directional variance [default: 2000].")
    ] = None,
    subsample: Annotated[
        int | None,
        typer.Option(min=10, help="Most images of measures over pairs of images [default: 5000]."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Fixes permutations, halves and subsamples [default: 0].")
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
    """Measure what varies inside and between classes at every tap: tables, figures and a page under --out.

    Example: probekit geometry -m sup=resnet50:sup.pth -m moco=resnet50:moco.pth -d flowers/ -o runs/flowers
    """
    from probekit.cli.run import run_plan

    flags = {
        "models": model,
        "data": data,
        "taps": options.split_taps(taps),
        "target": target,
        "random": 0 if no_random else random,
        "permutations": permutations,
        "pairs": pairs,
        "subsample": subsample,
        "seed": seed,
        "precision": precision,
        "batch_size": batch_size,
    }
    plan, place = options.build_plan("geometry", config, flags, changes), out or "runs/geometry"
    run_plan(
        plan,
        place,
        smoke=smoke,
        dry_run=dry_run,
        store=store,
        device=device,
        jobs=jobs,
    )
