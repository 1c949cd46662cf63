"""The command ``probekit``."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from probekit.cli.attribute import attribute
from probekit.cli.boxes import boxes
from probekit.cli.data import data
from probekit.cli.demo import demo
from probekit.cli.diagnose import diagnose
from probekit.cli.extract import extract
from probekit.cli.geometry import geometry
from probekit.cli.inspect import inspect
from probekit.cli.invariance import invariance
from probekit.cli.layers import layers
from probekit.cli.pretrain import pretrain
from probekit.cli.probe import probe
from probekit.cli.reconstruct import reconstruct
from probekit.cli.report import report
from probekit.cli.reset import reset
from probekit.cli.run import run
from probekit.cli.similarity import similarity
from probekit.cli.transfer import transfer
from probekit.cli.unfold import unfold
from probekit.cli.verify import verify
from probekit.errors import ProbekitError
from probekit.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="What does each layer of a pretrained vision backbone know, and what of it transfers?",
)
for verb in (
    inspect,
    layers,
    data,
    verify,
    unfold,
    extract,
    pretrain,
    probe,
    boxes,
    geometry,
    invariance,
    similarity,
    reconstruct,
    attribute,
    transfer,
    reset,
    diagnose,
    report,
    run,
    demo,
):
    app.command()(verb)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"probekit {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("probekit").setLevel(logging.WARNING if quiet else logging.INFO)


def main() -> None:
    """Run the command; an error a user can mend ends it with status 2 and one sentence, not a traceback."""
    try:
        app(prog_name="probekit")
    except ProbekitError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        # A full or read-only disk: what was finished before is whole and will be found again.
        typer.echo(
            f"{type(error).__name__}: {error}. What is finished is kept; run again to go on.", err=True
        )
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("Interrupted. What is finished is kept; run again to go on.", err=True)
        sys.exit(130)
