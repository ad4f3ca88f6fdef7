"""Only certified masters count: what waits for a verdict, what goes on without, and what is made again."""

from dataclasses import replace

from lap_assets.lap.judge import find_held
from lap_assets.model.associations import BUILT, CERTIFIED, REJECTED, VIRTUAL
from lap_assets.model.decisions import MAKE
from lap_assets.model.states import DONE, UNPROCESSABLE
from lap_assets.model.survey import CalibrationSet
from lap_assets_tests.lap.worlds import World, make_survey

BIAS, FLAT = "cam|bias|all|2026-01-01", "cam|flat|r|2026-01-01"
HELD = "fraction beyond 6 sigma 3.00% > 1.00%"


def make_world(n: int = 3) -> World:
    return World(make_survey(n, "r"))


def list_made(world: World, product: str) -> list[str]:
    return [action.partition for action in world.made if (action.product, action.kind) == (product, MAKE)]


def test_masters_are_made_then_certified_then_used():
    """PHX-02: with nothing typed, where the rule finds nothing against them."""
    world = make_world().drive()
    assert {one.state for one in world.survey.calibrations.values()} == {CERTIFIED}
    assert world.run(1).state == "full" and len(list_made(world, "master_flats")) == 1


def test_chips_wait_for_a_master_that_is_made_and_not_certified():
    """PHX-02: not dropped, and told why; once a person certifies it they go on."""
    world = make_world()
    world.held[FLAT] = HELD
    world.drive()
    assert list_made(world, "chips") == []
    waiting = world.decide().waiting
    assert waiting["chips", "cam-r0"] == f"waits for certification of flat {FLAT}: {HELD}"
    assert all(one.data_state == "new" for one in world.run(1).roster)
    world.judge(FLAT, CERTIFIED)
    world.drive()
    assert world.run(1).state == "full" and len(list_made(world, "master_flats")) == 1


def test_a_flat_waits_for_its_bias_to_be_certified():
    """PHX-02: masters are made from certified masters only."""
    world = make_world()
    world.held[BIAS] = HELD
    world.drive()
    assert list_made(world, "master_flats") == [] and list_made(world, "master_biases") == [BIAS]
    assert world.decide().waiting["master_flats", FLAT] == f"waits for certification of bias {BIAS}: {HELD}"


def test_exposures_fall_back_on_the_certified_master_before_a_held_one():
    """PHX-02: they are processed, not kept waiting, where there is another."""
    survey = make_survey(3, "r")
    old = replace(survey.calibrations[FLAT], key="cam|flat|r|2025-12-01", valid_from="2025-12-01")
    world = World(replace(survey, calibrations=dict(survey.calibrations) | {old.key: old}))
    world.held[FLAT] = HELD
    world.judge(old.key, VIRTUAL)  # so that exposures are associated anew
    world.snapshot = replace(world.snapshot, revisit=True)  # masters that nothing asks for are made, too
    world.drive()
    assert set(list_made(world, "master_flats")) == {old.key, FLAT}
    assert world.survey.associations["cam-r0"][-1] == ("master_flats", old.key)
    assert world.run(1).state == "full"


def test_a_master_that_nothing_came_of_holds_nothing_up():
    """PHX-02: there is nothing to certify; the exposures end with that reason, as before."""
    world = World(make_survey(3, "r"), lambda ref: UNPROCESSABLE if ref[0] in ("master_flats", "chips") else DONE)
    world.drive()
    assert world.survey.calibrations[FLAT].state == BUILT
    assert len(list_made(world, "chips")) == 3 and world.run(1).fault == 2


def test_a_master_that_was_made_and_never_judged_is_looked_at_once_more():
    """PHX-02: as after an upgrade, or where the ledger lost the verdict; it is asked for once, and all goes on."""
    world = make_world().drive()
    world.judge(BIAS, VIRTUAL)
    world.snapshot = replace(world.snapshot, revisit=True)
    (action,) = world.decide().actions
    assert (action.product, action.partition, action.reason) == ("master_biases", BIAS, "made, and not judged yet")
    n = len(world.made)
    world.drive()
    assert [one.product for one in world.made[n:]] == ["master_biases"]


def test_exposures_whose_only_master_was_rejected_wait_for_another():
    """PHX-02: nothing is wrong with them, so that they are not dropped."""
    world = make_world()
    world.judge(FLAT, REJECTED, "lamp was off")
    world.drive()
    assert list_made(world, "chips") == []
    text = world.decide().waiting["chips", "cam-r0"]
    assert text.startswith(f"waits: {FLAT} was rejected (lamp was off)") and "ingest others" in text
    new = CalibrationSet("cam|flat|r|2026-01-02", "cam", "flat", "r", "2026-01-02")
    world.change(survey=replace(world.survey, calibrations=dict(world.survey.calibrations) | {new.key: new}))
    world.judge(new.key, VIRTUAL)
    world.drive()
    assert world.run(1).state == "full"


def test_withdrawing_a_master_remakes_what_was_made_from_it():
    """PHX-02: chips of the other master, and by their contents all that follows; joint solutions where it is said."""
    survey = make_survey(3, "r")
    old = replace(survey.calibrations[FLAT], key="cam|flat|r|2025-12-01", valid_from="2025-12-01")
    world = World(replace(survey, calibrations=dict(survey.calibrations) | {old.key: old})).drive()
    first = world.states
    world.judge(FLAT, REJECTED, "lamp was off")
    world.snapshot = replace(world.snapshot, revisit=True)
    states = world.states
    joint = ("joint_solutions", "sky.0|r")
    states[joint] = replace(states[joint], reason=f"invalidated: {FLAT} was withdrawn")
    world.change(states=states)
    world.drive()
    for ref in (("chips", "cam-r0"), ("solutions", "cam-r0"), joint, ("warps", "cam-r0|sky.0")):
        assert world.states[ref].content_sha256 != first[ref].content_sha256
    assert world.states[joint].reason == "" and world.decide().actions == ()


def test_frozen_joint_solutions_stay_where_nobody_invalidates_them():
    """The same without: they were made once for the run."""
    world = make_world().drive()
    before = world.states["joint_solutions", "sky.0|r"]
    world.version = 1  # all contents are new
    states = world.states
    states["chips", "cam-r0"] = replace(states["chips", "cam-r0"], reason="invalidated: a test")
    world.change(states=states, revisit=True)
    world.drive()
    assert world.states["joint_solutions", "sky.0|r"] == before
    assert list_made(world, "chips").count("cam-r0") == 2


def test_what_is_made_already_is_not_held_up():
    """PHX-02: chips that need nothing do not wait for a verdict that came later."""
    world = make_world().drive()
    world.judge(FLAT, BUILT, "a person has doubts")
    world.snapshot = replace(world.snapshot, revisit=True)
    decision = world.decide()
    assert decision.actions == () and ("chips", "cam-r0") in decision.settled
    assert find_held(world.survey, world.states, ("chips", "cam-r0")).endswith("a person has doubts")
