"""Runs and their members: which exposures one projection cell in one band of one sequence is made from.

Members are chosen here once, by footprint, and are rows ever after. Each function works inside a transaction it is
given; which runs to work on when is `lap/`'s.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.errors import BadInput, NotFound
from lap_assets.ledger.definitions import read_exposures
from lap_assets.ledger.leases import take_number
from lap_assets.ledger.records import MemberRow, Region, RunRow
from lap_assets.ledger.tables import lap_exp, lap_run, lap_sequence, tessellation
from lap_assets.model.sphere import separation_deg, unit_vectors
from lap_assets.model.survey import Exposure
from lap_assets.model.tessellation import Tessellation, load_tessellation


def find_sequence(connection: Connection, name: str) -> int:
    """Number of a sequence; raises `NotFound`."""
    number = connection.execute(
        sa.select(lap_sequence.c.seq_id).where(lap_sequence.c.name == name)
    ).scalar_one_or_none()
    if number is None:
        raise NotFound(f"no sequence {name!r} in the ledger: define it first (a run defines its own)")
    return number


def find_tessellation(connection: Connection, name: str) -> tuple[int, Tessellation]:
    """Number and tessellation of a name; raises `NotFound`."""
    row = connection.execute(sa.select(tessellation).where(tessellation.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"no tessellation {name!r} in the ledger: add its definition first")
    return row.tess_id, load_tessellation(row.definition)


def choose_exposures(
    exposures: Iterable[Exposure], bands: Collection[str] | None, obs_mode: str | None, cone: Region | None
) -> list[Exposure]:
    """Exposures of these bands and this mode whose pointing or any chip corner lies in the cone; None: all."""
    chosen = []
    for one in exposures:
        if (bands is not None and one.band not in bands) or (obs_mode is not None and one.obs_mode != obs_mode):
            continue
        if cone is not None:
            points = [(one.ra_deg, one.dec_deg), *(corner for chip in one.chips for corner in chip.footprint)]
            vectors = unit_vectors([ra for ra, _ in points], [dec for _, dec in points])
            if separation_deg(vectors, unit_vectors(cone.ra_deg, cone.dec_deg)).min() > cone.radius_deg:
                continue
        chosen.append(one)
    return chosen


def overlap_exposures(
    exposures: Iterable[Exposure], sky: Tessellation, cells: Collection[str] | None
) -> dict[tuple[str, str], list[str]]:
    """Exposure ids by (cell, band): those of which any chip shares area with the cell; sorted."""
    for cell in cells or ():
        sky.cell(cell)  # refuses a name that is none
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in exposures:
        for cell in sky.cells_overlapping_any([chip.footprint for chip in one.chips]):
            if cells is None or cell in cells:
                members[cell, one.band].append(one.id)
    return {key: sorted(members[key]) for key in sorted(members)}


def write_runs(
    connection: Connection, now: float, sequence: str, sky_name: str, members: dict[tuple[str, str], list[str]],
    label: str, dist_group: str,
) -> list[tuple[RunRow, list[MemberRow]]]:  # fmt: skip
    """Insert runs, or add members to those that are there; returns each run that changed with its new members.

    A run that was complete is open again when it gains members.
    """
    seq_id, (tess_id, _) = find_sequence(connection, sequence), find_tessellation(connection, sky_name)
    known = {(run.cell, run.band): run for run in read_runs(connection, sequence) if run.tessellation == sky_name}
    chip_ids = _read_chip_ids(connection, seq_id)
    changed = []
    for (cell, band), exposures in members.items():
        run = known.get((cell, band))
        there = {one.exposure for one in read_members(connection, run.lap_id)} if run else set()
        new = [id_ for id_ in exposures if id_ not in there]
        if run is None:
            number = take_number(connection, "lap_id")
            run = RunRow(number, sequence, sky_name, cell, band, "new", now, 0, label, None, dist_group)
            insert_run(connection, seq_id, tess_id, run)
        elif not new:
            continue
        elif run.state == "full":
            connection.execute(sa.update(lap_run).where(lap_run.c.lap_id == run.lap_id).values(state="run"))
        rows = [MemberRow(run.lap_id, id_, chip_ids.get(id_)) for id_ in new]
        insert_members(connection, rows)
        changed.append((run, rows))
    return changed


def insert_run(connection: Connection, seq_id: int, tess_id: int, run: RunRow) -> None:
    """Insert one row of `lap_run`."""
    values = {
        "lap_id": run.lap_id, "seq_id": seq_id, "tess_id": tess_id, "projection_cell": run.cell, "filter": run.band,
        "state": run.state, "registered": run.registered, "fault": run.fault, "label": run.label,
        "final_sass_id": run.final_sass_id, "dist_group": run.dist_group,
    }  # fmt: skip
    connection.execute(sa.insert(lap_run).values(values))


def insert_members(connection: Connection, rows: Sequence[MemberRow]) -> None:
    """Insert rows of `lap_exp`."""
    if rows:
        values = [
            {
                "lap_id": one.lap_id, "exp_id": one.exposure, "chip_id": one.chip_id, "pair_id": one.pair_id,
                "private": one.private, "pairwise": one.pairwise, "active": one.active, "data_state": one.data_state,
            }
            for one in rows
        ]  # fmt: skip
        connection.execute(sa.insert(lap_exp), values)


def _read_chip_ids(connection: Connection, seq_id: int) -> dict[str, str]:
    """chip_id by exposure, where an earlier run of the sequence has one (LAP-12)."""
    query = (
        sa.select(lap_exp.c.exp_id, sa.func.min(lap_exp.c.chip_id))
        .join(lap_run, lap_run.c.lap_id == lap_exp.c.lap_id)
        .where(lap_run.c.seq_id == seq_id, lap_exp.c.chip_id.is_not(None))
        .group_by(lap_exp.c.exp_id)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def read_runs(connection: Connection, sequence: str | None = None) -> list[RunRow]:
    """Runs in order of their numbers; of all sequences or one."""
    query = (
        sa.select(lap_run, lap_sequence.c.name.label("sequence"), tessellation.c.name.label("sky"))
        .join(lap_sequence, lap_sequence.c.seq_id == lap_run.c.seq_id)
        .join(tessellation, tessellation.c.tess_id == lap_run.c.tess_id)
        .order_by(lap_run.c.lap_id)
    )
    if sequence is not None:
        query = query.where(lap_sequence.c.name == sequence)
    return [
        RunRow(
            row.lap_id, row.sequence, row.sky, row.projection_cell, row.filter, row.state, row.registered, row.fault,
            row.label, row.final_sass_id, row.dist_group,
        )
        for row in connection.execute(query)
    ]  # fmt: skip


def read_members(connection: Connection, *lap_ids: int) -> list[MemberRow]:
    """Members of runs, by run and exposure."""
    query = sa.select(lap_exp).where(lap_exp.c.lap_id.in_(lap_ids)).order_by(lap_exp.c.lap_id, lap_exp.c.exp_id)
    return [
        MemberRow(
            row.lap_id, row.exp_id, row.chip_id, row.pair_id, row.private, row.pairwise, row.active, row.data_state
        )
        for row in connection.execute(query)
    ]  # fmt: skip


def drop_member(connection: Connection, lap_id: int, exposure: str) -> None:
    """Never use an exposure again in this run (LAP-24); raises `NotFound`."""
    chosen = (lap_exp.c.lap_id == lap_id, lap_exp.c.exp_id == exposure)
    changed = connection.execute(sa.update(lap_exp).where(*chosen).values(data_state="drop", active=False))
    if not changed.rowcount:
        raise NotFound(f"exposure {exposure!r} is no member of run {lap_id}")


def set_run_state(connection: Connection, lap_id: int, state: str) -> None:
    """Set the state of a run; a complete run's members are no longer active (LAP-32). Raises `BadInput`, `NotFound`."""
    if state not in ("new", "run", "full"):
        raise BadInput(f"run state {state!r} is none of new, run, full")
    if not connection.execute(sa.update(lap_run).where(lap_run.c.lap_id == lap_id).values(state=state)).rowcount:
        raise NotFound(f"no run {lap_id} in the ledger")
    if state == "full":
        connection.execute(sa.update(lap_exp).where(lap_exp.c.lap_id == lap_id).values(active=False))


def select_members(
    connection: Connection, sky: Tessellation, bands: Collection[str] | None, cells: Collection[str] | None,
    obs_mode: str | None, cone: Region | None,
) -> dict[tuple[str, str], list[str]]:  # fmt: skip
    """Exposure ids by (cell, band) for a selection of what was ingested."""
    chosen = choose_exposures(read_exposures(connection).values(), bands, obs_mode, cone)
    return overlap_exposures(chosen, sky, cells)
