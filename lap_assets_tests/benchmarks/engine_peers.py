"""SWarp as `../shared/bench/run_peers.sh` runs it, and how our work and a peer's process are timed alike.

What the figures are compared with is the benchmarks'; peers that are not installed are `exposures.recall_peer`'s.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lap_assets_tests.benchmarks.exposures import CHIPS, EXPOSURES, find_data, recall_peer

OPTIONS = (
    "-c /dev/null -CENTER_TYPE MANUAL -CENTER 150.0,2.2 -PIXELSCALE_TYPE MANUAL -PIXEL_SCALE 0.26 "
    "-IMAGE_SIZE 6000,6000 -PROJECTION_TYPE TAN -CELESTIAL_TYPE NATIVE -WEIGHT_TYPE MAP_WEIGHT "
    "-WEIGHT_SUFFIX .weight.fits -RESAMPLING_TYPE LANCZOS3 -FSCALE_KEYWORD NONE -FSCALASTRO_TYPE VARIABLE "
    "-GAIN_KEYWORD GAIN -OVERSAMPLING 1 -WRITE_XML N -VERBOSE_TYPE QUIET -MEM_MAX 4000 -COMBINE_BUFSIZE 4000 "
    "-HEADER_SUFFIX .head"
)
CLIPPED = "-COMBINE_TYPE CLIPPED -CLIP_AMPFRAC 1.0 -CLIP_SIGMA 4"


@dataclass(frozen=True)
class Seconds:
    """What something took, and of which session."""

    cpu: float
    wall: float
    source: str = "this session"
    user: float | None = None  # of the CPU seconds; the rest is the system's


def time_work(work: Callable[[], object], before: Callable[[], object] = lambda: None, repeat: int = 3) -> Seconds:
    """Least seconds of a call in this process, after a warm-up; what comes `before` each is not counted."""
    taken = []
    for _ in range(repeat + 1):
        before()
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        taken.append((time.process_time() - cpu, time.perf_counter() - wall))
    return Seconds(*(min(column) for column in zip(*taken[1:], strict=True)))


def time_swarp(arguments: str, files: Sequence[Path], repeat: int = 3, warm_up: bool = True) -> Seconds:
    """Least seconds of SWarp's process on some files, after a warm-up.

    It is held to as many cores as it has threads, as `run_peers.sh` does: free to move, the one thread's combination
    takes three times the CPU seconds, nearly all of them the system's.
    """
    work = find_work()
    threads = int(arguments.split()[arguments.split().index("-NTHREADS") + 1])
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    command = [
        "taskset",
        "-c",
        cores,
        "SWarp",
        *map(str, files),
        *f"{OPTIONS} -VMEM_DIR {work} -RESAMPLE_DIR {work} {arguments}".split(),
    ]
    taken = []
    for _ in range(repeat + warm_up):
        wall = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        taken.append((usage.ru_utime + usage.ru_stime, time.perf_counter() - wall, usage.ru_utime))
        if status:
            raise RuntimeError(f"SWarp failed ({status}): {' '.join(command[-20:])}")
    cpu, wall, user = (min(column) for column in zip(*taken[warm_up:], strict=True))
    return Seconds(cpu, wall, "SWarp, this session", user)


def has_swarp() -> bool:
    return shutil.which("SWarp") is not None


def recall_swarp(what: str, share: float = 1.0) -> Seconds:
    """What SWarp took on another machine, carried over by the yardstick."""
    seconds = share * recall_peer(f"swarp 2.41.5 {what}")
    return Seconds(seconds, seconds, "SWarp, recorded")


@cache
def find_work() -> Path:
    """Where SWarp leaves its files."""
    folder = find_data() / "work" / "engine"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def list_chips(exposure: int) -> list[Path]:
    """The detrended files of an exposure."""
    return [find_data() / "cal" / f"e{exposure}_c{chip}.fits" for chip in CHIPS]


def list_all_chips() -> list[Path]:
    return [path for exposure in EXPOSURES for path in list_chips(exposure)]


@cache
def time_resampling() -> Seconds:
    """Seconds of SWarp per CCD within a call on eight, one thread; the files stay."""
    if not has_swarp():
        return recall_swarp("resample, 8 CCDs, 1 thread", 1.0 / len(CHIPS))
    taken = time_swarp("-COMBINE N -SUBTRACT_BACK N -NTHREADS 1", list_chips(0), repeat=2)
    return Seconds(taken.cpu / len(CHIPS), taken.wall / len(CHIPS), taken.source)


@cache
def combine_clipped() -> tuple[Seconds, Path | None]:
    """SWarp's CLIPPED combination of 48 resampled, background-subtracted CCDs on one thread, and its image."""
    if not has_swarp():
        return recall_swarp("combine CLIPPED 48 -> 6000x6000, 1 thread"), None
    image = find_work() / "clipped.fits"
    time_swarp("-COMBINE N -SUBTRACT_BACK Y -NTHREADS 2", list_all_chips(), repeat=1, warm_up=False)
    resampled = [find_work() / f"{path.stem}.resamp.fits" for path in list_all_chips()]
    output = f"-IMAGEOUT_NAME {image} -WEIGHTOUT_NAME {image.with_suffix('.weight.fits')}"
    combine = f"-SUBTRACT_BACK N -RESAMPLE N -COMBINE Y {CLIPPED} -NTHREADS 1 {output}"
    taken = time_swarp(combine, resampled, repeat=1)
    for path in find_work().glob("e?_c?.resamp*.fits"):
        path.unlink()  # 3 GB
    return taken, image


@cache
def time_everything() -> Seconds:
    """SWarp from 48 detrended CCDs to the stack, background taken off, CLIPPED, on two threads: one run."""
    if not has_swarp():
        return recall_swarp("everything, 48 CCDs with background and CLIPPED, 2 threads (one run; an earlier one 77.2)")
    image = find_work() / "everything.fits"
    output = f"-IMAGEOUT_NAME {image} -WEIGHTOUT_NAME {image.with_suffix('.weight.fits')}"
    taken = time_swarp(
        f"-SUBTRACT_BACK Y {CLIPPED} -DELETE_TMPFILES Y -NTHREADS 2 {output}", list_all_chips(), 1, warm_up=False
    )
    image.unlink()
    return taken
