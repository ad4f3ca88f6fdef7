"""The modern spelling: lap sequence, lap run define and list, and steering, over the same functions as laptool."""

import json
import shutil

import pytest

from lap_assets.operations.workspace import Workspace
from lap_assets_tests.cli.outcomes import assert_refused
from lap_assets_tests.defs.surveys import create_survey

WEST, EAST = "rings.v3.1359", "rings.v3.1360"


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return create_survey(tmp_path_factory.mktemp("sequence") / "repository").root


@pytest.fixture
def root(survey, tmp_path, monkeypatch):
    """A fresh copy: four runs of sequence main."""
    shutil.copytree(survey, tmp_path / "repository")
    monkeypatch.setenv("LAP_REPO", str(tmp_path / "repository"))
    return tmp_path / "repository"


def test_sequences(lap, root):
    """LAP-09: defined once, listed for people and machines."""
    assert lap("sequence", "define", "3pi.v1", "--description", "all") == (0, "defined sequence 2 3pi.v1\n", "")
    assert_refused(lap("sequence", "define", "3pi.v1"), "is defined already")
    assert_refused(lap("sequence", "define", "a'; --"), "is not allowed")
    rows = json.loads(lap("sequence", "list", "--json")[1])
    assert [row["name"] for row in rows] == ["main", "3pi.v1"]
    assert "3pi.v1  all" in lap("sequence", "list")[1]


def test_define_one_run(lap, root):
    """LAP-10: the same run as laptool's, and the sequence is the collection where none is named."""
    lap("sequence", "define", "wide")
    cone = ("--ra", 148, "--dec", 2, "--radius", 0.5)
    outcome = lap("--collection", "wide", "run", "define", "--cell", "1359", "--band", "g", *cone, "--priority", -2)
    assert outcome == (0, f"run 5: {WEST} g, 2 exposures\n", "")
    row = Workspace.open(root).ledger.runs("wide")[0]
    assert (row.cell, row.band, row.state, row.priority) == (WEST, "g", "new", -2)
    [listed] = json.loads(lap("run", "list", "--cell", "1359", "--band", "g", "--json")[1])[1:]
    assert (listed["lap_id"], listed["seq_id"]) == (5, 2)
    assert "rings.v3.1360" in lap("run", "list")[1]


@pytest.mark.parametrize(
    ("region", "cells"),
    [
        (("--circle", 148, 2, 1), [WEST]),
        (("--box", 147, 153, -1, 3), [WEST, EAST]),
        (("--polygon", "151,1 153,1 153,3 151,3"), [EAST]),
    ],
)
def test_define_an_area(lap, root, region, cells):
    """LAP-16: every cell in every band; asked again nothing is left."""
    lap("sequence", "define", "wide")
    command = ("run", "define", "--sequence", "wide", *region)
    assert lap(*command, "--bands", "g")[0] == 0
    code, out, _ = lap(*command)
    assert code == 0 and out.count("run ") == len(cells)
    found = [(row.cell, row.band) for row in Workspace.open(root).ledger.runs("wide")]
    assert sorted(found) == sorted((cell, band) for cell in cells for band in ("g", "r"))
    assert "defined already" in lap(*command)[1]


def test_into_the_queue(lap, root):
    """LAP-34: --queue writes lines and defines nothing."""
    lap("sequence", "define", "wide")
    command = ("run", "define", "--sequence", "wide", "--queue")
    assert "1 lines written" in lap(*command, "--cell", WEST, "--band", "g", "--label", "x")[1]
    assert "4 lines written" in lap(*command, "--circle", 150, 2, 3)[1]
    assert len((root / "queue.txt").read_text().splitlines()) == 5
    assert Workspace.open(root).ledger.runs("wide") == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((), "give one of --cell"),
        (("--cell", WEST, "--box", 1, 2, 3, 4), "give one of --cell"),
        (("--cell", WEST), "--band is missing"),
        (("--cell", WEST, "--band", "g,r"), "--band is missing"),
        (("--cell", WEST, "--band", "g", "--ra", 1), "a cone needs"),
        (("--cell", WEST, "--band", "g", "--ra", 1, "--dec", 95, "--radius", 1), "Dec 95"),
        (("--cell", WEST, "--band", "g", "--ra", 1, "--dec", 2, "--radius", 0), "radius"),
        (("--cell", "a;b", "--band", "g"), "'a;b' is not allowed"),
        (("--cell", WEST, "--band", "g", "--label", 'a"b'), "is not allowed"),
        (("--cell", WEST, "--band", "g", "--sequence", "nobody"), "unknown sequence 'nobody'"),
        (("--circle", 1, 2, -1), "radius -1"),
        (("--circle", 10, -91, 1), "Dec -91"),
        (("--circle", "nan", 2, 1), "nan"),
        (("--box", 1, 2, 4, 3), "upside down"),
        (("--polygon", "1,2 3,4"), "no polygon"),
    ],
)
def test_define_refuses(lap, root, options, text):
    """LAP-10, LAP-16: one line, status 2, nothing defined or queued."""
    assert_refused(lap("run", "define", *options), text)
    assert_refused(lap("run", "define", *options, "--queue"), text)
    assert len(Workspace.open(root).ledger.runs()) == 4 and not (root / "queue.txt").exists()


def test_run_of_one_run_takes_no_selection(lap, root):
    assert_refused(lap("run", "--lap-id", 1, "--to", "chips"), "--lap-id goes with")
    assert_refused(lap("run", "--lap-id", 77), "there is no run 77")


def test_steering(lap, root):
    """Runs rest and go on, end, get priority; the queue drains."""
    assert lap("pause", 1, 2) == (0, f"run 1 (main {WEST} g): paused\nrun 2 (main {WEST} r): paused\n", "")
    assert lap("resume", 1)[0] == lap("priority", 4, -5)[0] == lap("drain")[0] == 0
    assert lap("cancel", 3, "--reason", "clouds")[0] == 0
    ledger = Workspace.open(root).ledger
    facts = [(row.paused, row.fault, row.fault_reason, row.priority) for row in ledger.runs()]
    assert facts == [(False, 0, "", 0), (True, 0, "", 0), (False, 1, "clouds", 0), (False, 0, "", -5)]
    assert ledger.draining() and lap("undrain")[0] == 0 and not ledger.draining()
    assert_refused(lap("pause", 77), "there is no run 77")
    assert_refused(lap("pause", 3), "run 3", "is over: cancelled (clouds)")
