"""``probekit attribute``."""

from __future__ import annotations

from typing import Annotated

import typer

from probekit.cli import options


def attribute(
    model: options.Models = None,
    data: options.Data = None,
    taps: options.Taps = None,
    out: options.Out = None,
    random: Annotated[
        int | None, typer.Option(min=0, help="Random-init controls an architecture [default: 3].")
    ] = None,
    no_random: options.NoRandom = False,
    target: Annotated[
        str | None, typer.Option(help="Target of classes or labels [default: the first].")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="How maps are made: probe_cam, exactly; grad_cam, integrated_gradients, deep_lift, "
            "guided_backprop, saliency or occlusion, towards the pixels [default: probe_cam]."
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Most test images that are scored [default: 200].")
    ] = None,
    tolerance_px: Annotated[
        float | None, typer.Option(min=0, help="By how much the pointing game may miss [default: 0].")
    ] = None,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Also compare maps before and after blocks are reset.")
    ] = False,
    permutations: Annotated[
        int | None, typer.Option(min=0, help="Probes of permuted labels behind each null [default: 5].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Fixes splits, images and permutations [default: 0].")
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
    """Show where probes look, scored against masks or boxes: tables, maps over images, a page under --out.

    Example: probekit attribute -m sup=resnet50:sup.pth -m moco=resnet50:moco.pth -d coco.zip -o runs/coco
    """
    from probekit.cli.run import run_plan

    flags = {
        "models": model,
        "data": data,
        "taps": options.split_taps(taps),
        "random": 0 if no_random else random,
        "permutations": permutations,
        "target": target,
        "method": method,
        "images": images,
        "tolerance_px": tolerance_px,
        "cascade": cascade or None,
        "seed": seed,
        "precision": precision,
        "batch_size": batch_size,
    }
    plan, place = options.build_plan("attribute", config, flags, changes), out or "runs/attribute"
    run_plan(
        plan,
        place,
        smoke=smoke,
        dry_run=dry_run,
        store=store,
        device=device,
        jobs=jobs,
    )
