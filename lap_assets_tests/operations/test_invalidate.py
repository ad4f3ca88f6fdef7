"""Withdrawing something bad: what was made from it is found by the manifests, listed, and made again.

On made-up products: what counts is who was made from whom, not their pixels.
"""

import pandas as pd
import pytest

from lap_assets.errors import BadInput, NotFound
from lap_assets.lap.decide import decide
from lap_assets.lap.inputs import hash_inputs
from lap_assets.model.associations import CERTIFIED, REJECTED
from lap_assets.model.ids import DataId, Pin
from lap_assets.model.products import home_of
from lap_assets.operations.drive import take_snapshot
from lap_assets.operations.gc import collect_garbage
from lap_assets.operations.invalidate import plan_withdrawal, withdraw
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.defs.surveys import create_survey
from lap_assets_tests.ledger.conftest import Report, finish_runs
from lap_assets_tests.store.samples import make_image

CELL = "rings.v3.1359"
BIAS, LATER_BIAS = "simtiny|bias|all|2024-03-01", "simtiny|bias|all|2024-04-01"
OLD, NEW = "simtiny|flat|g|2024-03-01", "simtiny|flat|g|2024-04-01"
FIRST, SECOND = "simtiny-west-g-0", "simtiny-west-g-1"  # of 2024-03-08 and 2024-04-10


def publish(space: Workspace, product: str, key: str, *inputs: Pin, unit: str = "c0") -> Pin:
    """A unit made from others, in store and ledger."""
    data_id = DataId(home_of("main", product), product, key, unit)
    table = pd.DataFrame({"exposure": ["e"], "dzp_mag": [0.0], "dzp_err_mag": [0.1], "n_stars": [9]})
    members = {"zeropoints.parquet": table} if product == "joint_solutions" else {"image.fits": make_image(1)}
    facts = {"recipe": "r", "config_sha256": "c", "code": 1, "metrics": {}}
    manifest = space.repo.publish(data_id, members, inputs=inputs, **facts)
    report = Report(data_id, "done", manifest.content_sha256, bytes=manifest.bytes)
    space.ledger.record_partition(
        "main", product, key, "done", content_sha256=manifest.content_sha256, unit_reports=[report],
        config_sha256=space.configs()[product],
        inputs_sha256=hash_inputs(space.survey(), space.ledger.partition_states(), (product, key)),
    )  # fmt: skip
    return manifest.pin


@pytest.fixture
def space(tmp_path) -> Workspace:
    """Two exposures, each with its flat, and what was made from them; their run is full."""
    space = create_survey(tmp_path / "repository")
    made = []
    for bias, flat, exposure in ((BIAS, OLD, FIRST), (LATER_BIAS, NEW, SECOND)):
        first = publish(space, "master_biases", bias)
        made.append(publish(space, "chips", exposure, first, publish(space, "master_flats", flat, first)))
    joint = publish(space, "joint_solutions", f"{CELL}|g", *made, unit="")
    for exposure, chips in zip((FIRST, SECOND), made, strict=True):
        publish(space, "warps", f"{exposure}|{CELL}", chips, joint, unit="00")
    for key in (BIAS, LATER_BIAS, OLD, NEW):
        space.ledger.set_calibration_state(key, CERTIFIED)
    finish_runs(space.ledger, 1, settle=True)
    return space


def test_what_was_made_from_a_master_is_found_by_its_manifests(space):
    """PHX-02: directly or not, with units and bytes; nothing is touched."""
    before = space.ledger.partition_states(), space.ledger.calibrations(), space.repo.all_units()
    plan = plan_withdrawal(space, NEW)
    # by the joint solution also the warp of the exposure that had another flat
    assert [one.ref for one in plan.affected] == [
        ("chips", SECOND), ("joint_solutions", f"{CELL}|g"), *(("warps", f"{one}|{CELL}") for one in (FIRST, SECOND)),
    ]  # fmt: skip
    sizes = [space.repo.manifest(unit).bytes for unit in space.repo.all_units("main", "warps")]
    assert plan.units == 4 and plan.affected[-1].bytes == sizes[0] > 0
    assert plan.runs == {"main": (1,)} and plan.stranded == {}
    whole = plan_withdrawal(space, BIAS)
    assert [one.product for one in whole.affected] == [
        "master_flats", "chips", "joint_solutions", "warps", "warps",
    ]  # fmt: skip
    assert (space.ledger.partition_states(), space.ledger.calibrations(), space.repo.all_units()) == before


def test_a_withdrawn_master_is_rejected_and_everything_from_it_is_made_again(space):
    """PHX-02: frozen joint solutions included; a run that was full goes on, and what had another flat stays."""
    assert withdraw(space, plan_withdrawal(space, NEW), "lamp was off") == 4
    assert space.ledger.calibrations()[NEW].state == REJECTED
    states = space.ledger.partition_states()
    because = f"invalidated: {NEW} was withdrawn: lamp was off"
    joint = ("joint_solutions", f"{CELL}|g")
    for ref in (("chips", SECOND), joint, ("warps", f"{SECOND}|{CELL}")):
        assert (states[ref].state, states[ref].reason) == ("done", because)
    assert states["chips", FIRST].reason == ""
    assert space.ledger.runs(lap_ids=[1])[0].state == "run"
    assert space.survey().associations[SECOND][-1] == ("master_flats", OLD)
    actions = {(one.product, one.partition): one.reason for one in decide(take_snapshot(space, "main")).actions}
    assert actions["chips", SECOND] == because
    # the files are there until they are replaced
    assert all(space.repo.has_files(unit) for unit in space.repo.all_units())


def test_exposures_that_no_master_is_left_for_are_named_and_wait(space):
    """PHX-02: before it is done; then they wait for other frames and are not dropped."""
    withdraw(space, plan_withdrawal(space, NEW), "lamp was off")
    plan = plan_withdrawal(space, OLD)
    assert set(plan.stranded["main"]) == {name for name in space.survey().exposures if "-g-" in name}
    withdraw(space, plan, "dust")
    text = f"waits: {NEW} was rejected (lamp was off) and no other flat frames of band g are valid on 2024-04-10"
    assert decide(take_snapshot(space, "main")).waiting["chips", SECOND].startswith(text)


def test_a_product_is_taken_away_and_what_was_made_from_it_is_made_again(space):
    """One unit in quarantine, its bytes kept; the others of its partition stay."""
    publish(space, "chips", FIRST, unit="c1")
    target = f"main/chips/{FIRST}/c0"
    plan = plan_withdrawal(space, target)
    assert [one.product for one in plan.affected] == ["joint_solutions", "warps", "warps"]
    assert withdraw(space, plan, "satellite") == 3
    assert [str(unit) for unit in space.repo.units("main", "chips", FIRST)] == [f"main/chips/{FIRST}/c1"]
    assert list(space.repo.layout.quarantine.rglob("image.fits"))
    state = space.ledger.partition_states()["chips", FIRST]
    assert state.state == "corrupt" and state.reason == f"c0: {target} was withdrawn: satellite"
    assert space.ledger.partition_states()["warps", f"{FIRST}|{CELL}"].reason.startswith("invalidated: ")


def test_the_files_of_a_rejected_master_go_once_nothing_is_made_from_it(space):
    """PHX-02: not before; what is known of it stays."""
    spare = publish(space, "master_flats", "simtiny|flat|r|2024-04-01").data_id
    used = DataId("calib", "master_flats", NEW, "c0")
    for key in (NEW, spare.partition):
        space.ledger.set_calibration_state(key, REJECTED)
    found = collect_garbage(space, dry_run=True)
    assert (found.masters, found.master_bytes) == (1, space.repo.manifest(spare).bytes)
    assert space.repo.has_files(spare)
    assert collect_garbage(space).masters == 1 and collect_garbage(space).masters == 0
    assert not space.repo.has_files(spare) and space.repo.has_files(used)
    assert space.ledger.partition_states()["master_flats", spare.partition].state == "cleaned"


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        ("simtiny|flat|g|2000-01-01", NotFound, "no calibration 'simtiny|flat|g|2000-01-01'; `lap calibration ls`"),
        (f"calib/master_flats/{OLD}", BadInput, f"name the calibration set, lap invalidate '{OLD}'"),
        ("main/chips/nobody", NotFound, "nothing of it is in the store"),
        ("main/stocks/x", BadInput, "unknown product 'stocks'"),
    ],
)
def test_what_is_not_there_cannot_be_withdrawn(space, target, error, text):
    with pytest.raises(error) as caught:
        plan_withdrawal(space, target)
    assert text in str(caught.value)
