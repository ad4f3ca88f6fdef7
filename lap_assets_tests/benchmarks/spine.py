"""Benchmarks of the spine: the demo from raw frames to the mass map, start-up times, and five other seeds."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lap_assets_tests.benchmarks.results import Row

LAP = [sys.executable, "-c", "from lap_assets.cli import main; main()"]
SEEDS = (2, 3, 4, 5, 6)
FIGURES = (
    ("astrometry_rms_mas", "mas", "<= 10"),
    ("photometry_rms_mmag", "mmag", "<= 15"),
    ("stack_depth_ratio", "", ">= 0.9"),
    ("transients_found", "", ">= 8"),
    ("transients_false", "", "<= 5"),
    ("massmap_peak_snr", "sigma", ">= 5"),
    ("massmap_offset_arcmin", "arcmin", "<= 1.5"),
    ("massmap_b_rms", "sigma", "<= 1.3"),
    ("mass_ratio", "", ""),
    ("mass_deviation_sigma", "sigma", ""),
    ("wall_s", "s", "<= 300"),
    ("peak_rss_mb", "MB", "<= 3072"),
)


def run_demo(folder: Path, seed: int, size: str = "demo") -> dict:
    """Run `lap demo` in a process of its own; its report."""
    out = folder / f"report-{seed}.json"
    command = [
        *LAP,
        "demo",
        "--dir",
        str(folder / f"seed{seed}"),
        "--seed",
        str(seed),
        "--size",
        size,
        "--json",
        str(out),
    ]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text()) if out.exists() else {}


def rows_of(report: dict, prefix: str, command: str) -> list[Row]:
    """The figures of a demo report as rows."""
    rows = [Row(f"{prefix}.{name}", report.get(name), unit, target, "truth", command) for name, unit, target in FIGURES]
    deviation = report.get("mass_deviation_sigma")
    return [
        *rows,
        Row(
            f"{prefix}.mass_within_sigma",
            None if deviation is None else abs(deviation),
            "sigma",
            "<= 2",
            "truth",
            command,
        ),
    ]


def bench_demo() -> list[Row]:
    """The demo survey, seed 1, simulation included."""
    with tempfile.TemporaryDirectory() as folder:
        return rows_of(run_demo(Path(folder), 1), "spine.demo", "make bench ONLY=spine.demo")


def bench_seeds() -> list[Row]:
    """The demo survey of five other seeds: the figures are not those of one lucky draw."""
    rows = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            rows += rows_of(run_demo(Path(folder), seed), f"spine.seed{seed}", "make bench ONLY=spine.seeds")
    return rows


def time_command(command: list[str], repeat: int = 5) -> float:
    """Median wall seconds of a command, after one warm-up."""
    seconds = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def bench_help() -> list[Row]:
    """`lap --help`, a process of its own."""
    seconds = time_command([*LAP, "--help"])
    return [Row("spine.help", seconds, "s", "<= 0.5", "", "make bench ONLY=spine.help")]


def bench_definitions() -> list[Row]:
    """Loading the demo's definitions, beyond `import dagster`."""
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder), 1, "tiny")
        root = next(Path(folder).glob("*/survey"))
        code = (
            "import dagster, time; t = time.perf_counter(); from pathlib import Path; "
            "from lap_assets.definitions import build_defs; "
            f"build_defs(Path({str(root)!r})).resolve_all_job_defs(); print(time.perf_counter() - t)"
        )
        command = [sys.executable, "-c", code]
        outputs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(4)]
    seconds = statistics.median(float(output.split()[-1]) for output in outputs[1:])
    return [Row("spine.definitions", seconds, "s", "<= 1.5", "", "make bench ONLY=spine.definitions")]


BENCHMARKS = {
    "spine.help": bench_help,
    "spine.definitions": bench_definitions,
    "spine.demo": bench_demo,
    "spine.seeds": bench_seeds,
}
