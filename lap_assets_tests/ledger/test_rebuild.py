"""A lost ledger comes back from the journal and the manifests: same survey, same states, same next decision."""

import json
from dataclasses import replace

import pytest

from lap_assets.errors import BadInput
from lap_assets.ledger.records import ManifestRow
from lap_assets.model.decisions import CLEANED_RUN, PAIR, Step
from lap_assets.model.ids import DataId
from lap_assets_tests.ledger.conftest import LOCAL, Report, finish_runs, make_calibration, make_exposure

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
    finish_runs(ledger, 2)
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


def test_files_say_whether_a_partition_is_cleaned(place):
    """Cleaned units keep the hashes of their partition, whatever the journal last told (LAP-33)."""
    first = place.create()
    done = fill(first)
    gone = [replace(row, state="cleaned") if row.state == "done" else row for row in done]
    half = [replace(row, state="goto_cleaned") if row.state == "done" else row for row in done]
    chips, before = ("chips", "cam-000001"), first.partition_states("main")
    for manifests, state in ((gone, "cleaned"), (half, "goto_cleaned"), (done, "done")):
        second = place.create()
        second.rebuild(list(place.entries), manifests)
        after = second.partition_states("main")
        assert after[chips] == replace(before[chips], state=state)
        assert {row.state for row in second.units("main", *chips)} == {state, "unprocessable"}
        # what has no files is as it was
        assert after["solutions", "cam-000001"] == before["solutions", "cam-000001"]
        second.close()
    first.close()


def test_cleaning_and_re_creation_come_back(place):
    """Marked goto_cleaned and cleaned with a reason, then made again: as the ledger had it at each point (LAP-33)."""
    first = place.create()
    manifests, chips = fill(first), ("chips", "cam-000001")
    first.mark("main", [chips], "goto_cleaned", "LAP-33: over")
    first.mark("main", [chips], "cleaned", "LAP-33: over")
    mine = DataId("main", *chips, "c0")
    cleaned = [replace(row, state="cleaned") if row.data_id == mine else row for row in manifests]
    second = place.create()
    second.rebuild(list(place.entries), cleaned)
    assert second.partition_states("main") == first.partition_states("main")
    assert second.partition_states("main")[chips].reason == "LAP-33: over"
    assert second.unit_counts("main") == first.unit_counts("main")
    record(first, *chips, [("c0", "done", "aa"), ("c1", "unprocessable", "")])
    third = place.create()
    third.rebuild([entry for entry in place.entries if entry], manifests)
    assert third.partition_states("main") == first.partition_states("main")
    assert third.partition_states("main")[chips].state == "done"
    first.close(), second.close(), third.close()


def test_what_became_of_runs_comes_back(place):
    """Steps, an operator's say, and a run defined alone, in the order they came (LAP-03, LAP-05, LAP-24)."""
    first = place.create()
    fill(first)
    first.add_exposures([make_exposure(5, "z"), make_exposure(6, "z", comment="visit 2")])
    run = first.define_run("main", "demo", "demo.0", "z", label="l", priority=4)
    first.apply([Step(run.lap_id, PAIR, "cam-000005", "cam-000006")])
    finish_runs(first, 1, settle=True)
    first.apply([Step(1, CLEANED_RUN)])
    first.retire("main", [1])
    first.set_priority(2, 9)
    first.pause(2)
    first.cancel(3, "clouds; 'thick'")
    first.set_draining(True)
    finish_runs(first, run.lap_id)
    first.reopen(run.lap_id, "again")
    entries = [json.loads(json.dumps(entry)) for entry in place.entries]
    second = place.create()
    second.rebuild(entries, [])
    assert second.runs() == first.runs()
    for one in first.runs():
        assert second.members(one.lap_id) == first.members(one.lap_id)
    assert second.draining() and second.survey("main", lean=True) == first.survey("main", lean=True)
    finish_runs(first, run.lap_id), finish_runs(second, run.lap_id)
    assert second.runs() == first.runs()  # the counter of final sets stands where it stood
    first.close(), second.close()


def test_a_journal_of_the_first_version_is_understood(ledger, place):
    """It told of states and drops one by one, and of runs with fewer values."""
    ledger.add_tessellation(LOCAL)
    ledger.add_exposures([make_exposure(1), make_exposure(2)])
    ledger.define_runs("main", "demo")
    entries = json.loads(json.dumps(place.entries))
    run = entries[-1]
    run["run"] = {name: value for name, value in run["run"].items() if name in (
        "lap_id", "sequence", "tessellation", "cell", "band", "state", "registered", "fault", "label", "final_sass_id",
        "dist_group")}  # fmt: skip
    for member in run["members"]:
        del member["neighbours"], member["reason"]
    for entry in (
        {"kind": "drop", "lap_id": 1, "exposure": "cam-000002"}, {"kind": "run_state", "lap_id": 1, "state": "run"},
        {"kind": "run_state", "lap_id": 1, "state": "full"},
    ):  # fmt: skip
        entries.append(entry)
    second = place.create()
    second.rebuild(entries, [])
    assert [(run.state, run.seq_id, run.tess_id, run.settled) for run in second.runs()] == [("full", 1, 1, False)]
    assert [(one.data_state, one.active) for one in second.members(1)] == [("new", False), ("drop", False)]
    third = place.create()
    third.rebuild([*entries, {"kind": "run_state", "lap_id": 1, "state": "run"}], [])
    assert [(run.state, run.final_sass_id) for run in third.runs()] == [("run", None)]
    assert [one.active for one in third.members(1)] == [True, False]
    second.close(), third.close()


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
    assert ledger.sequences() == []
