"""The plan before a run: the units a real run then makes, and the reason of everything that is missing for it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.errors import BadInput
from lap_assets.lap.inputs import hash_inputs
from lap_assets.lap.plan import Plan, PlanRow
from lap_assets.ledger.ledger import Ledger
from lap_assets.model.sphere import grow_polygons
from lap_assets.model.survey import CalibrationSet, ChipFile, Exposure
from lap_assets.model.tessellation import RingsTessellation, load_tessellation
from lap_assets.operations.drive import run_survey
from lap_assets.operations.plan import SkycellGrid, make_plan, show_plan
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.defs.surveys import ingest_small, square

pytestmark = pytest.mark.slow

LOCAL = {
    "kind": "local", "name": "demo", "ra_deg": 0.01, "dec_deg": 88.0, "pixel_scale_arcsec": 0.4, "skycell_px": 300,
    "grid": [5, 4], "overlap_px": 20,
}  # fmt: skip
GRIDS = [SkycellGrid(load_tessellation(LOCAL).cell("demo.0")), SkycellGrid(RingsTessellation().cell("rings.v3.1405"))]


def list_units(plan: Plan) -> set[tuple[str, str, str]]:
    """(product, partition, unit) of all that something can come of."""
    return {(row.product, row.partition, unit) for row in plan.rows if not row.lost for unit in row.units}


def read_units(ledger: Ledger) -> dict[tuple[str, str, str], str]:
    """State by (product, partition, unit)."""
    return {(one.data_id.product, one.data_id.partition, one.data_id.unit): one.state for one in ledger.units()}


def find_row(plan: Plan, product: str, partition: str) -> PlanRow:
    return next(row for row in plan.rows if (row.product, row.partition) == (product, partition))


# ---- what is made


def test_the_plan_of_a_fresh_survey_is_every_unit_that_is_then_made(made, tmp_path):
    """LV-04: 'a plan of so many units of work' counts what there is afterwards, product by product."""
    space = ingest_small(tmp_path / "fresh", made.parent / "sim")
    plan = make_plan(space, None)
    assert list_units(plan) == set(read_units(Workspace.open(made).ledger))
    assert plan.n_units == len(list_units(plan)) and {row.reason for row in plan.rows} == {"missing"}


def test_the_plan_has_the_runs_that_would_be_defined_first_and_defines_none(made, tmp_path):
    """`lap run` begins with its runs: as many units are planned whether or not they are there yet."""
    space = ingest_small(tmp_path / "fresh", made.parent / "sim")
    journal = list(space.repo.read_journal())
    expected = {(product, key) for product, key, _ in list_units(make_plan(space, "main"))}
    found = {(product, key) for product, key, _ in list_units(make_plan(space, "other"))}
    assert found == expected
    assert [row.name for row in space.ledger.sequences()] == ["main"] and not space.ledger.runs("other")
    assert list(space.repo.read_journal()) == journal


@pytest.mark.slow
def test_a_run_with_a_raw_file_gone_makes_what_was_planned_and_nothing_is_left(made, tmp_path):
    """LV-04, LAP-24: the units of a dropped exposure are not counted, those of all others are."""
    space = ingest_small(tmp_path / "fresh", copy_raws(made.parent / "sim", tmp_path / "sim"))
    Path(space.survey().exposures["simtiny-000103"].chips[0].path).unlink()
    plan = make_plan(space, None, to="diffs")
    run_survey(space, None, [], "diffs", None, lambda report: None, lambda product, partitions: None)
    units = read_units(space.ledger)
    lost = {("chips", "simtiny-000103", chip) for chip in ("c0", "c1", "c2", "c3")}
    assert {unit for unit, state in units.items() if state == "dropped"} == lost
    assert set(units) - lost == list_units(plan)
    assert make_plan(space, None, to="diffs").rows == ()


def copy_raws(sim: Path, folder: Path) -> Path:
    """A simulated survey whose files may be damaged."""
    for path in sim.rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(sim)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return folder


def test_what_was_cleaned_and_is_needed_again_is_planned(made, tmp_path):
    """LAP-18: with other settings of the stacks the warps come back first, and what they are made from."""
    space = ingest_small(tmp_path / "fresh", made.parent / "sim")
    fill_states(space)
    assert make_plan(space, None).rows == ()
    gone = [(product, key) for product in ("chips", "warps") for key in space.survey().partitions(product)]
    space.ledger.mark("main", gone, "cleaned")
    assert make_plan(space, None).rows == ()
    other = Workspace.open(space.root, {"stacks.clip_sigma": 9.0})
    reasons = {(row.product, row.partition): row.reason for row in make_plan(other, None, to="stacks").rows}
    assert set(reasons) == {*gone, ("stacks", "tiny.0|r")}
    assert reasons["warps", "simtiny-000101|tiny.0"] == "cleaned, and stacks tiny.0|r needs it"
    assert reasons["chips", "simtiny-000101"] == "cleaned, and warps simtiny-000101|tiny.0 needs it"


def fill_states(space: Workspace) -> None:
    """Record all that is planned as done, with true hashes."""
    for row in make_plan(space, None).rows:
        survey, states = space.survey(), space.ledger.partition_states("main")
        ref = (row.product, row.partition)
        space.ledger.record_partition(
            "main", *ref, "done", inputs_sha256=hash_inputs(survey, states, ref), content_sha256=json.dumps(ref),
            config_sha256=space.configs()[row.product],
        )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    number=st.sampled_from([0, 1]), x=st.floats(-0.1, 1.1), y=st.floats(-0.1, 1.1), angle=st.floats(0.0, 90.0),
    size_px=st.floats(3.0, 4000.0), margin_arcsec=st.sampled_from([0.0, 60.0]),
)  # fmt: skip
def test_skycells_of_a_footprint_are_those_that_share_area_with_it(number, x, y, angle, size_px, margin_arcsec):
    """The quick look agrees with the exact geometry that the warps are planned with."""
    grid, cell = GRIDS[number], GRIDS[number].cell
    turn = np.radians(angle) + np.pi / 2 * np.arange(4)
    across = np.cos(turn), np.sin(turn)
    polygon = np.transpose(cell.pixel_to_sky(x * cell.nx + size_px * across[0], y * cell.ny + size_px * across[1]))
    grown = grow_polygons(polygon, margin_arcsec / 3600.0)
    triangle = polygon[:3]
    exact = {*cell.skycells_overlapping(grown), *cell.skycells_overlapping(triangle)}
    assert set(grid.find([polygon], margin_arcsec / 3600.0)) == set(cell.skycells_overlapping(grown))
    assert set(grid.find([polygon, triangle], 0.0)) <= exact
    assert set(grid.find([triangle], 0.0)) == set(cell.skycells_overlapping(triangle))


# ---- what is missing

SKY = {
    "kind": "local", "name": "sky", "ra_deg": 150.0, "dec_deg": 2.0, "pixel_scale_arcsec": 1.0, "skycell_px": 360,
    "grid": [2, 1], "overlap_px": 0,
}  # fmt: skip
PLACES = {"c0": 150.05, "c1": 149.95}  # one chip on each skycell
EVERYTHING = tuple(f"simtiny-{number}" for number in range(6))


def write_empty(path: Path) -> str:
    path.touch()
    return str(path)


def make_set(folder: Path, kind: str, band: str, frames: int = 3) -> CalibrationSet:
    """Frames of both chips in one file each, which are there."""
    paths = [write_empty(folder / f"{kind}{band}{i}.fits") for i in range(frames)]
    files = tuple(
        ChipFile(chip, path, chip, square(0.0, 0.0), f"{i:064d}") for i, path in enumerate(paths) for chip in PLACES
    )
    return CalibrationSet(f"simtiny|{kind}|{band}|2024-03-01", "simtiny", kind, band, "2024-03-01", files)


def make_exposure(folder: Path, name: str, **values) -> Exposure:
    """Two chips of 180 arcsec, each in a file of its own, which is there."""
    chips = tuple(
        ChipFile(chip, write_empty(folder / f"{name}-{chip}.fits"), "1", square(ra, 2.0, 0.05), sha256=name)
        for chip, ra in PLACES.items()
    )
    facts = {"camera": "simtiny", "band": "r", "filter": "r", "night": "2024-03-08", "chips": chips} | values
    return Exposure(name, mjd=60380.0, exptime_s=60.0, ra_deg=150.0, dec_deg=2.0, **facts)


@pytest.fixture
def field(tmp_path) -> Workspace:
    """Six exposures of one band, ingested with all they need; no run is defined."""
    space = Workspace.create(tmp_path / "repository")
    space.ledger.add_tessellation(SKY)
    space.ledger.add_calibrations([make_set(tmp_path, "bias", "all"), make_set(tmp_path, "flat", "r")])
    space.ledger.add_exposures(make_exposure(tmp_path, name) for name in EVERYTHING)
    star = {"source_id": 1, "ra": 150.0, "dec": 2.0, "pmra": 0.0, "pmdec": 0.0}
    table = pd.DataFrame([star | {"ra_err_mas": 0.1, "dec_err_mas": 0.1, "ref_epoch_yr": 2016.0}])
    space.ledger.add_reference_catalog("gaia", ["r", "i"], space.repo.write_refcat("gaia", table), 1)
    return space


def test_nothing_is_missing_where_all_is_there(field):
    plan = make_plan(field, None)
    assert [(row.product, row.problem, row.missing) for row in plan.rows if row.problem or row.missing] == []
    assert plan.count()["chips"] == (6, 12, 0, 0) and plan.count()["stacks"] == (1, 2, 0, 0)


def test_raw_files_that_are_gone_are_named_with_all_that_goes_without_them(field, tmp_path):
    """LV-04: every missing input is listed with its reason."""
    for chip in PLACES:
        (tmp_path / f"simtiny-0-{chip}.fits").unlink()
    plan = make_plan(field, None)
    reason = f"{tmp_path / 'simtiny-0-c0.fits'} is gone"
    assert find_row(plan, "chips", "simtiny-0").problem == reason
    assert all(row.lost for row in plan.rows if "simtiny-0" in row.partition)
    stack = find_row(plan, "stacks", "sky.0|r")
    assert stack.missing == (f"warps simtiny-0|sky.0: {reason}",) and not stack.lost
    lines = show_plan(field, None).splitlines()
    assert f"stacks sky.0|r: goes without warps simtiny-0|sky.0: {reason}" in lines
    assert f"final_stacks sky.0|r: goes without streak_masks simtiny-0|sky.0: {reason}" in lines
    assert not [line for line in lines if line.startswith("solutions simtiny-0")]  # said once, at its root


def test_a_chip_whose_file_is_gone_leaves_the_others(field, tmp_path):
    path = tmp_path / "simtiny-2-c1.fits"
    path.unlink()
    plan = make_plan(field, None)
    row = find_row(plan, "chips", "simtiny-2")
    assert not row.lost and row.missing == (f"chip c1: {path} is gone",)
    assert f"chips simtiny-2: goes without chip c1: {path} is gone" in show_plan(field, None).splitlines()


def test_masters_there_are_no_frames_of_are_named(field, tmp_path):
    """A band without flats, and a flat of too few frames."""
    field.ledger.add_exposures([make_exposure(tmp_path, "simtiny-i", band="i", night="2024-03-09")])
    reason = "no flat frames of band i are valid on 2024-03-09: ingest them with --kind calibration"
    assert find_row(make_plan(field, None), "chips", "simtiny-i").problem == reason
    field.ledger.add_calibrations([make_set(tmp_path, "flat", "i", frames=2)])
    plan = make_plan(field, None)
    few = "2 frames, 3 needed (calibrations.min_frames)"
    assert find_row(plan, "master_flats", "simtiny|flat|i|2024-03-01").problem == few
    assert find_row(plan, "chips", "simtiny-i").missing == (f"master_flats simtiny|flat|i|2024-03-01: {few}",)
    assert find_row(plan, "chips", "simtiny-i").lost and not find_row(plan, "chips", "simtiny-0").lost


def test_a_master_whose_frames_are_gone_takes_along_what_is_calibrated_with_it(field, tmp_path):
    path = tmp_path / "biasall1.fits"
    path.unlink()
    plan = make_plan(field, None)
    assert find_row(plan, "master_biases", "simtiny|bias|all|2024-03-01").problem == f"{path} is gone"
    assert all(row.lost for row in plan.rows if row.product in ("master_flats", "chips", "warps", "stacks"))


def test_bands_without_a_reference_catalogue_are_named(field, tmp_path):
    """LV-07: different reference catalogues per band; one that is registered must also be there."""
    field.ledger.add_calibrations([make_set(tmp_path, "flat", "z")])
    field.ledger.add_exposures([make_exposure(tmp_path, "simtiny-z", band="z")])
    reason = "no reference catalogue for band z: ingest one with --kind refcat"
    assert find_row(make_plan(field, None), "solutions", "simtiny-z").problem == reason
    field.ledger.add_reference_catalog("lost", ["z"])
    reason = "reference catalogue lost is gone: ingest it again"
    assert find_row(make_plan(field, None), "solutions", "simtiny-z").problem == reason


def test_calibrated_exposures_need_neither_masters_nor_a_catalogue(field, tmp_path):
    one = make_exposure(tmp_path, "simtiny-z", band="z", kind="calibrated")
    field.ledger.add_exposures([one])
    assert not find_row(make_plan(field, None), "chips", "simtiny-z").problem
    assert not find_row(make_plan(field, None), "solutions", "simtiny-z").problem


def test_stacks_and_skycells_with_too_few_inputs_are_foreseen(field, tmp_path):
    """LAP-29: at least six inputs; counted skycell by skycell."""
    west = make_exposure(tmp_path, "simtiny-west")
    field.ledger.add_exposures([replace(west, chips=west.chips[1:])])
    strict = Workspace.open(field.root, {"stacks.min_inputs": 7})
    row = find_row(make_plan(strict, None), "stacks", "sky.0|r")
    assert row.problem == "1 of 2 skycells have fewer than 7 inputs" and not row.lost
    stricter = Workspace.open(field.root, {"stacks.min_inputs": 8})
    assert find_row(make_plan(stricter, None), "stacks", "sky.0|r").problem == "7 inputs, 8 needed"
    assert not find_row(make_plan(field, None), "stacks", "sky.0|r").problem


def test_an_unknown_camera_is_named(field, tmp_path):
    field.ledger.add_exposures([make_exposure(tmp_path, "other-1", camera="other")])
    assert find_row(make_plan(field, None), "chips", "other-1").problem.startswith("unknown camera 'other'")


def test_runs_that_rest_are_not_planned(field):
    """What is paused, cancelled or dropped is not made: it is not counted either."""
    field.ledger.define_sequence("main")
    run = field.ledger.define_run("main", "sky", "sky.0", "r")
    field.ledger.drop_member(run.lap_id, "simtiny-3")
    assert not [row for row in make_plan(field, None).rows if "simtiny-3" in row.partition]
    field.ledger.pause(run.lap_id)
    assert {row.product for row in make_plan(field, None).rows} == {"master_biases", "master_flats"}
    field.ledger.pause(run.lap_id, False)
    field.ledger.cancel(run.lap_id, "by hand")
    assert {row.product for row in make_plan(field, None).rows} == {"master_biases", "master_flats"}


def test_a_selection_is_planned_with_what_it_is_made_from(field):
    """`--select` and `--to` mean what they mean to `lap run`."""
    rows = make_plan(field, None, ["exposure=simtiny-1"], "solutions").rows
    assert {(row.product, row.partition) for row in rows} == {
        ("master_biases", "simtiny|bias|all|2024-03-01"), ("master_flats", "simtiny|flat|r|2024-03-01"),
        ("chips", "simtiny-1"), ("solutions", "simtiny-1"),
    }  # fmt: skip
    with pytest.raises(BadInput, match="nothing matches 'exposure=none'"):
        make_plan(field, None, ["exposure=none"])
    with pytest.raises(BadInput, match="unknown tessellation 'none'"):
        make_plan(field, None, tessellation="none")
