"""Selections turned into targets."""

from lap_assets.lap.select import products_before, select_targets
from lap_assets_tests.lap.worlds import World, make_survey


def drive(targets) -> list:
    return World(make_survey(), targets=frozenset(targets)).drive("chip", "monitor").made


def test_selection_takes_what_it_is_made_from_and_nothing_else():
    targets = select_targets(make_survey(), lambda v: v["band"] == "g", frozenset({"band"}), "stacks")
    made = drive(targets)
    there = make_survey()
    assert {a.product for a in made} == {name for name in products_before("stacks") if there.partitions(name)}
    assert all("cam-r" not in a.partition and "|r" not in a.partition for a in made)


def test_selection_of_an_exposure_makes_no_stack():
    targets = select_targets(make_survey(), lambda v: v["exposure"] == "cam-g0", frozenset({"exposure"}))
    assert {product for product, _ in targets} == {"chips", "solutions", "warps", "diffs", "streak_masks"}
    assert {a.partition for a in drive(targets) if a.product == "diffs"} == {"cam-g0|sky.0"}
