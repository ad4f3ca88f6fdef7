"""What to do next: `decide(snapshot, modes) -> Decision`, pure, for every product from masters to mass maps (LAP-35).

Sensors, `lap run` and `lap_science` all ask here, each for the modes it carries out; the rules stand in one module per
mode, and what holds for any partition in `judge.py`. Nothing here reads a file, a clock or a database.
"""

from collections.abc import Collection

from lap_assets.lap.chip_mode import begin_runs
from lap_assets.lap.cleanup_mode import clean_runs
from lap_assets.lap.judge import Judge
from lap_assets.lap.monitor_mode import follow_runs, visit_master
from lap_assets.lap.queue_mode import launch_entries
from lap_assets.model.decisions import (
    CHIP_MODE,
    CLEANUP_MODE,
    MODES,
    MONITOR_MODE,
    QUEUE_MODE,
    Action,
    Decision,
    Snapshot,
    Step,
)
from lap_assets.model.products import CALIBRATIONS, PRODUCTS


def decide(snapshot: Snapshot, modes: Collection[str] = MODES) -> Decision:
    """The steps and actions of these modes that can be taken now.

    Idempotent: it depends on the snapshot alone, and once what it asks for is carried out and recorded it does not ask
    for it again. Steps go first: where there are any, decide again before acting.
    """
    steps: list[Step] = []
    actions: list[Action] = []
    if QUEUE_MODE in modes:
        steps += launch_entries(snapshot)
    if CHIP_MODE in modes:
        steps += begin_runs(snapshot)
    judge = Judge(snapshot)
    if CHIP_MODE in modes or MONITOR_MODE in modes:
        if snapshot.revisit:
            visit_all_masters(judge)
        steps += [step for step in follow_runs(judge) if step.mode in modes]
        actions += [action for action in judge.sort_actions() if action.mode in modes]
    if CLEANUP_MODE in modes:
        unneeded, over = clean_runs(snapshot)
        actions += unneeded
        steps += over
    return Decision(tuple(steps), tuple(actions), judge.describe_waiting(), frozenset(judge.settled))


def visit_all_masters(judge: Judge) -> None:
    """Masters that no exposure asks for yet, too."""
    for product, row in PRODUCTS.items():
        if row.partitions == CALIBRATIONS:
            for partition in judge.survey.partitions(product):
                visit_master(judge, (product, partition))
