"""``probekit unfold``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probekit.cli import options


def unfold(
    model: Annotated[str, typer.Argument(help="[NAME=]ARCH:CHECKPOINT[,key=value…]")],
    data: Annotated[str, typer.Option("--data", "-d", help="Images as those the checkpoint was trained on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The checkpoint to write, .safetensors.")],
    device: options.Device = None,
) -> None:
    """Give a checkpoint whose batch norm was folded into its convolutions statistics again.

    What it computes stays the same; finetuning can then adapt its batch norm.

    Example: probekit unfold mobilenetv2_100:folded.pth --data images/ --out unfolded.safetensors
    """
    from probekit.features.statistics import unfold as write

    facts = write(model, data, out, device=device)
    typer.echo(
        f"{facts['path']}: {facts['layers']} layers unfolded with {facts['images']} images; outputs moved by "
        f"{facts['relative_change']:.1e} of their size"
    )
