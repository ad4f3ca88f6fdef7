"""Building a `Snapshot`: what the ledger knows of what a decision depends on, quickly, at each tick of a sensor.

All queries are bounded by the runs asked for, so that a tick costs what is open, however much history there is. What
only files and settings know is added by `operations/drive.py`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.errors import BadInput
from lap_assets.ledger.calibrations import read_calibrations
from lap_assets.ledger.database import is_among
from lap_assets.ledger.definitions import read_reference_catalogs
from lap_assets.ledger.index import read_states
from lap_assets.ledger.records import RunRow
from lap_assets.ledger.runs import read_runs
from lap_assets.ledger.steps import read_draining
from lap_assets.ledger.survey import (
    Rosters,
    associate,
    make_run,
    read_cells,
    read_lean_exposures,
    read_rosters,
    split_sets,
)
from lap_assets.ledger.tables import lap_exp, lap_run, lap_sequence, lease, partition
from lap_assets.model.decisions import Snapshot
from lap_assets.model.ids import JOIN
from lap_assets.model.products import (
    CALIBRATION_COLLECTION,
    CELL_BANDS,
    CELLS,
    EXPOSURE_CELLS,
    EXPOSURES,
    KEY_PARTS,
    PRODUCTS,
)
from lap_assets.model.states import PartitionState
from lap_assets.model.survey import Exposure, PartitionRef, Survey

LAUNCH = "launch"  # first part of the lease key of a partition that was handed to Dagster
_STACKS = ("stacks", "final_stacks")
_MANY = 500  # keys per IN list


def build_snapshot(
    connection: Connection, now: float, collection: str, scope: str = "open", lap_ids: Collection[int] | None = None
) -> Snapshot:
    """What the ledger knows of the runs of a scope, and of what they need.

    Besides the runs of the scope there are: the other runs of a cell of which all runs of the scope are full; and,
    without members, the runs whose stacks a private exposure waits for; with those to be cleaned, the runs of their
    cells that go on. These, and retired runs, are shown as paused: they count, but nothing is done for them.

    Parameters
    ----------
    scope : "open", "uncleaned" or "all"
        Runs under way, or full whose cell is not settled; ended runs with something left to clean; all there are.
    lap_ids : collection of int, optional
        Only these runs of the scope.

    Raises
    ------
    BadInput
        An unknown scope.
    """
    asked = _read_scope(connection, collection, scope, lap_ids)
    everything = scope == "all" and lap_ids is None
    alone = everything or scope == "uncleaned" or not asked
    whole = asked + ([] if alone else _read_siblings(connection, asked))
    chosen = lap_run.c.lap_id.in_([row.lap_id for row in whole])
    if everything and asked:
        chosen = lap_run.c.seq_id == asked[0].seq_id
    rosters = read_rosters(connection, chosen) if whole else {}
    around = [] if alone else _read_around(connection, whole, rosters)
    if scope == "uncleaned":
        around = _read_open(connection, whole)
    active = {row.lap_id for row in asked if not row.retired}
    runs = sorted((make_run(row, rosters.get(row.lap_id, ())) for row in whole + around), key=lambda run: run.lap_id)
    shown = tuple(run if run.lap_id in active else replace(run, paused=True) for run in runs)
    exposures = read_lean_exposures(connection, chosen) if whole else {}
    return Snapshot(
        survey=Survey(
            collection=collection,
            exposures=exposures,
            cells=read_cells(connection, whole + around),
            runs=shown,
            reference_catalogs=read_reference_catalogs(connection),
            **_read_masters(connection, exposures.values(), everything),
        ),
        states=read_states(connection, collection)
        if everything
        else _read_states(connection, collection, chosen, whole, around),
        busy=_read_busy(connection, now, collection),
        in_use=_read_in_use(connection, collection),
        n_active=_count_active(connection),
        draining=read_draining(connection),
    )


def _read_scope(connection: Connection, collection: str, scope: str, lap_ids: Collection[int] | None) -> list[RunRow]:
    ended = sa.or_(lap_run.c.settled.is_(True), lap_run.c.fault != 0)
    conditions = {
        "open": [lap_run.c.settled.is_(False), lap_run.c.fault == 0],
        "uncleaned": [lap_run.c.cleaned.is_(False), ended],
        "all": [],
    }
    if scope not in conditions:
        raise BadInput(f"scope {scope!r} is none of {', '.join(conditions)}")
    return read_runs(connection, collection, None, lap_ids, conditions[scope])


def _read_siblings(connection: Connection, asked: Sequence[RunRow]) -> list[RunRow]:
    """The other runs, not given up, of the cells of which all runs asked for are full."""
    unfinished = {row.cell for row in asked if row.state != "full"}
    cells = sorted({row.cell for row in asked} - unfinished)
    if not cells:
        return []
    known = {row.lap_id for row in asked}
    conditions = [lap_run.c.projection_cell.in_(cells), lap_run.c.fault == 0]
    rows = read_runs(connection, asked[0].sequence, None, None, conditions)
    return [row for row in rows if row.lap_id not in known]


def _read_open(connection: Connection, whole: Sequence[RunRow]) -> list[RunRow]:
    """The runs under way in the cells of others."""
    if not whole:
        return []
    cells = sorted({row.cell for row in whole})
    conditions = [lap_run.c.projection_cell.in_(cells), lap_run.c.settled.is_(False), lap_run.c.fault == 0]
    return read_runs(connection, whole[0].sequence, None, None, conditions)


def _read_around(connection: Connection, whole: Sequence[RunRow], rosters: Rosters) -> list[RunRow]:
    """The runs in neighbouring cells whose stacks the private exposures of these runs wait for (LAP-28)."""
    wanted = {
        (cell, row.band)
        for row in whole
        if row.state != "new" and not row.settled
        for one in rosters.get(row.lap_id, ())
        if one.private and one.data_state != "drop"
        for cell in one.neighbours
    } - {(row.cell, row.band) for row in whole}
    if not wanted:
        return []
    cells, bands = (sorted(set(names)) for names in zip(*wanted, strict=True))
    conditions = [lap_run.c.projection_cell.in_(cells), lap_run.c.filter.in_(bands)]
    rows = read_runs(connection, whole[0].sequence, None, None, conditions)
    return [row for row in rows if (row.cell, row.band) in wanted]


def _read_masters(connection: Connection, exposures: Iterable[Exposure], everything: bool) -> dict[str, Mapping]:
    """Facts of the survey: the sets these exposures are calibrated with and those the masters are made with; or all."""
    heads, withdrawn = split_sets(read_calibrations(connection, keys=()))
    associations = associate(exposures, heads)
    needed = {ref for refs in associations.values() for ref in refs}
    picture, open_ = Survey("", calibrations=heads), sorted(needed)
    while open_:
        new = set(picture.upstream(*open_.pop())) - needed
        needed |= new
        open_ += sorted(new)
    keys = set(heads) if everything else {key for _, key in needed}
    whole = read_calibrations(connection, keys=keys)
    chosen = {key: whole[key] for key in sorted(keys)}
    return {"calibrations": chosen, "associations": associations, "withdrawn": withdrawn}


def _read_states(
    connection: Connection, collection: str, chosen: sa.ColumnElement[bool], whole: Sequence[RunRow],
    around: Sequence[RunRow],
) -> dict[PartitionRef, PartitionState]:  # fmt: skip
    """The record of every partition that these runs touch, and of the masters."""
    products = {kind: [name for name, one in PRODUCTS.items() if one.partitions == kind] for kind in KEY_PARTS}
    members = sa.select(lap_exp.c.exp_id, lap_run.c.projection_cell).where(chosen)
    members = members.join(lap_run, lap_run.c.lap_id == lap_exp.c.lap_id)
    pairs = members.with_only_columns(lap_exp.c.exp_id + JOIN + lap_run.c.projection_cell)
    here = partition.c.collection == collection
    columns = (
        partition.c.product, partition.c.partition, partition.c.state, partition.c.inputs_sha256,
        partition.c.content_sha256, partition.c.config_sha256, partition.c.attempts, partition.c.reason,
    )  # fmt: skip
    queries = [sa.select(*columns).where(partition.c.collection == CALIBRATION_COLLECTION)]
    for kind, keys in ((EXPOSURES, members.with_only_columns(lap_exp.c.exp_id)), (EXPOSURE_CELLS, pairs)):
        found = is_among(connection, partition.c.partition, keys)
        queries.append(sa.select(*columns).where(here, partition.c.product.in_(products[kind]), found))
    named = (
        (products[CELL_BANDS], [f"{row.cell}{JOIN}{row.band}" for row in whole]),
        (_STACKS, [f"{row.cell}{JOIN}{row.band}" for row in around]),
        (products[CELLS], sorted({row.cell for row in whole})),
    )
    for names, listed in named:
        for start in range(0, len(listed), _MANY):
            batch = partition.c.partition.in_(listed[start : start + _MANY])
            queries.append(sa.select(*columns).where(here, partition.c.product.in_(names), batch))
    states = {}
    for query in queries if whole else queries[:1]:
        for row in connection.execute(query).all():
            states[row[0], row[1]] = PartitionState(*row[2:])
    return states


def _read_busy(connection: Connection, now: float, collection: str) -> dict[PartitionRef, str]:
    """Owner by partition that is being made, or was handed to Dagster; who makes it is named before who launched it."""
    busy: dict[PartitionRef, str] = {}
    query = sa.select(lease.c.key, lease.c.owner).where(lease.c.expires > now)
    for key, owner in connection.execute(query.order_by(lease.c.key)):
        parts = key.split("/")
        launched = len(parts) == 4 and parts[0] == LAUNCH
        parts = parts[1:] if launched else parts
        if len(parts) == 3 and parts[0] in (collection, CALIBRATION_COLLECTION):
            ref = (parts[1], parts[2])
            busy[ref] = busy.get(ref, owner) if launched else owner
    return busy


def _read_in_use(connection: Connection, collection: str) -> frozenset[str]:
    """Exposures that an unfinished run of the collection uses."""
    query = (
        sa.select(lap_exp.c.exp_id)
        .join(lap_run, lap_run.c.lap_id == lap_exp.c.lap_id)
        .join(lap_sequence, lap_sequence.c.seq_id == lap_run.c.seq_id)
        .where(lap_exp.c.active.is_(True), lap_sequence.c.name == collection)
    )
    return frozenset(connection.execute(query).scalars())


def _count_active(connection: Connection) -> int:
    """Runs under way in all sequences; paused ones make room for others."""
    alive = (lap_run.c.settled.is_(False), lap_run.c.fault == 0, lap_run.c.paused.is_(False), lap_run.c.state != "full")
    return connection.execute(sa.select(sa.func.count()).select_from(lap_run).where(*alive)).scalar_one()
