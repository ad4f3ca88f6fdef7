"""How work is spread: how many units at once, workers that are lost, and what a cluster is asked for."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lap_assets.errors import BadInput
from lap_assets.pipeline import cluster
from lap_assets.pipeline.compute import (
    count_ahead,
    count_slots,
    find_memory_gib,
    find_needs,
    get_executor,
    read_peak_gib,
)
from lap_assets.pipeline.crew import Crew
from lap_assets.pipeline.stages import STAGES
from lap_assets.settings import ComputeSettings, parse_settings
from lap_assets_tests.pipeline import calls

ADDRESS = "tcp://127.0.0.1:8786"


def spread(**values) -> ComputeSettings:
    return parse_settings({"compute": values}, "lap.yaml").compute


def hire(crew_of: ComputeSettings, at_once: int | None = None) -> Crew:
    return Crew(lambda: get_executor(crew_of), at_once)


# ---- how many at once


def test_a_unit_takes_what_its_stage_declares_or_the_settings_say():
    """LV-05: resources per stage."""
    settings = spread(resources={"warps": {"memory_gib": 2.5}, "stacks": {"cores": 2}})
    assert (find_needs(settings, "warps").memory_gib, find_needs(settings, "warps").cores) == (2.5, 1)
    declared = STAGES["stacks"].memory_gib
    assert (find_needs(settings, "stacks").memory_gib, find_needs(settings, "stacks").cores) == (declared, 2)


@given(
    workers=st.integers(1, 64), memory=st.floats(0.1, 500), unit=st.floats(0.1, 20), cores=st.integers(1, 8),
)  # fmt: skip
def test_units_made_at_once_fit_into_memory_and_cores(workers, memory, unit, cores):
    """LV-05: the declared sum stays below the limit, and no slot is left that would fit; one unit always goes."""
    needs = {"warps": {"memory_gib": unit, "cores": cores}}
    settings = spread(workers=workers, memory_gib=memory, resources=needs)
    slots = count_slots(settings, "warps")
    assert slots == 1 or (slots * unit <= memory * (1 + 1e-12) and slots * cores <= workers)
    assert (slots + 1) * unit > memory or (slots + 1) * cores > workers
    assert count_ahead(settings, "warps") == (2 * workers if slots == workers else slots)


def test_serial_makes_one_and_a_cluster_decides_itself():
    assert count_slots(spread(executor="serial"), "warps") == 1
    assert count_slots(spread(executor="dask", scheduler_address=ADDRESS), "warps") is None


@pytest.mark.parametrize(
    ("line", "file", "text", "expected"),
    [
        ("0::/jobs/one", "jobs/memory.max", "2147483648", 2.0),
        ("0::/jobs/one", "jobs/memory.max", "max", None),
        ("4:memory:/jobs/one", "memory/jobs/one/memory.limit_in_bytes", "1073741824", 1.0),
        ("4:cpu:/jobs/one", "cpu/jobs/one/memory.limit_in_bytes", "1073741824", None),
    ],
)
def test_the_limit_of_a_control_group_counts_also_of_one_above(tmp_path, line, file, text, expected):
    (tmp_path / "own").write_text(f"{line}\n")
    path = tmp_path / "groups" / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{text}\n")
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    found = find_memory_gib(spread(), tmp_path / "own", tmp_path / "groups")
    assert found == pytest.approx(expected or machine)
    assert find_memory_gib(spread(memory_gib=7.0), tmp_path / "own", tmp_path / "groups") == 7.0


@pytest.mark.parametrize(("at_once", "most"), [(1, 1), (None, 2)])
def test_so_many_calls_run_at_once(tmp_path, at_once, most):
    crew = hire(spread(workers=2), at_once)
    for number in range(6):
        crew.add(number, calls.count_at_once, tmp_path)
    answers = {answer.key: answer.value for answer in crew.collect(wait=True)}
    assert sorted(answers) == list(range(6)) and max(answers.values()) == most


def test_answers_that_are_there_come_without_waiting(tmp_path):
    crew = hire(spread(workers=2))
    crew.add("slow", time.sleep, 1.0)
    crew.add("quick", calls.tell_process)
    deadline = time.monotonic() + 60
    keys = []
    while not keys and time.monotonic() < deadline:
        keys = [answer.key for answer in crew.collect(wait=False)]
    assert keys == ["quick"]
    assert [answer.key for answer in crew.collect(wait=True)] == ["slow"]


def test_workers_have_one_thread_and_tell_the_memory_of_a_unit():
    """The peak of a call is told, not that of all before it: 300 MiB, held by another call, are not in it."""
    pool = get_executor(spread(workers=1))
    process, threads = pool.submit(calls.tell_process).result()
    assert process != os.getpid() and threads == "1"
    before = pool.submit(read_peak_gib).result()
    pool.submit(calls.hold_memory, 300).result()
    assert pool.submit(read_peak_gib).result() > before + 0.25
    pool.submit(calls.forget_peak).result()
    assert pool.submit(read_peak_gib).result() < before + 0.1


def test_memory_that_was_freed_is_used_again_and_given_back_for_another_product():
    """No page is cleared for an array where another of its size was; a unit of another product begins without it."""
    pool = get_executor(spread(workers=1))
    before, *faults = pool.submit(calls.fill_arrays, "warps", 200).result()
    assert faults[0] > 50 and max(faults[1:]) < 10
    assert pool.submit(calls.fill_arrays, "warps", 1).result()[0] > before + 150
    assert pool.submit(calls.fill_arrays, "stacks", 1).result()[0] < before + 50


def test_the_server_of_workers_loads_while_this_process_does_something_else():
    """It is there before the first worker is asked for, and it is the one that workers come from."""
    script = """
import os
from pathlib import Path
from lap_assets.pipeline.compute import configure_process, get_executor, prepare_executor
from lap_assets.settings import ComputeSettings

if __name__ == "__main__":
    configure_process()
    prepare_executor(ComputeSettings(executor="serial"))
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    print(children.read_text())
    settings = ComputeSettings(executor="processes", workers=1)
    prepare_executor(settings)
    print(children.read_text())
    print(get_executor(settings).submit(os.getppid).result())
"""
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    serial, known, parent = told.splitlines()
    assert not serial and parent in known.split()


# ---- lost workers


def test_what_was_lost_with_a_worker_is_made_again(tmp_path):
    """A killed process takes the whole pool along; nothing is lost, and nothing else is made twice at once."""
    crew = hire(spread(workers=2))
    crew.add("killed", calls.die_once, tmp_path / "mark")
    for number in range(8):
        crew.add(number, calls.tell_process)
    answers = {answer.key: answer for answer in crew.collect(wait=True)}
    assert set(answers) == {"killed", *range(8)}
    assert answers["killed"].value == "made" and not [one for one in answers.values() if one.error]


def test_who_kills_its_worker_each_time_takes_no_other_along():
    crew = hire(spread(workers=2))
    crew.add("deadly", calls.die)
    crew.add("defect", calls.fail)
    for number in range(4):
        crew.add(number, calls.tell_process)
    answers = {answer.key: answer for answer in crew.collect(wait=True)}
    assert len(answers) == 6
    assert "worker process was lost" in answers["deadly"].lost
    assert isinstance(answers["defect"].error, ValueError) and not answers["defect"].lost
    assert not [number for number in range(4) if answers[number].error]
    assert get_executor(spread(workers=2)).submit(calls.tell_process).result()[1] == "1"  # there is a pool again


# ---- settings of a cluster


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"executor": "dask"}, "needs either scheduler_address or cluster"),
        ({"executor": "dask", "scheduler_address": ADDRESS, "cluster": {"kind": "pbs"}}, "needs either"),
        ({"scheduler_address": "tls://node:8786"}, "needs the files of compute.tls"),
        ({"resources": {"wraps": {"cores": 1}}}, "'wraps' is no product"),
        ({"cluster": {"kind": "lsf"}}, "compute.cluster.kind"),
        ({"cluster": {"kind": "slurm", "walltime": "2 hours"}}, "compute.cluster.walltime"),
        ({"cluster": {"kind": "slurm", "walltime": 14400}}, "in quotes"),
        *(
            ({"scheduler_address": address}, "tcp://HOST:PORT or tls://HOST:PORT")
            for address in (
                "file:///tmp/scheduler.json", "ucx://node:1", "http://node:8786", "node:8786", "tcp://node",
                "tcp://user@node:1", "tcp://node:1/x", "tcp://a b:1", "inproc://127.0.0.1/1/1", "tcp://-h:1\n",
            )
        ),
    ],
)  # fmt: skip
def test_settings_that_name_no_cluster_are_refused_in_one_line(values, words):
    with pytest.raises(BadInput) as caught:
        spread(**values)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:8786", "tls://node-7.cluster.org:1", "tcp://[::1]:8786"])
def test_addresses_of_schedulers_are_taken(address):
    tls = {"ca_file": "ca", "cert_file": "cert", "key_file": "key"}
    assert spread(executor="dask", scheduler_address=address, tls=tls).scheduler_address == address


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scheduler_address": "tcp://192.0.2.1:8786"}, "compute.trusted_network"),
        (
            {"scheduler_address": "tls://127.0.0.1:1", "tls": {"ca_file": "/x", "cert_file": "/x", "key_file": "/x"}},
            "compute.tls.ca_file: there is no file /x",
        ),
        ({"cluster": {"kind": "slurm", "encrypted": False}}, "compute.trusted_network"),
        ({"cluster": {"kind": "slurm", "cores": 8, "memory_gib": 4}}, "lower processes"),
        ({"cluster": {"kind": "htcondor", "directives": ["+Flavour"]}}, "is not name = value"),
        ({"cluster": {"kind": "pbs", "shared_folder": "/proc/none"}}, "shared_folder /proc/none cannot be used"),
        ({"cluster": {"kind": "pbs", "interface": "none7"}}, "compute.cluster cannot be used: .*none7"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_refused_before_anything_is_asked_of_it(values, words, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BadInput, match=words):
        get_executor(spread(executor="dask", **values), "warps")
    assert not list(tmp_path.rglob("*.pem"))


def test_missing_packages_are_named_with_the_command(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "distributed"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "lap_assets.pipeline.cluster")
    monkeypatch.delattr("lap_assets.pipeline.cluster")
    with pytest.raises(BadInput, match=r"\(distributed\): pip install 'lap-assets\[cluster\]'"):
        get_executor(spread(executor="dask", scheduler_address=ADDRESS), "warps")


# ---- jobs of a batch system

JOBS = {
    "slurm": {"queue": "long", "account": "sky", "directives": ["--constraint=haswell"]},
    "pbs": {"queue": "long", "account": "sky", "directives": ["-m n"]},
    "htcondor": {"account": "sky", "disk_gib": 3, "directives": ["+MaxRuntime = 7200"]},
}
LINES = {
    "slurm": (
        "#SBATCH -p long", "#SBATCH -A sky", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=8G", "#SBATCH -t 26:00:00",
        "#SBATCH --constraint=haswell", "export OMP_NUM_THREADS=1", "module load python",
    ),
    "pbs": (
        "#PBS -q long", "#PBS -A sky", "select=1:ncpus=4:mem=8192MB", "#PBS -l walltime=26:00:00", "#PBS -m n",
        "export OMP_NUM_THREADS=1", "module load python",
    ),
    "htcondor": (
        "MY.DaskWorkerCores = 4", f"MY.DaskWorkerMemory = {8 << 30}", f"MY.DaskWorkerDisk = {3 << 30}",
        "+MaxRuntime = 7200", "accounting_group = sky", "export OMP_NUM_THREADS=1; ", "module load python; ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(JOBS))
def test_the_script_of_a_job_asks_for_what_the_settings_say(kind, tmp_path):
    """LV-05: two workers of one thread, 4 GiB each, that end before their job does, and speak to none but their own."""
    own = {"interface": "lo", "shared_folder": str(tmp_path), "prologue": ["module load python"]}
    size = {"cores": 4, "memory_gib": 8, "processes": 2, "walltime": "1-02:00:00"}
    settings = spread(cluster={"kind": kind, **size, **own, **JOBS[kind]})
    keys = cluster.make_keys(settings.cluster)
    with cluster.make_cluster(settings.cluster, keys) as made:
        script = made.job_script()
        assert made.scheduler_address.startswith("tls://127.0.0.1:")
    assert not [line for line in LINES[kind] if line not in script]
    words = script.replace("'", " ").split()
    assert words[len(words) - words[::-1].index("--nthreads")] == "1"  # the last one counts
    assert words[words.index("--memory-limit") + 1] == "4.00GiB" and words[words.index("--nworkers") + 1] == "2"
    assert words[words.index("--lifetime") + 1] == f"{26 * 3600 - 300}s"
    assert words[words.index("--interface") + 1] == "lo"
    for option, path in (("ca-file", keys.ca_file), ("cert", keys.cert_file), ("key", keys.key_file)):
        assert words[words.index(f"--tls-{option}") + 1] == path
        assert Path(path).stat().st_mode & 0o077 == Path(path).parent.stat().st_mode & 0o077 == 0
