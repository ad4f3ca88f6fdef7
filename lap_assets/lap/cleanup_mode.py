"""Cleanup mode, `lap_science --cleanup_mode`: what nothing needs any more loses its files (LAP-33).

Counted by `chip_id` over all runs of the collection: as long as one of them has the exposure active, nothing made from
it goes. What could not be made again stays.
"""

from collections.abc import Iterator

from lap_assets.model.decisions import CLEAN, CLEANED_RUN, CLEANUP_MODE, Action, Snapshot, Step
from lap_assets.model.ids import JOIN
from lap_assets.model.states import DONE, GOTO_CLEANED
from lap_assets.model.survey import PartitionRef, Run

FILES = frozenset({DONE, GOTO_CLEANED})


def clean_runs(snapshot: Snapshot) -> tuple[list[Action], list[Step]]:
    """Partitions to clean, and runs of which nothing is left to be cleaned."""
    actions: dict[PartitionRef, Action] = {}
    steps: list[Step] = []
    for run in snapshot.survey.runs:
        if not is_over(run) or run.cleaned or run.lap_id in snapshot.kept or is_needed(snapshot, run):
            continue
        rest = is_worked_on(snapshot, run) or any(name in snapshot.in_use for name in run.everyone)
        for ref, reason in find_unneeded(snapshot, run):
            if snapshot.states[ref].state not in FILES:
                continue
            rest = True
            if ref not in snapshot.busy:
                actions.setdefault(ref, Action(*ref, CLEAN, reason, run.lap_id, CLEANUP_MODE))
        if not rest:
            steps.append(Step(run.lap_id, CLEANED_RUN, mode=CLEANUP_MODE))
    return list(actions.values()), steps


def is_over(run: Run) -> bool:
    """Whether nothing of a run, nor of what is made from its stacks, is unfinished."""
    return bool(run.fault) or (run.state == "full" and run.settled)


def is_needed(snapshot: Snapshot, run: Run) -> bool:
    """Whether another run of the cell goes on: what is made from all its bands is made from this one's, too."""
    return not run.fault and any(one.cell == run.cell and not is_over(one) for one in snapshot.survey.runs)


def is_worked_on(snapshot: Snapshot, run: Run) -> bool:
    """Whether somebody makes anything of a run, as when it was cancelled meanwhile: that may have files soon."""
    names = {*run.everyone, f"{run.cell}{JOIN}{run.band}"}
    return any(not names.isdisjoint((key, key.partition(JOIN)[0])) for _, key in snapshot.busy)


def find_unneeded(snapshot: Snapshot, run: Run) -> Iterator[tuple[PartitionRef, str]]:
    """(partition, why) of all that was made for a run and that nothing needs, files or not."""
    whole = not any(name in snapshot.unavailable for name in run.everyone)
    for name in run.everyone:
        if name in snapshot.in_use or name in snapshot.unavailable:
            continue
        pair = f"{name}{JOIN}{run.cell}"
        # a difference is made from the warps of other members, too
        refs = [("chips", name), ("warps", pair), *((("diffs", pair), ("streak_masks", pair)) if whole else ())]
        reason = f"LAP-33: every run with chip_id {snapshot.survey.collection}/{name} is over"
        yield from ((ref, reason) for ref in refs if ref in snapshot.states)
    stack = ("stacks", f"{run.cell}{JOIN}{run.band}")
    if whole and stack in snapshot.states and not any(name in snapshot.in_use for name in run.everyone):
        yield stack, f"superseded by the final stacks of run {run.lap_id}"
