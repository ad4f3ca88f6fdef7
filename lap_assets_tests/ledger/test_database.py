"""Opening, upgrading, and what is said when the database is locked, gone or damaged."""

import sqlite3
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
        "UPDATE exposure SET exptime_s = 0",
        "DELETE FROM exposure",
        "INSERT INTO lap_exp VALUES (1, 'nobody', NULL, NULL, false, false, true, 'new')",
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
