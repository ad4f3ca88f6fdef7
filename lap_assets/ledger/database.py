"""Connections: SQLite (WAL) or PostgreSQL by URL, transactions, and database errors as one clear line.

Here belong pragmas, locking and the words for what goes wrong; no table is known here.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError

from lap_assets.errors import BadInput, Conflict

BUSY_SECONDS = 30.0
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "lustre", "cifs", "smb3", "smbfs", "afs", "beegfs", "ceph", "glusterfs", "gpfs"}
)
_WRITES = "lap_writes"
# texts of SQLite and SQLSTATE codes of PostgreSQL: another writer was in the way
_BUSY = ("database is locked", "database table is locked", "database is busy")
_BUSY_CODES = frozenset({"40001", "40P01", "55P03"})


class Database:
    """A ledger's database: begin transactions, tell the time, translate errors.

    Parameters
    ----------
    url : str
        `sqlite:///FILE` or `postgresql+psycopg2://…`.
    create : bool
        Make the SQLite file if it is missing; otherwise a missing file is an error, never an empty ledger.
    clock : callable, optional
        Seconds since 1970; default: the clock of the database's machine, one for all writers.
    busy_seconds : float
        How long to wait for another writer.
    """

    def __init__(
        self,
        url: str,
        create: bool = False,
        clock: Callable[[], float] | None = None,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        self.url = parse_url(url)
        self._clock = clock
        if self.url.get_backend_name() == "sqlite":
            self._path = Path(self.url.database or "")
            if create:
                check_local(self._path)
            elif not self._path.is_file():
                raise BadInput(
                    f"no ledger at {self._path}: make one with `lap init`, or bring it back with `lap ledger rebuild`"
                )
            self.engine = _sqlite_engine(self._path, create, busy_seconds)
            self._reader = self.engine
        else:
            self.engine = sa.create_engine(
                self.url, pool_pre_ping=True, pool_size=2, connect_args={"connect_timeout": 10}
            )
            if create:
                with self._translated(), self.engine.begin() as connection:
                    _make_schema(connection)
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")
        self._writer = self.engine.execution_options(**{_WRITES: True})

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that reads one consistent state."""
        with self._translated(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; all of it or nothing."""
        with self._translated(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def rehearsing(self) -> Iterator[Connection]:
        """A transaction whose writes only itself sees: they are taken back at its end."""
        with self._translated(), self._writer.connect() as connection, connection.begin() as transaction:
            try:
                yield connection
            finally:
                transaction.rollback()

    def now(self, connection: Connection) -> float:
        """Seconds since 1970."""
        if self._clock is not None:
            return float(self._clock())
        if self.url.get_backend_name() == "postgresql":
            return float(
                connection.execute(sa.select(sa.func.extract("epoch", sa.func.clock_timestamp()))).scalar_one()
            )
        return time.time()

    def close(self) -> None:
        """Close pooled connections."""
        self.engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise Conflict(f"ledger {self.name}: {_one_line(error)}; another writer was first, try again") from error
        except DBAPIError as error:
            text = _one_line(error)
            if any(busy in text for busy in _BUSY) or getattr(error.orig, "pgcode", None) in _BUSY_CODES:
                raise Conflict(f"ledger {self.name} is locked by another writer; try again in a moment") from error
            raise BadInput(
                f"ledger {self.name} cannot be used: {text}; check that it is there, whole and writable"
            ) from error


def parse_url(text: str) -> URL:
    """The URL of a ledger; a bare `postgresql://` means psycopg2. Raises `BadInput`."""
    prefix = "sqlite:///"
    try:
        # all that follows is the path, `?` and `%` included
        url = URL.create("sqlite", database=text.removeprefix(prefix)) if text.startswith(prefix) else make_url(text)
    except ArgumentError:
        raise BadInput(
            f"{text!r} is no database URL: use sqlite:///FILE or postgresql+psycopg2://USER@HOST/NAME"
        ) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg2")
    if url.drivername not in ("sqlite", "postgresql+psycopg2"):
        raise BadInput(f"a ledger on {url.drivername} is not supported: use sqlite:///FILE or postgresql+psycopg2://…")
    if url.drivername == "sqlite" and (not url.database or url.database == ":memory:"):
        raise BadInput("a SQLite ledger needs a file: sqlite:///FILE")
    return url


def check_local(path: Path) -> None:
    """Refuse a SQLite file on a network file system, where its locks do not hold."""
    kind = find_file_system(path)
    if kind in NETWORK_FILE_SYSTEMS:
        raise BadInput(
            f"{path} lies on a network file system ({kind}), where SQLite is not safe: use PostgreSQL (ledger_url)"
        )
    if not path.absolute().parent.is_dir():
        raise BadInput(f"cannot make a ledger in {path.parent}: there is no such folder")


def find_file_system(path: Path, mounts: str | None = None) -> str:
    """Type of the file system a path lies on, from Linux's mount table; empty where that cannot be told."""
    table = Path("/proc/self/mounts")
    if mounts is None:
        mounts = table.read_text(errors="replace") if table.is_file() else ""
    place = path.absolute().resolve()
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if place.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def _sqlite_engine(path: Path, create: bool, busy_seconds: float) -> Engine:
    # mode=rw: a file that vanished is an error, not a new empty database
    name = f"file:{quote(str(path.absolute()))}?mode={'rwc' if create else 'rw'}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            name, uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    # a connection per transaction: safe across threads and forked processes, and it costs a tenth of a millisecond
    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.pool.NullPool)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # a writer takes its lock at once: a later upgrade from reading could not wait for it
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def is_among(connection: Connection, column: sa.ColumnElement[str], query: sa.Select) -> sa.ColumnElement[bool]:
    """The condition that a column, indexed, is one of the values a query gives, found by that index whatever the sizes.

    A join makes SQLite scan the table for each value; IN makes PostgreSQL hash the whole table.
    """
    if connection.dialect.name == "postgresql":
        return column == sa.any_(sa.func.array(query.scalar_subquery()))
    return column.in_(query)


def _make_schema(connection: Connection) -> None:
    """Make the schema the URL names (`options=-csearch_path=NAME`), where it is not there yet."""
    if connection.execute(sa.select(sa.func.current_schema())).scalar_one() is None:
        path = connection.execute(sa.select(sa.func.current_setting("search_path"))).scalar_one()
        name = path.split(",")[0].strip().strip('"')
        connection.execute(sa.schema.CreateSchema(name, if_not_exists=True))


def _one_line(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())
