"""The driver of `lap run`: decide, materialize in this process on the persistent instance, decide again.

What to do is decided by `lap/` alone; here it is only launched.
"""

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import dagster as dg

from lap_assets.definitions import build_defs
from lap_assets.defs.resources import LapResource
from lap_assets.errors import LapError
from lap_assets.lap.decide import DROP, Action, Snapshot, decide
from lap_assets.model.products import home_of
from lap_assets.model.survey import PartitionRef, Survey
from lap_assets.operations.work import drop_partitions
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.task import UnitReport

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@dataclass
class RunSummary:
    """What `lap run` did: units by state, partitions made, runs of Dagster launched, and what is still waiting."""

    units: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    partitions: int = 0
    runs: int = 0
    failures: list[str] = field(default_factory=list)
    waiting: dict[PartitionRef, str] = field(default_factory=dict)

    def count(self, report: UnitReport) -> None:
        """Add one unit's report."""
        if report.skipped:
            self.skipped += 1
        else:
            self.units[report.state] = self.units.get(report.state, 0) + 1


def open_instance(root: Path) -> dg.DagsterInstance:
    """The persistent instance of a repository."""
    os.environ["DAGSTER_HOME"] = str(root / "dagster")
    return dg.DagsterInstance.from_config(str(root / "dagster"))


def run_missing(
    space: Workspace,
    survey: Survey,
    targets: Collection[PartitionRef] | None = None,
    tell: Callable[[UnitReport], None] = lambda report: None,
    begin: Callable[[str, int], None] = lambda product, partitions: None,
    retry: bool = False,
) -> RunSummary:
    """Materialize what is missing, in order, until nothing can be done any more.

    Parameters
    ----------
    targets : collection of (product, partition), optional
        Only these and what they are made from.
    tell : callable
        Called with each unit's report.
    begin : callable
        Called with the product and the number of partitions as each batch begins.
    retry : bool
        Take up again what was dropped.
    """
    summary = RunSummary()

    def count_and_tell(report: UnitReport) -> None:
        summary.count(report)
        tell(report)

    space.ledger.forget_attempts(survey.collection, dropped=retry)
    definitions = build_defs(
        space.root, collections=(survey.collection,), lap=LapResource(space.root, count_and_tell, space, settle=False)
    )
    job = definitions.resolve_implicit_global_asset_job_def()
    before, problem = None, ""
    with open_instance(space.root) as instance:
        while True:
            states = space.ledger.partition_states(survey.collection)
            decision = decide(Snapshot(survey, states, space.configs(), targets))
            if (decision.actions, states) == before:
                raise LapError(f"{decision.actions[0].product}: the run ended without a record: {problem}")
            before = (decision.actions, states)
            if not decision.actions:
                summary.waiting = dict(decision.waiting)
                return summary
            product, actions = next(group_actions(decision.actions))
            begin(product, len(actions))
            summary.partitions += len(actions)
            dropped = [(action.partition, action.reason) for action in actions if action.kind == DROP]
            for report in drop_partitions(space, survey, product, dropped):
                summary.failures.append(f"{product} {report.partition}: dropped: {report.reason}")
            made = [action.partition for action in actions if action.kind != DROP]
            for first, last in contiguous_ranges(made, survey.partitions(product)):
                problem = launch(job, instance, survey, product, first, last)
                summary.runs += 1


def group_actions(actions: Collection[Action]) -> Iterator[tuple[str, list[Action]]]:
    """Actions by product, in their order."""
    for product, group in groupby(actions, key=lambda action: action.product):
        yield product, list(group)


def contiguous_ranges(wanted: Collection[str], keys: Collection[str]) -> Iterator[tuple[str, str]]:
    """First and last key of each unbroken stretch of `wanted` within `keys`: one Dagster run does one stretch."""
    wanted = set(wanted)
    for inside, stretch in groupby(keys, key=wanted.__contains__):
        if inside:
            found = list(stretch)
            yield found[0], found[-1]


def launch(
    job: dg.JobDefinition, instance: dg.DagsterInstance, survey: Survey, product: str, first: str, last: str
) -> str:
    """One Dagster run of one asset over a range of partitions, in this process; why it failed, or an empty text."""
    key = dg.AssetKey([home_of(survey.collection, product), product])
    result = job.execute_in_process(
        asset_selection=[key],
        instance=instance,
        tags={RANGE_START: first, RANGE_END: last, "lap/collection": survey.collection},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )
    errors = [event.step_failure_data.error for event in result.get_step_failure_events()]
    causes = [(error.cause or error).message for error in errors if error is not None]
    return "" if result.success else " ".join(" ".join(causes or ["the run did not start"]).split())
