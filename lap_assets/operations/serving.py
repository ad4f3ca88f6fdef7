"""Serving a repository: `dagster dev` as a process of ours, watched, so that no kill but the last stops the platform.

Dagster ends all of itself when its daemon is killed, and never brings back a code server that was. Both are mended
here: the first by a new start, the second by a reload.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lap_assets.operations.webserver import forget_webserver, is_broken, note_webserver, reload_definitions

WATCH_SECONDS = 5.0
MEND_SECONDS = 30.0  # between two reloads: what cannot be loaded at all stays so
MAX_STARTS = 3  # in a row that did not come up


def serve(root: Path, port: int, tell: Callable[[str], None]) -> int:
    """Run the UI and the daemon of a repository on 127.0.0.1 until they are ended; returns their exit status.

    Parameters
    ----------
    tell : callable
        Told, in one line each, of what had to be mended.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # a shell's background job ignores SIGINT, and so would all we start
        signal.signal(number, signal.default_int_handler)
    url, ever, failed = f"http://127.0.0.1:{port}", False, 0
    while True:
        process = start(root, port)
        note_webserver(root, url)
        try:
            came_up = watch(root, url, process, tell)
            ever, failed = ever or came_up, 0 if came_up else failed + 1
            # its status says nothing: it is 0, too, where the daemon was killed
            if not ever or failed == MAX_STARTS:
                return process.returncode
            tell(f"dagster ended with status {process.returncode}; it is started again")
            time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            return process.wait()
        finally:
            forget_webserver(root)


def start(root: Path, port: int) -> subprocess.Popen:
    """Start `dagster dev` on the instance of a repository."""
    environment = os.environ | {"LAP_REPO": str(root), "DAGSTER_HOME": str(root / "dagster")}
    place = ["-h", "127.0.0.1", "-p", str(port)]
    command = [sys.executable, "-m", "dagster", "dev", "-m", "lap_assets.definitions", *place]
    # in a group of its own: Ctrl-C reaches us, and Dagster once, through us; a run under way is finished
    return subprocess.Popen(command, env=environment, cwd=root, process_group=0)


def watch(root: Path, url: str, process: subprocess.Popen, tell: Callable[[str], None]) -> bool:
    """Look after a server until it ends; whether it ever was up."""
    came_up, mended = False, float("-inf")
    while True:
        try:
            process.wait(WATCH_SECONDS)
            return came_up
        except subprocess.TimeoutExpired:
            pass
        state = is_broken(url)
        came_up |= state is False
        if state and came_up and time.monotonic() - mended > MEND_SECONDS:
            tell("the code server is gone; it is started again")
            reload_definitions(root)
            mended = time.monotonic()
