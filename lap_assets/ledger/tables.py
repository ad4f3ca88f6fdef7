"""The tables of the ledger, with their keys and check constraints; nothing here opens a database.

Definitions (exposures, calibrations, tessellations, sequences, runs) are also in the store's journal; the index of
units and partitions can be rebuilt from the manifests. A change here needs a migration and a new `REVISION`.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
)

from lap_assets.model.associations import BUILT, CERTIFIED, REJECTED, VIRTUAL
from lap_assets.model.decisions import FAULTS
from lap_assets.model.products import MASTERS

REVISION = "0003"  # of the newest migration; `Ledger.open` compares it with the database's

UNIT_STATES = ("done", "failed", "blocked", "no_work", "unprocessable", "dropped", "corrupt", "goto_cleaned", "cleaned")
PARTITION_STATES = UNIT_STATES
CALIBRATION_STATES = (VIRTUAL, BUILT, CERTIFIED, REJECTED)  # PHX-02
RUN_STATES = ("new", "run", "full")  # LAP-03
DATA_STATES = ("drop", "new", "full", "exists", "to_diff", "to_magic")  # LAP-25

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _one_of(column: str, values: tuple[str | int, ...]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=column)


def _text(name: str, *args: object, **kwargs: object) -> Column:
    return Column(name, String, *args, nullable=False, **kwargs)


# numbers handed out one after the other: run ids, fencing numbers
counter = Table(
    "counter", metadata, Column("name", String, primary_key=True), Column("value", BigInteger, nullable=False)
)  # fmt: skip

exposure = Table(
    "exposure",
    metadata,
    Column("id", String, primary_key=True),
    _text("camera"),
    _text("band"),
    _text("filter"),
    _text("night"),
    Column("mjd", Float, nullable=False),
    Column("exptime_s", Float, nullable=False),
    Column("ra_deg", Float, nullable=False),
    Column("dec_deg", Float, nullable=False),
    Column("airmass", Float, nullable=False),
    _text("object"),
    _text("comment"),
    _text("obs_mode"),
    _text("kind"),
    _text("files_sha256", server_default=""),  # of its chips, so that a picture without them still tells a change
    Column("reach_deg", Float, nullable=False, server_default="0"),  # of the farthest chip corner from the pointing
    Column("temperature_c", Float),
    _one_of("kind", ("raw", "calibrated")),
    CheckConstraint("exptime_s > 0", name="exptime_s"),
    CheckConstraint("dec_deg BETWEEN -90 AND 90", name="dec_deg"),
    CheckConstraint("reach_deg BETWEEN 0 AND 180", name="reach_deg"),
    # a run is defined from what lies near its cell
    Index("ix_exposure_dec_deg", "band", "dec_deg"),
    Index("ix_exposure_reach_deg", "reach_deg"),
)

chip_file = Table(
    "chip_file",
    metadata,
    Column("exposure", String, ForeignKey("exposure.id", ondelete="CASCADE"), primary_key=True),
    Column("chip", String, primary_key=True),
    _text("path"),
    _text("hdu"),
    Column("footprint", JSON, nullable=False),
    _text("sha256"),
    _text("variance_path"),
    _text("mask_path"),
    Column("zero_point_mag", Float),
)

calibration_set = Table(
    "calibration_set",
    metadata,
    Column("key", String, primary_key=True),
    _text("camera"),
    _text("kind"),
    _text("band"),
    _text("valid_from"),
    Column("valid_to", String),
    _text("state"),
    _text("reason", server_default=""),
    Column("temperature_c", Float),
    _text("judged", server_default=""),  # content of the master that the state was given to
    _one_of("kind", tuple(MASTERS)),
    _one_of("state", CALIBRATION_STATES),
    CheckConstraint("valid_to IS NULL OR valid_to >= valid_from", name="validity"),
)

calibration_frame = Table(
    "calibration_frame",
    metadata,
    Column("calibration", String, ForeignKey("calibration_set.key", ondelete="CASCADE"), primary_key=True),
    Column("path", String, primary_key=True),
    Column("chip", String, primary_key=True),
    _text("hdu"),
    Column("footprint", JSON, nullable=False),
    _text("sha256"),
)

reference_catalog = Table(
    "reference_catalog",
    metadata,
    Column("name", String, primary_key=True),
    _text("content_sha256"),
    Column("n_rows", BigInteger, nullable=False),
    CheckConstraint("n_rows >= 0", name="n_rows"),
)

# which catalogue serves a band; "*" serves those not named
reference_catalog_band = Table(
    "reference_catalog_band",
    metadata,
    Column("band", String, primary_key=True),
    Column("name", String, ForeignKey("reference_catalog.name"), nullable=False),
)

tessellation = Table(
    "tessellation",
    metadata,
    Column("tess_id", Integer, primary_key=True, autoincrement=False),
    _text("name", unique=True),
    Column("definition", JSON, nullable=False),
)

lap_sequence = Table(
    "lap_sequence",
    metadata,
    Column("seq_id", Integer, primary_key=True, autoincrement=False),
    _text("name", unique=True),
    _text("description"),
)

lap_run = Table(
    "lap_run",
    metadata,
    Column("lap_id", Integer, primary_key=True, autoincrement=False),
    Column("seq_id", Integer, ForeignKey("lap_sequence.seq_id"), nullable=False),
    Column("tess_id", Integer, ForeignKey("tessellation.tess_id"), nullable=False),
    _text("projection_cell"),
    _text("filter"),
    _text("state"),
    Column("registered", Float, nullable=False),
    Column("fault", Integer, nullable=False),
    _text("label"),
    Column("quick_sass_id", Integer),
    Column("final_sass_id", Integer),
    _text("dist_group"),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("paused", Boolean, nullable=False, server_default=false()),
    _text("fault_reason", server_default=""),
    Column("settled", Boolean, nullable=False, server_default=false()),
    Column("cleaned", Boolean, nullable=False, server_default=false()),
    Column("retired", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("seq_id", "tess_id", "projection_cell", "filter"),
    _one_of("state", RUN_STATES),
    _one_of("fault", tuple(FAULTS)),
    CheckConstraint("quick_sass_id IS NULL", name="quick_sass_id"),  # LAP-04: kept, never set
    CheckConstraint("final_sass_id IS NULL OR state = 'full'", name="final_sass_id"),
    CheckConstraint("NOT settled OR state = 'full'", name="settled"),
    # what is open, and what is to be cleaned, whatever the number of runs that were
    Index("ix_lap_run_settled", "settled", "cleaned", "fault", "seq_id"),
)

lap_exp = Table(
    "lap_exp",
    metadata,
    Column("lap_id", Integer, ForeignKey("lap_run.lap_id", ondelete="CASCADE"), primary_key=True),
    Column("exp_id", String, ForeignKey("exposure.id"), primary_key=True),
    Column("chip_id", String),
    Column("pair_id", String),
    Column("private", Boolean, nullable=False),
    Column("pairwise", Boolean, nullable=False),
    Column("active", Boolean, nullable=False),
    _text("data_state"),
    Column("neighbours", JSON, nullable=False, server_default="[]"),  # other cells the exposure overlaps
    _text("reason", server_default=""),
    _one_of("data_state", DATA_STATES),
    CheckConstraint("NOT (private AND pairwise)", name="private"),
    CheckConstraint("NOT pairwise OR pair_id IS NOT NULL", name="pairwise"),
    Index("ix_lap_exp_exp_id", "exp_id"),
    Index("ix_lap_exp_active", "active", "lap_id", "exp_id"),
)

# switches an operator sets for all sequences
control = Table("control", metadata, Column("name", String, primary_key=True), _text("value"))

partition = Table(
    "partition",
    metadata,
    Column("collection", String, primary_key=True),
    Column("product", String, primary_key=True),
    Column("partition", String, primary_key=True),
    _text("state"),
    _text("inputs_sha256"),
    _text("content_sha256"),
    _text("config_sha256"),
    Column("attempts", Integer, nullable=False),
    Column("n_units", JSON, nullable=False),
    _text("reason"),
    Column("updated", Float, nullable=False),
    _one_of("state", PARTITION_STATES),
    CheckConstraint("attempts >= 0", name="attempts"),
)

unit = Table(
    "unit",
    metadata,
    Column("collection", String, primary_key=True),
    Column("product", String, primary_key=True),
    Column("partition", String, primary_key=True),
    Column("unit", String, primary_key=True),
    _text("state"),
    _text("content_sha256"),
    Column("bytes", BigInteger, nullable=False),
    _text("reason"),
    Column("seconds", Float, nullable=False),
    _text("run_id"),
    Column("updated", Float, nullable=False),
    _one_of("state", UNIT_STATES),
    ForeignKeyConstraint(
        ["collection", "product", "partition"],
        ["partition.collection", "partition.product", "partition.partition"],
        name="fk_unit_partition",
        ondelete="CASCADE",
    ),
)

# QC1 parameters (PHX-08); they outlive the products they are of
quality = Table(
    "quality",
    metadata,
    Column("collection", String, primary_key=True),
    Column("product", String, primary_key=True),
    Column("partition", String, primary_key=True),
    Column("unit", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("value", Float),
    _text("text"),
    Column("passed", Boolean),
)

lease = Table(
    "lease",
    metadata,
    Column("key", String, primary_key=True),
    _text("owner"),
    Column("fence", BigInteger, nullable=False),
    Column("heartbeat", Float, nullable=False),
    Column("expires", Float, nullable=False),
)
