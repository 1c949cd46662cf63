"""``probekit data``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def data(
    source: Annotated[str, typer.Argument(help="Data in words, as for --data: SOURCE[,key=value…]")],
    sheet: Annotated[Path | None, typer.Option(help="Also draw a contact sheet, a PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what was understood of images: counts, classes, sizes, problems.

    Example: probekit data flowers/ --sheet flowers.png
    """
    from probekit.data.description import describe_images
    from probekit.data.readers import open_images
    from probekit.data.sheet import draw_sheet
    from probekit.errors import DataError

    try:
        images = open_images(source)
    except DataError:
        # What cannot be divided for a probe can still be looked at.
        images = open_images(source, divide=False)
    facts = describe_images(images)
    typer.echo(json.dumps(facts.facts(), indent=2) if as_json else str(facts))
    if sheet is not None:
        typer.echo(f"sheet: {draw_sheet(images, sheet)}", err=True)
