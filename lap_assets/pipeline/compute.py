"""How work is spread: one `concurrent.futures.Executor` at a time for all stages, and the process set-up it needs.

`serial` runs in this process; `processes` keeps one pool of workers, forked from a server that has the heavy modules
loaded already, and replaces those that compiled much; `dask` has its own module, `cluster.py`. Results never depend on
which one is used. BLAS runs one thread everywhere, serial included, so that sums have one order. What a unit of a stage
takes, and how many fit, is told here.
"""

import ctypes
import logging
import multiprocessing
import multiprocessing.forkserver
import os
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from threadpoolctl import threadpool_limits

from lap_assets.errors import BadInput
from lap_assets.pipeline.kernel_folder import prepare_kernel_folder
from lap_assets.pipeline.stages import STAGES
from lap_assets.settings import ComputeSettings

GIB = 1 << 30
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
BROKEN = (BrokenProcessPool, CancelledError)  # what an executor raises that is of no use any more
LIMIT_FILES = ("memory.max", "memory.limit_in_bytes")  # of control groups, version 2 and 1
PRELOAD = ["lap_assets.pipeline.preload"]
# for glibc's mallopt: one arena for all threads, no mapping of its own for a large array, nothing given back below
# 2 GiB. Else the system clears the pages of every array anew: for a warp of eight chips in 0.4 to 1.2 s, not in 0.25 s
KEEP_FREED = ((-8, 1), (-4, 0), (-1, 2**31 - 1))
RENEW_AFTER = 20  # kernels a worker compiled (60 MB for 11 to 16); a new worker has to load those it needs; not tuned


class SerialExecutor(Executor):
    """Runs each call at once, in this process."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # an executor hands every failure to whoever asks for the result
            future.set_exception(error)
        return future


_pools: dict[int, ProcessPoolExecutor] = {}
_last_unit = {"product": ""}  # of this process


def configure_process() -> None:
    """One BLAS thread, and a folder of compiled kernels that an edit of any of them replaces as a whole.

    Called before numpy's heavy users are imported wherever a process starts (the command line, a Dagster run); workers
    inherit the environment. Numba does not see an edited callee in another module (measured: stale results).
    """
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
    prepare_kernel_folder()
    threadpool_limits(1)
    logging.raiseExceptions = False  # a log that cannot be written (disk full) must not bury the work's own error


def count_workers(settings: ComputeSettings) -> int:
    """Number of worker processes: as set, or one per usable core."""
    return settings.workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Needs:
    """What one unit of a stage takes while it is made."""

    memory_gib: float
    cores: int


def find_needs(settings: ComputeSettings, product: str) -> Needs:
    """What a unit of a product takes: as the settings say, else as the table of stages declares it."""
    given = settings.resources.get(product)
    declared = STAGES[product].memory_gib
    return Needs(declared, 1) if given is None else Needs(given.memory_gib or declared, given.cores)


def find_memory_gib(
    settings: ComputeSettings, own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> float:
    """Memory that units made at once may take together: as set, else the machine's or the control group's, GiB.

    Parameters
    ----------
    own : Path
        Which control groups this process is in, and
    groups : Path
        where their limits are told, by Linux.
    """
    if settings.memory_gib:
        return settings.memory_gib
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, kinds, place = line.split(":", 2)
        if kinds in ("", "memory"):
            base = groups / kinds
            folder = base / place.lstrip("/")
            above = [parent for parent in folder.parents if parent.is_relative_to(base)]
            for path in (here / name for here in (folder, *above) for name in LIMIT_FILES):
                text = path.read_text().strip() if path.is_file() else ""
                limits += [int(text)] if text.isdigit() else []  # "max" where there is none
    return min(limits) / GIB


def count_slots(settings: ComputeSettings, product: str) -> int | None:
    """How many units of a product are made at once here, within memory and cores; None where a cluster decides that."""
    if settings.executor == "dask":
        return None
    if settings.executor == "serial":
        return 1
    needs, workers = find_needs(settings, product), count_workers(settings)
    return max(1, min(workers // needs.cores, int(find_memory_gib(settings) / needs.memory_gib)))


def count_ahead(settings: ComputeSettings, product: str) -> int | None:
    """How many units are handed over at once: where every worker may work, one more for each, so that none waits."""
    slots = count_slots(settings, product)
    full = settings.executor == "processes" and slots == count_workers(settings)
    return 2 * slots if full and slots else slots


def get_executor(settings: ComputeSettings, product: str = "", root: Path | None = None) -> Executor:
    """The executor the settings ask for; the process pool, or the connection to a cluster, is made once and reused.

    Parameters
    ----------
    product : str
        Whose units are to be made, and
    root : Path or None
        in which repository; a cluster needs to know both.

    Raises
    ------
    BadInput
        The cluster cannot be had, or its workers cannot make such units; the text says what to do.
    """
    if settings.executor == "serial":
        return SerialExecutor()
    if settings.executor == "dask":
        return _load_cluster().open_executor(settings, find_needs(settings, product), root)
    workers = count_workers(settings)
    if workers not in _pools:
        prepare_executor(settings)
        context = multiprocessing.get_context("forkserver")
        _pools[workers] = ProcessPoolExecutor(workers, mp_context=context, initializer=configure_process)
    return _pools[workers]


def prepare_executor(settings: ComputeSettings) -> None:
    """Have the server that workers are forked from load its modules (seconds) while this process loads its own.

    Called after `configure_process`, once it is clear that units will be made.
    """
    if settings.executor == "processes":
        multiprocessing.set_forkserver_preload(PRELOAD)
        multiprocessing.forkserver.ensure_running()


def _load_cluster():
    try:
        from lap_assets.pipeline import cluster
    except ImportError as error:
        raise BadInput(
            f"compute.executor dask needs packages that are not here ({error.name}): pip install 'lap-assets[cluster]'"
        ) from error
    return cluster


def discard_executor(executor: Executor) -> None:
    """Forget an executor that lost a worker; the next `get_executor` makes a fresh one. Others are left alone."""
    for workers, pool in list(_pools.items()):
        if pool is executor:
            del _pools[workers]
            # a worker that was being started while the pool broke is not told to end (CPython 3.11), but waited for
            begun = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in begun:
                process.kill()
    if isinstance(executor, SerialExecutor | ProcessPoolExecutor):
        return
    _load_cluster().discard(executor)


def renew_executor(settings: ComputeSettings) -> None:
    """End the workers, once they have nothing to do; the next `get_executor` starts others. Processes only.

    For workers that had to compile `RENEW_AFTER` kernels: what that took, up to 400 MiB in the end, is never given
    back otherwise.
    """
    pool = _pools.pop(count_workers(settings), None) if settings.executor == "processes" else None
    if pool is not None:
        pool.shutdown()


def describe_loss(error: BaseException) -> str:
    """Why a call was lost together with its worker, in one line; an empty text for any other failure."""
    if isinstance(error, BROKEN):
        return "the worker process was lost (killed, or out of memory); it will be tried again"
    if type(error).__module__.partition(".")[0] != "distributed":
        return ""
    workers = getattr(error, "allowed_failures", None)
    if workers is None:
        return f"the cluster lost it ({type(error).__name__}); it will be tried again"
    many = "a worker was" if workers == 0 else f"{workers + 1} workers were"
    return f"{many} lost while making it (killed, or out of memory); it will be tried again"


def prepare_memory(product: str = "") -> None:
    """Before a unit is made: keep what units of its product left (`KEEP_FREED`), give back what those of others did.

    The peak of a worker's memory begins anew, where Linux allows it; that of a main process is everybody's.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and (not product or product != _last_unit["product"]):
        for option, value in KEEP_FREED:
            libc.mallopt(option, value)
        libc.malloc_trim(0)
    _last_unit["product"] = product
    if multiprocessing.parent_process() is None:
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak of the whole process is told instead


def read_peak_gib() -> float:
    """Peak resident memory of this process since `prepare_memory`, GiB; 0 where the system does not tell.

    From /proc: what getrusage tells begins with that of the process that started this one, however large that was.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 / GIB for line in lines if line.startswith("VmHWM:")), 0.0)
