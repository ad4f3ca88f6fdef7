"""The job that carries out what cleanup mode asks for, and how each cleaned partition is marked in Dagster.

An observation with state `cleaned` and a failed check `files_on_disk` that only warns: the partition stays green, made,
and without files. Never a materialization, which would say that it is there.
"""

import dagster as dg

from lap_assets.defs.instance import describe_gone
from lap_assets.defs.launch import COLLECTION_TAG
from lap_assets.model.states import CLEANED
from lap_assets.operations.clean import CleanedPartition, clean_collection

NAME = "clean"


@dg.op(required_resource_keys={"lap"})
def clean_intermediates(context: dg.OpExecutionContext) -> None:
    """Remove the files of intermediate products that nothing needs any more."""
    work = context.resources.lap
    chosen = context.run.tags.get(COLLECTION_TAG)
    for collection in (chosen,) if chosen else work.space.collections():

        def tell(one: CleanedPartition, collection: str = collection) -> None:
            for event in describe_gone(collection, one.product, one.partition, CLEANED, one.reason):
                context.log_event(event)

        report = clean_collection(work.space, collection, tell, work.owner)
        context.log.info(
            f"{collection}: {len(report.partitions)} partitions cleaned, {report.bytes} bytes; "
            f"{report.free_bytes} bytes free"
        )
        for what, reason in sorted(report.kept.items()):
            context.log.debug(f"{collection}: {what} stays: {reason}")


@dg.job(name=NAME, description="Remove intermediate products that nothing needs any more.")
def clean_job() -> None:
    """One op, in the process of its run."""
    clean_intermediates()
