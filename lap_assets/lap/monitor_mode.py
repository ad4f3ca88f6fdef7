"""Monitor mode, `lap_science --monitor_mode`: do the right thing for runs under way (LAP-23 … 32).

What an exposure goes through comes first, then what becomes of the run, last what is made from the stacks of a cell.
"""

from collections.abc import Iterable, Mapping

from lap_assets.lap.judge import Judge
from lap_assets.model.decisions import DATA_STATE, DROP, DROP_MEMBER, FAULT, PRIVATE, RUN_STATE, SETTLE, Snapshot, Step
from lap_assets.model.ids import JOIN
from lap_assets.model.products import CELLS, PRODUCTS
from lap_assets.model.states import DROPPED, RESULTS
from lap_assets.model.survey import Member, Run

CELL_PRODUCTS = tuple(name for name, product in PRODUCTS.items() if product.partitions == CELLS)
POSTPONED = "postponed"
NO_EXPOSURE_LEFT = "2"
UNUSABLE = RESULTS - {"done"}


def follow_runs(judge: Judge) -> list[Step]:
    """What monitor mode does to the runs of a snapshot and to their cells; work is noted with the judge."""
    steps: list[Step] = []
    for run in sorted(judge.survey.runs, key=lambda one: (-one.priority, one.lap_id)):
        if run.fault or run.state == "new" or run.paused or not is_looked_at(judge.snapshot, run):
            rest_run(judge, run)
        else:
            steps += follow_run(judge, run)
    return steps + follow_cells(judge)


def is_looked_at(snapshot: Snapshot, run: Run) -> bool:
    """Whether a run may need anything: one that is settled does only for who asks for all (`lap run`)."""
    return snapshot.revisit or not run.settled


def rest_run(judge: Judge, run: Run) -> None:
    """A run that nothing is done for now: what it has counts, what it lacks waits."""
    for exposure in run.members:
        for product in ("diffs", "streak_masks"):
            judge.trust((product, f"{exposure}{JOIN}{run.cell}"))
    judge.trust(("stacks", f"{run.cell}{JOIN}{run.band}"))
    final = ("final_stacks", f"{run.cell}{JOIN}{run.band}")
    if not judge.trust(final) and not run.fault:
        judge.wait(final, f"run {run.lap_id} is paused" if run.paused else f"run {run.lap_id} is {run.state}")


def follow_run(judge: Judge, run: Run) -> list[Step]:
    """Every exposure at every stage, then stacks, differences, destreaking, and the second pass."""
    here = f"{run.cell}{JOIN}{run.band}"
    faults = {name: reason for name in run.members if (reason := find_fault(judge, run, name))}
    left = [name for name in run.members if name not in faults]
    ready = [name for name in left if is_ready(run, name)]
    for master in dict.fromkeys(up for name in ready for up in judge.survey.upstream("chips", name)):
        visit_master(judge, master, run)
    for name in ready:
        judge.visit(("chips", name), run)
        judge.visit(("solutions", name), run)
    judge.visit(("joint_solutions", here), run)
    warped = [judge.visit(("warps", f"{name}{JOIN}{run.cell}"), run) for name in ready]
    for name in left if len(ready) < len(left) else ():
        judge.wait(("warps", f"{name}{JOIN}{run.cell}"), "waits for chip mode: its exposure came late")
    steps = drop_exposures(run, faults)
    if not left:
        return [*steps, Step(run.lap_id, FAULT, value=NO_EXPOSURE_LEFT, reason="every exposure was dropped")]
    if steps:
        return steps  # the others are looked at without those
    # LAP-27: nothing past warps is decided before every exposure is warped or dropped
    if all(warped) and len(ready) == len(left):
        judge.visit(("stacks", here), run)  # LAP-29: skycells with too few inputs end as no_work
        for name in left:
            follow_difference(judge, run, name)
        if judge.visit(("final_stacks", here), run) and run.state == "run":
            steps.append(Step(run.lap_id, RUN_STATE, value="full", reason="final stacks done"))  # LAP-32
    lost = drop_lost(judge, run, ready)
    if lost:
        return lost  # the others are looked at without those
    for name in ready:
        judge.give_up(("diffs", f"{name}{JOIN}{run.cell}"), run)
    for product in ("stacks", "final_stacks"):
        judge.give_up((product, here), run)
    return steps + update_data_states(judge, run)


def is_ready(run: Run, exposure: str) -> bool:
    """Whether chip mode has seen a member: before, nobody knows whether it is private."""
    one = run.member.get(exposure)
    return one is None or bool(one.chip_id and (one.private or one.pairwise))


def visit_master(judge: Judge, ref: tuple[str, str], run: Run | None = None) -> None:
    """A master calibration, after those it is made from."""
    if ref in judge.settled:
        return
    for up in judge.survey.upstream(*ref):
        visit_master(judge, up, run)
    judge.visit(ref, run)


# ---- LAP-24: what cannot be used is dropped


def drop_lost(judge: Judge, run: Run, exposures: Iterable[str]) -> list[Step]:
    """LAP-24: an exposure is not used either of which something is needed that was cleaned and cannot be made again."""
    dropped = {}
    for name in exposures if judge.lost and run.state == "run" else ():
        pair = f"{name}{JOIN}{run.cell}"
        for ref in (("chips", name), ("warps", pair), ("diffs", pair), ("streak_masks", pair)):
            if ref in judge.lost:
                dropped.setdefault(name, f"{ref[0]}: {judge.lost[ref]}")
    return drop_exposures(run, dropped)


def drop_exposures(run: Run, dropped: Mapping[str, str]) -> list[Step]:
    """LAP-24: exposures of which nothing usable is left are never used again here; their companions become private."""
    steps = []
    for name, reason in dropped.items():
        steps.append(Step(run.lap_id, DROP_MEMBER, name, reason=reason))
        one = run.member.get(name)
        if one is not None and one.pairwise and one.pair not in dropped and one.pair in run.members:
            steps.append(Step(run.lap_id, PRIVATE, one.pair, reason=f"its companion {name} was dropped"))
    return steps


def find_fault(judge: Judge, run: Run, exposure: str) -> str:
    """Why nothing of an exposure can be used in a run; empty if it can, or if that is not known yet."""
    for ref in (("chips", exposure), ("solutions", exposure), ("warps", f"{exposure}{JOIN}{run.cell}")):
        now = judge.states.get(ref)
        if now is not None and now.state in UNUSABLE and judge.is_current(ref):
            return f"{ref[0]}: {now.state}: {now.reason}"
    return ""


# ---- LAP-28, LAP-30: differences, then destreaking


def follow_difference(judge: Judge, run: Run, exposure: str) -> None:
    """LAP-28: a pair is subtracted at once, a private exposure where all overlapping stacks have ended."""
    pair = f"{exposure}{JOIN}{run.cell}"
    diff, one = ("diffs", pair), run.member.get(exposure)
    postponed = is_postponed(judge, diff)
    lacking = find_lacking(judge, run, one) if one is not None and one.private else []
    if lacking and not judge.is_current(diff):
        if all(up in judge.settled for up in judge.survey.upstream(*diff)):
            judge.request(diff, describe_postponed(judge, run, lacking), run, DROP)
        else:
            judge.visit(diff, run)
    elif postponed and not lacking and not run.settled:
        judge.request(diff, f"the stacks it was {POSTPONED} for have ended", run)
    else:
        judge.visit(diff, run)
    judge.visit(("streak_masks", pair), run)


def is_postponed(judge: Judge, diff: tuple[str, str]) -> bool:
    """Whether a difference was left to a later run."""
    now = judge.states.get(diff)
    return now is not None and now.state == DROPPED and now.reason.startswith(POSTPONED)


def find_lacking(judge: Judge, run: Run, one: Member) -> list[str]:
    """Neighbouring projection cells that an exposure overlaps and whose stacks have not ended (LAP-26: `have_`)."""
    return [cell for cell in one.neighbours if not have_stacks(judge, cell, run.band)]


def have_stacks(judge: Judge, cell: str, band: str) -> bool:
    """LAP-26: stacks completed, or attempted and faulted, or with too few inputs; or their run was given up."""
    run = judge.survey.run_of.get((cell, band))
    return bool(run and run.fault) or judge.ended(("stacks", f"{cell}{JOIN}{band}"))


def describe_postponed(judge: Judge, run: Run, lacking: list[str]) -> str:
    """Which run will take a private exposure up."""
    cell = lacking[0]
    later = judge.survey.run_of.get((cell, run.band))
    return f"{POSTPONED} to run {later.lap_id} (cell {cell})" if later else f"{POSTPONED}: no run of cell {cell} yet"


# ---- LAP-25: where each exposure stands


def update_data_states(judge: Judge, run: Run) -> list[Step]:
    """LAP-25: the informative state of each exposure, where it changed."""
    steps = []
    for one in run.roster:
        if one.data_state != "drop":
            value = gauge_exposure(judge, run, one)
            if value != one.data_state:
                steps.append(Step(run.lap_id, DATA_STATE, one.exposure, value))
    return steps


def gauge_exposure(judge: Judge, run: Run, one: Member) -> str:
    """How far an exposure has come: new, exists, to_diff, to_magic, full."""
    pair = f"{one.exposure}{JOIN}{run.cell}"
    if not judge.ended(("warps", pair)):
        return "exists" if one.data_state == "exists" else "new"
    if not judge.ended(("diffs", pair)) or is_postponed(judge, ("diffs", pair)):
        return "to_diff"
    return "full" if judge.ended(("streak_masks", pair)) else "to_magic"


# ---- what is made from the stacks of a cell


def follow_cells(judge: Judge) -> list[Step]:
    """Catalogues, shapes, mass maps and transients of a cell, once all its runs are full and no other is queued."""
    steps: list[Step] = []
    runs_of: dict[str, list[Run]] = {}
    for run in judge.survey.runs:
        if not run.fault:
            runs_of.setdefault(run.cell, []).append(run)
    queued = {entry.cell for entry in judge.snapshot.queue if entry.sequence == judge.survey.collection}
    for cell, runs in runs_of.items():
        # those without members are in the picture for their stacks only
        if not any(run.everyone and is_looked_at(judge.snapshot, run) for run in runs):
            continue
        reason = describe_open(judge, cell, runs, cell in queued)
        for product in CELL_PRODUCTS:
            late = find_late_differences(judge, cell, runs) if product == "transients" else ""
            if reason or late:
                judge.wait((product, cell), reason or late)
            elif not judge.visit((product, cell), runs[0]):
                judge.give_up((product, cell), runs[0])
        if all((product, cell) in judge.settled for product in CELL_PRODUCTS):
            steps += [Step(run.lap_id, SETTLE) for run in runs if not run.settled]
    return steps


def describe_open(judge: Judge, cell: str, runs: list[Run], queued: bool) -> str:
    """Why the products of a cell wait; empty if they need not."""
    unfinished = [str(run.lap_id) for run in runs if run.state != "full"]
    if unfinished:
        return f"waits for run {', '.join(unfinished)} of the cell to be full"
    return f"waits for the run of cell {cell} that is still in the queue" if queued else ""


def find_late_differences(judge: Judge, cell: str, runs: list[Run]) -> str:
    """Differences of a cell that a run under way, or still in the queue, will take up: transients wait for them."""
    queued = {(one.cell, one.band) for one in judge.snapshot.queue if one.sequence == judge.survey.collection}
    for run in runs:
        for one in run.roster if not run.settled else ():
            diff = ("diffs", f"{one.exposure}{JOIN}{cell}")
            if not one.private or one.data_state == "drop" or not is_postponed(judge, diff):
                continue
            for other in find_lacking(judge, run, one):
                later = judge.survey.run_of.get((other, run.band))
                if later or (other, run.band) in queued:
                    name = f"run {later.lap_id}" if later else f"the run of cell {other} that is still in the queue"
                    return f"waits for diffs {diff[1]}, {POSTPONED} to {name}"
    return ""
