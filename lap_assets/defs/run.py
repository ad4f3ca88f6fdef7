"""The driver of `lap run` and `lap_science`: decide, materialize in this process, decide again.

What to do is decided by `lap/` alone; here it is only launched.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import dagster as dg

from lap_assets.definitions import build_defs
from lap_assets.defs.resources import LapResource
from lap_assets.errors import LapError
from lap_assets.lap.judge import BUSY
from lap_assets.lap.monitor_mode import POSTPONED
from lap_assets.model.decisions import DROP, Action
from lap_assets.model.products import home_of
from lap_assets.model.survey import PartitionRef, Survey
from lap_assets.operations.drive import advance
from lap_assets.operations.work import drop_partitions
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.task import UnitReport

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
KIND_TAG = "lap/kind"  # of the actions a run carries out: make or recreate
POLL_SECONDS = 2.0  # while somebody else makes what is waited for


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
    collection: str,
    modes: Collection[str],
    lap_ids: Collection[int] | None = None,
    targets: Collection[PartitionRef] | None = None,
    revisit: bool = False,
    tell: Callable[[UnitReport], None] = lambda report: None,
    begin: Callable[[str, int], None] = lambda product, partitions: None,
    note: Callable[[str], None] = lambda text: None,
) -> RunSummary:
    """Carry out what is decided, in order, until nothing can be done any more.

    Parameters
    ----------
    modes, lap_ids, targets, revisit
        As `operations.drive.advance` takes them.
    tell : callable
        Called with each unit's report.
    begin : callable
        Called with the product and the number of partitions as each batch begins.
    note : callable
        Called with what is waited for while somebody else makes it.
    """
    summary = RunSummary()

    def count_and_tell(report: UnitReport) -> None:
        summary.count(report)
        tell(report)

    before: tuple[Action, ...] = ()
    with open_instance(space.root) as instance:
        terminal = Terminal(space, collection, instance, count_and_tell)
        while True:
            decision = advance(space, collection, modes, lap_ids, targets, revisit, summary.failures.append)
            busy = [(ref, reason) for ref, reason in decision.waiting.items() if reason.startswith(BUSY)]
            if busy and not decision.actions:
                (product, partition), reason = busy[0]
                note(f"{product} {partition} {reason}; waiting")
                time.sleep(POLL_SECONDS)
                continue
            if not decision.actions:
                summary.waiting = dict(decision.waiting)
                return summary
            if decision.actions == before:
                raise LapError(f"{before[0].product}: the run ended without a record: {terminal.problem}")
            before = decision.actions
            (product, kind), actions = next(group_actions(decision.actions))
            begin(product, len(actions))
            terminal.carry_out(product, kind, actions, summary)


class Terminal:
    """Launches the work of one collection in this process; its definitions follow the partition sets as they grow.

    Attributes
    ----------
    problem : str
        Why the last run failed; empty if it did not.
    """

    def __init__(
        self, space: Workspace, collection: str, instance: dg.DagsterInstance, tell: Callable[[UnitReport], None]
    ) -> None:
        self.space, self.collection, self.instance, self.tell = space, collection, instance, tell
        self.problem = ""
        self._load()

    def _load(self) -> None:
        lap = LapResource(self.space.root, self.tell, self.space, settle=False)
        definitions = build_defs(self.space.root, collections=(self.collection,), lap=lap)
        self._job = definitions.resolve_implicit_global_asset_job_def()
        self.survey = self.space.survey(self.collection)

    def carry_out(self, product: str, kind: str, actions: list[Action], summary: RunSummary) -> None:
        """Do actions of one kind on one product: drop, or one Dagster run for each stretch of partitions."""
        if not {action.partition for action in actions} <= set(self.survey.partitions(product)):
            self._load()
        summary.partitions += len(actions)
        if kind == DROP:
            survey = self.space.survey(self.collection)  # its members may be fewer by now
            reasons = {action.partition: action.reason for action in actions}
            for report in drop_partitions(self.space, survey, product, list(reasons.items())):
                reason = reasons[report.partition]  # the partition's own is empty where other units of it are done
                if not reason.startswith(POSTPONED):  # that is no fault
                    summary.failures.append(f"{product} {report.partition}: dropped: {reason}")
            return
        for first, last in contiguous_ranges([one.partition for one in actions], self.survey.partitions(product)):
            self.problem = launch(self._job, self.instance, self.survey, product, kind, first, last)
            summary.runs += 1


def group_actions(actions: Collection[Action]) -> Iterator[tuple[tuple[str, str], list[Action]]]:
    """Actions by product and kind, in their order."""
    for key, group in groupby(actions, key=lambda action: (action.product, action.kind)):
        yield key, list(group)


def contiguous_ranges(wanted: Collection[str], keys: Collection[str]) -> Iterator[tuple[str, str]]:
    """First and last key of each unbroken stretch of `wanted` within `keys`: one Dagster run does one stretch."""
    wanted = set(wanted)
    for inside, stretch in groupby(keys, key=wanted.__contains__):
        if inside:
            found = list(stretch)
            yield found[0], found[-1]


def launch(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    survey: Survey,
    product: str,
    kind: str,
    first: str,
    last: str,
) -> str:
    """One Dagster run of one asset over a range of partitions, in this process; why it failed, or an empty text."""
    key = dg.AssetKey([home_of(survey.collection, product), product])
    result = job.execute_in_process(
        asset_selection=[key],
        instance=instance,
        tags={RANGE_START: first, RANGE_END: last, "lap/collection": survey.collection, KIND_TAG: kind},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )
    errors = [event.step_failure_data.error for event in result.get_step_failure_events()]
    causes = [(error.cause or error).message for error in errors if error is not None]
    return "" if result.success else " ".join(" ".join(causes or ["the run did not start"]).split())
