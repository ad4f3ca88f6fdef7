"""Building masters from 50 frames of 2k×4k: seconds of one core and peak memory of a fresh process, by kind and format.

`python -m lap_assets_tests.benchmarks.masters ROOT KEY` makes the masters of one set there and prints its figures.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lap_assets_tests.benchmarks.results import Row
from lap_assets_tests.memory import read_peak_mib

N_FRAMES, NY, NX, OVERSCAN = 50, 4096, 2048, 32
LIMIT_MIB = 1024
HOME = Path(__file__).parents[2]
SETS = {"bias": "cal|bias|all|2024-01-01", "flat": "cal|flat|r|2024-01-01"}


def write_world(root: Path, compressed: bool, n_frames: int = N_FRAMES, ny: int = NY, nx: int = NX) -> None:
    """Bias and flat frames of one chip on disk, and the survey that names them.

    Noise is drawn once and shifted from frame to frame: what is measured does not depend on it.
    """
    from lap_assets_tests.pipeline.calibration_worlds import World

    world = World(root, ny, nx, ("c0",), compressed=compressed, overscan=OVERSCAN)
    rng = np.random.default_rng(5)
    noise = rng.normal(0.0, 4.0, (ny, nx + 2 * OVERSCAN)).astype(np.float32)
    for kind, band, light in (("bias", "all", 0.0), ("flat", "r", 16000.0)):
        files = []
        for k in range(n_frames):
            raw = np.roll(noise, (37 * k, 0), (0, 1)) + 1000.0 + 2.0 * np.sin(np.arange(ny) / 300.0 + k)[:, None]
            shot = np.sqrt(light / 1.5) / 4.0 * np.roll(noise, (91 * k + 5, OVERSCAN), (0, 1))
            raw[:, OVERSCAN:-OVERSCAN] += (light + shot)[:, OVERSCAN:-OVERSCAN] if light else 0.0
            files += world.write({"c0": np.rint(raw).astype(np.uint16)}, 5.0).values()
        world.add_set(kind, files, band)
    sets = [asdict(one) for one in world.survey.calibrations.values()]
    (root / "sets.json").write_text(json.dumps(sets))


def make_master(root: Path, key: str) -> dict[str, float]:
    """Plan, make and publish the masters of a set; CPU seconds and peak memory of this process so far, MiB."""
    from lap_assets.model.survey import CalibrationSet, ChipFile, Survey
    from lap_assets.pipeline import calibrations
    from lap_assets.settings import Settings
    from lap_assets.store.repo import Repo

    sets = [
        CalibrationSet(**{**one, "frames": tuple(ChipFile(**frame) for frame in one["frames"])})
        for one in json.loads((root / "sets.json").read_text())
    ]
    survey, repo = Survey("main", calibrations={one.key: one for one in sets}), Repo(root / "repo")
    suffix = {"bias": "biases", "flat": "flats"}[key.split("|")[1]]
    start = time.process_time()
    for task in getattr(calibrations, f"plan_{suffix}")(survey, repo, Settings(), "calib", key):
        output = getattr(calibrations, f"make_{suffix}")(task, repo)
        repo.publish(task.data_id, output.members, inputs=task.inputs, recipe="r", config_sha256="c", code=1,
                     metrics=output.metrics)  # fmt: skip
    used = time.process_time() - start
    return {"cpu_s": used, "peak_mib": read_peak_mib()}


def run_fresh(root: Path, key: str, rounds: int = 3) -> dict[str, float]:
    """`make_master` in processes of their own: the best CPU time, the largest memory."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lap_assets_tests.benchmarks.masters", str(root), key]
    figures = []
    for _ in range(rounds):
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=HOME)
        figures.append(json.loads(done.stdout))
    return {
        "cpu_s": min(one["cpu_s"] for one in figures),
        "peak_mib": max(one["peak_mib"] for one in figures),
    }


def run_masters() -> list[Row]:
    """Master bias and flat of one chip from 50 frames of 2112×4096, plain and Rice-compressed."""
    command, rows = "make bench ONLY=masters", []
    for name, compressed in (("plain", False), ("rice", True)):
        with tempfile.TemporaryDirectory(prefix="lap-masters-") as folder:
            write_world(Path(folder) / "world", compressed)
            for kind, key in SETS.items():
                found = run_fresh(Path(folder) / "world", key)
                rows.append(Row(f"masters.{kind}.{name}.cpu", found["cpu_s"], "s", "", "", command))
                limit = f"<= {LIMIT_MIB}"
                rows.append(Row(f"masters.{kind}.{name}.memory", found["peak_mib"], "MiB", limit, "", command))
    return rows


BENCHMARKS = {"masters": run_masters}


if __name__ == "__main__":
    print(json.dumps(make_master(Path(sys.argv[1]), sys.argv[2])))
