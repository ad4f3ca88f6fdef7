"""What people ask of a repository: here, products by the tags of their runs."""

from lap_assets.model.ids import DataId
from lap_assets.model.states import NO_WORK
from lap_assets.operations.read import list_units
from lap_assets_tests.defs.surveys import create_survey


def publish_empty(space, product: str, partition: str, unit: str = "") -> str:
    data_id = DataId("night", product, partition, unit)
    space.repo.publish(
        data_id, {}, inputs=(), recipe="r", config_sha256="c", code=1, metrics={}, state=NO_WORK, reason="nothing here"
    )  # fmt: skip
    return str(data_id)


def test_every_product_of_a_run_is_selected_by_its_distribution_group(tmp_path):
    """LAP-06: `dist_group` is handed to all dependent products, so that a distribution can be selected by it."""
    space = create_survey(tmp_path / "repo")
    for band, group in (("g", "blue"), ("r", "red")):
        space.ledger.define_runs("night", "rings.v3", bands=[band], dist_group=group, label="first")
    run = next(one for one in space.ledger.survey("night").runs if one.band == "r")
    exposure = run.members[0]
    mine = {
        publish_empty(space, "chips", exposure, "c0"),
        publish_empty(space, "warps", f"{exposure}|{run.cell}", "00"),
        publish_empty(space, "final_stacks", f"{run.cell}|r", "00"),
    }
    both = publish_empty(space, "mass_maps", run.cell)
    other = publish_empty(space, "final_stacks", f"{run.cell}|g", "00")
    red = list_units(space, None, "dist_group=red", "night")
    assert set(red["data_id"]) == mine and set(red["label"]) == {"first"}
    assert list(list_units(space, None, "dist_group=blue", "night")["data_id"]) == [other]
    assert both in set(list_units(space, None, "dist_group=*red*", "night")["data_id"])
