"""`lap status` and `lap why` as they are printed."""

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from lap_assets.cli.status import COLUMNS
from lap_assets_tests.cli.outcomes import assert_refused
from lap_assets_tests.defs.surveys import create_survey
from lap_assets_tests.ui.servers import reset_interrupt

WEST = "rings.v3.1359"
TERMINAL = {"TERM": "xterm", "COLUMNS": "200", "LINES": "40"}


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    space = create_survey(tmp_path_factory.mktemp("status") / "repository")
    space.ledger.pause(2, True)
    space.ledger.define_sequence("wide")
    space.ledger.define_run("wide", "rings.v3", WEST, "g", label="[red]first[/]")
    return space.root


def test_one_row_per_run(lap, survey):
    """LAP-23, LAP-25: exposures by state, next step, why it waits, and the free disk."""
    code, out, err = lap("--repo", survey, "status")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert tuple(rows[0]) == COLUMNS
    assert rows[1] == f"1 main {WEST} g new 4 new begin".split()
    assert rows[2][:7] == f"2 main {WEST} r new, paused 4".split() and "lap resume" in out
    assert rows[5][:2] == ["5", "wide"]
    assert out.splitlines()[-2].startswith("5 runs, 0 of them over") and "GB free" in out.splitlines()[-1]


def test_for_machines_and_of_one_collection(lap, survey):
    """LAP-25: the same as JSON."""
    document = json.loads(lap("--repo", survey, "status", "--json")[1])
    assert [(run["lap_id"], run["sequence"]) for run in document["runs"]] == [
        (1, "main"), (2, "main"), (3, "main"), (4, "main"), (5, "wide"),
    ]  # fmt: skip
    assert document["runs"][1]["state"] == "new, paused" and document["runs"][0]["exposures"] == {"new": 4}
    only = json.loads(lap("--repo", survey, "--collection", "wide", "status", "--json")[1])["runs"]
    assert [(run["lap_id"], run["label"]) for run in only] == [(5, "[red]first[/]")]


def test_watching_needs_a_terminal(lap, survey):
    """Into a file it is printed once."""
    assert lap("--repo", survey, "status", "--watch") == lap("--repo", survey, "status")


@pytest.mark.timeout(120)
def test_watched_in_a_terminal(survey):
    """Drawn again until Ctrl-C, which ends it well."""
    leader, follower = pty.openpty()
    command = [Path(sys.executable).with_name("lap"), "--repo", survey, "status", "--watch"]
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    process = subprocess.Popen(command, env=os.environ | TERMINAL, preexec_fn=reset_interrupt, **streams)
    os.close(follower)
    seen = b""
    while seen.count(b"GB free") < 2:
        seen += os.read(leader, 65536)
    process.send_signal(signal.SIGINT)
    with suppress(OSError):  # the terminal closes with the program
        while rest := os.read(leader, 65536):
            seen += rest
    os.close(leader)
    assert process.wait(timeout=60) == 0 and b"Traceback" not in seen


def test_why(lap, survey):
    by_id = lap("--repo", survey, "why", f"main/stacks/{WEST}|g")
    assert by_id[0] == 0 and f"  for run 1 ({WEST} g: new)" in by_id[1].splitlines()
    assert lap("--repo", survey, "why", "stacks", "cell=*1359", "band=g") == by_id
    assert lap("--repo", survey, "why", "stacks cell=*1359 band=g") == by_id
    assert_refused(lap("--repo", survey, "why", ""), "unknown product ''")
    assert_refused(lap("--repo", survey, "why", "main/chips/x"), "no such partition", status=1)
    assert_refused(lap("--repo", survey, "why", "main/chips/x", "band=g"), "needs no keys")
    assert_refused(lap("--repo", survey, "why", "bananas"), "unknown product 'bananas'")
    assert_refused(lap("--repo", survey, "why", "stacks", "band=z"), "0 stacks match")
