"""Everything on PostgreSQL: a real `dagster dev` with its storage there, a backfill of its page, and the ledger."""

import time

import dagster as dg
import pytest

from lap_assets.defs.instance import asset_key
from lap_assets.defs.run import open_instance
from lap_assets.operations.drive import run_survey
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.defs.surveys import ingest_small, simulate_small
from lap_assets_tests.ui.servers import find_free_port, serve
from lap_assets_tests.ui.test_ui import LAP, LAUNCH, STATUS

pytestmark = [pytest.mark.ui, pytest.mark.slow, pytest.mark.xdist_group("ui")]

BACKFILL_SECONDS = 600.0


@pytest.fixture
def space(tmp_path, postgres_url, monkeypatch) -> Workspace:
    """A survey whose ledger and Dagster are in a new database, its masters made, its run paused: no sensor works."""
    monkeypatch.setenv("DAGSTER_HOME", "")  # restored at the end: opening an instance sets it
    monkeypatch.setenv("LAP_POSTGRES_URL", postgres_url)
    made = ingest_small(tmp_path / "repository", simulate_small(tmp_path / "sim"))
    run_survey(made, None, [], "master_flats", None, lambda report: None, lambda product, partitions: None)
    for run in made.ledger.runs("main"):
        made.ledger.pause(run.lap_id)
    return made


def test_a_backfill_with_everything_on_postgresql(space, tmp_path, postgres_url):
    """`LAP_POSTGRES_URL` alone moves ledger and Dagster: nothing embedded is left, and no file holds the URL."""
    keys, port = space.survey().partitions("chips"), find_free_port()
    command = [*LAP, "--repo", str(space.root), "ui", "--port", str(port)]
    with serve(command, tmp_path, port, tmp_path / "dagster.log", LAP_POSTGRES_URL=postgres_url) as server:
        params = {"assetSelection": [{"path": ["main", "chips"]}], "partitionNames": list(keys), "tags": []}
        launched = server.ask(LAUNCH, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        end = time.monotonic() + BACKFILL_SECONDS
        while True:
            backfill = server.ask(STATUS, id=launched["backfillId"])["partitionBackfillOrError"]
            if backfill["status"] not in ("REQUESTED", "CANCELING"):
                break
            assert time.monotonic() < end, f"{backfill}\n{server.log.read_text()[-5000:]}"
            time.sleep(2)
        assert (backfill["status"], backfill["error"]) == ("COMPLETED_SUCCESS", None), backfill
    assert server.members() == []
    states = space.ledger.partition_states()
    assert {states["chips", key].state for key in keys} == {"done"}
    with open_instance(space.root) as instance:
        assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
        assert instance.get_materialized_partitions(asset_key("main", "chips")) == set(keys)
        assert instance.get_materialized_partitions(asset_key("main", "master_flats"))
        mine = dg.RunsFilter(tags={"dagster/backfill": launched["backfillId"]})
        ended = {run.status for run in instance.get_runs(mine)}
        assert ended == {dg.DagsterRunStatus.SUCCESS}
    assert list(space.root.rglob("*.db")) == []
    small = [path for path in space.root.rglob("*") if path.is_file() and path.suffix in (".yaml", ".json", ".jsonl")]
    assert small and not any(postgres_url in path.read_text() for path in small)
