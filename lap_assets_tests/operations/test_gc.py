"""Collecting garbage beside a real Dagster instance: what goes, and that nothing anybody asks for goes with it."""

import os
import time

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)

from lap_assets.cli.app import app
from lap_assets.defs.history import PRUNED_TAG
from lap_assets.defs.run import RANGE_END, RANGE_START, open_instance
from lap_assets.errors import BadInput
from lap_assets.model.ids import DataId
from lap_assets.operations.gc import collect_garbage
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.store.samples import make_stack, publish

pytestmark = pytest.mark.slow

CHIPS = dg.AssetKey(["main", "chips"])
KEYS = ("cam-1", "cam-2", "cam-3")
CHECK = "files_on_disk"
BROKEN = "test/broken"  # tag: the partition that fails


@dg.multi_asset(specs=[dg.AssetSpec(CHIPS)], partitions_def=dg.StaticPartitionsDefinition(KEYS), name="chips")
def make_chips(context: dg.AssetExecutionContext):
    """What the real assets tell Dagster of each partition: lines, an evaluation of a check, metadata with a picture."""
    for key in context.partition_keys:
        context.log.info(f"making {key}")
        if context.run.tags.get(BROKEN) == key:
            raise dg.Failure(f"{key} cannot be read", allow_retries=False)
        context.log_event(dg.AssetCheckEvaluation(asset_key=CHIPS, check_name=CHECK, passed=True, partition=key))
        context.log_event(dg.AssetMaterialization(CHIPS, partition=key, metadata={"preview": "x" * 10_000}))


def launch(instance: dg.DagsterInstance, first: str = KEYS[0], last: str = KEYS[-1], broken: str = "") -> str:
    """One run over a range of partitions; the run's id."""
    job = dg.Definitions(assets=[make_chips]).resolve_implicit_global_asset_job_def()
    tags = {RANGE_START: first, RANGE_END: last, BROKEN: broken}
    return job.execute_in_process(asset_selection=[CHIPS], instance=instance, tags=tags, raise_on_error=False).run_id


@pytest.fixture(params=["embedded", pytest.param("postgresql", marks=pytest.mark.slow)])
def space(request, tmp_path, monkeypatch) -> Workspace:
    """A repository on each of the two databases."""
    monkeypatch.setenv("DAGSTER_HOME", "")  # restored at the end: opening an instance sets it
    if request.param == "postgresql":
        monkeypatch.setenv("LAP_POSTGRES_URL", request.getfixturevalue("postgres_url"))
    return Workspace.create(tmp_path / "repository")


def read_state(instance: dg.DagsterInstance) -> dict[str, tuple]:
    """What the UI shows of every partition: the newest materialization in full, and how its check stands."""
    storage = instance.event_log_storage
    checks = {
        one.partition_key: one for one in storage.get_asset_check_partition_info([dg.AssetCheckKey(CHIPS, CHECK)])
    }
    found = {}
    for key in instance.get_materialized_partitions(CHIPS):
        chosen = dg.AssetRecordsFilter(CHIPS, asset_partitions=[key])
        record = instance.fetch_materializations(chosen, limit=1).records[0]
        found[key] = (record.storage_id, record.run_id, record.asset_materialization, checks[key])
    return found


def count_events(instance: dg.DagsterInstance, run_id: str) -> int:
    return len(instance.get_records_for_run(run_id).records)


def test_history_is_pruned_and_the_state_of_things_is_not(space):
    """A superseded run loses its events, one that holds the newest only those of debugging; all runs stay listed."""
    with open_instance(space.root) as instance:
        superseded, first, second = launch(instance), launch(instance), launch(instance, KEYS[1])
        before, listed = read_state(instance), {run.run_id for run in instance.get_runs()}
        assert {key: one[1] for key, one in before.items()} == dict(zip(KEYS, (first, second, second), strict=True))
        events = {run_id: count_events(instance, run_id) for run_id in listed}
    planned = collect_garbage(space, days=0.0, dry_run=True).history
    with open_instance(space.root) as instance:
        assert read_state(instance) == before
        assert {run_id: count_events(instance, run_id) for run_id in listed} == events
        assert not any(PRUNED_TAG in run.tags for run in instance.get_runs())
    done = collect_garbage(space, days=0.0).history
    assert (planned.superseded, planned.debug) == (done.superseded, done.debug) == (1, 2)
    assert 0 < planned.bytes == done.bytes
    again = collect_garbage(space, days=0.0).history
    assert (again.superseded, again.debug, again.bytes) == (0, 0, 0)
    with open_instance(space.root) as instance:
        assert read_state(instance) == before
        assert {run.run_id for run in instance.get_runs()} == listed
        assert all(run.status == dg.DagsterRunStatus.SUCCESS for run in instance.get_runs())
        assert instance.get_run_by_id(superseded).tags[PRUNED_TAG] == "superseded"
        assert count_events(instance, superseded) == 0
        assert count_events(instance, first) < events[first] and count_events(instance, second) < events[second]
        # what comes later is newer
        third = launch(instance)
        assert {one[1] for one in read_state(instance).values()} == {third}
    last = collect_garbage(space, days=0.0).history
    assert (last.superseded, last.debug) == (2, 1)  # the two that held the newest, and the new one


def test_a_server_that_read_a_run_before_reads_it_after(space):
    """The web page of a run that was pruned meanwhile: how it went, without an error, from the same process."""
    with open_instance(space.root) as server:
        superseded, newest = launch(server), launch(server)
        count_events(server, superseded)
        count_events(server, newest)
        collect_garbage(space, days=0.0)
        assert count_events(server, superseded) == 0
        left = {entry.dagster_event_type for entry in server.all_logs(newest)}
        assert {dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.STEP_SUCCESS} < left
        assert dg.DagsterEventType.ENGINE_EVENT not in left
        launch(server)
        assert set(read_state(server)) == set(KEYS)


def test_recent_and_unfinished_runs_are_left_alone(space):
    """Neither what ended within the days that are kept, nor what has not ended at all, however old."""
    with open_instance(space.root) as instance:
        ended = launch(instance)
        job = dg.Definitions(assets=[make_chips]).resolve_implicit_global_asset_job_def()
        alive = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        instance.report_engine_event("under way", alive)
        events = count_events(instance, alive.run_id)
    assert collect_garbage(space, days=1.0).history.debug == 0
    assert collect_garbage(space, days=0.0).history.superseded == 0
    with open_instance(space.root) as instance:
        assert count_events(instance, alive.run_id) == events > 0
        assert instance.get_run_by_id(ended).tags[PRUNED_TAG] == "debug"


def test_the_error_of_a_failed_run_stays_until_its_partitions_were_made(space):
    """A failed run is the newest attempt at its partitions: why it failed can be read until a later one is done."""
    with open_instance(space.root) as instance:
        failed = launch(instance, broken=KEYS[1])
        assert instance.get_run_by_id(failed).status == dg.DagsterRunStatus.FAILURE
    collect_garbage(space, days=0.0)
    with open_instance(space.root) as instance:
        told = instance.all_logs(failed, of_type=dg.DagsterEventType.STEP_FAILURE)
        assert f"{KEYS[1]} cannot be read" in told[0].dagster_event.step_failure_data.error.to_string()
        assert set(read_state(instance)) == {KEYS[0]}
        launch(instance)
    assert collect_garbage(space, days=0.0).history.superseded == 1
    with open_instance(space.root) as instance:
        assert instance.all_logs(failed) == []
        assert set(read_state(instance)) == set(KEYS)


def test_old_ticks_go(space):
    """Of every sensor, also one that is not defined any more and so never prunes its own."""
    place = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("gone"), "__repository__")
    origin = RemoteInstigatorOrigin(place, "old_sensor")
    state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING, SensorInstigatorData())
    ids, now = (state.instigator_origin_id, state.selector_id), time.time()
    tick = TickData(ids[0], "old_sensor", InstigatorType.SENSOR, TickStatus.SKIPPED, now, selector_id=ids[1])
    with open_instance(space.root) as instance:
        instance.add_instigator_state(state)
        for days in (60, 8, 6):
            instance.create_tick(tick._replace(timestamp=now - days * 86400.0))
    assert collect_garbage(space, days=7.0, dry_run=True).history.ticks == 2
    assert collect_garbage(space, days=7.0).history.ticks == 2
    with open_instance(space.root) as instance:
        assert [one.timestamp for one in instance.get_ticks(*ids)] == [now - 6 * 86400.0]


def test_replaced_versions_go_unless_somebody_is_at_them(tmp_path):
    """Bytes are those set free; a version under a lease stays, one replaced within the hour stays, too."""
    space = Workspace.create(tmp_path / "repository")
    old, held = (DataId("main", "stacks", f"{cell}|r", "00") for cell in ("demo.0", "demo.1"))
    for unit in (old, held):
        for value in (1.0, 2.0):
            publish(space.repo, unit, make_stack(value))
    assert collect_garbage(space).versions == 0
    for unit in (old, held):
        age = time.time() - 7200.0
        for path in (space.repo.layout.manifest(unit), *space.repo.layout.find_versions(unit)):
            os.utime(path, (age, age))
    lease = space.ledger.acquire("main/stacks/demo.1|r", "somebody", 60.0)
    replaced = [one for one in space.repo.layout.find_versions(old) if one.name != space.repo.manifest(old).directory]
    size = sum(file.stat().st_size for file in replaced[0].iterdir())
    planned = collect_garbage(space, dry_run=True)
    assert replaced[0].is_dir()
    done = collect_garbage(space)
    assert (planned.versions, planned.version_bytes) == (done.versions, done.version_bytes) == (1, size)
    assert len(space.repo.layout.find_versions(old)) == 1 and space.repo.has_files(old)
    assert len(space.repo.layout.find_versions(held)) == 2
    space.ledger.release(lease)
    assert collect_garbage(space).versions == 1


def test_the_command_says_what_it_removed(tmp_path, capsys):
    root = Workspace.create(tmp_path / "repository").root
    app(["--repo", str(root), "gc", "--dry-run"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "would be removed:" and lines[1].startswith("  store: 0 versions") and "0 ticks" in lines[2]
    with pytest.raises(BadInput, match="--days -1 is no age"):
        app(["--repo", str(root), "gc", "--days", "-1"], standalone_mode=False)
