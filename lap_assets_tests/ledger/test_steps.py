"""What becomes of runs: steps of a decision, an operator's say, and that neither does harm when it comes late."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lap_assets.errors import BadInput, Conflict, LapError, NotFound
from lap_assets.model.decisions import (
    ASSIGN,
    CLEANED_RUN,
    DATA_STATE,
    DEFINE,
    DROP_MEMBER,
    FAULT,
    PAIR,
    PRIVATE,
    RUN_STATE,
    SETTLE,
    Step,
)
from lap_assets_tests.ledger.conftest import LOCAL, make_exposure, roster

A, B, C = "cam-000001", "cam-000002", "cam-000003"


@pytest.fixture
def defined(ledger):
    """Run 1 of three exposures."""
    ledger.add_tessellation(LOCAL)
    ledger.add_exposures([make_exposure(number) for number in (1, 2, 3)])
    ledger.define_runs("main", "demo")
    return ledger


def begin(ledger) -> None:
    """What chip mode does."""
    ledger.apply([
        *(Step(1, ASSIGN, name, f"main/{name}") for name in (A, B, C)),
        Step(1, PAIR, A, B), Step(1, PRIVATE, C), Step(1, RUN_STATE, value="run"),
    ])  # fmt: skip


def test_chip_mode_steps_are_rows(defined):
    """chip_id is assigned, pairs are set both ways, the others private, the run goes on (LAP-17, LAP-20, LAP-21)."""
    begin(defined)
    rows = roster(defined)
    assert [rows[name].chip_id for name in (A, B, C)] == [f"main/{name}" for name in (A, B, C)]
    assert (rows[A].pair_id, rows[A].pairwise, rows[A].private) == (f"main/{B}", True, False)
    assert (rows[B].pair_id, rows[B].pairwise, rows[B].private) == (f"main/{A}", True, False)
    assert (rows[C].pair_id, rows[C].pairwise, rows[C].private) == (None, False, True)
    assert defined.runs(state="run")[0].lap_id == 1
    run = defined.survey("main").runs[0]
    assert (run.member[A].pair, run.member[C].pair, run.member[C].private) == (B, "", True)


def test_a_chip_id_is_assigned_where_it_is_blank_only(defined):
    """An exposure is processed once per sequence (LAP-12, LAP-17)."""
    defined.apply([Step(1, ASSIGN, A, f"main/{A}")])
    defined.apply([Step(1, ASSIGN, A, f"other/{A}")])
    assert roster(defined)[A].chip_id == f"main/{A}"
    with pytest.raises(BadInput, match="is not one of exposure"):
        defined.apply([Step(1, ASSIGN, B, f"main/{A}")])
    with pytest.raises(BadInput, match="no chip_id given"):
        defined.apply([Step(1, ASSIGN, B)])


def test_a_drop_is_final_and_makes_its_companion_private(defined):
    """`drop`: never used again in this run; its companion becomes private (LAP-24, LAP-25)."""
    begin(defined)
    defined.apply([Step(1, DROP_MEMBER, B, reason="chips: unprocessable")])
    rows = roster(defined)
    assert (rows[B].data_state, rows[B].active, rows[B].reason) == ("drop", False, "chips: unprocessable")
    assert (rows[A].private, rows[A].pairwise, rows[A].pair_id) == (True, False, None)
    late = [Step(1, DATA_STATE, B, "full"), Step(1, PAIR, A, B), Step(1, PRIVATE, B), Step(1, DROP_MEMBER, B)]
    defined.apply(late)
    assert roster(defined) == rows
    run = defined.survey("main").runs[0]
    assert run.members == (A, C) and run.everyone == (A, B, C) and run.member[B].reason == "chips: unprocessable"


def test_data_states_are_informative(defined):
    """to_diff, to_magic, full are written, and change nothing else (LAP-25)."""
    journaled = len(entries(defined))
    defined.apply([Step(1, DATA_STATE, A, "to_diff"), Step(1, DATA_STATE, B, "to_magic")])
    assert [one.data_state for one in defined.members(1)] == ["to_diff", "to_magic", "new"]
    assert len(entries(defined)) == journaled + 1
    for value in ("odd", "drop", ""):
        with pytest.raises(BadInput, match="data state"):
            defined.apply([Step(1, DATA_STATE, A, value)])


def entries(ledger) -> list:
    return ledger._journal.__self__


def test_a_full_run_gets_its_final_set_and_frees_its_exposures(defined):
    """`final_sass_id` once, all members inactive, then settled and cleaned (LAP-05, LAP-32)."""
    begin(defined)
    assert defined.runs()[0].final_sass_id is None
    defined.apply([Step(1, SETTLE), Step(1, CLEANED_RUN)])  # too early: nothing
    assert not (defined.runs()[0].settled or defined.runs()[0].cleaned)
    for _ in range(2):
        defined.apply([Step(1, RUN_STATE, value="full")])
        (run,) = defined.runs()
        assert (run.state, run.final_sass_id) == ("full", 1)
    assert not any(one.active for one in defined.members(1))
    defined.apply([Step(1, RUN_STATE, value="run")])  # decided on an older state
    assert defined.runs()[0].state == "full"
    defined.apply([Step(1, SETTLE), Step(1, CLEANED_RUN)])
    assert defined.runs()[0].settled and defined.runs()[0].cleaned


def test_a_late_exposure_keeps_a_run_open(defined):
    """Decided before it came: the run is neither full nor at its end (LAP-17, LAP-32)."""
    begin(defined)
    defined.apply([Step(1, DROP_MEMBER, name, reason="bad") for name in (A, B, C)])
    defined.add_exposures([make_exposure(4)])
    defined.define_runs("main", "demo")
    defined.apply([Step(1, RUN_STATE, value="full"), Step(1, FAULT, value="2", reason="every exposure was dropped")])
    assert (defined.runs()[0].state, defined.runs()[0].fault) == ("run", 0)
    defined.apply([Step(1, DROP_MEMBER, "cam-000004", reason="bad"), Step(1, FAULT, value="2", reason="none left")])
    assert (defined.runs()[0].fault, defined.runs()[0].fault_reason) == (2, "none left")


def test_a_fault_ends_a_run_but_never_a_full_one(defined):
    begin(defined)
    defined.cancel(1, "wrong filter")
    (run,) = defined.runs()
    assert (run.fault, run.fault_reason, run.state) == (1, "wrong filter", "run")
    assert not any(one.active for one in defined.members(1))
    defined.apply([Step(1, RUN_STATE, value="full"), Step(1, FAULT, value="2")])
    assert (defined.runs()[0].state, defined.runs()[0].fault) == ("run", 1)
    defined.apply([Step(1, CLEANED_RUN)])
    assert defined.runs()[0].cleaned
    for value in ("0", "9", "", "x"):
        with pytest.raises(BadInput, match="fault"):
            defined.apply([Step(1, FAULT, value=value)])


def test_reopening_makes_all_but_dropped_members_active_again(defined):
    begin(defined)
    defined.apply([Step(1, DROP_MEMBER, B, reason="bad"), Step(1, RUN_STATE, value="full"), Step(1, SETTLE)])
    defined.reopen(1, "new flats")
    (run,) = defined.runs()
    assert (run.state, run.settled, run.cleaned, run.final_sass_id, run.fault) == ("run", False, False, None, 0)
    assert [one.active for one in defined.members(1)] == [True, False, True]
    defined.apply([Step(1, RUN_STATE, value="full")])
    assert defined.runs()[0].final_sass_id == 2  # another set
    with pytest.raises(NotFound, match="no run 9"):
        defined.reopen(9, "")


def test_a_person_may_take_dropped_exposures_up_again(defined):
    """Final for every decision (LAP-24); `lap run --retry` is a person's word. What was cancelled stays so."""
    begin(defined)
    defined.apply([Step(1, DROP_MEMBER, name, reason="no flats") for name in (A, B, C)])
    defined.apply([Step(1, FAULT, value="2", reason="every exposure was dropped")])
    assert defined.readmit("main") == [1]
    (run,) = defined.runs()
    assert (run.state, run.fault) == ("run", 0)
    assert all(one.active and one.data_state == "new" and not one.reason for one in defined.members(1))
    assert all(one.chip_id and not one.private and not one.pairwise for one in defined.members(1))
    assert defined.readmit("main") == []
    defined.apply([Step(1, DROP_MEMBER, A, reason="again")])
    defined.cancel(1, "not wanted")
    assert defined.readmit("main") == []


def test_an_operator_pauses_prefers_and_drains(defined):
    defined.set_priority(1, 7)
    defined.pause(1)
    assert (defined.runs()[0].priority, defined.runs()[0].paused) == (7, True)
    defined.pause(1, False)
    run = defined.survey("main").runs[0]
    assert (run.priority, run.paused) == (7, False)
    assert not defined.draining()
    for value in (True, True, False):
        defined.set_draining(value)
        assert defined.draining() is value
    for change in (lambda: defined.set_priority(9, 1), lambda: defined.pause(9, True), lambda: defined.cancel(9, "x")):
        with pytest.raises(NotFound, match="no run 9"):
            change()


def test_only_cleaned_runs_are_retired_and_leave_the_partition_sets(defined):
    """Retired: its pairs and exposures are no partitions any more, its cell and band stay."""
    begin(defined)
    defined.add_exposures([make_exposure(4, "g")])
    defined.define_runs("main", "demo")
    with pytest.raises(BadInput, match="run 1 is not cleaned yet"):
        defined.retire("main", [1])
    defined.apply([Step(1, RUN_STATE, value="full"), Step(1, SETTLE), Step(1, CLEANED_RUN)])
    assert defined.retire("main", [1, 1]) == [1] and defined.retire("main", [1]) == []
    for lean in (False, True):
        sets = defined.survey("main", lean=lean).partition_sets
        assert sets["exposures"] == ("cam-000004",) and sets["exposure_cells"] == ("cam-000004|demo.0",)
        assert sets["cell_bands"] == ("demo.0|r", "demo.0|g") and sets["cells"] == ("demo.0",)
    with pytest.raises(NotFound, match="no run 1 in sequence 'other'"):
        defined.retire("other", [1])
    defined.define_sequence("other")
    defined.add_exposures([make_exposure(5)])
    defined.define_runs("main", "demo")  # one more exposure: it is open again, and back
    assert len(defined.survey("main").partition_sets["exposures"]) == 5


def test_steps_are_all_done_or_none(defined):
    """A step for a member there is not: nothing of the tick is written, and nothing journaled."""
    before, journaled = roster(defined), len(entries(defined))
    for bad, error in (
        (Step(1, PRIVATE, "cam-999999"), NotFound), (Step(7, PRIVATE, A), NotFound), (Step(1, "odd"), BadInput),
        (Step(1, DEFINE, value="3"), BadInput), (Step(1, PAIR, A, A), BadInput),
        (Step(1, PAIR, A, "x'; DROP TABLE lap_run; --"), NotFound),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            defined.apply([Step(1, ASSIGN, A, f"main/{A}"), bad])
        assert "\n" not in str(caught.value)
    assert roster(defined) == before and len(entries(defined)) == journaled
    defined.apply([])


STEPS = st.builds(
    Step,
    st.just(1),
    st.sampled_from([ASSIGN, PAIR, PRIVATE, DROP_MEMBER, DATA_STATE, RUN_STATE, SETTLE, CLEANED_RUN, FAULT]),
    st.sampled_from([A, B, C]),
    st.sampled_from([f"x/{A}", A, B, C, "run", "full", "to_diff", "1", "2"]),
)


def test_whatever_steps_come_the_rows_make_sense_and_come_back(place):
    """Pairs are pairs of two still in use, drop is final, ended runs use nothing; the journal tells the same story."""
    ledger = place.create()
    ledger.add_tessellation(LOCAL)
    ledger.add_exposures([make_exposure(number) for number in (1, 2, 3)])

    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(STEPS, max_size=12))
    def check(steps):
        (run,) = ledger.define_runs(f"s{len(ledger.runs())}", "demo")
        dropped: set[str] = set()
        for step in steps:
            try:
                ledger.apply([replace(step, lap_id=run.lap_id)] * 2)  # a tick repeated
            except LapError:
                continue
            dropped = check_rows(ledger, run, dropped)

    check()
    second = place.create()
    second.rebuild(list(place.entries), [])
    assert ledger.runs() == second.runs()
    for run in ledger.runs():
        for mine, theirs in zip(ledger.members(run.lap_id), second.members(run.lap_id), strict=True):
            informative = mine.data_state if "drop" not in (mine.data_state, theirs.data_state) else theirs.data_state
            assert mine == replace(theirs, data_state=informative)
    ledger.close(), second.close()


def check_rows(ledger, run, dropped: set[str]) -> set[str]:
    """What always holds of a run and its members; returns those dropped by now."""
    rows, now = {one.exposure: one for one in ledger.members(run.lap_id)}, ledger.runs(lap_ids=[run.lap_id])[0]
    dropped = dropped | {name for name, one in rows.items() if one.data_state == "drop"}
    assert all(rows[name].data_state == "drop" and not rows[name].active for name in dropped)
    over = now.state == "full" or now.fault
    assert not (over and any(one.active for one in rows.values()))
    assert (now.final_sass_id is None) == (now.state != "full")
    for one in rows.values():
        if one.pairwise:
            mate = next(
                other for other in rows.values() if one.pair_id in (other.chip_id, f"{run.sequence}/{other.exposure}")
            )
            assert mate.pairwise and mate.pair_id in (one.chip_id, f"{run.sequence}/{one.exposure}")
            assert mate.exposure != one.exposure and mate.data_state != "drop"
    return dropped


def test_a_name_used_twice_is_a_conflict(ledger):
    """One sequence of a name (LAP-01)."""
    assert ledger.define_sequence("a", exist_ok=False) == 1
    with pytest.raises(Conflict, match="sequence 'a' is number 1 already"):
        ledger.define_sequence("a", "again", exist_ok=False)
    assert ledger.sequences()[0].description == ""
    for name in ("a'b", 'a"b', "a;b", "a b", "", "a/b"):
        with pytest.raises(BadInput, match="sequence"):
            ledger.define_sequence(name)
