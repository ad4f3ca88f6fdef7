"""The ledger as the rest of the package sees it: open or create one, add definitions, ask for a survey, record results.

Each method is one transaction. What is defined is also handed to the `journal` callback, inside the transaction, so
that a full disk leaves neither half; SQL stands in the modules beside this one.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.errors import BadInput
from lap_assets.ledger import definitions, index, leases, rebuild, records, runs
from lap_assets.ledger.database import BUSY_SECONDS, Database
from lap_assets.ledger.leases import Lease
from lap_assets.ledger.records import Added, ManifestRow, MemberRow, Region, RunRow, UnitRow
from lap_assets.ledger.survey import build_survey
from lap_assets.ledger.tables import REVISION, lease, metadata
from lap_assets.model.ids import DataId
from lap_assets.model.products import home_of
from lap_assets.model.states import PartitionState
from lap_assets.model.survey import CalibrationSet, Exposure, PartitionRef, Survey
from lap_assets.model.tessellation import Tessellation

DEFAULT_SEQUENCE = "main"
_PER_ENTRY = 100  # exposures per journal entry
Journal = Callable[[dict[str, Any]], None]


class Ledger:
    """One ledger; safe to share between threads. Make it with `open` or `create`."""

    def __init__(self, database: Database, journal: Journal | None = None) -> None:
        self._database = database
        self._journal = journal or (lambda entry: None)

    @classmethod
    def open(
        cls, url: str, journal: Journal | None = None, clock: Callable[[], float] | None = None,
        busy_seconds: float = BUSY_SECONDS,
    ) -> "Ledger":  # fmt: skip
        """Open a ledger; raises `BadInput` if there is none at `url` or its tables are of another version."""
        database = Database(url, clock=clock, busy_seconds=busy_seconds)
        with database.reading() as connection:
            found = _read_revision(connection)
        if found != REVISION:
            has = f"has tables of version {found}" if found else "has no tables"
            raise BadInput(f"ledger {database.name} {has}, this version needs {REVISION}: run `lap ledger upgrade`")
        return cls(database, journal)

    @classmethod
    def create(cls, url: str, journal: Journal | None = None, clock: Callable[[], float] | None = None) -> "Ledger":
        """Make the tables of a new ledger, or bring an older one up to date, and open it."""
        from lap_assets.ledger.migrations import upgrade  # alembic is slow to import and rarely needed

        database = Database(url, create=True)
        with database.writing() as connection:
            upgrade(connection)
        database.close()
        return cls.open(url, journal, clock)

    def close(self) -> None:
        """Close the connections; the ledger may be used again afterwards."""
        self._database.close()

    # -- definitions ------------------------------------------------------------------------------------------------

    def add_exposures(self, exposures: Iterable[Exposure]) -> Added:
        """Register exposures; those known with other bytes or values are reported in `conflicts`, the others go on.

        Raises
        ------
        BadInput
            An id that is no partition key, or an exposure without chips; nothing is written then.
        """
        with self._database.writing() as connection:
            outcome, changed = definitions.write_exposures(connection, exposures)
            for start in range(0, len(changed), _PER_ENTRY):
                entry = records.write_exposures(changed[start : start + _PER_ENTRY])
                self._journal({"kind": "exposures", "exposures": entry})
        return outcome

    def add_calibrations(self, sets: Iterable[CalibrationSet]) -> Added:
        """Register calibration sets (state `virtual`); conflicts as for exposures."""
        with self._database.writing() as connection:
            outcome, changed = definitions.write_calibrations(connection, sets)
            if changed:
                self._journal({"kind": "calibrations", "calibrations": records.write_calibrations(changed)})
        return outcome

    def set_calibration_state(self, key: str, state: str, valid_to: str | None = None) -> None:
        """Certify or reject a calibration set, or mark it built; a rejected one is used by nothing."""
        with self._database.writing() as connection:
            definitions.write_calibration_state(connection, key, state, valid_to)
            self._journal({"kind": "certification", "key": key, "state": state, "valid_to": valid_to})

    def add_reference_catalog(
        self, name: str, bands: Sequence[str] = ("*",), content_sha256: str = "", n_rows: int = 0
    ) -> bool:
        """Register a reference catalogue of the store for bands (`*`: all others); whether anything changed."""
        with self._database.writing() as connection:
            changed = definitions.write_reference_catalog(connection, name, bands, content_sha256, n_rows)
            if changed:
                entry = {"name": name, "content_sha256": content_sha256, "n_rows": n_rows, "bands": list(bands)}
                self._journal({"kind": "reference_catalog"} | entry)
        return changed

    def add_tessellation(self, definition: Mapping[str, Any]) -> bool:
        """Register a tessellation (see `load_tessellation`); whether it is new. `Conflict` if the name is taken."""
        with self._database.writing() as connection:
            new, canonical = definitions.write_tessellation(connection, dict(definition))
            if new:
                self._journal({"kind": "tessellation", "definition": canonical})
        return new

    def define_sequence(self, name: str = DEFAULT_SEQUENCE, description: str = "") -> int:
        """Register a sequence, that is a collection; returns its number, known or new (LAP-01, LAP-09)."""
        with self._database.writing() as connection:
            return self._define_sequence(connection, name, description)

    def _define_sequence(self, connection: Connection, name: str, description: str = "") -> int:
        new, number = definitions.write_sequence(connection, name, description)
        if new:
            self._journal({"kind": "sequence", "name": name, "description": description})
        return number

    def define_runs(
        self,
        sequence: str = DEFAULT_SEQUENCE,
        tessellation: str = "",
        *,
        bands: Collection[str] | None = None,
        cells: Collection[str] | None = None,
        obs_mode: str | None = None,
        cone: Region | None = None,
        label: str = "",
        dist_group: str = "",
    ) -> list[RunRow]:
        """Define one run per cell and band that the selected exposures overlap, or complete those there are.

        Parameters
        ----------
        sequence : str
            Defined on the way if it is new.
        tessellation : str
            Name of a registered one.
        bands, cells, obs_mode, cone
            Take only these; None: all that was ingested.

        Returns
        -------
        list of RunRow
            Runs that are new or gained members; an empty list when all is defined already.
        """
        with self._database.reading() as connection:
            _, sky = runs.find_tessellation(connection, tessellation)
            members = runs.select_members(connection, sky, bands, cells, obs_mode, cone)
        with self._database.writing() as connection:
            self._define_sequence(connection, sequence)
            now = self._database.now(connection)
            changed = runs.write_runs(connection, now, sequence, tessellation, members, label, dist_group)
            for run, new in changed:
                self._journal({"kind": "run", "run": asdict(run), "members": [asdict(one) for one in new]})
        return [run for run, _ in changed]

    def drop_member(self, lap_id: int, exposure: str) -> None:
        """Never use an exposure again in a run (LAP-24)."""
        with self._database.writing() as connection:
            runs.drop_member(connection, lap_id, exposure)
            self._journal({"kind": "drop", "lap_id": lap_id, "exposure": exposure})

    def set_run_state(self, lap_id: int, state: str) -> None:
        """Set the state of a run: new, run or full (LAP-03)."""
        with self._database.writing() as connection:
            runs.set_run_state(connection, lap_id, state)
            self._journal({"kind": "run_state", "lap_id": lap_id, "state": state})

    # -- questions --------------------------------------------------------------------------------------------------

    def survey(self, collection: str = DEFAULT_SEQUENCE) -> Survey:
        """The picture of one collection, from one consistent state of the ledger."""
        with self._database.reading() as connection:
            return build_survey(connection, collection)

    def exposures(self) -> dict[str, Exposure]:
        """All exposures ingested, by id, whether or not a run uses them."""
        with self._database.reading() as connection:
            return definitions.read_exposures(connection)

    def runs(self, sequence: str | None = None) -> list[RunRow]:
        """Runs in order of their numbers."""
        with self._database.reading() as connection:
            return runs.read_runs(connection, sequence)

    def members(self, lap_id: int) -> list[MemberRow]:
        """Members of a run, dropped ones included."""
        with self._database.reading() as connection:
            return runs.read_members(connection, lap_id)

    def sequences(self) -> dict[str, str]:
        """Descriptions of the sequences, by name."""
        with self._database.reading() as connection:
            return definitions.read_sequences(connection)

    def tessellations(self) -> list[str]:
        """Names of the tessellations, in order of their definition."""
        with self._database.reading() as connection:
            return definitions.read_tessellations(connection)

    def tessellation(self, name: str) -> Tessellation:
        """The tessellation of a name; raises `NotFound`."""
        with self._database.reading() as connection:
            return runs.find_tessellation(connection, name)[1]

    def partition_states(self, collection: str = DEFAULT_SEQUENCE) -> dict[PartitionRef, PartitionState]:
        """The record of every partition of a collection, masters included."""
        with self._database.reading() as connection:
            return index.read_states(connection, collection)

    def unit_counts(self, collection: str = DEFAULT_SEQUENCE) -> dict[PartitionRef, Mapping[str, int]]:
        """Number of units by state of every partition of a collection, masters included."""
        with self._database.reading() as connection:
            return index.read_counts(connection, collection)

    def units(
        self, collection: str | None = None, product: str | None = None, partition: str | None = None,
        state: str | None = None,
    ) -> list[UnitRow]:  # fmt: skip
        """Units, sorted by data id; of a collection (masters included), product, partition or state where given."""
        with self._database.reading() as connection:
            return index.read_units(connection, collection, product, partition, state)

    # -- results ----------------------------------------------------------------------------------------------------

    def record_partition(
        self,
        collection: str,
        product: str,
        partition: str,
        state: str,
        *,
        inputs_sha256: str = "",
        content_sha256: str = "",
        config_sha256: str = "",
        attempts: int = 0,
        reason: str = "",
        unit_reports: Iterable[index.Report] = (),
        run_id: str = "",
    ) -> None:
        """Record what became of a partition and of each of its units, in one transaction."""
        record = PartitionState(state, inputs_sha256, content_sha256, config_sha256, attempts, reason)
        with self._database.writing() as connection:
            now = self._database.now(connection)
            ref = (product, partition)
            rows = index.write_partition(connection, now, collection, ref, record, unit_reports, run_id)
            self._journal(
                {
                    "kind": "partition",
                    "collection": home_of(collection, product),
                    "product": product,
                    "partition": partition,
                    "state": asdict(record),
                    "units": [[row.data_id.unit, row.state, row.content, row.reason] for row in rows],
                }
            )

    def forget_unit(self, data_id: DataId, reason: str = "it was found damaged") -> None:
        """Take a unit off the index; its partition becomes `corrupt`, so that it is made again."""
        with self._database.writing() as connection:
            index.forget_unit(connection, self._database.now(connection), data_id, reason)

    def forget_attempts(self, collection: str = DEFAULT_SEQUENCE, dropped: bool = False) -> None:
        """Let every failed partition of a collection be tried afresh, with `dropped` also those given up."""
        with self._database.writing() as connection:
            index.forget_attempts(connection, collection, dropped)

    # -- leases -----------------------------------------------------------------------------------------------------

    def acquire(self, key: str, owner: str, seconds: float) -> Lease:
        """Take the lease on `key`; raises `Conflict` naming the holder while another one is alive."""
        with self._database.writing() as connection:
            return leases.acquire_lease(connection, self._database.now(connection), key, owner, seconds)

    def heartbeat(self, held: Lease, seconds: float) -> Lease:
        """Keep a lease for another `seconds` from now; raises `Conflict` if it was taken over."""
        with self._database.writing() as connection:
            return leases.renew_lease(connection, self._database.now(connection), held, seconds)

    def release(self, held: Lease) -> None:
        """Give a lease back; raises `Conflict` if it was taken over."""
        with self._database.writing() as connection:
            leases.release_lease(connection, held)

    def leases(self) -> list[Lease]:
        """Leases alive now, by key."""
        with self._database.reading() as connection:
            alive = sa.select(lease).where(lease.c.expires > self._database.now(connection)).order_by(lease.c.key)
            return [Lease(row.key, row.owner, row.fence, row.expires) for row in connection.execute(alive)]

    # -- recovery ---------------------------------------------------------------------------------------------------

    def rebuild(self, entries: Iterable[Mapping[str, Any]], manifests: Iterable[ManifestRow]) -> tuple[int, int]:
        """Fill an empty ledger from the journal's entries and the manifests in the store.

        Returns
        -------
        (n_definitions, n_partitions)
            Journal entries of definitions, and partitions whose record was restored.

        Raises
        ------
        BadInput
            If the ledger is not empty, or an entry cannot be read; nothing is written then.
        """
        with self._database.writing() as connection:
            for table in metadata.sorted_tables:
                if connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
                    raise BadInput(
                        f"ledger {self._database.name} is not empty: rebuild into a new one (move it away first)"
                    )
            return rebuild.restore(connection, entries, manifests)


def _read_revision(connection: Connection) -> str:
    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none() or ""
