"""``probekit reconstruct``."""

from __future__ import annotations

from typing import Annotated

import typer

from probekit.cli import options


def reconstruct(
    model: options.Models = None,
    data: options.Data = None,
    method: Annotated[
        str | None, typer.Option(help="How it is read back: linear, decoder, inversion [default: linear].")
    ] = None,
    taps: options.Taps = None,
    out: options.Out = None,
    random: Annotated[
        int | None, typer.Option(min=0, help="Random-init controls an architecture [default: 3].")
    ] = None,
    no_random: options.NoRandom = False,
    regions: Annotated[
        str | None,
        typer.Option(help="Images with masks or boxes, whose foreground and background are scored apart."),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Features every tap is projected to [default: 256].")
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings of the decoder, or draws of an inversion's prior [default: 3]."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each training of the decoder [default: 200].")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Of an inversion: preview, standard or paper [default: preview].")
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="Of an inversion: pyramid, network, fourier or pixels [default: the preset's]."),
    ] = None,
    shown: Annotated[
        int | None, typer.Option(min=1, help="Test images that are inverted [default: 6].")
    ] = None,
    residual: Annotated[
        float | None, typer.Option(help="Relative residual at which an inversion is done [default: 0.05].")
    ] = None,
    perceptual: Annotated[
        str | None,
        typer.Option(help="A further network, NAME=ARCH:CHECKPOINT, that compares made with true images."),
    ] = None,
    permutations: Annotated[
        int | None, typer.Option(min=0, help="Permutations of the images behind each null [default: 20].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Fixes splits, projections and permutations [default: 0].")
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
    """Measure how much of the images can be read back from every tap: tables, pictures, a page under --out.

    Example: probekit reconstruct -m sup=resnet50:sup.pth -m moco=resnet50:moco.pth -d flowers/ -o runs/f
    """
    from probekit.cli.run import run_plan

    flags = {
        "models": model,
        "data": data,
        "method": method,
        "taps": options.split_taps(taps),
        "random": 0 if no_random else random,
        "permutations": permutations,
        "regions": regions,
        "width": width,
        "draws": draws,
        "steps": steps,
        "preset": preset,
        "prior": prior,
        "shown": shown,
        "residual": residual,
        "perceptual": perceptual,
        "seed": seed,
        "precision": precision,
        "batch_size": batch_size,
    }
    plan, place = options.build_plan("reconstruct", config, flags, changes), out or "runs/reconstruct"
    run_plan(
        plan,
        place,
        smoke=smoke,
        dry_run=dry_run,
        store=store,
        device=device,
        jobs=jobs,
    )
