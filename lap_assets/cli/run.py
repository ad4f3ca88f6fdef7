"""Commands that make products: run, demo, ui."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lap_assets.cli.setup import Size, open_workspace, parse_overrides
from lap_assets.errors import BadInput

SELECT_HELP = "Which partitions, e.g. 'exposure=simcam-000101^simcam-000102', 'band=g^r', 'night=2026-01-*'."


class Shown(StrEnum):
    """What `lap run --show` shows."""

    plan = "plan"


def run(
    context: typer.Context,
    select: Annotated[list[str] | None, typer.Option(help=SELECT_HELP)] = None,
    to: Annotated[str | None, typer.Option(help="Last product to make.")] = None,
    jobs: Annotated[int, typer.Option("-j", min=0, help="Worker processes; 0: as configured, or one per core.")] = 0,
    tessellation: Annotated[str | None, typer.Option(help="Where runs are defined if there are none yet.")] = None,
    config: Annotated[list[str] | None, typer.Option("-c", help="section.key=value for this time.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Take up again what was dropped after its attempts.")] = False,
    lap_ids: Annotated[list[int] | None, typer.Option("--lap-id", min=1, help="Only this run; repeatable.")] = None,
    what: Annotated[Shown | None, typer.Option("--show", help="Only show what would be made; nothing is.")] = None,
) -> None:
    """Make what is missing, in order, from raw exposures to mass maps. What is done with the same inputs is skipped."""
    if context.invoked_subcommand is not None:
        return
    from lap_assets.operations import controls, drive
    from lap_assets.pipeline.compute import prepare_executor

    if lap_ids and (select or to or tessellation or retry or what):
        raise BadInput("--lap-id goes with -j and -c only: a run is carried out as it was defined")
    overrides = parse_overrides(config or []) | ({"compute.workers": jobs} if jobs else {})
    space = open_workspace(context, overrides)
    collection = context.obj["collection"]
    if what is Shown.plan:
        from lap_assets.operations.plan import show_plan

        print(show_plan(space, collection, select or [], to, tessellation))
        return
    prepare_executor(space.settings.compute)
    note = note_once()
    with show_progress() as (tell, begin):
        if lap_ids:
            sequence = controls.choose_collection(space, collection, lap_ids)
            summary = drive.run_laps(space, sequence, lap_ids, drive.DRIVEN, tell, begin, note)
        else:
            summary = drive.run_survey(space, collection, select or [], to, tessellation, tell, begin, retry, note)
    print(drive.describe(summary))
    for line in summary.failures:
        typer.echo(f"lap: {line}", err=True)
    if any(": dropped: " in line for line in summary.failures):
        typer.echo("lap: once the cause is gone, `lap run --retry` takes up again what was dropped", err=True)
    if summary.failures or summary.waiting:
        for (product, partition), reason in list(summary.waiting.items())[:20]:
            typer.echo(f"lap: {product} {partition} {reason}", err=True)
        raise typer.Exit(1)


def note_once() -> Callable[[str], None]:
    """Writes what is waited for to stderr, once as long as it stays the same."""
    last = ""

    def note(text: str) -> None:
        nonlocal last
        if text != last:
            typer.echo(f"lap: {text}", err=True)
        last = text

    return note


@contextmanager
def show_progress() -> Iterator[tuple]:
    """A bar per product on a terminal, one line per product elsewhere; yields (tell, begin)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        TextColumn("{task.completed} units · {task.fields[partitions]} partitions · {task.fields[bad]} not done"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, int] = {}
        bad: dict[str, int] = {}

        def begin(product: str, partitions: int) -> None:
            if not console.is_terminal:
                console.print(f"{product}: {partitions} partitions")
            for other in tasks.values():
                progress.stop_task(other)
            if product not in tasks:
                tasks[product] = progress.add_task(product, total=None, partitions=partitions, bad=0)

        def tell(report) -> None:
            product = report.data_id.product
            bad[product] = bad.get(product, 0) + (report.state != "done")
            if product in tasks:
                progress.update(tasks[product], advance=1, bad=bad[product])

        yield tell, begin
        for task in progress.tasks:
            done = max(task.completed, 1)
            progress.update(task.id, total=done, completed=done)


def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Folder of the demo.")] = Path(".demo"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the end report here too.")] = None,
    jobs: Annotated[int, typer.Option("-j", min=0, help="Worker processes; 0: one per core.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the simulated survey.")] = 1,
    size: Annotated[Size, typer.Option(help="How much survey.")] = Size.demo,
) -> None:
    """Simulate a survey of a cluster and take it to the mass map; ends with truth against measured."""
    from lap_assets.operations import demo as demonstration
    from lap_assets.pipeline.compute import configure_process

    configure_process()
    with show_progress() as (tell, begin):
        report = demonstration.run_demo(directory, seed=seed, size=size.value, workers=jobs, tell=tell, begin=begin)
    print(demonstration.describe(report))
    if json_file is not None:
        demonstration.write_json(report, json_file)
    if report["units_failed"] or report["waiting"]:
        raise typer.Exit(1)


def ui(
    context: typer.Context,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 3000,
) -> None:
    """Start the Dagster UI and daemon of this repository on 127.0.0.1, and keep them up."""
    from lap_assets.operations.serving import serve

    space = open_workspace(context)
    if not 0 < port < 65536:
        raise BadInput(f"port {port} is not between 1 and 65535")
    print(f"the UI of {space.root} is at http://127.0.0.1:{port} in a few seconds; Ctrl-C ends it", flush=True)
    raise typer.Exit(serve(space.root, port, lambda line: typer.echo(f"lap: {line}", err=True)))
