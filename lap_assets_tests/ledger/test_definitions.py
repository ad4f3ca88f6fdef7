"""What is defined: exposures, calibrations, tessellations, sequences, runs; nothing half-registered."""

from dataclasses import replace

import pytest

from lap_assets.errors import BadInput, Conflict, NotFound
from lap_assets.ledger.records import SequenceRow
from lap_assets.model.decisions import RUN_STATE, Step
from lap_assets.model.regions import Cone
from lap_assets.model.survey import ChipFile
from lap_assets_tests.ledger.conftest import LOCAL, finish_runs, make_calibration, make_exposure, square


def test_exposures_come_back_as_they_went_in(ledger):
    given = [make_exposure(2, "g"), make_exposure(1, object="M 31", comment="visit 1 of 2", airmass=1.25)]
    assert ledger.add_exposures(given) == (2, 0, ())
    assert list(ledger.exposures().values()) == sorted(given, key=lambda one: one.id)
    assert ledger.add_exposures(given) == (0, 2, ())


def test_same_id_with_other_bytes_is_refused_and_the_rest_goes_on(ledger):
    first = make_exposure(1)
    ledger.add_exposures([first])
    changed = replace(
        first, chips=(replace(first.chips[0], sha256="f" * 64, path="/elsewhere/x.fits"), *first.chips[1:])
    )
    added, unchanged, conflicts = ledger.add_exposures([changed, make_exposure(2)])
    assert (added, unchanged) == (1, 0)
    ((path, reason),) = conflicts
    assert path == "/elsewhere/x.fits"
    assert "cam-000001" in reason and "other bytes" in reason and "\n" not in reason
    assert ledger.exposures()["cam-000001"] == first


def test_same_id_with_other_header_values_is_refused(ledger):
    first = make_exposure(1)
    ledger.add_exposures([first])
    outcome = ledger.add_exposures([replace(first, exptime_s=61.0)])
    assert outcome.added == 0 and "exptime_s 60.0" in outcome.conflicts[0][1]


def test_twice_in_one_call_counts_as_conflict_only_where_they_differ(ledger):
    one = make_exposure(1)
    other = replace(one, chips=tuple(replace(chip, sha256="e" * 64) for chip in one.chips))
    outcome = ledger.add_exposures([one, one, other])
    assert (outcome.added, outcome.unchanged, len(outcome.conflicts)) == (1, 1, 1)


def test_more_chips_of_a_known_exposure_are_added_and_a_moved_file_is_followed(ledger):
    """Calibrated exposures come as one file per chip, perhaps not all at once."""
    whole = make_exposure(1)
    ledger.add_exposures([replace(whole, chips=whole.chips[:1])])
    assert ledger.add_exposures([replace(whole, chips=whole.chips[1:])]).added == 1
    assert ledger.exposures()["cam-000001"] == whole
    moved = replace(whole, chips=(replace(whole.chips[0], path="/new/place.fits"),))
    assert ledger.add_exposures([moved]).added == 1
    assert [chip.path for chip in ledger.exposures()["cam-000001"].chips] == [
        "/new/place.fits",
        "/data/cam-000001.fits",
    ]


@pytest.mark.parametrize("id_", ["../x", "a|b", "a,b", "", "x" * 300, ".hidden", "a/b", "a b", "ä"])
def test_ids_that_are_no_keys_leave_nothing_behind(ledger, place, id_):
    """The one boundary: letters, digits, `_.-`."""
    with pytest.raises(BadInput) as error:
        ledger.add_exposures([make_exposure(1), replace(make_exposure(2), id=id_)])
    assert "\n" not in str(error.value)
    assert ledger.exposures() == {}
    assert place.entries == []


def test_exposure_without_a_place_on_the_sky_is_refused(ledger):
    chip = ChipFile("c0", "/x", "c0", ((0.0, 0.0), (float("nan"), 0.0), (1.0, 1.0)))
    with pytest.raises(BadInput, match="finite degrees"):
        ledger.add_exposures([make_exposure(1, chips=(chip,))])
    with pytest.raises(BadInput, match="no chips"):
        ledger.add_exposures([make_exposure(1, chips=())])


def test_full_disk_at_the_journal_leaves_no_half_of_an_exposure(place):
    ledger = place.create()

    def refuse(entry):
        raise OSError(28, "No space left on device")

    ledger._journal = refuse
    with pytest.raises(OSError, match="No space left"):
        ledger.add_exposures([make_exposure(1)])
    assert ledger.exposures() == {}
    ledger.close()


def test_calibrations_gain_frames_and_are_built_anew(ledger):
    one, more = make_calibration(frames=2), make_calibration(frames=3)
    assert ledger.add_calibrations([one]) == (1, 0, ())
    ledger.set_calibration_state(one.key, "certified")
    assert ledger.add_calibrations([one]) == (0, 1, ())
    assert ledger.add_calibrations([more]) == (1, 0, ())
    assert ledger.survey().calibrations == {more.key: more}
    clash = replace(more, frames=(replace(more.frames[0], sha256="f" * 64),))
    assert "other bytes" in ledger.add_calibrations([clash]).conflicts[0][1]
    with pytest.raises(NotFound, match="no calibration"):
        ledger.set_calibration_state("cam|flat|r|2026-01-01", "certified")
    with pytest.raises(BadInput, match="none of virtual, built"):
        ledger.set_calibration_state(one.key, "good")


def test_masters_follow_night_band_and_state(ledger):
    """An exposure gets the masters in force on its night; rejected and expired ones are used by nothing."""
    sets = [make_calibration("bias", "all", night) for night in ("2026-01-01", "2026-02-01")]
    sets += [make_calibration("flat", band, "2026-01-01") for band in "gr"]
    ledger.add_calibrations(sets)
    ledger.add_exposures([make_exposure(1, night="2026-01-15"), make_exposure(2, "g", night="2026-02-15")])
    ledger.add_exposures([make_exposure(3, kind="calibrated")])
    found = ledger.survey().associations
    assert found["cam-000001"] == (
        ("master_biases", "cam|bias|all|2026-01-01"),
        ("master_flats", "cam|flat|r|2026-01-01"),
    )
    assert found["cam-000002"] == (
        ("master_biases", "cam|bias|all|2026-02-01"),
        ("master_flats", "cam|flat|g|2026-01-01"),
    )
    assert "cam-000003" not in found
    ledger.set_calibration_state("cam|bias|all|2026-02-01", "rejected")
    ledger.set_calibration_state("cam|flat|r|2026-01-01", "certified", valid_to="2026-01-10")
    found = ledger.survey().associations
    assert found["cam-000001"] == (("master_biases", "cam|bias|all|2026-01-01"),)
    assert found["cam-000002"][0] == ("master_biases", "cam|bias|all|2026-01-01")


def test_reference_catalogue_serves_bands_and_may_be_replaced(ledger):
    assert ledger.add_reference_catalog("gaia", ["*"], "aa", 10)
    assert not ledger.add_reference_catalog("gaia", ["*"], "aa", 10)
    assert ledger.add_reference_catalog("ps1", ["g", "r"], "bb", 5)
    assert ledger.survey().reference_catalogs == {"*": "gaia", "g": "ps1", "r": "ps1"}
    assert ledger.add_reference_catalog("gaia", ["r"], "cc", 11)
    assert ledger.survey().reference_catalogs == {"*": "gaia", "g": "ps1", "r": "gaia"}


def test_tessellation_keeps_its_meaning(ledger):
    assert ledger.add_tessellation(LOCAL)
    assert not ledger.add_tessellation(dict(reversed(LOCAL.items())))
    with pytest.raises(Conflict, match="other values"):
        ledger.add_tessellation(LOCAL | {"ra_deg": 10.0})
    with pytest.raises(BadInput, match="unknown kind"):
        ledger.add_tessellation({"kind": "hexagons", "name": "x"})
    assert ledger.tessellations() == ["demo"]
    assert ledger.tessellation("demo").definition() == LOCAL


def test_one_run_per_cell_and_band_with_members_by_footprint(ledger):
    """One run reprocesses one projection cell in one filter; defining again adds only what is new (LAP-01, LAP-02)."""
    ledger.add_tessellation(LOCAL)
    inside, outside = make_exposure(1), make_exposure(2, ra=150.2)
    ledger.add_exposures([inside, outside, make_exposure(3, "g")])
    runs = ledger.define_runs("main", "demo", label="test", dist_group="public")
    assert [(run.lap_id, run.cell, run.band, run.state) for run in runs] == [
        (1, "demo.0", "g", "new"),
        (2, "demo.0", "r", "new"),
    ]
    assert ledger.define_runs("main", "demo") == []
    assert [one.exposure for one in ledger.members(2)] == ["cam-000001"]
    survey = ledger.survey("main")
    assert set(survey.exposures) == {"cam-000001", "cam-000003"}
    assert survey.members("demo.0", "r") == ("cam-000001",)
    assert survey.cells["demo.0"].nx == 560
    ledger.add_exposures([make_exposure(4)])
    (grown,) = ledger.define_runs("main", "demo")
    assert grown.lap_id == 2 and grown.label == "test"
    assert ledger.survey("main").members("demo.0", "r") == ("cam-000001", "cam-000004")


def test_a_collection_without_runs_shows_all_that_was_ingested(ledger):
    ledger.add_exposures([make_exposure(1)])
    survey = ledger.survey("main")
    assert list(survey.exposures) == ["cam-000001"] and survey.runs == () and survey.cells == {}


def test_runs_of_a_selection(ledger):
    """A run takes the exposures of the wanted mode inside the cone (LAP-10, LAP-11)."""
    ledger.add_tessellation({"kind": "rings", "name": "rings.v3"})
    ledger.add_exposures(
        [make_exposure(1, ra=359.99, dec=0.0), make_exposure(2, obs_mode="ENGINEERING", ra=0.0, dec=0.0)]
    )
    ledger.add_exposures([make_exposure(3, ra=200.0), make_exposure(4, "g", ra=0.0, dec=0.1)])
    cone = Cone(0.0, 0.0, 1.0)
    runs = ledger.define_runs("main", "rings.v3", bands=["r"], obs_mode="3PI", region=cone)
    # at the equator the cells of both hemispheres hold it
    assert {run.cell for run in runs} == {"rings.v3.1232", "rings.v3.1322"}
    assert {one.exposure for run in runs for one in ledger.members(run.lap_id)} == {"cam-000001"}
    more = ledger.define_runs("main", "rings.v3", bands=["r"], cells=["rings.v3.1322"], region=cone)
    assert [(run.cell, len(ledger.members(run.lap_id))) for run in more] == [("rings.v3.1322", 2)]
    with pytest.raises(NotFound, match="no cell"):
        ledger.define_runs("main", "rings.v3", cells=["rings.v3.9999"])
    with pytest.raises(NotFound, match="no tessellation"):
        ledger.define_runs("main", "nowhere")


def test_sequences_do_not_share_runs(ledger):
    ledger.add_tessellation(LOCAL)
    ledger.add_exposures([make_exposure(1)])
    assert ledger.define_sequence("rerun", "second go") == 1
    assert ledger.define_sequence("rerun") == 1
    ledger.define_runs("rerun", "demo")
    ledger.define_runs("main", "demo")
    assert [(run.sequence, run.lap_id) for run in ledger.runs()] == [("rerun", 1), ("main", 2)]
    assert ledger.sequences() == [SequenceRow(1, "rerun", "second go"), SequenceRow(2, "main")]
    assert [row.name for row in ledger.sequences()] == ["rerun", "main"]
    with pytest.raises(BadInput, match="sequence"):
        ledger.define_sequence("a|b")


def test_dropped_members_and_run_states(ledger):
    """`drop` is never used again in the run; a complete run frees its exposures (LAP-24, LAP-32)."""
    ledger.add_tessellation(LOCAL)
    ledger.add_exposures([make_exposure(1), make_exposure(2)])
    (run,) = ledger.define_runs("main", "demo")
    ledger.drop_member(run.lap_id, "cam-000002")
    assert ledger.survey().members("demo.0", "r") == ("cam-000001",)
    assert [(one.active, one.data_state) for one in ledger.members(1)] == [(True, "new"), (False, "drop")]
    assert ledger.define_runs("main", "demo") == []
    finish_runs(ledger, run.lap_id)
    assert not any(one.active for one in ledger.members(1))
    assert ledger.survey().members("demo.0", "r") == ("cam-000001",)
    ledger.add_exposures([make_exposure(3)])
    ledger.define_runs("main", "demo")
    assert ledger.runs()[0].state == "run"
    with pytest.raises(BadInput, match="no step leads to state 'done'"):
        ledger.apply([Step(1, RUN_STATE, value="done")])
    with pytest.raises(NotFound, match="no run 7"):
        ledger.apply([Step(7, RUN_STATE, value="run")])
    with pytest.raises(NotFound, match="no member"):
        ledger.drop_member(1, "cam-000009")


def test_footprints_at_the_seam_of_right_ascension(ledger):
    ledger.add_tessellation(LOCAL | {"name": "seam", "ra_deg": 0.0})
    west = make_exposure(1, ra=359.995)
    assert west.chips[0].footprint == square(359.995, 2.0)
    ledger.add_exposures([west, make_exposure(2, ra=180.0)])
    (run,) = ledger.define_runs("main", "seam")
    assert [one.exposure for one in ledger.members(run.lap_id)] == ["cam-000001"]
