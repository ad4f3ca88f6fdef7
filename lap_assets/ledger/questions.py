"""What the rest of the package asks the ledger: the part of `Ledger` that only reads.

Each method is one transaction that sees one consistent state; SQL stands in the modules beside this one.
"""

from collections.abc import Collection, Iterable, Mapping

from lap_assets.ledger import calibrations, definitions, index, quality, runs, selection, snapshot, steps
from lap_assets.ledger.database import Database
from lap_assets.ledger.records import MemberRow, RunRow, SequenceRow, UnitRow
from lap_assets.ledger.survey import build_survey, without_collector
from lap_assets.model.decisions import Snapshot
from lap_assets.model.quality import QualityRow
from lap_assets.model.regions import Region
from lap_assets.model.states import PartitionState
from lap_assets.model.survey import CalibrationSet, Exposure, PartitionRef, Survey
from lap_assets.model.tessellation import Tessellation

DEFAULT_SEQUENCE = "main"


class Questions:
    """Reads a ledger; safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def survey(self, collection: str = DEFAULT_SEQUENCE, lean: bool = False) -> Survey:
        """The picture of one collection, from one consistent state of the ledger; `lean`: without chip files."""
        with self._database.reading() as connection, without_collector():
            return build_survey(connection, collection, lean)

    def snapshot(
        self, collection: str = DEFAULT_SEQUENCE, scope: str = "open", lap_ids: Collection[int] | None = None
    ) -> Snapshot:
        """What the ledger knows of what a decision depends on, from one consistent state; see `build_snapshot`."""
        with self._database.reading() as connection, without_collector():
            return snapshot.build_snapshot(connection, self._database.now(connection), collection, scope, lap_ids)

    def calibrations(self, keys: Collection[str] = ()) -> dict[str, CalibrationSet]:
        """All calibration sets by key, rejected ones included; only those in `keys` with their frames."""
        with self._database.reading() as connection:
            return calibrations.read_calibrations(connection, keys=keys)

    def count_frames(self) -> dict[str, int]:
        """Number of frames of every calibration set."""
        with self._database.reading() as connection:
            return calibrations.count_frames(connection)

    def quality(
        self, collection: str = DEFAULT_SEQUENCE, product: str | None = None, partition: str | None = None,
        names: Collection[str] | None = None,
    ) -> list[QualityRow]:  # fmt: skip
        """QC1 parameters of a collection (PHX-08), sorted by place and name; those of masters by their product."""
        with self._database.reading() as connection:
            return quality.read_quality(connection, collection, product, partition, names)

    def exposures(self, ids: Iterable[str] | None = None) -> dict[str, Exposure]:
        """Exposures by id, these or all that were ingested, whether or not a run uses them."""
        with self._database.reading() as connection:
            return definitions.read_exposures(connection, ids)

    def files(self, exposures: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Paths of the files each of these exposures was ingested from, sorted, each once."""
        with self._database.reading() as connection:
            return definitions.read_files(connection, exposures)

    def runs(
        self, sequence: str | None = None, state: str | None = None, lap_ids: Collection[int] | None = None,
        exposure: str | None = None,
    ) -> list[RunRow]:  # fmt: skip
        """Runs in order of their numbers; of a sequence, in a state, those asked for, with an exposure as a member."""
        conditions = [] if exposure is None else [runs.of_exposure(exposure)]
        with self._database.reading() as connection:
            return runs.read_runs(connection, sequence, state, lap_ids, conditions)

    def members(self, lap_id: int) -> list[MemberRow]:
        """Members of a run, dropped ones included."""
        with self._database.reading() as connection:
            return runs.read_members(connection, lap_id)

    def count_members(self, sequence: str) -> dict[int, dict[str, int]]:
        """Number of members by data_state of every run of a sequence (LAP-25)."""
        with self._database.reading() as connection:
            return runs.count_members(connection, sequence)

    def defined(self) -> frozenset[tuple[str, str, str, str]]:
        """(sequence, tessellation, cell, band) of all runs there ever were."""
        with self._database.reading() as connection:
            return runs.read_defined(connection)

    def foresee_runs(self, sequence: str, skies: Iterable[Tessellation]) -> Survey:
        """The survey as `define_runs` on these tessellations would leave it; nothing is written."""
        with self._database.reading() as connection:
            members = [(sky, selection.select_members(connection, sky, None, None, None, None)) for sky in skies]
        with self._database.rehearsing() as connection:
            definitions.write_sequence(connection, sequence, "")
            for sky, overlaps in members:
                definitions.write_tessellation(connection, sky.definition())
                runs.write_runs(connection, self._database.now(connection), sequence, sky.name, overlaps, "", "")
            return build_survey(connection, sequence)

    def overlaps(
        self, tessellation: str, bands: Collection[str] | None = None, obs_mode: str | None = None,
        region: Region | None = None,
    ) -> list[tuple[str, str]]:  # fmt: skip
        """(cell, band) of each run that `define_runs` would define of this selection (LAP-16)."""
        with self._database.reading() as connection:
            _, sky = runs.find_tessellation(connection, tessellation)
            return list(selection.select_members(connection, sky, bands, None, obs_mode, region))

    def sequences(self) -> list[SequenceRow]:
        """Sequences, in order of their definition (LAP-09)."""
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

    def unit_counts(
        self, collection: str = DEFAULT_SEQUENCE, products: Collection[str] | None = None
    ) -> dict[PartitionRef, Mapping[str, int]]:
        """Number of units by state of every partition of a collection, masters included; of all products or these."""
        with self._database.reading() as connection:
            return index.read_counts(connection, collection, products)

    def units(
        self, collection: str | None = None, product: str | None = None, partition: str | None = None,
        state: str | None = None,
    ) -> list[UnitRow]:  # fmt: skip
        """Units, sorted by data id; of a collection (masters included), product, partition or state where given."""
        with self._database.reading() as connection:
            return index.read_units(connection, collection, product, partition, state)

    def stored_bytes(self) -> int:
        """Bytes of all units that have files, of all collections."""
        with self._database.reading() as connection:
            return index.sum_bytes(connection)

    def draining(self) -> bool:
        """Whether no run begins that has not."""
        with self._database.reading() as connection:
            return steps.read_draining(connection)
