"""What Dagster is told of a partition: the LAP runs it belongs to, what was cleaned, and what came back otherwise."""

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from lap_assets.defs.reports import (
    BLOCKING,
    COMPARISON,
    average_metrics,
    describe_runs,
    evaluate_checks,
    find_picture,
    list_checks,
    write_metadata,
)
from lap_assets.model.ids import DataId
from lap_assets.model.quality import QualityRow, Verdict
from lap_assets.model.survey import Member, Run, Survey
from lap_assets.pipeline.engine import PartitionReport
from lap_assets.pipeline.task import UnitReport
from lap_assets.qa.pictures import thumbnail
from lap_assets.science.streaks import STREAK_COLUMNS
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


def test_metrics_of_units_are_summed_averaged_or_named():
    """Skycells of a stack share their inputs, so these are not added up; one left out of one of them is told."""

    def count(left_out, quality, **numbers):
        found = []
        for number, (left, good) in enumerate(zip(left_out, quality, strict=True)):
            metrics = {"left_out": left, "quality": good, "band": "r"} | {k: v[number] for k, v in numbers.items()}
            unit = DataId("main", "stacks", "sky.0|g", f"{number:02d}")
            found.append(UnitReport(unit, "done", "ab", metrics=metrics))
        return average_metrics(PartitionReport("stacks", "sky.0|g", "done", tuple(found)))

    told = count(
        ["", "", "e7"], ["good", "flux ratio 2", "good"], n_inputs=[6, 6, 5], n_sources=[1, 2, 3], chi=[1, 2, 6]
    )
    assert told["band"] == "r" and told["left_out"] == "02: e7"
    assert told["quality"] == "most: good; 01: flux ratio 2"
    assert told["n_inputs"] == pytest.approx(17 / 3, rel=1e-5) and told["n_sources"] == 6 and told["chi"] == 3
    assert "left_out" not in count(["", ""], ["good", "good"])
    many = count([f"e{k}" for k in range(200)], ["good"] * 200)["left_out"]
    assert len(many) <= 300 and many.endswith(" …")


def test_the_picture_of_streak_masks_is_that_of_the_unit_with_most(tmp_path):
    repo, units = Repo(tmp_path), []
    pictures = [thumbnail(np.eye(8, dtype="f4") * k, np.zeros((8, 8), np.int16)) for k in (1, 0, -1)]
    for number, n in enumerate((0, 2, 1)):
        data_id = DataId("main", "streak_masks", "e1|sky.0", f"{number:02d}")
        members = {
            "preview.png": pictures[number],
            "streaks.parquet": pd.DataFrame(dict.fromkeys(STREAK_COLUMNS, [0.0] * n)),
        }
        repo.publish(data_id, members, inputs=(), recipe="x", config_sha256="x", code=1, metrics={"n_streaks": n})
        units.append(UnitReport(data_id, "done", "ab", metrics={"n_streaks": n}))
    assert find_picture(repo, PartitionReport("streak_masks", "e1|sky.0", "done", tuple(units))) == pictures[1]


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
