"""``probekit pretrain``."""

from __future__ import annotations

from typing import Annotated

import typer

from probekit.cli import options


def pretrain(
    arm: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            "-a",
            help="ce, ce-mlp, supcon, moco-v1, moco-v2, exemplar-v1, exemplar-v2, autoencoder; repeat.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Images to train on, as other verbs name them.")
    ] = None,
    out: options.Out = None,
    arch: Annotated[
        str | None, typer.Option(help="Architecture of the backbone [default: resnet10_w16].")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings an arm [default: 1].")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images [default: 30].")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Equal images or equal time of all arms [default: images].")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images a step, each in two views [default: 256].")
    ] = None,
    groups: Annotated[
        int | None, typer.Option(min=1, help="Parts of a batch normalised by themselves [default: 2].")
    ] = None,
    queue: Annotated[
        int | None, typer.Option(min=1, help="Entries of the queue of MoCo and Exemplar [default: 4096].")
    ] = None,
    lr: Annotated[
        list[float] | None,
        typer.Option(help="Largest learning rate [default: 0.1]; repeat to choose the best for each arm."),
    ] = None,
    augmentation: Annotated[
        str | None,
        typer.Option(
            help="Words with + between them, as in flip+crop=0.2/1+grey, or a rung of the ladder: "
            "f, fr, frc, frcg, frcgb, crop-only, colour-only [default: frcgb]."
        ),
    ] = None,
    taps: options.Taps = None,
    random: Annotated[
        int | None, typer.Option(min=0, help="Random-init controls of the probes [default: 3].")
    ] = None,
    no_random: options.NoRandom = False,
    weights: Annotated[
        str | None,
        typer.Option(help="Attach the final checkpoints, or all that are kept on the way [default: final]."),
    ] = None,
    precision: options.Precision = None,
    config: options.Config = None,
    changes: options.Changes = None,
    store: options.Store = None,
    device: options.Device = None,
    jobs: options.Jobs = 1,
    smoke: options.Smoke = False,
    dry_run: options.DryRun = False,
) -> None:
    """Train backbones that differ in nothing but the objective, and probe them: checkpoints, table, page.

    Example: probekit pretrain -a ce -a moco-v2 -a exemplar-v2 -d shapeworld/source,train=8000 -o runs/arms
    """
    from probekit.cli.run import run_plan

    flags = {
        "arms": arm,
        "data": data,
        "arch": arch,
        "seeds": seeds,
        "epochs": epochs,
        "budget": budget,
        "batch_size": batch_size,
        "groups": groups,
        "queue": queue,
        "lr": lr,
        "augmentation": augmentation,
        "taps": options.split_taps(taps),
        "random": 0 if no_random else random,
        "weights": weights,
        "precision": precision,
    }
    plan, place = options.build_plan("pretrain", config, flags, changes), out or "runs/pretrain"
    run_plan(
        plan,
        place,
        smoke=smoke,
        dry_run=dry_run,
        store=store,
        device=device,
        jobs=jobs,
    )
