"""Compiled kernels on disk: nothing is lost or mixed up between processes, and nothing that is damaged hinders."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from numba.core import caching

from lap_assets.pipeline.kernel_files import SignatureFiles, replace_index
from lap_assets.pipeline.kernel_folder import FOLDER_VARIABLE

MODULE = """
from numba import njit

@njit(cache=True)
def double(value):
    return value + value

@njit(cache=True)
def total(values):
    return double(values[0]) + values[1]
"""
# says what it got, and how many kernels were found and how many compiled; with a number of others, waits for these
# before its first file is put in its place: by then all have looked at what is there
PROGRAM = """
import json, os, sys, time
from pathlib import Path
import numpy as np
folder, kind, others = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.path.insert(0, str(folder))
import kernels
put = os.replace

def put_together(source, target):
    (folder / f"{kind}.here").touch()
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.here"))) <= others and time.monotonic() < deadline:
        time.sleep(0.01)
    put(source, target)

if others:
    os.replace = put_together
told = float(kernels.total(np.array([1, 2], kind)))
stats = kernels.total.stats
print(json.dumps([told, sum(stats.cache_hits.values()), sum(stats.cache_misses.values())]))
"""


def begin(folder: Path, kind: str, others: int = 0) -> subprocess.Popen:
    """A process that calls a kernel with an array of a type."""
    environment = os.environ | {FOLDER_VARIABLE: str(folder / "cache")}
    (folder / "kernels.py").write_text(MODULE)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), kind, str(others)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> list:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(out)


def test_two_processes_that_compile_two_signatures_at_once_lose_and_mix_up_neither(tmp_path):
    """With numba's own index a later process compiles one again, or is given the code of the other and fails."""
    at_once = [begin(tmp_path, kind, others=1) for kind in ("f4", "f8")]
    assert [finish(one) for one in at_once] == [[4.0, 0, 1], [4.0, 0, 1]]
    assert [finish(begin(tmp_path, kind)) for kind in ("f4", "f8", "i4")] == [[4.0, 1, 0], [4.0, 1, 0], [4.0, 0, 1]]
    assert not list((tmp_path / "cache").rglob("*.tmp"))


@pytest.mark.parametrize("length", [0, 20, 3000])
def test_a_damaged_file_counts_as_none_and_is_replaced(tmp_path, length):
    """As a disk leaves it that was full, or without power, at the wrong moment."""
    finish(begin(tmp_path, "f4"))
    (path,) = (tmp_path / "cache").rglob("kernels.total-*.nbc")
    whole = path.read_bytes()
    assert len(whole) > 3000
    path.write_bytes(whole[:length])
    assert finish(begin(tmp_path, "f4")) == [4.0, 0, 1]
    assert finish(begin(tmp_path, "f4")) == [4.0, 1, 0]


def test_a_file_serves_the_source_it_was_made_from_only(tmp_path):
    folder = str(tmp_path)
    key = ("signature", "processor", "code")
    SignatureFiles(folder, "toy.f-1.py311", "before").save(key, b"compiled")
    assert SignatureFiles(folder, "toy.f-1.py311", "before").load(key) == b"compiled"
    assert SignatureFiles(folder, "toy.f-1.py311", "after").load(key) is None
    assert SignatureFiles(folder, "toy.g-9.py311", "before").load(key) is None


def test_signatures_are_forgotten_on_demand_those_of_other_functions_are_not(tmp_path):
    first, second = (SignatureFiles(str(tmp_path), name, "source") for name in ("toy.f-1.py311", "toy.f-11.py311"))
    first.save(1, b"one")
    second.save(1, b"other")
    first.flush()
    assert first.load(1) is None and second.load(1) == b"other"


def test_a_folder_that_is_gone_or_cannot_be_written_hinders_nobody():
    files = SignatureFiles("/proc/none", "toy.f-1.py311", "source")
    files.save(1, b"one")
    assert files.load(1) is None


def test_numba_is_left_alone_where_it_keeps_its_files_in_another_way():
    """What is known here are `flush`, `save` and `load`; this process uses what replaces them."""
    changed = type("IndexDataCacheFile", (), {"flush": 0, "save": 0, "load": 0, "lock": 0})
    module = SimpleNamespace(IndexDataCacheFile=changed)
    assert not replace_index(module) and module.IndexDataCacheFile is changed
    assert not replace_index(SimpleNamespace())
    assert caching.IndexDataCacheFile is SignatureFiles


def test_a_folder_that_cannot_be_written_any_more_hinders_no_kernel(tmp_path):
    """Numba looks at it again before each file it keeps."""
    (tmp_path / "kernels.py").write_text(MODULE)
    program = """
import shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import kernels
folder = Path(sys.argv[1]) / "cache"
shutil.rmtree(folder)
folder.touch()
print(kernels.double(2))
"""
    environment = os.environ | {FOLDER_VARIABLE: str(tmp_path / "cache")}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.returncode) == ("4\n", 0), done.stderr
