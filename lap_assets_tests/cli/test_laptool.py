"""`laptool` as an operator types it: original spellings, exact metadata output, one line where it is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lap_assets.operations.workspace import Workspace
from lap_assets_tests.cli.outcomes import assert_refused
from lap_assets_tests.defs.surveys import create_survey

LAPTOOL = Path(sys.executable).with_name("laptool")
WEST, EAST = "rings.v3.1359", "rings.v3.1360"


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """12 exposures in two cells and two bands, and four runs of sequence main."""
    return create_survey(tmp_path_factory.mktemp("laptool") / "repository").root


@pytest.fixture
def laptool(call, survey, tmp_path, monkeypatch):
    """Runs `laptool` on a fresh copy of the repository."""
    shutil.copytree(survey, tmp_path / "repository")
    monkeypatch.setenv("LAP_REPO", str(tmp_path / "repository"))
    return lambda *arguments: call("laptool", *arguments)


def ask(laptool, *arguments):
    """Rows of a listing."""
    code, out, err = laptool(*arguments, "-json")
    assert (code, err) == (0, "")
    return json.loads(out)


# ---- sequences


def test_define_and_list_sequences(laptool):
    """LAP-01, LAP-09: a new sequence in the metadata format, then all of them."""
    values = "   seq_id      S64      2\n   name        STR      3pi.v1\n   description STR      all\n"
    block = f"lapSequence METADATA\n{values}END\n"
    words = ("-definesequence", "-name", "3pi.v1", "-description", "all")
    assert laptool(*words) == (0, f"lapSequence MULTI\n\n{block}", "")
    code, out, _ = laptool("-listsequence")
    assert (code, out.count("METADATA")) == (0, 2) and out.endswith(block)
    assert ask(laptool, "-listsequence")[1] == {"seq_id": 2, "name": "3pi.v1", "description": "all"}


def test_a_sequence_is_defined_once(laptool):
    """LAP-01: names are unique."""
    assert_refused(laptool("-definesequence", "-name", "main"), "'main' is defined already", program="laptool")
    assert len(ask(laptool, "-listsequence")) == 1


# ---- runs


def test_define_a_run(laptool):
    """LAP-02, LAP-10, LAP-13: one run with the exposures in the cone; it is new and nothing of it is queued."""
    laptool("-definesequence", "-name", "3pi.v1")
    cone = ("-ra", "148", "-decl", "2", "-radius", "0.5")
    names = ("-seq_id", "3pi.v1", "-projection_cell", "1359", "-tess_id", "RINGS.V3", "-filter", "g.00000")
    [run] = ask(laptool, "-definerun", *names, *cone, "-label", "first", "-dist_group", "dr1")
    assert run.pop("registered").endswith("Z")
    assert run == {
        "seq_id": 2, "lap_id": 5, "tess_id": 1, "projection_cell": WEST, "filter": "g", "state": "new", "fault": 0,
        "label": "first", "quick_sass_id": None, "final_sass_id": None, "dist_group": "dr1",
    }  # fmt: skip
    members = ask(laptool, "-exposures", "-lap_id", "5")
    assert [one["exp_id"] for one in members] == ["simtiny-west-g-0", "simtiny-west-g-1"]
    assert all(one["chip_id"] is None and one["chip_state"] == "new" for one in members)


def test_a_second_run_of_the_same_is_refused(laptool):
    """LAP-02: one run per sequence, tessellation, cell and filter; status 1, for the command itself is right."""
    words = ("-definerun", "-seq_id", "1", "-projection_cell", WEST, "-filter", "g")
    assert_refused(laptool(*words), "run", status=1, program="laptool")


def test_only_3pi_unless_told_otherwise(laptool, tmp_path):
    """LAP-11: an exposure of another mode is left out."""
    space = Workspace.open(tmp_path / "repository")
    space.ledger.define_sequence("md")
    words = ("-definerun", "-seq_id", "md", "-projection_cell", EAST, "-filter", "r")
    outcome = laptool(*words, "-obs_mode", "MD")
    assert_refused(outcome, "no exposure", "obs_mode MD", program="laptool")
    assert ask(laptool, *words, "-obs_mode", "any")[0]["lap_id"] == 5


def test_runs_by_state_cell_filter_and_label(laptool, tmp_path):
    """LAP-14: -pendingrun and its alias, with each filter."""
    Workspace.open(tmp_path / "repository").ledger.define_sequence("two")
    laptool("-definerun", "-seq_id", "2", "-projection_cell", WEST, "-filter", "g", "-label", "mine")

    def numbers(*words, command="-pendingrun"):
        return [row["lap_id"] for row in ask(laptool, command, *words)]

    assert numbers() == numbers(command="-listrun") == [1, 2, 3, 4, 5]
    assert numbers("-state", "new") == [1, 2, 3, 4, 5] and numbers("-state", "full") == []
    assert numbers("-projection_cell", "1360") == numbers("-projection_cell", EAST) == [3, 4]
    assert numbers("-filter", "g") == numbers("-filter", "g.00000") == [1, 3, 5]
    assert numbers("-label", "mine") == numbers("-seq_id", "two") == numbers("-seq_id", "2") == [5]


def test_exposures_with_what_is_needed_to_queue_chips(laptool, tmp_path):
    """LAP-15: -pendingexp names camera, filter and the masters of each exposure; LAP-17: of those without chips."""
    rows = ask(laptool, "-pendingexp", "-lap_id", "2")
    assert [row["exp_id"] for row in rows] == [f"simtiny-{place}-r-{n}" for place in ("both", "west") for n in (0, 1)]
    assert rows[1] | {"ra": 150.0, "bias": "simtiny|bias|all|2024-04-01"} == rows[1]
    assert {row["flat"] for row in rows} == {"simtiny|flat|r|2024-03-01", "simtiny|flat|r|2024-04-01"}
    ledger = Workspace.open(tmp_path / "repository").ledger
    record_units(ledger, "chips", "simtiny-west-r-0", {"c0": "done"})
    ledger.drop_member(2, "simtiny-west-r-1")
    left = [(row["exp_id"], row["chip_state"]) for row in ask(laptool, "-pendingexp", "-lap_id", "2")]
    assert left == [("simtiny-both-r-0", "new"), ("simtiny-both-r-1", "new")]


def test_exposures_in_use(laptool, tmp_path):
    """LAP-15: -inactiveexp counts the active members of all runs of a sequence."""
    ledger = Workspace.open(tmp_path / "repository").ledger
    for lap_id in (1, 3):
        ledger.cancel(lap_id, "test")
    rows = {row["exp_id"]: row for row in ask(laptool, "-inactiveexp", "-seq_id", "main")}
    assert len(rows) == 12
    assert rows["simtiny-both-g-0"] | {"runs": 2, "active": 0, "in_use": False} == rows["simtiny-both-g-0"]
    assert rows["simtiny-both-r-0"] | {"runs": 2, "active": 2, "in_use": True} == rows["simtiny-both-r-0"]


def test_stacks_of_a_run(laptool, tmp_path):
    """LAP-26: defined where a warp lies, had once attempted, done or faulted."""
    ledger = Workspace.open(tmp_path / "repository").ledger
    for product, partition, states in (
        ("warps", f"simtiny-west-g-0|{WEST}", {"00": "done", "01": "done", "02": "no_work"}),
        ("warps", f"simtiny-west-g-1|{WEST}", {"01": "done"}),
        ("stacks", f"{WEST}|g", {"00": "no_work", "01": "failed"}),
    ):
        record_units(ledger, product, partition, states)
    rows = {row["skycell_id"]: row for row in ask(laptool, "-stacks", "-lap_id", "1")}
    facts = ("inputs", "defined_first", "have_first", "first_state", "defined_final", "have_final", "final_state")
    assert {name: tuple(row[fact] for fact in facts) for name, row in rows.items()} == {
        "00": (1, True, True, "no_work", True, False, "new"),
        "01": (2, True, True, "failed", True, False, "new"),
        "02": (0, False, False, "new", False, False, "new"),
    }


def record_units(ledger, product, partition, states):
    """Record a partition of main with units in these states."""
    from lap_assets.model.ids import DataId
    from lap_assets.pipeline.task import UnitReport

    units = [UnitReport(DataId("main", product, partition, unit), state) for unit, state in states.items()]
    ledger.record_partition("main", product, partition, "done", unit_reports=units)


# ---- large areas


@pytest.mark.parametrize(
    "region",
    [
        ("-ra", "150", "-decl", "2", "-radius", "3"),
        ("-ra_min", "147", "-ra_max", "153", "-decl_min", "1", "-decl_max", "3"),
        ("-polygon", "147,1 153,1 153,3 147,3"),
    ],
)
def test_all_runs_of_a_region(laptool, region):
    """LAP-16: one command defines every cell in every filter; asked again it changes nothing."""
    laptool("-definesequence", "-name", "wide")
    rows = ask(laptool, "-definearea", "-seq_id", "wide", *region)
    found = [(row["projection_cell"], row["filter"]) for row in rows]
    assert found == [(cell, band) for cell in (WEST, EAST) for band in ("g", "r")]
    assert ask(laptool, "-definearea", "-seq_id", "wide", *region) == []
    assert laptool("-definearea", "-seq_id", "wide", *region) == (0, "", "")


def test_a_region_in_one_filter(laptool):
    """LAP-16: only the filters named, only exposures inside."""
    laptool("-definesequence", "-name", "wide")
    circle = ("-ra", "148", "-decl", "2", "-radius", "0.5")
    assert ask(laptool, "-definearea", "-seq_id", "2", *circle, "-obs_mode", "MD") == []
    [run] = ask(laptool, "-definearea", "-seq_id", "2", *circle, "-filter", "r.00000")
    assert (run["projection_cell"], run["filter"]) == (WEST, "r")
    assert len(ask(laptool, "-exposures", "-lap_id", run["lap_id"])) == 2


# ---- refusals

RUN = ("-definerun", "-seq_id", "main", "-projection_cell", WEST, "-filter", "g")
AREA = ("-definearea", "-seq_id", "main")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("-explode",), "unknown command '-explode'"),
        (("main",), "unknown command 'main'"),
        (("-listrun", "-listsequence"), "one command"),
        (("-listrun", "-colour", "red"), "unknown option '-colour'"),
        (("-listrun", "red"), "unknown word 'red'"),
        (("-listrun", "--state", "new"), "unknown option '--state'"),
        (("-listrun", "-state"), "-state has no value"),
        (("-listrun", "-state", "-label", "x"), "-state has no value"),
        (("-listrun", "-state", "old"), "'old' is none of new, run, full"),
        (("-listrun", "-label", "a", "-label", "b"), "-label is given twice"),
        (("-listrun", "-seq_id", "9"), "unknown sequence '9'"),
        (("-definesequence",), "-name is missing"),
        (("-definesequence", "-name", "a'; DROP TABLE lap_run; --"), "is not allowed"),
        (("-definesequence", "-name", "a/b"), "'a/b' is not allowed"),
        (("-definesequence", "-name", "x" * 200), "too long"),
        (("-definesequence", "-name", "x", "-description", "a\nb"), "printable"),
        (("-definerun",), "-seq_id, -projection_cell, -filter are missing"),
        (("-definerun", "-seq_id", "nobody", *RUN[3:]), "unknown sequence 'nobody'"),
        (("-definerun", "-seq_id", '1"; --', *RUN[3:]), "is not allowed"),
        ((*RUN[:3], "-projection_cell", "99999", "-filter", "g"), "rings.v3.99999"),
        ((*RUN[:-1], "q"), "q"),
        ((*RUN[:-1], "g;r"), "'g;r' is not allowed"),
        ((*RUN, "-tess_id", "moon"), "unknown tessellation 'moon'"),
        ((*RUN, "-ra", "10"), "-ra alone is no cone"),
        ((*RUN, "-ra", "148", "-decl", "2", "-radius", "0"), "-radius 0 is no radius"),
        ((*RUN, "-ra", "148", "-decl", "2", "-radius", "-1"), "-radius -1 is no radius"),
        ((*RUN, "-ra", "148", "-decl", "95", "-radius", "1"), "-decl 95 lies outside"),
        ((*RUN, "-ra", "nan", "-decl", "2", "-radius", "1"), "-ra 'nan' is no number"),
        (AREA, "give one region"),
        ((*AREA, "-ra", "1", "-decl", "2"), "-ra alone is no region"),
        ((*AREA, "-polygon", "1,2 3,4"), "2 corners are no polygon"),
        ((*AREA, "-polygon", "1,2 3,4 5"), "'5' is no corner"),
        ((*AREA, "-ra_min", "1", "-ra_max", "2", "-decl_min", "3", "-decl_max", "2"), "upside down"),
        (("-exposures", "-lap_id", "77"), "there is no run 77"),
        (("-stacks", "-lap_id", "one"), "'one' is no number of a row"),
        (("-pendingexp",), "-lap_id is missing"),
    ],
)  # fmt: skip
def test_refused_in_one_line(laptool, tmp_path, words, text):
    """LAP-09, LAP-10: bad input is one line and status 2, and defines nothing."""
    assert_refused(laptool(*words), text, program="laptool")
    ledger = Workspace.open(tmp_path / "repository").ledger
    assert (len(ledger.sequences()), len(ledger.runs())) == (1, 4)


def test_from_a_shell(survey):
    """The installed command, with -repo."""
    done = subprocess.run([LAPTOOL, "-listrun", "-repo", survey], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr, done.stdout.count("lapRun METADATA")) == (0, "", 4)
    done = subprocess.run([LAPTOOL, "-help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and all(f" {name} " in done.stdout for name in ("-definerun", "-pendingrun"))
