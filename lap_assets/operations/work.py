"""Work on partitions with the books kept: guard, lease, engine, ledger. Joins `pipeline/` and `ledger/`; no dagster.

Whoever makes a partition (a Dagster run, a notebook, a test) goes through `work_partitions`, so that a lease is held
while it is made and one transaction records what became of it.
"""

import logging
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import getpid

from lap_assets.errors import Conflict, LapError
from lap_assets.lap.decide import MAX_ATTEMPTS, hash_inputs
from lap_assets.ledger.leases import Lease
from lap_assets.model.products import home_of
from lap_assets.model.states import BLOCKED, FAILED, RESULTS
from lap_assets.model.survey import Survey
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.engine import PartitionReport, Session, drop_partition, make_partitions
from lap_assets.pipeline.task import UnitReport

LEASE_SECONDS = 60.0
log = logging.getLogger(__name__)


def work_partitions(
    space: Workspace,
    survey: Survey,
    product: str,
    partitions: Sequence[str],
    run_id: str = "",
    tell: Callable[[UnitReport], None] = lambda report: None,
) -> Iterator[PartitionReport]:
    """Make partitions of one product; each report is in the ledger before it is yielded.

    A partition whose inputs have not all ended with a result is reported `blocked` and left alone; one that another
    writer holds raises `Conflict`.
    """
    states = space.ledger.partition_states(survey.collection)
    ready = []
    for partition in partitions:
        missing = [
            ref for ref in survey.upstream(product, partition) if ref not in states or states[ref].state not in RESULTS
        ]
        if missing:
            yield PartitionReport(
                product,
                partition,
                BLOCKED,
                (),
                reason=f"{len(missing)} inputs are not made yet, first {' '.join(missing[0])}",
            )
        else:
            ready.append(partition)
    with hold_leases(space, survey.collection, product, ready) as fences:
        session = Session(survey, space.repo, space.settings, run_id, lambda _, partition: fences[partition], tell)
        for report in make_partitions(session, product, ready):
            record(space, survey, report, states, run_id)
            yield report


def settle_partitions(
    space: Workspace,
    survey: Survey,
    product: str,
    partitions: Sequence[str],
    run_id: str = "",
    tell: Callable[[UnitReport], None] = lambda report: None,
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
    states = space.ledger.partition_states(survey.collection)
    reports = []
    with hold_leases(space, survey.collection, product, [partition for partition, _ in partitions]) as fences:
        session = Session(survey, space.repo, space.settings, run_id, lambda _, partition: fences[partition])
        for partition, reason in partitions:
            report = drop_partition(session, product, partition, reason)
            record(space, survey, report, states, run_id)
            reports.append(report)
    return reports


def record(space: Workspace, survey: Survey, report: PartitionReport, states: dict, run_id: str = "") -> None:
    """Write what became of a partition into the ledger, in one transaction."""
    before = states.get((report.product, report.partition))
    space.ledger.record_partition(
        survey.collection,
        report.product,
        report.partition,
        report.state,
        inputs_sha256=hash_inputs(survey, states, (report.product, report.partition)),
        content_sha256=report.content,
        config_sha256=space.configs()[report.product],
        attempts=(before.attempts if before else 0) + 1 if report.state == FAILED else 0,
        reason=report.reason,
        unit_reports=report.units,
        run_id=run_id,
    )


@contextmanager
def hold_leases(space: Workspace, collection: str, product: str, partitions: Sequence[str]) -> Iterator[dict[str, int]]:
    """Hold the lease of each partition, kept alive from a thread; yields the fencing numbers by partition."""
    home = home_of(collection, product)
    owner = f"{socket.gethostname()}:{getpid()}:{uuid.uuid4().hex[:8]}"
    leases: list[Lease] = []
    stop = threading.Event()

    def keep_alive() -> None:
        while not stop.wait(LEASE_SECONDS / 4):
            for lease in list(leases):
                try:
                    space.ledger.heartbeat(lease, LEASE_SECONDS)
                except (
                    LapError
                ) as error:  # one lost, or a busy database: the others are kept, publishing checks the fence
                    log.warning("no heartbeat for %s: %s", lease.key, error)

    try:
        for partition in partitions:
            leases.append(space.ledger.acquire(f"{home}/{product}/{partition}", owner, LEASE_SECONDS))
        thread = threading.Thread(target=keep_alive, daemon=True, name="lease-heartbeat")
        thread.start()
        yield {partition: lease.fence for partition, lease in zip(partitions, leases, strict=True)}
    finally:
        stop.set()
        for lease in leases:
            try:
                space.ledger.release(lease)
            except Conflict:
                continue  # taken over after it expired: not ours to release
