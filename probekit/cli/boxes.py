"""``probekit boxes``."""

from __future__ import annotations

from typing import Annotated

import typer

from probekit.cli import options


def boxes(
    model: options.Models = None,
    data: options.Data = None,
    taps: options.Taps = None,
    target: Annotated[str | None, typer.Option(help="Name of the boxes [default: the first].")] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="what, where, offset; repeat [default: all three].")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--boxes", min=1, help="Most boxes that are read [default: 2000].")
    ] = None,
    grid: Annotated[
        int | None, typer.Option(min=1, help="Places a side that a region is read at [default: 3].")
    ] = None,
    out: options.Out = None,
    random: Annotated[
        int | None, typer.Option(min=0, help="Random-init controls an architecture [default: 3].")
    ] = None,
    no_random: options.NoRandom = False,
    permutations: Annotated[
        int | None, typer.Option(min=0, help="Permuted fits behind each null [default: 20].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Fixes boxes, regions, splits and draws [default: 0].")
    ] = None,
    batch_size: options.BatchSize = None,
    config: options.Config = None,
    changes: options.Changes = None,
    store: options.Store = None,
    device: options.Device = None,
    jobs: options.Jobs = 1,
    smoke: options.Smoke = False,
    dry_run: options.DryRun = False,
) -> None:
    """Ask every tap, inside boxes, what is there and where: tables, what-against-where curves and a page.

    Example: probekit boxes -m lite0=tf_efficientnet_lite0:wheel,size=160 -d bccd_voc.zip -o runs/cells
    """
    from probekit.cli.run import run_plan

    flags = {
        "models": model,
        "data": data,
        "taps": options.split_taps(taps),
        "target": target,
        "questions": question,
        "boxes": most,
        "grid": grid,
        "random": 0 if no_random else random,
        "permutations": permutations,
        "seed": seed,
        "batch_size": batch_size,
    }
    plan, place = options.build_plan("boxes", config, flags, changes), out or "runs/boxes"
    run_plan(plan, place, smoke=smoke, dry_run=dry_run, store=store, device=device, jobs=jobs)
