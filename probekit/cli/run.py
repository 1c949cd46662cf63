"""``probekit run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probekit.cli import options

if TYPE_CHECKING:
    from probekit.plan import Plan
    from probekit.results.table import ResultTable


def run(
    file: Annotated[Path, typer.Argument(help="A plan.yaml, or an analysis file.")],
    out: options.Out = None,
    changes: options.Changes = None,
    store: options.Store = None,
    device: options.Device = None,
    jobs: options.Jobs = 1,
    smoke: options.Smoke = False,
    dry_run: options.DryRun = False,
) -> None:
    """Run a plan or an analysis again.

    Example: probekit run reports/flowers/plan.yaml --set permutations=5 --out runs/again
    """
    from probekit.plan import Plan
    from probekit.running import load_analysis

    plan = load_analysis(file).PLAN if file.suffix == ".py" else Plan.read(file)
    plan = plan.having(**options.parse_changes(changes))
    place = out or (Path("runs") / file.stem if file.suffix == ".py" else file.parent)
    run_plan(plan, place, smoke=smoke, dry_run=dry_run, store=store, device=device, jobs=jobs)


def run_plan(plan: Plan, out: str | Path, *, smoke: bool, dry_run: bool, **places: Any) -> None:  # noqa: ANN401
    """Run a plan, or say what it would do, and print where the results are."""
    from probekit.running import execute, foresee, shrink

    if smoke:
        plan = shrink(plan)
    if dry_run:
        typer.echo(plan.to_yaml())
        typer.echo(foresee(plan, **places).to_string(index=False))
        return
    for table in execute(plan, out, **places).values():
        typer.echo(_headline(table))
    typer.echo(f"page: {str(out).rstrip('/')}/index.html")


def _headline(table: ResultTable) -> str:
    """Say in a few lines what the page says first, with intervals, nulls and controls."""
    from probekit.reporting.headline import headline_blocks
    from probekit.reporting.likeness import likeness_blocks

    lines = []
    for block in headline_blocks(table):
        lines.append(f"{block.data}: {block.label}; interval: {block.ci_kind}; null: {block.null_kind}")
        for target, rows in block.targets.items():
            lines += [
                f"  {target:14} {row.model:14} {row.tap:22} {row.value.text} [{row.value.ends}]"
                f"  null {row.null.text}  random init {row.random.text}"
                for row in rows
            ]
    for alike in likeness_blocks(table):
        lines.append(f"{alike.data}: {alike.label}; interval: {alike.ci_kind}; null: {alike.null_kind}")
        for level, pairs in alike.levels.items():
            lines += [
                f"  {level:6} {pair.one} ~ {pair.other}: {pair.value.text} [{pair.value.ends}]"
                f"  null {pair.null.text}  random init {pair.random.text}"
                for pair in pairs
            ]
    return "\n".join(lines)
