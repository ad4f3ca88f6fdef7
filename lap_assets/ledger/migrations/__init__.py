"""Versions of the ledger's tables: alembic scripts, applied by `upgrade`. No configuration file is needed."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection


def configure(connection: Connection | None = None) -> Config:
    """Alembic's configuration for the scripts in this folder, to work on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the tables to a revision, inside the transaction of `connection`."""
    command.upgrade(configure(connection), revision)
