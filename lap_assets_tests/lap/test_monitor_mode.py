"""Monitor mode: what becomes of runs under way, and of their cells."""

from dataclasses import replace

import pytest

from lap_assets.lap.monitor_mode import CELL_PRODUCTS
from lap_assets.model import decisions as words
from lap_assets.model.decisions import DROP, MAKE, QueueEntry
from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import DONE, DROPPED, FAILED, NO_WORK, UNPROCESSABLE
from lap_assets_tests.lap.worlds import MAX_ATTEMPTS, World, make_survey, outcomes

RUNNING = (words.CHIP_MODE, words.MONITOR_MODE)


def made(world: World, product: str, kind: str = MAKE) -> list[str]:
    return [action.partition for action in world.made if action.product == product and action.kind == kind]


def test_a_run_goes_from_new_to_full_and_everything_is_made_once():
    """LAP-23: every exposure at every stage. LAP-30: diff, then destreak. LAP-32: full, nothing active."""
    world = World(make_survey(6)).drive(*RUNNING)
    everything = {(product, key) for product in PRODUCTS for key in world.survey.partitions(product)}
    assert {(a.product, a.partition) for a in world.made} == everything and len(world.made) == len(everything)
    for run in world.survey.runs:
        assert (run.state, run.settled) == ("full", True)
        assert not any(one.active for one in run.roster)
        assert {one.data_state for one in run.roster} == {"full"}
    place = {(a.product, a.partition): i for i, a in enumerate(world.made)}
    for ref, i in place.items():
        assert all(place[up] < i for up in world.survey.upstream(*ref))


@pytest.mark.parametrize("product", ["chips", "solutions", "warps"])
@pytest.mark.parametrize("state", [UNPROCESSABLE, NO_WORK, DROPPED])
def test_an_exposure_without_anything_usable_is_dropped_for_good(product, state):
    """LAP-24: dropped, never used again in this run, and its companion becomes private."""
    bad = "cam-r0" if product != "warps" else "cam-r0|sky.0"
    world = World(make_survey(6, "r"), lambda ref: state if ref == (product, bad) else DONE).drive(*RUNNING)
    run = world.run(1)
    assert run.member["cam-r0"].data_state == "drop" and product in run.member["cam-r0"].reason
    assert run.member["cam-r1"].private and not run.member["cam-r1"].pairwise
    assert "cam-r0" not in run.members and run.state == "full"
    after = {"chips": 1, "solutions": 2, "warps": 3}[product]
    assert [a.product for a in world.made if a.partition.startswith("cam-r0")] == ["chips", "solutions", "warps"][
        :after
    ]
    before = world.states["chips", "cam-r0"]
    world.drive(*RUNNING)
    assert world.states["chips", "cam-r0"] is before


def test_a_fault_is_tried_again_and_then_dropped_and_the_rest_goes_on():
    """LAP-24: an unrecoverable fault; the stack is made from the others."""
    world = World(make_survey(6, "r"), outcomes(chips__cam_r0=FAILED)).drive(*RUNNING)
    kinds = [a.kind for a in world.made if a.partition == "cam-r0"]
    assert kinds == [MAKE] * MAX_ATTEMPTS + [DROP]
    assert world.run(1).state == "full" and world.run(1).member["cam-r0"].data_state == "drop"


def test_a_run_that_loses_every_exposure_ends_with_a_fault_that_is_named():
    world = World(make_survey(2, "r"), lambda ref: UNPROCESSABLE if ref[0] == "chips" else DONE).drive(*RUNNING)
    assert world.run(1).fault == 2 and words.FAULTS[2] == "no exposure left"
    assert world.run(1).state == "run" and ("stacks", "sky.0|r") not in world.states


def test_nothing_past_warps_is_decided_before_every_exposure_is_warped_or_dropped():
    """LAP-27: also pairwise differences wait for the last warp."""
    world = World(replace(make_survey(4, "r"), diff_against="pair"))
    late = ("warps", "cam-r3|sky.0")
    for _ in range(30):
        decision = world.decide(*RUNNING)
        world.apply(decision.steps)
        if not decision.steps:
            actions = [a for a in decision.actions if (a.product, a.partition) != late]
            if not actions:
                break
            world.carry_out(actions)
    past = {"stacks", "diffs", "streak_masks", "final_stacks", *CELL_PRODUCTS}
    assert not past & {a.product for a in world.made}
    world.carry_out([a for a in world.decide(*RUNNING).actions if (a.product, a.partition) == late])
    assert {"stacks", "diffs"} == {a.product for a in world.decide(*RUNNING).actions}


def test_a_pairwise_difference_takes_its_companion_and_no_stack():
    """LAP-28: paired: the companion's warp; a private one: the stacks."""
    world = World(replace(make_survey(3, "r"), diff_against="pair")).drive(*RUNNING)
    assert world.survey.upstream("diffs", "cam-r0|sky.0") == (("warps", "cam-r0|sky.0"), ("warps", "cam-r1|sky.0"))
    assert world.survey.upstream("diffs", "cam-r2|sky.0") == (("warps", "cam-r2|sky.0"), ("stacks", "sky.0|r"))


def two_cells() -> World:
    """Three exposures on both of two cells, the third without a companion; the second run is held back."""
    world = World(make_survey(3, "r", ("sky.0", "sky.1")))
    world.replace_run(replace(world.run(2), paused=True))
    return world.drive(*RUNNING)


def test_a_private_difference_is_postponed_until_all_neighbouring_stacks_have_ended():
    """LAP-28: dropped here, and the run that will take it up is named; taken up once the stacks are there."""
    world = two_cells()
    late = world.states["diffs", "cam-r2|sky.0"]
    assert (late.state, late.reason) == (DROPPED, "postponed to run 2 (cell sky.1)")
    assert made(world, "diffs") == ["cam-r0|sky.0", "cam-r1|sky.0"]
    assert world.run(1).state == "full" and world.run(1).member["cam-r2"].data_state == "to_diff"
    assert "postponed to run 2" in world.decide(*RUNNING).waiting["transients", "sky.0"]
    assert not world.run(1).settled
    world.replace_run(replace(world.run(2), paused=False))
    world.drive(*RUNNING)
    assert world.states["diffs", "cam-r2|sky.0"].state == DONE == world.states["diffs", "cam-r2|sky.1"].state
    assert all(run.settled and run.state == "full" for run in world.survey.runs)


@pytest.mark.parametrize("outcome", [NO_WORK, FAILED, UNPROCESSABLE])
def test_neighbouring_stacks_count_whatever_became_of_them(outcome):
    """LAP-26: `have_` = completed, or attempted and faulted, or too few inputs. LAP-28."""
    world = two_cells()
    world.outcome = lambda ref: outcome if ref == ("stacks", "sky.1|r") else DONE
    world.replace_run(replace(world.run(2), paused=False))
    world.drive(*RUNNING)
    assert world.states["diffs", "cam-r2|sky.0"].state == DONE


def test_a_neighbour_given_up_holds_nothing_back():
    """LAP-28: no deadlock."""
    world = two_cells()
    world.replace_run(replace(world.run(2), paused=False, fault=1))
    world.drive(*RUNNING)
    assert world.states["diffs", "cam-r2|sky.0"].state == DONE and world.run(1).settled


def test_without_a_run_of_the_neighbouring_cell_the_difference_is_left_and_the_run_ends():
    """LAP-28: postponed to a run that is not defined yet; this one ends all the same."""
    world = World(make_survey(3, "r", ("sky.0", "sky.1")))
    world.change(survey=replace(world.survey, runs=world.survey.runs[:1]))
    world.drive(*RUNNING)
    assert world.states["diffs", "cam-r2|sky.0"].reason == "postponed: no run of cell sky.1 yet"
    assert world.run(1).state == "full" and world.run(1).settled


def test_a_postponed_difference_stays_so_when_its_stacks_are_made_again():
    """LAP-28: a late exposure changes the stacks; the neighbouring ones are missing as before."""
    world = World(make_survey(5, "r", ("sky.0", "sky.1")))
    run = world.run(1)
    world.change(survey=replace(world.survey, runs=(replace(run, members=run.members[:3], roster=run.roster[:3]),)))
    world.drive(*RUNNING)
    n, now = len(world.made), world.run(1)
    names, roster = (*now.members, run.members[4]), (*now.roster, run.roster[4])
    world.replace_run(replace(now, state="run", settled=False, members=names, roster=roster))
    world.drive(*RUNNING)
    assert "cam-r2|sky.0" in [a.partition for a in world.made[n:] if a.product == "diffs" and a.kind == DROP]
    assert world.states["diffs", "cam-r2|sky.0"].reason == "postponed: no run of cell sky.1 yet"
    assert world.run(1).settled


def test_a_difference_postponed_to_a_run_in_the_queue_is_taken_up_by_it():
    """LAP-28, LAP-34: the cell is not closed before the neighbour's turn has come."""
    world = World(make_survey(3, "r", ("sky.0", "sky.1")), queue=(QueueEntry(1, "main", "sky", "sky.1", "r"),))
    world.change(survey=replace(world.survey, runs=world.survey.runs[:1]))
    world.drive(*RUNNING)
    assert not world.run(1).settled
    assert "in the queue" in world.decide(*RUNNING).waiting["transients", "sky.0"]
    world.change(max_active=1)
    world.drive(words.QUEUE_MODE, *RUNNING)
    assert world.states["diffs", "cam-r2|sky.0"].state == DONE
    assert all(run.settled for run in world.survey.runs)


def test_every_exposure_shows_how_far_it_came():
    """LAP-25: new, to_diff (warp done), to_magic (diff done), full."""
    world = World(make_survey(2, "r"))
    seen = []
    for _ in range(60):
        decision = world.decide(*RUNNING)
        if decision.steps:
            world.apply(decision.steps)
        elif decision.actions:
            world.carry_out([a for a in decision.actions if a.product == decision.actions[0].product])
        state = world.run(1).roster[0].data_state
        seen += [state] if state not in seen else []
    assert seen == ["new", "to_diff", "to_magic", "full"]


def test_cells_wait_for_all_their_runs_and_for_those_still_in_the_queue():
    """Catalogues and maps are made once, from all bands."""
    world = World(make_survey(4, "gr"), queue=(QueueEntry(1, "main", "sky", "sky.0", "i"),))
    world.replace_run(replace(world.run(2), paused=True))
    world.drive(*RUNNING)
    assert not set(CELL_PRODUCTS) & {a.product for a in world.made}
    assert "run 2" in world.decide(*RUNNING).waiting["object_catalogs", "sky.0"]
    world.replace_run(replace(world.run(2), paused=False))
    world.drive(*RUNNING)
    assert "queue" in world.decide(*RUNNING).waiting["object_catalogs", "sky.0"]
    world.change(queue=())
    world.drive(*RUNNING)
    assert sorted(a.product for a in world.made if a.partition == "sky.0") == sorted(CELL_PRODUCTS)


def test_a_late_exposure_redoes_only_what_it_changes():
    """LAP-31: the stacks are filled in; the other exposures' warps stay, for the joint solution is frozen."""
    world = World(make_survey(6, "r"))
    run = world.run(1)
    world.replace_run(replace(run, members=run.members[:5], roster=run.roster[:5]))
    world.drive(*RUNNING)
    n, now = len(world.made), world.run(1)
    world.replace_run(
        replace(now, state="run", settled=False, members=run.members, roster=(*now.roster, run.roster[5]))
    )
    world.drive(*RUNNING)
    again = [(a.product, a.partition) for a in world.made[n:]]
    assert ("warps", "cam-r5|sky.0") in again and ("final_stacks", "sky.0|r") in again
    assert not [ref for ref in again if ref[0] in ("warps", "chips", "joint_solutions") and "cam-r5" not in ref[1]]


def test_a_late_exposure_is_not_used_before_chip_mode_has_seen_it():
    """LAP-27, LAP-28: before, nobody knows whether it is private; its chips may be there for another run."""
    world = World(make_survey(5, "r", ("sky.0", "sky.1")))
    run = world.run(1)
    world.replace_run(replace(run, members=run.members[:4], roster=run.roster[:4]))
    world.drive(*RUNNING)
    now, late = world.run(1), replace(run.roster[4], chip_id="main/cam-r4")
    world.replace_run(replace(now, state="run", settled=False, members=run.members, roster=(*now.roster, late)))
    assert world.states["chips", "cam-r4"].state == DONE
    decision = world.decide(words.MONITOR_MODE)
    assert not decision.actions and "chip mode" in decision.waiting["warps", "cam-r4|sky.0"]
    world.drive(*RUNNING)
    assert world.run(1).settled and world.states["diffs", "cam-r4|sky.0"].state == DONE


def test_cells_of_neighbouring_runs_are_left_alone():
    """LAP-28: where only one run is followed its neighbours are in the picture for their stacks, without members."""
    world = two_cells()
    world.replace_run(replace(world.run(2), paused=False))
    world.drive(words.CHIP_MODE, words.MONITOR_MODE)
    near = replace(world.run(2), members=(), roster=(), settled=False, paused=True)
    world.replace_run(near)
    world.change(states={ref: one for ref, one in world.states.items() if ref[0] not in CELL_PRODUCTS})
    world.replace_run(replace(world.run(1), settled=False))
    assert {action.partition for action in world.decide(words.MONITOR_MODE).actions} == {"sky.0"}


def test_the_second_pass_waits_for_every_destreaked_difference():
    """LAP-31: final stacks take all that came before; LAP-32 only then."""
    world = World(make_survey(4, "r"))
    held = ("streak_masks", "cam-r3|sky.0")
    for _ in range(40):
        decision = world.decide(*RUNNING)
        world.apply(decision.steps)
        world.carry_out([] if decision.steps else [a for a in decision.actions if (a.product, a.partition) != held])
    assert ("final_stacks", "sky.0|r") not in world.states and world.run(1).state == "run"
    world.drive(*RUNNING)
    assert world.run(1).state == "full"


def test_runs_of_higher_priority_come_first():
    world = World(make_survey(4, "gr"))
    world.replace_run(replace(world.run(2), priority=5))
    world.apply(world.decide(*RUNNING).steps)
    world.carry_out(a for a in world.decide(*RUNNING).actions if a.product.startswith("master"))
    world.carry_out(a for a in world.decide(*RUNNING).actions if a.product.startswith("master"))
    actions = world.decide(*RUNNING).actions
    assert [a.lap_id for a in actions] == [2] * 4 + [1] * 4


def test_what_somebody_makes_is_left_to_them():
    """LAP-35: a second sensor or terminal does not ask for it again."""
    world = World(make_survey(2, "r"))
    world.apply(world.decide(*RUNNING).steps)
    (bias,) = (a for a in world.decide(*RUNNING).actions if a.product == "master_biases")
    world.change(busy={(bias.product, bias.partition): "launch:7"})
    decision = world.decide(*RUNNING)
    assert bias not in decision.actions
    assert "launch:7" in decision.waiting[bias.product, bias.partition]
