"""`lap_science`: the four modes of Pan-STARRS LAP in a terminal, on the decisions that the sensors carry out (LAP-35).

`lap_science --chip_mode --lap_id 7` and its fellows end when nothing is left that their mode can do now.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lap_assets.errors import BadInput
from lap_assets.lap.command_words import read_count

MODES = ("chip", "monitor", "cleanup", "queue")
HELP = {
    "chip": "new runs: queue chips, define pairs, begin",
    "monitor": "runs under way: do the right thing, up to the final stacks and what is made from them",
    "cleanup": "remove what nothing needs any more",
    "queue": "define the next runs of the queue file",
}


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see lap_science --help")


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(prog="lap_science", description=__doc__.split("\n\n")[0], allow_abbrev=False)
    for mode in MODES:
        parser.add_argument(f"--{mode}_mode", action="store_true", help=HELP[mode])
    parser.add_argument("--lap_id", action="append", default=[], metavar="N", help="only this run; may be repeated")
    parser.add_argument("--repo", "-C", type=Path, help="repository folder (default: LAP_REPO, or the one around here)")
    parser.add_argument("--collection", help="sequence (default: that of the runs, or the first open one)")
    return parser


def call_science(words: Sequence[str]) -> int:
    """Carry the modes out in their order; the exit status. Raises `LapError`."""
    given = make_parser().parse_args(words)
    modes = [mode for mode in MODES if getattr(given, f"{mode}_mode")]
    if not modes:
        raise BadInput(f"which mode? give {', '.join(f'--{mode}_mode' for mode in MODES)}")
    lap_ids = [read_count(text, "--lap_id") for text in given.lap_id]
    if lap_ids and "queue" in modes:
        raise BadInput("--lap_id does not go with --queue_mode: the queue defines runs")

    from lap_assets.operations.controls import choose_collection
    from lap_assets.operations.workspace import Workspace
    from lap_assets.pipeline.compute import configure_process

    configure_process()
    space = Workspace.open(given.repo)
    collection = choose_collection(space, given.collection, lap_ids)
    status = 0
    driven = [mode for mode in modes if mode in ("chip", "monitor")]
    if driven:
        status = drive_runs(space, collection, lap_ids or None, driven)
    if "cleanup" in modes:
        clean(space, collection, lap_ids or None)
    if "queue" in modes:
        status = launch_queue(space, collection) or status
    return status


def drive_runs(space: Any, collection: str, lap_ids: Sequence[int] | None, modes: Sequence[str]) -> int:
    """Chip and monitor mode, with progress."""
    from lap_assets.cli.run import note_once, show_progress
    from lap_assets.operations import drive

    with show_progress() as (tell, begin):
        summary = drive.run_laps(space, collection, lap_ids, modes, tell, begin, note_once())
    print(drive.describe(summary))
    for line in summary.failures:
        print(f"lap_science: {line}", file=sys.stderr)
    return 1 if summary.failures else 0


def clean(space: Any, collection: str, lap_ids: Sequence[int] | None) -> None:
    """Cleanup mode."""
    from lap_assets.operations.clean import clean_collection

    report = clean_collection(space, collection, lap_ids=lap_ids)
    print(f"cleaned {len(report.partitions)} partitions, {report.bytes / 1e6:.1f} MB freed")
    for name, reason in report.kept.items():
        print(f"kept {name}: {reason}")


def launch_queue(space: Any, collection: str) -> int:
    """Queue mode: the entries that can be launched now; 1 where one of them is wrong."""
    from lap_assets.operations import define, drive

    problems = define.read_queue(space)[1]
    before = {run.lap_id for run in space.ledger.runs()}
    drive.advance(space, collection, ("queue",), complain=problems.append)
    for run in space.ledger.runs():
        if run.lap_id not in before:
            print(f"run {run.lap_id}: {run.sequence} {run.cell} {run.band}")
    for line in dict.fromkeys(problems):
        print(f"lap_science: {line}", file=sys.stderr)
    return 1 if problems else 0


def main() -> None:
    """Entry point; exit statuses and errors are those of `lap`."""
    from lap_assets.cli import end_on_errors

    with end_on_errors("lap_science"):
        sys.exit(call_science(sys.argv[1:]))
