"""Commands around cleaning: clean, and recreate what was cleaned."""

from typing import Annotated

import typer

from lap_assets.cli.setup import open_workspace

MEGABYTE = 1e6


def clean(
    context: typer.Context,
    show: Annotated[bool, typer.Option("--show", help="Only say what would go, and what stays and why.")] = False,
    lap_id: Annotated[list[int] | None, typer.Option(help="Only what was made for this run; repeatable.")] = None,
) -> None:
    """Remove intermediate products that nothing needs any more; each can be re-created."""
    from lap_assets.operations import clean as cleaning

    space = open_workspace(context)
    collection = context.obj["collection"] or space.settings.collections[0]
    if show:
        print_plan(cleaning.plan_cleaning(space, collection, lap_id))
        return
    report = cleaning.clean_collection(space, collection, lap_ids=lap_id)
    print(
        f"{len(report.partitions)} partitions cleaned, {report.bytes / MEGABYTE:.1f} MB freed; "
        f"{report.free_bytes / MEGABYTE:.0f} MB are free now"
    )
    for what, reason in sorted(report.kept.items()):
        print(f"kept: {what}: {reason}")


def print_plan(plan) -> None:
    """A table of what would go, then what stays."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("product", "partition", "MB", "run", "because")
    for one in plan.partitions:
        table.add_row(one.product, one.partition, f"{one.bytes / MEGABYTE:.1f}", str(one.lap_id), one.reason)
    if plan.partitions:
        console.print(table)
    print(
        f"{len(plan.partitions)} partitions would be cleaned, {plan.bytes / MEGABYTE:.1f} MB freed; "
        f"{plan.free_bytes / MEGABYTE:.0f} MB are free now"
    )
    for what, reason in sorted(plan.kept.items()):
        print(f"kept: {what}: {reason}")


def recreate(
    context: typer.Context,
    data_ids: Annotated[
        list[str], typer.Argument(help="COLLECTION/PRODUCT/PARTITION[/UNIT], as `lap ls` prints it; repeatable.")
    ],
) -> None:
    """Make cleaned products again as they were, with what they are made from, if that was cleaned, too."""
    from lap_assets.operations.clean import recreate_units

    failed = False
    for report in recreate_units(open_workspace(context), data_ids):
        made = report.state == "done"
        failed |= not made
        typer.echo(f"{report.product} {report.partition}: {report.state} {report.reason}".rstrip(), err=not made)
    if failed:
        raise typer.Exit(1)
