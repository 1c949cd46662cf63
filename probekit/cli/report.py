"""``probekit report``."""

from __future__ import annotations

from typing import Annotated

import typer


def report(
    folder: Annotated[str, typer.Argument(help="The --out folder or URL of an earlier run.")],
) -> None:
    """Draw figures and page again from the tables of an earlier run; needs no weights and no images.

    Example: probekit report reports/flowers
    """
    from probekit.running import redraw

    redraw(folder)
    typer.echo(f"page: {folder.rstrip('/')}/index.html")
