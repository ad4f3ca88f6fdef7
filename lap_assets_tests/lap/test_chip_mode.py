"""Chip mode: what becomes of a new run."""

from dataclasses import replace

from lap_assets.model import decisions as words
from lap_assets.model.states import CLEANED, DONE, PartitionState
from lap_assets_tests.lap.worlds import World, make_survey


def with_member(world: World, lap_id: int, exposure: str, **values: object) -> None:
    run = world.run(lap_id)
    roster = tuple(replace(one, **values) if one.exposure == exposure else one for one in run.roster)
    world.replace_run(replace(run, roster=roster))


def chip_steps(world: World) -> list:
    return [step for step in world.decide(words.CHIP_MODE).steps if step.mode == words.CHIP_MODE]


def test_chips_are_queued_only_where_chip_id_is_blank_and_the_run_begins():
    """LAP-17: `chip_id` is assigned where it is blank. LAP-22: afterwards the run is `run`."""
    world = World(make_survey(3, "r"))
    with_member(world, 1, "cam-r1", chip_id="main/cam-r1")
    steps = chip_steps(world)
    assigned = {step.exposure: step.value for step in steps if step.kind == words.ASSIGN}
    assert assigned == {"cam-r0": "main/cam-r0", "cam-r2": "main/cam-r2"}
    assert (steps[-1].kind, steps[-1].value) == (words.RUN_STATE, "run")
    world.apply(steps)
    assert chip_steps(world) == []
    made = world.decide(words.CHIP_MODE).actions
    assert {action.product for action in made} == {"master_biases"}


def test_a_new_run_makes_nothing_before_chip_mode_looked_at_it():
    """LAP-13: defining a run queues nothing."""
    world = World(make_survey(4))
    assert world.decide(words.MONITOR_MODE).actions == ()
    assert "run 1 is new" in world.decide(words.MONITOR_MODE).waiting["final_stacks", "sky.0|g"]


def test_what_an_earlier_run_processed_is_marked_as_existing_cleaned_or_not():
    """LAP-18: `exists`, where the chip-processing is there, or was cleaned and comes back."""
    world = World(make_survey(3, "r"))
    for name, state in (("cam-r0", CLEANED), ("cam-r1", DONE)):
        with_member(world, 1, name, chip_id=f"main/{name}")
        world.change(states=world.states | {("chips", name): PartitionState(state, "i", "c", "config")})
    exists = {step.exposure for step in chip_steps(world) if step.kind == words.DATA_STATE and step.value == "exists"}
    assert exists == {"cam-r0", "cam-r1"}


def test_pairs_are_set_and_the_rest_is_private():
    """LAP-20: the companion's id both ways, pairwise. LAP-21: no pair: private."""
    world = World(make_survey(5, "r"))  # two visits in each night, the last one alone
    world.apply(chip_steps(world))
    member = world.run(1).member
    assert {name: one.pair for name, one in member.items()} == {
        "cam-r0": "cam-r1", "cam-r1": "cam-r0", "cam-r2": "cam-r3", "cam-r3": "cam-r2", "cam-r4": "",
    }  # fmt: skip
    assert [one.pairwise for one in member.values()] == [True] * 4 + [False]
    assert [one.private for one in member.values()] == [False] * 4 + [True]


def test_a_late_companion_pairs_with_the_private_exposure():
    """LAP-20: also when the second visit is ingested after the run began."""
    world = World(make_survey(2, "r"))
    run = world.run(1)
    world.replace_run(replace(run, members=run.members[:1], roster=run.roster[:1]))
    world.apply(chip_steps(world))
    assert world.run(1).member["cam-r0"].private
    now = world.run(1)
    world.replace_run(replace(now, members=run.members, roster=(*now.roster, run.roster[1])))
    world.apply(chip_steps(world))
    assert all(one.pairwise and not one.private for one in world.run(1).roster)
    assert all(one.chip_id for one in world.run(1).roster)


def test_paused_draining_and_faulted_runs_do_not_begin():
    for change, facts in (({"paused": True}, {}), ({"fault": 1}, {}), ({}, {"draining": True})):
        world = World(make_survey(2, "r"), **facts)
        world.replace_run(replace(world.run(1), **change))
        assert chip_steps(world) == []
