"""``probekit inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def inspect(
    file: Annotated[Path, typer.Argument(help="A checkpoint, or a folder with config.json and weights.")],
    arch: Annotated[
        str | None,
        typer.Option(help="Hold it against this architecture: a name, file.py:function or dotted function."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint holds, which architecture it fills, and which words load it.

    Nothing in it is run. Ends with status 1 if it does not fill the architecture asked for.

    Example: probekit inspect moco_v2_800ep.pth.tar
    """
    from probekit.backbones.inspection import inspect_checkpoint

    found = inspect_checkpoint(file, arch)
    typer.echo(json.dumps(found.facts(), indent=2, ensure_ascii=False) if as_json else str(found))
    if arch is not None and not any(fit.whole for fit in found.fits):
        raise typer.Exit(1)
