"""What Dagster is told of a partition: the LAP runs it belongs to, what was cleaned, and what came back otherwise."""

import dagster as dg
import pytest

from lap_assets.defs.reports import (
    BLOCKING,
    COMPARISON,
    describe_runs,
    evaluate_checks,
    list_checks,
    write_metadata,
)
from lap_assets.model.ids import DataId
from lap_assets.model.quality import QualityRow, Verdict
from lap_assets.model.survey import Member, Run, Survey
from lap_assets.pipeline.engine import PartitionReport
from lap_assets.pipeline.task import UnitReport
from lap_assets.store.repo import Repo

SURVEY = Survey(
    "main",
    runs=(
        Run(3, "sky.0", "g", ("e1", "e2"), "full", (Member("e1"), Member("e2")), dist_group="dr1"),
        Run(4, "sky.1", "g", ("e2",), "run", (Member("e2"), Member("e3", data_state="drop")), dist_group="dr2"),
        Run(7, "sky.1", "r", ("e4",), "new"),
    ),
)
REPORT = PartitionReport("chips", "e1", "cleaned", (UnitReport(DataId("main", "chips", "e1", "c0"), "cleaned", "ab"),))


@pytest.mark.parametrize(
    ("product", "partition", "lap_id", "state", "group"),
    [
        ("chips", "e1", "3", "full", "dr1"),
        ("solutions", "e2", "3, 4", "full, run", "dr1, dr2"),
        ("warps", "e2|sky.1", "4", "run", "dr2"),
        ("warps", "e3|sky.1", "4", "run", "dr2"),
        ("stacks", "sky.1|r", "7", "new", None),
        ("mass_maps", "sky.1", "4, 7", "new, run", "dr2"),
    ],
)
def test_every_product_names_its_runs_and_distribution_groups(product, partition, lap_id, state, group):
    """LAP-06: what is made for a run carries its dist_group; what several use, those of all."""
    told = {name: value.value for name, value in describe_runs(SURVEY, product, partition).items()}
    expected = {"lap_id": lap_id, "lap_state": state} | ({"dist_group": group} if group else {})
    assert told == expected


def test_masters_belong_to_no_run():
    """They lie outside all collections."""
    assert describe_runs(SURVEY, "master_flats", "cam|flat|g|2024-01-01") == {}


def test_a_cleaned_partition_fails_its_check_with_a_warning(tmp_path):
    """A warning blocks nothing: what is cleaned comes back when something needs it."""
    told = {one.check_name: one for one in evaluate_checks(dg.AssetKey(["main", "chips"]), Repo(tmp_path), REPORT)}
    check = told[BLOCKING]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.metadata["missing"].value == ["main/chips/e1/c0"]


def test_files_that_are_lost_fail_the_check_for_good(tmp_path):
    """Done, and not there: nothing is to be made from it."""
    report = PartitionReport("chips", "e1", "done", (UnitReport(DataId("main", "chips", "e1", "c0"), "done", "ab"),))
    told = {one.check_name: one for one in evaluate_checks(dg.AssetKey(["main", "chips"]), Repo(tmp_path), report)}
    assert (told[BLOCKING].passed, told[BLOCKING].severity) == (False, dg.AssetCheckSeverity.ERROR)


def test_what_came_back_otherwise_than_it_was_says_so(tmp_path):
    """A re-creation that differs names the unit and the cause."""
    unit = UnitReport(DataId("main", "chips", "e1", "c0"), "done", "cd", difference="numpy 2.1 instead of 2.0")
    metadata = write_metadata(Repo(tmp_path), PartitionReport("chips", "e1", "done", (unit,)))
    assert metadata["difference"].value == "c0: numpy 2.1 instead of 2.0"


@pytest.mark.parametrize("state", ["certified", "built", "rejected"])
def test_a_master_that_is_not_certified_fails_a_check_that_stops_what_follows(tmp_path, state):
    """PHX-02: with the numbers of its comparison; other products have no such check."""
    numbers = (QualityRow("fraction_beyond_6sigma", 0.03, unit="c0"), QualityRow("previous_master", text="a|b|c|d"))
    verdict = Verdict(state, "" if state == "certified" else "3 % > 1 %", "h", numbers)
    report = PartitionReport("master_flats", "cam|flat|r|2026-01-01", "done", (), verdict=verdict)
    told = {one.check_name: one for one in evaluate_checks(dg.AssetKey(["calib"]), Repo(tmp_path), report)}
    check = told[COMPARISON]
    assert (check.passed, check.blocking, check.severity) == (state == "certified", True, dg.AssetCheckSeverity.ERROR)
    rows = [record.data for record in check.metadata["numbers"].records]
    assert rows[0] == {"chip": "c0", "what": "fraction_beyond_6sigma", "value": "0.03"}
    assert set(told) == set(list_checks("master_flats")) and COMPARISON not in list_checks("chips")
