"""Peak memory of the process that asks, for tests and benchmarks that run in a process of their own."""

from pathlib import Path


def read_peak_mib() -> float:
    """Peak resident memory so far, MiB.

    From /proc: what getrusage tells begins with that of the process that started this one, however large that was.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024.0
