"""The one resource assets need: a repository to work in, and how its work is told to Dagster.

`LapResource.make` is what every asset body calls. It does the partitions of the run, turns each report into metadata
and check evaluations, and fails the run only for faults that a retry may cure, after the good partitions are recorded.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg

from lap_assets.defs.reports import evaluate_checks, write_metadata
from lap_assets.model.states import RESULTS
from lap_assets.operations.work import settle_partitions, work_partitions
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.compute import configure_process
from lap_assets.pipeline.engine import PartitionReport
from lap_assets.pipeline.task import UnitReport


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
        Try failed partitions again and then drop them here; False where a driver (`lap run`) decides that.
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
        self.work = settle_partitions if settle else work_partitions

    def make(self, context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        """Make the partitions of this run of the one asset the context names."""
        configure_process()
        (asset_key,) = context.selected_asset_keys
        product, collection = asset_key.path[-1], context.assets_def.metadata_by_key[asset_key]["collection"]
        space = self.space or Workspace.open(self.root)
        survey = space.survey(collection)
        good, bad = [], []
        for report in self.work(space, survey, product, context.partition_keys, context.run.run_id, self.tell):
            metadata = write_metadata(space.repo, report)
            context.log.info(f"{product} {report.partition}: {report.state} {report.reason}")
            for evaluation in evaluate_checks(asset_key, space.repo, report):
                context.log_event(evaluation)
            (good if report.state in RESULTS else bad).append((report, metadata))
        if bad:
            for report, metadata in good:
                context.log_event(dg.AssetMaterialization(asset_key, partition=report.partition, metadata=metadata))
            raise dg.Failure(description=describe_failures([report for report, _ in bad]), allow_retries=False)
        for report, metadata in good:
            context.add_asset_metadata(metadata, asset_key=asset_key, partition_key=report.partition)
        yield dg.MaterializeResult(asset_key=asset_key)


def describe_failures(reports: list[PartitionReport]) -> str:
    """One line per failed partition: what, where, why, and how to go on."""
    lines = [f"{r.product} {r.partition}: {r.state}: {r.reason or '; '.join(r.reasons.values())}" for r in reports]
    return "\n".join([*lines[:20], "see `lap log DATAID` for a unit's log; `lap run` tries again what may be cured"])
