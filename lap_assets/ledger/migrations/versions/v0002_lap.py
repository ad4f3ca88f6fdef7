"""Large Area Processing: how far a run is, why a member was dropped, hash and reach of exposures, switches."""

import json

import sqlalchemy as sa
from alembic import op

from lap_assets.model.sphere import separation_deg, unit_vectors
from lap_assets.model.survey import ChipFile, hash_files
from lap_assets.model.tessellation import Tessellation, load_tessellation

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Added one by one, with their checks: SQLite can only add a check with a column, and making a table anew there would
# delete, by cascade, what refers to it.
COLUMNS = (
    ("exposure", "files_sha256", "VARCHAR DEFAULT '' NOT NULL", ""),
    ("exposure", "reach_deg", "FLOAT DEFAULT 0 NOT NULL", "reach_deg: reach_deg BETWEEN 0 AND 180"),
    ("lap_run", "priority", "INTEGER DEFAULT 0 NOT NULL", ""),
    ("lap_run", "paused", "BOOLEAN DEFAULT false NOT NULL", ""),
    ("lap_run", "fault_reason", "VARCHAR DEFAULT '' NOT NULL", "fault: fault IN (0, 1, 2)"),
    ("lap_run", "settled", "BOOLEAN DEFAULT false NOT NULL", "settled: NOT settled OR state = 'full'"),
    ("lap_run", "cleaned", "BOOLEAN DEFAULT false NOT NULL", ""),
    (
        "lap_run",
        "retired",
        "BOOLEAN DEFAULT false NOT NULL",
        "final_sass_id: final_sass_id IS NULL OR state = 'full'",
    ),
    ("lap_exp", "neighbours", "JSON DEFAULT '[]' NOT NULL", ""),
    ("lap_exp", "reason", "VARCHAR DEFAULT '' NOT NULL", ""),
)
INDEXES = (
    ("ix_exposure_dec_deg", "exposure", ["band", "dec_deg"]),
    ("ix_exposure_reach_deg", "exposure", ["reach_deg"]),
    ("ix_lap_run_settled", "lap_run", ["settled", "cleaned", "fault", "seq_id"]),
    ("ix_lap_exp_active", "lap_exp", ["active", "lap_id", "exp_id"]),
)


def upgrade() -> None:
    """Add columns, fill them, and make the new table and indexes."""
    for table, column, kind, check in COLUMNS:
        name, _, condition = check.partition(": ")
        constraint = f" CONSTRAINT ck_{table}_{name} CHECK ({condition})" if check else ""
        op.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}{constraint}")
    _fill_rows(op.get_bind())
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns)
    op.create_table(
        "control",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_control")),
    )


def _fill_rows(connection: sa.Connection) -> None:
    """What the rows there are would have been given: hash and reach of exposures, neighbouring cells of members."""
    names = ("exposure", "chip", "sha256", "zero_point_mag", "footprint")
    chip_file = sa.table("chip_file", *(sa.column(name) for name in names))
    skies = {
        row.tess_id: load_tessellation(_decode(row.definition))
        for row in connection.execute(sa.text("SELECT tess_id, definition FROM tessellation"))
    }
    for id_, ra, dec in connection.execute(sa.text("SELECT id, ra_deg, dec_deg FROM exposure")).all():
        rows = connection.execute(sa.select(chip_file).where(chip_file.c.exposure == id_)).all()
        if rows:
            chips = [ChipFile(row.chip, "", "", (), row.sha256, zero_point_mag=row.zero_point_mag) for row in rows]
            polygons = [_decode(row.footprint) for row in rows]
            corners = [corner for polygon in polygons for corner in polygon]
            vectors = unit_vectors([ra for ra, _ in corners], [dec for _, dec in corners])
            reach = float(separation_deg(vectors, unit_vectors(ra, dec)).max())
            update = sa.text("UPDATE exposure SET files_sha256 = :files, reach_deg = :reach WHERE id = :id")
            connection.execute(update, {"files": hash_files(chips), "reach": reach, "id": id_})
            _fill_members(connection, id_, polygons, skies)


def _fill_members(connection: sa.Connection, id_: str, polygons: list, skies: dict[int, Tessellation]) -> None:
    query = sa.text(
        "SELECT e.lap_id, r.tess_id, r.projection_cell FROM lap_exp e JOIN lap_run r ON r.lap_id = e.lap_id "
        "WHERE e.exp_id = :id"
    )
    for lap_id, tess_id, own in connection.execute(query, {"id": id_}).all():
        around = [cell for cell in skies[tess_id].cells_overlapping_any(polygons) if cell != own]
        update = sa.text("UPDATE lap_exp SET neighbours = :cells WHERE lap_id = :lap_id AND exp_id = :id")
        connection.execute(update, {"cells": json.dumps(around), "lap_id": lap_id, "id": id_})


def _decode(value: str | list | dict) -> list | dict:
    """A JSON column as PostgreSQL (decoded) or SQLite (text) hands it over."""
    return json.loads(value) if isinstance(value, str) else value


def downgrade() -> None:
    """Take all of it away again."""
    op.drop_table("control")
    for name, table, _ in INDEXES:
        op.drop_index(name, table_name=table)
    for table, column, _, check in reversed(COLUMNS):
        if check and op.get_bind().dialect.name == "postgresql":  # SQLite drops a check with the column it came with
            op.drop_constraint(op.f(f"ck_{table}_{check.partition(':')[0]}"), table)
        op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
