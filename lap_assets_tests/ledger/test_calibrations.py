"""Calibration sets on both databases: five kinds, verdicts, validity, temperatures, and what exposures get of them."""

import json
from dataclasses import replace

import pytest

from lap_assets.errors import BadInput, NotFound
from lap_assets.ledger.records import ManifestRow
from lap_assets.model.associations import BUILT, CERTIFIED, EXECUTABLE, REJECTED, VIRTUAL, WAITS
from lap_assets.model.ids import DataId
from lap_assets.model.products import MASTERS
from lap_assets.model.quality import QualityRow, Verdict
from lap_assets_tests.ledger.conftest import LOCAL, Report, make_calibration, make_exposure

BIAS, FLAT = make_calibration("bias"), make_calibration("flat", "r")


def record_master(ledger, one, state="done", content="c", verdict=None, metrics=None) -> None:
    """What a worker records of a master of one chip."""
    product = MASTERS[one.kind]
    report = Report(DataId("calib", product, one.key, "c0"), state, content, metrics=metrics or {})
    ledger.record_partition(
        "main", product, one.key, state, content_sha256=content, unit_reports=[report], verdict=verdict
    )


@pytest.mark.parametrize("kind", MASTERS)
def test_sets_of_every_kind_are_kept_with_validity_and_temperature(ledger, kind):
    """LV-10, LV-11: dark, sky frame and fringe beside bias and flat."""
    band = "r" if kind in ("flat", "sky", "fringe") else "all"
    one = replace(make_calibration(kind, band), temperature_c=-99.5, valid_to="2026-03-31")
    assert ledger.add_calibrations([one]) == (1, 0, ())
    assert ledger.calibrations([one.key])[one.key].frames[0].path == one.frames[0].path
    assert ledger.survey().calibrations == {one.key: one}
    assert ledger.survey().partitions(MASTERS[kind]) == (one.key,)
    assert ledger.count_frames() == {one.key: 2}


def test_a_kind_there_are_no_masters_of_is_refused(ledger):
    with pytest.raises(BadInput, match="no masters of kind 'twilight'; there are bias, dark, flat, sky, fringe"):
        ledger.add_calibrations([make_calibration("twilight")])
    assert ledger.calibrations() == {}


def test_new_frames_move_the_temperature_and_take_the_verdict_back(ledger):
    """PHX-02: what was certified was the master of the frames there were."""
    ledger.add_calibrations([replace(make_calibration(frames=2), temperature_c=-100.0)])
    ledger.set_calibration_state(BIAS.key, CERTIFIED, reason="looked at", judged="c")
    ledger.add_calibrations([replace(make_calibration(frames=4), temperature_c=-90.0)])
    now = ledger.calibrations()[BIAS.key]
    assert (now.state, now.reason, now.judged, now.temperature_c) == (VIRTUAL, "", "", -95.0)


def test_the_verdict_on_a_master_stands_in_the_record_of_its_partition(ledger):
    """PHX-02: state, reason, and the content they are about; with the numbers they rest on (PHX-08)."""
    ledger.add_calibrations([BIAS])
    numbers = (QualityRow("fraction_beyond_6sigma", 0.03, passed=False, unit="c0"),)
    record_master(ledger, BIAS, verdict=Verdict(BUILT, "3 % > 1 %", "c", numbers), metrics={"n_frames": 2})
    now = ledger.survey().calibrations[BIAS.key]
    assert (now.state, now.reason, now.judged) == (BUILT, "3 % > 1 %", "c")
    rows = {row.name: row for row in ledger.quality("main", "master_biases", BIAS.key)}
    assert (rows["fraction_beyond_6sigma"].value, rows["fraction_beyond_6sigma"].passed) == (0.03, False)
    assert (rows["n_frames"].value, rows["n_frames"].unit, rows["n_frames"].collection) == (2.0, "c0", "calib")
    # recorded once more as it was: the comparison still holds
    record_master(ledger, BIAS, verdict=Verdict(CERTIFIED, "", "c"), metrics={"n_frames": 2})
    assert {row.name for row in ledger.quality("main", "master_biases")} == set(rows)
    record_master(ledger, BIAS, state="failed")
    assert ledger.calibrations()[BIAS.key].state == CERTIFIED


def test_validity_is_set_and_taken_back_with_the_state(ledger):
    """LV-10: first and last night; what is not given stays."""
    ledger.add_calibrations([BIAS])
    ledger.set_calibration_state(BIAS.key, CERTIFIED, valid_to="2026-01-31")
    ledger.set_calibration_state(BIAS.key, CERTIFIED, valid_from="2026-01-05")
    now = ledger.calibrations()[BIAS.key]
    assert (now.valid_from, now.valid_to) == ("2026-01-05", "2026-01-31")
    with pytest.raises(BadInput, match="cannot be valid from 2026-02-01 to 2026-01-31"):
        ledger.set_calibration_state(BIAS.key, CERTIFIED, valid_from="2026-02-01")
    ledger.set_calibration_state(BIAS.key, CERTIFIED, valid_to="")
    assert ledger.calibrations()[BIAS.key].valid_to == ""
    with pytest.raises(NotFound, match="ingest its frames first"):
        ledger.set_calibration_state("cam|bias|all|2020-01-01", CERTIFIED)


def test_survey_and_snapshot_know_states_and_associations(ledger):
    """PHX-01: the same association in both, executable once everything is certified."""
    ledger.add_tessellation(LOCAL)
    ledger.add_calibrations([BIAS, make_calibration("dark"), FLAT, make_calibration("fringe", "r")])
    ledger.add_exposures([make_exposure(1, temperature_c=-101.0)])
    ledger.define_runs("main", "demo")
    for state, status in ((VIRTUAL, WAITS), (CERTIFIED, EXECUTABLE)):
        for one in (BIAS, FLAT):
            ledger.set_calibration_state(one.key, state)
        for key in ("cam|dark|all|2026-01-01", "cam|fringe|r|2026-01-01"):
            ledger.set_calibration_state(key, CERTIFIED)
        found = [each.association("cam-000001") for each in (ledger.survey(), ledger.snapshot().survey)]
        assert found[0] == found[1] and found[0].status == status
        assert [choice.kind for choice in found[0].choices] == ["bias", "dark", "flat", "fringe"]
    assert ledger.exposures()["cam-000001"].temperature_c == -101.0


def test_a_rejected_master_is_out_of_the_survey_and_remembered(ledger):
    """PHX-02: used by nothing; the exposure falls back on another, or says which one was rejected."""
    other = make_calibration("flat", "r", "2025-12-01")
    ledger.add_calibrations([BIAS, FLAT, other])
    ledger.add_exposures([make_exposure(1)])
    ledger.set_calibration_state(FLAT.key, REJECTED, reason="lamp was off")
    survey = ledger.survey()
    assert survey.associations["cam-000001"][-1] == ("master_flats", other.key)
    assert FLAT.key not in survey.calibrations and survey.withdrawn[FLAT.key].reason == "lamp was off"
    ledger.set_calibration_state(other.key, REJECTED)
    lean = ledger.survey(lean=True)
    assert lean.association("cam-000001").lacks[0].startswith(f"{FLAT.key} was rejected (lamp was off)")
    assert lean.withdrawn == ledger.survey().withdrawn


def test_a_closer_master_is_taken_up_by_exposures(ledger):
    """PHX-01: one that was ingested since, of a night before the exposure; not one of a night after it."""
    ledger.add_calibrations([make_calibration("bias", night="2025-06-01")])
    ledger.add_exposures([make_exposure(1)])
    before = ledger.survey().associations["cam-000001"]
    ledger.add_calibrations([make_calibration("bias", night="2026-02-01")])
    assert ledger.survey().associations["cam-000001"] == before
    ledger.add_calibrations([make_calibration("bias", night="2026-01-01")])
    assert ledger.survey().associations["cam-000001"] == (("master_biases", "cam|bias|all|2026-01-01"),)


def test_an_exposure_known_without_temperature_is_the_same_exposure(ledger):
    """An older version did not read it."""
    ledger.add_exposures([make_exposure(1)])
    assert ledger.add_exposures([make_exposure(1, temperature_c=-100.0)]) == (0, 1, ())


def test_rebuilding_restores_verdicts_and_parameters(place):
    """PHX-08: states and validity from the journal, numbers from the manifests, and what is to be made again."""
    first = place.create()
    first.add_calibrations([replace(BIAS, temperature_c=-95.0), FLAT])
    record_master(first, BIAS, verdict=Verdict(CERTIFIED, "", "c"), metrics={"level_adu": 7.5, "band": "all"})
    first.set_calibration_state(BIAS.key, CERTIFIED, valid_to="2026-01-31")
    first.set_calibration_state(FLAT.key, REJECTED, reason="lamp was off")
    assert first.invalidate("main", [("master_biases", BIAS.key), ("chips", "nothing")], "bad frames") == 1
    manifest = ManifestRow(
        DataId("calib", "master_biases", BIAS.key, "c0"), "done", "c", metrics={"level_adu": 7.5, "band": "all"}
    )
    second = place.create()
    second.rebuild([json.loads(json.dumps(entry)) for entry in place.entries], [manifest])
    assert second.survey() == first.survey() and second.calibrations() == first.calibrations()
    assert second.quality("main", "master_biases") == first.quality("main", "master_biases") != []
    assert second.partition_states() == first.partition_states()
    assert second.partition_states()["master_biases", BIAS.key].reason == "invalidated: bad frames"
    first.close(), second.close()


def test_old_journals_are_read(place):
    """As the first versions wrote them: without temperature, reason and what was judged."""
    ledger = place.create()
    frames = [{"path": "/b", "chip": "c0", "hdu": "c0", "footprint": [[0, 0], [1, 0], [1, 1]], "sha256": "0"}]
    values = {"key": BIAS.key, "camera": "cam", "kind": "bias", "band": "all", "valid_from": "2026-01-01"}
    ledger.rebuild(
        [
            {"kind": "calibrations", "calibrations": [values | {"frames": frames}]},
            {"kind": "certification", "key": BIAS.key, "state": "certified", "valid_to": None},
        ],
        [],
    )
    assert ledger.calibrations()[BIAS.key].state == CERTIFIED
    ledger.close()
