"""What is to be processed: exposures, the runs that use them, and from both the partitions and who is made from whom.

A `Survey` is an immutable picture of the ledger for one collection, handed to planning, scheduling and to the
Dagster definitions alike, so that all three agree on what a stack is made of: the members of its run, never bare
geometry. No I/O here; `ledger/` builds it.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

from lap_assets.model.associations import (
    NEEDED,
    VIRTUAL,
    Association,
    Choice,
    choose_master,
    describe_lack,
    find_previous,
    name_band,
    score_set,
)
from lap_assets.model.ids import JOIN
from lap_assets.model.products import CALIBRATIONS, CELL_BANDS, CELLS, EXPOSURE_CELLS, EXPOSURES, MASTERS, get_product
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
    """One exposure of a mosaic camera. `kind` is `raw` or `calibrated`; `night` is the local date at its start.

    `temperature_c` is that of the detector, None where the headers do not say.
    """

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
    temperature_c: float | None = None
    chips: tuple[ChipFile, ...] = ()
    files_sha256: str = ""  # `hash_files` of its chips, where they themselves are left out of the picture

    @cached_property
    def content(self) -> str:
        """Hash of its files, whether or not they are in the picture."""
        return self.files_sha256 or hash_files(self.chips)


@dataclass(frozen=True)
class CalibrationSet:
    """The frames one master calibration is built from, and how far it may be used.

    Attributes
    ----------
    key : str
        Its partition key `camera|kind|band|valid_from`.
    kind : str
        One of `products.MASTERS`: bias, dark, flat, sky, fringe.
    band : str
        `all` for biases and darks.
    valid_from, valid_to : str
        ISO dates of the first and last night; `valid_to` is empty where a later set ends it.
    frames : tuple of ChipFile
        One entry per frame and chip.
    state : str
        `virtual` (not made yet), `built`, `certified` or `rejected` (PHX-02).
    reason : str
        Why it is not certified.
    temperature_c : float or None
        Of the detector, mean over the frames; None where headers do not say.
    judged : str
        Content of the master that the state was given to; empty: of none yet.
    """

    key: str
    camera: str
    kind: str
    band: str
    valid_from: str
    frames: tuple[ChipFile, ...] = ()
    state: str = "virtual"
    valid_to: str = ""
    reason: str = ""
    temperature_c: float | None = None
    judged: str = ""


@dataclass(frozen=True)
class Member:
    """An exposure in a run: one row of `lap_exp` (LAP-07, LAP-08).

    Attributes
    ----------
    chip_id : str
        The chip-processing that is used, `collection/exposure`; empty: none is queued yet.
    pair : str
        Exposure of the companion (LAP has its chip_id); empty: none.
    neighbours : tuple of str
        The other projection cells of the tessellation that the exposure overlaps.
    reason : str
        Why it was dropped.
    """

    exposure: str
    chip_id: str = ""
    pair: str = ""
    private: bool = False
    pairwise: bool = False
    active: bool = True
    data_state: str = "new"
    neighbours: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Run:
    """One LAP run: one projection cell in one band of one sequence.

    Attributes
    ----------
    members : tuple of str
        Exposures it is made from: dropped ones left out.
    roster : tuple of Member
        All that were ever defined, dropped ones included, by exposure; empty where only `members` are known.
    fault : int
        Why it ended without being full; 0: it did not.
    settled, cleaned : bool
        What is made from its stacks is made, too; nothing of it is left to be cleaned.
    """

    lap_id: int
    cell: str
    band: str
    members: tuple[str, ...]
    state: str = "new"
    roster: tuple[Member, ...] = ()
    priority: int = 0
    paused: bool = False
    fault: int = 0
    settled: bool = False
    cleaned: bool = False
    label: str = ""
    dist_group: str = ""

    @property
    def everyone(self) -> tuple[str, ...]:
        """All exposures ever defined in it, sorted."""
        return tuple(one.exposure for one in self.roster) if self.roster else tuple(sorted(self.members))

    @cached_property
    def member(self) -> Mapping[str, Member]:
        """Its roster by exposure."""
        return {one.exposure: one for one in self.roster}


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
    diff_against : "nights" or "pair"
        What a paired exposure is subtracted from: a template of the other nights, or its companion's warp.
    kinds : mapping of camera to tuple of str
        Kinds of masters that the steps of a camera ask for; of a camera that is not there: all.
    withdrawn : mapping of calibration key to CalibrationSet
        Those that were rejected, without frames: used by nothing.
    """

    collection: str
    exposures: Mapping[str, Exposure] = field(default_factory=dict)
    cells: Mapping[str, ProjectionCell] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    calibrations: Mapping[str, CalibrationSet] = field(default_factory=dict)
    associations: Mapping[str, tuple[PartitionRef, ...]] = field(default_factory=dict)
    reference_catalogs: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)
    diff_against: str = "nights"
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    withdrawn: Mapping[str, CalibrationSet] = field(default_factory=dict)

    @cached_property
    def run_of(self) -> Mapping[tuple[str, str], Run]:
        """Run by (cell, band)."""
        return {(run.cell, run.band): run for run in self.runs}

    @cached_property
    def bands_of(self) -> Mapping[str, tuple[str, ...]]:
        """Bands with a run that was not given up, by cell, sorted."""
        bands: dict[str, list[str]] = {}
        for run in self.runs:
            if not run.fault:
                bands.setdefault(run.cell, []).append(run.band)
        return {cell: tuple(sorted(names)) for cell, names in sorted(bands.items())}

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(exposure, cell) of every run member, dropped ones included, run by run."""
        return tuple((exposure, run.cell) for run in self.runs for exposure in run.everyone)

    def members(self, cell: str, band: str) -> tuple[str, ...]:
        """Exposures of the run of this cell and band, sorted; empty where there is no run."""
        run = self.run_of.get((cell, band))
        return tuple(sorted(run.members)) if run else ()

    def used_on(self, cell: str) -> tuple[str, ...]:
        """Exposures of all runs of a cell that were not given up, dropped members left out; sorted."""
        return tuple(sorted(e for band in self.bands_of.get(cell, ()) for e in self.run_of[cell, band].members))

    def partitions(self, product: str) -> tuple[str, ...]:
        """All partition keys of a product, in the order of `partition_sets`."""
        kind = get_product(product).partitions
        return self._calibration_keys(product) if kind == CALIBRATIONS else self.partition_sets[kind]

    @cached_property
    def partition_sets(self) -> Mapping[str, tuple[str, ...]]:
        """Partition keys of each partition set (architecture, section 3), run by run, then the rest sorted.

        In the order of the runs, what is new of a run stands together, so that one Dagster run over a range does it.
        """
        used = dict.fromkeys(chain.from_iterable(run.everyone for run in self.runs))
        return {
            EXPOSURES: tuple(dict.fromkeys(chain(used, sorted(self.exposures)))),
            EXPOSURE_CELLS: tuple(f"{exposure}{JOIN}{cell}" for exposure, cell in self.pairs),
            CELL_BANDS: tuple(f"{run.cell}{JOIN}{run.band}" for run in self.runs),
            CELLS: tuple(dict.fromkeys(run.cell for run in self.runs)),
            CALIBRATIONS: tuple(sorted(self.calibrations)),
        }

    def _calibration_keys(self, product: str) -> tuple[str, ...]:
        return tuple(key for key, one in sorted(self.calibrations.items()) if MASTERS[one.kind] == product)

    def outside_facts(self, product: str, partition: str) -> list:
        """What a partition depends on that is no product: its files, camera and reference catalogue, by content."""
        if product in MASTERS.values():
            one = self.calibrations[partition]
            return [self.outside.get(f"camera/{one.camera}", ""), [[f.chip, f.sha256] for f in one.frames]]
        if product not in ("chips", "solutions"):
            return []
        exposure = self.exposures[partition]
        facts: list = [self.outside.get(f"camera/{exposure.camera}", "")]
        if product == "chips":
            return [*facts, exposure.content]
        name = self.reference_catalogs.get(exposure.band, self.reference_catalogs.get("*", ""))
        return [*facts, name, self.outside.get(f"refcat/{name}", ""), exposure.content]

    def upstream(self, product: str, partition: str) -> tuple[PartitionRef, ...]:
        """What a partition is made from, as (product, partition key), in a fixed order."""
        if product in MASTERS.values():
            return tuple(self._upstream_of_master(product, partition))
        parts = partition.split("|")
        return tuple(getattr(self, f"_upstream_of_{product}")(*parts))

    def companion(self, exposure: str, cell: str) -> str:
        """The exposure whose warp this one is subtracted from on a cell; empty where that is a template (LAP-28)."""
        if self.diff_against != "pair":
            return ""
        run = self.run_of.get((cell, self.exposures[exposure].band))
        one = run.member.get(exposure) if run else None
        return one.pair if one and one.pairwise and one.pair in run.members else ""

    def reads(self, product: str, partition: str) -> tuple[PartitionRef, ...]:
        """The partitions whose files are opened when one is made: not those that only have to come first.

        A difference's template is the stack of its cell less the warps of its night, or where there is no stack the
        warps of the other nights: both are counted.
        """
        if product != "diffs":
            return self.upstream(product, partition)
        exposure, cell = partition.split(JOIN)
        companion, band = self.companion(exposure, cell), self.exposures[exposure].band
        if companion:
            return self.upstream(product, partition)
        warps = (("warps", f"{one}{JOIN}{cell}") for one in self.members(cell, band))
        return tuple(dict.fromkeys((*self.upstream(product, partition), *warps)))

    # ---- master calibrations

    @cached_property
    def sets_of(self) -> Mapping[tuple[str, str, str], tuple[CalibrationSet, ...]]:
        """Calibration sets that may be used by (camera, kind, band), in the order of their validity."""
        return group_sets(self.calibrations.values())

    def association(self, exposure: str) -> Association:
        """The masters of a raw exposure, how well they fit, and what it waits for (PHX-01, PHX-08)."""
        one = self.exposures[exposure]
        chosen = [self.calibrations[key] for _, key in self.associations.get(exposure, ()) if key in self.calibrations]
        choices = tuple(
            Choice(c.kind, c.key, c.state, score_set(c, one.night, one.temperature_c), c.reason) for c in chosen
        )
        return Association(exposure, choices, self.find_lacks(one, {c.kind for c in chosen}))

    def find_lacks(self, one: Exposure, have: Collection[str]) -> tuple[str, ...]:
        """Why there is no master of a kind that a raw exposure needs, one line each; `have` are the kinds there are."""
        asked = self.kinds.get(one.camera, tuple(MASTERS)) if one.kind == "raw" else ()
        missing = [kind for kind in asked if kind in NEEDED and kind not in have]
        return tuple(describe_lack(kind, one.band, one.night, self.find_withdrawn(one, kind)) for kind in missing)

    def find_withdrawn(self, one: Exposure, kind: str) -> CalibrationSet | None:
        """The master of a kind that an exposure would have, were it not rejected."""
        found = self._withdrawn_of.get((one.camera, kind, name_band(kind, one.band)), ())
        again = [replace(each, state=VIRTUAL) for each in found]
        nearest = choose_master(again, one.night, one.temperature_c)
        return self.withdrawn[nearest.key] if nearest else None

    @cached_property
    def _withdrawn_of(self) -> Mapping[tuple[str, str, str], tuple[CalibrationSet, ...]]:
        return group_sets(self.withdrawn.values())

    def previous_master(self, partition: str) -> str | None:
        """Key of the certified master that a new one is compared with; None: there is none yet."""
        return find_previous(self.calibrations.values(), self.calibrations[partition])

    def _upstream_of_master(self, product: str, partition: str) -> Iterator[PartitionRef]:
        """The masters that another one is made with, in the order in which they build on one another."""
        one, inputs = self.calibrations[partition], get_product(product).inputs
        for kind in self.kinds.get(one.camera, tuple(MASTERS)):
            if MASTERS[kind] in inputs:
                sets = self.sets_of.get((one.camera, kind, name_band(kind, one.band)), ())
                chosen = choose_master(sets, one.valid_from, one.temperature_c)
                if chosen is not None:
                    yield MASTERS[kind], chosen.key

    def _upstream_of_chips(self, exposure: str) -> list[PartitionRef]:
        return list(self.associations.get(exposure, ()))

    def _upstream_of_solutions(self, exposure: str) -> list[PartitionRef]:
        return [("chips", exposure)]

    def _upstream_of_joint_solutions(self, cell: str, band: str) -> list[PartitionRef]:
        return [("solutions", exposure) for exposure in self.members(cell, band)]

    def _upstream_of_warps(self, exposure: str, cell: str) -> list[PartitionRef]:
        band = self.exposures[exposure].band
        return [("chips", exposure), ("solutions", exposure), ("joint_solutions", f"{cell}{JOIN}{band}")]

    def _upstream_of_stacks(self, cell: str, band: str) -> list[PartitionRef]:
        return [("warps", f"{exposure}{JOIN}{cell}") for exposure in self.members(cell, band)]

    def _upstream_of_diffs(self, exposure: str, cell: str) -> list[PartitionRef]:
        band = self.exposures[exposure].band
        warp = ("warps", f"{exposure}{JOIN}{cell}")
        companion = self.companion(exposure, cell)
        if companion:
            return [warp, ("warps", f"{companion}{JOIN}{cell}")]
        return [warp, ("stacks", f"{cell}{JOIN}{band}")]

    def _upstream_of_streak_masks(self, exposure: str, cell: str) -> list[PartitionRef]:
        return [("diffs", f"{exposure}{JOIN}{cell}")]

    def _upstream_of_final_stacks(self, cell: str, band: str) -> list[PartitionRef]:
        pairs = [f"{exposure}{JOIN}{cell}" for exposure in self.members(cell, band)]
        return [
            ("stacks", f"{cell}{JOIN}{band}"),
            *(("warps", p) for p in pairs),
            *(("streak_masks", p) for p in pairs),
        ]

    def _upstream_of_object_catalogs(self, cell: str) -> list[PartitionRef]:
        return [("final_stacks", f"{cell}{JOIN}{band}") for band in self.bands_of.get(cell, ())]

    def _upstream_of_shear_catalogs(self, cell: str) -> list[PartitionRef]:
        return [("object_catalogs", cell), *self._upstream_of_object_catalogs(cell)]

    def _upstream_of_mass_maps(self, cell: str) -> list[PartitionRef]:
        return [("shear_catalogs", cell)]

    def _upstream_of_mass_fits(self, cell: str) -> list[PartitionRef]:
        return [("shear_catalogs", cell), ("mass_maps", cell)]

    def _upstream_of_transients(self, cell: str) -> list[PartitionRef]:
        pairs = [f"{exposure}{JOIN}{cell}" for exposure in self.used_on(cell)]
        return [*(("diffs", p) for p in pairs), *(("streak_masks", p) for p in pairs)]


def hash_files(chips: Iterable[ChipFile]) -> str:
    """Hash over what the files of an exposure hold: bytes and given zero points, by chip."""
    facts = sorted([one.chip, one.sha256, one.zero_point_mag] for one in chips)
    return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()


def group_sets(sets: Iterable[CalibrationSet]) -> dict[tuple[str, str, str], tuple[CalibrationSet, ...]]:
    """Calibration sets by (camera, kind, band), each in the order that `choose_master` wants."""
    groups: dict[tuple[str, str, str], list[CalibrationSet]] = {}
    for one in sorted(sets, key=lambda one: (one.valid_from, one.key)):
        groups.setdefault((one.camera, one.kind, one.band), []).append(one)
    return {use: tuple(group) for use, group in groups.items()}
