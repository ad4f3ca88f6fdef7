"""Rows and journal entries from the records of `model/`, and back: the one place that knows both forms.

Everything here is plain values; SQL is in the modules that use it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from lap_assets.model.ids import DataId
from lap_assets.model.quality import QualityRow
from lap_assets.model.sphere import separation_deg, unit_vectors
from lap_assets.model.survey import CalibrationSet, ChipFile, Exposure, hash_files


class Added(NamedTuple):
    """What became of records handed to the ledger.

    Attributes
    ----------
    added : int
        New, or completed by what was not known of them (another chip, a new place of the same file).
    unchanged : int
    conflicts : tuple of (path, reason)
        Those that contradict what is known; nothing of them was written.
    """

    added: int
    unchanged: int
    conflicts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class UnitRow:
    """One row of the unit index."""

    data_id: DataId
    state: str
    content: str
    bytes: int = 0
    reason: str = ""
    seconds: float = 0.0
    run_id: str = ""
    updated: float = 0.0


@dataclass(frozen=True)
class ManifestRow:
    """What the ledger wants to know of a manifest when it is rebuilt; `updated` is when the manifest was written."""

    data_id: DataId
    state: str
    content_sha256: str = ""
    bytes: int = 0
    reason: str = ""
    seconds: float = 0.0
    run_id: str = ""
    fence: int = 0
    updated: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRow:
    """One row of `lap_run` (LAP-02), with the names of its sequence and tessellation."""

    lap_id: int
    sequence: str
    tessellation: str
    cell: str
    band: str
    state: str
    registered: float
    fault: int = 0
    label: str = ""
    final_sass_id: int | None = None
    dist_group: str = ""
    priority: int = 0
    paused: bool = False
    fault_reason: str = ""
    settled: bool = False
    cleaned: bool = False
    retired: bool = False
    seq_id: int = 0
    tess_id: int = 0


@dataclass(frozen=True)
class SequenceRow:
    """One row of `lap_sequence` (LAP-01)."""

    seq_id: int
    name: str
    description: str = ""


@dataclass(frozen=True)
class MemberRow:
    """One row of `lap_exp` (LAP-07); `neighbours` are the other cells that the exposure overlaps."""

    lap_id: int
    exposure: str
    chip_id: str | None = None
    pair_id: str | None = None
    private: bool = False
    pairwise: bool = False
    active: bool = True
    data_state: str = "new"
    neighbours: tuple[str, ...] = ()
    reason: str = ""


QUALITY_FIELDS = tuple(one.name for one in fields(QualityRow))
EXPOSURE_FIELDS = tuple(one.name for one in fields(Exposure) if one.name not in ("chips", "files_sha256"))


def exposure_values(one: Exposure) -> dict[str, Any]:
    """Column values of an exposure, without its chips and what follows from them."""
    return {name: getattr(one, name) for name in EXPOSURE_FIELDS}


def derived_values(one: Exposure) -> dict[str, Any]:
    """Values of the columns that follow from the chips of an exposure."""
    corners = [corner for chip in one.chips for corner in chip.footprint]
    vectors = unit_vectors([ra for ra, _ in corners], [dec for _, dec in corners])
    reach = separation_deg(vectors, unit_vectors(one.ra_deg, one.dec_deg)).max()
    return {"files_sha256": hash_files(one.chips), "reach_deg": float(reach)}


def chip_values(one: ChipFile) -> dict[str, Any]:
    """Column values of a chip file of an exposure."""
    return asdict(one) | {"footprint": [list(corner) for corner in one.footprint]}


def frame_values(one: ChipFile) -> dict[str, Any]:
    """Column values of a chip file of a calibration frame."""
    values = chip_values(one)
    return {name: values[name] for name in ("path", "chip", "hdu", "footprint", "sha256")}


def read_chip(values: Mapping[str, Any]) -> ChipFile:
    """A chip file from column values or a journal entry."""
    known = {one.name: values[one.name] for one in fields(ChipFile) if one.name in values}
    return ChipFile(**known | {"footprint": tuple((float(ra), float(dec)) for ra, dec in values["footprint"])})


def write_exposures(exposures: Iterable[Exposure]) -> list[dict[str, Any]]:
    """Journal form of exposures."""
    return [exposure_values(one) | {"chips": [chip_values(chip) for chip in one.chips]} for one in exposures]


def read_exposure(values: Mapping[str, Any]) -> Exposure:
    """An exposure from its journal form."""
    return Exposure(**dict(values) | {"chips": tuple(read_chip(chip) for chip in values["chips"])})


def write_calibrations(sets: Iterable[CalibrationSet]) -> list[dict[str, Any]]:
    """Journal form of calibration sets."""
    return [
        {"key": one.key, "camera": one.camera, "kind": one.kind, "band": one.band, "valid_from": one.valid_from}
        | {"valid_to": one.valid_to, "temperature_c": one.temperature_c}
        | {"frames": [frame_values(frame) for frame in one.frames]}
        for one in sets
    ]


def read_calibration(values: Mapping[str, Any]) -> CalibrationSet:
    """A calibration set from its journal form."""
    return CalibrationSet(**dict(values) | {"frames": tuple(read_chip(frame) for frame in values["frames"])})
