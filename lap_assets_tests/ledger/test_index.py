"""The record of partitions and units: one transaction each, found again as written."""

import threading

import pytest

from lap_assets.errors import Conflict
from lap_assets.model.ids import DataId
from lap_assets.model.states import PartitionState
from lap_assets_tests.ledger.conftest import Report


def warps(state: str, *contents: str, skipped: bool = False) -> list[Report]:
    return [
        Report(DataId("main", "warps", "cam-1|demo.0", f"{i:02d}"), state, content, skipped)
        for i, content in enumerate(contents)
    ]


def test_partition_and_units_come_back_as_recorded(ledger, place):
    reports = [
        *warps("done", "aa", "bb"),
        Report(DataId("main", "warps", "cam-1|demo.0", "02"), "no_work", reason="no overlap"),
    ]
    ledger.record_partition(
        "main", "warps", "cam-1|demo.0", "done", inputs_sha256="i", content_sha256="c", config_sha256="k",
        unit_reports=reports, run_id="run-1",
    )  # fmt: skip
    assert ledger.partition_states("main") == {("warps", "cam-1|demo.0"): PartitionState("done", "i", "c", "k")}
    assert ledger.partition_states("other") == {}
    assert ledger.unit_counts("main") == {("warps", "cam-1|demo.0"): {"done": 2, "no_work": 1}}
    rows = ledger.units("main", product="warps")
    assert [(row.data_id, row.state, row.content, row.reason) for row in rows] == [
        (one.data_id, one.state, one.content, one.reason) for one in reports
    ]
    assert {(row.run_id, row.seconds, row.bytes, row.updated) for row in rows} == {
        ("run-1", 1.5, 1000, place.clock.time)
    }
    assert [row.data_id.unit for row in ledger.units(state="no_work")] == ["02"]
    assert ledger.units("main", product="stacks") == []


def test_recording_again_replaces_and_skipped_units_keep_their_history(ledger, place):
    ledger.record_partition(
        "main", "warps", "cam-1|demo.0", "done", unit_reports=warps("done", "aa", "bb"), run_id="run-1"
    )
    place.clock.time += 100.0
    again = [*warps("done", "aa", skipped=True), warps("done", "aa", "new")[1]]
    ledger.record_partition("main", "warps", "cam-1|demo.0", "done", unit_reports=again, run_id="run-2")
    first, second = ledger.units("main")
    assert (first.run_id, first.seconds) == ("run-1", 1.5)
    assert (second.run_id, second.content, second.updated - first.updated) == ("run-2", "new", 100.0)


def test_masters_lie_outside_all_collections(ledger):
    key = "cam|bias|all|2026-01-01"
    report = Report(DataId("calib", "master_biases", key, "c0"), "done", "aa")
    ledger.record_partition("rerun", "master_biases", key, "done", content_sha256="c", unit_reports=[report])
    assert ledger.partition_states("main") == ledger.partition_states("rerun")
    assert list(ledger.partition_states("main")) == [("master_biases", key)]
    assert [row.data_id for row in ledger.units("main")] == [report.data_id]


def test_attempts_are_kept_until_forgotten(ledger):
    ledger.record_partition("main", "chips", "cam-1", "failed", attempts=2, reason="disk full")
    assert ledger.partition_states("main")["chips", "cam-1"].attempts == 2
    ledger.forget_attempts("main")
    assert ledger.partition_states("main")["chips", "cam-1"] == PartitionState("failed", attempts=0, reason="disk full")


def test_a_damaged_unit_makes_its_partition_corrupt(ledger):
    reports = warps("done", "aa", "bb")
    ledger.record_partition("main", "warps", "cam-1|demo.0", "done", content_sha256="c", unit_reports=reports)
    ledger.forget_unit(reports[1].data_id)
    state = ledger.partition_states("main")["warps", "cam-1|demo.0"]
    assert (state.state, state.content_sha256, state.reason) == ("corrupt", "c", "01: it was found damaged")
    assert [row.data_id.unit for row in ledger.units("main")] == ["00"]
    assert ledger.unit_counts("main") == {("warps", "cam-1|demo.0"): {"done": 1}}
    ledger.forget_unit(DataId("main", "warps", "cam-2|demo.0", "00"))


def test_units_with_a_wrong_state_leave_the_old_record_whole(ledger):
    ledger.record_partition(
        "main", "warps", "cam-1|demo.0", "done", content_sha256="c", unit_reports=warps("done", "aa")
    )
    wrong = [*warps("done", "xx"), Report(DataId("main", "warps", "cam-1|demo.0", "09"), "marvellous")]
    with pytest.raises(Conflict):
        ledger.record_partition("main", "warps", "cam-1|demo.0", "done", content_sha256="d", unit_reports=wrong)
    assert ledger.partition_states("main")["warps", "cam-1|demo.0"].content_sha256 == "c"
    assert [row.content for row in ledger.units("main")] == ["aa"]


def test_partitions_recorded_from_many_threads_are_all_there(ledger):
    def work(number: int) -> None:
        for i in range(5):
            key = f"cam-{number}{i}"
            report = Report(DataId("main", "chips", key, "c0"), "done", key)
            ledger.record_partition("main", "chips", key, "done", content_sha256=key, unit_reports=[report])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = ledger.partition_states("main")
    assert len(states) == 20
    assert {row.content for row in ledger.units("main")} == {key for _, key in states}
