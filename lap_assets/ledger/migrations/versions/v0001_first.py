"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "calibration_set",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("camera", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("band", sa.String(), nullable=False),
        sa.Column("valid_from", sa.String(), nullable=False),
        sa.Column("valid_to", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.CheckConstraint("kind IN ('bias', 'flat')", name=op.f("ck_calibration_set_kind")),
        sa.CheckConstraint(
            "state IN ('virtual', 'built', 'certified', 'rejected')", name=op.f("ck_calibration_set_state")
        ),
        sa.CheckConstraint("valid_to IS NULL OR valid_to >= valid_from", name=op.f("ck_calibration_set_validity")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_calibration_set")),
    )
    op.create_table(
        "counter",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counter")),
    )
    op.create_table(
        "exposure",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("camera", sa.String(), nullable=False),
        sa.Column("band", sa.String(), nullable=False),
        sa.Column("filter", sa.String(), nullable=False),
        sa.Column("night", sa.String(), nullable=False),
        sa.Column("mjd", sa.Float(), nullable=False),
        sa.Column("exptime_s", sa.Float(), nullable=False),
        sa.Column("ra_deg", sa.Float(), nullable=False),
        sa.Column("dec_deg", sa.Float(), nullable=False),
        sa.Column("airmass", sa.Float(), nullable=False),
        sa.Column("object", sa.String(), nullable=False),
        sa.Column("comment", sa.String(), nullable=False),
        sa.Column("obs_mode", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.CheckConstraint("kind IN ('raw', 'calibrated')", name=op.f("ck_exposure_kind")),
        sa.CheckConstraint("dec_deg BETWEEN -90 AND 90", name=op.f("ck_exposure_dec_deg")),
        sa.CheckConstraint("exptime_s > 0", name=op.f("ck_exposure_exptime_s")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exposure")),
    )
    op.create_table(
        "lap_sequence",
        sa.Column("seq_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seq_id", name=op.f("pk_lap_sequence")),
        sa.UniqueConstraint("name", name=op.f("uq_lap_sequence_name")),
    )
    op.create_table(
        "lease",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_lease")),
    )
    op.create_table(
        "partition",
        sa.Column("collection", sa.String(), nullable=False),
        sa.Column("product", sa.String(), nullable=False),
        sa.Column("partition", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("inputs_sha256", sa.String(), nullable=False),
        sa.Column("content_sha256", sa.String(), nullable=False),
        sa.Column("config_sha256", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("n_units", sa.JSON(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("updated", sa.Float(), nullable=False),
        sa.CheckConstraint(
            "state IN ('done', 'failed', 'blocked', 'no_work', 'unprocessable', 'dropped', "
            "'corrupt', 'goto_cleaned', 'cleaned')",
            name=op.f("ck_partition_state"),
        ),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_partition_attempts")),
        sa.PrimaryKeyConstraint("collection", "product", "partition", name=op.f("pk_partition")),
    )
    op.create_table(
        "reference_catalog",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("content_sha256", sa.String(), nullable=False),
        sa.Column("n_rows", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("n_rows >= 0", name=op.f("ck_reference_catalog_n_rows")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_reference_catalog")),
    )
    op.create_table(
        "tessellation",
        sa.Column("tess_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("tess_id", name=op.f("pk_tessellation")),
        sa.UniqueConstraint("name", name=op.f("uq_tessellation_name")),
    )
    op.create_table(
        "calibration_frame",
        sa.Column("calibration", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("chip", sa.String(), nullable=False),
        sa.Column("hdu", sa.String(), nullable=False),
        sa.Column("footprint", sa.JSON(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["calibration"], ["calibration_set.key"], name=op.f("fk_calibration_frame_calibration"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("calibration", "path", "chip", name=op.f("pk_calibration_frame")),
    )
    op.create_table(
        "chip_file",
        sa.Column("exposure", sa.String(), nullable=False),
        sa.Column("chip", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("hdu", sa.String(), nullable=False),
        sa.Column("footprint", sa.JSON(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("variance_path", sa.String(), nullable=False),
        sa.Column("mask_path", sa.String(), nullable=False),
        sa.Column("zero_point_mag", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["exposure"], ["exposure.id"], name=op.f("fk_chip_file_exposure"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("exposure", "chip", name=op.f("pk_chip_file")),
    )
    op.create_table(
        "lap_run",
        sa.Column("lap_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seq_id", sa.Integer(), nullable=False),
        sa.Column("tess_id", sa.Integer(), nullable=False),
        sa.Column("projection_cell", sa.String(), nullable=False),
        sa.Column("filter", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("registered", sa.Float(), nullable=False),
        sa.Column("fault", sa.Integer(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("quick_sass_id", sa.Integer(), nullable=True),
        sa.Column("final_sass_id", sa.Integer(), nullable=True),
        sa.Column("dist_group", sa.String(), nullable=False),
        sa.CheckConstraint("state IN ('new', 'run', 'full')", name=op.f("ck_lap_run_state")),
        sa.CheckConstraint("quick_sass_id IS NULL", name=op.f("ck_lap_run_quick_sass_id")),
        sa.ForeignKeyConstraint(["seq_id"], ["lap_sequence.seq_id"], name=op.f("fk_lap_run_seq_id")),
        sa.ForeignKeyConstraint(["tess_id"], ["tessellation.tess_id"], name=op.f("fk_lap_run_tess_id")),
        sa.PrimaryKeyConstraint("lap_id", name=op.f("pk_lap_run")),
        sa.UniqueConstraint("seq_id", "tess_id", "projection_cell", "filter", name=op.f("uq_lap_run_seq_id")),
    )
    op.create_table(
        "reference_catalog_band",
        sa.Column("band", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["name"], ["reference_catalog.name"], name=op.f("fk_reference_catalog_band_name")),
        sa.PrimaryKeyConstraint("band", name=op.f("pk_reference_catalog_band")),
    )
    op.create_table(
        "unit",
        sa.Column("collection", sa.String(), nullable=False),
        sa.Column("product", sa.String(), nullable=False),
        sa.Column("partition", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("content_sha256", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("updated", sa.Float(), nullable=False),
        sa.CheckConstraint(
            "state IN ('done', 'failed', 'blocked', 'no_work', 'unprocessable', 'dropped', "
            "'corrupt', 'goto_cleaned', 'cleaned')",
            name=op.f("ck_unit_state"),
        ),
        sa.ForeignKeyConstraint(
            ["collection", "product", "partition"],
            ["partition.collection", "partition.product", "partition.partition"],
            name="fk_unit_partition",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("collection", "product", "partition", "unit", name=op.f("pk_unit")),
    )
    op.create_table(
        "lap_exp",
        sa.Column("lap_id", sa.Integer(), nullable=False),
        sa.Column("exp_id", sa.String(), nullable=False),
        sa.Column("chip_id", sa.String(), nullable=True),
        sa.Column("pair_id", sa.String(), nullable=True),
        sa.Column("private", sa.Boolean(), nullable=False),
        sa.Column("pairwise", sa.Boolean(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("data_state", sa.String(), nullable=False),
        sa.CheckConstraint(
            "data_state IN ('drop', 'new', 'full', 'exists', 'to_diff', 'to_magic')", name=op.f("ck_lap_exp_data_state")
        ),
        sa.CheckConstraint("NOT (private AND pairwise)", name=op.f("ck_lap_exp_private")),
        sa.CheckConstraint("NOT pairwise OR pair_id IS NOT NULL", name=op.f("ck_lap_exp_pairwise")),
        sa.ForeignKeyConstraint(["exp_id"], ["exposure.id"], name=op.f("fk_lap_exp_exp_id")),
        sa.ForeignKeyConstraint(["lap_id"], ["lap_run.lap_id"], name=op.f("fk_lap_exp_lap_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("lap_id", "exp_id", name=op.f("pk_lap_exp")),
    )
    op.create_index("ix_lap_exp_exp_id", "lap_exp", ["exp_id"], unique=False)


def downgrade() -> None:
    """Drop the tables."""
    op.drop_index("ix_lap_exp_exp_id", table_name="lap_exp")
    op.drop_table("lap_exp")
    op.drop_table("unit")
    op.drop_table("reference_catalog_band")
    op.drop_table("lap_run")
    op.drop_table("chip_file")
    op.drop_table("calibration_frame")
    op.drop_table("tessellation")
    op.drop_table("reference_catalog")
    op.drop_table("partition")
    op.drop_table("lease")
    op.drop_table("lap_sequence")
    op.drop_table("exposure")
    op.drop_table("counter")
    op.drop_table("calibration_set")
