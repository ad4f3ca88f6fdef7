"""Retiring runs: what leaves the partition sets, what stays, and who can forbid it."""

import shutil
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.partitions.subset.default import DefaultPartitionsSubset
from dagster._core.execution.asset_backfill import AssetBackfillData
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from lap_assets.cli.app import app
from lap_assets.defs.run import RANGE_END, RANGE_START, open_instance
from lap_assets.errors import BadInput, Conflict, NotFound
from lap_assets.model.decisions import CLEANED_RUN, RUN_STATE, SETTLE, Step
from lap_assets.operations.retire import plan_retirement, retire_runs
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.defs.surveys import create_survey

WEST, EAST = "simtiny-west-g-0", "simtiny-east-g-0"


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    """Two cells in two bands, one run each, and exposures in one of the cells or in both."""
    return create_survey(tmp_path_factory.mktemp("retire") / "repository").root


@pytest.fixture
def space(survey, tmp_path, monkeypatch) -> Workspace:
    """A copy of it."""
    monkeypatch.setenv("DAGSTER_HOME", "")  # restored at the end: opening an instance sets it
    shutil.copytree(survey, tmp_path / "repository")
    return Workspace.open(tmp_path / "repository")


def finish(space: Workspace, *lap_ids: int) -> None:
    """Take runs to the end, cleaned."""
    for lap_id in lap_ids:
        space.ledger.apply([Step(lap_id, RUN_STATE, value="run"), Step(lap_id, RUN_STATE, value="full")])
        space.ledger.apply([Step(lap_id, SETTLE), Step(lap_id, CLEANED_RUN)])


def runs_of(space: Workspace) -> dict[tuple[str, str], int]:
    return {(row.cell, row.band): row.lap_id for row in space.ledger.runs("main")}


def cell_of(space: Workspace, exposure: str) -> str:
    """The cell of an exposure that lies in one only."""
    (cell,) = {key.split("|")[1] for key in space.survey().partitions("warps") if key.split("|")[0] == exposure}
    return cell


def test_cleaned_runs_leave_the_partition_sets_and_nothing_else_does(space):
    """Pairs of the run go, exposures only where no other run uses them; cells, the other runs and all records stay."""
    before = space.survey()
    west = cell_of(space, WEST)
    finish(space, runs_of(space)[west, "g"])
    plan = retire_runs(space, "main")
    after = space.survey()
    assert [(row.cell, row.band) for row in plan.runs] == [(west, "g")]
    assert plan.exposures == {"simtiny-west-g-0", "simtiny-west-g-1"}
    gone = {f"{exposure}|{west}" for exposure in (*plan.exposures, "simtiny-both-g-0", "simtiny-both-g-1")}
    assert plan.pairs == gone
    for product, left in (("chips", plan.exposures), ("solutions", plan.exposures), ("warps", gone), ("diffs", gone)):
        assert set(before.partitions(product)) - set(after.partitions(product)) == left
        assert set(after.partitions(product)) <= set(before.partitions(product))
    for product in ("stacks", "final_stacks", "object_catalogs", "master_flats"):
        assert after.partitions(product) == before.partitions(product)
    assert {row.lap_id for row in space.ledger.runs("main") if row.retired} == {plan.runs[0].lap_id}
    assert retire_runs(space, "main").runs == ()


def test_the_newest_are_kept_and_a_dry_run_changes_nothing(space):
    """Oldest first, `keep` of them left; a run that is not cleaned is never taken."""
    first, second, third, _ = sorted(runs_of(space).values())
    finish(space, first, second, third)
    before = space.survey()
    plan = retire_runs(space, "main", keep=2, dry_run=True)
    assert [row.lap_id for row in plan.runs] == [first]
    assert space.survey() == before
    assert [row.lap_id for row in retire_runs(space, "main", keep=1).runs] == [first, second]
    assert [row.lap_id for row in plan_retirement(space, "main", keep=0).runs] == [third]
    assert plan_retirement(space, "main", keep=5).runs == ()


def test_what_an_open_run_needs_stays(space):
    """An exposure in two cells keeps its chips in the set until both runs are retired."""
    west = cell_of(space, WEST)
    east = cell_of(space, EAST)
    finish(space, runs_of(space)[west, "g"])
    retire_runs(space, "main")
    assert "simtiny-both-g-0" in space.survey().partitions("chips")
    finish(space, runs_of(space)[east, "g"])
    plan = retire_runs(space, "main")
    assert "simtiny-both-g-0" in plan.exposures
    assert not [key for key in space.survey().partitions("chips") if "-g-" in key]


@pytest.mark.parametrize("key", ["main/warps/{pair}", "launch/main/chips/{exposure}"])
def test_refused_while_somebody_holds_a_lease(space, key):
    """A writer, or a launch that is queued: one line that names it, and nothing is retired."""
    west = cell_of(space, WEST)
    finish(space, runs_of(space)[west, "g"])
    held = space.ledger.acquire(key.format(pair=f"{WEST}|{west}", exposure=WEST), "somebody", 60.0)
    with pytest.raises(Conflict, match=r"nothing is retired: somebody is at (warps|chips) simtiny-west-g-0"):
        retire_runs(space, "main")
    assert not any(row.retired for row in space.ledger.runs("main"))
    space.ledger.release(held)
    assert len(retire_runs(space, "main").runs) == 1


def make_run(instance: dg.DagsterInstance, product: str, first: str, last: str, status: dg.DagsterRunStatus) -> str:
    """A run of one asset over a range of partitions, in some state."""

    @dg.asset(key=["main", product], partitions_def=dg.StaticPartitionsDefinition(sorted({first, last})))
    def made() -> None:
        pass

    job = dg.Definitions(assets=[made]).resolve_implicit_global_asset_job_def()
    key = dg.AssetKey(["main", product])
    run = instance.create_run_for_job(
        job, asset_selection=frozenset({key}), tags={RANGE_START: first, RANGE_END: last}, status=status
    )
    return run.run_id


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_refused_while_a_run_targets_any_of_it(space, status):
    """The range of the run holds a key that would go, though neither end of it does."""
    west, east = cell_of(space, WEST), cell_of(space, EAST)
    finish(space, runs_of(space)[west, "g"])
    keys = space.survey().partitions("warps")
    inside = keys.index(f"{WEST}|{west}")
    with open_instance(space.root) as instance:
        # of the other cell, and after all of it: in nobody's way
        make_run(instance, "warps", f"{EAST}|{east}", f"{EAST}|{east}", status)
        run_id = make_run(instance, "warps", keys[0], keys[-1], status)
    assert 0 < inside < len(keys) - 1
    with pytest.raises(Conflict, match=rf"nothing is retired: run {run_id[:8]} \({status.value}\) is at warps"):
        retire_runs(space, "main")
    with open_instance(space.root) as instance:
        instance.report_run_canceled(instance.get_run_by_id(run_id))
    assert len(retire_runs(space, "main").runs) == 1


def test_refused_while_a_backfill_targets_any_of_it(space):
    """A removed key would fail it; one that ended, or is about something else, is in nobody's way."""
    west, east = cell_of(space, WEST), cell_of(space, EAST)
    finish(space, runs_of(space)[west, "g"])
    with open_instance(space.root) as instance:
        instance.add_backfill(make_backfill("other", f"{EAST}|{east}"))
        mine = make_backfill("mine", f"{WEST}|{west}")
        instance.add_backfill(mine)
    with pytest.raises(Conflict, match="nothing is retired: backfill mine is at warps simtiny-west-g-0"):
        retire_runs(space, "main")
    with open_instance(space.root) as instance:
        instance.update_backfill(mine.with_status(BulkActionStatus.COMPLETED_SUCCESS))
    assert len(retire_runs(space, "main").runs) == 1


def make_backfill(name: str, *pairs: str) -> PartitionBackfill:
    """A backfill of warps as the web page requests it."""
    key = dg.AssetKey(["main", "warps"])
    target = AssetGraphSubset({key: DefaultPartitionsSubset(set(pairs))}, set())
    return PartitionBackfill(
        backfill_id=name,
        status=BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={},
        backfill_timestamp=time.time(),
        asset_selection=[key],
        asset_backfill_data=AssetBackfillData.empty(target, time.time(), None),
    )


def test_bad_input_is_one_line(space):
    with pytest.raises(BadInput, match="--keep -1 is negative"):
        retire_runs(space, "main", keep=-1)
    with pytest.raises(NotFound, match="no sequence 'season9' in the ledger"):
        retire_runs(space, "season9")


def test_the_command_says_what_it_did(space, capsys):
    finish(space, runs_of(space)[cell_of(space, WEST), "g"])
    for option, said in ((["--dry-run"], "would be retired"), ([], "retired"), ([], "retired")):
        app(["--repo", str(space.root), "retire", *option], standalone_mode=False)
        out = capsys.readouterr().out
        assert out.strip().endswith(said)
    assert out.startswith("0 runs, 0 exposures and 0 pairs")
