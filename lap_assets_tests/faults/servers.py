"""Dask schedulers and workers as processes of their own on 127.0.0.1, and a batch system of one machine.

What tests of lost workers need; every process started here is ended here.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]  # with the functions that tests have workers call
LOCAL = ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
PATIENCE_S = 60.0

# what a user types on a login node, for a machine that is all nodes at once
SBATCH = """#!/bin/sh
cp "$1" "{folder}/job.$$"
setsid sh "{folder}/job.$$" >>"{folder}/jobs.log" 2>&1 &
echo $! >>"{folder}/jobs"
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
kill -- "-$1"
"""


@dataclass
class Servers:
    """A scheduler and its workers."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen] = field(default_factory=list)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self, program: str, *options: str) -> subprocess.Popen:
        """Start a program of Dask in a process of its own."""
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{program}", *LOCAL, *options],
                stdout=log, stderr=subprocess.STDOUT, 
                env=os.environ | {"PYTHONPATH": str(CHECKOUT)} | self.environment, cwd=self.folder,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start_scheduler(self) -> str:
        """Start the scheduler; its address."""
        self.start("scheduler", "--port", "0", "--scheduler-file", str(self.folder / "scheduler.json"))
        address = wait_for(lambda: find_address(self.log))
        return address

    def start_worker(self, address: str, *options: str) -> subprocess.Popen:
        """Start a worker that nobody restarts."""
        return self.start("worker", address, "--nthreads", "1", "--no-nanny", *options)


def find_address(log: str) -> str:
    """The address that a scheduler says it listens on."""
    found = [line.split()[-1] for line in log.splitlines() if "Scheduler at:" in line]
    return found[0] if found else ""


def wait_for(look, patience_s: float = PATIENCE_S):
    """What `look` gives as soon as it gives something."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    pytest.fail(f"nothing came of {look} in {patience_s} s")


@contextmanager
def run_servers(folder: Path, **environment: str) -> Iterator[Servers]:
    """Servers that end with the block."""
    folder.mkdir(parents=True)
    servers = Servers(folder, environment)
    try:
        yield servers
    finally:
        for process in servers.processes:
            process.kill()
            process.wait()


@contextmanager
def pretend_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`sbatch` and `scancel` on the path, which run jobs here."""
    folder.mkdir(parents=True)
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    try:
        yield
    finally:
        for group in read_jobs(folder):
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def read_jobs(folder: Path) -> list[int]:
    """Process groups of the jobs that were ever submitted."""
    path = folder / "jobs"
    return [int(line) for line in path.read_text().split()] if path.is_file() else []


def is_running(group: int) -> bool:
    """Whether any process of a group is there still."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
