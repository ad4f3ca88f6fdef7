"""What all tests share: one thread for BLAS, the shared data, and tools that may be missing.

A missing tool skips with its name; where LAP_TESTS_REQUIRE_TOOLS is set (`.ci/run`) it fails instead.
"""

import os
import shutil
from pathlib import Path

import pytest

from lap_assets.pipeline.compute import configure_process

configure_process()

SHARED = Path(__file__).parents[2] / "shared"


def require_tool(*names: str) -> str:
    """Path of the first of `names` on this machine; skips, or fails in CI, where there is none."""
    for name in names:
        if found := shutil.which(name):
            return found
    message = f"needs {' or '.join(names)} on this machine"
    if os.environ.get("LAP_TESTS_REQUIRE_TOOLS"):
        pytest.fail(message)
    pytest.skip(message)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one module run in one worker, so that what a module makes once is made once."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; skips where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real data are not here: {folder} is absent")
    return folder
