"""What the machine of `scheduling.py` found, one by one: each brought a survey to a halt or left files behind.

Every scene goes on to the end: all that is promised is looked at after each step, and everything must come to rest.
"""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lap_assets.lap.decide import decide
from lap_assets.model.decisions import MODES, MONITOR_MODE, RUN_STATE, Decision
from lap_assets.model.ids import JOIN
from lap_assets.model.states import CLEANED, DONE, DROPPED
from lap_assets.model.survey import PartitionRef
from lap_assets.operations.drive import take_snapshot
from lap_assets_tests.properties.scheduling import DRIVEN, Scheduling
from lap_assets_tests.properties.stand_in import CELLS, SKY, create_repository

pytestmark = pytest.mark.slow
FIRST, SECOND = CELLS[:2]
ALONE = "cam-a-g-2"  # on the first cell only, without a companion


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("found") / "template"
    create_repository(root)
    return root


@pytest.fixture
def scene(template, tmp_path) -> Iterator[Scheduling]:
    """Four exposures in g and one in r on three cells; run 1 is the first cell in g."""

    def place() -> Path:
        return Path(shutil.copytree(template, tmp_path / uuid.uuid4().hex))

    made = Scheduling(place)
    made.begin()
    yield made
    made.holds()
    made.teardown()


def work(scene: Scheduling, *modes: str, times: int = 1) -> None:
    for _ in range(times):
        scene.carry_out("main", scene.decide("main", modes).actions)
        scene.holds()


def add_late(scene: Scheduling, *cells: str) -> str:
    """An exposure on both cells, without a companion, that comes late; a member of the runs of some."""
    scene.add("ab", "g", 1, 0)
    scene.space.ledger.define_runs("main", SKY, cells=cells, bands=["g"])
    return scene.exposures[-1]


def state_of(scene: Scheduling, ref: PartitionRef) -> str:
    return scene.space.ledger.partition_states("main")[ref].state


@pytest.mark.parametrize("retired", [False, True])
def test_another_band_of_a_cell_that_was_cleaned(scene, retired):
    """LAP-33: the differences of the first band come back for the transients, and go again; also of a retired run."""
    scene.drive_to_rest("main", MODES)
    diff = ("diffs", f"{ALONE}{JOIN}{FIRST}")
    assert state_of(scene, diff) == CLEANED
    if retired:
        scene.space.ledger.retire("main", [1])
    scene.space.ledger.define_run("main", SKY, FIRST, "r")
    scene.drive_to_rest("main", DRIVEN)
    assert state_of(scene, diff) == DONE
    scene.drive_to_rest("main", MODES)
    assert state_of(scene, diff) == CLEANED and all(run.cleaned for run in scene.space.ledger.runs("main"))


def test_monitor_mode_ticks_before_chip_mode(scene):
    """LAP-28: a late exposure that another run has processed already; nobody knows yet that it is private."""
    scene.drive_to_rest("main", DRIVEN)
    scene.space.ledger.define_run("main", SKY, SECOND, "g")
    late = add_late(scene, SECOND)
    work(scene, *DRIVEN, times=3)
    assert state_of(scene, ("solutions", late)) == DONE
    add_late(scene, FIRST)
    work(scene, MONITOR_MODE, times=12)
    states = scene.space.ledger.partition_states("main")
    assert ("diffs", f"{late}{JOIN}{FIRST}") not in states


def decide_full(scene: Scheduling) -> Decision:
    """The decision that run 1 is full, not carried out."""
    while True:
        decision = decide(take_snapshot(scene.space, "main"), DRIVEN)
        if any((one.kind, one.value) == (RUN_STATE, "full") for one in decision.steps):
            return decision
        scene.apply(decision)
        scene.carry_out("main", decision.actions if not decision.steps else ())


def test_an_exposure_comes_after_its_run_was_decided_to_be_full(scene):
    """LAP-32: the run is not full then."""
    decision = decide_full(scene)
    late = add_late(scene, FIRST)
    scene.apply(decision)
    assert scene.space.ledger.runs("main")[0].state == "run"
    scene.drive_to_rest("main", MODES)
    assert state_of(scene, ("chips", late)) == CLEANED


@pytest.mark.parametrize("claimed", [True, False])
def test_a_run_is_cancelled_while_somebody_works_on_it(scene, claimed):
    """LAP-33: what has files after it was cleaned is cleaned, too."""
    actions = scene.decide("main", DRIVEN).actions
    batches = list(scene.stand_in.begin(scene.space, "main", actions)) if claimed else []
    scene.space.ledger.cancel(1, "by hand")
    scene.clean_up("main")
    assert scene.space.ledger.runs("main")[0].cleaned == (not claimed)
    for batch in batches:
        scene.stand_in.finish(scene.space, batch)
    if not claimed:
        scene.carry_out("main", actions, fresh=False)
    assert state_of(scene, ("chips", ALONE)) == DONE
    scene.drive_to_rest("main", MODES)
    assert state_of(scene, ("chips", ALONE)) == CLEANED


def test_one_run_is_followed_whose_neighbour_is_full_but_not_settled(scene):
    """LAP-28: the neighbour is looked at for its stacks; what is made of its cell is left alone."""
    ledger = scene.space.ledger
    ledger.define_runs("main", SKY, cells=[FIRST, SECOND])
    runs = {(run.cell, run.band): run.lap_id for run in ledger.runs("main")}
    for key, lap_id in runs.items():
        ledger.pause(lap_id, key != (SECOND, "g"))
    scene.drive_to_rest("main", DRIVEN)
    for lap_id in runs.values():
        ledger.pause(lap_id, False)
    for _ in range(20):
        decision = scene.decide("main", DRIVEN, [runs[FIRST, "g"]])
        assert not [one for one in decision.actions if one.partition == SECOND]
        scene.carry_out("main", decision.actions)


@pytest.mark.parametrize("product", ["chips", "warps", "diffs", "streak_masks"])
def test_what_is_gone_for_good_is_needed_for_another_band(scene, product):
    """LAP-24: the cell ends without it, and the finished run loses nothing."""
    scene.drive_to_rest("main", MODES)
    key = ALONE if product == "chips" else f"{ALONE}{JOIN}{FIRST}"
    scene.stand_in.failures["main", (product, key)] = 99
    for night in (0, 1):
        scene.add("a", "r", night, 0)
    scene.space.ledger.define_run("main", SKY, FIRST, "r")
    scene.drive_to_rest("main", MODES)
    assert state_of(scene, ("transients", FIRST)) == DROPPED and state_of(scene, (product, key)) == CLEANED
    assert "drop" not in {one.data_state for one in scene.space.ledger.members(1)}


@pytest.mark.parametrize("product", ["chips", "warps"])
def test_what_is_gone_for_good_is_needed_for_a_late_exposure(scene, product):
    """LAP-24: the exposure it was made from is dropped, and the run is full again."""
    scene.drive_to_rest("main", MODES)
    scene.stand_in.failures["main", (product, ALONE if product == "chips" else f"{ALONE}{JOIN}{FIRST}")] = 99
    add_late(scene, FIRST)
    scene.drive_to_rest("main", MODES)
    dropped = {one.exposure: one.reason for one in scene.space.ledger.members(1) if one.data_state == "drop"}
    assert dropped == {ALONE: f"{product}: cleaned and not re-created: a fault"}
    assert scene.space.ledger.runs("main")[0].settled


def test_a_postponed_difference_whose_stacks_change(scene):
    """LAP-28: it stays postponed: no run of the neighbouring cell is there."""
    scene.drive_to_rest("main", DRIVEN)
    diffs = [("diffs", f"{add_late(scene, FIRST)}{JOIN}{FIRST}") for _ in range(2)]
    scene.drive_to_rest("main", DRIVEN)
    assert [state_of(scene, ref) for ref in diffs] == [DROPPED, DROPPED]
