"""``probekit layers``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probekit.cli import options


def layers(
    model: Annotated[str, typer.Argument(help="[NAME=]ARCH:CHECKPOINT[,key=value…]")],
    blocks: Annotated[bool, typer.Option("--blocks", help="Only block outputs, the usual taps.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Also write the whole table as CSV.")] = None,
    device: options.Device = None,
) -> None:
    """List where activations can be read: path, type, block, level, shape, cost, in executed order.

    Example: probekit layers resnet18:random --blocks
    """
    from probekit.backbones.loading import load_backbone
    from probekit.taps.layers import list_layers

    backbone = load_backbone(model, device=device or "cpu")
    table = list_layers(backbone)
    if csv is not None:
        table.to_csv(csv, index=False)
    if blocks:
        table = table[table["path"] == table["block"]]
    typer.echo(table.to_string(index=False))
