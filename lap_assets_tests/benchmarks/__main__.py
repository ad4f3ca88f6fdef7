"""Runs the benchmarks: `python -m lap_assets_tests.benchmarks [--only NAME] [--list]`.

NAME is the beginning of a benchmark's name (`spine`, `spine.demo`).
"""

import argparse
import sys

from lap_assets.pipeline.compute import configure_process
from lap_assets_tests.benchmarks import (
    astrometry,
    engine_decam,
    engine_diff,
    engine_spread,
    engine_stack,
    engine_warp,
    exposures,
    lap,
    masters,
    spine,
)
from lap_assets_tests.benchmarks.results import print_rows, write_rows

BENCHMARKS = {
    **spine.BENCHMARKS,
    **lap.BENCHMARKS,
    **masters.BENCHMARKS,
    **exposures.BENCHMARKS,
    **astrometry.BENCHMARKS,
    **engine_warp.BENCHMARKS,
    **engine_stack.BENCHMARKS,
    **engine_diff.BENCHMARKS,
    **engine_decam.BENCHMARKS,
    **engine_spread.BENCHMARKS,
}


def main() -> int:
    configure_process()  # one BLAS thread, as everywhere
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default="", help="run only benchmarks whose name begins so")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    options = parser.parse_args()
    chosen = {name: run for name, run in BENCHMARKS.items() if name.startswith(options.only)}
    if options.list or not chosen:
        print("\n".join(BENCHMARKS))
        return 0 if options.list else 2
    missed = 0
    for name, run in chosen.items():
        print(f"== {name}: {run.__doc__.splitlines()[0]}", flush=True)
        rows = run()
        write_rows(rows)
        print_rows(rows)
        missed += sum(row.holds is False for row in rows)
    print(f"{missed} targets missed")
    return 0


sys.exit(main())
