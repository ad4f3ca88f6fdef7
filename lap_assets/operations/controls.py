"""What an operator does to runs under way: pause, resume, cancel, give priority; drain the whole queue.

Each function checks all its runs before it changes one, and returns a line for each. What then happens is decided by
`lap/`.
"""

from collections.abc import Sequence

from lap_assets.errors import BadInput
from lap_assets.ledger.records import RunRow
from lap_assets.model.decisions import FAULTS
from lap_assets.model.ids import check_name
from lap_assets.operations.listings import find_run
from lap_assets.operations.workspace import Workspace


def pause_runs(space: Workspace, lap_ids: Sequence[int], paused: bool) -> list[str]:
    """Let runs rest: nothing new is begun for them, what is being made ends, the queue may launch others. Or resume."""
    rows = [find_unfinished(space, lap_id) for lap_id in lap_ids]
    for row in rows:
        space.ledger.pause(row.lap_id, paused)
    return [f"{describe_run(row)}: {'paused' if paused else 'goes on'}" for row in rows]


def cancel_runs(space: Workspace, lap_ids: Sequence[int], reason: str) -> list[str]:
    """End runs without their being full; what nothing else needs of them may be cleaned."""
    rows = [find_unfinished(space, lap_id) for lap_id in lap_ids]
    for row in rows:
        space.ledger.cancel(row.lap_id, reason)
    return [f"{describe_run(row)}: cancelled" for row in rows]


def prioritize_run(space: Workspace, lap_id: int, priority: int) -> str:
    """Runs of higher priority go first."""
    row = find_run(space, lap_id)
    space.ledger.set_priority(lap_id, priority)
    return f"{describe_run(row)}: priority {priority}"


def drain(space: Workspace, draining: bool) -> str:
    """Begin no new run, of the queue or defined, and let those under way end; or no longer."""
    space.ledger.set_draining(draining)
    return "draining: runs under way go on, none begins" if draining else "runs begin again"


def choose_collection(space: Workspace, given: str | None, lap_ids: Sequence[int]) -> str:
    """The sequence as given, or that of the runs, or the first open one; raises `BadInput` where they differ."""
    named = [check_name(given, "collection")] if given else []
    found = dict.fromkeys([*named, *(find_run(space, lap_id).sequence for lap_id in lap_ids)])
    if len(found) > 1:
        raise BadInput(f"the runs are of different sequences ({', '.join(found)}): one sequence at a time")
    return next(iter(found), space.settings.collections[0])


def find_unfinished(space: Workspace, lap_id: int) -> RunRow:
    """The run of a number; raises `BadInput` where it is over."""
    row = find_run(space, lap_id)
    if row.fault:
        raise BadInput(f"{describe_run(row)} is over: {FAULTS[row.fault]} ({row.fault_reason})")
    if row.state == "full":
        raise BadInput(f"{describe_run(row)} is full")
    return row


def describe_run(row: RunRow) -> str:
    """A run in a few words."""
    return f"run {row.lap_id} ({row.sequence} {row.cell} {row.band})"
