"""Runs an action in a child process under strace: records its system calls, kills or stops it before any of them.

Production code knows nothing of this. The child first does the action on a scratch copy, so that only the calls of the
action itself are left to be recorded, then waits until strace has attached.
"""

import ctypes
import multiprocessing
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from lap_assets_tests.conftest import require_tool

FORK = multiprocessing.get_context("fork")
# every call that changes what is on disk, and those that open files
CALLS = (
    "openat,mkdir,mkdirat,write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,"
    "unlink,unlinkat,rmdir,utimensat,ftruncate"
)
_PR_SET_PTRACER = 0x59616D61
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<(.*?)>)?.*")
_RESULT = {"done": 0, "refused": 3}


@dataclass(frozen=True)
class Call:
    """One system call: its name, the how-manyth of that name, its arguments and result as strace prints them."""

    name: str
    ordinal: int
    arguments: str
    result: int
    opened: str

    @property
    def paths(self) -> list[str]:
        """Paths among the arguments: quoted ones and those of file descriptors."""
        if self.name in ("write", "pwrite64", "writev"):
            return re.findall(r"^\d+<(.*?)>,", self.arguments)
        return re.findall(r'"(/.*?)"', self.arguments) + re.findall(r"^\d+<(.*?)>", self.arguments)


class Refused(Exception):
    """The action raised the error the test allows."""


def _child(pipe, action: Callable[[Path], None], root: Path, scratch: Path) -> None:
    action(scratch)
    # where the kernel lets only ancestors trace, allow strace, which is a sibling
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1 & 0xFFFFFFFFFFFFFFFF), 0, 0, 0)
    pipe.send("ready")
    pipe.recv()
    try:
        action(root)
    except Refused:
        os._exit(_RESULT["refused"])
    os._exit(_RESULT["done"])


@contextmanager
def traced(action: Callable[[Path], None], root: Path, scratch: Path, log: Path, inject: str = ""):
    """Start the action under strace; yields the child process, which runs on by itself."""
    strace = require_tool("strace")
    here, there = FORK.Pipe()
    process = FORK.Process(target=_child, args=(there, action, root, scratch))
    process.start()
    there.close()
    assert here.recv() == "ready"
    command = [strace, "-f", "-y", "-o", str(log), "-p", str(process.pid), "-e", f"trace={CALLS}"]
    tracer = subprocess.Popen(
        [*command, *(["-e", f"inject={inject}"] if inject else [])], stderr=subprocess.PIPE, text=True
    )
    try:
        line = tracer.stderr.readline()
        assert "attached" in line, line
        here.send("go")
        yield process
        process.join()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
        tracer.communicate()
        here.close()


def record(action: Callable[[Path], None], root: Path, scratch: Path, log: Path) -> list[Call]:
    """The system calls of an action that runs to its end."""
    with traced(action, root, scratch, log) as process:
        pass
    assert process.exitcode == _RESULT["done"]
    counts, calls = Counter(), []
    for line in join_interrupted(log.read_text().splitlines()):
        match = _LINE.fullmatch(line)
        if match is None:
            assert "+++" in line or "---" in line, line
            continue
        pid, name, arguments, result, opened = match.groups()
        assert int(pid) == process.pid, f"a thread changed the disk: {line}"
        counts[name] += 1
        calls.append(Call(name, counts[name], arguments, int(result), opened or ""))
    return calls


def join_interrupted(lines: list[str]) -> list[str]:
    """The lines of strace's log, those it broke in two (a thread came between) put together again."""
    open_, whole = {}, []
    for line in lines:
        pid = line.split(maxsplit=1)[0]
        if line.endswith(" <unfinished ...>"):
            open_[pid] = line.removesuffix(" <unfinished ...>")
        elif match := re.fullmatch(r"\d+ +<\.\.\. \w+ resumed>(.*)", line):
            whole.append(open_.pop(pid) + match[1])
        else:
            whole.append(line)
    return whole


def kill_before(call: Call, action: Callable[[Path], None], root: Path, scratch: Path, log: Path) -> None:
    """Run an action and kill its process before `call` takes effect."""
    with traced(action, root, scratch, log, f"{call.name}:signal=KILL:when={call.ordinal}") as process:
        pass
    assert process.exitcode == -signal.SIGKILL, f"{call}: ended with {process.exitcode}"


def stop_after(call: Call, action: Callable[[Path], None], root: Path, scratch: Path, log: Path, meanwhile) -> bool:
    """Stop an action's process after `call`, do `meanwhile`, let it go on; False if it was refused then."""
    with traced(action, root, scratch, log, f"{call.name}:signal=STOP:when={call.ordinal}") as process:
        while "stopped by SIGSTOP" not in log.read_text():
            ended = wait([process.sentinel], timeout=0.005)
            assert not ended, f"{call}: ended with {process.exitcode} before it was stopped"
        meanwhile()
        os.kill(process.pid, signal.SIGCONT)
    assert process.exitcode in _RESULT.values()
    return process.exitcode == _RESULT["done"]
