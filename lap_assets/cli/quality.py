"""The command lap quality: QC1 parameters as a table, and the focal plane of an exposure as a picture."""

from pathlib import Path
from typing import Annotated

import typer

from lap_assets.cli.setup import open_workspace
from lap_assets.cli.tables import print_table


def quality(
    context: typer.Context,
    pattern: Annotated[str, typer.Argument(help="Partitions: a key, or a pattern like 'decam-78*'.")] = "*",
    product: Annotated[str, typer.Option(help="solutions, or a kind of master: master_flats, …")] = "solutions",
    everything: Annotated[bool, typer.Option("--all", help="All parameters, not only the first ones.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    out: Annotated[Path | None, typer.Option("-o", help="Draw the focal plane of this exposure as PNG.")] = None,
    colour: Annotated[str, typer.Option(help="What colours the chips of the picture.")] = "fwhm_arcsec",
) -> None:
    """Show how good exposures are: seeing, depth, residuals, chips good and failed; in red on the focal plane."""
    from lap_assets.operations.quality import draw_exposure, list_quality

    space = open_workspace(context)
    collection = context.obj["collection"] or space.settings.collections[0]
    if out is not None:
        out.write_bytes(draw_exposure(space, collection, pattern, colour))
        print(f"wrote {out}")
        return
    table = list_quality(space, collection, product, pattern, everything)
    if as_json:
        print(table.to_json(orient="records", indent=1))
        return
    print_table(table)
