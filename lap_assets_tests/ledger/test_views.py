"""What listings and the queue ask of the ledger, each with one query: counts, what is defined, what would be."""

import pytest

from lap_assets.model.ids import DataId
from lap_assets.model.regions import Cone
from lap_assets_tests.ledger.conftest import LOCAL, Report, make_exposure


@pytest.fixture
def filled(ledger):
    """Exposures 1 and 2 in r, 3 in g, 4 in g of another mode, in the one cell demo.0; runs of sequence main."""
    ledger.add_tessellation(LOCAL)
    ledger.add_exposures([make_exposure(1), make_exposure(2, ra=150.02), make_exposure(3, "g")])
    ledger.define_runs("main", "demo")
    ledger.add_exposures([make_exposure(4, "g", obs_mode="MD")])
    return ledger


def test_members_are_counted_by_their_state(filled):
    """LAP-25: of every run of one sequence."""
    filled.define_runs("other", "demo")
    r = next(run.lap_id for run in filled.runs("main") if run.band == "r")
    filled.drop_member(r, "cam-000002")
    counts = filled.count_members("main")
    assert counts == {
        run.lap_id: {"new": 1} if run.band == "g" else {"drop": 1, "new": 1} for run in filled.runs("main")
    }
    assert filled.count_members("nobody") == {}


def test_what_is_defined(filled):
    """LAP-34: every run there ever was, however it ended."""
    filled.cancel(filled.runs("main")[0].lap_id, "test")
    filled.define_sequence("empty")
    assert filled.defined() == {("main", "demo", "demo.0", band) for band in ("g", "r")}


def test_runs_with_an_exposure(filled):
    """Dropped members count."""
    run = next(run for run in filled.runs() if run.band == "r")
    filled.drop_member(run.lap_id, "cam-000001")
    assert [one.lap_id for one in filled.runs(exposure="cam-000001")] == [run.lap_id]
    assert filled.runs("other", exposure="cam-000001") == filled.runs(exposure="'; --") == []


@pytest.mark.parametrize("region", [None, Cone(150.0, 2.0, 1.0), Cone(10.0, 2.0, 1.0)])
@pytest.mark.parametrize("bands", [None, ["g"], ["y"]])
@pytest.mark.parametrize("obs_mode", [None, "3PI", "MD"])
def test_overlaps_are_the_runs_that_would_be_defined(filled, region, bands, obs_mode):
    """LAP-16: asked before, it names exactly what is defined then."""
    asked = filled.overlaps("demo", bands, obs_mode, region)
    rows = filled.define_runs("wide", "demo", bands=bands, obs_mode=obs_mode, region=region)
    assert asked == [(row.cell, row.band) for row in rows]


def test_units_are_counted_by_product(filled):
    """LAP-26: of all products or of those named."""
    for product in ("stacks", "warps"):
        key = "demo.0|r" if product == "stacks" else "cam-000001|demo.0"
        units = [
            Report(DataId("main", product, key, f"0{i}"), state) for i, state in enumerate(("done", "done", "failed"))
        ]
        filled.record_partition("main", product, key, "failed", unit_reports=units)
    stacks = {("stacks", "demo.0|r"): {"done": 2, "failed": 1}}
    assert filled.unit_counts("main", ("stacks", "final_stacks")) == stacks
    assert set(filled.unit_counts("main")) == {*stacks, ("warps", "cam-000001|demo.0")}


def test_runs_are_foreseen_as_they_would_be_defined_and_none_is(filled, place):
    """LV-04: a plan needs the runs that the run to come begins with; a late exposure completes one."""
    before, entries, runs = filled.survey("main"), list(place.entries), filled.runs()
    sky = filled.tessellation("demo")
    foreseen = [filled.foresee_runs(name, [sky]) for name in ("main", "new")]
    assert (filled.survey("main"), place.entries, filled.runs()) == (before, entries, runs)
    assert [one.name for one in filled.sequences()] == ["main"]
    for name, survey in zip(("main", "new"), foreseen, strict=True):
        filled.define_runs(name, "demo")
        defined = filled.survey(name)
        assert [(one.cell, one.band, one.members) for one in survey.runs] == [
            (one.cell, one.band, one.members) for one in defined.runs
        ]
        assert survey.partition_sets == defined.partition_sets
        assert "cam-000004" in survey.exposures
