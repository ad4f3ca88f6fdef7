"""A process of its own that makes warps and stacks of the benchmark exposures, for peak memory and whole wall times.

`python -m lap_assets_tests.benchmarks.engine_process products ROOT COLLECTION CELL WORKERS PRODUCT...` makes what is
missing of the products in the repository ROOT, serial (WORKERS 0) or on so many processes; `... survey ROOT` does what
`lap run` does. Both print what it took as JSON.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from lap_assets.pipeline.compute import configure_process, prepare_executor
from lap_assets.settings import ComputeSettings
from lap_assets_tests.memory import read_peak_mib


def run_process(action: str, root: Path, *arguments: str) -> dict:
    """What a process of its own says of an action, and its wall seconds from start to end."""
    command = [sys.executable, "-m", "lap_assets_tests.benchmarks.engine_process", action, str(root), *arguments]
    environment = os.environ | {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
    start = time.perf_counter()
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(told.splitlines()[-1]) | {"whole": time.perf_counter() - start}


def make_products(root: Path, collection: str, cell: str, workers: str, *products: str) -> dict:
    """Wall seconds of each product and peak memory of this process, MiB."""
    if int(workers):
        prepare_executor(ComputeSettings(executor="processes", workers=int(workers)))  # as `lap run` does
    from lap_assets_tests.benchmarks import engine_data

    session = engine_data.open_session(root, collection, int(workers))
    wall = {}
    for product in products:
        partitions = [one for one in session.survey.partitions(product) if cell in one.split("|")]
        start = time.perf_counter()
        engine_data.make(session, product, partitions)
        wall[product] = time.perf_counter() - start
    return {"wall": wall, "peak_mib": read_peak_mib()}


def run_survey(root: Path) -> dict:
    """Wall and CPU seconds of `lap run` up to the final stacks, what comes before the warps looked at beforehand."""
    from lap_assets.operations.drive import run_survey as run
    from lap_assets.operations.workspace import Workspace

    space = Workspace.open(root)

    def carry_out(to: str) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        summary = run(space, "main", [], to, "tiles", lambda report: None, lambda product, partitions: None)
        if summary.failures or summary.waiting or set(summary.units) - {"done", "no_work"}:
            raise RuntimeError(f"{summary}")
        return time.perf_counter() - wall, time.process_time() - cpu

    carry_out("joint_solutions")
    wall, cpu = carry_out("final_stacks")
    return {"wall": wall, "cpu": cpu}


ACTIONS = {"products": make_products, "survey": run_survey}

if __name__ == "__main__":
    configure_process()
    print(json.dumps(ACTIONS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])))
