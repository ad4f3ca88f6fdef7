"""`laptool`: the commands of Pan-STARRS LAP in their original spelling, so that an operator's notes still work.

Words in, one call into `operations/`, rows out in the metadata format or, with -json, as JSON. The modern spelling of
the same functions is `lap sequence …` and `lap run define …`.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from lap_assets.errors import BadInput
from lap_assets.lap.command_words import (
    Reader,
    parse_words,
    read_band,
    read_bands,
    read_count,
    read_dec,
    read_name,
    read_polygon,
    read_ra,
    read_radius,
    read_run_state,
    read_text,
    read_whole,
)
from lap_assets.lap.queue_file import ANY_OBS_MODE, DEFINERUN, NEEDED, OBS_MODE, make_request

CIRCLE, BOX = ("ra", "decl", "radius"), ("ra_min", "ra_max", "decl_min", "decl_max")
COMMON: dict[str, Reader | None] = {"repo": read_text, "json": None}


class Command(NamedTuple):
    """The options of a command and those that must be there."""

    options: dict[str, Reader | None]
    needed: tuple[str, ...] = ()


LISTRUN = Command(
    {
        "seq_id": read_name,
        "state": read_run_state,
        "projection_cell": read_name,
        "filter": read_band,
        "label": read_name,
    }
)
DEFINEAREA = Command(
    {
        "seq_id": read_name,
        "tess_id": read_name,
        "filter": read_bands,
        "ra": read_ra,
        "decl": read_dec,
        "radius": read_radius,
        "ra_min": read_ra,
        "ra_max": read_ra,
        "decl_min": read_dec,
        "decl_max": read_dec,
        "polygon": read_polygon,
        "label": read_name,
        "dist_group": read_name,
        "obs_mode": read_name,
        "priority": read_whole,
    },
    ("seq_id",),
)
OF_RUN = Command({"lap_id": read_count}, ("lap_id",))
COMMANDS = {
    "-definesequence": Command({"name": read_name, "description": read_text}, ("name",)),
    "-listsequence": Command({}),
    "-definerun": Command(DEFINERUN, NEEDED),
    "-definearea": DEFINEAREA,
    "-pendingrun": LISTRUN,
    "-listrun": LISTRUN,
    "-pendingexp": OF_RUN,
    "-exposures": OF_RUN,
    "-stacks": OF_RUN,
    "-inactiveexp": Command({"seq_id": read_name}),
}


def describe_commands() -> str:
    """The help text."""
    lines = ["usage: laptool COMMAND [-repo DIR] [-json] OPTIONS", ""]
    for name, command in COMMANDS.items():
        options = " ".join(f"-{option}" for option in command.options)
        lines.append(f"  {name:<16} {options}".rstrip())
    return "\n".join([*lines, "", "seq_id and tess_id are numbers or names; see also: lap sequence, lap run define"])


def call_laptool(words: Sequence[str]) -> None:
    """Carry one command out and print its rows; raises `LapError`."""
    if not words or words[0] in ("-h", "-help", "--help"):
        print(describe_commands())
        return
    named = [word for word in words if word in COMMANDS]
    if len(named) != 1:
        problem = f"one command, please, not {' and '.join(named)}" if named else f"unknown command {words[0]!r}"
        raise BadInput(f"{problem}; there are: {', '.join(COMMANDS)}")
    command = COMMANDS[named[0]]
    values = parse_words([word for word in words if word != named[0]], command.options | COMMON, command.needed)

    from lap_assets.operations.workspace import Workspace

    listing = run_command(Workspace.open(values.get("repo")), named[0], values)
    sys.stdout.write(listing.as_json() if "json" in values else listing.as_metadata())


def run_command(space: Any, name: str, values: dict[str, Any]) -> Any:
    """What a command does; returns its `Listing`."""
    from lap_assets.operations import define, listings

    match name:
        case "-definesequence":
            row = define.define_sequence(space, values["name"], values.get("description", ""))
            return listings.list_sequences([row])
        case "-listsequence":
            return listings.list_sequences(space.ledger.sequences())
        case "-definerun":
            return listings.list_runs([define.define_run(space, make_request(values))])
        case "-definearea":
            return listings.list_runs(define_area(space, values))
        case "-pendingrun" | "-listrun":
            chosen = {key: values.get(key) for key in ("state", "filter", "projection_cell", "label")}
            sequence = define.read_names(space).find_sequence(values["seq_id"]) if "seq_id" in values else None
            return listings.list_runs(
                listings.select_runs(
                    space, sequence, chosen["state"], chosen["projection_cell"], chosen["filter"], chosen["label"]
                )
            )
        case "-pendingexp":
            return listings.list_pending(space, values["lap_id"])
        case "-exposures":
            return listings.list_exposures(space, values["lap_id"])
        case "-stacks":
            return listings.list_stacks(space, values["lap_id"])
    rows = space.ledger.sequences()
    if "seq_id" in values:
        wanted = define.read_names(space).find_sequence(values["seq_id"])
        rows = [row for row in rows if row.name == wanted]
    return listings.list_inactive(space, rows)


def define_area(space: Any, values: dict[str, Any]) -> list:
    """-definearea (LAP-16): the rows of the runs that are new or grew."""
    from lap_assets.operations import define

    mode = values.get("obs_mode", OBS_MODE)
    return define.define_area(
        space,
        values["seq_id"],
        define.make_region(take_all(values, CIRCLE), take_all(values, BOX), values.get("polygon")),
        tessellation=values.get("tess_id", ""),
        bands=values.get("filter"),
        obs_mode=None if mode == ANY_OBS_MODE else mode,
        label=values.get("label", ""),
        dist_group=values.get("dist_group", ""),
        priority=values.get("priority", 0),
    )


def take_all(values: dict[str, Any], names: Sequence[str]) -> tuple | None:
    """The values of options that belong together; None where none of them is given. Raises `BadInput`."""
    there = [name for name in names if name in values]
    if there and len(there) < len(names):
        raise BadInput(f"-{there[0]} alone is no region: give {', '.join(f'-{name}' for name in names)}")
    return tuple(values[name] for name in names) if there else None


def main() -> None:
    """Entry point; exit statuses and errors are those of `lap`."""
    from lap_assets.cli import end_on_errors

    with end_on_errors("laptool"):
        call_laptool(sys.argv[1:])
