"""The queue keeps the number of active runs constant."""

from dataclasses import replace

from lap_assets.model.decisions import DEFINE, QueueEntry
from lap_assets_tests.lap.worlds import World, make_survey


def make_world(max_active: int, **facts: object) -> World:
    survey = make_survey(4, "gri")
    queue = tuple(QueueEntry(i + 1, "main", "sky", "sky.0", band) for i, band in enumerate("gri"))
    return World(replace(survey, runs=()), queue=queue, max_active=max_active, **facts)


def test_the_first_entry_never_launched_is_launched_whenever_a_run_completes():
    """LAP-34: in the order of the file, N at a time."""
    world = make_world(1)
    most = 0
    for _ in range(200):
        decision = world.decide()
        if decision.steps:
            world.apply(decision.steps)
        elif decision.actions:
            world.carry_out(decision.actions)
        else:
            break
        most = max(most, sum(run.state in ("new", "run") for run in world.survey.runs))
    assert most == 1
    assert [step.value for step in world.steps if step.kind == DEFINE] == ["1", "2", "3"]
    assert all(run.state == "full" and run.cleaned for run in world.survey.runs)


def test_as_many_are_launched_as_there_is_room_for():
    """LAP-34: N configurable."""
    world = make_world(2)
    assert [step.value for step in world.decide("queue").steps] == ["1", "2"]
    world.change(n_active=2)
    assert world.decide("queue").steps == ()


def test_nothing_is_launched_while_draining():
    assert make_world(2, draining=True).decide("queue").steps == ()
