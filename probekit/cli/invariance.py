"""``probekit invariance``."""

from __future__ import annotations

from typing import Annotated

import typer

from probekit.cli import options


def invariance(
    model: options.Models = None,
    data: options.Data = None,
    taps: options.Taps = None,
    target: Annotated[str | None, typer.Option(help="Class target [default: the first, if any].")] = None,
    out: options.Out = None,
    random: Annotated[
        int | None, typer.Option(min=0, help="Random-init controls an architecture [default: 3].")
    ] = None,
    no_random: options.NoRandom = False,
    permutations: Annotated[
        int | None, typer.Option(min=0, help="New pairings of images behind each null [default: 20].")
    ] = None,
    perturbations: Annotated[
        str | None,
        typer.Option(
            "--perturbations",
            help="Comma-separated, with strengths if you like: rotation=15/90,blur [default: all twelve].",
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=2, help="Most images that are changed [default: 200].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Fixes images, changes and permutations [default: 0].")
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
    """Measure which changes of an image every tap ignores: tables, strength curves and a page under --out.

    Example: probekit invariance -m sup=resnet50:sup.pth -m moco=resnet50:moco.pth -d flowers/ -o runs/flowers
    """
    from probekit.cli.run import run_plan

    flags = {
        "models": model,
        "data": data,
        "taps": options.split_taps(taps),
        "target": target,
        "random": 0 if no_random else random,
        "permutations": permutations,
        "perturbations": perturbations.split(",") if perturbations else None,
        "images": images,
        "seed": seed,
        "precision": precision,
        "batch_size": batch_size,
    }
    plan, place = options.build_plan("invariance", config, flags, changes), out or "runs/invariance"
    run_plan(
        plan,
        place,
        smoke=smoke,
        dry_run=dry_run,
        store=store,
        device=device,
        jobs=jobs,
    )
