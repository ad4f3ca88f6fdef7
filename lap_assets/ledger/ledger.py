"""The ledger as the rest of the package sees it: open or create one, add definitions, ask for a survey, record results.

Each method is one transaction. What is defined is also handed to the `journal` callback, inside the transaction, so
that a full disk leaves neither half; SQL stands in the modules beside this one.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.errors import BadInput, Conflict
from lap_assets.ledger import (
    calibrations,
    definitions,
    index,
    leases,
    quality,
    rebuild,
    records,
    runs,
    selection,
    steps,
)
from lap_assets.ledger.database import BUSY_SECONDS, Database
from lap_assets.ledger.leases import Lease
from lap_assets.ledger.questions import DEFAULT_SEQUENCE, Questions
from lap_assets.ledger.records import Added, ManifestRow, MemberRow, RunRow
from lap_assets.ledger.tables import REVISION, lease, metadata
from lap_assets.model.decisions import DROP_MEMBER, FAULT, Step
from lap_assets.model.ids import DataId, check_name
from lap_assets.model.products import MASTERS, home_of
from lap_assets.model.quality import QualityRow, Verdict
from lap_assets.model.regions import Region
from lap_assets.model.states import DONE, PartitionState
from lap_assets.model.survey import CalibrationSet, Exposure, PartitionRef

_PER_ENTRY = 100  # exposures per journal entry
Journal = Callable[[dict[str, Any]], None]


class Ledger(Questions):
    """One ledger; safe to share between threads. Make it with `open` or `create`."""

    def __init__(self, database: Database, journal: Journal | None = None) -> None:
        super().__init__(database)
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
            outcome, changed = calibrations.write_calibrations(connection, sets)
            if changed:
                self._journal({"kind": "calibrations", "calibrations": records.write_calibrations(changed)})
        return outcome

    def set_calibration_state(
        self, key: str, state: str, valid_to: str | None = None, valid_from: str | None = None, reason: str = "",
        judged: str | None = None,
    ) -> None:  # fmt: skip
        """Certify or reject a calibration set, or mark it built; a rejected one is used by nothing (PHX-02).

        Parameters
        ----------
        valid_from, valid_to : str, optional
            New first and last night (ISO dates; `""`: it is not known when it ends); None: as they were.
        reason : str
            Why it is not certified.
        judged : str, optional
            Content of the master that is judged; None: of the one judged before.
        """
        verdict = {"key": key, "state": state, "valid_from": valid_from, "valid_to": valid_to}
        verdict |= {"reason": reason, "judged": judged}
        with self._database.writing() as connection:
            calibrations.write_calibration_state(connection, **verdict)
            self._journal({"kind": "certification"} | verdict)

    def write_quality(self, collection: str, product: str, partition: str, rows: Iterable[QualityRow]) -> None:
        """Add QC1 parameters of a partition; those of the same unit and name are replaced (PHX-08)."""
        with self._database.writing() as connection:
            quality.write_quality(connection, collection, product, partition, rows)

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

    def define_sequence(self, name: str = DEFAULT_SEQUENCE, description: str = "", exist_ok: bool = True) -> int:
        """Register a sequence, that is a collection; returns its number (LAP-01, LAP-09).

        One that is known is left as it is; without `exist_ok` it raises `Conflict`.
        """
        with self._database.writing() as connection:
            return self._define_sequence(connection, name, description, exist_ok)

    def _define_sequence(self, connection: Connection, name: str, description: str = "", exist_ok: bool = True) -> int:
        new, number = definitions.write_sequence(connection, name, description)
        if new:
            self._journal({"kind": "sequence", "name": name, "description": description})
        elif not exist_ok:
            raise Conflict(f"sequence {name!r} is number {number} already: choose another name")
        return number

    def define_run(
        self,
        sequence: str,
        tessellation: str,
        cell: str,
        band: str,
        *,
        region: Region | None = None,
        obs_mode: str | None = "3PI",
        label: str = "",
        dist_group: str = "",
        priority: int = 0,
    ) -> RunRow:
        """Define one new run of one cell in one band, with its members; queues nothing (LAP-10 to LAP-13).

        Parameters
        ----------
        region : Cone, Box or Polygon, optional
            Take only exposures whose pointing or any chip corner lies in it; None: all that overlap the cell.
        obs_mode : str or None
            Take only exposures of this mode; None: of any.

        Raises
        ------
        Conflict
            The run exists.
        NotFound
            No such sequence, tessellation or cell.
        BadInput
            A name that is none, or nothing to process.
        """
        check_name(band, "filter")
        with self._database.writing() as connection:
            seq_id, (tess_id, sky) = (
                runs.find_sequence(connection, sequence), runs.find_tessellation(connection, tessellation)
            )  # fmt: skip
            found = selection.select_members(connection, sky, [band], [cell], obs_mode, region)
            runs.check_new(connection, seq_id, tess_id, cell, band)
            if not found:
                raise BadInput(
                    f"no exposure for cell {cell} in {band}"
                    + (f" with obs_mode {obs_mode}" if obs_mode else "")
                    + (" in that region" if region else "")
                    + ": ingest some first, or choose otherwise"
                )
            number, now = leases.take_number(connection, "lap_id"), self._database.now(connection)
            run = RunRow(number, sequence, tessellation, cell, band, "new", now, label=label, dist_group=dist_group,
                         priority=priority, seq_id=seq_id, tess_id=tess_id)  # fmt: skip
            self._journal_run(run, runs.write_run(connection, run, found[cell, band]))
        return run

    def _journal_run(self, run: RunRow, members: list[MemberRow]) -> None:
        self._journal({"kind": "run", "run": asdict(run), "members": [asdict(one) for one in members]})

    def define_runs(
        self,
        sequence: str = DEFAULT_SEQUENCE,
        tessellation: str = "",
        *,
        bands: Collection[str] | None = None,
        cells: Collection[str] | None = None,
        obs_mode: str | None = None,
        region: Region | None = None,
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
        bands, cells, obs_mode, region
            Take only these; None: all that was ingested. Of a region (Cone, Box, Polygon) as in `define_run` (LAP-16).

        Returns
        -------
        list of RunRow
            Runs that are new or gained members; an empty list when all is defined already.
        """
        with self._database.reading() as connection:
            _, sky = runs.find_tessellation(connection, tessellation)
            members = selection.select_members(connection, sky, bands, cells, obs_mode, region)
        with self._database.writing() as connection:
            self._define_sequence(connection, sequence)
            now = self._database.now(connection)
            changed = runs.write_runs(connection, now, sequence, tessellation, members, label, dist_group)
            for run, new in changed:
                self._journal_run(run, new)
        return [run for run, _ in changed]

    # -- what becomes of runs -----------------------------------------------------------------------------------------

    def apply(self, todo: Iterable[Step]) -> None:
        """Carry out what was decided about runs and members, all of it or nothing; what no longer fits is left out."""
        given = list(todo)
        if given:
            with self._database.writing() as connection:
                done = steps.apply_steps(connection, given)
                if done:
                    self._journal({"kind": "steps", "steps": done})

    def drop_member(self, lap_id: int, exposure: str, reason: str = "dropped by hand") -> None:
        """Never use an exposure again in a run (LAP-24)."""
        self.apply([Step(lap_id, DROP_MEMBER, exposure, reason=reason)])

    def cancel(self, lap_id: int, reason: str) -> None:
        """End a run that is not full: nothing more is done for it, and what was is cleaned; `reopen` takes it back."""
        self.apply([Step(lap_id, FAULT, value=str(steps.CANCELLED), reason=reason)])

    def reopen(self, lap_id: int, reason: str) -> None:
        """Let a run that ended go on: members but dropped ones are active again; its final set is none any more."""
        with self._database.writing() as connection:
            runs.open_again(connection, lap_id, "run")
            self._journal({"kind": "reopened", "lap_id": lap_id, "reason": reason})

    def readmit(self, collection: str = DEFAULT_SEQUENCE) -> list[int]:
        """Take dropped exposures up again, because a person says so; returns the runs that are open again for it."""
        with self._database.writing() as connection:
            lap_ids = runs.find_dropped(connection, collection)
            for lap_id in lap_ids:
                runs.open_again(connection, lap_id, "run", dropped=True)
                self._journal({"kind": "reopened", "lap_id": lap_id, "reason": "dropped ones again", "dropped": True})
        return lap_ids

    def set_priority(self, lap_id: int, priority: int) -> None:
        """Runs of higher priority come first."""
        self._set_run(lap_id, priority=int(priority))

    def pause(self, lap_id: int, paused: bool = True) -> None:
        """Let nothing more begin for a run, or let it go on."""
        self._set_run(lap_id, paused=bool(paused))

    def look_again(self, lap_id: int) -> None:
        """Let cleanup look at a run again: files made for it came back."""
        self._set_run(lap_id, cleaned=False)

    def _set_run(self, lap_id: int, **values: Any) -> None:
        with self._database.writing() as connection:
            steps.set_run_values(connection, lap_id, **values)
            self._journal({"kind": "run_values", "lap_id": lap_id, "values": values})

    def retire(self, collection: str, lap_ids: Iterable[int]) -> list[int]:
        """Take cleaned runs out of the partition sets of the user interface; returns those that were not yet."""
        with self._database.writing() as connection:
            new = steps.retire_runs(connection, collection, lap_ids)
            if new:
                self._journal({"kind": "retired", "collection": collection, "lap_ids": new})
        return new

    def set_draining(self, draining: bool) -> None:
        """Let no run begin that has not, and take none from the queue; or let them again."""
        with self._database.writing() as connection:
            if steps.write_draining(connection, draining):
                self._journal({"kind": "draining", "draining": draining})

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
        verdict: Verdict | None = None,
    ) -> None:
        """Record what became of a partition and of each of its units, in one transaction.

        Of a master also what was judged of its calibration set, where that was judged.
        """
        record = PartitionState(state, inputs_sha256, content_sha256, config_sha256, attempts, reason)
        reports = list(unit_reports)
        with self._database.writing() as connection:
            now = self._database.now(connection)
            ref = (product, partition)
            rows = index.write_partition(connection, now, collection, ref, record, reports, run_id)
            self._record_quality(connection, collection, ref, reports, verdict)
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
            for lap_id in runs.wake_cleanup(connection, collection, ref) if state == DONE else ():
                self._journal({"kind": "run_values", "lap_id": lap_id, "values": {"cleaned": False}})

    def _record_quality(
        self, connection: Connection, collection: str, ref: PartitionRef, reports: list[index.Report],
        verdict: Verdict | None,
    ) -> None:  # fmt: skip
        """QC1 parameters of a partition from the metrics of its units, and what was judged of a master."""
        product, key = ref
        if product in quality.JUDGED:
            measured = [row for one in reports for row in quality.read_metrics(one.data_id, one.metrics)]
            compared = verdict.quality if verdict else ()
            # of a master that is as it was the comparison still holds, of what was not made what was there before
            if compared or (measured and product not in MASTERS.values()):
                quality.forget_quality(connection, collection, product, key)
            quality.write_quality(connection, collection, product, key, [*measured, *compared])
        if verdict is not None:
            facts = {"key": key, "state": verdict.state, "reason": verdict.reason, "judged": verdict.judged}
            calibrations.write_calibration_state(connection, **facts)
            self._journal({"kind": "certification"} | facts)

    def invalidate(self, collection: str, refs: Iterable[PartitionRef], reason: str) -> int:
        """Let partitions that ended be made again, whatever their inputs say, because of `reason`; how many."""
        with self._database.writing() as connection:
            marked = index.invalidate_partitions(connection, self._database.now(connection), collection, refs, reason)
            if marked:
                self._journal({"kind": "invalidated", "collection": collection, "refs": marked, "reason": reason})
        return len(marked)

    def mark(self, collection: str, refs: Iterable[PartitionRef], state: str, reason: str = "") -> None:
        """Set the state of partitions and of their units that have files, keeping all hashes (LAP-33).

        Parameters
        ----------
        state : "goto_cleaned", "cleaned" or "done"
            Files are to go, are gone, or are there again. Partitions that ended otherwise are left alone.
        """
        wanted = list(refs)
        with self._database.writing() as connection:
            marked = index.mark_partitions(
                connection, self._database.now(connection), collection, wanted, state, reason
            )
            if marked:
                entry = {"collection": collection, "refs": marked, "state": state, "reason": reason}
                self._journal({"kind": "marked"} | entry)

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

    def claim(self, keys: Iterable[str], owner: str, seconds: float) -> list[str]:
        """Take the leases among `keys` that are free or expired, in one transaction; returns those taken."""
        wanted = list(keys)
        with self._database.writing() as connection:
            return leases.claim_leases(connection, self._database.now(connection), wanted, owner, seconds)

    def extend(self, owner: str, seconds: float) -> int:
        """Keep all leases of an owner that are alive for another `seconds` from now; how many."""
        with self._database.writing() as connection:
            return leases.extend_leases(connection, self._database.now(connection), owner, seconds)

    def release_owner(self, owner: str) -> int:
        """Give back all leases of an owner; how many."""
        with self._database.writing() as connection:
            return leases.release_owner(connection, owner)

    def take_number(self, name: str) -> int:
        """The next number of a counter, from 1."""
        with self._database.writing() as connection:
            return leases.take_number(connection, check_name(name, "counter"))

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
