"""Peak memory of the process that asks, for tests and benchmarks that run in a process of their own."""

from pathlib import Path


def read_peak_mib() -> float:
    """Peak resident memory so far, MiB.

    From /proc: what getrusage tells begins with that of the process that started this one, however large that was.
    """
    return _read_mib("VmHWM")


def read_own_peak_mib() -> float:
    """Peak resident memory so far without the pages of files, MiB: what the process itself has asked for.

    How much of a library's code counts as resident is the page cache's affair: where it holds huge pages, as for
    libraries written a moment ago, the system maps more at once (seen: 155 to 240 MiB, same program, same libraries).
    """
    return _read_mib("VmHWM") - _read_mib("RssFile")


def _read_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024.0
