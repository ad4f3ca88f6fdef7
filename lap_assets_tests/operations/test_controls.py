"""What an operator does to runs: all of them are checked before one is changed."""

import pytest

from lap_assets.errors import BadInput
from lap_assets.operations import controls
from lap_assets_tests.defs.surveys import create_survey


@pytest.fixture
def space(tmp_path):
    return create_survey(tmp_path / "repository")


def test_pause_and_resume(space):
    assert controls.pause_runs(space, [1, 3], True)[0] == "run 1 (main rings.v3.1359 g): paused"
    assert [row.paused for row in space.ledger.runs()] == [True, False, True, False]
    controls.pause_runs(space, [3], False)
    assert [row.paused for row in space.ledger.runs()] == [True, False, False, False]


def test_one_wrong_run_and_none_is_changed(space):
    for wrong in ([1, 77], [77]):
        with pytest.raises(BadInput, match="no run 77"):
            controls.pause_runs(space, wrong, True)
    assert not any(row.paused for row in space.ledger.runs())


def test_what_is_over_is_not_cancelled_again(space):
    controls.cancel_runs(space, [2], "clouds")
    row = space.ledger.runs(lap_ids=[2])[0]
    assert (row.fault, row.fault_reason) == (1, "clouds")
    assert not any(one.active for one in space.ledger.members(2))
    with pytest.raises(BadInput, match=r"run 2 .* is over: cancelled \(clouds\)"):
        controls.cancel_runs(space, [1, 2], "again")
    assert space.ledger.runs(lap_ids=[1])[0].fault == 0


def test_priority_and_draining(space):
    assert controls.prioritize_run(space, 4, -7).endswith("priority -7")
    assert space.ledger.runs(lap_ids=[4])[0].priority == -7
    for draining in (True, True, False):
        controls.drain(space, draining)
        assert space.ledger.draining() is draining


def test_the_sequence_of_runs(space):
    space.ledger.define_sequence("wide")
    other = space.ledger.define_run("wide", "rings.v3", "rings.v3.1359", "g").lap_id
    assert controls.choose_collection(space, None, []) == "main"
    assert controls.choose_collection(space, None, [other]) == "wide"
    assert controls.choose_collection(space, "wide", [other]) == "wide"
    for given, lap_ids in ((None, [1, other]), ("main", [other]), ("a/b", []), (None, [77])):
        with pytest.raises(BadInput):
            controls.choose_collection(space, given, lap_ids)
