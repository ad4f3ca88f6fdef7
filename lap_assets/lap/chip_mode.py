"""Chip mode, `lap_science --chip_mode`: a new run is made ready, its chips are queued, and it begins (LAP-17 … 22).

Steps only: that chips whose `chip_id` is set are then made where they are missing is monitor mode's rule.
"""

from lap_assets.lap.pairs import find_pairs
from lap_assets.model.decisions import ASSIGN, CHIP_MODE, DATA_STATE, PAIR, PRIVATE, RUN_STATE, Snapshot, Step
from lap_assets.model.states import ENDED
from lap_assets.model.survey import Member, Run


def begin_runs(snapshot: Snapshot) -> list[Step]:
    """What chip mode does to the runs of a snapshot; also to late members of runs that began before."""
    steps: list[Step] = []
    for run in snapshot.survey.runs:
        if run.fault or run.paused or (run.state == "new" and snapshot.draining):
            continue
        alive = [one for one in run.roster if one.data_state != "drop"]
        steps += queue_chips(snapshot, run, alive)
        steps += define_pairs(snapshot, run, alive)
        if run.state == "new":
            steps.append(Step(run.lap_id, RUN_STATE, value="run", reason="chips queued", mode=CHIP_MODE))  # LAP-22
    return steps


def queue_chips(snapshot: Snapshot, run: Run, alive: list[Member]) -> list[Step]:
    """LAP-17: chips are queued only where `chip_id` is blank. LAP-18: what was processed before is there, or comes
    back.
    """
    steps = []
    for one in alive:
        if not one.chip_id:
            steps.append(
                Step(run.lap_id, ASSIGN, one.exposure, f"{snapshot.survey.collection}/{one.exposure}", mode=CHIP_MODE)
            )
        elif run.state == "new" and one.data_state == "new" and was_processed(snapshot, one.exposure):
            steps.append(Step(run.lap_id, DATA_STATE, one.exposure, "exists", mode=CHIP_MODE))
    return steps


def was_processed(snapshot: Snapshot, exposure: str) -> bool:
    """Whether the chips of an exposure ended before, cleaned or not."""
    state = snapshot.states.get(("chips", exposure))
    return state is not None and state.state in ENDED


def define_pairs(snapshot: Snapshot, run: Run, alive: list[Member]) -> list[Step]:
    """LAP-19 … 21: pairs from `object` and `comment`; who has no companion is private."""
    fresh = {one.exposure for one in alive if not one.private and not one.pairwise}
    free = sorted(fresh | {one.exposure for one in alive if one.private})
    steps, paired = [], set()
    for first, second in find_pairs(snapshot.survey.exposures[name] for name in free) if fresh else ():
        if first in fresh or second in fresh:
            steps.append(Step(run.lap_id, PAIR, first, second, mode=CHIP_MODE))
            paired |= {first, second}
    return steps + [Step(run.lap_id, PRIVATE, name, mode=CHIP_MODE) for name in sorted(fresh - paired)]
