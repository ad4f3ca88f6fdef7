"""The decision function as a whole: what is made again when, for whom, and that it comes to rest."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.lap.decide import decide
from lap_assets.model import decisions as words
from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import CORRUPT, DONE, FAILED, NO_WORK, UNPROCESSABLE
from lap_assets_tests.lap.worlds import World, make_survey

RUNNING = (words.CHIP_MODE, words.MONITOR_MODE)


def revisit(world: World) -> World:
    """What `lap run` does: look at settled runs, too."""
    world.change(revisit=True)
    return world.drive(*RUNNING)


def again(world: World, n: int) -> set[tuple[str, str]]:
    return {(a.product, a.partition) for a in world.made[n:]}


def test_changed_input_remakes_what_is_made_from_it_but_not_the_frozen_joint_solution():
    world = World(make_survey()).drive(*RUNNING)
    n, ref = len(world.made), ("solutions", "cam-g0")
    world.change(states=world.states | {ref: replace(world.states[ref], content_sha256="other")})
    made = again(revisit(world), n)
    assert "joint_solutions" not in {product for product, _ in made}
    assert {key for product, key in made if product == "warps"} == {"cam-g0|sky.0"}
    assert {key for product, key in made if product == "final_stacks"} == {"sky.0|g"}


def test_changed_settings_remake_only_their_product_and_what_follows():
    world = World(make_survey()).drive(*RUNNING)
    world.change(configs=world.snapshot.configs | {"mass_maps": "other"}, revisit=True)
    decision = world.decide(*RUNNING)
    assert [(a.product, a.reason) for a in decision.actions] == [("mass_maps", "settings or code changed")]
    assert "mass_maps" in decision.waiting["mass_fits", "sky.0"]


def test_who_does_not_ask_for_settled_runs_is_spared_them():
    """A tick costs what is open, not what was done: a settled run is no longer looked at."""
    world = World(make_survey()).drive(*RUNNING)
    world.change(configs=dict.fromkeys(PRODUCTS, "other"))
    assert world.decide(*RUNNING).actions == ()


def test_damaged_product_of_an_open_run_is_made_again():
    world = World(make_survey(bands="r"))
    world.change(busy={("mass_maps", "sky.0"): "somebody"})
    world.drive(*RUNNING)
    ref, n = ("final_stacks", "sky.0|r"), len(world.made)
    world.change(states=world.states | {ref: replace(world.states[ref], state=CORRUPT, reason="a bit flipped")})
    assert again(world.drive(*RUNNING), n) == {ref}


def test_masters_are_made_without_an_exposure_that_asks_for_them():
    world = World(replace(make_survey(), runs=()), revisit=True).drive(*RUNNING)
    assert {a.product for a in world.made} == {"master_biases", "master_flats"} and len(world.made) == 3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_results_of_any_kind_never_block_and_a_decision_does_not_repeat_itself(data):
    """LAP-23, LAP-35: whatever mixture of results, every run ends full or with a named fault, and nothing waits."""
    world = World(make_survey(2, cells=("sky.0", "sky.1")))
    for _ in range(400):
        decision = world.decide(*RUNNING)
        assert decision == world.decide(*RUNNING)
        if decision.steps:
            world.apply(decision.steps)
            assert not set(decision.steps) & set(world.decide(*RUNNING).steps)
            continue
        if not decision.actions:
            break
        action = data.draw(st.sampled_from(decision.actions))
        state = data.draw(st.sampled_from([DONE, DONE, NO_WORK, UNPROCESSABLE, FAILED]))
        world.carry_out([action], lambda ref, state=state: state)
        assert action not in world.decide(*RUNNING).actions
    assert not decision.waiting
    assert all((run.state == "full" and run.settled) or run.fault in words.FAULTS for run in world.survey.runs)


def test_each_mode_carries_out_its_own():
    """LAP-35: chip mode, monitor mode, cleanup mode and the queue are parts of one decision."""
    world = World(make_survey(4, "r"))
    for _ in range(60):
        whole = world.decide()
        parts = [world.decide(mode) for mode in words.MODES]
        assert sorted(step for part in parts for step in part.steps) == sorted(whole.steps)
        assert sorted(a for part in parts for a in part.actions) == sorted(whole.actions)
        assert all(a.mode == mode for part, mode in zip(parts, words.MODES, strict=True) for a in part.actions)
        world.apply(whole.steps)
        world.carry_out(() if whole.steps else whole.actions)
    assert world.run(1).cleaned and decide(world.snapshot) == whole
