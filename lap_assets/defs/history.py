"""Forgetting what Dagster stores and nobody asks for any more; what the UI shows as the state of things stays.

All of it through Dagster's storage interface. Of a *superseded* run, one that holds no newest event (materialization,
observation, open plan) of any partition, the events go; its record in the list of runs stays. Of other old runs only
the events of debugging go. Evaluations of checks live on in a table of their own, which is not touched.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg
from dagster._core.event_api import EventRecordsFilter
from dagster._core.events import ASSET_EVENTS
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.base import EventLogRecord
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._serdes import serialize_value

from lap_assets.defs.instance import FINISHED

PRUNED_TAG = "lap/pruned"  # of a run whose events were pruned; its value says how
SUPERSEDED, DEBUG = "superseded", "debug"
PER_QUERY = 500
WARNING = 30  # level from which messages are kept
# of each, the newest per partition is what the UI shows
STATES = (dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_OBSERVATION)
# how a run and its steps went
OUTCOMES = frozenset(
    {
        dg.DagsterEventType.STEP_START,
        dg.DagsterEventType.STEP_SUCCESS,
        dg.DagsterEventType.STEP_FAILURE,
        dg.DagsterEventType.RUN_START,
        dg.DagsterEventType.RUN_SUCCESS,
        dg.DagsterEventType.RUN_FAILURE,
        dg.DagsterEventType.RUN_CANCELED,
    }
)


@dataclass
class Pruned:
    """What was, or would be, removed: runs without events, runs without events of debugging, ticks; bytes of events."""

    superseded: int = 0
    debug: int = 0
    ticks: int = 0
    bytes: int = 0


def prune_history(instance: dg.DagsterInstance, days: float, dry_run: bool = False) -> Pruned:
    """Prune the events and captured logs of runs that ended more than `days` ago, and ticks as old."""
    before = time.time() - days * 86400.0
    outcome = Pruned()
    newest = find_newest(instance)
    holders = set(newest.values())
    with make_pruner(instance, newest, dry_run) as pruner:
        for record in list_finished(instance, before):
            run = record.dagster_run
            kind = DEBUG if run.run_id in holders else SUPERSEDED
            if run.tags.get(PRUNED_TAG) not in (kind, SUPERSEDED) and pruner.prune_run(run.run_id, kind):
                outcome.superseded += kind == SUPERSEDED
                outcome.debug += kind == DEBUG
        outcome.bytes = pruner.bytes
    outcome.ticks = prune_ticks(instance, before, dry_run)
    return outcome


def find_newest(instance: dg.DagsterInstance) -> dict[int, str]:
    """Storage ids of the newest materialization, observation and open plan of every partition, with their runs."""
    storage = instance.event_log_storage
    newest: dict[int, str] = {}
    for key in storage.all_asset_keys():
        for fetch in (instance.fetch_materializations, instance.fetch_observations):
            newest |= {one.storage_id: one.run_id for one in fetch(key, limit=1).records}  # also of no partition
        for kind in STATES:
            ids = sorted(storage.get_latest_storage_id_by_partition(key, kind).values())
            for start in range(0, len(ids), PER_QUERY):
                chosen = EventRecordsFilter(kind, asset_key=key, storage_ids=ids[start : start + PER_QUERY])
                newest |= {one.storage_id: one.run_id for one in storage.get_event_records(chosen)}
        plans = storage.get_latest_asset_partition_materialization_attempts_without_materializations(key)
        newest |= {storage_id: run_id for run_id, storage_id in plans.values()}
    return newest


def list_finished(instance: dg.DagsterInstance, before: float) -> Iterator[dg.RunRecord]:
    """Records of the runs that ended before a time (seconds since 1970), newest first."""
    cursor = None
    while True:
        records = instance.get_run_records(dg.RunsFilter(statuses=list(FINISHED)), limit=PER_QUERY, cursor=cursor)
        yield from (one for one in records if (one.end_time or one.update_timestamp.timestamp()) < before)
        if len(records) < PER_QUERY:
            return
        cursor = records[-1].dagster_run.run_id


class Pruner:
    """Removes events of finished runs from a storage that has those of all runs in one table.

    Attributes
    ----------
    newest : mapping of storage id to run id
        As `find_newest` gives it.
    bytes : int
        Size of what was, or would be, removed.
    """

    def __init__(self, instance: dg.DagsterInstance, newest: dict[int, str], dry_run: bool) -> None:
        self.instance, self.newest, self.dry_run = instance, newest, dry_run
        self.storage: SqlEventLogStorage = instance.event_log_storage
        self.bytes = 0

    def prune_run(self, run_id: str, kind: str) -> bool:
        """Remove the events of a superseded run, or those of debugging of another; whether it could be done."""
        if not self.prune_events(run_id, kind):
            return False
        if not self.dry_run:
            self.instance.compute_log_manager.delete_logs(prefix=[run_id])
            self.instance.add_run_tags(run_id, {PRUNED_TAG: kind})
        return True

    def prune_events(self, run_id: str, kind: str) -> bool:
        """The events alone."""
        records = list(read_records(self.storage, run_id))
        kept = [one for one in records if kind == DEBUG and is_kept(one, self.newest)]
        self.bytes += sum(map(measure, records)) - sum(map(measure, kept))
        if not self.dry_run:
            if kind == SUPERSEDED:
                self.storage.delete_events(run_id)
            else:
                rewrite_run(self.storage, run_id, kept)
        return True


class ShardPruner(Pruner):
    """The same where each run has a file of its own, and what its assets told is in an index, too (SQLite).

    A file does not become smaller by what is deleted in it: it is replaced by a new one. It is not just removed, for
    a process that had it open once takes its tables for granted.
    """

    def __init__(self, instance: dg.DagsterInstance, newest: dict[int, str], dry_run: bool, folder: str) -> None:
        super().__init__(instance, newest, dry_run)
        self.scratch = SqliteEventLogStorage(folder)

    def prune_events(self, run_id: str, kind: str) -> bool:
        """The events alone; not while somebody reads the file."""
        old, fresh = (Path(one.path_for_shard(run_id)) for one in (self.storage, self.scratch))
        records = read_records(self.storage, run_id) if kind == DEBUG else ()
        kept = [one for one in records if is_kept(one, {})]
        with self.scratch.run_connection(run_id) as connection:
            for one in kept:
                connection.execute(self.scratch.prepare_insert_event(one.event_log_entry))
        freed = old.stat().st_size - fresh.stat().st_size if old.is_file() else 0
        if not self.dry_run:
            if kind == SUPERSEDED:
                self.storage.delete_events(run_id)
            if Path(f"{old}-wal").exists():
                return False
            fresh.replace(old)
        self.bytes += freed
        return True


@contextmanager
def make_pruner(instance: dg.DagsterInstance, newest: dict[int, str], dry_run: bool) -> Iterator[Pruner]:
    """The pruner for the storage of an instance."""
    storage = instance.event_log_storage
    if not storage.is_run_sharded:
        yield Pruner(instance, newest, dry_run)
        return
    with TemporaryDirectory(dir=Path(storage.path_for_shard("index")).parents[1]) as folder:
        yield ShardPruner(instance, newest, dry_run, folder)


def read_records(storage: SqlEventLogStorage, run_id: str) -> Iterator[EventLogRecord]:
    """All events of a run."""
    cursor = None
    while True:
        page = storage.get_records_for_run(run_id, cursor=cursor, limit=PER_QUERY)
        yield from page.records
        cursor = page.cursor
        if not page.has_more:
            return


def measure(record: EventLogRecord) -> int:
    """Size of an event as it is stored."""
    return len(serialize_value(record.event_log_entry))


def is_kept(record: EventLogRecord, newest: dict[int, str]) -> bool:
    """Whether an event says how things stand, or how the run went: the rest is debugging, or history of a partition."""
    entry: EventLogEntry = record.event_log_entry
    if entry.is_dagster_event and entry.dagster_event_type in ASSET_EVENTS:
        return record.storage_id in newest
    return entry.dagster_event_type in OUTCOMES or int(entry.level) >= WARNING


def rewrite_run(storage: SqlEventLogStorage, run_id: str, kept: list[EventLogRecord]) -> None:
    """Leave only these events of a run, under the ids they have, in one transaction."""
    told = [one for one in kept if one.event_log_entry.dagster_event_type in ASSET_EVENTS]
    with storage.index_transaction() as connection:
        storage.delete_events_for_run(connection, run_id)
        for one in kept:
            connection.execute(storage.prepare_insert_event(one.event_log_entry).values(id=one.storage_id))
        # the public method would do this in a transaction of its own
        storage._store_asset_event_tags(
            connection, [one.event_log_entry for one in told], [one.storage_id for one in told]
        )


def prune_ticks(instance: dg.DagsterInstance, before: float, dry_run: bool) -> int:
    """Remove ticks of sensors and schedules from before a time; how many."""
    storage, count = instance.schedule_storage, 0
    for state in instance.all_instigator_state():
        place = (state.instigator_origin_id, state.selector_id)
        count += len(storage.get_tick_summaries(*place, before=before))
        if not dry_run:
            storage.purge_ticks(*place, before)
    return count
