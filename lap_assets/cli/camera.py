"""Commands about camera files: camera ls, camera template, camera check, camera crosstalk."""

from pathlib import Path
from typing import Annotated

import typer

from lap_assets.cli.tables import print_table
from lap_assets.errors import BadInput

cameras = typer.Typer(help="Cameras: what there is, and the check of a camera file of one's own.", no_args_is_help=True)


@cameras.command("ls")
def ls(context: typer.Context) -> None:
    """List the cameras that come with the package, and those of the repository."""
    from lap_assets.operations.cameras import list_cameras

    print_table(list_cameras(find_kept(context)))


@cameras.command("template")
def template() -> None:
    """Print a camera file with a comment on every key: `lap camera template > mycam.yaml`."""
    from lap_assets.operations.cameras import TEMPLATE

    print(TEMPLATE.read_text(encoding="utf-8"), end="")


@cameras.command("check")
def check(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="A camera file (.yaml), or the name of a camera.")],
    raw: Annotated[Path | None, typer.Option(help="A raw frame to try it on; nothing is ingested.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the focal plane into this PNG file.")] = None,
) -> None:
    """Check a camera file: keys, geometry, and on a raw frame sections, overscan and noise.

    Exit status 1 if the file cannot be used as it is, or the frame would be set aside.
    """
    from lap_assets.model.camera import find_camera_file
    from lap_assets.operations import cameras as checking

    result = checking.check_camera(find_camera_file(file, find_kept(context)))
    for problem in result.problems:
        print(f"problem: {problem}")
    camera = result.camera
    if camera is None:
        raise typer.Exit(1)
    print(f"camera {camera.name}: {len(camera.good_chips)} of {len(camera.chips)} chips working")
    print_table(checking.describe_chips(camera))
    print_table(checking.describe_amplifiers(camera))
    if picture is not None:
        from lap_assets.qa.focal_plane import plot_camera

        picture.write_bytes(plot_camera(camera))
        print(f"drawn in {picture}")
    run = checking.try_frame(camera, raw) if raw is not None else None
    if run is not None:
        print(f"{raw}:")
        for line in run.facts:
            print(f"  {line}")
        print_table(run.amplifiers)
        for note in run.notes:
            print(f"note: {note}")
        for reason in run.refused:
            print(f"refused: {reason}")
    if result.problems or (run and run.refused):
        raise typer.Exit(1)
    print("the camera file can be used" + ("; the frame would be taken" if run else ""))


@cameras.command("crosstalk")
def crosstalk(
    context: typer.Context,
    table: Annotated[Path, typer.Argument(help="Rows of victim, source, coefficient, e.g. 'ccd25B ccd25A 1.34e-04'.")],
    camera: Annotated[str, typer.Option(help="Name of a camera, or a YAML file.")],
) -> None:
    """Turn an observatory's table of crosstalk into the section `crosstalk:` of a camera file, on stdout."""
    from lap_assets.model.camera import load_camera
    from lap_assets.operations.cameras import import_crosstalk

    for line in import_crosstalk(load_camera(camera, find_kept(context)), table):
        print(line)


def find_kept(context: typer.Context) -> Path | None:
    """The folder of the camera files of the repository around here, or the one named; None where there is none."""
    from lap_assets.operations.workspace import Workspace

    try:
        return Workspace.open(context.obj["repo"]).repo.cameras
    except BadInput:
        if context.obj["repo"] is not None:
            raise
        return None
