"""Master calibrations: five kinds, why one is not certified, temperatures, and the table of QC1 parameters."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OLD_KINDS = "'bias', 'flat'"
KINDS = "'bias', 'dark', 'flat', 'sky', 'fringe'"
COLUMNS = (
    ("exposure", "temperature_c", "FLOAT"),
    ("calibration_set", "reason", "VARCHAR DEFAULT '' NOT NULL"),
    ("calibration_set", "temperature_c", "FLOAT"),
    ("calibration_set", "judged", "VARCHAR DEFAULT '' NOT NULL"),
)
SET = "key, camera, kind, band, valid_from, valid_to, state"
FRAME = "calibration, path, chip, hdu, footprint, sha256"


def upgrade() -> None:
    """Allow the new kinds, add columns, and make the new table."""
    _allow_kinds(KINDS)
    for table, column, kind in COLUMNS:
        op.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
    op.create_table(
        "quality",
        sa.Column("collection", sa.String(), nullable=False),
        sa.Column("product", sa.String(), nullable=False),
        sa.Column("partition", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=True),
        sa.PrimaryKeyConstraint("collection", "product", "partition", "unit", "name", name=op.f("pk_quality")),
    )


def downgrade() -> None:
    """Take all of it away again, and with it the sets of the new kinds."""
    op.drop_table("quality")
    for table, column, _ in reversed(COLUMNS):
        op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    op.execute(f"DELETE FROM calibration_set WHERE kind NOT IN ({OLD_KINDS})")
    _allow_kinds(OLD_KINDS)


def _allow_kinds(kinds: str) -> None:
    """Another check on the kind of calibration sets."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE calibration_set DROP CONSTRAINT ck_calibration_set_kind")
        op.execute(f"ALTER TABLE calibration_set ADD CONSTRAINT ck_calibration_set_kind CHECK (kind IN ({kinds}))")
        return
    # SQLite changes no check: the table is made anew, and its frames first, which would go with it by cascade
    op.execute(
        "CREATE TABLE new_set (key VARCHAR NOT NULL, camera VARCHAR NOT NULL, kind VARCHAR NOT NULL, "
        "band VARCHAR NOT NULL, valid_from VARCHAR NOT NULL, valid_to VARCHAR, state VARCHAR NOT NULL, "
        "CONSTRAINT pk_calibration_set PRIMARY KEY (key), "
        f"CONSTRAINT ck_calibration_set_kind CHECK (kind IN ({kinds})), "
        "CONSTRAINT ck_calibration_set_state CHECK (state IN ('virtual', 'built', 'certified', 'rejected')), "
        "CONSTRAINT ck_calibration_set_validity CHECK (valid_to IS NULL OR valid_to >= valid_from))"
    )
    op.execute(f"INSERT INTO new_set ({SET}) SELECT {SET} FROM calibration_set")
    op.execute(
        "CREATE TABLE new_frame (calibration VARCHAR NOT NULL, path VARCHAR NOT NULL, chip VARCHAR NOT NULL, "
        "hdu VARCHAR NOT NULL, footprint JSON NOT NULL, sha256 VARCHAR NOT NULL, "
        "CONSTRAINT pk_calibration_frame PRIMARY KEY (calibration, path, chip), "
        "CONSTRAINT fk_calibration_frame_calibration FOREIGN KEY(calibration) REFERENCES new_set (key) "
        "ON DELETE CASCADE)"
    )
    op.execute(f"INSERT INTO new_frame ({FRAME}) SELECT {FRAME} FROM calibration_frame")
    op.execute("DROP TABLE calibration_frame")
    op.execute("DROP TABLE calibration_set")
    op.execute("ALTER TABLE new_set RENAME TO calibration_set")  # what refers to it follows
    op.execute("ALTER TABLE new_frame RENAME TO calibration_frame")
