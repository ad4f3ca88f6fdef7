"""A real `lap ui` for the benchmarks: how long a reload takes, and how soon its sensors launch what can be made."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import sqlalchemy as sa

from lap_assets.defs.run import open_instance
from lap_assets.ledger.tables import partition
from lap_assets.model.products import PRODUCTS
from lap_assets.model.survey import PartitionRef
from lap_assets.operations.webserver import reload_definitions
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.benchmarks.lap_scale import time_call
from lap_assets_tests.defs.surveys import ingest_small, simulate_small
from lap_assets_tests.ui.servers import Server, find_free_port, serve

LAP = [sys.executable, "-c", "from lap_assets.cli import main; main()"]
SETTLED_SECONDS = 900.0
RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@contextmanager
def serve_repository(root: Path) -> Iterator[Server]:
    """`lap ui` of a repository, its log beside it."""
    port = find_free_port()
    with serve([*LAP, "--repo", str(root), "ui", "--port", str(port)], root, port, root / "ui.log") as server:
        yield server


def measure_reload(root: Path, retire: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of a reload of the code location, before and after runs are retired."""
    with serve_repository(root):
        before = time_call(lambda: reload_or_fail(root), 3)
        retire()
        reload_or_fail(root)
        return before, time_call(lambda: reload_or_fail(root), 3)


def reload_or_fail(root: Path) -> None:
    """Reload; raises where the webserver did not."""
    if not reload_definitions(root, SETTLED_SECONDS):
        raise RuntimeError(f"the webserver of {root} did not load the definitions again: see {root / 'ui.log'}")


def measure_latency(folder: Path) -> dict[str, float]:
    """Seconds, by product, from the record of the last of what is upstream to the start of its Dagster run.

    A survey of one cell and one band, where every level waits for the one before; nothing is done by hand.
    """
    root = ingest_small(folder / "repository", simulate_small(folder / "sim"), executor="processes").root
    with (root / "lap.yaml").open("a") as stream:
        stream.write("lap: {keep_hours: 24.0}\n")  # a cleaned partition is recorded once more
    space = Workspace.open(root)
    with serve_repository(root):
        end = time.monotonic() + SETTLED_SECONDS
        while not all(run.settled for run in space.ledger.runs()):
            if time.monotonic() > end:
                raise RuntimeError(f"not settled in {SETTLED_SECONDS:.0f} s: see {root / 'ui.log'}")
            time.sleep(1.0)
    with open_instance(root) as instance:
        return dict(find_latencies(space, instance))


def find_latencies(space: Workspace, instance: dg.DagsterInstance) -> Iterator[tuple[str, float]]:
    """(first product, seconds) of every run that a sensor requested, the slowest of each product."""
    survey, recorded = space.survey(), read_times(space)
    found: dict[str, float] = {}
    for record in instance.get_run_records():
        run = record.dagster_run
        names = [name for name in PRODUCTS if any(key.path[-1] == name for key in run.asset_selection or ())]
        if not names or record.start_time is None:
            continue
        keys = survey.partitions(names[0])
        first, last = (keys.index(run.tags[tag]) for tag in RANGE)
        upstream = {up for key in keys[first : last + 1] for up in survey.upstream(names[0], key)}
        ended = [recorded[up] for up in upstream if up in recorded]
        if ended:
            found[names[0]] = max(found.get(names[0], 0.0), record.start_time - max(ended))
    return ((name, found[name]) for name in PRODUCTS if name in found)


def read_times(space: Workspace) -> dict[PartitionRef, float]:
    """When each partition was recorded, seconds since 1970."""
    with space.ledger._database.reading() as connection:
        rows = connection.execute(sa.select(partition.c.product, partition.c.partition, partition.c.updated))
        return {(product, key): updated for product, key, updated in rows}
