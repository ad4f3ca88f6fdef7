"""The plan before a run: what would be made, and what is missing for it."""

from lap_assets.lap.plan import Lacks, plan_work
from lap_assets.model.decisions import Snapshot
from lap_assets.model.products import PRODUCTS
from lap_assets_tests.lap.worlds import CONFIGS, World, make_survey


def plan(snapshot: Snapshot, problems: dict | None = None, **facts: object):
    return plan_work(snapshot, Lacks(problems or {}), lambda ref: ("00", "01"), **facts)


def test_everything_is_planned_before_anything_is_made_and_nothing_afterwards():
    """LV-04: the plan is what a run then makes."""
    world = World(make_survey(4))
    rows = plan(world.snapshot).rows
    assert {row.reason for row in rows} == {"missing"}
    world.drive("chip", "monitor")
    assert {(row.product, row.partition) for row in rows} == {(a.product, a.partition) for a in world.made}
    assert plan(world.snapshot).rows == ()


def test_changed_settings_plan_what_follows_with_its_reason():
    world = World(make_survey(4, "r")).drive("chip", "monitor")
    world.change(configs=CONFIGS | {"stacks": "other"})
    reasons = {row.product: row.reason for row in plan(world.snapshot).rows}
    assert reasons["stacks"] == "settings or code changed"
    assert reasons["final_stacks"] == "stacks sky.0|r is made again"
    assert not {"chips", "solutions", "warps"} & set(reasons)


def test_every_missing_input_is_listed_with_its_reason():
    """LV-04: what is lost takes what is made from it along, stacks go on with the rest."""
    snapshot = World(make_survey(6, "r")).snapshot
    found = {(row.product, row.partition): row for row in plan(snapshot, {("chips", "cam-r0"): "r0.fits is gone"}).rows}
    assert found["chips", "cam-r0"].problem == "r0.fits is gone" and found["chips", "cam-r0"].lost
    assert found["warps", "cam-r0|sky.0"].missing[0] == "chips cam-r0: r0.fits is gone"
    assert found["diffs", "cam-r0|sky.0"].missing == ("warps cam-r0|sky.0: r0.fits is gone",)
    stack = found["stacks", "sky.0|r"]
    assert not stack.lost and len(stack.missing) == 1 and "warps cam-r0|sky.0" in stack.missing[0]
    assert not found["final_stacks", "sky.0|r"].lost


def test_stacks_with_too_few_inputs_are_foreseen():
    """LAP-29: at least six inputs, configurable."""
    snapshot = World(make_survey(5, "r")).snapshot
    stack = next(row for row in plan(snapshot, min_inputs=6).rows if row.product == "stacks")
    assert stack.problem == "5 inputs, 6 needed" and not stack.lost
    assert not next(row for row in plan(snapshot, min_inputs=5).rows if row.product == "stacks").problem


def test_units_are_counted_by_product():
    snapshot = World(make_survey(4, "gr")).snapshot
    counts = plan(snapshot, {("chips", "cam-g0"): "gone"}).count()
    assert counts["chips"] == (8, 16, 1, 1) and counts["solutions"][2:] == (1, 1)
    assert list(counts) == [name for name in PRODUCTS if name in counts]
