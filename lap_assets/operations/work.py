"""Work on partitions with the books kept: guard, lease, engine, ledger. Joins `pipeline/` and `ledger/`; no dagster.

Whoever makes a partition (a Dagster run, a notebook, a test) goes through `work_partitions`, so that a lease is held
while it is made and one transaction records what became of it.
"""

import logging
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from os import getpid

from lap_assets.errors import Conflict, LapError
from lap_assets.lap.inputs import hash_inputs
from lap_assets.lap.judge import MAX_ATTEMPTS, find_held
from lap_assets.ledger.leases import Lease
from lap_assets.model.ids import JOIN
from lap_assets.model.products import KEY_PARTS, PRODUCTS, home_of
from lap_assets.model.states import BLOCKED, CLEANED, ENDED, FAILED, GONE, PartitionState
from lap_assets.model.survey import PartitionRef, Survey
from lap_assets.operations.certification import examine_masters
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.engine import PartitionReport, Session, drop_partition, find_cleaned_inputs, make_partitions
from lap_assets.pipeline.task import UnitReport

LEASE_SECONDS = 60.0
ORDER = {name: place for place, name in enumerate(PRODUCTS)}
Tell = Callable[[UnitReport], None]
log = logging.getLogger(__name__)


def work_partitions(
    space: Workspace,
    survey: Survey,
    product: str,
    partitions: Sequence[str],
    run_id: str = "",
    tell: Tell = lambda report: None,
) -> Iterator[PartitionReport]:
    """Make partitions of one product; each report is in the ledger before it is yielded.

    A partition whose inputs have not all ended, or whose masters are not certified, is reported `blocked` and left
    alone; inputs that were cleaned are re-created first. One that another writer holds raises `Conflict`.
    """
    states = read_states(space, survey, partitions)
    ready = []
    for partition in partitions:
        upstream = survey.upstream(product, partition)
        missing = [ref for ref in upstream if ref not in states or states[ref].state not in ENDED]
        if missing:
            reason = f"{len(missing)} inputs are not made yet, first {' '.join(missing[0])}"
            yield PartitionReport(product, partition, BLOCKED, (), reason=reason)
        elif held := find_held(survey, states, (product, partition)):
            yield PartitionReport(product, partition, BLOCKED, (), reason=held)
        else:
            ready.append(partition)
    suspects = [partition for partition in ready if may_lack_files(survey, states, product, partition)]
    yield from _make(space, survey, product, ready, suspects, run_id, tell, states=None if suspects else states)


def read_states(space: Workspace, survey: Survey, partitions: Sequence[str]) -> Mapping[PartitionRef, PartitionState]:
    """The records of some partitions, and of all that the runs they belong to touch: little of a large survey."""
    parts = {part for partition in partitions for part in partition.split(JOIN)}
    near = [run.lap_id for run in survey.runs if run.cell in parts or not parts.isdisjoint(run.everyone)]
    if not near:
        return space.ledger.partition_states(survey.collection)
    return space.ledger.snapshot(survey.collection, "all", near).states


def recreate_partitions(
    space: Workspace,
    survey: Survey,
    product: str,
    partitions: Sequence[str],
    run_id: str = "",
    tell: Tell = lambda report: None,
) -> Iterator[PartitionReport]:
    """Make cleaned partitions again as they were, after their inputs; what was not cleaned stays as it is (LAP-18).

    Where that succeeds the ledger says `done` with the hashes of before, so that nothing downstream is made again.
    """
    yield from _make(space, survey, product, partitions, partitions, run_id, tell, recreate=True)


def _make(
    space: Workspace,
    survey: Survey,
    product: str,
    partitions: Sequence[str],
    suspects: Sequence[str],
    run_id: str,
    tell: Tell,
    recreate: bool = False,
    states: Mapping[PartitionRef, PartitionState] | None = None,
) -> Iterator[PartitionReport]:
    """Make partitions under leases, after re-creating what the suspects among them are made from and was cleaned."""
    problems = restore_inputs(space, survey, product, suspects, run_id, tell, recreate) if suspects else {}
    for partition, reason in problems.items():
        yield PartitionReport(product, partition, BLOCKED, (), reason=reason)
    ready = [partition for partition in partitions if partition not in problems]
    with hold_leases(space, survey.collection, product, ready, run_id=run_id) as fences:
        states = read_states(space, survey, ready) if states is None else states
        session = Session(survey, space.repo, space.settings, run_id, lambda _, partition: fences[partition], tell)
        for report in examine_masters(space, product, make_partitions(session, product, ready, recreate)):
            record(space, survey, report, states, run_id, recreate)
            for lap_id in find_cleaned_runs(survey, product, report.partition) if recreate else ():
                space.ledger.look_again(lap_id)
            yield report


def find_cleaned_runs(survey: Survey, product: str, partition: str) -> list[int]:
    """Runs that cleanup is through with and must look at again when a partition of theirs has files once more.

    None where it looks at another run of the same exposure anyhow.
    """
    keys = dict(zip(KEY_PARTS[PRODUCTS[product].partitions], partition.split(JOIN), strict=True))
    runs = [
        run
        for run in survey.runs
        if keys.get("cell", run.cell) == run.cell
        and keys.get("band", run.band) == run.band
        and ("exposure" not in keys or keys["exposure"] in run.everyone)
    ]
    return [run.lap_id for run in runs] if runs and all(run.cleaned for run in runs) else []


def may_lack_files(survey: Survey, states: Mapping[PartitionRef, PartitionState], product: str, partition: str) -> bool:
    """Whether something that a partition is made from was cleaned, as far as the ledger tells.

    Two levels up: the template of a difference is made from the warps of its stacks.
    """
    near = survey.upstream(product, partition)
    far = [ref for up in near for ref in survey.upstream(*up)]
    return any(ref in states and states[ref].state in GONE for ref in (*near, *far))


def restore_inputs(
    space: Workspace,
    survey: Survey,
    product: str,
    partitions: Sequence[str],
    run_id: str,
    tell: Tell,
    recreate: bool,
) -> dict[str, str]:
    """Re-create what partitions are made from and was cleaned, chips before warps; returns why not, by partition."""
    session = Session(survey, space.repo, space.settings)
    tried: set[PartitionRef] = set()
    problems: dict[PartitionRef, str] = {}
    while True:
        needed = {partition: _list_needed(session, product, partition, recreate) for partition in partitions}
        # once more where an input came back otherwise than it was: then others are needed
        wanted = sorted({ref for refs in needed.values() for ref in refs} - tried, key=lambda ref: (ORDER[ref[0]], ref))
        if not wanted:
            return {
                partition: f"{' '.join(refs[0])} was cleaned and is not re-created: {problems.get(refs[0], '')}"
                for partition, refs in needed.items()
                if refs
            }
        tried.update(wanted)
        for name, group in groupby(wanted, key=lambda ref: ref[0]):
            keys = [partition for _, partition in group]
            try:
                for report in recreate_partitions(space, survey, name, keys, run_id, tell):
                    problems[name, report.partition] = report.reason
            except Conflict as error:
                problems |= {(name, key): str(error) for key in keys}


def _list_needed(session: Session, product: str, partition: str, recreate: bool) -> list[PartitionRef]:
    try:
        return find_cleaned_inputs(session, product, partition, recreate)
    except Exception as error:  # what cannot be planned is reported by the engine, with its reason
        log.warning("%s %s: cannot tell what it is made from: %s", product, partition, error)
        return []


def settle_partitions(
    space: Workspace,
    survey: Survey,
    product: str,
    partitions: Sequence[str],
    run_id: str = "",
    tell: Tell = lambda report: None,
) -> Iterator[PartitionReport]:
    """Like `work_partitions`, but a failed partition is tried again and, when its attempts are used up, dropped.

    For runs that no driver watches (a backfill of the UI): one fault must not keep a whole cell waiting.
    """
    todo, failed = list(partitions), []
    for _ in range(MAX_ATTEMPTS):
        failed = []
        for report in work_partitions(space, survey, product, todo, run_id, tell):
            if report.state == FAILED:
                failed.append((report.partition, report.reason))
            else:
                yield report
        todo = [partition for partition, _ in failed]
        if not todo:
            return
    yield from drop_partitions(space, survey, product, failed, run_id)


def drop_partitions(
    space: Workspace, survey: Survey, product: str, partitions: Sequence[tuple[str, str]], run_id: str = ""
) -> list[PartitionReport]:
    """Give up on partitions, each with its reason: what is not done of them is published as `dropped`."""
    states = read_states(space, survey, [partition for partition, _ in partitions])
    reports = []
    keys = [partition for partition, _ in partitions]
    with hold_leases(space, survey.collection, product, keys, run_id=run_id) as fences:
        session = Session(survey, space.repo, space.settings, run_id, lambda _, partition: fences[partition])
        for partition, reason in partitions:
            (report,) = examine_masters(space, product, [drop_partition(session, product, partition, reason)])
            record(space, survey, report, states, run_id)
            reports.append(report)
    return reports


def record(
    space: Workspace,
    survey: Survey,
    report: PartitionReport,
    states: Mapping[PartitionRef, PartitionState],
    run_id: str = "",
    recreated: bool = False,
) -> None:
    """Write what became of a partition into the ledger, in one transaction.

    One that was re-created as it was keeps its hashes; one that could not be stays `cleaned`, with one attempt more.
    """
    ref = (report.product, report.partition)
    before, failed = states.get(ref), report.state == FAILED
    new = PartitionState(
        report.state,
        hash_inputs(survey, states, ref),
        report.content,
        space.configs()[report.product],
        (before.attempts if before else 0) + 1 if failed else 0,
        report.reason,
    )
    units = report.units
    if recreated and before is not None and failed:
        new = replace(before, state=CLEANED, attempts=new.attempts, reason=report.reason)
        units = tuple(_stay_cleaned(space, unit) if unit.state == FAILED else unit for unit in units)
    elif recreated and before is not None and report.content == before.content_sha256:
        new = replace(before, state=new.state, attempts=0, reason=new.reason)
    space.ledger.record_partition(
        survey.collection, *ref, new.state, inputs_sha256=new.inputs_sha256, content_sha256=new.content_sha256,
        config_sha256=new.config_sha256, attempts=new.attempts, reason=new.reason, unit_reports=units, run_id=run_id,
        verdict=report.verdict,
    )  # fmt: skip


def _stay_cleaned(space: Workspace, unit: UnitReport) -> UnitReport:
    """The report of a unit whose re-creation failed, as what it still is."""
    manifest = space.repo.manifest(unit.data_id)
    return unit if manifest is None else replace(unit, state=manifest.state, content=manifest.content_sha256)


@contextmanager
def hold_leases(
    space: Workspace,
    collection: str,
    product: str,
    partitions: Sequence[str],
    refused: dict[str, str] | None = None,
    run_id: str = "",
) -> Iterator[dict[str, int]]:
    """Hold the lease of each partition, kept alive from a thread; yields the fencing numbers by partition.

    Where `refused` is given, what others hold is noted there with the reason; otherwise it raises `Conflict`. The owner
    ends with the run, so that what a dead one holds can be told.
    """
    home = home_of(collection, product)
    owner = f"{socket.gethostname()}:{getpid()}:{run_id or uuid.uuid4().hex[:8]}"
    leases: dict[str, Lease] = {}
    stop = threading.Event()

    def keep_alive() -> None:
        while not stop.wait(LEASE_SECONDS / 4):
            for lease in list(leases.values()):
                try:
                    space.ledger.heartbeat(lease, LEASE_SECONDS)
                except LapError as error:  # one lost, or a busy database: others are kept, publishing checks the fence
                    log.warning("no heartbeat for %s: %s", lease.key, error)

    try:
        for partition in partitions:
            try:
                leases[partition] = space.ledger.acquire(f"{home}/{product}/{partition}", owner, LEASE_SECONDS)
            except Conflict as error:
                if refused is None:
                    raise
                refused[partition] = str(error)
        thread = threading.Thread(target=keep_alive, daemon=True, name="lease-heartbeat")
        thread.start()
        yield {partition: lease.fence for partition, lease in leases.items()}
    finally:
        stop.set()
        for lease in leases.values():
            try:
                space.ledger.release(lease)
            except Conflict:
                continue  # taken over after it expired: not ours to release
            except LapError as error:  # the database is gone or full: the lease expires, and why we end here is told
                log.warning("%s stays leased for %g s: %s", lease.key, LEASE_SECONDS, error)
