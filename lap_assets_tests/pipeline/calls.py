"""Functions that tests have workers call: where they ran, how many at once, and some that do not come back."""

import os
import resource
import signal
import time
from pathlib import Path

import numpy as np

from lap_assets.pipeline.compute import prepare_memory, read_peak_gib
from lap_assets.pipeline.kernel_folder import count_compiled
from lap_assets.store.plane_passes import measure_plane


def count_at_once(folder: Path, seconds: float = 0.15) -> int:
    """How many calls are running at the end of this one, itself included."""
    mark = folder / str(time.perf_counter_ns())
    mark.touch()
    time.sleep(seconds)
    running = len(list(folder.iterdir()))
    mark.unlink()
    return running


def tell_process() -> tuple[int, str]:
    """Number of this process, and how many threads BLAS has here."""
    return os.getpid(), os.environ.get("OMP_NUM_THREADS", "")


def hold_memory(mib: int) -> None:
    """Hold so much memory for a moment."""
    held = bytearray(mib << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])


def fill_arrays(product: str, mib: int) -> list[int]:
    """Memory when a unit of a product begins [MiB], then the page faults of each of three arrays made one by one."""
    prepare_memory(product)
    told = [int(read_peak_gib() * 1024)]
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(mib << 17)
        told.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return told


def forget_peak() -> None:
    """What the engine does before each unit."""
    prepare_memory()


def compile_kernel() -> int:
    """Call one compiled kernel; how many this process had to compile so far."""
    assert measure_plane(np.full((2, 2), np.nan, np.float32))[1] == 4
    return count_compiled()


def die_once(mark: Path) -> str:
    """Kill this process unless that was done before."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "made"


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    """Raise what no executor makes."""
    raise ValueError("a defect")
