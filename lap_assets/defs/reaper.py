"""Dagster runs that are dead: told apart by leases, and settled, so that the run queue and the decisions go on.

A run whose whole family of processes was killed stays `STARTED` for ever: Dagster's launcher looks at none of them.
Ours show that they live by a lease (`operations/launches.py`); here is what becomes of those that do not.
"""

import time
from collections.abc import Collection, Iterator, Mapping

import dagster as dg

from lap_assets.defs.instance import describe_made, read_materialized, tell
from lap_assets.defs.jobs import Loaded
from lap_assets.defs.launch import COLLECTION_TAG, LAP_ID_TAG, LAUNCH_TAG, find_owner, read_launch
from lap_assets.ledger.ledger import Ledger
from lap_assets.model.products import PRODUCTS, home_of
from lap_assets.model.states import RESULTS
from lap_assets.model.survey import PartitionRef
from lap_assets.operations.launches import (
    CLAIM_SECONDS,
    find_alive,
    read_claims,
    record_lost,
    release_dead,
    renew_claims,
)
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.engine import PartitionReport

GRACE_SECONDS = CLAIM_SECONDS  # a run that told Dagster something within them is not dead
WAITING = (dg.DagsterRunStatus.QUEUED,)
WORKING = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)


def renew_waiting(
    instance: dg.DagsterInstance, ledger: Ledger, collections: Mapping[str, Loaded]
) -> tuple[int, frozenset[int]]:
    """Keep the claims of the runs that wait in Dagster's queue; how many wait, and which LAP runs are at work.

    A run whose partitions were claimed by another one, because nobody renewed them for too long, is taken out.
    """
    waiting = 0
    at_work: set[int] = set()
    for run in instance.get_runs(dg.RunsFilter(statuses=[*WAITING, *WORKING])):
        loaded = collections.get(run.tags.get(COLLECTION_TAG, ""))
        if LAUNCH_TAG not in run.tags or loaded is None:
            continue
        if run.status in WAITING:
            refs = read_launch(run.tags, run.asset_selection or (), loaded)
            if not renew_claims(ledger, loaded.collection, find_owner(run), refs):
                ledger.release_owner(find_owner(run))
                instance.report_run_canceled(run, "it waited for too long: another run makes its partitions")
                continue
            waiting += 1
        at_work.add(int(run.tags.get(LAP_ID_TAG, "0")))
    return waiting, frozenset(at_work - {0})


def reap_runs(instance: dg.DagsterInstance, ledger: Ledger, now: float | None = None) -> Iterator[str]:
    """Settle the runs that nobody works on any more; yields one line for each.

    Dead is one without a lease whose last word to Dagster is old. What it had not recorded is asked for again.
    """
    alive = find_alive(ledger)
    for run in instance.get_runs(dg.RunsFilter(statuses=list(WORKING))):
        silent = (time.time() if now is None else now) - find_last_word(instance, run.run_id)
        if f"run/{run.run_id}" in alive or silent < GRACE_SECONDS:
            continue
        text = f"nobody works on it any more: no sign of life for {silent:.0f} s"
        ledger.release_owner(find_owner(run))
        fresh = instance.get_run_by_id(run.run_id)
        if fresh is None or fresh.is_finished:
            continue
        if fresh.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(fresh, text)
        else:
            instance.report_run_failed(fresh, text)
        yield f"run {run.run_id[:8]}: {text}"


def find_last_word(instance: dg.DagsterInstance, run_id: str) -> float:
    """When Dagster was last told anything of a run, seconds since 1970."""
    found = instance.get_records_for_run(run_id, limit=1, ascending=False).records
    return found[0].timestamp if found else 0.0


def settle_failed(
    instance: dg.DagsterInstance, space: Workspace, run: dg.DagsterRun, reason: str, loaded: Loaded | None
) -> list[PartitionRef]:
    """Record what a failed run left without a record, and give its claims and leases back; returns those.

    A run that never began is at no fault of its partitions. What it had recorded before it was killed Dagster is told.
    """
    owner, record = find_owner(run), instance.get_run_record_by_id(run.run_id)
    began = record is not None and record.start_time is not None
    left = read_claims(space.ledger, owner) if began else []
    if left:
        # products that follow in the same run were not reached
        order = list(PRODUCTS)
        reached = min((product for product, _ in left), key=order.index)
        left = [ref for ref in left if ref[0] == reached]
        record_lost(space.ledger, run.tags.get(COLLECTION_TAG, ""), left, reason)
    space.ledger.release_owner(owner)
    release_dead(space.ledger, run.run_id)
    if began and loaded is not None:
        done = [ref for ref in read_launch(run.tags, run.asset_selection or (), loaded) if ref not in left]
        tell_recorded(instance, space, loaded.collection, done)
    return left


def tell_recorded(
    instance: dg.DagsterInstance, space: Workspace, collection: str, refs: Collection[PartitionRef]
) -> None:
    """Tell Dagster of partitions that are made, as the ledger says, and that it does not know of."""
    from lap_assets.operations.reconcile import report_unit  # it imports the definitions, and they this module

    states = space.ledger.partition_states(collection)
    known = {product: read_materialized(instance, collection, product) for product, _ in refs}
    events = []
    for product, key in refs:
        state = states.get((product, key))
        if state is None or state.state not in RESULTS or key in known[product]:
            continue
        manifests = [space.repo.manifest(unit) for unit in space.repo.units(home_of(collection, product), product, key)]
        units = tuple(report_unit(one) for one in manifests if one is not None)
        report = PartitionReport(product, key, state.state, units, reason=state.reason)
        events.append(describe_made(space.repo, collection, report, state.content_sha256, "failure_sensor"))
    if events:
        tell(instance, events, "report_lost")
