"""Commands around master calibrations: `lap calibration …`, and `lap invalidate` for what was made from a bad one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lap_assets.cli.setup import open_workspace
from lap_assets.errors import BadInput

MEGABYTE = 1e6
YES = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

calibrations = typer.Typer(help="Master calibrations: states, validity, and who uses them.", no_args_is_help=True)


def open_collection(context: typer.Context) -> tuple[Any, str]:
    """The repository, and the collection that is meant."""
    space = open_workspace(context)
    return space, context.obj["collection"] or space.settings.collections[0]


@calibrations.command("ls")
def list_sets(
    context: typer.Context,
    camera: Annotated[str | None, typer.Option(help="Only of this camera.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only bias, dark, flat, sky or fringe.")] = None,
    band: Annotated[str | None, typer.Option(help="Only of this band.")] = None,
    state: Annotated[str | None, typer.Option(help="Only virtual, built, certified or rejected.")] = None,
) -> None:
    """List calibration sets with their state, validity, frames, and the number of exposures that use them."""
    from rich.table import Table

    from lap_assets.operations.calibrations import list_calibrations

    space, collection = open_collection(context)
    rows = list_calibrations(space, collection, camera, kind, band, state)
    table = Table("calibration", "state", "master", "from", "to", "frames", "detector C", "exposures", "reason")
    for one in rows:
        temperature = "" if one.temperature_c is None else f"{one.temperature_c:.1f}"
        table.add_row(
            one.key, one.state, one.master or "-", one.valid_from, one.valid_to, str(one.frames), temperature,
            str(one.used_by), one.reason,
        )  # fmt: skip
    if rows:
        make_console().print(table)
    print(f"{len(rows)} calibration sets")


@calibrations.command("show")
def show_set(context: typer.Context, key: Annotated[str, typer.Argument(help="CAMERA|KIND|BAND|NIGHT")]) -> None:
    """Show one calibration set: verdict, frames, the numbers of its comparison, and who uses it."""
    from lap_assets.operations.calibrations import describe_calibration

    space, collection = open_collection(context)
    for line in describe_calibration(space, collection, key):
        print(line)


@calibrations.command("certify")
def certify_set(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="CAMERA|KIND|BAND|NIGHT")],
    valid_from: Annotated[str | None, typer.Option(help="First night (default: as it is).")] = None,
    valid_to: Annotated[str | None, typer.Option(help="Last night; empty: until a later one begins.")] = None,
    yes: YES = False,
) -> None:
    """Say that a master may be used; exposures that wait for it are processed with the next run."""
    from lap_assets.operations.calibrations import certify, check_certifiable, describe_calibration

    space, collection = open_collection(context)
    check_certifiable(space, collection, key, valid_from, valid_to)
    for line in describe_calibration(space, collection, key):
        print(line)
    if not yes:
        typer.confirm(f"Certify {key}?", abort=True)
    certify(space, collection, key, valid_from, valid_to)
    print(f"{key} is certified")


@calibrations.command("reject")
def reject_set(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="CAMERA|KIND|BAND|NIGHT")],
    reason: Annotated[str, typer.Option(help="Why it is not to be used.")],
) -> None:
    """Say that a master is never to be used; what was made from it stays until `lap invalidate`."""
    from lap_assets.operations.calibrations import reject
    from lap_assets.operations.invalidate import plan_withdrawal

    space, collection = open_collection(context)
    plan = plan_withdrawal(space, key)
    reject(space, collection, key, reason)
    print(f"{key} is rejected")
    if plan.affected:
        print(f"{len(plan.affected)} partitions were made from it: `lap invalidate '{key}' --show` lists them")


@calibrations.command("associations")
def list_pairs(
    context: typer.Context,
    night: Annotated[str | None, typer.Option(help="Only of this night, as 2026-01-31.")] = None,
    select: Annotated[list[str] | None, typer.Option(help="As band=g status=waits; repeatable.")] = None,
) -> None:
    """List which exposures can be processed with certified masters, and what the others wait for."""
    from rich.table import Table

    from lap_assets.operations.calibrations import count_nights, list_associations

    space, collection = open_collection(context)
    found = list_associations(space, collection, night, select or ())
    table = Table("exposure", "status", "score", "masters", "waits for")
    for one in found:
        masters = "\n".join(f"{choice.key} ({choice.score:.2f})" for choice in one.choices)
        table.add_row(one.exposure, one.status, f"{one.score:.2f}", masters, "\n".join((*one.lacks, *one.waits)))
    if found:
        make_console().print(table)
    survey = space.ledger.survey(collection, lean=True)
    for (camera, date), counts in count_nights(survey, found).items():
        print(f"{camera} {date}: {', '.join(f'{number} {status}' for status, number in sorted(counts.items()))}")
    print(f"{len(found)} associations")


@calibrations.command("coverage")
def show_coverage(
    context: typer.Context,
    picture: Annotated[Path | None, typer.Option(help="Write it as a PNG file, too.")] = None,
) -> None:
    """Show for which nights with exposures there are masters of each kind and band."""
    from lap_assets.operations.calibrations import draw_coverage, measure_coverage, write_coverage

    space, collection = open_collection(context)
    rows = measure_coverage(space.complete(space.ledger.survey(collection, lean=True)))
    if picture is not None:
        write_coverage(rows, picture)
    for line in draw_coverage(rows):
        print(line)


def invalidate(
    context: typer.Context,
    target: Annotated[
        list[str], typer.Argument(help="COLLECTION/PRODUCT/PARTITION[/UNIT], or: calibration CAMERA|KIND|BAND|NIGHT")
    ],
    show: Annotated[bool, typer.Option("--show", help="Only list what was made from it.")] = False,
    reason: Annotated[str, typer.Option(help="Why; it is kept with everything that is made again.")] = "",
    yes: YES = False,
) -> None:
    """Withdraw a bad master, or any product, and let everything made from it be made again."""
    from lap_assets.operations.invalidate import plan_withdrawal, withdraw

    names = target[1:] if target[0] == "calibration" and len(target) > 1 else target
    if len(names) != 1:
        raise BadInput(f"one thing at a time, not {' '.join(names)!r}: a data id, or calibration KEY")
    if not show and not reason.strip():
        raise BadInput("--reason is missing: say why it is withdrawn, or --show what was made from it")
    space = open_workspace(context)
    plan = plan_withdrawal(space, names[0])
    print_withdrawal(plan)
    if show:
        return
    if not yes:
        typer.confirm(f"Withdraw {plan.target}, and make {plan.units} units again?", abort=True)
    count = withdraw(space, plan, reason)
    print(f"{plan.target} is withdrawn; {count} partitions are made again with the next `lap run`, or by the sensors")


def print_withdrawal(plan: Any) -> None:
    """A table of what was made from it, then what that means."""
    from rich.table import Table

    table = Table("collection", "product", "partition", "units", "MB")
    for one in plan.affected:
        table.add_row(one.collection, one.product, one.partition, str(one.units), f"{one.bytes / MEGABYTE:.1f}")
    if plan.affected:
        make_console().print(table)
    print(
        f"{plan.target}: {len(plan.affected)} partitions were made from it, {plan.units} units, "
        f"{plan.bytes / MEGABYTE:.1f} MB"
    )
    for collection, lap_ids in plan.runs.items():
        print(f"runs of {collection} that ended and would go on: {', '.join(map(str, lap_ids))}")
    for collection, names in plan.stranded.items():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        print(f"exposures of {collection} left without such a master: {', '.join(names[:5])}{more}: they would wait")


def make_console() -> Any:
    """A console for tables, as wide as they are where nobody watches."""
    import sys

    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 240, highlight=False)
