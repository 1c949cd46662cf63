"""``probekit probe``."""

from __future__ import annotations

from typing import Annotated

import typer

from probekit.cli import options


def probe(
    model: options.Models = None,
    data: options.Data = None,
    taps: options.Taps = None,
    target: Annotated[list[str] | None, typer.Option(help="Target to probe; repeat [default: all].")] = None,
    out: options.Out = None,
    random: Annotated[
        int | None, typer.Option(min=0, help="Random-init controls an architecture [default: 3].")
    ] = None,
    no_random: options.NoRandom = False,
    permutations: Annotated[
        int | None, typer.Option(min=0, help="Fits behind each null [default: 20].")
    ] = None,
    penalties: Annotated[
        str | None, typer.Option(help="Candidates, comma-separated [default: 13, 10 … 1e-5].")
    ] = None,
    shots: Annotated[str | None, typer.Option(help="Few-shot images a class [default: 1,2,5,10,20].")] = None,
    orders: Annotated[
        int | None,
        typer.Option(min=0, help="Orders in which labels are coded for description length [default: 0]."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Fixes splits, permutations and draws [default: 0].")
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
    """Probe every tap of every model: tables, figures and a page under --out.

    Example: probekit probe -m sup=resnet50:sup.pth -m moco=resnet50:moco.pth.tar -d flowers/ -o runs/flowers
    """
    from probekit.cli.run import run_plan

    flags = {
        "models": model,
        "data": data,
        "taps": options.split_taps(taps),
        "targets": target,
        "random": 0 if no_random else random,
        "permutations": permutations,
        "penalties": _numbers(penalties, float),
        "shots": _numbers(shots, int),
        "orders": orders,
        "seed": seed,
        "precision": precision,
        "batch_size": batch_size,
    }
    plan = options.build_plan("probe", config, flags, changes)
    run_plan(plan, out or "runs/probe", smoke=smoke, dry_run=dry_run, store=store, device=device, jobs=jobs)


def _numbers(text: str | None, kind: type[float] | type[int]) -> list[float] | None:
    from probekit.errors import InputError

    if text is None:
        return None
    try:
        return [kind(piece) for piece in text.split(",") if piece.strip()]
    except ValueError as error:
        raise InputError(
            "numbers separated by commas", repr(text), "Write 1,0.1,0.01, for example"
        ) from error
