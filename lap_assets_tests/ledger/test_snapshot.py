"""What a decision sees: the runs asked for, what they need, and nothing of what ended long ago."""

from dataclasses import replace

import pytest

from lap_assets.errors import BadInput
from lap_assets.lap.decide import decide
from lap_assets.model.decisions import CHIP_MODE, CLEANED_RUN, MONITOR_MODE, SETTLE, Step
from lap_assets.model.ids import DataId
from lap_assets.model.products import PRODUCTS
from lap_assets.model.survey import hash_files
from lap_assets_tests.benchmarks.lap_scale import Scale, build_ledger
from lap_assets_tests.ledger.conftest import (
    LOCAL,
    Report,
    begin_runs,
    finish_runs,
    make_calibration,
    make_exposure,
)

SKY = {key: value for key, value in LOCAL.items() if key not in ("ra_deg", "dec_deg")} | {
    "centres": [[150.0, 2.0], [150.05, 2.0], [150.1, 2.0]]
}
CELLS = ("demo.0", "demo.1", "demo.2")


@pytest.fixture
def sky(ledger):
    """Three cells in a row, bands g and r: runs 1 to 6, an exposure or two over each pair of neighbours."""
    ledger.add_tessellation(SKY)
    ledger.add_calibrations([make_calibration("bias"), *(make_calibration("flat", band) for band in "griz")])
    ledger.add_exposures([make_exposure(n, "gr"[n % 2], ra=150.0 + 0.0125 * n) for n in range(9)])
    ledger.define_runs("main", "demo")
    return ledger


def record_all(ledger) -> None:
    """Everything there could be is done."""
    survey = ledger.survey("main")
    for product in PRODUCTS:
        for key in survey.partitions(product):
            ledger.record_partition("main", product, key, "done", content_sha256=f"{product} {key}")


def shown(snapshot) -> dict[int, tuple[int, bool]]:
    """Number of members and whether paused, by run."""
    return {run.lap_id: (len(run.members), run.paused) for run in snapshot.survey.runs}


def test_runs_of_the_ledger(sky):
    """The picture the other tests count on: run by run, with everyone."""
    rows = [(run.lap_id, run.cell, run.band, len(sky.members(run.lap_id))) for run in sky.runs("main")]
    assert rows == [
        (1, "demo.0", "g", 2), (2, "demo.0", "r", 2), (3, "demo.1", "g", 4), (4, "demo.1", "r", 4),
        (5, "demo.2", "g", 3), (6, "demo.2", "r", 3),
    ]  # fmt: skip


def test_an_open_snapshot_is_the_lean_survey_while_all_is_open(sky):
    """The same exposures, runs, rosters, cells and masters as the definitions have."""
    sky.add_exposures([make_exposure(99, "i", ra=10.0)])  # in no run
    begin_runs(sky, 1)
    full, lean, now = sky.survey("main"), sky.survey("main", lean=True), sky.snapshot("main")
    assert now.survey.runs == lean.runs == full.runs
    assert now.survey.exposures == lean.exposures and "cam-000099" not in lean.exposures
    for id_, one in full.exposures.items():
        expected = replace(one, chips=(), files_sha256=hash_files(one.chips))
        assert lean.exposures[id_] == expected and lean.exposures[id_].content == one.content
    assert now.survey.cells == lean.cells == full.cells
    assert now.survey.associations == lean.associations == full.associations
    # masters that nothing in it needs are left out, and frames have no place on the sky
    assert set(full.calibrations) - set(now.survey.calibrations) == {
        "cam|flat|i|2026-01-01", "cam|flat|z|2026-01-01"
    }  # fmt: skip
    for product in ("master_flats", "master_biases"):
        for key in now.survey.partitions(product):
            for survey in (now.survey, lean):
                assert survey.outside_facts(product, key) == full.outside_facts(product, key)
                assert survey.upstream(product, key) == full.upstream(product, key)
    assert lean.partition_sets == full.partition_sets
    assert (now.n_active, now.draining, now.busy, now.in_use) == (6, False, {}, frozenset(full.exposures))
    assert now.configs == {} and now.queue == ()


def test_settled_and_given_up_runs_are_left_out_of_an_open_snapshot(sky):
    """Full is still open until the products of its cell are made (LAP-03)."""
    begin_runs(sky, 1, 2, 3)
    finish_runs(sky, 1)
    assert set(shown(sky.snapshot("main"))) == {1, 2, 3, 4, 5, 6}
    finish_runs(sky, 3, 4, settle=True)
    sky.cancel(5, "clouds")
    assert sky.snapshot("main").n_active == 2
    # 3 and 4 hold stacks that private exposures of 1 and 2 wait for; nobody waits for 5
    assert shown(sky.snapshot("main")) == {
        1: (2, False), 2: (2, False), 3: (0, True), 4: (0, True), 6: (3, False),
    }  # fmt: skip


def test_runs_whose_stacks_are_waited_for_come_without_members(sky):
    """A private exposure waits for all overlapping stacks in neighbouring cells (LAP-28)."""
    begin_runs(sky, 1, 3)
    finish_runs(sky, 3, settle=True)
    record_all(sky)
    snapshot = sky.snapshot("main", lap_ids=[1])
    assert shown(snapshot) == {1: (2, False), 3: (0, True)}
    assert snapshot.states["stacks", "demo.1|g"].state == "done"
    assert ("stacks", "demo.1|r") not in snapshot.states
    assert not any(key.endswith("|demo.1") for _, key in snapshot.states)
    # nothing is ever decided about a run that came along
    decision = decide(with_configs(snapshot), [CHIP_MODE, MONITOR_MODE])
    assert decision.actions and {one.lap_id for one in decision.actions} <= {0, 1}
    assert {one.lap_id for one in decision.steps} <= {1}


def with_configs(snapshot):
    return replace(snapshot, configs=dict.fromkeys(PRODUCTS, ""))


def test_siblings_come_with_the_last_run_of_a_cell(sky):
    """Cell products need all runs of the cell, settled ones too, as soon as those asked for are full."""
    begin_runs(sky, 1, 2)
    finish_runs(sky, 2)
    sky.apply([Step(2, SETTLE)])
    record_all(sky)
    assert 2 not in shown(sky.snapshot("main", lap_ids=[1]))  # run 1 is not full yet
    finish_runs(sky, 1)
    snapshot = sky.snapshot("main")
    assert shown(snapshot)[2] == (2, True)
    assert snapshot.survey.bands_of["demo.0"] == ("g", "r")
    for exposure in snapshot.survey.used_on("demo.0"):
        assert ("diffs", f"{exposure}|demo.0") in snapshot.states
    assert {("final_stacks", f"demo.0|{band}") for band in "gr"} <= set(snapshot.states)
    assert ("transients", "demo.0") in snapshot.states


def test_an_unfinished_sibling_that_was_not_asked_for_keeps_its_cell_waiting(sky):
    """`lap run --lap-id 1` makes no catalogue of a cell whose other run is under way, and works on no other run."""
    begin_runs(sky, 1)
    finish_runs(sky, 1)
    snapshot = with_configs(sky.snapshot("main", lap_ids=[1]))
    assert shown(snapshot)[2] == (2, True)
    decision = decide(snapshot, [MONITOR_MODE])
    assert "waits for run 2 of the cell" in decision.waiting["object_catalogs", "demo.0"]
    assert not any(step.lap_id == 2 for step in decision.steps)
    assert not any(action.lap_id == 2 for action in decision.actions)


def test_states_are_those_the_runs_touch_and_no_others(sky):
    """Of every product; of cells, bands and exposures of other runs nothing."""
    sky.define_runs("second", "demo")
    record_all(sky)
    begin_runs(sky, 1, 2)
    finish_runs(sky, 3, 4, 5, 6, settle=True)
    whole = sky.partition_states("main")
    states = sky.snapshot("main").states
    assert {ref: whole[ref] for ref in states} == states
    used = {one.exposure for lap_id in (1, 2) for one in sky.members(lap_id)}
    expected = {
        ref for ref in whole
        if ref[0].startswith("master_") or ref[1] in used or ref[1] == "demo.0" or ref[1].startswith("demo.0|")
        or (ref[1].endswith("|demo.0") and ref[1].split("|")[0] in used)
    }  # fmt: skip
    cells = {cell for lap_id in (1, 2) for one in sky.members(lap_id) for cell in one.neighbours}
    around = {(product, f"{cell}|{band}") for product in ("stacks", "final_stacks") for cell in cells for band in "gr"}
    assert expected <= set(states) <= expected | around
    assert not sky.snapshot("second").states.keys() & {ref for ref in whole if not ref[0].startswith("master_")}


def test_scopes(sky):
    """What is to be cleaned: runs that are over, given up or full and settled, and not cleaned yet (LAP-33)."""
    begin_runs(sky, 1, 2, 3, 4)
    finish_runs(sky, 1, 2, settle=True)
    finish_runs(sky, 3)
    sky.apply([Step(2, CLEANED_RUN)])
    sky.cancel(6, "clouds")
    # 5 is under way in the cell of 6
    assert shown(sky.snapshot("main", "uncleaned")) == {1: (2, False), 5: (0, True), 6: (3, False)}
    assert set(shown(sky.snapshot("main", "uncleaned", lap_ids=[1, 2]))) == {1}
    snapshot = sky.snapshot("main", "all")
    assert shown(snapshot) == {n: (len(sky.members(n)), False) for n in range(1, 7)}
    assert len(snapshot.survey.calibrations) == 5
    assert sky.snapshot("nothing").survey.runs == () and sky.snapshot("nothing", "all").survey.exposures == {}
    with pytest.raises(BadInput, match="scope 'odd' is none of open, uncleaned, all"):
        sky.snapshot("main", "odd")


def test_exposures_are_in_use_while_any_run_has_them(sky):
    """Over all runs of the collection, in the snapshot or not (LAP-33)."""
    in_use = {name: {one.exposure for one in sky.members(n) if one.active} for n, name in ((1, "a"), (3, "b"))}
    finish_runs(sky, 1, settle=True)
    snapshot = sky.snapshot("main", "uncleaned")
    shared = in_use["a"] & in_use["b"]
    assert shared and shared <= snapshot.in_use
    assert not (in_use["a"] - in_use["b"]) & snapshot.in_use
    finish_runs(sky, 2, 3, 4, 5, 6)
    assert sky.snapshot("main").in_use == frozenset()


def test_a_retired_run_counts_in_a_snapshot_of_all_but_nothing_is_done_for_it(sky):
    """What was made of it is still what the catalogue of its cell is made from."""
    begin_runs(sky, 1, 2)
    finish_runs(sky, 1, 2, settle=True)
    sky.apply([Step(1, CLEANED_RUN)])
    sky.retire("main", [1])
    assert shown(sky.snapshot("main", "all"))[1] == (2, True)
    assert sky.survey("main").runs[0].members == ()


def test_partitions_being_made_or_launched_are_busy(sky, place):
    """By work leases and launch claims alike, of this collection and of the masters."""
    sky.acquire("main/warps/cam-000001|demo.0", "host:1", 60.0)
    sky.acquire("calib/master_biases/cam|bias|all|2026-01-01", "host:1", 60.0)
    sky.acquire("second/chips/cam-000002", "host:2", 60.0)
    sky.acquire("queue", "host:3", 60.0)
    keys = ["launch/main/chips/cam-000003", "launch/main/warps/cam-000001|demo.0"]
    assert sky.claim(keys, "launch:7", 30.0) == keys
    assert sky.snapshot("main").busy == {
        ("warps", "cam-000001|demo.0"): "host:1", ("chips", "cam-000003"): "launch:7",
        ("master_biases", "cam|bias|all|2026-01-01"): "host:1",
    }  # fmt: skip
    place.clock.time += 45.0
    assert ("chips", "cam-000003") not in sky.snapshot("main").busy


def test_a_late_calibration_is_not_used_before_its_night(sky):
    """Masters in a snapshot are those that the survey associates, whichever others there are."""
    sky.add_calibrations([make_calibration("bias", night="2026-01-02"), make_calibration("bias", night="2026-03-01")])
    sky.set_calibration_state("cam|bias|all|2026-01-02", "rejected")
    full, now = sky.survey("main"), sky.snapshot("main").survey
    assert now.associations == full.associations
    # the flats are made with the bias in force when they began
    assert set(now.calibrations) == {"cam|bias|all|2026-01-01", "cam|flat|g|2026-01-01", "cam|flat|r|2026-01-01"}
    for key in now.partitions("master_flats"):
        assert now.upstream("master_flats", key) == full.upstream("master_flats", key)


def test_history_does_not_enter_a_tick(place):
    """A survey twice as long with the same runs under way: the snapshot holds the same number of things."""
    sizes = []
    for n_runs in (10, 30):
        ledger = place.create()
        build_ledger(ledger, Scale(n_exposures=200, n_active=5, n_runs=n_runs, chips=1, visits=5))
        snapshot = ledger.snapshot("main")
        asked = [run for run in snapshot.survey.runs if not run.paused]
        assert len(ledger.runs()) == n_runs and len(asked) == 5
        assert set(snapshot.survey.exposures) == {name for run in asked for name in run.everyone}
        members = sum(len(run.everyone) for run in asked)
        rest = [ref for ref in snapshot.states if ref[0] not in ("stacks", "final_stacks")]
        assert 0 < len(rest) <= 2 * len(snapshot.survey.exposures) + 3 * members + 6 * 5 + 2
        sizes.append(len(ledger.partition_states("main")))
        ledger.close()
    assert sizes[1] > 2 * sizes[0]


def test_marked_partitions_keep_their_hashes(sky):
    """goto_cleaned, then cleaned: nothing made from them is made again (LAP-33)."""
    ref = ("chips", "cam-000001")
    reports = [
        Report(DataId("main", "chips", "cam-000001", "c0"), content="aa"),
        Report(DataId("main", "chips", "cam-000001", "c1"), "unprocessable", reason="saturated"),
    ]
    sky.record_partition("main", *ref, "done", inputs_sha256="i", content_sha256="c", config_sha256="k",
                         unit_reports=reports)  # fmt: skip
    sky.record_partition("main", "chips", "cam-000002", "no_work", reason="empty")
    before = sky.partition_states("main")
    for state in ("goto_cleaned", "cleaned", "cleaned", "done"):
        sky.mark("main", [ref, ("chips", "cam-000002"), ("chips", "cam-000003")], state, "LAP-33: over")
        now = sky.partition_states("main")
        assert now[ref] == replace(before[ref], state=state, reason="LAP-33: over")
        assert now["chips", "cam-000002"] == before["chips", "cam-000002"] and len(now) == 2
        assert [row.state for row in sky.units("main", "chips", "cam-000001")] == [state, "unprocessable"]
        assert sky.unit_counts("main")[ref] == {state: 1, "unprocessable": 1}
    with pytest.raises(BadInput, match="not 'failed'"):
        sky.mark("main", [ref], "failed")
