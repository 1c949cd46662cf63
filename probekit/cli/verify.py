"""``probekit verify``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from probekit.cli import options


def verify(
    model: Annotated[str, typer.Argument(help="[NAME=]ARCH:CHECKPOINT[,key=value…]")],
    data: Annotated[
        str,
        typer.Option("--data", "-d", help="Labelled images, of the classes the checkpoint was trained on."),
    ],
    target: Annotated[str | None, typer.Option(help="The class target [default: the first].")] = None,
    limit: Annotated[int, typer.Option(min=2, help="At most this many images, spread evenly.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: options.Device = None,
) -> None:
    """Check that a checkpoint gets its images as it was trained to.

    Its own classifier is run with the stated preprocessing and with others in common use; without one, what
    comes into its first batch norm is compared with the statistics it kept. Ends with status 1 if another
    preprocessing fits clearly better.

    Example: probekit verify resnet50:my.pth --data imagenet_val/,limit=1000
    """
    from probekit.verification.verdict import verify as check

    found = check(model, data, target=target, limit=limit, device=device)
    typer.echo(json.dumps(found.facts(), indent=2) if as_json else str(found))
    if found.better is not None:
        raise typer.Exit(1)
