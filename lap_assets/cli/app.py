"""The `lap` application: its options common to all commands, and the list of commands.

Commands live in the modules beside this one, by what a person wants: set up, run, read.
"""

from pathlib import Path
from typing import Annotated

import typer

from lap_assets.cli import admin, calibration, camera, clean, quality, read, run, sequence, setup, status
from lap_assets.model.ids import check_name

app = typer.Typer(
    name="lap",
    help="From raw mosaic exposures to stacks, differences, catalogues and mass maps, with lineage for every pixel.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def common(
    context: typer.Context,
    repo: Annotated[
        Path | None, typer.Option("--repo", "-C", help="Repository folder (default: LAP_REPO, or the one around here).")
    ] = None,
    collection: Annotated[str | None, typer.Option(help="Collection (default: the first open one).")] = None,
) -> None:
    """Options common to all commands."""
    if collection is not None:
        check_name(collection, "collection")
    context.obj = {"repo": repo, "collection": collection}


app.command("init")(setup.init)
app.command("tessellation")(setup.tessellation)
app.command("ingest")(setup.ingest)
app.command("simulate")(setup.simulate)
app.command("warm")(setup.warm)
runs = typer.Typer(help="Make what is missing; define and list runs.")
runs.callback(invoke_without_command=True, help=run.run.__doc__)(run.run)
runs.command("define")(sequence.define_run)
runs.command("list")(sequence.list_runs)
app.add_typer(runs, name="run")
app.add_typer(sequence.sequences, name="sequence")
app.add_typer(camera.cameras, name="camera")
app.command("status")(status.status)
app.command("quality")(quality.quality)
app.command("why")(status.why)
app.command("pause")(sequence.pause)
app.command("resume")(sequence.resume)
app.command("cancel")(sequence.cancel)
app.command("priority", context_settings=sequence.NEGATIVE)(sequence.priority)
app.command("drain")(sequence.drain)
app.command("undrain")(sequence.undrain)
app.command("clean")(clean.clean)
app.command("recreate")(clean.recreate)
app.command("demo")(run.demo)
app.command("ui")(run.ui)
app.command("ls")(read.ls)
app.command("get")(read.get)
app.command("show")(read.show)
# a southern declination is no option
app.command("cutout", context_settings={"ignore_unknown_options": True})(read.cutout)
app.command("log")(read.log)
app.command("report")(read.report)
app.command("fsck")(read.fsck)
app.command("compare")(read.compare)
app.add_typer(calibration.calibrations, name="calibration")
app.command("invalidate")(calibration.invalidate)
app.command("retire")(admin.retire)
app.command("gc")(admin.gc)
app.command("reconcile")(admin.reconcile)
ledger = typer.Typer(help="The ledger: the database of what is to be done and what was.", no_args_is_help=True)
ledger.command("rebuild")(setup.rebuild_ledger)
ledger.command("upgrade")(setup.upgrade_ledger)
app.add_typer(ledger, name="ledger")
