"""``probekit report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="The --out folder of an earlier run.")],
) -> None:
    """Draw figures and page again from the tables of an earlier run; needs no weights and no images.

    Example: probekit report reports/flowers
    """
    from probekit.running import redraw

    typer.echo(f"page: {redraw(folder)}")
