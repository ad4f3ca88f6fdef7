"""The tables of LAP as the database has them: columns, keys and checks, on SQLite and PostgreSQL."""

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from lap_assets.ledger.tables import lap_exp, lap_run, lap_sequence
from lap_assets_tests.ledger.conftest import LOCAL, make_exposure

COLUMNS = {
    "lap_sequence": {"seq_id", "name", "description"},
    "lap_run": {
        "lap_id", "seq_id", "tess_id", "projection_cell", "filter", "state", "registered", "fault", "label",
        "quick_sass_id", "final_sass_id", "dist_group",
    },
    "lap_exp": {"lap_id", "exp_id", "chip_id", "pair_id", "private", "pairwise", "active", "data_state"},
}  # fmt: skip


@pytest.fixture
def connection(ledger):
    """A run of two exposures, and a connection of our own to its rows."""
    ledger.add_tessellation(LOCAL)
    ledger.add_exposures([make_exposure(1), make_exposure(2)])
    ledger.define_runs("main", "demo")
    with ledger._database.engine.connect() as connection:
        yield connection


def test_tables_have_the_columns_of_pan_starrs(connection):
    """LAP-01: lap_sequence. LAP-02: lap_run. LAP-07: lap_exp."""
    found = sa.inspect(connection)
    for table, wanted in COLUMNS.items():
        assert wanted <= {column["name"] for column in found.get_columns(table)}, table
    refers = {table: {key["referred_table"] for key in found.get_foreign_keys(table)} for table in COLUMNS}
    assert refers["lap_run"] == {"lap_sequence", "tessellation"} and refers["lap_exp"] == {"lap_run", "exposure"}


@pytest.mark.parametrize(
    ("table", "values", "broken"),
    [
        (lap_run, {"state": "done"}, "state"),
        (lap_run, {"quick_sass_id": 1}, "quick_sass_id"),
        (lap_run, {"fault": 99}, "fault"),
        (lap_run, {"seq_id": 77}, "FOREIGN KEY|foreign key"),
        (lap_exp, {"data_state": "odd"}, "data_state"),
        (lap_exp, {"private": True, "pairwise": True, "pair_id": "main/x"}, "private"),
        (lap_exp, {"pairwise": True, "pair_id": None, "private": False}, "pairwise"),
        (lap_sequence, {"name": None}, "name"),
    ],
)
def test_the_database_itself_refuses_what_makes_no_sense(connection, table, values, broken):
    """LAP-03: states. LAP-04: quick_sass_id is never set. LAP-08: private and pairwise exclude each other."""
    with pytest.raises(IntegrityError, match=broken):
        connection.execute(sa.update(table).values(values))
        connection.commit()


def test_a_cell_and_filter_has_one_run_per_sequence_and_tessellation(connection):
    """LAP-02: also where two writers define it at once."""
    (row,) = connection.execute(sa.select(lap_run)).mappings()
    with pytest.raises(IntegrityError):
        connection.execute(sa.insert(lap_run).values(dict(row) | {"lap_id": 2}))
