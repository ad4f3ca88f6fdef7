"""What the Dagster instance of a repository knows and is told: who is at work, what counts as made, which marks it has.

For commands that settle Dagster with ledger and store (`lap retire`, `lap reconcile`). Assets are named here by
collection and product, as everywhere else; launching is `run.py`'s, forgetting `history.py`'s.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_spec import AssetCheckKey
from dagster._core.definitions.partitions.subset.default import DefaultPartitionsSubset
from dagster._core.definitions.partitions.subset.partitions_subset import PartitionsSubset
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionsFilter,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from lap_assets.defs.reports import BLOCKING, evaluate_checks, write_metadata
from lap_assets.model.products import PRODUCTS, home_of
from lap_assets.model.survey import PartitionRef, Survey
from lap_assets.pipeline.engine import PartitionReport
from lap_assets.store.repo import Repo

Instance = dg.DagsterInstance
Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation

FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in FINISHED]
PER_RUN = 500  # partitions told of in one run
ENDED_CHECKS = {AssetCheckExecutionRecordStatus.SUCCEEDED: True, AssetCheckExecutionRecordStatus.FAILED: False}
OPEN_BACKFILLS = [status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES]


def asset_key(collection: str, product: str) -> dg.AssetKey:
    """Key of the asset of a product in a collection; masters lie outside all collections."""
    return dg.AssetKey([home_of(collection, product), product])


def find_work(instance: dg.DagsterInstance, survey: Survey) -> dict[PartitionRef, str]:
    """Partitions of a survey that a backfill or an unfinished run of Dagster targets, and who does.

    Where it cannot be told which partitions of an asset are meant (keys the survey does not have any more, a selection
    without keys), all of them are.
    """
    work: dict[PartitionRef, str] = {}
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        for key in run.asset_selection or ():
            for ref in _expand(survey, key, _tagged_keys(run.tags)):
                work[ref] = f"run {run.run_id[:8]} ({run.status.value})"
    for backfill in instance.get_backfills(BulkActionsFilter(statuses=OPEN_BACKFILLS)):
        for key, keys in _backfill_targets(backfill, survey):
            for ref in _expand(survey, key, keys):
                work[ref] = f"backfill {backfill.backfill_id}"
    return work


def _tagged_keys(tags: Mapping[str, str]) -> tuple[str, str] | None:
    """First and last partition key of a run; None where it names none."""
    if PARTITION_NAME_TAG in tags:
        return tags[PARTITION_NAME_TAG], tags[PARTITION_NAME_TAG]
    if ASSET_PARTITION_RANGE_START_TAG in tags:
        return tags[ASSET_PARTITION_RANGE_START_TAG], tags[ASSET_PARTITION_RANGE_END_TAG]
    return None


def _backfill_targets(
    backfill: PartitionBackfill, survey: Survey
) -> Iterator[tuple[dg.AssetKey, PartitionsSubset | None]]:
    data = backfill.asset_backfill_data
    if data is not None:
        yield from data.target_subset.partitions_subsets_by_asset_key.items()
        return
    # of a job, or written by another version of Dagster: what it is about cannot be read without its code
    for key in backfill.asset_selection or [asset_key(survey.collection, product) for product in PRODUCTS]:
        yield key, None


def _expand(
    survey: Survey, key: dg.AssetKey, keys: tuple[str, str] | PartitionsSubset | None
) -> Iterable[PartitionRef]:
    """The partitions of one asset that `keys` means, as far as the asset is one of this survey."""
    product = key.path[-1]
    if product not in PRODUCTS or key != asset_key(survey.collection, product):
        return []
    everything = survey.partitions(product)
    chosen: Iterable[str] = everything
    if isinstance(keys, DefaultPartitionsSubset):
        chosen = keys.subset
    elif not isinstance(keys, PartitionsSubset) and keys is not None:
        first, last = keys
        if first in everything and last in everything:
            chosen = everything[everything.index(first) : everything.index(last) + 1]
    return [(product, partition) for partition in chosen]


def read_materialized(instance: dg.DagsterInstance, collection: str, product: str) -> set[str]:
    """Partitions that Dagster believes are made."""
    return instance.get_materialized_partitions(asset_key(collection, product))


def read_marks(instance: dg.DagsterInstance, collection: str, products: Iterable[str]) -> dict[PartitionRef, bool]:
    """Whether the newest evaluation of `files_on_disk` passed, by product and partition."""
    checks = {AssetCheckKey(asset_key(collection, product), BLOCKING): product for product in products}
    found = instance.event_log_storage.get_asset_check_partition_info(list(checks))
    ended = [one for one in found if one.partition_key is not None and one.latest_execution_status in ENDED_CHECKS]
    return {(checks[one.check_key], one.partition_key): ENDED_CHECKS[one.latest_execution_status] for one in ended}


def describe_made(repo: Repo, collection: str, report: PartitionReport, content: str, by: str) -> list[Event]:
    """What Dagster is told of a partition that was made without its knowing: a materialization, and its checks."""
    key = asset_key(collection, report.product)
    told = {"content_sha256": dg.MetadataValue.text(content), "reported_by": dg.MetadataValue.text(by)}
    metadata = write_metadata(repo, report) | told
    made = dg.AssetMaterialization(key, partition=report.partition, metadata=metadata)
    return [made, *evaluate_checks(key, repo, report)]


def describe_files(repo: Repo, collection: str, report: PartitionReport) -> list[Event]:
    """The checks of a partition as they are now."""
    return list(evaluate_checks(asset_key(collection, report.product), repo, report))


def describe_gone(collection: str, product: str, partition: str, state: str, reason: str) -> list[Event]:
    """The mark of a partition that counts as made but whose files are not there: an observation and a failed check.

    A warning: what was made from it stays as it is.
    """
    key = asset_key(collection, product)
    metadata = {"state": dg.MetadataValue.text(state), "reason": dg.MetadataValue.text(reason)}
    failed = dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=BLOCKING,
        passed=False,
        metadata=metadata,
        severity=dg.AssetCheckSeverity.WARN,
        description=reason or None,
        partition=partition,
    )
    return [dg.AssetObservation(key, partition=partition, metadata=metadata), failed]


def tell(instance: dg.DagsterInstance, events: Sequence[list[Event]], name: str) -> None:
    """Store what is told of each partition, in runs of a job called `name`, executed here and now.

    Not as runless events: Dagster keeps one runless evaluation of a check and partition, and refuses a second one.
    """
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    for start in range(0, len(events), PER_RUN):
        job = make_telling_job(name, events[start : start + PER_RUN])
        job.execute_in_process(run_config=quiet, instance=instance)


def make_telling_job(name: str, events: Sequence[list[Event]]) -> dg.JobDefinition:
    """A job whose one op stores these events."""

    @dg.op(name="tell")
    def log_events(context: dg.OpExecutionContext) -> None:
        for event in chain.from_iterable(events):
            context.log_event(event)

    @dg.job(name=name)
    def job() -> None:
        log_events()

    return job
