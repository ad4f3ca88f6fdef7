"""Cleanup mode, and what was cleaned coming back."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.model import decisions as words
from lap_assets.model.decisions import CLEAN, MAKE, RECREATE
from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import CLEANED, DONE
from lap_assets_tests.lap.worlds import World, make_survey

INTERMEDIATES = {name for name, product in PRODUCTS.items() if product.intermediate}


def overlapping() -> World:
    """Two cells that share all exposures; the second run is held back while the first one ends."""
    world = World(make_survey(4, "r", ("sky.0", "sky.1")))
    world.replace_run(replace(world.run(2), paused=True))
    return world


def cleaned(world: World) -> set:
    return {ref for ref, state in world.states.items() if state.state == CLEANED}


def test_only_what_every_run_is_over_with_is_cleaned():
    """LAP-33: counted by chip_id over all runs: nothing goes while one of them has the exposure active."""
    world = overlapping().drive()
    assert world.run(1).settled and not cleaned(world) and not world.run(1).cleaned
    world.replace_run(replace(world.run(2), paused=False))
    world.drive()
    everything = {ref for ref in world.states if ref[0] in INTERMEDIATES}
    assert cleaned(world) == everything
    assert {product for product, _ in everything} == {"chips", "warps", "stacks", "diffs", "streak_masks"}
    assert all(run.cleaned for run in world.survey.runs)
    reasons = {a.reason for a in world.made if a.kind == CLEAN and a.product == "chips"}
    assert "LAP-33: every run with chip_id main/cam-r0 is over" in reasons


def test_final_stacks_catalogues_and_maps_are_never_cleaned():
    """LAP-33."""
    world = World(make_survey(4)).drive()
    kept = {product for product, _ in world.states} - INTERMEDIATES
    assert {"final_stacks", "object_catalogs", "mass_maps", "transients", "solutions"} <= kept
    assert {state.state for ref, state in world.states.items() if ref[0] in kept} == {DONE}


def test_what_unfinished_catalogues_need_stays():
    """LAP-33: never a product that something unfinished still needs: transients are made from the differences."""
    world = World(make_survey(4, "r"))
    world.change(busy={("transients", "sky.0"): "launch:1"})
    world.drive()
    assert world.run(1).state == "full" and not world.run(1).settled and not cleaned(world)
    world.change(busy={})
    assert cleaned(world.drive())


def test_nothing_is_cleaned_whose_raw_could_not_be_had_again():
    """LAP-33, PHX-06: nor what is made from several exposures when one of them is gone."""
    world = World(make_survey(4, "r"), unavailable=frozenset({"cam-r1"})).drive()
    left = {ref for ref, state in world.states.items() if ref[0] in INTERMEDIATES and state.state == DONE}
    assert ("chips", "cam-r1") in left and ("warps", "cam-r1|sky.0") in left
    assert ("stacks", "sky.0|r") in left and ("diffs", "cam-r0|sky.0") in left
    assert ("chips", "cam-r0") in cleaned(world) and world.run(1).cleaned


def test_runs_may_be_kept_for_a_while():
    world = World(make_survey(4, "r"), kept=frozenset({1})).drive()
    assert not cleaned(world) and not world.run(1).cleaned
    world.change(kept=frozenset())
    assert cleaned(world.drive())


def test_a_run_given_up_is_cleaned_too():
    """LAP-33: its exposures are inactive like those of a complete one."""
    world = World(make_survey(4, "r"))
    world.drive(words.CHIP_MODE)
    world.carry_out(a for a in world.decide(words.CHIP_MODE, words.MONITOR_MODE).actions)
    world.apply([words.Step(1, words.FAULT, value="1", reason="cancelled")])
    world.drive()
    assert {ref for ref, state in world.states.items() if state.state == DONE and ref[0] in INTERMEDIATES} == set()


def test_nothing_goes_while_another_run_of_the_cell_goes_on():
    """LAP-33: what is made from all bands of a cell needs the differences of each."""
    world = World(make_survey(4, "gr"))
    both = world.survey.runs
    world.change(survey=replace(world.survey, runs=both[:1]))
    world.drive(words.CHIP_MODE, words.MONITOR_MODE)
    world.change(survey=replace(world.survey, runs=(world.run(1), both[1])))
    assert world.run(1).settled and world.decide(words.CLEANUP_MODE) == words.Decision()
    world.drive()
    assert {key for product, key in cleaned(world) if product == "diffs"} == set(world.survey.partitions("diffs"))


def test_a_run_is_not_cleaned_while_somebody_works_on_it():
    """LAP-33: it was cancelled meanwhile, and there will be files."""
    world = World(make_survey(4, "r"))
    world.apply([*world.decide(words.CHIP_MODE).steps, words.Step(1, words.FAULT, value="1", reason="cancelled")])
    for ref in (("chips", "cam-r0"), ("warps", "cam-r0|sky.0"), ("stacks", "sky.0|r")):
        world.change(busy={ref: "host:1"})
        assert world.decide(words.CLEANUP_MODE).steps == ()
    world.change(busy={("chips", "cam-g0"): "host:1"})
    assert [step.kind for step in world.decide(words.CLEANUP_MODE).steps] == [words.CLEANED_RUN]


def test_an_exposure_whose_warp_cannot_be_recreated_is_dropped():
    """LAP-24: for a late exposure all warps are stacked again; a run does not wait for one for ever."""
    world = World(make_survey(6, "r"))
    run = world.run(1)
    world.replace_run(replace(run, members=run.members[:5], roster=run.roster[:5]))
    world.drive()
    now, lost = world.run(1), ("warps", "cam-r0|sky.0")
    world.change(states=world.states | {lost: replace(world.states[lost], attempts=2, reason="no disk")})
    roster = tuple(replace(one, active=True) for one in (*now.roster, run.roster[5]))
    world.replace_run(replace(now, state="run", settled=False, cleaned=False, members=run.members, roster=roster))
    world.drive()
    one = world.run(1).member["cam-r0"]
    assert (one.data_state, one.reason) == ("drop", "warps: cleaned and not re-created: no disk")
    assert world.run(1).settled and ("warps", "cam-r0|sky.0") not in world.survey.upstream("stacks", "sky.0|r")


def test_what_is_made_from_a_lost_difference_is_dropped_and_the_cell_ends():
    """LAP-24: a run that is over loses no exposure; nothing waits for ever."""
    world = World(make_survey(4, "gr"))
    both = world.survey.runs
    world.change(survey=replace(world.survey, runs=both[:1]))
    world.drive()
    lost = ("chips", "cam-g0")
    world.change(states=world.states | {lost: replace(world.states[lost], attempts=2, reason="no raw file")})
    world.change(survey=replace(world.survey, runs=(world.run(1), both[1])))
    world.drive()
    assert "chips cam-g0 was cleaned and not re-created: no raw file" in world.states["transients", "sky.0"].reason
    assert all(run.settled for run in world.survey.runs) and world.run(1).member["cam-g0"].data_state == "full"


def test_an_overlapping_run_brings_back_exactly_the_chips_it_needs():
    """LAP-18: what was cleaned is re-created first, and nothing else of the earlier run."""
    world = World(make_survey(4, "r", ("sky.0", "sky.1")))
    second = world.run(2)
    world.change(survey=replace(world.survey, runs=(world.run(1),)))
    world.drive()
    n, before = len(world.made), world.states
    few = replace(second, members=second.members[:2], roster=tuple(
        replace(one, chip_id=f"main/{one.exposure}") for one in second.roster[:2]))  # fmt: skip
    world.change(survey=replace(world.survey, runs=(world.run(1), few)))
    world.drive(words.CHIP_MODE, words.MONITOR_MODE)
    back = {(a.product, a.partition) for a in world.made[n:] if a.kind == RECREATE}
    assert back == {("chips", "cam-r0"), ("chips", "cam-r1")}
    assert [a.partition for a in world.made[n:] if a.product == "warps"] == ["cam-r0|sky.1", "cam-r1|sky.1"]
    assert all(world.states[ref].content_sha256 == before[ref].content_sha256 for ref in back)
    kinds = [a.kind for a in world.made[n:] if a.product in ("chips", "warps")]
    assert kinds == [RECREATE] * 2 + [MAKE] * 2
    world.drive()
    assert world.states["chips", "cam-r0"].state == CLEANED


def test_what_cannot_be_recreated_is_dropped_from_the_new_run_and_the_old_one_stays_as_it_is():
    """LAP-24, LAP-18: the raw file is gone after all: no run waits for ever, and nothing finished is made again."""
    world = World(make_survey(4, "r", ("sky.0", "sky.1")))
    second = world.run(2)
    world.change(survey=replace(world.survey, runs=(world.run(1),)))
    world.drive()
    lost = ("chips", "cam-r0")
    world.change(survey=replace(world.survey, runs=(world.run(1), second)))
    world.change(states=world.states | {lost: replace(world.states[lost], attempts=2, reason="no raw file")})
    n = len(world.made)
    world.drive(words.CHIP_MODE, words.MONITOR_MODE)
    gone = world.run(2).member["cam-r0"]
    assert gone.data_state == "drop" and gone.reason == "chips: cleaned and not re-created: no raw file"
    assert world.run(2).state == "full" and world.run(1).settled
    world.change(revisit=True)
    world.drive(words.CHIP_MODE, words.MONITOR_MODE)
    assert not [a for a in world.made[n:] if "sky.0" in a.partition or a.partition == "cam-r0"]


def test_cleaned_inputs_of_cleaned_inputs_come_back_first():
    """LAP-18: other settings for the stacks: chips, then warps, then the stack."""
    world = World(make_survey(4, "r")).drive()
    n = len(world.made)
    world.change(configs=world.snapshot.configs | {"stacks": "other"}, revisit=True)
    world.carry_out(world.decide(words.MONITOR_MODE, words.CHIP_MODE).actions)
    assert {(a.product, a.kind) for a in world.made[n:]} == {("chips", RECREATE)}
    assert "re-created" in world.decide(words.MONITOR_MODE).waiting["stacks", "sky.0|r"]
    world.carry_out(world.decide(words.MONITOR_MODE, words.CHIP_MODE).actions)
    assert {(a.product, a.kind) for a in world.made[n + 4 :]} == {("warps", RECREATE)}
    assert [(a.product, a.kind) for a in world.decide(words.MONITOR_MODE, words.CHIP_MODE).actions] == [
        ("stacks", MAKE)
    ]


def test_a_difference_brings_back_the_stack_and_the_warps_of_its_template():
    """LAP-18: exactly what is read comes back: the first-pass stack, and the warps that are taken out of it."""
    world = World(make_survey(4, "r")).drive()
    n = len(world.made)
    world.change(configs=world.snapshot.configs | {"diffs": "other"}, revisit=True)
    for _ in range(4):
        world.carry_out(world.decide(words.MONITOR_MODE, words.CHIP_MODE).actions)
    back = {(a.product, a.kind) for a in world.made[n:]}
    assert back == {("chips", RECREATE), ("warps", RECREATE), ("stacks", RECREATE), ("diffs", MAKE)}


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.lists(st.integers(0, 2), min_size=0, max_size=3), st.data())
def test_nothing_needed_by_a_run_under_way_is_ever_cleaned(n, paused, data):
    """LAP-33: whatever is paused and in whatever order things are carried out."""
    world = World(make_survey(n, "r", ("sky.0", "sky.1", "sky.2")))
    for number in paused:
        world.replace_run(replace(world.run(number + 1), paused=True))
    for _ in range(200):
        decision = world.decide()
        if decision.steps:
            world.apply(decision.steps)
            continue
        if not decision.actions:
            break
        chosen = data.draw(st.sampled_from(decision.actions))
        if chosen.kind == CLEAN:
            exposure = chosen.partition.split("|")[0]
            active = {m.exposure for run in world.survey.runs for m in run.roster if m.active}
            assert exposure not in active
        world.carry_out([chosen])
