"""Commands that set a survey up: init, tessellation, ingest, simulate, warm, ledger rebuild."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lap_assets.errors import BadInput


class Kind(StrEnum):
    """What the files of an ingest are."""

    raw = "raw"
    calibrated = "calibrated"
    calibration = "calibration"
    refcat = "refcat"


class Frames(StrEnum):
    """What a frame is taken as."""

    object = "object"
    bias = "bias"
    dark = "dark"
    flat = "flat"
    sky = "sky"
    fringe = "fringe"


class Size(StrEnum):
    """How much survey is simulated."""

    tiny = "tiny"
    demo = "demo"
    field = "field"


def open_workspace(context: typer.Context, overrides: dict | None = None):
    """The repository the common options name."""
    from lap_assets.operations.workspace import Workspace
    from lap_assets.pipeline.compute import configure_process

    configure_process()
    return Workspace.open(context.obj["repo"], overrides)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, silence elsewhere; yields `tell(done, total)`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def init(
    directory: Annotated[Path, typer.Argument(help="Folder of the new repository.")],
    setting: Annotated[
        list[str] | None, typer.Option("--set", "-c", help="section.key=value, kept in lap.yaml.")
    ] = None,
) -> None:
    """Make a repository: settings, an empty store, a ledger and a Dagster instance."""
    from lap_assets.operations.workspace import Workspace
    from lap_assets.settings import parse_settings

    values = nest(parse_overrides(setting or []))
    parse_settings(values, "--set")
    space = Workspace.create(directory.expanduser().resolve(), values)
    print(f"made a repository in {space.root}; next: lap --repo {directory} ingest FILES --camera NAME")


def parse_overrides(pairs: list[str]) -> dict:
    """`section.key=value` texts to a mapping."""
    from lap_assets.settings import parse_value

    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise BadInput(f"{pair!r} is not section.key=value; for example: compute.workers=2")
        values[key] = parse_value(text, key)
    return values


def nest(values: dict) -> dict:
    """`{"a.b": 1}` to `{"a": {"b": 1}}`."""
    nested: dict = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return nested


def tessellation(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name; its projection cells are called NAME.0, NAME.1, ….")],
    ra: Annotated[float, typer.Option(help="Centre, deg.")],
    dec: Annotated[float, typer.Option(help="Centre, deg.")],
    size: Annotated[float, typer.Option(help="Side of a cell, arcmin.")],
    pixel_scale: Annotated[float, typer.Option(help="arcsec per pixel.")] = 0.25,
    grid: Annotated[int, typer.Option(help="Skycells along each side.")] = 1,
    overlap: Annotated[int, typer.Option(help="Margin of a skycell beyond what it owns, pixels.")] = 40,
    also: Annotated[list[str] | None, typer.Option(help="Centre of a further cell, 'RA,DEC' in deg; repeat.")] = None,
) -> None:
    """Define a local tessellation: projection cells centred anywhere, each cut into the same grid of skycells."""
    from math import ceil

    if not (size > 0 and pixel_scale > 0 and grid > 0 and overlap >= 0):
        raise BadInput("size, pixel scale and grid must be positive, overlap not negative")
    margin = overlap if grid > 1 else 0
    side = ceil(round(size * 60.0 / pixel_scale / grid, 6)) + 2 * margin
    definition = {
        "kind": "local",
        "name": name,
        "centres": [[ra, dec], *(parse_centre(text) for text in also or [])],
        "pixel_scale_arcsec": pixel_scale,
        "skycell_px": side,
        "grid": [grid, grid],
        "overlap_px": margin,
    }
    open_workspace(context).ledger.add_tessellation(definition)
    cells = f"{len(definition['centres'])} cells of " if also else ""
    print(f"defined tessellation {name}: {cells}{grid}x{grid} skycells of {side} pixels at {pixel_scale} arcsec")


def parse_centre(text: str) -> list[float]:
    """`150.1,2.2` to numbers; raises `BadInput`."""
    try:
        ra, dec = (float(part) for part in text.split(","))
    except ValueError:
        raise BadInput(f"{text!r} is no centre: give RA,DEC in degrees, for example 150.1,2.2") from None
    return [ra, dec]


def ingest(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders searched for FITS files.")],
    camera: Annotated[str, typer.Option(help="Name of a shipped camera, or a YAML file.")] = "",
    kind: Annotated[Kind, typer.Option(help="What the files are.")] = Kind.raw,
    name: Annotated[str, typer.Option(help="Name of a reference catalogue.")] = "",
    bands: Annotated[str, typer.Option(help="Bands a reference catalogue serves, comma separated; * for all.")] = "*",
    replace: Annotated[bool, typer.Option("--replace", help="Replace a reference catalogue of that name.")] = False,
    zero_points: Annotated[Path | None, typer.Option(help="Table of given zero points (calibrated exposures).")] = None,
    taken_as: Annotated[
        Frames | None, typer.Option("--as", help="What the frames are, whatever their headers say.")
    ] = None,
) -> None:
    """Register raw or calibrated exposures, calibration frames, or a reference catalogue. Files stay where they are."""
    from lap_assets.operations import ingest as ingesting
    from lap_assets.operations.webserver import reload_definitions

    space = open_workspace(context)
    with progress_bar(f"ingest {kind.value}") as tell:
        if kind is Kind.refcat:
            outcome = ingesting.ingest_refcat(space, paths, name, bands.split(","), replace)
        else:
            if not camera:
                raise BadInput("--camera is missing: name a shipped camera (simcam, decam) or a YAML file")
            given = taken_as.value if taken_as else ""
            outcome = ingesting.ingest_frames(space, paths, camera, kind.value, zero_points, tell, given)
    reload_definitions(space.root)
    for line in outcome.lines:
        print(line)
    for rejected in outcome.rejected:
        typer.echo(f"lap: set aside {rejected.path}: {rejected.reason}", err=True)
    if outcome.rejected:
        raise typer.Exit(1)


def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty or absent.")],
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 1,
    size: Annotated[Size, typer.Option(help="How much survey.")] = Size.demo,
    jobs: Annotated[int, typer.Option("-j", min=0, help="Processes; 0: one per core.")] = 0,
) -> None:
    """Simulate a survey of a cluster field, with truth tables in a folder apart."""
    from lap_assets.pipeline.compute import configure_process, count_workers, get_executor
    from lap_assets.settings import ComputeSettings
    from lap_assets.sim.survey import simulate_survey

    configure_process()
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty; choose another folder")
    compute = ComputeSettings(workers=jobs)
    with progress_bar("simulate") as tell:
        simulate_survey(out, seed, size.value, count_workers(compute), tell, get_executor(compute))
    print(f"simulated {size.value} survey, seed {seed}, in {out}")


def warm() -> None:
    """Compile the numba kernels once, so that no run has to: takes the tiny simulated survey to the end, and away."""
    from tempfile import TemporaryDirectory

    from lap_assets.model.products import PRODUCTS
    from lap_assets.operations.demo import run_demo
    from lap_assets.pipeline.compute import configure_process

    configure_process()
    with TemporaryDirectory() as folder, progress_bar("compile kernels") as tell:
        done = iter(range(1, 10_000))
        run_demo(Path(folder), size="tiny", begin=lambda product, partitions: tell(next(done), len(PRODUCTS) + 1))
    print(f"kernels compiled in {os.environ.get('NUMBA_CACHE_DIR', 'the folder numba chose')}")


def rebuild_ledger(context: typer.Context) -> None:
    """Make the ledger again from the journal and the manifests in the store."""
    from lap_assets.operations import ingest as ingesting

    space = open_workspace(context)
    entries, partitions = ingesting.rebuild_ledger(space)
    print(f"rebuilt the ledger of {space.root}: {entries} definitions, {partitions} partitions")


def upgrade_ledger(context: typer.Context) -> None:
    """Bring the tables of an older ledger up to date with this version."""
    from lap_assets.operations import ingest as ingesting

    ingesting.upgrade_ledger(open_workspace(context))
    print("the ledger's tables are those of this version")
