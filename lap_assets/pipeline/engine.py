"""The engine every stage shares: plan the units of partitions, skip what is done, make the rest, publish, report.

A stage contributes only `plan` and `make` (see `pipeline/task.py`). Failures become states here, once for all:
what the data forbid is a *result* with a manifest and a reason; what a retry could cure is a failure without one.
The engine knows neither Dagster nor the ledger: it takes a survey, a repository and an executor, and yields reports.
"""

import hashlib
import json
import logging
import os
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

from lap_assets.errors import Conflict, IntegrityError, LapError, NoWork, UnprocessableData
from lap_assets.model.ids import DataId
from lap_assets.model.products import get_product, home_of
from lap_assets.model.states import DONE, DROPPED, FAILED, NO_WORK, RESULTS, UNPROCESSABLE
from lap_assets.model.survey import Survey
from lap_assets.pipeline.compute import discard_executor, get_executor
from lap_assets.pipeline.stages import STAGES, Stage
from lap_assets.pipeline.task import Output, Task, UnitReport
from lap_assets.settings import Settings
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

# facts people select products by that are no part of every data id
ASKED_FOR = ("band", "night")
# faults that a later try may cure: disk, memory, a lost worker, an input that must be re-created first
TRANSIENT = (OSError, MemoryError, BrokenProcessPool, IntegrityError, Conflict)


@dataclass(frozen=True)
class PartitionReport:
    """What became of one partition: its state, and its units in order."""

    product: str
    partition: str
    state: str
    units: tuple[UnitReport, ...]
    seconds: float = 0.0
    reason: str = ""

    @property
    def content(self) -> str:
        """Hash over the states and contents of the units; of one without content, over what it was decided from."""
        return hash_json([[u.data_id.unit, u.state, u.content or u.recipe] for u in self.units])

    @property
    def reasons(self) -> dict[str, str]:
        """Unit (or "" for the whole) → why it is not `done`."""
        return {u.data_id.unit: f"{u.state}: {u.reason}" for u in self.units if u.state != DONE}

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


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def compute_recipe(stage: Stage, task: Task) -> str:
    """Hash of all that decides the bytes of a unit: code number, inputs, settings, facts from the survey."""
    product = get_product(stage.product)
    inputs = sorted([str(pin.data_id), pin.content] for pin in task.inputs)
    return hash_json(
        {
            "product": product.name,
            "code": product.code,
            "partition": task.data_id.partition,
            "unit": task.data_id.unit,
            "inputs": inputs,
            "config": stage.config_sha256(task.settings),
            "params": dict(task.params),
        }
    )


def make_partitions(session: Session, product: str, partitions: Sequence[str]) -> Iterator[PartitionReport]:
    """Make what is missing of the given partitions; yields a report per partition as each is complete.

    Units whose manifest names the same recipe, and whose files are there, are skipped and counted.
    """
    stage = STAGES[product]
    pending: dict[Future, tuple[str, Task]] = {}
    reports: dict[str, dict[DataId, UnitReport]] = {}
    waiting: dict[str, int] = {}
    started = time.perf_counter()
    for partition in partitions:
        try:
            tasks, reports[partition] = _split_done(session, stage, partition)
        except Exception as error:  # a damaged manifest, a camera file that is gone: the other partitions go on
            log.error("%s %s cannot be planned: %s", product, partition, error)
            yield PartitionReport(product, partition, FAILED, (), reason=describe_fault(error))
            continue
        waiting[partition] = len(tasks)
        for task in tasks:
            pending[_submit(session, product, partition, task)] = (partition, task)
        if not tasks:
            yield confirm(session.repo, _close(product, partition, reports[partition], started))
    for future in as_completed(pending):
        partition, task = pending[future]
        report = _collect(session, future, task)
        session.tell(report)
        reports[partition][task.data_id] = report
        waiting[partition] -= 1
        if not waiting[partition]:
            yield confirm(session.repo, _close(product, partition, reports[partition], started))


def _submit(session: Session, product: str, partition: str, task: Task) -> Future:
    """Hand a unit to the pool; a pool that lost a worker meanwhile is replaced once."""
    arguments = (make_unit, product, task, session.repo.root, session.fences(product, partition), session.run_id)
    try:
        return get_executor(session.settings.compute).submit(*arguments)
    except BrokenProcessPool:
        discard_executor(session.settings.compute)
        return get_executor(session.settings.compute).submit(*arguments)


def _split_done(session: Session, stage: Stage, partition: str) -> tuple[list[Task], dict[DataId, UnitReport]]:
    """Tasks still to do, and reports of the units that are done with the same recipe."""
    collection = home_of(session.survey.collection, stage.product)
    todo, done = [], {}
    for task in stage.plan(session.survey, session.repo, session.settings, collection, partition):
        manifest = session.repo.manifest(task.data_id)
        settled = manifest is not None and manifest.state in RESULTS - {DROPPED}
        fits = settled and manifest.recipe == compute_recipe(stage, task)
        if fits and session.repo.has_files(task.data_id):
            report = UnitReport(
                task.data_id,
                manifest.state,
                manifest.content_sha256,
                True,
                manifest.reason,
                0.0,
                manifest.bytes,
                manifest.metrics,
                recipe=manifest.recipe,
            )
            session.tell(report)
            done[task.data_id] = report
        else:
            todo.append(task)
    return todo, done


def _collect(session: Session, future: Future, task: Task) -> UnitReport:
    try:
        return future.result()
    except (BrokenProcessPool, CancelledError):
        discard_executor(session.settings.compute)
        return UnitReport(
            task.data_id,
            FAILED,
            reason="the worker process was lost (killed, or out of memory); it will be tried again",
        )


def _close(product: str, partition: str, units: dict[DataId, UnitReport], started: float) -> PartitionReport:
    ordered = tuple(units[data_id] for data_id in sorted(units))
    state = combine_states([unit.state for unit in ordered])
    reason = (
        ""
        if state == DONE
        else next((f"{u.data_id.unit}: {u.reason}".lstrip(": ") for u in ordered if u.state == state), "nothing to do")
    )
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
    return _close(product, partition, reports, started)


def combine_states(states: Sequence[str]) -> str:
    """State of a partition from its units': failed if any may be cured, done if any is done, else what they share."""
    if FAILED in states:
        return FAILED
    if DONE in states:
        return DONE
    for state in (DROPPED, UNPROCESSABLE):
        if state in states:
            return state
    return NO_WORK


def make_unit(product: str, task: Task, root: Any, fence: int, run_id: str) -> UnitReport:
    """Make and publish one unit; runs in a worker. Never raises for what can be reported as a state."""
    started = time.perf_counter()
    repo = Repo(root)
    try:
        with repo.keep_log(task.data_id):
            report = _make_and_publish(STAGES[product], task, repo, fence, run_id)
    except Exception as error:  # the log or the publication failed: nothing half-written stays, so say so
        log.error("not published: %s", error)
        report = UnitReport(task.data_id, FAILED, reason=describe_fault(error), seconds=time.perf_counter() - started)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return replace(report, worker=(os.getpid(), peak_mb))


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
