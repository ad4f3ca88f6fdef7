"""A lost ledger comes back from the journal and the manifests: same survey, same states, same next decision."""

import json
from dataclasses import replace

import pytest

from lap_assets.errors import BadInput
from lap_assets.ledger.records import ManifestRow
from lap_assets.model.ids import DataId
from lap_assets_tests.ledger.conftest import LOCAL, Report, make_calibration, make_exposure

BIAS = make_calibration("bias", "all", "2026-01-01")


def fill(ledger) -> list[ManifestRow]:
    """A little survey with results of every kind; returns what the store would have."""
    ledger.add_tessellation({"kind": "rings", "name": "rings.v3"})
    ledger.add_tessellation(LOCAL)
    ledger.add_reference_catalog("gaia", ["*"], "aa", 7)
    ledger.add_calibrations([BIAS, make_calibration("flat", "r")])
    ledger.set_calibration_state(BIAS.key, "certified", valid_to="2026-12-31")
    ledger.add_exposures([make_exposure(1), make_exposure(2), make_exposure(3, "g")])
    ledger.define_runs("main", "demo", dist_group="dr1")
    ledger.set_run_state(2, "full")
    ledger.add_exposures([make_exposure(4)])
    ledger.define_runs("main", "demo")
    ledger.define_runs("rerun", "demo", bands=["g"])
    ledger.drop_member(2, "cam-000002")
    manifests = [
        record(ledger, "master_biases", BIAS.key, [("c0", "done", "b0")], collection="calib"),
        record(ledger, "chips", "cam-000001", [("c0", "done", "aa"), ("c1", "unprocessable", "")]),
        record(ledger, "chips", "cam-000003", [("c0", "done", "cc"), ("c1", "failed", "")], state="failed", attempts=1),
        record(ledger, "solutions", "cam-000001", [("", "no_work", "")], state="no_work"),
    ]
    return [row for rows in manifests for row in rows]


def record(ledger, product, key, units, state="done", attempts=0, collection="main") -> list[ManifestRow]:
    reports = [
        Report(DataId(collection, product, key, unit), s, content, reason="why" if s != "done" else "")
        for unit, s, content in units
    ]
    ledger.record_partition(
        "main", product, key, state, inputs_sha256="in" + key, content_sha256="out" + key, config_sha256="k",
        attempts=attempts, reason="why" if state != "done" else "", unit_reports=reports, run_id="run",
    )  # fmt: skip
    return [
        ManifestRow(
            one.data_id,
            one.state,
            one.content,
            bytes=one.bytes,
            reason=one.reason,
            seconds=one.seconds,
            run_id="run",
            fence=7,
        )
        for one in reports
        if one.state != "failed"
    ]


def picture(ledger):
    """All that decisions depend on."""
    return (
        [ledger.survey(name) for name in ("main", "rerun")],
        ledger.partition_states("main"),
        ledger.unit_counts("main"),
        ledger.runs(),
        [ledger.members(run.lap_id) for run in ledger.runs()],
        ledger.exposures(),
        ledger.sequences(),
        ledger.tessellations(),
    )


def test_rebuilt_ledger_equals_the_lost_one(place):
    first = place.create()
    manifests = fill(first)
    entries = [json.loads(json.dumps(entry)) for entry in place.entries]
    entries.insert(3, {"kind": "rejected", "path": "/x.fits", "reason": "truncated"})
    place.entries.clear()
    second = place.create()
    n_definitions, n_partitions = second.rebuild(entries, manifests)
    assert n_partitions == 4 and n_definitions == len(entries) - 5
    assert picture(second) == picture(first)
    units = [[replace(row, updated=0.0, seconds=0.0, bytes=0) for row in one.units()] for one in (first, second)]
    assert [replace(row, run_id="") for row in units[0]] == [replace(row, run_id="") for row in units[1]]
    assert place.entries == []
    # numbers go on where they stood, so that no old writer's fence beats a new one
    assert second.acquire("main/x", "o", 60.0).fence > 7
    ((new,),) = ([run.lap_id for run in second.define_runs("third", "demo", bands=["g"])],)
    assert new == 1 + max(run.lap_id for run in first.runs())
    first.close(), second.close()


@pytest.mark.parametrize("change", ["missing", "other content", "other state"])
def test_partitions_the_files_do_not_confirm_are_made_again(place, change):
    """A unit lost or changed since: the partition is missing rather than wrongly done; the others stay."""
    first = place.create()
    manifests = fill(first)
    chip = next(i for i, row in enumerate(manifests) if row.data_id == DataId("main", "chips", "cam-000001", "c0"))
    if change == "missing":
        del manifests[chip]
    else:
        new = {"content_sha256": "zz"} if change == "other content" else {"state": "dropped"}
        manifests[chip] = replace(manifests[chip], **new)
    second = place.create()
    second.rebuild(list(place.entries), manifests)
    lost = ("chips", "cam-000001")
    assert second.partition_states("main") == {k: v for k, v in first.partition_states("main").items() if k != lost}
    first.close(), second.close()


def test_cleaned_units_still_count_as_done(place):
    first = place.create()
    manifests = [replace(row, state="cleaned") if row.state == "done" else row for row in fill(first)]
    second = place.create()
    second.rebuild(list(place.entries), manifests)
    assert second.partition_states("main") == first.partition_states("main")
    assert {row.state for row in second.units("main", "chips", "cam-000001")} == {"cleaned", "unprocessable"}
    first.close(), second.close()


def test_only_an_empty_ledger_is_rebuilt(ledger):
    ledger.add_tessellation(LOCAL)
    with pytest.raises(BadInput, match="not empty"):
        ledger.rebuild([], [])
    assert ledger.tessellations() == ["demo"]


@pytest.mark.parametrize("entry", [{"kind": "novelty"}, {}, {"kind": "exposures"}, {"kind": "sequence", "name": "x"}])
def test_an_entry_that_cannot_be_read_stops_it_whole(ledger, entry):
    good = {"kind": "sequence", "name": "main", "description": ""}
    with pytest.raises(BadInput, match="journal entry 2 cannot be read") as error:
        ledger.rebuild([good, entry], [])
    assert "\n" not in str(error.value)
    assert ledger.sequences() == {}
