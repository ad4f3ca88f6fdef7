"""What one process takes on a large repository: `python -m lap_assets_tests.benchmarks.lap_process ROOT`.

Does what a code server does, without launching: loads the definitions, then ticks. Prints its figures as JSON.
"""

import json
import sys
import time
from pathlib import Path

import dagster as dg

from lap_assets_tests.benchmarks.lap_scale import time_call
from lap_assets_tests.memory import read_peak_mib


def measure_process(root: Path) -> dict[str, float]:
    """Seconds of loading, deciding and ticking, and the peak memory of the process in MiB."""
    start = time.perf_counter()
    from lap_assets.definitions import build_defs

    build_defs(root).resolve_all_job_defs()
    figures = {"definitions": time.perf_counter() - start}
    figures |= measure_ticks(root)
    figures["memory"] = read_peak_mib()
    return figures


def measure_ticks(root: Path, collection: str = "main") -> dict[str, float]:
    """Seconds of a decision about all that is open, and of a tick of each mode once the ledger is at rest."""
    from lap_assets.lap.decide import decide
    from lap_assets.model.decisions import MODES, MONITOR_MODE
    from lap_assets.operations.drive import advance, take_snapshot
    from lap_assets.operations.workspace import Workspace

    space = Workspace.open(root)
    start = time.perf_counter()
    advance(space, collection, [MONITOR_MODE])
    figures = {"first_tick": time.perf_counter() - start}
    advance(space, collection)
    for mode in MODES:
        figures[f"tick_{mode}"] = time_call(lambda mode=mode: advance(space, collection, [mode]))
    snapshot = take_snapshot(space, collection)
    figures["decide"] = time_call(lambda: decide(snapshot))
    figures["snapshot"] = time_call(lambda: take_snapshot(space, collection))
    figures["sensor"] = measure_sensor(root, MONITOR_MODE)
    space.ledger.close()
    return figures


def measure_sensor(root: Path, mode: str) -> float:
    """Seconds of a whole tick of a sensor: the status of all runs, claims, and requests of Dagster runs."""
    from lap_assets.defs.jobs import load_collection
    from lap_assets.defs.sensors import Sensors
    from lap_assets.operations.workspace import Workspace

    loaded = load_collection(Workspace.open(root).ledger.survey(lean=True))
    evaluate = Sensors([loaded], lambda: Workspace.open(root)).follow(mode)
    with dg.DagsterInstance.ephemeral() as instance:
        start = time.perf_counter()
        evaluate(dg.build_sensor_context(instance))
        return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(measure_process(Path(sys.argv[1]))))
