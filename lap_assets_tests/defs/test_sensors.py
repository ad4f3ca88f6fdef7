"""Sensors evaluated tick by tick: what they request and claim, and what becomes of what was lost. No daemon here."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from lap_assets.definitions import build_defs
from lap_assets.defs import sensors
from lap_assets.defs.instance import read_materialized
from lap_assets.defs.jobs import load_collection
from lap_assets.defs.launch import read_launch
from lap_assets.defs.reaper import reap_runs, renew_waiting, settle_failed
from lap_assets.defs.run import open_instance
from lap_assets.errors import Conflict
from lap_assets.lap.inputs import hash_inputs
from lap_assets.model.associations import CERTIFIED
from lap_assets.model.products import PRODUCTS
from lap_assets.model.quality import Verdict
from lap_assets.operations import drive
from lap_assets.operations.launches import CLAIM_SECONDS, LOST, keep_alive, name_owner, read_claims, take_claims
from lap_assets.operations.webserver import note_webserver
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.defs.surveys import create_survey, ingest_small, simulate_small

# runs in the queue must name where their code is; nobody goes there
REPOSITORY = RemoteRepositoryOrigin(GrpcServerCodeLocationOrigin("127.0.0.1", 9, location_name="lap"), "__repository__")
MODE_SENSORS = ("chip_sensor", "monitor_sensor")


class Platform:
    """A repository, its Dagster instance and the definitions as a code server would have them."""

    def __init__(self, root: Path, instance: dg.DagsterInstance) -> None:
        self.root, self.instance = root, instance
        self.cursors: dict[str, str | None] = {}
        self.reload()

    def reload(self) -> None:
        """What a reload of the code location does."""
        self.definitions = build_defs(self.root)
        self.repository = self.definitions.get_repository_def()

    @property
    def space(self) -> Workspace:
        return Workspace.open(self.root)

    def tick(self, name: str) -> SensorExecutionData:
        """One tick of a sensor, with the cursor it left."""
        context = dg.build_sensor_context(
            self.instance, cursor=self.cursors.get(name), repository_def=self.repository, sensor_name=name
        )
        outcome = self.repository.get_sensor_def(name).evaluate_tick(context)
        self.cursors[name] = outcome.cursor
        return outcome

    def execute(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Run what was requested, in this process."""
        job = self.repository.get_job(request.job_name)
        return job.execute_in_process(
            asset_selection=request.asset_selection, tags=request.tags, instance=self.instance, raise_on_error=False
        )

    def submit(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        """A record of the run, as far as the daemon and its process would have taken it."""
        run = self.instance.create_run_for_job(
            self.repository.get_job(request.job_name).get_subset(asset_selection=set(request.asset_selection or ())),
            tags=request.tags,
            asset_selection=frozenset(request.asset_selection or ()),
            remote_job_origin=RemoteJobOrigin(REPOSITORY, request.job_name),
        )
        events = [dg.DagsterEventType.RUN_ENQUEUED, dg.DagsterEventType.RUN_STARTING, dg.DagsterEventType.RUN_START]
        ends = {"QUEUED": 1, "STARTING": 2, "STARTED": 3, "CANCELING": 3}[status.value]
        for kind in events[:ends]:
            self.instance.report_dagster_event(dg.DagsterEvent(kind.value, run.job_name), run.run_id)
        if status == dg.DagsterRunStatus.CANCELING:
            self.instance.report_run_canceling(run)
        return self.status_of(run)

    def status_of(self, run: dg.DagsterRun) -> dg.DagsterRun:
        found = self.instance.get_run_by_id(run.run_id)
        assert found is not None
        return found


def list_refs(requests: list[dg.RunRequest], platform: Platform) -> set[tuple[str, str]]:
    """(product, partition) of all that is requested."""
    loaded = load_collection(platform.space.survey("main"))
    return {ref for one in requests for ref in read_launch(one.tags, one.asset_selection or (), loaded)}


@pytest.fixture(scope="module")
def defined(tmp_path_factory) -> Path:
    """Four runs of two cells and two bands; no pixels."""
    return create_survey(tmp_path_factory.mktemp("defined") / "repository").root


@pytest.fixture
def platform(defined, tmp_path, monkeypatch) -> Iterator[Platform]:
    """A copy of it, to work in."""
    monkeypatch.setenv("DAGSTER_HOME", "")  # restored at the end: opening an instance sets it
    root = Path(shutil.copytree(defined, tmp_path / "repository"))
    with open_instance(root) as instance:
        yield Platform(root, instance)


def make_masters(space: Workspace) -> None:
    """Masters that count as made and certified, so that chips of all runs are next."""
    survey, configs = drive.take_snapshot(space, "main").survey, space.configs()
    for product in ("master_biases", "master_flats"):
        for key in survey.partitions(product):
            inputs = hash_inputs(survey, space.ledger.partition_states("main"), (product, key))
            space.ledger.record_partition(
                "main", product, key, "done", inputs_sha256=inputs, content_sha256=key,
                config_sha256=configs[product], verdict=Verdict(CERTIFIED, judged=key),
            )  # fmt: skip


def request_apart(platform: Platform) -> list[dg.RunRequest]:
    """Requests of chips, one or more for each LAP run: each has a priority of its own."""
    make_masters(platform.space)
    for run in platform.space.ledger.runs("main"):
        platform.space.ledger.set_priority(run.lap_id, 10 * run.lap_id)
    return platform.tick("chip_sensor").run_requests


# ---- what is requested


def test_sensors_request_what_the_decision_asks_for(platform):
    """LAP-35: `lap run` and the sensors ask one decision; each action is requested once, and claimed."""
    expected = {(one.product, one.partition) for one in drive.advance(platform.space, "main").actions}
    requests = [one for name in MODE_SENSORS for one in platform.tick(name).run_requests]
    assert expected and list_refs(requests, platform) == expected
    for one in requests:
        owner = name_owner(one.tags["lap/launch"])
        assert one.run_key == f"launch-{one.tags['lap/launch']}"
        assert set(read_claims(platform.space.ledger, owner)) == list_refs([one], platform)


def test_a_tick_repeated_and_a_second_daemon_request_nothing_twice(platform):
    """What is claimed is nobody else's; once the claims are over it is asked for again."""
    first = platform.tick("chip_sensor").run_requests
    assert first
    assert platform.tick("chip_sensor").run_requests == []
    assert Platform(platform.root, platform.instance).tick("chip_sensor").run_requests == []
    for one in first:
        platform.space.ledger.release_owner(name_owner(one.tags["lap/launch"]))
    again = platform.tick("chip_sensor").run_requests
    assert list_refs(again, platform) == list_refs(first, platform)
    assert not {one.run_key for one in again} & {one.run_key for one in first}


def test_chips_of_a_run_go_together_with_their_solutions(platform):
    """LAP-17: a run's exposures stand together in the partition set: one Dagster run makes chips and solutions."""
    make_masters(platform.space)
    requests = platform.tick("chip_sensor").run_requests
    assert {key.path[-1] for one in requests for key in one.asset_selection} == {"chips", "solutions"}
    members = [set(run.everyone) for run in platform.space.survey("main").runs]
    stretches = [{key for _, key in list_refs([one], platform)} for one in requests]
    assert set().union(*stretches) == set().union(*members)
    assert len(requests) <= len(members)


def test_the_queue_of_dagster_stays_short(platform, monkeypatch):
    """Priorities count only for what is not requested yet: no more waits than keeps the queue from running dry."""
    monkeypatch.setattr(sensors, "MAX_WAITING", 2)
    first = request_apart(platform)
    assert len(first) == 2
    runs = [platform.submit(one, dg.DagsterRunStatus.QUEUED) for one in first]
    assert platform.tick("chip_sensor").run_requests == []
    platform.instance.report_run_canceled(runs[0])
    assert len(platform.tick("chip_sensor").run_requests) == 1


def test_priorities_of_runs_are_those_of_dagster(platform):
    """What is urgent is requested first, and the run queue takes it first."""
    requests = request_apart(platform)
    priorities = [int(one.tags["dagster/priority"]) for one in requests]
    assert priorities == sorted(priorities, reverse=True) and len(set(priorities)) > 1
    assert all(one.tags["dagster/priority"] == str(int(one.tags["lap/lap_id"]) * 10) for one in requests)


# ---- a database that is gone or locked


def test_a_database_gone_fails_the_tick_with_one_line_and_the_next_goes_on(platform):
    """No claim is left behind, nothing is requested; the ledger back, so is the work."""
    ledger = platform.root / "ledger.db"
    away = ledger.rename(platform.root / "away.db")
    for name in (*MODE_SENSORS, "cleanup_sensor", "queue_sensor", "reaper_sensor"):
        with pytest.raises(Exception) as caught:
            platform.tick(name)
        cause = caught.value.__cause__ or caught.value
        assert isinstance(cause, sensors.TickFailed) and "\n" not in str(cause) and "ledger" in str(cause)
    away.rename(ledger)
    assert platform.space.ledger.leases() == []
    assert platform.tick("chip_sensor").run_requests


def test_a_locked_database_fails_the_tick_with_one_line(platform, monkeypatch):
    """Another writer holds it: the tick does not wait for ever, and the next goes on."""
    monkeypatch.setattr(sensors, "BUSY_SECONDS", 0.2)
    with platform.space.ledger._database.writing(), pytest.raises(Exception) as caught:
        platform.tick("chip_sensor")
    assert "locked by another writer" in str(caught.value.__cause__ or caught.value)
    assert platform.tick("chip_sensor").run_requests


def test_claims_of_a_tick_that_fails_half_way_are_given_back(platform, monkeypatch):
    """The first collection was claimed when the second could not be read."""
    platform.space.ledger.define_sequence("second")
    platform.reload()
    look = sensors.advance

    def fail(space, collection, modes):
        if collection == "second":
            raise Conflict("ledger is locked by another writer; try again in a moment")
        return look(space, collection, modes)

    monkeypatch.setattr(sensors, "advance", fail)
    with pytest.raises(Exception, match="locked by another writer"):
        platform.tick("chip_sensor")
    assert platform.space.ledger.leases() == []


# ---- growing partition sets


@pytest.fixture
def webserver(platform) -> Iterator[list[str]]:
    """Queries that reached a webserver of the repository."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["query"])
            body = json.dumps({"data": {"reloadWorkspace": {"__typename": "Workspace"}}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    note_webserver(platform.root, f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


def join_reloads() -> None:
    """Wait for the reloads that were asked for."""
    for thread in threading.enumerate():
        if thread.name == "reload":
            thread.join()


def test_new_partitions_make_the_definitions_load_again(platform, webserver):
    """Defined elsewhere, they are nothing to Dagster yet: a reload is asked for once, then they are requested."""
    space = platform.space
    space.ledger.define_sequence("late")
    space.ledger.define_runs("late", "rings.v3", bands=["g"])
    assert "newer than the definitions" in (platform.tick("monitor_sensor").skip_message or "")
    platform.tick("monitor_sensor")
    join_reloads()
    assert [query for query in webserver if "reloadWorkspace" in query] == webserver and len(webserver) == 1
    platform.reload()
    requests = [one for one in platform.tick("chip_sensor").run_requests]
    assert "late" in platform.definitions.resolve_asset_graph().get(dg.AssetKey(["late", "chips"])).key.path
    assert requests and len(webserver) == 1


def test_without_a_webserver_the_sensors_go_on(platform):
    """Quiet where none runs, or where the note is a dead one's."""
    platform.space.ledger.define_sequence("late")
    assert platform.tick("chip_sensor").run_requests
    note_webserver(platform.root, "http://127.0.0.1:9")
    assert platform.tick("reaper_sensor").skip_message
    join_reloads()


def test_the_queue_sensor_keeps_so_many_runs_active(platform):
    """LAP-34: entries are defined in the order of the file, a broken line is named and the others go on."""
    for run in platform.space.ledger.runs("main"):
        platform.space.ledger.cancel(run.lap_id, "not today")
    space = platform.space
    space.ledger.define_sequence("deep")
    cells = sorted(space.survey("main").cells)
    lines = [
        f"-definerun -seq_id deep -tess_id rings.v3 -projection_cell {cell} -filter {band}"
        for band in "gr"
        for cell in cells
    ]
    (platform.root / "queue.txt").write_text("\n".join(["-definerun -radius", *lines]) + "\n")
    (platform.root / "lap.yaml").write_text("lap: {max_active: 3}\n")
    told = platform.tick("queue_sensor").skip_message
    assert told.startswith("3 runs defined") and "queue.txt" in told
    assert [(run.cell, run.band) for run in space.ledger.runs("deep")] == [
        (cells[0], "g"),
        (cells[1], "g"),
        (cells[0], "r"),
    ]
    assert platform.tick("queue_sensor").skip_message.startswith("0 runs defined")


# ---- lap_status


def test_lap_status_is_told_when_it_changed(platform):
    """One row per run, as `lap status` has it; again only when a row is another."""
    platform.tick("chip_sensor")
    (told,) = platform.tick("status_sensor").asset_events
    assert told.asset_key == dg.AssetKey(["main", "lap_status"])
    rows = [record.data for record in told.metadata["runs"].records]
    assert [row["lap_id"] for row in rows] == [run.lap_id for run in platform.space.ledger.runs("main")]
    assert {row["state"] for row in rows} <= {"new", "run"} and told.metadata["n_runs"].value == len(rows)
    assert len(told.metadata["summary"].value.splitlines()) == 2 + len(rows)
    assert platform.tick("status_sensor").asset_events == []
    platform.space.ledger.pause(rows[0]["lap_id"], True)
    (told,) = platform.tick("status_sensor").asset_events
    assert told.metadata["runs"].records[0].data["state"].endswith("paused")


# ---- runs that are lost


def lose_run(platform: Platform, request: dg.RunRequest) -> list[tuple[str, str]]:
    """Its process is killed while it works: Dagster sees that, and the failure sensor acts; what it left."""
    run = platform.submit(request, dg.DagsterRunStatus.STARTED)
    at_work = platform.space.ledger.acquire(f"main/chips/at-work-{run.run_id}", f"host:7:{run.run_id}", 60.0)
    platform.instance.report_run_failed(run, "exited with code -9")
    assert at_work.key in {one.key for one in platform.space.ledger.leases()}
    loaded = load_collection(platform.space.survey("main"))
    left = settle_failed(platform.instance, platform.space, run, "exited with code -9", loaded)
    assert at_work.key not in {one.key for one in platform.space.ledger.leases()}
    return left


def test_what_a_killed_run_left_is_made_again_and_given_up_alone(platform, monkeypatch):
    """LAP-24: a partition that kills its runs does not drag others along, and in the end it is given up."""
    monkeypatch.setattr(sensors, "MAX_WAITING", 50)
    make_masters(platform.space)
    request = max(platform.tick("chip_sensor").run_requests, key=lambda one: int(one.tags["lap/partitions"]))
    lost = {ref for ref in list_refs([request], platform) if ref[0] == "chips"}
    assert len(lost) > 1

    def request_again() -> list[dg.RunRequest]:
        return [one for one in platform.tick("chip_sensor").run_requests if list_refs([one], platform) & lost]

    assert set(lose_run(platform, request)) == lost  # and no solutions: they were not reached
    states = platform.space.ledger.partition_states("main")
    assert {(states[ref].state, states[ref].attempts) for ref in lost} == {("failed", 1)}
    (together,) = request_again()
    assert set(lose_run(platform, together)) == lost
    alone = request_again()
    assert [one.tags["lap/partitions"] for one in alone] == ["1"] * len(lost)
    ((_, key),) = lose_run(platform, alone[0])
    (action,) = [one for one in drive.advance(platform.space, "main", ["chip"]).actions if one.partition == key]
    assert action.kind == "drop" and LOST in action.reason


def test_a_run_that_never_began_is_no_fault_of_its_partitions(platform):
    """The code server was away when it was its turn: its claims are free, nothing is recorded."""
    request = platform.tick("chip_sensor").run_requests[0]
    run = platform.submit(request, dg.DagsterRunStatus.STARTING)
    platform.instance.report_run_failed(run, "could not reach the code server")
    assert settle_failed(platform.instance, platform.space, run, "could not reach the code server", None) == []
    assert platform.space.ledger.partition_states("main") == {}
    assert read_claims(platform.space.ledger, name_owner(request.tags["lap/launch"])) == []


def test_what_a_killed_run_had_recorded_dagster_is_told(platform):
    """The ledger has it, so that nobody makes it again; in the UI it is green all the same."""
    request = platform.tick("chip_sensor").run_requests[0]
    refs = list_refs([request], platform)
    make_masters(platform.space)
    platform.space.ledger.release_owner(name_owner(request.tags["lap/launch"]))
    assert lose_run(platform, request) == []
    assert refs and all(key in read_materialized(platform.instance, "main", product) for product, key in refs)


@pytest.mark.parametrize(
    ("before", "after"),
    [("STARTING", "FAILURE"), ("STARTED", "FAILURE"), ("CANCELING", "CANCELED")],
)
def test_the_reaper_settles_dead_runs_and_leaves_living_ones(platform, before, after):
    """Killed with all its family a run stays for ever in Dagster; by its lease one sees that nobody works on it."""
    dead, living = request_apart(platform)[:2]
    runs = [platform.submit(one, dg.DagsterRunStatus[before]) for one in (dead, living)]
    ledger = platform.space.ledger
    ledger.release_owner(name_owner(dead.tags["lap/launch"]))
    last = max(platform.instance.get_records_for_run(run.run_id).records[-1].timestamp for run in runs)
    later = last + CLAIM_SECONDS + 1
    with keep_alive(ledger, name_owner(living.tags["lap/launch"]), runs[1].run_id):
        assert list(reap_runs(platform.instance, ledger, later - CLAIM_SECONDS)) == []  # it may just have begun
        (line,) = reap_runs(platform.instance, ledger, later)
    assert runs[0].run_id[:8] in line
    assert [platform.status_of(run).status.value for run in runs] == [after, before]
    assert list_refs([dead], platform) <= list_refs(platform.tick("chip_sensor").run_requests, platform)


def test_runs_that_wait_keep_their_claims_or_give_way(platform):
    """Renewed while they wait; one whose partitions another run has by now is taken out of the queue."""
    first, second = request_apart(platform)[:2]
    runs = [platform.submit(one, dg.DagsterRunStatus.QUEUED) for one in (first, second)]
    ledger = platform.space.ledger
    loaded = {"main": load_collection(platform.space.survey("main"))}
    for one in (first, second):
        ledger.release_owner(name_owner(one.tags["lap/launch"]))  # as if the daemon had been away for long
    assert take_claims(ledger, "main", sorted(list_refs([second], platform)))
    lap_id = int(first.tags["lap/lap_id"])
    assert renew_waiting(platform.instance, ledger, loaded) == (1, frozenset({lap_id}))
    assert [platform.status_of(run).status.value for run in runs] == ["QUEUED", "CANCELED"]
    assert set(read_claims(ledger, name_owner(first.tags["lap/launch"]))) == list_refs([first], platform)


def test_a_run_that_waited_too_long_works_only_on_what_is_free(platform):
    """Its claims are over: somebody else makes these partitions, and it refuses; else it takes them again."""
    request = platform.tick("chip_sensor").run_requests[0]
    ledger = platform.space.ledger
    ledger.release_owner(name_owner(request.tags["lap/launch"]))
    other = take_claims(ledger, "main", sorted(list_refs([request], platform)))
    outcome = platform.execute(request)
    assert not outcome.success
    assert "another run has partitions" in outcome.get_step_failure_events()[0].step_failure_data.error.to_string()
    assert platform.space.ledger.partition_states("main") == {}
    assert {one.owner for one in ledger.leases()} == {name_owner(other)}
    ledger.release_owner(name_owner(other))
    outcome = platform.execute(request)
    assert not outcome.success  # the frames of this survey are nowhere
    assert {state.state for state in platform.space.ledger.partition_states("main").values()} == {"failed"}
    assert ledger.leases() == []


def test_a_run_over_other_partitions_than_requested_refuses_to_work(platform):
    """A key that came between first and last since then was claimed by nobody."""
    request = platform.tick("chip_sensor").run_requests[0]
    outcome = platform.execute(request.with_replaced_attrs(tags=request.tags | {"lap/partitions": "7"}))
    assert not outcome.success
    assert "the partition sets grew" in outcome.get_step_failure_events()[0].step_failure_data.error.to_string()
    assert platform.space.ledger.partition_states("main") == {} and platform.space.ledger.leases() == []


# ---- a whole survey, by the sensors


@pytest.mark.survey
def test_sensors_carry_a_survey_to_its_end(tmp_path, monkeypatch):
    """LAP-22, LAP-32, LAP-33: chips to mass maps by ticks alone, then intermediates are cleaned, marked, not remade."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    space = ingest_small(tmp_path / "repository", simulate_small(tmp_path / "sim"))
    with open_instance(space.root) as instance:
        platform = Platform(space.root, instance)
        made: list[tuple[str, str]] = []
        for _ in range(40):
            requests = [one for name in MODE_SENSORS for one in platform.tick(name).run_requests]
            made += [ref for one in requests for ref in list_refs([one], platform)]
            assert all(platform.execute(one).success for one in requests)
            if not requests:
                break
        survey = space.survey("main")
        assert sorted(made) == sorted((name, key) for name in PRODUCTS for key in survey.partitions(name))
        assert [(run.state, run.settled) for run in space.ledger.runs("main")] == [("full", True)]
        key = dg.AssetKey(["main", "warps"])
        (cleaning,) = platform.tick("cleanup_sensor").run_requests
        assert platform.tick("cleanup_sensor").run_requests == []
        before = space.ledger.partition_states("main")
        assert platform.execute(cleaning).success
        states = space.ledger.partition_states("main")
        for name, row in PRODUCTS.items():
            for partition in survey.partitions(name):
                had_files = before[name, partition].state == "done" and row.intermediate
                expected = "cleaned" if had_files else before[name, partition].state
                assert states[name, partition].state == expected, (name, partition)
        assert instance.get_materialized_partitions(key) == set(survey.partitions("warps"))
        (told,) = instance.fetch_observations(
            dg.AssetRecordsFilter(key, asset_partitions=[survey.partitions("warps")[0]]), limit=1
        ).records
        assert told.asset_observation.metadata["state"].value == "cleaned"
        assert [platform.tick(name).run_requests for name in (*MODE_SENSORS, "cleanup_sensor")] == [[], [], []]
        assert space.ledger.leases() == []
