"""Where compiled kernels are kept: one that cannot be written, those of older versions, and who compiled anything."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lap_assets.pipeline.compute import RENEW_AFTER
from lap_assets.pipeline.kernel_folder import FOLDER_VARIABLE, LOCATOR_VARIABLE, find_kernel_folder

DAY_S = 86400.0
PREPARE = "from lap_assets.pipeline.compute import configure_process; configure_process()"
# compiles a kernel of the package here and in a worker, tells the folder, and how many each compiled
COMPILE = f"""
import os
import numpy as np
{PREPARE}
from lap_assets.pipeline.compute import get_executor
from lap_assets.settings import ComputeSettings
from lap_assets_tests.pipeline import calls

if __name__ == "__main__":
    print(os.environ["{FOLDER_VARIABLE}"])
    print(calls.compile_kernel())
    print(get_executor(ComputeSettings(workers=1)).submit(calls.compile_kernel).result())
"""
# makes two chips three times, a step less each time, on one worker; tells who made them, and how many it had to compile
THREE_TIMES = f"""
import sys
from pathlib import Path
{PREPARE}
from lap_assets.pipeline.engine import Session, make_partitions
from lap_assets.settings import ChipSettings, ComputeSettings, Settings
from lap_assets_tests.pipeline.test_chips import Store

if __name__ == "__main__":
    store = Store(Path(sys.argv[1]))
    for skipped in ((), ("fringe",), ("fringe", "sky")):
        settings = Settings(chips=ChipSettings(skip_steps=skipped), compute=ComputeSettings(workers=1))
        made = []
        (report,) = make_partitions(Session(store.survey, store.repo, settings, tell=made.append), "chips", ["toy-1"])
        print(report.state, report.skipped, *{{one.worker[0] for one in made}}, max(one.compiled for one in made))
"""


def run(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """A process whose environment names no folder of kernels but what is given."""
    environment = {name: value for name, value in os.environ.items() if name != FOLDER_VARIABLE} | variables
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


@pytest.mark.parametrize("given", [{"HOME": "/proc", "XDG_CACHE_HOME": "/proc/x"}, {FOLDER_VARIABLE: "/proc/x"}])
def test_where_no_folder_can_be_written_a_temporary_one_serves_with_one_warning(given):
    """What the process compiled is found by its workers; nothing is left behind."""
    done = run(COMPILE, **given)
    folder, compiled, compiled_by_worker = done.stdout.splitlines()
    assert int(compiled) > 0 and compiled_by_worker == "0"
    assert Path(folder).name.startswith("lap-numba-") and not Path(folder).exists()
    (warning,) = [line for line in done.stderr.splitlines() if "kernels" in line]  # others tell of their own folders
    assert "/proc/x" in warning and f"set {FOLDER_VARIABLE} to a folder" in warning


def test_folders_of_other_versions_go_when_they_were_not_used_for_thirty_days(tmp_path, monkeypatch):
    """Neither the current one, however old, nor anything that is named otherwise, nor what a link points to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    current = find_kernel_folder()
    base = current.parent
    ages_days = {
        current.name: 400.0, "numba-0123456789abcdef": 30.1, "numba-fedcba9876543210": 29.9,
        "numba-0123456789abcdef.kept": 400.0, "numba-mine": 400.0, "data": 400.0, "elsewhere": 400.0,
    }  # fmt: skip
    for name in ages_days:
        (base / name / "science").mkdir(parents=True)
        (base / name / "science" / "kernel.nbc").write_bytes(b"code")
    (base / "numba-00000000000000aa").symlink_to(base / "elsewhere")
    (base / "numba-00000000000000bb").write_text("a file")
    for name, days in (ages_days | {"numba-00000000000000bb": 400.0}).items():
        used = time.time() - days * DAY_S
        os.utime(base / name, (used, used))
    before = set(base.iterdir())
    command = [sys.executable, "-c", PREPARE]
    environment = {name: value for name, value in os.environ.items() if name != FOLDER_VARIABLE}
    at_once = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(300) for process in at_once] == [0, 0]
    assert before - set(base.iterdir()) == {base / "numba-0123456789abcdef"}
    assert len(list(base.glob("*/science/kernel.nbc"))) == len(ages_days)  # one less, one more through the link
    assert time.time() - current.stat().st_mtime < DAY_S  # it counts as used now


@pytest.mark.parametrize("value", ["", "relative/cache"])
def test_a_place_for_caches_that_is_no_absolute_path_is_none(tmp_path, monkeypatch, value):
    """As the XDG specification has it; else kernels would lie in whatever folder a command is run in."""
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_kernel_folder().parent == tmp_path / ".cache" / "lap_assets"


@pytest.mark.slow
def test_workers_that_had_to_compile_much_are_replaced_when_their_product_is_made_others_stay(tmp_path):
    """LV-11: what compiling took is given back with the process."""
    (tmp_path / "repo").mkdir()
    done = run(THREE_TIMES, str(tmp_path / "repo"), **{FOLDER_VARIABLE: str(tmp_path / "cache")})
    first, second, third = (line.split() for line in done.stdout.splitlines())
    assert first[:2] == second[:2] == third[:2] == ["done", "0"]
    assert int(first[3]) >= RENEW_AFTER and (second[3], third[3]) == ("0", "0")
    assert first[2] != second[2] == third[2]


def test_where_nothing_can_be_written_at_all_the_process_begins_nevertheless():
    """Most commands need no kernel."""
    program = f"""
from lap_assets.pipeline import kernel_folder
def refuse(**_):
    raise FileNotFoundError("no usable temporary directory")
kernel_folder.mkdtemp = refuse
{PREPARE}
"""
    done = run(program, HOME="/proc", XDG_CACHE_HOME="/proc/x")
    assert "kernels cannot be kept" in done.stderr and "Traceback" not in done.stderr


def test_a_numba_that_was_imported_before_uses_the_folder_too(tmp_path):
    """As in a notebook; else kernels lie beside the source, where an edit of what they call is not seen."""
    program = f"""
import os
os.environ.pop("{LOCATOR_VARIABLE}", None)
import numba
{PREPARE}
from lap_assets.store import pixel_kernels
cache = pixel_kernels.sum_bytes._cache
print(cache.cache_path, type(cache._cache_file).__name__)
"""
    path, kind = run(program, XDG_CACHE_HOME=str(tmp_path)).stdout.split()
    assert Path(path).is_relative_to(tmp_path) and kind == "SignatureFiles"


def test_the_folder_of_another_version_that_started_this_process_is_left_to_it(tmp_path):
    """As a server that is older than the code its runs are made with; any other folder that is named is used."""
    program = f"import os\n{PREPARE}\nprint(os.environ['{FOLDER_VARIABLE}'])"
    base = tmp_path / "lap_assets"
    older, mine = str(base / "numba-0123456789abcdef"), str(tmp_path / "numba-0123456789abcdef")
    inherited, named, plain = (
        run(program, XDG_CACHE_HOME=str(tmp_path), **given).stdout.strip()
        for given in ({FOLDER_VARIABLE: older}, {FOLDER_VARIABLE: mine}, {})
    )
    assert inherited == plain != older and named == mine
