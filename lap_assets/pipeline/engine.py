"""The engine every stage shares: plan the units of partitions, skip what is done, make the rest, publish, report.

A stage contributes only `plan` and `make` (see `pipeline/task.py`). Failures become states here, once for all:
what the data forbid is a *result* with a manifest and a reason; what a retry could cure is a failure without one.
The engine knows neither Dagster nor the ledger: it takes a survey, a repository and an executor, and yields reports.
"""

import logging
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lap_assets.errors import Cleaned, Conflict, IntegrityError, LapError, NoWork, UnprocessableData
from lap_assets.model.ids import DataId
from lap_assets.model.products import get_product, home_of
from lap_assets.model.quality import Verdict
from lap_assets.model.states import CLEANED, DONE, DROPPED, FAILED, NO_WORK, RESULTS, UNPROCESSABLE
from lap_assets.model.survey import PartitionRef, Survey
from lap_assets.pipeline.compute import (
    RENEW_AFTER,
    count_ahead,
    find_needs,
    get_executor,
    prepare_memory,
    read_peak_gib,
    renew_executor,
)
from lap_assets.pipeline.crew import Answer, Crew
from lap_assets.pipeline.kernel_folder import count_compiled
from lap_assets.pipeline.recipes import compute_recipe, hash_json
from lap_assets.pipeline.recreation import Recreation, explain_difference, plan_recreation
from lap_assets.pipeline.stages import STAGES, Stage
from lap_assets.pipeline.task import Output, Task, UnitReport
from lap_assets.settings import Settings
from lap_assets.store.manifest import Manifest
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

# facts people select products by that are no part of every data id
ASKED_FOR = ("band", "night")
# faults that a later try may cure: disk, memory, an input that must be re-created first; so is a lost worker
TRANSIENT = (OSError, MemoryError, IntegrityError, Conflict, Cleaned)
# of which a unit with files, or one that had them, is one
SETTLED = RESULTS - {DROPPED} | {CLEANED}


Job = Task | Recreation


@dataclass(frozen=True)
class PartitionReport:
    """What became of one partition: its state, and its units in order."""

    product: str
    partition: str
    state: str
    units: tuple[UnitReport, ...]
    seconds: float = 0.0
    reason: str = ""
    verdict: Verdict | None = None  # on a master calibration

    @property
    def content(self) -> str:
        """Hash over the states and contents of the units; of one without content, over what it was decided from.

        A unit counts the same whether or not its files were cleaned.
        """
        states = [DONE if unit.state == CLEANED else unit.state for unit in self.units]
        return hash_json([[u.data_id.unit, s, u.content or u.recipe] for u, s in zip(self.units, states, strict=True)])

    @property
    def reasons(self) -> dict[str, str]:
        """Unit (or "" for the whole) → why it is not `done`."""
        return {u.data_id.unit: f"{u.state}: {u.reason}" for u in self.units if u.state != DONE}

    @property
    def differences(self) -> dict[str, str]:
        """Unit (or "" for the whole) → in what it differs from what was cleaned, and why."""
        return {u.data_id.unit: u.difference for u in self.units if u.difference}

    def count(self, state: str) -> int:
        return sum(unit.state == state for unit in self.units)

    @property
    def skipped(self) -> int:
        return sum(unit.skipped for unit in self.units)


@dataclass(frozen=True)
class Session:
    """What the engine needs to work: the survey, where products live, how to compute, and how to tell of progress.

    `fences` gives the fencing number of the lease on a (product, partition); `tell` is called with each unit's report.
    """

    survey: Survey
    repo: Repo
    settings: Settings
    run_id: str = ""
    fences: Callable[[str, str], int] = lambda product, partition: 0
    tell: Callable[[UnitReport], None] = lambda report: None


def make_partitions(
    session: Session, product: str, partitions: Sequence[str], recreate: bool = False
) -> Iterator[PartitionReport]:
    """Make what is missing of the given partitions; yields a report per partition as each is complete.

    Units whose manifest names the same recipe, and whose files are there or were cleaned, are skipped and counted. With
    `recreate`, those that were cleaned are made again as they were, and no other that there is.
    """
    stage, compute, root = STAGES[product], session.settings.compute, session.repo.root
    crew = Crew(lambda: get_executor(compute, product, root), count_ahead(compute, product))
    work = _Work(session, product)
    try:
        for partition in partitions:
            try:
                jobs, done = _split_done(session, stage, partition, recreate)
                if jobs:
                    session.repo.keep_config(stage.config_document(session.settings))
            except Exception as error:  # a damaged manifest, a camera file that is gone: the other partitions go on
                log.error("%s %s cannot be planned: %s", product, partition, error)
                yield PartitionReport(product, partition, FAILED, (), reason=describe_fault(error))
                continue
            yield from work.open(partition, jobs, done)
            fence = session.fences(product, partition)
            for job in jobs:
                crew.add((partition, job), make_unit, product, job, root, fence, session.run_id)
            for answer in crew.collect(wait=False):
                yield from work.note(answer)
        for answer in crew.collect(wait=True):
            yield from work.note(answer)
        if work.compiled >= RENEW_AFTER:
            renew_executor(compute)
    finally:
        crew.dismiss()
        work.warn_of_memory()


class _Work:
    """The partitions that are being made: what is known of their units, and how many are awaited."""

    def __init__(self, session: Session, product: str) -> None:
        self.session, self.product = session, product
        self.reports: dict[str, dict[DataId, UnitReport]] = {}
        self.awaited: dict[str, int] = {}
        self.started = time.perf_counter()
        self.largest: DataId | None = None  # of those made in other processes, by memory
        self.peak_gib = 0.0
        self.compiled = 0  # kernels, by the worker that had to compile most

    def open(self, partition: str, jobs: Sequence[Job], done: dict[DataId, UnitReport]) -> Iterator[PartitionReport]:
        """Begin a partition with the units that are done; yields its report where nothing is left to do."""
        self.reports[partition], self.awaited[partition] = done, len(jobs)
        for report in done.values():
            self.session.tell(report)
        yield from self._close(partition)

    def note(self, answer: Answer) -> Iterator[PartitionReport]:
        """Take what became of a unit; yields the report of its partition where it was the last one."""
        partition, job = answer.key
        report = answer.value
        if answer.error is not None:
            report = UnitReport(job.data_id, FAILED, reason=answer.lost or describe_fault(answer.error))
        elif report.worker[0] != os.getpid() and report.worker[1] > self.peak_gib * 1024:
            self.largest, self.peak_gib = report.data_id, report.worker[1] / 1024
        self.compiled = max(self.compiled, report.compiled)
        self.session.tell(report)
        self.reports[partition][job.data_id] = report
        self.awaited[partition] -= 1
        yield from self._close(partition)

    def _close(self, partition: str) -> Iterator[PartitionReport]:
        if not self.awaited[partition]:
            report = _close(self.product, partition, self.reports[partition], self.started)
            yield confirm(self.session.repo, report)

    def warn_of_memory(self) -> None:
        """Say so where a unit took more memory than is declared: on a full machine that kills workers."""
        declared = find_needs(self.session.settings.compute, self.product).memory_gib
        if self.peak_gib > declared:
            advice = f"compute.resources: {{{self.product}: {{memory_gib: {math.ceil(self.peak_gib * 11) / 10}}}}}"
            log.warning("%s took %.2f GiB, declared are %.2f: set %s", self.largest, self.peak_gib, declared, advice)


def find_cleaned_inputs(session: Session, product: str, partition: str, recreate: bool = False) -> list[PartitionRef]:
    """Partitions that were cleaned, and that `make_partitions` reads for this one; sorted. Of the session's collection:
    nobody here can re-create another's.
    """
    jobs, _ = _split_done(session, STAGES[product], partition, recreate)
    pinned = {pin.data_id for job in jobs for pin in job.inputs}
    manifests = [session.repo.manifest(data_id) for data_id in sorted(pinned)]
    gone = [one.data_id for one in manifests if one is not None and one.state == CLEANED]
    ours = [one for one in gone if one.collection == home_of(session.survey.collection, one.product)]
    return sorted({(data_id.product, data_id.partition) for data_id in ours})


def _split_done(
    session: Session, stage: Stage, partition: str, recreate: bool = False
) -> tuple[list[Job], dict[DataId, UnitReport]]:
    """What is still to do, and reports of the units that are done with the same recipe, or with `recreate` at all."""
    repo, collection = session.repo, home_of(session.survey.collection, stage.product)
    todo: list[Job] = []
    done = {}
    for task in stage.plan(session.survey, repo, session.settings, collection, partition):
        manifest = repo.manifest(task.data_id)
        if manifest is None:
            todo.append(task)
        elif recreate and manifest.state == CLEANED:
            todo.append(plan_recreation(stage, task, manifest, repo))
        elif (recreate and repo.has_files(task.data_id)) or _is_done(session, stage, task, manifest):
            done[task.data_id] = _report_done(manifest)
        else:
            todo.append(task)
    return todo, done


def _is_done(session: Session, stage: Stage, task: Task, manifest: Manifest) -> bool:
    fits = manifest.state in SETTLED and manifest.recipe == compute_recipe(stage, task)
    return fits and (manifest.state == CLEANED or session.repo.has_files(task.data_id))


def _report_done(manifest: Manifest) -> UnitReport:
    return UnitReport(
        manifest.data_id,
        manifest.state,
        manifest.content_sha256,
        True,
        manifest.reason,
        0.0,
        manifest.bytes,
        manifest.metrics,
        recipe=manifest.recipe,
    )


def _close(product: str, partition: str, units: dict[DataId, UnitReport], started: float) -> PartitionReport:
    ordered = tuple(units[data_id] for data_id in sorted(units))
    state = combine_states([unit.state for unit in ordered])
    told = [(u.data_id.unit, u.difference if state == DONE else u.reason) for u in ordered if u.state == state]
    reasons = [f"{unit}: {reason}".lstrip(": ") for unit, reason in told if reason or state != DONE]
    reason = reasons[0] if reasons else "" if state == DONE else "nothing to do"
    return PartitionReport(product, partition, state, ordered, time.perf_counter() - started, reason)


def confirm(repo: Repo, report: PartitionReport) -> PartitionReport:
    """The report as it is if what it claims is on disk; else one of failure, so that nothing flows on from it."""
    lost = [str(unit.data_id) for unit in report.units if unit.state in RESULTS and not repo.has_files(unit.data_id)]
    if not lost:
        return report
    return replace(report, state=FAILED, reason=f"published, but its files are not on disk: {', '.join(lost[:3])}")


def drop_partition(session: Session, product: str, partition: str, reason: str) -> PartitionReport:
    """Give up on a partition: publish `dropped`, with the reason, for each unit that has no result."""
    stage, started = STAGES[product], time.perf_counter()
    try:
        todo, reports = _split_done(session, stage, partition)
    except Exception as error:  # what it is made from cannot be read: there is nothing to plan by
        log.error("%s %s cannot be planned: %s", product, partition, error)
        return PartitionReport(product, partition, DROPPED, (), time.perf_counter() - started, reason)
    for task in todo:
        manifest = session.repo.publish(
            task.data_id,
            {},
            inputs=task.inputs,
            recipe=compute_recipe(stage, task),
            config_sha256=stage.config_sha256(task.settings),
            code=get_product(product).code,
            metrics={},
            state=DROPPED,
            reason=reason,
            fence=session.fences(product, partition),
            run_id=session.run_id,
        )
        reports[task.data_id] = UnitReport(task.data_id, DROPPED, reason=reason, recipe=manifest.recipe)
    report = _close(product, partition, reports, started)
    return replace(report, reason=reason) if report.state == DROPPED else report


def combine_states(states: Sequence[str]) -> str:
    """State of a partition from its units': failed if any may be cured, cleaned if any has lost its files, done if any
    is done, else what they share.
    """
    for state in (FAILED, CLEANED, DONE, DROPPED, UNPROCESSABLE):
        if state in states:
            return state
    return NO_WORK


def make_unit(product: str, job: Job, root: Any, fence: int, run_id: str) -> UnitReport:
    """Make and publish one unit; runs in a worker. Never raises for what can be reported as a state."""
    started = time.perf_counter()
    prepare_memory(product)
    repo = Repo(root)
    make = _make_again if isinstance(job, Recreation) else _make_and_publish
    try:
        with repo.keep_log(job.data_id):
            report = make(STAGES[product], job, repo, fence, run_id)
    except Exception as error:  # the log or the publication failed: nothing half-written stays, so say so
        log.error("not published: %s", error)
        report = UnitReport(job.data_id, FAILED, reason=describe_fault(error), seconds=time.perf_counter() - started)
    return replace(report, worker=(os.getpid(), read_peak_gib() * 1024), compiled=count_compiled())


def _make_again(stage: Stage, job: Recreation, repo: Repo, fence: int, run_id: str) -> UnitReport:
    """Make a cleaned unit as it was made; if that gives other content, as it is made today."""
    report = _make_and_publish(stage, job.task, repo, fence, run_id)
    if report.state == FAILED or report.content == job.content:
        return report
    difference = explain_difference(job, report.state, report.content)
    log.warning("%s", difference)
    if compute_recipe(stage, job.today) != report.recipe:
        report = _make_and_publish(stage, job.today, repo, fence, run_id)
    return report if report.content == job.content else replace(report, difference=difference)


def _make_and_publish(stage: Stage, task: Task, repo: Repo, fence: int, run_id: str) -> UnitReport:
    started = time.perf_counter()
    state, reason, output = _attempt(stage, task, repo)
    seconds = time.perf_counter() - started
    if state == FAILED:
        return UnitReport(task.data_id, FAILED, reason=reason, seconds=seconds)
    manifest = repo.publish(
        task.data_id,
        output.members,
        inputs=task.inputs,
        recipe=compute_recipe(stage, task),
        config_sha256=stage.config_sha256(task.settings),
        code=get_product(stage.product).code,
        metrics=output.metrics,
        state=state,
        reason=reason,
        fence=fence,
        run_id=run_id,
        seconds=seconds,
        refers_to=output.refers_to,
    )
    return UnitReport(
        task.data_id,
        state,
        manifest.content_sha256,
        False,
        reason,
        seconds,
        manifest.bytes,
        output.metrics,
        recipe=manifest.recipe,
    )


def _attempt(stage: Stage, task: Task, repo: Repo) -> tuple[str, str, Output]:
    """Run `make` and turn what it raises into (state, reason, output)."""
    told = {name: task.params[name] for name in ASKED_FOR if isinstance(task.params.get(name), str)}
    empty = Output({}, told)
    try:
        output = stage.make(task, repo)
        output.metrics = told | output.metrics
        log.info("made %s", task.data_id)
        return DONE, "", output
    except NoWork as error:
        log.info("no work: %s", error)
        return NO_WORK, str(error), empty
    except UnprocessableData as error:
        log.warning("unprocessable: %s", error)
        return UNPROCESSABLE, str(error), empty
    except TRANSIENT as error:
        log.error("failed: %s\n%s", error, traceback.format_exc())
        return FAILED, describe_fault(error), empty
    except (
        Exception
    ) as error:  # a defect of the code: no retry cures it, so the unit is dropped, named, and the rest goes on
        log.error("dropped: %s\n%s", error, traceback.format_exc())
        return DROPPED, describe_fault(error), empty


def describe_fault(error: BaseException) -> str:
    """One line that names a fault."""
    text = " ".join(str(error).split())
    return text if isinstance(error, LapError) else f"{type(error).__name__}: {text}"
