"""What is to be processed: exposures, the runs that use them, and from both the partitions and who is made from whom.

A `Survey` is an immutable picture of the ledger for one collection, handed to planning, scheduling and to the
Dagster definitions alike, so that all three agree on what a stack is made of: the members of its run, never bare
geometry. No I/O here; `ledger/` builds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from lap_assets.model.ids import join_key
from lap_assets.model.products import CALIBRATIONS, CELL_BANDS, CELLS, EXPOSURE_CELLS, EXPOSURES, get_product
from lap_assets.model.tessellation import ProjectionCell

PartitionRef = tuple[str, str]  # (product, partition key)


@dataclass(frozen=True)
class ChipFile:
    """Where the pixels of one chip of an exposure lie, and roughly on which piece of sky.

    Attributes
    ----------
    chip : str
    path : str
        As ingested (linked, not copied), absolute.
    hdu : str
        Name or number of the HDU.
    variance_path, mask_path : str
        Inverse-variance and mask files of calibrated exposures; empty for raws.
    footprint : tuple of (ra_deg, dec_deg)
        Corners from the header or the camera's nominal geometry.
    sha256 : str
        Of the file at `path`; of calibrated exposures over the hashes of image, inverse variance and mask files.
    zero_point_mag : float or None
        Given zero point of calibrated exposures (mag of 1 unit of the chip image).
    """

    chip: str
    path: str
    hdu: str
    footprint: tuple[tuple[float, float], ...]
    sha256: str = ""
    variance_path: str = ""
    mask_path: str = ""
    zero_point_mag: float | None = None


@dataclass(frozen=True)
class Exposure:
    """One exposure of a mosaic camera. `kind` is `raw` or `calibrated`; `night` is the local date at its start."""

    id: str
    camera: str
    band: str
    filter: str
    night: str
    mjd: float
    exptime_s: float
    ra_deg: float
    dec_deg: float
    airmass: float = 1.0
    object: str = ""
    comment: str = ""
    obs_mode: str = "3PI"
    kind: str = "raw"
    chips: tuple[ChipFile, ...] = ()


@dataclass(frozen=True)
class CalibrationSet:
    """The frames one master calibration is built from; `key` is its partition key `camera|kind|band|valid_from`."""

    key: str
    camera: str
    kind: str  # "bias" or "flat"
    band: str  # "all" for biases
    valid_from: str  # ISO date
    frames: tuple[ChipFile, ...] = ()  # one entry per frame and chip


@dataclass(frozen=True)
class Run:
    """One LAP run: one projection cell in one band of one sequence, with its members (dropped ones left out)."""

    lap_id: int
    cell: str
    band: str
    members: tuple[str, ...]
    state: str = "new"


@dataclass(frozen=True)
class Survey:
    """An immutable picture of one collection.

    Attributes
    ----------
    collection : str
    exposures : mapping of exposure id to Exposure
    cells : mapping of cell name to ProjectionCell
    runs : tuple of Run
    calibrations : mapping of calibration key to CalibrationSet
    associations : mapping of exposure id to tuple of (product, calibration key)
        The masters each raw exposure is calibrated with.
    reference_catalogs : mapping of band (or "*") to name
    outside : mapping
        Content hashes of what lies outside the store's products: `camera/NAME`, `refcat/NAME`.
    """

    collection: str
    exposures: Mapping[str, Exposure] = field(default_factory=dict)
    cells: Mapping[str, ProjectionCell] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    calibrations: Mapping[str, CalibrationSet] = field(default_factory=dict)
    associations: Mapping[str, tuple[PartitionRef, ...]] = field(default_factory=dict)
    reference_catalogs: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def run_of(self) -> Mapping[tuple[str, str], Run]:
        """Run by (cell, band)."""
        return {(run.cell, run.band): run for run in self.runs}

    @cached_property
    def bands_of(self) -> Mapping[str, tuple[str, ...]]:
        """Bands with a run, by cell, sorted."""
        bands: dict[str, list[str]] = {}
        for run in self.runs:
            bands.setdefault(run.cell, []).append(run.band)
        return {cell: tuple(sorted(names)) for cell, names in sorted(bands.items())}

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(exposure, cell) of every run member, sorted."""
        return tuple(sorted({(exposure, run.cell) for run in self.runs for exposure in run.members}))

    def members(self, cell: str, band: str) -> tuple[str, ...]:
        """Exposures of the run of this cell and band, sorted; empty where there is no run."""
        run = self.run_of.get((cell, band))
        return tuple(sorted(run.members)) if run else ()

    def partitions(self, product: str) -> tuple[str, ...]:
        """All partition keys of a product, sorted."""
        kind = get_product(product).partitions
        return self._calibration_keys(product) if kind == CALIBRATIONS else self.partition_sets[kind]

    @cached_property
    def partition_sets(self) -> Mapping[str, tuple[str, ...]]:
        """Partition keys of each partition set (architecture, section 3)."""
        return {
            EXPOSURES: tuple(sorted(self.exposures)),
            EXPOSURE_CELLS: tuple(join_key(*pair) for pair in self.pairs),
            CELL_BANDS: tuple(join_key(cell, band) for cell, bands in self.bands_of.items() for band in bands),
            CELLS: tuple(self.bands_of),
            CALIBRATIONS: tuple(sorted(self.calibrations)),
        }

    def _calibration_keys(self, product: str) -> tuple[str, ...]:
        kind = {"master_biases": "bias", "master_flats": "flat"}[product]
        return tuple(key for key, one in sorted(self.calibrations.items()) if one.kind == kind)

    def outside_facts(self, product: str, partition: str) -> list:
        """What a partition depends on that is no product: its files, camera and reference catalogue, by content."""
        if product in ("master_biases", "master_flats"):
            one = self.calibrations[partition]
            return [self.outside.get(f"camera/{one.camera}", ""), [[f.chip, f.sha256] for f in one.frames]]
        if product not in ("chips", "solutions"):
            return []
        exposure = self.exposures[partition]
        facts: list = [self.outside.get(f"camera/{exposure.camera}", "")]
        if product == "chips":
            return [*facts, [[file.chip, file.sha256] for file in exposure.chips]]
        name = self.reference_catalogs.get(exposure.band, self.reference_catalogs.get("*", ""))
        given = [[file.chip, file.zero_point_mag] for file in exposure.chips]
        return [*facts, name, self.outside.get(f"refcat/{name}", ""), given]

    def upstream(self, product: str, partition: str) -> tuple[PartitionRef, ...]:
        """What a partition is made from, as (product, partition key), in a fixed order."""
        parts = partition.split("|")
        return tuple(getattr(self, f"_upstream_of_{product}")(*parts))

    def _upstream_of_master_biases(self, *_key: str) -> list[PartitionRef]:
        return []

    def _upstream_of_master_flats(self, camera: str, _kind: str, _band: str, valid_from: str) -> list[PartitionRef]:
        biases = [c for c in self.calibrations.values() if c.camera == camera and c.kind == "bias"]
        chosen = choose_valid(biases, valid_from)
        return [("master_biases", chosen.key)] if chosen else []

    def _upstream_of_chips(self, exposure: str) -> list[PartitionRef]:
        return list(self.associations.get(exposure, ()))

    def _upstream_of_solutions(self, exposure: str) -> list[PartitionRef]:
        return [("chips", exposure)]

    def _upstream_of_joint_solutions(self, cell: str, band: str) -> list[PartitionRef]:
        return [("solutions", exposure) for exposure in self.members(cell, band)]

    def _upstream_of_warps(self, exposure: str, cell: str) -> list[PartitionRef]:
        band = self.exposures[exposure].band
        return [("chips", exposure), ("solutions", exposure), ("joint_solutions", join_key(cell, band))]

    def _upstream_of_stacks(self, cell: str, band: str) -> list[PartitionRef]:
        return [("warps", join_key(exposure, cell)) for exposure in self.members(cell, band)]

    def _upstream_of_diffs(self, exposure: str, cell: str) -> list[PartitionRef]:
        pair = join_key(exposure, cell)
        return [("warps", pair), ("stacks", join_key(cell, self.exposures[exposure].band))]

    def _upstream_of_streak_masks(self, exposure: str, cell: str) -> list[PartitionRef]:
        return [("diffs", join_key(exposure, cell))]

    def _upstream_of_final_stacks(self, cell: str, band: str) -> list[PartitionRef]:
        pairs = [join_key(exposure, cell) for exposure in self.members(cell, band)]
        return [("stacks", join_key(cell, band)), *(("warps", p) for p in pairs), *(("streak_masks", p) for p in pairs)]

    def _upstream_of_object_catalogs(self, cell: str) -> list[PartitionRef]:
        return [("final_stacks", join_key(cell, band)) for band in self.bands_of.get(cell, ())]

    def _upstream_of_shear_catalogs(self, cell: str) -> list[PartitionRef]:
        return [("object_catalogs", cell), *self._upstream_of_object_catalogs(cell)]

    def _upstream_of_mass_maps(self, cell: str) -> list[PartitionRef]:
        return [("shear_catalogs", cell)]

    def _upstream_of_mass_fits(self, cell: str) -> list[PartitionRef]:
        return [("shear_catalogs", cell), ("mass_maps", cell)]

    def _upstream_of_transients(self, cell: str) -> list[PartitionRef]:
        pairs = [join_key(e, c) for e, c in self.pairs if c == cell]
        return [*(("diffs", p) for p in pairs), *(("streak_masks", p) for p in pairs)]


def choose_valid(candidates: list[CalibrationSet], night: str) -> CalibrationSet | None:
    """The calibration set in force on `night` (ISO date): the newest that began by then, else the oldest there is."""
    ordered = sorted(candidates, key=lambda one: one.valid_from)
    begun = [one for one in ordered if one.valid_from <= night]
    return begun[-1] if begun else (ordered[0] if ordered else None)
