"""The same survey made in one process, by a pool, and by a cluster that loses workers: the same bytes."""

import hashlib
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client

from lap_assets.errors import BadInput
from lap_assets.model.states import DONE
from lap_assets.model.survey import Survey
from lap_assets.operations.demo import set_up, simulate_once
from lap_assets.pipeline import cluster
from lap_assets.pipeline.compute import Needs, get_executor
from lap_assets.pipeline.crew import Crew
from lap_assets.pipeline.engine import PartitionReport, Session, make_partitions
from lap_assets.pipeline.task import UnitReport
from lap_assets.settings import ComputeSettings, Settings, StackSettings
from lap_assets.store.repo import Repo
from lap_assets_tests.faults.servers import is_running, pretend_slurm, read_jobs, run_servers, wait_for
from lap_assets_tests.pipeline import calls
from lap_assets_tests.survey.conftest import lap

pytestmark = pytest.mark.slow

EXPOSURES = 4
BEFORE = ("master_biases", "master_flats")
PRODUCTS = ("chips", "solutions", "warps", "stacks")
SERIAL = ComputeSettings(executor="serial")


@pytest.fixture(scope="module")
def field(tmp_path_factory) -> tuple[Path, Survey]:
    """The tiny survey, ingested, with its masters: the repository's folder and what the ledger knows."""
    folder = tmp_path_factory.mktemp("field")
    simulate_once(folder / "sim", folder / "hidden", 1, "tiny", 2, lambda product, partitions: None)
    space = set_up(folder / "survey", folder / "sim", 1)
    survey = space.survey("main")
    space.ledger.close()
    for product in BEFORE:
        assert {one.state for one in make(space.root, survey, SERIAL, product)} == {DONE}
    return space.root, survey


@pytest.fixture(scope="module")
def serial(field, tmp_path_factory) -> dict[str, tuple]:
    """What one process makes."""
    return make_all(field, tmp_path_factory.mktemp("serial") / "repo", SERIAL)


def choose(survey: Survey, product: str) -> list[str]:
    """Partitions of a few exposures of one band, and of what is made of them."""
    names = {name for name, one in survey.exposures.items() if one.band == "r"}
    few = sorted(names)[:EXPOSURES]
    return [
        key for key in survey.partitions(product)
        if key.partition("|")[0] in few or key.endswith("|r") or product in BEFORE
    ]  # fmt: skip


def make(root: Path, survey: Survey, compute: ComputeSettings, product: str, tell=None) -> list[PartitionReport]:
    settings = Settings(compute=compute, stacks=StackSettings(min_inputs=2))
    session = Session(survey, Repo(root), settings, tell=tell or (lambda report: None))
    return list(make_partitions(session, product, choose(survey, product)))


def make_all(field, root: Path, compute: ComputeSettings, tell=None) -> dict[str, tuple]:
    """Make everything in a copy of the repository, and take down what is on disk then."""
    origin, survey = field
    shutil.copytree(origin, root)
    for product in PRODUCTS:
        reports = make(root, survey, compute, product, tell)
        assert {one.state for one in reports} == {DONE}, [one.reason for one in reports]
    return read_bytes(root)


def read_bytes(root: Path) -> dict[str, tuple]:
    """Of every unit its content hash, and the hashes of its files as they lie on disk."""
    repo, found = Repo(root), {}
    for data_id in repo.all_units("main"):
        manifest = repo.manifest(data_id)
        files = {name: hashlib.sha256(repo.path(data_id, name).read_bytes()).hexdigest() for name in manifest.members}
        found[str(data_id)] = (manifest.state, manifest.content_sha256, manifest.recipe, files)
    return found


def parse_compute(**values) -> ComputeSettings:
    return ComputeSettings.model_validate(values)


def on(address: str, **values) -> ComputeSettings:
    return parse_compute(executor="dask", scheduler_address=address, worker_wait_s=60.0, **values)


@pytest.fixture(autouse=True)
def no_connection_is_left():
    yield
    cluster.close_all()


def test_a_pool_makes_the_same_bytes_and_tells_of_memory(field, serial, tmp_path, caplog):
    """LV-05: local and serial execution of the same plan; what takes more than is declared is named, with figures."""
    assert len(serial) > 4 * EXPOSURES * 2
    needs = {"warps": {"memory_gib": 0.05}}
    assert make_all(field, tmp_path / "repo", parse_compute(workers=2, resources=needs)) == serial
    (told,) = [one.getMessage() for one in caplog.records if "declared are" in one.getMessage()]
    assert re.fullmatch(
        r"main/warps/\S+ took 0\.\d\d GiB, declared are 0\.05: set compute\.resources: "
        r"\{warps: \{memory_gib: 0\.\d\}\}",
        told,
    )


def test_a_cluster_that_loses_a_worker_ends_complete_with_the_same_bytes(field, serial, tmp_path):
    """LV-05: one of two workers is killed while both warp; the other one makes what it had in hand."""
    with run_servers(tmp_path / "servers") as servers:
        address = servers.start_scheduler()
        workers = [servers.start_worker(address) for _ in range(2)]
        made: list[UnitReport] = []
        client = Client(address, set_as_default=False)

        def kill_one(report: UnitReport) -> None:
            made.append(report)
            warps = [one for one in made if one.data_id.product == "warps"]
            if len(warps) == 3:
                busy.update({name: keys for name, keys in client.processing().items() if keys})
                workers[0].kill()

        busy: dict[str, tuple] = {}
        client.wait_for_workers(2, timeout=60)
        found = make_all(field, tmp_path / "repo", on(address), kill_one)
        client.close()
    pids = [worker.pid for worker in workers]
    assert len(busy) == 2  # the one that was killed was at work
    assert {one.worker[0] for one in made if one.data_id.product == "chips"} == set(pids)
    assert {one.worker[0] for one in made if one.data_id.product == "stacks"} == {pids[1]}
    assert found == serial


def test_a_pool_that_loses_a_worker_ends_complete_with_the_same_bytes(field, serial, tmp_path):
    """LV-05, on one machine: the pool is replaced, and what it had in hand made once more."""
    killed = []

    def kill_one(report: UnitReport) -> None:
        if report.data_id.product == "warps" and not killed:
            killed.append(report.worker[0])
            os.kill(report.worker[0], signal.SIGKILL)

    assert make_all(field, tmp_path / "repo", ComputeSettings(workers=2), kill_one) == serial
    assert killed and killed[0] != os.getpid()


def test_who_kills_worker_after_worker_fails_with_the_reason(tmp_path):
    """What only waited on a worker that it killed is made: the scheduler blames both alike."""
    with run_servers(tmp_path / "servers", DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as servers:
        address = servers.start_scheduler()
        for _ in range(3):
            servers.start_worker(address)
        crew = Crew(lambda: get_executor(on(address), "warps"), None)
        crew.add("deadly", calls.die)
        for number in range(4):
            crew.add(number, calls.tell_process)
        answers = {answer.key: answer for answer in crew.collect(wait=True)}
    assert answers["deadly"].lost.startswith("a worker was lost while making it")
    assert not [number for number in range(4) if answers[number].error]


def test_a_scheduler_that_is_gone_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 2.0)
    with run_servers(tmp_path / "servers") as servers:
        address = servers.start_scheduler()
        servers.start_worker(address)
        crew = Crew(lambda: get_executor(on(address), "warps"), None)
        for number in range(3):
            crew.add(number, calls.count_at_once, tmp_path, 5.0)
        servers.processes[0].kill()
        with pytest.raises(BadInput, match=f"no Dask scheduler can be used at compute.scheduler_address {address}"):
            list(crew.collect(wait=True))


@pytest.mark.parametrize(
    ("options", "needs", "words"),
    [
        (("--nthreads", "2"), {}, "has 2 threads: start it with --nthreads 1"),
        (("--memory-limit", "1GiB"), {"warps": {"memory_gib": 3}}, "start larger ones"),
        (("--resources", "memory_gib=2"), {"warps": {"memory_gib": 3}}, "no worker has memory_gib=3"),
    ],
)
def test_workers_that_cannot_make_units_are_refused(tmp_path, options, needs, words):
    with run_servers(tmp_path / "servers") as servers:
        address = servers.start_scheduler()
        servers.start_worker(address, *options)
        with pytest.raises(BadInput, match=words):
            get_executor(on(address, resources=needs), "warps", tmp_path)


def test_a_worker_that_does_not_see_the_repository_is_refused(tmp_path):
    """On its own disk it would make a store that nobody sees."""
    with run_servers(tmp_path / "servers") as servers:
        address = servers.start_scheduler()
        servers.start_worker(address)
        place = replace(cluster.describe_place(tmp_path), settings_sha256="0" * 64)
        connection = cluster.connect(on(address))
        with pytest.raises(BadInput, match=rf"worker tcp://\S+ cannot be used: does not see the repository {tmp_path}"):
            cluster.check_workers(connection.client, Needs(1.0, 1), place)
        cluster.close(connection)


def test_a_worker_that_joins_late_and_is_of_no_use_ends_and_another_makes_the_unit(tmp_path, caplog):
    """It neither fails what there is to do nor keeps it waiting, and its node is named."""
    with run_servers(tmp_path / "servers") as servers:
        address = servers.start_scheduler()
        good = servers.start_worker(address)
        executor = get_executor(on(address), "warps", tmp_path)
        bad = servers.start("worker", address, "--nthreads", "2", "--no-nanny")
        executor.connection.client.wait_for_workers(2, timeout=60)
        futures = [executor.submit(calls.count_at_once, tmp_path / "servers") for _ in range(8)]
        assert len([future.result(timeout=60) for future in futures]) == 8
        assert bad.wait(timeout=60) == 0 and good.poll() is None
        wait_for(lambda: "has 2 threads: start it with --nthreads 1; it was ended" in caplog.text)


def test_declared_resources_choose_the_worker(tmp_path):
    """LV-05: resources per stage; only the large worker makes what takes 3 GiB."""
    with run_servers(tmp_path / "servers") as servers:
        address = servers.start_scheduler()
        small = servers.start_worker(address, "--resources", "memory_gib=2")
        large = servers.start_worker(address, "--resources", "memory_gib=4")
        compute = on(address, resources={"warps": {"memory_gib": 3}})
        Client(address, set_as_default=False).wait_for_workers(2, timeout=60)
        chosen = get_executor(compute, "warps", tmp_path)
        assert {chosen.submit(calls.tell_process).result()[0] for _ in range(6)} == {large.pid}
        both = get_executor(compute, "chips", tmp_path)
        futures = [both.submit(calls.count_at_once, tmp_path / "servers") for _ in range(2)]
        assert len([future.result() for future in futures]) == 2 and small.poll() is None


def test_jobs_of_a_batch_system_make_the_same_bytes_and_end(field, serial, tmp_path, monkeypatch):
    """LV-05: `sbatch` is asked for jobs while there is work, over TLS; at the end none is left."""
    slurm = tmp_path / "slurm"
    job = {"kind": "slurm", "cores": 2, "memory_gib": 4, "interface": "lo", "shared_folder": str(tmp_path / "keys")}
    with pretend_slurm(slurm, monkeypatch):
        found = make_all(field, tmp_path / "repo", parse_compute(executor="dask", cluster=job))
        jobs = read_jobs(slurm)
        cluster.close_all()
        wait_for(lambda: not any(map(is_running, jobs)))
    assert jobs and found == serial
    assert not list((tmp_path / "keys").iterdir())


def test_lap_run_uses_a_cluster_with_its_ledger_on_postgresql(field, tmp_path, postgres_url):
    """LV-05: from the command line through Dagster; what is done asks for no worker, and a lost cluster is named."""
    sim, root = field[0].parent / "sim", tmp_path / "repo"
    at, camera = ("--repo", root), "simtiny"
    with run_servers(tmp_path / "servers") as servers:
        address = servers.start_scheduler()
        servers.start_worker(address)
        place = {"LAP_POSTGRES_URL": postgres_url}
        lap("init", root, "-c", "compute.executor=dask", "-c", f"compute.scheduler_address={address}", **place)
        size = ("--ra", 150.0, "--dec", 2.0, "--size", 5)
        lap(*at, "tessellation", "tiny", *size, **place)
        for kind in ("calibration", "raw"):
            lap(*at, "ingest", sim / kind, "--camera", camera, "--kind", kind, **place)
        made = lap(*at, "run", "--to", "master_biases", **place)
        assert "4 done" in made.stdout and "1 partitions" in made.stdout
    assert "none made" in lap(*at, "run", "--to", "master_biases", **place).stdout
    lost = lap(*at, "run", "--to", "master_flats", check=False, **place)
    assert lost.returncode == 1 and f"compute.scheduler_address {address}" in lost.stderr.splitlines()[-1]
