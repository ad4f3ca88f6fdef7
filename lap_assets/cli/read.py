"""Commands that read: ls, get, show, cutout, log, report, fsck."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lap_assets.cli.setup import open_workspace
from lap_assets.cli.tables import print_table
from lap_assets.errors import BadInput

KEYS_HELP = "key=value pairs of the data id, e.g. cell=demo.0 band=r skycell=00."


def parse_keys(pairs: list[str]) -> dict[str, str]:
    """`key=value` arguments to a mapping."""
    keys = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise BadInput(f"{pair!r} is not key=value; for example: band=r")
        keys[key] = value
    return keys


def ls(
    context: typer.Context,
    product: Annotated[str | None, typer.Argument(help="Product; without one, a summary of all.")] = None,
    where: Annotated[str | None, typer.Option(help="Expression, e.g. 'band=g^r state=done'.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """List products: a summary, or the units of one product."""
    from lap_assets.operations.read import list_units, summarize_products

    space = open_workspace(context)
    only = context.obj["collection"]
    table = list_units(space, product, where, only) if product or where else summarize_products(space, only)
    if as_json:
        print(table.to_json(orient="records", indent=1))
        return
    print_table(table, width=200)


def get(
    context: typer.Context,
    product: Annotated[str, typer.Argument()],
    keys: Annotated[list[str], typer.Argument(help=KEYS_HELP)],
    member: Annotated[str | None, typer.Option(help="File of the product (default: its first).")] = None,
    out: Annotated[Path | None, typer.Option("-o", help="Write it here (.fits, .parquet, .csv, .json, .png).")] = None,
) -> None:
    """Fetch a product by name and data id; without -o its description and where it lies."""
    from lap_assets.operations.read import describe_thing, save_thing

    space = open_workspace(context)
    selected = parse_keys(keys)
    if context.obj["collection"]:
        selected["collection"] = context.obj["collection"]
    thing = space.repo.get(product, member=member, **selected)
    if out is None:
        print(describe_thing(thing))
    else:
        save_thing(thing, out)
        print(f"wrote {out}")


def show(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="A product, or: settings, compute, cameras, products.")],
    keys: Annotated[list[str] | None, typer.Argument(help=KEYS_HELP)] = None,
    out: Annotated[Path | None, typer.Option("-o", help="Write the picture here.")] = None,
) -> None:
    """Show settings, how work is spread, cameras, the product table, or what one product is made of and a picture."""
    from lap_assets.operations import read as reading

    if what in ("cameras", "products"):
        print(reading.show_cameras() if what == "cameras" else reading.show_products())
        return
    space = open_workspace(context)
    if what == "settings":
        print(reading.show_settings(space.settings))
        return
    if what == "compute":
        print(reading.show_compute(space.settings.compute))
        return
    print(reading.show_unit(space, what, parse_keys(keys or []), out))


def cutout(
    context: typer.Context,
    ra: Annotated[float, typer.Argument(help="deg")],
    dec: Annotated[float, typer.Argument(help="deg")],
    size: Annotated[float, typer.Argument(help="Side, arcsec.")],
    out: Annotated[Path, typer.Option("-o", help=".png for colour, .fits for one band.")] = Path("cutout.png"),
    bands: Annotated[
        str, typer.Option(help="Red, green, blue bands for a picture (default: the reddest three); one band for FITS.")
    ] = "",
) -> None:
    """Cut a piece of sky out of the final stacks."""
    from lap_assets.operations.read import write_cutout

    space = open_workspace(context)
    print(write_cutout(space, context.obj["collection"], ra, dec, size, [b for b in bands.split(",") if b], out))


def log(
    context: typer.Context,
    data_id: Annotated[str, typer.Argument(help="COLLECTION/PRODUCT/PARTITION[/UNIT], as `lap ls` prints it.")],
) -> None:
    """Print the log of one unit of work."""
    from lap_assets.model.ids import DataId

    print(open_workspace(context).repo.read_log(DataId.parse(data_id)), end="")


def report(
    context: typer.Context,
    truth: Annotated[Path | None, typer.Option(help="Truth folder of a simulated survey, to compare with.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write it here too.")] = None,
) -> None:
    """Units done, failed and blocked, their quality, and (simulations) truth against measured."""
    from lap_assets.operations.read import describe_report, make_report

    space = open_workspace(context)
    values = make_report(space, context.obj["collection"], truth)
    print(describe_report(values))
    if json_file is not None:
        json_file.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def fsck(
    context: typer.Context,
    full: Annotated[bool, typer.Option("--full", help="Read every pixel, not only the structure.")] = False,
) -> None:
    """Check the store; what is broken is named and quarantined, so that `lap run` makes it again."""
    from lap_assets.operations.read import check_store

    space = open_workspace(context)
    lines, broken = check_store(space, full)
    for line in lines:
        print(line)
    if broken:
        raise typer.Exit(1)


def compare(
    context: typer.Context,
    other: Annotated[Path, typer.Argument(help="Another repository.")],
) -> None:
    """Compare the products of this repository with another's: identical, or different by how much."""
    from lap_assets.operations.compare import compare_repositories, describe_comparison
    from lap_assets.operations.workspace import Workspace

    result = compare_repositories(open_workspace(context).repo, Workspace.open(other).repo)
    for line in describe_comparison(result):
        print(line)
    if result.beyond or result.only_here or result.only_there:
        raise typer.Exit(1)
