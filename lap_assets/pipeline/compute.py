"""How work is spread: one `concurrent.futures.Executor` for the life of the process, and the process set-up it needs.

`serial` runs in this process; `processes` keeps one pool of workers, forked from a server that has the heavy modules
loaded already. Results never depend on which one is used. BLAS runs one thread everywhere, serial included, so that
sums have one order.
"""

import hashlib
import logging
import multiprocessing
import os
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

from threadpoolctl import threadpool_limits

from lap_assets.errors import BadInput
from lap_assets.settings import ComputeSettings

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
PRELOAD = ["lap_assets.pipeline.preload"]


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


def configure_process() -> None:
    """One BLAS thread, and a numba cache that an edit of any science module invalidates as a whole.

    Called before numpy's heavy users are imported wherever a process starts (the command line, a Dagster run); workers
    inherit the environment. Numba does not see an edited callee in another module (measured: stale results).
    """
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
    os.environ.setdefault("NUMBA_CACHE_DIR", str(numba_cache_dir()))
    threadpool_limits(1)
    logging.raiseExceptions = False  # a log that cannot be written (disk full) must not bury the work's own error


def numba_cache_dir() -> Path:
    """Folder of compiled kernels, named by a hash of `science/` and the versions they are compiled with."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parents[1] / "science").rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):
        digest.update(f"{package}{version(package)}".encode())
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "lap_assets" / f"numba-{digest.hexdigest()[:16]}"


def count_workers(settings: ComputeSettings) -> int:
    """Number of worker processes: as set, or one per usable core."""
    return settings.workers or len(os.sched_getaffinity(0))


def get_executor(settings: ComputeSettings) -> Executor:
    """The executor the settings ask for; the process pool is made once and reused."""
    if settings.executor == "serial":
        return SerialExecutor()
    if settings.executor != "processes":
        raise BadInput(f"compute.executor {settings.executor!r} is unknown: use serial or processes")
    workers = count_workers(settings)
    if workers not in _pools:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        _pools[workers] = ProcessPoolExecutor(workers, mp_context=context, initializer=configure_process)
    return _pools[workers]


def discard_executor(settings: ComputeSettings) -> None:
    """Forget the pool (after a worker was lost); the next `get_executor` starts a fresh one."""
    pool = _pools.pop(count_workers(settings), None)
    if pool is not None:
        pool.shutdown(wait=False, cancel_futures=True)
