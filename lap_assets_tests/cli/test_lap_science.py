"""`lap_science` on a small simulated survey: chip, monitor and cleanup mode end where they should, and say why."""

import json
import shutil

import pytest

from lap_assets.cli.lap_science import call_science
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.cli.outcomes import assert_refused
from lap_assets_tests.defs.surveys import create_survey, ingest_small, simulate_small

INTERMEDIATE = ("chips", "warps", "diffs", "streak_masks", "stacks")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """States of a repository's partitions after each mode, and where it lies."""
    folder = tmp_path_factory.mktemp("science")
    space = ingest_small(folder / "repository", simulate_small(folder / "sim"))
    seen = {}
    for mode in ("chip", "monitor", "cleanup"):
        assert call_science([f"--{mode}_mode", "--repo", str(space.root), "--lap_id", "1"]) == 0
        states = space.ledger.partition_states("main")
        seen[mode] = ({ref: one.state for ref, one in states.items()}, space.ledger.runs()[0])
    return space.root, seen


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return create_survey(tmp_path_factory.mktemp("queue") / "repository").root


@pytest.fixture
def science(call, survey, tmp_path, monkeypatch):
    """Runs `lap_science` on a fresh copy of a repository without pixels."""
    shutil.copytree(survey, tmp_path / "repository")
    monkeypatch.setenv("LAP_REPO", str(tmp_path / "repository"))
    return lambda *arguments: call("lap_science", *arguments)


@pytest.mark.slow
def test_chip_mode_makes_chips_and_begins_the_run(stages):
    """LAP-17, LAP-22, LAP-35: chips and what they need, nothing beyond; afterwards the run is `run`."""
    states, run = stages[1]["chip"]
    assert {product for product, _ in states} == {"master_biases", "master_flats", "chips", "solutions"}
    assert run.state == "run"


@pytest.mark.slow
def test_monitor_mode_goes_to_the_end(stages):
    """LAP-32, LAP-35: final stacks and all that is made from them; the run is full and has a set of final stacks."""
    states, run = stages[1]["monitor"]
    assert {"final_stacks", "transients", "mass_fits"} <= {product for product, _ in states}
    assert (run.state, run.settled, run.cleaned) == ("full", True, False) and run.final_sass_id is not None
    space = Workspace.open(stages[0])
    assert not any(one.active for one in space.ledger.members(1))


@pytest.mark.slow
def test_cleanup_mode_removes_what_nothing_needs(stages):
    """LAP-33, LAP-35: intermediates with files are gone, the rest is as it was."""
    before, (after, run) = stages[1]["monitor"][0], stages[1]["cleanup"]
    gone = {ref for ref, state in before.items() if ref[0] in INTERMEDIATE and state == "done"}
    assert gone and {ref for ref, state in after.items() if state == "cleaned"} == gone
    assert {ref: state for ref, state in after.items() if ref not in gone} == {
        ref: state for ref, state in before.items() if ref not in gone
    }
    assert run.cleaned


@pytest.mark.slow
def test_a_mode_that_has_nothing_to_do_says_so(call, stages):
    """LAP-35: repeated, it changes nothing."""
    code, out, _ = call("lap_science", "--repo", stages[0], "--chip_mode", "--monitor_mode", "--cleanup_mode")
    assert (code, out.splitlines()) == (
        0,
        ["units: none made, 0 skipped; 0 partitions in 0 Dagster runs", "cleaned 0 partitions, 0.0 MB freed"],
    )


@pytest.mark.slow
def test_lap_run_of_one_run_is_the_same(call, stages):
    """LAP-35: `lap run --lap-id` drives the same decisions."""
    code, out, _ = call("lap", "--repo", stages[0], "run", "--lap-id", 1)
    assert (code, out) == (0, "units: none made, 0 skipped; 0 partitions in 0 Dagster runs\n")


@pytest.mark.slow
def test_why_it_is_cleaned_and_from_what_it_was_made(call, stages):
    """LAP-33: the rule and the time; inputs stay pinned by hash, so that it can come back."""
    space = Workspace.open(stages[0])
    unit = space.repo.units("main", "warps", "simtiny-000101|tiny.0")[0]
    code, out, _ = call("lap", "--repo", stages[0], "why", unit)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == f"{unit}: cleaned: LAP-33: every run with chip_id main/simtiny-000101 is over"
    assert lines[1].startswith("  cleaned on 2")
    pins = [line.split()[1:] for line in lines if line.startswith("  from main/")]
    inputs = space.repo.manifest(unit).inputs
    assert pins == [[str(pin.data_id), pin.content[:12]] for pin in inputs]
    assert all(space.repo.manifest(pin.data_id).content_sha256 == pin.content for pin in inputs)
    assert any("no files" in line for line in lines) and "  for run 1 (tiny.0 r: full)" in lines


@pytest.mark.slow
def test_how_an_operator_sees_it(call, stages):
    """LAP-15, LAP-26: state of every exposure at every stage, and stacks defined and had."""
    rows = json.loads(call("laptool", "-repo", stages[0], "-exposures", "-lap_id", "1", "-json")[1])
    facts = ("chip_state", "camera_state", "warp_state", "destreak_state", "data_state", "active")
    assert [tuple(row[fact] for fact in facts) for row in rows] == [
        ("cleaned", "done", "cleaned", "cleaned", "full", False)
    ] * 3
    stacks = json.loads(call("laptool", "-repo", stages[0], "-stacks", "-lap_id", "1", "-json")[1])
    assert [row["skycell_id"] for row in stacks] == ["00", "01", "02", "03"]
    assert all(row["inputs"] == 3 and row["have_first"] and row["have_final"] for row in stacks)
    assert call("laptool", "-repo", stages[0], "-pendingexp", "-lap_id", "1") == (0, "", "")
    assert {row["first_state"] for row in stacks} == {"no_work"} and {row["final_state"] for row in stacks} == {"done"}


# ---- the queue


def test_queue_mode_launches_up_to_the_limit(science, tmp_path):
    """LAP-34, LAP-35: what is broken is named, the others go on; four runs are active, so a fifth waits."""
    space = Workspace.open(tmp_path / "repository")
    space.ledger.define_sequence("wide")
    lines = ["-definerun -seq_id wide -projection_cell 1359 -filter g", "-definerun -seq_id wide -radius 0"]
    (space.root / "queue.txt").write_text("\n".join([*lines, lines[0].replace("-filter g", "-filter r")]))
    code, out, err = science("--queue_mode")
    assert (code, out) == (1, "") and "line 2: -radius 0" in err and err.count("\n") == 1
    space.ledger.cancel(1, "to make room")
    assert science("--queue_mode")[1] == "run 5: wide rings.v3.1359 g\n"
    assert science("--queue_mode")[1] == ""


def test_an_entry_that_cannot_be_launched_lets_the_next_go(science, tmp_path):
    """LAP-34: no exposure of that filter was taken there."""
    space = Workspace.open(tmp_path / "repository")
    space.ledger.define_sequence("wide")
    space.ledger.cancel(1, "to make room")
    line = "-definerun -seq_id wide -projection_cell 1359 -filter"
    (space.root / "queue.txt").write_text(f"{line} z\n{line} r\n")
    code, out, err = science("--queue_mode")
    assert (code, out) == (1, "run 5: wide rings.v3.1359 r\n") and "line 1: no exposure" in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "which mode?"),
        (("--chip",), "--chip"),
        (("--chip_mode", "--lap_id", "0"), "'0' is no number"),
        (("--chip_mode", "--lap_id"), "expected one argument"),
        (("--chip_mode", "--lap_id", "77"), "there is no run 77"),
        (("--queue_mode", "--lap_id", "1"), "--lap_id"),
        (("--monitor_mode", "--collection", "a;b"), "'a;b' is not allowed"),
        (("--monitor_mode", "--lap_id", "1", "--collection", "wide"), "different sequences"),
    ],
)
def test_refused_in_one_line(science, words, text):
    assert_refused(science(*words), text, program="lap_science")
