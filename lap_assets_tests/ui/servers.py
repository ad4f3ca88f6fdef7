"""A real `dagster dev` in a session of processes of its own, asked through GraphQL as its web page does."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

READY_SECONDS = 180.0
POLL_SECONDS = 1.0
LOCATIONS = """
{ workspaceOrError { ... on Workspace { locationEntries {
    loadStatus locationOrLoadError { __typename ... on PythonError { message } } } } } }
"""


def find_free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def reset_interrupt() -> None:
    """A test session in the background ignores SIGINT, and its children copy that: `dagster dev` could not be ended."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Server:
    """A running `dagster dev`."""

    def __init__(self, command: list[str], folder: Path, port: int, log: Path, environment: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=stream, stderr=stream, start_new_session=True,
                preexec_fn=reset_interrupt,
            )  # fmt: skip

    def ask(self, query: str, **variables: Any) -> dict:
        """Data of a GraphQL query; raises where the server answers with errors."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert not found.get("errors"), found["errors"]
        return found["data"]

    def wait_until_ready(self) -> None:
        """Return once the code location is loaded; fails with the log where it is not."""
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, f"dagster dev ended:\n{self.log.read_text()}"
            try:
                entries = self.ask(LOCATIONS)["workspaceOrError"]["locationEntries"]
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                entries = []
            if entries and all(entry["loadStatus"] == "LOADED" for entry in entries):
                kinds = [entry["locationOrLoadError"]["__typename"] for entry in entries]
                assert kinds == ["RepositoryLocation"], entries
                return
            time.sleep(POLL_SECONDS)
        pytest.fail(f"dagster dev was not ready in {READY_SECONDS:.0f} s:\n{self.log.read_text()}")

    def members(self) -> list[int]:
        """Processes of the server's session that still run."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.getsid(int(entry.name)) == self.process.pid and read_state(entry) != "Z":
                        found.append(int(entry.name))
                except (ProcessLookupError, FileNotFoundError):
                    continue  # ended meanwhile
        return found

    def stop(self) -> None:
        """Ask politely, as Ctrl-C in a terminal does, then kill what is left of the session."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        end = time.monotonic() + 30
        while (left := self.members()) and time.monotonic() < end:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def read_state(process: Path) -> str:
    """State letter of a process (`Z`: ended, not yet waited for)."""
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def serve(command: list[str], folder: Path, port: int, log: Path, **environment: str) -> Iterator[Server]:
    """A server for the length of a `with`; `environment` replaces what ours says of Dagster and lap."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_", "LAP_"))}
    server = Server(command, folder, port, log, ours | environment)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()
