"""Building a `Survey`, the immutable picture of one collection, from the ledger.

A collection holds the exposures that are members of its runs (as long as it has no runs, all that was ingested), the
cells of those runs, and the masters those exposures are calibrated with. Who is made from whom follows from it in
`model/survey.py`. The parts made here are also `snapshot.py`'s.
"""

import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.ledger.calibrations import list_usable, read_calibrations
from lap_assets.ledger.database import is_among
from lap_assets.ledger.definitions import read_exposures, read_reference_catalogs
from lap_assets.ledger.records import EXPOSURE_FIELDS, RunRow
from lap_assets.ledger.runs import decode_neighbours, find_tessellation, read_runs
from lap_assets.ledger.tables import exposure, lap_exp, lap_run
from lap_assets.model.associations import REJECTED, choose_master, name_band
from lap_assets.model.products import MASTERS
from lap_assets.model.survey import CalibrationSet, Exposure, Member, PartitionRef, Run, Survey, group_sets
from lap_assets.model.tessellation import ProjectionCell

Rosters = Mapping[int, list[Member]]


@contextmanager
def without_collector() -> Iterator[None]:
    """Make very many small lasting objects without the garbage collector walking them again and again.

    It takes half of the time otherwise; what is made here has no cycles.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def build_survey(connection: Connection, collection: str, lean: bool = False) -> Survey:
    """The survey of one collection, whether or not its sequence is defined yet.

    Of a retired run only the cell and band are left; exposures only such runs have are left out. A lean survey has
    exposures without chips, and calibration sets without frames' footprints.
    """
    rows = read_runs(connection, collection)
    alive = [row for row in rows if not row.retired]
    chosen = (lap_run.c.seq_id == rows[0].seq_id) & lap_run.c.retired.is_(False) if rows else sa.true()
    rosters = read_rosters(connection, chosen) if alive else {}
    runs = tuple(make_run(row, rosters.get(row.lap_id, ())) for row in rows)
    if lean:
        exposures = read_lean_exposures(connection, chosen if rows else None)
    else:
        used = {one.exposure for roster in rosters.values() for one in roster}
        exposures = read_exposures(connection, used if rows else None)
    sets = read_calibrations(connection, keys=list_usable(connection) if lean else None)
    calibrations, withdrawn = split_sets(sets)
    return Survey(
        collection=collection,
        exposures=exposures,
        cells=read_cells(connection, rows),
        runs=runs,
        calibrations=calibrations,
        associations=associate(exposures.values(), calibrations),
        reference_catalogs=read_reference_catalogs(connection),
        withdrawn=withdrawn,
    )


def make_run(row: RunRow, roster: Iterable[Member]) -> Run:
    """A run with its roster, dropped members in the roster only."""
    everyone = tuple(roster)
    return Run(
        row.lap_id, row.cell, row.band, tuple(one.exposure for one in everyone if one.data_state != "drop"), row.state,
        everyone, row.priority, row.paused, row.fault, row.settled, row.cleaned, row.label, row.dist_group,
    )  # fmt: skip


def read_rosters(connection: Connection, chosen: sa.ColumnElement[bool]) -> Rosters:
    """Members of the runs that a condition on `lap_run` chooses, by run, sorted by exposure."""
    columns = (
        lap_exp.c.lap_id, lap_exp.c.exp_id, lap_exp.c.chip_id, lap_exp.c.pair_id, lap_exp.c.private,
        lap_exp.c.pairwise, lap_exp.c.active, lap_exp.c.data_state, sa.cast(lap_exp.c.neighbours, sa.Text),
        lap_exp.c.reason,
    )  # fmt: skip
    query = sa.select(*columns).join(lap_run, lap_run.c.lap_id == lap_exp.c.lap_id).where(chosen)
    rosters: dict[int, list[Member]] = defaultdict(list)
    cells: dict[str, tuple[str, ...]] = {}  # few lists occur many times
    for row in connection.execute(query).all():
        lap_id, id_, chip_id, pair_id, private, pairwise, active, data_state, text, reason = row
        around = cells.get(text)
        if around is None:
            around = cells[text] = decode_neighbours(text)
        pair = pair_id.rpartition("/")[2] if pair_id else ""
        rosters[lap_id].append(Member(id_, chip_id or "", pair, private, pairwise, active, data_state, around, reason))
    for roster in rosters.values():
        roster.sort(key=lambda one: one.exposure)
    return rosters


def read_lean_exposures(connection: Connection, chosen: sa.ColumnElement[bool] | None = None) -> dict[str, Exposure]:
    """Exposures without chips, by id, sorted; those in the runs that a condition chooses, or all."""
    columns = [exposure.c[name] for name in (*EXPOSURE_FIELDS, "files_sha256")]
    query = sa.select(*columns)
    if chosen is not None:
        used = sa.select(lap_exp.c.exp_id).join(lap_run, lap_run.c.lap_id == lap_exp.c.lap_id).where(chosen)
        query = query.where(is_among(connection, exposure.c.id, used))
    return {row[0]: Exposure(*row[:-1], (), row[-1]) for row in sorted(connection.execute(query).all())}


def read_cells(connection: Connection, rows: Iterable[RunRow]) -> dict[str, ProjectionCell]:
    """Projection cells of runs by name, sorted."""
    used = sorted({(row.cell, row.tessellation) for row in rows})
    skies = {name: find_tessellation(connection, name)[1] for name in sorted({sky for _, sky in used})}
    return {cell: skies[sky].cell(cell) for cell, sky in used}


def split_sets(
    sets: Mapping[str, CalibrationSet],
) -> tuple[dict[str, CalibrationSet], dict[str, CalibrationSet]]:
    """(those that may be used, those that were rejected, without frames) of calibration sets, by key."""
    usable = {key: one for key, one in sets.items() if one.state != REJECTED}
    return usable, {key: replace(one, frames=()) for key, one in sets.items() if one.state == REJECTED}


def associate(
    exposures: Iterable[Exposure], calibrations: Mapping[str, CalibrationSet]
) -> dict[str, tuple[PartitionRef, ...]]:
    """The masters each raw exposure is calibrated with, of every kind there is, of its band where that matters.

    Found once for all exposures of a camera, band, night and temperature (to the degree).
    """
    sets_of = group_sets(calibrations.values())
    found: dict[tuple[str, str, str, int | None], tuple[PartitionRef, ...]] = {}
    chosen: dict[str, tuple[PartitionRef, ...]] = {}
    for one in exposures:
        if one.kind != "raw":
            continue
        degree = None if one.temperature_c is None else round(one.temperature_c)
        use = (one.camera, one.band, one.night, degree)
        if use not in found:
            found[use] = tuple(_find_masters(sets_of, *use))
        chosen[one.id] = found[use]
    return chosen


def _find_masters(
    sets_of: Mapping[tuple[str, str, str], Sequence[CalibrationSet]], camera: str, band: str, night: str,
    temperature_c: float | None,
) -> Iterator[PartitionRef]:  # fmt: skip
    for kind, product in MASTERS.items():
        sets = sets_of.get((camera, kind, name_band(kind, band)), ())
        master = choose_master(sets, night, temperature_c)
        if master is not None:
            yield product, master.key
