"""Commands that keep a large repository in order: retire, gc, reconcile."""

import sys
from typing import Annotated

import typer

from lap_assets.cli.setup import open_workspace

DRY_RUN_HELP = "Say what would be done, and do nothing."


def retire(
    context: typer.Context,
    sequence: Annotated[str | None, typer.Option(help="Sequence (default: the collection).")] = None,
    keep: Annotated[int, typer.Option(help="So many of the newest cleaned runs stay.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN_HELP)] = False,
) -> None:
    """Take the exposures and pairs of cleaned runs out of the partition sets of the UI, oldest first.

    Products, records and history stay. Refused while a backfill or a run is at any of them.
    """
    from lap_assets.operations.retire import retire_runs

    space = open_workspace(context)
    plan = retire_runs(space, sequence or context.obj["collection"] or space.settings.collections[0], keep, dry_run)
    for run in plan.runs:
        print(f"run {run.lap_id}: {run.cell} {run.band}")
    did = "would be retired" if dry_run else "retired"
    print(f"{len(plan.runs)} runs, {len(plan.exposures)} exposures and {len(plan.pairs)} pairs {did}")


def gc(
    context: typer.Context,
    days: Annotated[float, typer.Option(help="Of Dagster's past, so many days stay as they are.")] = 7.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=DRY_RUN_HELP)] = False,
) -> None:
    """Remove what nobody asks for: replaced versions in the store, old events and ticks in Dagster.

    The newest materialization, observation and check of every partition stay, and so does the list of runs.
    """
    from lap_assets.operations.gc import collect_garbage

    outcome = collect_garbage(open_workspace(context), days, dry_run)
    print("would be removed:" if dry_run else "removed:")
    for line in outcome.lines:
        print(f"  {line}")


def reconcile(
    context: typer.Context,
    apply: Annotated[bool, typer.Option("--apply", help="Settle the differences.")] = False,
) -> None:
    """Settle files, ledger and Dagster: a table of differences, each with what is done about it.

    Nothing is done without --apply; the exit status is then 1 where anything differs.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lap_assets.operations.reconcile import reconcile as settle

    space = open_workspace(context)
    errors = Console(stderr=True)
    begin = (lambda what: errors.print(what, style="dim")) if errors.is_terminal else (lambda what: None)
    outcome = settle(space, context.obj["collection"], apply, begin)
    if outcome.differences:
        table = Table("collection", "product", "partition", "found", "cure", box=None, header_style="bold")
        for one in outcome.differences:
            table.add_row(one.collection, one.product, one.partition, escape(one.found), one.cure)
        Console(width=None if sys.stdout.isatty() else 240).print(table)
    did = f"{outcome.settled} settled" if apply else "nothing changed; settle them with --apply"
    print(f"{len(outcome.differences)} differences{': ' + did if outcome.differences else ''}")
    for (product, partition), who in sorted(outcome.busy.items())[:20]:
        typer.echo(f"lap: left alone: {product} {partition}: {who}", err=True)
    if len(outcome.differences) > outcome.settled:
        raise typer.Exit(1)
