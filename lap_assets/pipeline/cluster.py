"""Workers on other machines: an executor on a Dask scheduler that runs already, or on jobs of a batch system.

Holds all that knows Dask; imported only where `compute.executor` is `dask`. The units, and the bytes that come out, are
those of the other executors. A worker has one thread, sees the repository under the same path (a shared file system)
and runs the same code: checked on the worker before it makes anything. Whoever reaches a scheduler's port can run any
code there, hence loopback, TLS, or a network said to be trusted.
"""

import atexit
import hashlib
import logging
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import urlsplit

import dask
from distributed import Client, Reschedule, Security, get_worker

from lap_assets.errors import BadInput
from lap_assets.pipeline.compute import GIB, THREAD_VARIABLES, Needs, configure_process
from lap_assets.settings import SETTINGS_FILE, ClusterSettings, ComputeSettings, TlsSettings

log = logging.getLogger(__name__)
CONNECT_SECONDS = 20.0
CLOSE_SECONDS = 10.0
ADAPT_S = 5  # between two looks at whether more or fewer jobs are wanted
LIFETIME_MARGIN_S = 300  # workers end so long before their job does, between two units
LIFETIME_STAGGER_S = 120
TOPIC = "lap_assets"  # of what workers report to this process
LOOPBACK = "127.0.0.1:0"  # where pages about health are served, which are not encrypted
QUIET = {
    "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
    # a client whose scheduler went away says so, instead of waiting for another to come
    "distributed.comm.retry.count": 0,
}


@dataclass(frozen=True)
class Place:
    """What a worker must see to be of use: the repository, and this very code."""

    root: str
    settings_sha256: str
    sources_sha256: str


@dataclass
class Connection:
    """A client, the cluster and its certificates where they are ours, and executors by what was checked for them."""

    client: Client
    cluster: Any = None
    keys: TlsSettings | None = None
    executors: dict[tuple[Place, Needs], "ClusterExecutor"] = field(default_factory=dict)


_connections: dict[str, Connection] = {}


class ClusterExecutor(Executor):
    """Hands calls to workers of a cluster, one at a time each; they check themselves first."""

    def __init__(self, connection: Connection, place: Place, resources: dict[str, float]) -> None:
        self.connection, self.place = connection, place
        self._inner = connection.client.get_executor(pure=False, resources=resources or None)

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        return self._inner.submit(call_on_worker, self.place, fn, *args, **kwargs)


def open_executor(settings: ComputeSettings, needs: Needs, root: Path | None) -> ClusterExecutor:
    """An executor for units with such needs in the repository `root`; connects, or asks for jobs, on first use.

    Raises
    ------
    BadInput
        No scheduler, no worker, none with enough memory, or one that does not see the repository.
    """
    key, place = settings.model_dump_json(), describe_place(root)
    if settings.cluster is not None:
        check_job(settings, settings.cluster, needs)
    if key not in _connections:
        if not _connections:
            atexit.register(close_all)
        with dask.config.set(QUIET):
            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it tells of a loss in fifty lines
            _connections[key] = connect(settings) if settings.cluster is None else start_jobs(settings)
    connection = _connections[key]
    if (place, needs) not in connection.executors:
        resources = check_workers(connection.client, needs, place)
        connection.executors[place, needs] = ClusterExecutor(connection, place, resources)
    return connection.executors[place, needs]


def discard(executor: Executor) -> None:
    """Close the connection of an executor, if it is one of ours and still open."""
    for key, connection in list(_connections.items()):
        if isinstance(executor, ClusterExecutor) and executor.connection is connection:
            del _connections[key]
            close(connection)


def close_all() -> None:
    """Close all connections and give back all jobs, at the end of the process."""
    while _connections:
        close(_connections.popitem()[1])


def close(connection: Connection) -> None:
    """End a connection, and the jobs where they are ours."""
    connection.client.close(CLOSE_SECONDS)
    if connection.cluster is not None:
        connection.cluster.close(CLOSE_SECONDS)
    remove_keys(connection.keys)


# ---- a scheduler that runs already


def connect(settings: ComputeSettings) -> Connection:
    """Connect to the scheduler at `compute.scheduler_address`, and wait for its first worker."""
    address = settings.scheduler_address
    host = urlsplit(address).hostname or ""
    if address.startswith("tcp://") and not (is_loopback(host) or settings.trusted_network):
        raise BadInput(
            f"compute.scheduler_address {address} is not encrypted, and whoever reaches its port can run any code: "
            "use tls:// with compute.tls, or set compute.trusted_network if nobody else is on that network"
        )
    security = read_security(settings.tls) if settings.tls else None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, security=security, set_as_default=False)
    except (OSError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise BadInput(
            f"no Dask scheduler can be used at compute.scheduler_address {address} ({why}): start one with "
            "`dask scheduler`, or use compute.executor=processes"
        ) from error
    advice = f"start some with `dask worker {address} --nthreads 1`, or raise compute.worker_wait_s"
    await_worker(Connection(client), settings.worker_wait_s, advice)
    return Connection(client)


def await_worker(connection: Connection, seconds: float, advice: str) -> None:
    """Wait for the first worker, and pass on what workers report; raises `BadInput` where none joins."""
    connection.client.subscribe_topic(TOPIC, lambda event: log.warning("%s", event[1]))
    try:
        connection.client.wait_for_workers(1, timeout=seconds)
    except TimeoutError as error:
        close(connection)
        raise BadInput(f"no worker has joined the cluster after {seconds:g} s: {advice}") from error


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def read_security(tls: TlsSettings) -> Security:
    """The certificates of `compute.tls`; raises `BadInput` for a file that is not there."""
    for name, path in tls.model_dump().items():
        if not Path(path).expanduser().is_file():
            raise BadInput(f"compute.tls.{name}: there is no file {path}")
    files = {name: str(Path(path).expanduser()) for name, path in tls.model_dump().items()}
    pair = {"cert": files["cert_file"], "key": files["key_file"]}
    roles = {f"tls_{role}_{part}": path for role in ("client", "scheduler", "worker") for part, path in pair.items()}
    return Security(tls_ca_file=files["ca_file"], require_encryption=True, **roles)


def check_workers(client: Client, needs: Needs, place: Place) -> dict[str, float]:
    """Refuse workers that cannot make such units; returns the resources to ask for, of those that workers declare."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    asked = {"memory_gib": needs.memory_gib, "cores": float(needs.cores)}
    declared = {name for one in workers.values() for name in one["resources"]}
    for name, amount in asked.items():
        if name in declared and not any(one["resources"].get(name, 0.0) >= amount for one in workers.values()):
            raise BadInput(f"no worker has {name}={amount:g} as compute.resources asks: start one that declares it")
    limits = [one["memory_limit"] or float("inf") for one in workers.values()]
    if limits and max(limits) < needs.memory_gib * GIB:
        raise BadInput(
            f"a unit is declared to take {needs.memory_gib:g} GiB, and the largest worker has {max(limits) / GIB:.2g} "
            "GiB: start larger ones (--memory-limit), or set compute.resources"
        )
    try:
        sources = client.run_on_scheduler(hash_sources)
    except ImportError:
        sources = ""
    if sources != place.sources_sha256:
        raise BadInput("the scheduler has another version of lap-assets, or none: start it in the same environment")
    problems = client.run(find_problem, place, on_error="return")
    for address, problem in sorted(problems.items()):
        if problem and not isinstance(problem, OSError):  # that is of a worker that has just gone
            raise BadInput(f"worker {address} cannot be used: {' '.join(str(problem).split())}")
    return {name: amount for name, amount in asked.items() if name in declared}


# ---- jobs of a batch system


def check_job(settings: ComputeSettings, cluster: ClusterSettings, needs: Needs) -> None:
    """Refuse an open door, and needs that a worker of a job does not meet, before any job is asked for."""
    if not (cluster.encrypted or settings.trusted_network):
        raise BadInput(
            "compute.cluster.encrypted is false, and whoever reaches the scheduler's port can run any code: leave it "
            "true, or set compute.trusted_network if nobody else is on that network"
        )
    workers = cluster.processes or cluster.cores
    memory_gib, cores = cluster.memory_gib / workers, cluster.cores // workers
    if memory_gib < needs.memory_gib or cores < needs.cores:
        raise BadInput(
            f"a unit is declared to take {needs.memory_gib:g} GiB and {needs.cores} cores, and a worker of "
            f"compute.cluster has {memory_gib:.3g} GiB and {cores}: lower processes, or raise memory_gib or cores"
        )


def start_jobs(settings: ComputeSettings) -> Connection:
    """A scheduler here and a first job, whose workers are looked at; then jobs as there is work for them."""
    keys = make_keys(settings.cluster) if settings.cluster.encrypted else None
    try:
        made = make_cluster(settings.cluster, keys)
    except BadInput:
        remove_keys(keys)
        raise
    made.scale(jobs=1)
    connection = Connection(Client(made, set_as_default=False), made, keys)
    await_worker(connection, settings.worker_wait_s, "see the queue and the logs of the batch system for why")
    waits = max(1, round(settings.cluster.idle_s / ADAPT_S))
    made.adapt(minimum_jobs=0, maximum_jobs=settings.cluster.jobs, interval=f"{ADAPT_S}s", wait_count=waits)
    return connection


def make_cluster(cluster: ClusterSettings, keys: TlsSettings | None) -> Any:
    """The `dask_jobqueue` cluster that the settings describe, without any job yet.

    Raises
    ------
    BadInput
        A package is missing, or the batch system cannot be told what the settings ask for.
    """
    try:
        import dask_jobqueue
    except ImportError as error:
        raise BadInput(f"compute.cluster needs {error.name}: pip install 'lap-assets[cluster]'") from error
    kinds = {
        "slurm": dask_jobqueue.SLURMCluster,
        "htcondor": dask_jobqueue.HTCondorCluster,
        "pbs": dask_jobqueue.PBSCluster,
    }
    try:
        return kinds[cluster.kind](**describe_job(cluster, keys))
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"compute.cluster cannot be used: {' '.join(str(error).split())}") from error


def describe_job(cluster: ClusterSettings, keys: TlsSettings | None) -> dict[str, Any]:
    """Arguments of the `dask_jobqueue` cluster; its own configuration files fill in what is not said."""
    workers = cluster.processes or cluster.cores
    life = max(count_seconds(cluster.walltime) - LIFETIME_MARGIN_S, 60)
    hours, rest = divmod(count_seconds(cluster.walltime), 3600)
    clock = f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"  # without days, which PBS does not know
    own = {"queue": cluster.queue or None, "account": cluster.account or None, "walltime": clock}
    directives: Any = list(cluster.directives)
    if cluster.kind == "htcondor":
        own = {"disk": f"{cluster.disk_gib:g} GiB"}
        directives = dict(split_directive(line) for line in cluster.directives)
        directives |= {"accounting_group": cluster.account} if cluster.account else {}
    described = {
        "cores": cluster.cores,
        "memory": f"{cluster.memory_gib:g} GiB",
        "processes": workers,
        "job_extra_directives": directives,
        "job_script_prologue": [*(f"export {name}=1" for name in THREAD_VARIABLES), *cluster.prologue],
        "interface": cluster.interface or None,
        "local_directory": cluster.local_folder or None,
        "worker_extra_args": [
            # one unit at a time, however many cores a worker's share of the job has
            *("--nthreads", "1"),
            *("--lifetime", f"{life}s", "--lifetime-stagger", f"{LIFETIME_STAGGER_S}s"),
            *("--no-dashboard", "--dashboard-address", LOOPBACK),
        ],
        "scheduler_options": {"dashboard": False, "dashboard_address": LOOPBACK},
    }
    if keys is not None:
        described["security"] = read_security(keys)
    return described | own


def make_keys(cluster: ClusterSettings) -> TlsSettings:
    """Certificates for one cluster, in a folder that all nodes see and no other user can read.

    Raises
    ------
    BadInput
        A package is missing, or the folder cannot be written.
    """
    folder = Path(cluster.shared_folder).expanduser()
    try:
        made = Security.temporary().get_tls_config_for_role("worker")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        own = Path(mkdtemp(prefix="cluster-", dir=folder))
    except ImportError as error:
        raise BadInput("compute.cluster.encrypted needs cryptography: pip install 'lap-assets[cluster]'") from error
    except OSError as error:
        raise BadInput(f"compute.cluster.shared_folder {folder} cannot be used: {error.strerror}") from error
    for name, part in (("ca", "ca_file"), ("cert", "cert"), ("key", "key")):
        (own / f"{name}.pem").touch(mode=0o600)
        (own / f"{name}.pem").write_text(made[part])
    return TlsSettings(ca_file=str(own / "ca.pem"), cert_file=str(own / "cert.pem"), key_file=str(own / "key.pem"))


def remove_keys(keys: TlsSettings | None) -> None:
    """Remove the certificates of a cluster that is no more."""
    if keys is not None:
        shutil.rmtree(Path(keys.key_file).parent, ignore_errors=True)


def count_seconds(walltime: str) -> int:
    """`[DAYS-]HH:MM:SS` in seconds."""
    days, _, clock = walltime.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def split_directive(line: str) -> tuple[str, str]:
    """`name = value` of an HTCondor submit file; raises `BadInput`."""
    name, equals, value = line.partition("=")
    if not equals or not name.strip():
        raise BadInput(f"compute.cluster.directives: {line!r} is not name = value, as HTCondor wants it")
    return name.strip(), value.strip()


# ---- on the worker


_fit: set[Place] = set()


def call_on_worker(place: Place, fn: Callable, /, *args: Any, **kwargs: Any) -> Any:
    """Call a function where that is of use; elsewhere the worker ends itself, and another one gets the call.

    For workers that join late, at which nobody looked before. Failing would be worse: it takes a moment, so that one
    bad node would get, and fail, all that there is to do.
    """
    problem = find_problem(place)
    if problem:
        worker = get_worker()
        worker.log_event(TOPIC, f"worker {worker.address} on {socket.gethostname()} {problem}; it was ended")
        worker.loop.add_callback(worker.close, executor_wait=False, reason=problem)
        raise Reschedule
    return fn(*args, **kwargs)


def find_problem(place: Place, dask_worker: Any = None) -> str:
    """Why this worker cannot make units for a place, or an empty text; prepares the process on first use."""
    if place in _fit:
        return ""
    threads = (dask_worker or get_worker()).state.nthreads
    if threads != 1:
        return f"has {threads} threads: start it with --nthreads 1"
    if place.sources_sha256 != hash_sources():
        return "has another version of lap-assets: install the same one"
    if place != describe_place(Path(place.root) if place.root else None):
        return f"does not see the repository {place.root}: it must lie on a file system that all nodes share"
    configure_process()
    _fit.add(place)
    return ""


def describe_place(root: Path | None) -> Place:
    """A repository as it is seen from here, and the code that is here."""
    if root is None:
        return Place("", "", hash_sources())
    note = root / SETTINGS_FILE
    found = note.read_bytes() if note.is_file() else str(root.is_dir()).encode()
    return Place(str(root), hashlib.sha256(found).hexdigest(), hash_sources())


@cache
def hash_sources() -> str:
    """Hash over the modules of this package."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()
