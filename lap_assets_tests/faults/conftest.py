"""Folders for the fault tests: in memory where there is such a place, since every step of publishing is fsynced."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path):
    """An empty folder, in memory if possible: what a kill leaves is the same there, and fsync costs nothing."""
    if not (MEMORY.is_dir() and os.access(MEMORY, os.W_OK)):
        yield tmp_path
        return
    made = Path(tempfile.mkdtemp(prefix="lap-faults-", dir=MEMORY))
    yield made
    shutil.rmtree(made, ignore_errors=True)
