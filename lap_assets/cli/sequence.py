"""Commands that define and steer: lap sequence, lap run define and list, pause, resume, cancel, priority, drain.

The modern spelling of what `laptool` does in the original one, over the same functions.
"""

from typing import Annotated, Any

import typer

from lap_assets.cli.setup import open_workspace
from lap_assets.errors import BadInput

JSON = Annotated[bool, typer.Option("--json", help="For machines.")]
LAP_IDS = Annotated[list[int], typer.Argument(min=1, metavar="LAP_ID...")]
# a low priority is no option
NEGATIVE = {"ignore_unknown_options": True}

sequences = typer.Typer(help="Sequences: each one complete sample of the sky, a collection.", no_args_is_help=True)


@sequences.command("define")
def define_sequence(
    context: typer.Context,
    name: Annotated[str, typer.Argument()],
    description: Annotated[str, typer.Option(help="For people.")] = "",
) -> None:
    """Define a new sequence."""
    from lap_assets.lap.command_words import read_text
    from lap_assets.operations import define

    row = define.define_sequence(open_workspace(context), name, read_text(description, "--description"))
    print(f"defined sequence {row.seq_id} {row.name}")


@sequences.command("list")
def list_sequences(context: typer.Context, as_json: JSON = False) -> None:
    """List the sequences."""
    from lap_assets.operations import listings

    print_listing(listings.list_sequences(open_workspace(context).ledger.sequences()), as_json)


def define_run(
    context: typer.Context,
    cell: Annotated[str, typer.Option(help="Projection cell: rings.v3.1405, or 1405 where that is clear.")] = "",
    bands: Annotated[str, typer.Option("--band", "--bands", help="g; of a region also g,r; default there: all.")] = "",
    sequence: Annotated[str, typer.Option(help="Name or number (default: the collection).")] = "",
    tessellation: Annotated[str, typer.Option(help="Name or number, where the cell's name does not tell.")] = "",
    ra: Annotated[float | None, typer.Option(help="With --cell: only exposures inside this cone, deg.")] = None,
    dec: Annotated[float | None, typer.Option(help="deg")] = None,
    radius: Annotated[float | None, typer.Option(help="deg")] = None,
    circle: Annotated[tuple[float, float, float] | None, typer.Option(help="RA DEC RADIUS, deg.")] = None,
    box: Annotated[tuple[float, float, float, float] | None, typer.Option(help="RA0 RA1 DEC0 DEC1, deg.")] = None,
    polygon: Annotated[str, typer.Option(help="'RA,DEC RA,DEC RA,DEC …', deg.")] = "",
    label: Annotated[str, typer.Option(help="For people to find it by.")] = "",
    dist_group: Annotated[str, typer.Option(help="Tag on every product made for it.")] = "",
    obs_mode: Annotated[str, typer.Option(help="Take exposures of this mode; any: of all.")] = "3PI",
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    queue: Annotated[bool, typer.Option("--queue", help="Write it to the queue file instead.")] = False,
) -> None:
    """Define one run (--cell and --band), or every run of a circle, box or polygon. Queues nothing."""
    from lap_assets.lap import command_words as words
    from lap_assets.lap.queue_file import RunRequest
    from lap_assets.operations import define

    space = open_workspace(context)
    regions = [one for one in (circle, box, polygon or None) if one is not None]
    if bool(cell) == bool(regions) or len(regions) > 1:
        raise BadInput("give one of --cell, --circle, --box, --polygon")
    common = {
        "sequence": sequence or context.obj["collection"] or space.settings.collections[0],
        "tessellation": tessellation,
        "obs_mode": None if obs_mode == "any" else words.read_name(obs_mode, "--obs-mode"),
        "label": words.read_name(label, "--label") if label else "",
        "dist_group": words.read_name(dist_group, "--dist-group") if dist_group else "",
        "priority": priority,
    }
    chosen = words.read_bands(bands, "--band") if bands else None
    cone = read_cone(ra, dec, radius)
    if cell and (chosen is None or len(chosen) > 1):
        raise BadInput("--band is missing: a run is one cell in one band")
    if cell:
        requests = [RunRequest(cell=words.read_name(cell, "--cell"), band=chosen[0], region=cone, **common)]
        rows = [] if queue else [define.define_run(space, requests[0])]
    else:
        corners = words.read_polygon(polygon, "--polygon") if polygon else None
        region = define.make_region(circle, box, corners)
        requests = define.plan_area(space, region=region, bands=chosen, **common) if queue else []
        rows = [] if queue else define.define_area(space, region=region, bands=chosen, **common)
    if queue:
        print(f"{len(requests)} lines written to {define.append_queue(space, requests)}")
    for row in rows:
        print(f"run {row.lap_id}: {row.cell} {row.band}, {len(space.ledger.members(row.lap_id))} exposures")
    if not rows and not queue:
        print("all its runs are defined already, or nothing was observed there")


def read_cone(ra: float | None, dec: float | None, radius: float | None) -> tuple[float, float, float] | None:
    """The cone of three options, or None; raises `BadInput`."""
    from lap_assets.model.regions import Cone

    values = [ra, dec, radius]
    if values == [None, None, None]:
        return None
    if ra is None or dec is None or radius is None:
        raise BadInput("a cone needs --ra, --dec and --radius; without them the whole cell is taken")
    cone = Cone(ra, dec, radius)
    return cone.ra_deg, cone.dec_deg, cone.radius_deg


def list_runs(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(help="new, run or full.")] = None,
    cell: Annotated[str | None, typer.Option(help="Projection cell.")] = None,
    band: Annotated[str | None, typer.Option(help="Band.")] = None,
    label: Annotated[str | None, typer.Option(help="Label.")] = None,
    as_json: JSON = False,
) -> None:
    """List the runs of all sequences, or of one with --collection; `lap status` tells how they stand."""
    from lap_assets.lap import command_words as words
    from lap_assets.operations import listings

    space = open_workspace(context)
    rows = listings.select_runs(
        space,
        context.obj["collection"],
        words.read_run_state(state, "--state") if state else None,
        cell,
        words.read_band(band, "--band") if band else None,
        label,
    )
    print_listing(listings.list_runs(rows), as_json)


def print_listing(listing: Any, as_json: bool) -> None:
    """Rows as a table for people or as JSON."""
    import sys

    if as_json:
        print(listing.as_json(), end="")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    view = Table(box=None, header_style="bold")
    for column, _ in listing.columns:
        view.add_column(column, no_wrap=True)
    for row in listing.rows:
        view.add_row(*(Text("" if row[column] is None else str(row[column])) for column, _ in listing.columns))
    Console(width=None if sys.stdout.isatty() else 200).print(view)


# ---- steering


def pause(context: typer.Context, lap_ids: LAP_IDS) -> None:
    """Let runs rest: what is being made ends, nothing new begins."""
    from lap_assets.operations import controls

    print("\n".join(controls.pause_runs(open_workspace(context), lap_ids, True)))


def resume(context: typer.Context, lap_ids: LAP_IDS) -> None:
    """Let paused runs go on."""
    from lap_assets.operations import controls

    print("\n".join(controls.pause_runs(open_workspace(context), lap_ids, False)))


def cancel(
    context: typer.Context,
    lap_ids: LAP_IDS,
    reason: Annotated[str, typer.Option(help="Kept with the run.")] = "cancelled by an operator",
) -> None:
    """End runs as they are; they will not be full."""
    from lap_assets.lap.command_words import read_text
    from lap_assets.operations import controls

    print("\n".join(controls.cancel_runs(open_workspace(context), lap_ids, read_text(reason, "--reason"))))


def priority(
    context: typer.Context,
    lap_id: Annotated[int, typer.Argument(min=1, metavar="LAP_ID")],
    value: Annotated[int, typer.Argument(metavar="N", min=-1_000_000, max=1_000_000)],
) -> None:
    """Give a run a priority: higher goes first, 0 is usual."""
    from lap_assets.operations import controls

    print(controls.prioritize_run(open_workspace(context), lap_id, value))


def drain(context: typer.Context) -> None:
    """Begin no new run and let those under way end: before an upgrade, say."""
    from lap_assets.operations import controls

    print(controls.drain(open_workspace(context), True))


def undrain(context: typer.Context) -> None:
    """Let runs begin again."""
    from lap_assets.operations import controls

    print(controls.drain(open_workspace(context), False))
