"""The one resource assets need: a repository to work in, and how its work is told to Dagster.

`RunWork.make` is what every asset body calls. It does to the partitions of the run what the run was requested for
(make, re-create, drop), turns each report into metadata and check evaluations, and fails the run only for faults that
a retry may cure, after the good partitions are recorded. While a run lives, so do its claims.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import dagster as dg

from lap_assets.defs.launch import COUNT_TAG, KIND_TAG, LAUNCH_TAG, REASON_TAG, find_owner
from lap_assets.defs.reports import describe_runs, evaluate_checks, write_metadata
from lap_assets.errors import Conflict
from lap_assets.model.decisions import DROP, MAKE, RECREATE
from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import DONE, ENDED
from lap_assets.model.survey import Survey
from lap_assets.operations.launches import keep_alive, record_lost, release_claims, renew_claims
from lap_assets.operations.work import drop_partitions, recreate_partitions, settle_partitions, work_partitions
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.compute import configure_process
from lap_assets.pipeline.engine import PartitionReport
from lap_assets.pipeline.task import UnitReport

RECREATED = "recreated"


class LapResource:
    """A repository; opened when a run first asks for it.

    Parameters
    ----------
    root : Path or None
        Repository folder; None: found from the environment or the current folder.
    tell : callable
        Called with each unit's report (progress bars).
    space : Workspace or None
        An open repository, with settings overridden for this time.
    settle : bool
        Try failed partitions again and then drop them here; False where a driver (`lap run`) decides that. Runs that a
        sensor requested leave it to the decision in any case.
    """

    def __init__(
        self,
        root: Path | None = None,
        tell: Callable[[UnitReport], None] = lambda report: None,
        space: Workspace | None = None,
        settle: bool = True,
    ) -> None:
        self.root = root
        self.tell = tell
        self.space = space
        self.settle = settle

    def define(self) -> dg.ResourceDefinition:
        """The resource as Dagster wants it: open, and alive for the ledger, as long as a run lasts."""

        @dg.resource(description="The repository: settings, store and ledger.")
        def open_repository(context: dg.InitResourceContext) -> Iterator[RunWork]:
            configure_process()
            space = self.space or Workspace.open(self.root)
            with keep_alive(space.ledger, find_owner(context.run), context.run.run_id):
                yield RunWork(self, space, context.run)

        return open_repository


class RunWork:
    """The work of one Dagster run."""

    def __init__(self, lap: LapResource, space: Workspace, run: dg.DagsterRun) -> None:
        self.lap, self.space, self.run = lap, space, run
        self.launched = LAUNCH_TAG in run.tags
        self.kind, self.reason = run.tags.get(KIND_TAG, MAKE), run.tags.get(REASON_TAG, "")
        self.owner = find_owner(run)

    def make(self, context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        """Make the partitions of this run of the one asset the context names."""
        (asset_key,) = context.selected_asset_keys
        product, collection = asset_key.path[-1], context.assets_def.metadata_by_key[asset_key]["collection"]
        self._check_claims(collection, product, context.partition_keys)
        survey = self.space.survey_around(collection, context.partition_keys)
        good, bad = [], []
        for report in self._work(survey, product, context.partition_keys):
            metadata = write_metadata(self.space.repo, report) | describe_runs(survey, product, report.partition)
            if self._find_kind(product) == RECREATE and report.state == DONE:
                metadata["state"] = dg.MetadataValue.text(RECREATED)
            context.log.info(f"{product} {report.partition}: {report.state} {report.reason}")
            for evaluation in evaluate_checks(asset_key, self.space.repo, report):
                context.log_event(evaluation)
            (good if report.state in ENDED else bad).append((report, metadata))
        if bad:
            for report, metadata in good:
                context.log_event(dg.AssetMaterialization(asset_key, partition=report.partition, metadata=metadata))
            raise dg.Failure(description=describe_failures([report for report, _ in bad]), allow_retries=False)
        for report, metadata in good:
            context.add_asset_metadata(metadata, asset_key=asset_key, partition_key=report.partition)
        yield dg.MaterializeResult(asset_key=asset_key)

    def _work(self, survey: Survey, product: str, keys: Sequence[str]) -> Iterator[PartitionReport]:
        """Reports of the partitions, whose claims are given back one by one; all end with a record."""
        left = list(keys)
        try:
            for report in self._choose_work(survey, product, keys):
                left.remove(report.partition)
                if self.launched:
                    release_claims(self.space.ledger, survey.collection, self.owner, [(product, report.partition)])
                yield report
        except Conflict:  # somebody else is at it: no fault of the partitions
            raise
        except Exception as error:  # a defect, or a disk or database gone: it must not be asked for again for ever
            if self.launched:
                record_lost(self.space.ledger, survey.collection, [(product, key) for key in left], repr(error))
            raise

    def _choose_work(self, survey: Survey, product: str, keys: Sequence[str]) -> Iterator[PartitionReport]:
        run_id, tell, kind = self.run.run_id, self.lap.tell, self._find_kind(product)
        if kind == DROP:
            return iter(drop_partitions(self.space, survey, product, [(key, self.reason) for key in keys], run_id))
        if kind == RECREATE:
            return recreate_partitions(self.space, survey, product, keys, run_id, tell)
        work = settle_partitions if self.lap.settle and not self.launched else work_partitions
        return work(self.space, survey, product, keys, run_id, tell)

    def _find_kind(self, product: str) -> str:
        """What is to be done to a product: the run's kind to its first one; what follows from that is made."""
        chosen = {key.path[-1] for key in self.run.asset_selection or ()}
        first = next((name for name in PRODUCTS if name in chosen), product)
        return self.kind if product == first else MAKE

    def _check_claims(self, collection: str, product: str, keys: Sequence[str]) -> None:
        """Refuse to work on partitions that were not requested of this run, or that somebody else has by now."""
        if not self.launched:
            return
        count = self.run.tags.get(COUNT_TAG)
        if str(len(keys)) != count:
            text = f"the partition sets grew: {len(keys)} partitions of {product} instead of {count}"
            raise dg.Failure(f"{text}; what is to be done is decided anew", allow_retries=False)
        # they may have expired while the daemon was away
        if not renew_claims(self.space.ledger, collection, self.owner, [(product, key) for key in keys]):
            text = f"another run has partitions of {product} that {self.owner} had claimed: it waited for too long"
            raise dg.Failure(f"{text}; what is to be done is decided anew", allow_retries=False)


def describe_failures(reports: list[PartitionReport]) -> str:
    """One line per failed partition: what, where, why, and how to go on."""
    lines = [f"{r.product} {r.partition}: {r.state}: {r.reason or '; '.join(r.reasons.values())}" for r in reports]
    return "\n".join([*lines[:20], "see `lap log DATAID` for a unit's log; `lap run` tries again what may be cured"])
