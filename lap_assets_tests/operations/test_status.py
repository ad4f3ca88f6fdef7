"""How runs stand and why they wait: the view of what the ledger and the decision say."""

import json
from dataclasses import asdict

import pytest

from lap_assets.model.decisions import MAKE, RECREATE, Action, Decision
from lap_assets.model.ids import DataId
from lap_assets.operations.drive import advance, take_snapshot
from lap_assets.operations.status import View, make_document, summarize_runs
from lap_assets.pipeline.task import UnitReport
from lap_assets_tests.defs.surveys import create_survey

WEST, EAST = "rings.v3.1359", "rings.v3.1360"


@pytest.fixture
def space(tmp_path):
    """Four new runs: west g, west r, east g, east r; nothing made."""
    return create_survey(tmp_path / "repository")


def look(space, lap_id):
    return next(one for one in summarize_runs(space, "main") if one.lap_id == lap_id)


def record(space, product, partition, state="done", reason="", units=None, attempts=0):
    reports = [UnitReport(DataId("main", product, partition, unit), one) for unit, one in (units or {}).items()]
    space.ledger.record_partition(
        "main", product, partition, state, reason=reason, unit_reports=reports, attempts=attempts
    )


def test_a_new_run_is_about_to_begin(space):
    rows = summarize_runs(space, "main")
    assert [(one.lap_id, one.cell, one.band) for one in rows] == [
        (1, WEST, "g"), (2, WEST, "r"), (3, EAST, "g"), (4, EAST, "r"),
    ]  # fmt: skip
    assert {(one.state, one.next, one.waits) for one in rows} == {("new", "begin", "")}
    assert all(one.exposures == {"new": 4} for one in rows)


def test_a_run_says_what_it_does_next_or_who_is_at_it(space):
    """LAP-23: the step that the decision takes; while somebody else makes it, who that is."""
    advance(space, "main", ["chip"])
    one = look(space, 1)
    assert (one.state, one.next, one.waits) == ("run", "make master_biases: 2 of 2", "")
    keys = [f"launch/calib/master_biases/simtiny|bias|all|{night}" for night in ("2024-03-01", "2024-04-01")]
    assert len(space.ledger.claim(keys, "launch:7", 60.0)) == 2
    one = look(space, 1)
    assert one.next == "" and "master_biases" in one.waits and "launch:7" in one.waits
    assert one.busy == tuple(f"master_biases {key.split('/')[-1]}: launch:7" for key in keys)


def test_what_is_made_and_what_is_made_again_are_counted_apart(space):
    """LAP-18: chips of an earlier run that were cleaned come back beside those that are new."""
    kinds = [("simtiny-both-g-0", RECREATE), ("simtiny-both-g-1", MAKE), ("simtiny-west-g-0", RECREATE)]
    actions = tuple(Action("chips", exposure, kind, lap_id=1) for exposure, kind in kinds)
    advance(space, "main", ["chip"])
    snapshot = take_snapshot(space, "main")
    view = View(snapshot, Decision(actions=actions))
    assert view.describe(snapshot.survey.runs[0])["next"] == "recreate chips: 2 of 4"


def test_paused_draining_and_cancelled_runs_say_so(space):
    space.ledger.pause(1, True)
    space.ledger.cancel(2, "clouds")
    space.ledger.set_draining(True)
    rows = {one.lap_id: one for one in summarize_runs(space, "main")}
    assert (rows[1].state, rows[1].next) == ("new, paused", "") and "lap resume" in rows[1].waits
    assert (rows[2].state, rows[2].faults) == ("cancelled", ("run: cancelled: clouds",))
    assert (rows[3].state, rows[3].next) == ("new", "") and "draining" in rows[3].waits


def test_stacks_are_counted(space):
    """LAP-26: had are those completed, faulted, or with too few inputs; LAP-25: members by their state."""
    advance(space, "main", ["chip"])
    units = {"00": "done", "01": "no_work", "02": "failed", "03": "blocked"}
    record(space, "stacks", f"{WEST}|g", "failed", units=units)
    space.ledger.drop_member(1, "simtiny-west-g-0", "clouds")
    one = look(space, 1)
    assert (one.stacks_have, one.stacks_defined, one.final_have, one.final_defined) == (3, 4, 0, 0)
    assert one.exposures == {"drop": 1, "new": 3}
    assert "exposure simtiny-west-g-0: dropped: clouds" in one.faults


def test_faults_and_what_is_postponed_are_told_apart(space):
    """LAP-28: a difference left to a later run is no fault, and that run is named."""
    advance(space, "main", ["chip"])
    later = f"postponed to run 3 (cell {EAST})"
    record(space, "diffs", f"simtiny-both-g-0|{WEST}", "dropped", later)
    record(space, "chips", "simtiny-west-g-1", "failed", "disk on fire", attempts=1)
    one = look(space, 1)
    assert one.postponed == (f"diffs simtiny-both-g-0|{WEST}: {later}",)
    assert one.faults == ("chips simtiny-west-g-1: failed: disk on fire",)
    assert look(space, 2).faults == look(space, 2).postponed == ()


def test_the_document_is_json(space):
    space.ledger.cancel(4, 'quotes "; and more')
    statuses = summarize_runs(space, "main")
    document = json.loads(json.dumps(make_document(space, statuses), allow_nan=False))
    assert document["runs"] == json.loads(json.dumps([asdict(one) for one in statuses]))
    assert document["free_bytes"] > 0 and document["draining"] is False


def test_a_collection_without_runs(space):
    space.ledger.define_sequence("wide")
    assert summarize_runs(space, "wide") == []
