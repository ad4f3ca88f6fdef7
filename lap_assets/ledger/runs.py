"""Runs and their members: which exposures one projection cell in one band of one sequence is made from.

Rows are written and read here; which exposures overlap which cell is `selection.py`'s, what becomes of a run later
`steps.py`'s. Each function works inside a transaction it is given.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.errors import BadInput, Conflict, NotFound
from lap_assets.ledger.leases import take_number
from lap_assets.ledger.records import MemberRow, RunRow
from lap_assets.ledger.selection import Overlaps
from lap_assets.ledger.steps import CANCELLED
from lap_assets.ledger.tables import RUN_STATES, lap_exp, lap_run, lap_sequence, tessellation
from lap_assets.model.ids import JOIN, check_name
from lap_assets.model.products import KEY_PARTS, PRODUCTS
from lap_assets.model.survey import PartitionRef
from lap_assets.model.tessellation import Tessellation, load_tessellation

_MANY = 500  # ids per IN list
_NO_CELLS: tuple[str, ...] = ()


def find_sequence(connection: Connection, name: str) -> int:
    """Number of a sequence; raises `NotFound`."""
    number = connection.execute(
        sa.select(lap_sequence.c.seq_id).where(lap_sequence.c.name == name)
    ).scalar_one_or_none()
    if number is None:
        raise NotFound(f"no sequence {name!r} in the ledger: define it first (lap sequence define NAME)")
    return number


def find_tessellation(connection: Connection, name: str) -> tuple[int, Tessellation]:
    """Number and tessellation of a name; raises `NotFound`."""
    row = connection.execute(sa.select(tessellation).where(tessellation.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"no tessellation {name!r} in the ledger: add its definition first")
    return row.tess_id, load_tessellation(row.definition)


def write_run(connection: Connection, run: RunRow, exposures: Overlaps) -> list[MemberRow]:
    """Insert one new run with its members, numbers found already; returns the members (LAP-10, LAP-12, LAP-13)."""
    check_name(run.band, "filter")
    insert_run(connection, run)
    chip_ids = _read_chip_ids(connection, run.seq_id, exposures)
    rows = [
        MemberRow(run.lap_id, id_, chip_ids.get(id_), neighbours=_neighbours(cells, run.cell))
        for id_, cells in sorted(exposures.items())
    ]
    insert_members(connection, rows)
    return rows


def check_new(connection: Connection, seq_id: int, tess_id: int, cell: str, band: str) -> None:
    """Raise `Conflict` if the run is defined already."""
    here = (lap_run.c.seq_id == seq_id, lap_run.c.tess_id == tess_id)
    query = sa.select(lap_run.c.lap_id).where(*here, lap_run.c.projection_cell == cell, lap_run.c.filter == band)
    known = connection.execute(query).scalar_one_or_none()
    if known is not None:
        raise Conflict(f"cell {cell} in {band} is run {known} of this sequence already; use it, or another sequence")


def write_runs(
    connection: Connection, now: float, sequence: str, sky_name: str, members: Mapping[tuple[str, str], Overlaps],
    label: str, dist_group: str,
) -> list[tuple[RunRow, list[MemberRow]]]:  # fmt: skip
    """Insert runs, or add members to those that are there; returns each run that changed with its new members.

    A run that was complete is open again when it gains members.
    """
    seq_id, (tess_id, _) = find_sequence(connection, sequence), find_tessellation(connection, sky_name)
    known = {(run.cell, run.band): run for run in read_runs(connection, sequence) if run.tessellation == sky_name}
    there: dict[int, set[str]] = defaultdict(set)
    for one in read_members(connection, *sorted(known[key].lap_id for key in members if key in known)):
        there[one.lap_id].add(one.exposure)
    changed = []
    for (cell, band), overlaps in members.items():
        run = known.get((cell, band))
        if run is None:
            number = take_number(connection, "lap_id")
            run = RunRow(number, sequence, sky_name, cell, band, "new", now, label=label, dist_group=dist_group,
                         seq_id=seq_id, tess_id=tess_id)  # fmt: skip
            changed.append((run, write_run(connection, run, overlaps)))
            continue
        new = {id_: cells for id_, cells in overlaps.items() if id_ not in there[run.lap_id]}
        if not new:
            continue
        chip_ids = _read_chip_ids(connection, seq_id, new)
        rows = [
            MemberRow(run.lap_id, id_, chip_ids.get(id_), active=not run.fault, neighbours=_neighbours(cells, cell))
            for id_, cells in sorted(new.items())
        ]
        add_members(connection, run, rows)
        changed.append((run, rows))
    return changed


def add_members(connection: Connection, run: RunRow, rows: Sequence[MemberRow]) -> None:
    """Add members to a run that is there; if it was complete, it is open again."""
    if run.state == "full":
        open_again(connection, run.lap_id, "run")
    insert_members(connection, rows)


def open_again(connection: Connection, lap_id: int, state: str, dropped: bool = False) -> None:
    """Take back that a run has ended: its members are active again, its final set is none any more.

    Dropped members come back only where `dropped` says so; chip mode looks for their companions afresh.
    """
    values = {
        "state": state, "fault": 0, "fault_reason": "", "settled": False, "cleaned": False, "retired": False,
        "final_sass_id": None,
    }  # fmt: skip
    if not connection.execute(sa.update(lap_run).where(lap_run.c.lap_id == lap_id).values(values)).rowcount:
        raise NotFound(f"no run {lap_id} in the ledger")
    if dropped:
        gone = (lap_exp.c.lap_id == lap_id, lap_exp.c.data_state == "drop")
        connection.execute(sa.update(lap_exp).where(*gone).values(data_state="new", reason=""))
    kept = (lap_exp.c.lap_id == lap_id, lap_exp.c.data_state != "drop", lap_exp.c.active.is_(False))
    connection.execute(sa.update(lap_exp).where(*kept).values(active=True))
    seq_id, cell = connection.execute(
        sa.select(lap_run.c.seq_id, lap_run.c.projection_cell).where(lap_run.c.lap_id == lap_id)
    ).one()
    _show_cell(connection, seq_id, cell)


def find_dropped(connection: Connection, sequence: str) -> list[int]:
    """Runs of a sequence that have dropped members and were not cancelled."""
    query = (
        sa.select(lap_exp.c.lap_id)
        .join(lap_run, lap_run.c.lap_id == lap_exp.c.lap_id)
        .join(lap_sequence, lap_sequence.c.seq_id == lap_run.c.seq_id)
        .where(lap_sequence.c.name == sequence, lap_exp.c.data_state == "drop", lap_run.c.fault != CANCELLED)
        .distinct()
        .order_by(lap_exp.c.lap_id)
    )
    return [row.lap_id for row in connection.execute(query)]


def close_run(connection: Connection, lap_id: int) -> None:
    """Set a run full, whatever is known of its members: the first version knew neither chip_id nor pairs."""
    connection.execute(sa.update(lap_run).where(lap_run.c.lap_id == lap_id).values(state="full"))
    connection.execute(sa.update(lap_exp).where(lap_exp.c.lap_id == lap_id).values(active=False))


def _show_cell(connection: Connection, seq_id: int, cell: str) -> None:
    """Take runs of a cell back that were retired: what is made of all its bands needs theirs, too."""
    here = (lap_run.c.seq_id == seq_id, lap_run.c.projection_cell == cell, lap_run.c.retired.is_(True))
    connection.execute(sa.update(lap_run).where(*here).values(retired=False))


def insert_run(connection: Connection, run: RunRow) -> None:
    """Insert one row of `lap_run`."""
    values = {
        "lap_id": run.lap_id, "seq_id": run.seq_id, "tess_id": run.tess_id, "projection_cell": run.cell,
        "filter": run.band, "state": run.state, "registered": run.registered, "fault": run.fault, "label": run.label,
        "final_sass_id": run.final_sass_id, "dist_group": run.dist_group, "priority": run.priority,
        "paused": run.paused, "fault_reason": run.fault_reason, "settled": run.settled, "cleaned": run.cleaned,
        "retired": run.retired,
    }  # fmt: skip
    _show_cell(connection, run.seq_id, run.cell)
    connection.execute(sa.insert(lap_run).values(values))


def insert_members(connection: Connection, rows: Iterable[MemberRow]) -> None:
    """Insert rows of `lap_exp`."""
    values = [
        {
            "lap_id": one.lap_id, "exp_id": one.exposure, "chip_id": one.chip_id, "pair_id": one.pair_id,
            "private": one.private, "pairwise": one.pairwise, "active": one.active, "data_state": one.data_state,
            "neighbours": list(one.neighbours), "reason": one.reason,
        }
        for one in rows
    ]  # fmt: skip
    if values:
        connection.execute(sa.insert(lap_exp), values)


def _neighbours(cells: Iterable[str], own: str) -> tuple[str, ...]:
    return tuple(sorted(cell for cell in cells if cell != own))


def _read_chip_ids(connection: Connection, seq_id: int, exposures: Collection[str]) -> dict[str, str]:
    """chip_id by exposure, where an earlier run of the sequence has one (LAP-12)."""
    found: dict[str, str] = {}
    wanted = sorted(exposures)
    for start in range(0, len(wanted), _MANY):
        query = (
            sa.select(lap_exp.c.exp_id, sa.func.min(lap_exp.c.chip_id))
            .join(lap_run, lap_run.c.lap_id == lap_exp.c.lap_id)
            .where(lap_exp.c.exp_id.in_(wanted[start : start + _MANY]))
            .where(lap_run.c.seq_id == seq_id, lap_exp.c.chip_id.is_not(None))
            .group_by(lap_exp.c.exp_id)
        )
        found |= {row[0]: row[1] for row in connection.execute(query)}
    return found


def read_runs(
    connection: Connection, sequence: str | None = None, state: str | None = None,
    lap_ids: Collection[int] | None = None, conditions: Collection[sa.ColumnElement[bool]] = (),
) -> list[RunRow]:  # fmt: skip
    """Runs in order of their numbers; of all sequences or one, in a state, those asked for, those a condition holds."""
    if state is not None and state not in RUN_STATES:
        raise BadInput(f"run state {state!r} is none of {', '.join(RUN_STATES)}")
    query = (
        sa.select(
            lap_run.c.lap_id, lap_sequence.c.name, tessellation.c.name, lap_run.c.projection_cell, lap_run.c.filter,
            lap_run.c.state, lap_run.c.registered, lap_run.c.fault, lap_run.c.label, lap_run.c.final_sass_id,
            lap_run.c.dist_group, lap_run.c.priority, lap_run.c.paused, lap_run.c.fault_reason, lap_run.c.settled,
            lap_run.c.cleaned, lap_run.c.retired, lap_run.c.seq_id, lap_run.c.tess_id,
        )
        .join(lap_sequence, lap_sequence.c.seq_id == lap_run.c.seq_id)
        .join(tessellation, tessellation.c.tess_id == lap_run.c.tess_id)
        .where(*conditions)
        .order_by(lap_run.c.lap_id)
    )  # fmt: skip
    if sequence is not None:
        query = query.where(lap_sequence.c.name == sequence)
    if state is not None:
        query = query.where(lap_run.c.state == state)
    if lap_ids is not None:
        query = query.where(lap_run.c.lap_id.in_(sorted(lap_ids)))
    return [RunRow(*row) for row in connection.execute(query).all()]


def read_members(connection: Connection, *lap_ids: int) -> list[MemberRow]:
    """Members of runs, by run and exposure."""
    rows = []
    for start in range(0, len(lap_ids), _MANY):
        query = (
            sa.select(
                lap_exp.c.lap_id, lap_exp.c.exp_id, lap_exp.c.chip_id, lap_exp.c.pair_id, lap_exp.c.private,
                lap_exp.c.pairwise, lap_exp.c.active, lap_exp.c.data_state,
                sa.cast(lap_exp.c.neighbours, sa.Text), lap_exp.c.reason,
            )
            .where(lap_exp.c.lap_id.in_(lap_ids[start : start + _MANY]))
        )  # fmt: skip
        rows += connection.execute(query).all()
    return [MemberRow(*row[:8], decode_neighbours(row[8]), row[9]) for row in sorted(rows, key=lambda row: row[:2])]


def count_members(connection: Connection, sequence: str) -> dict[int, dict[str, int]]:
    """Number of members by data_state of every run of a sequence."""
    query = (
        sa.select(lap_exp.c.lap_id, lap_exp.c.data_state, sa.func.count())
        .join(lap_run, lap_run.c.lap_id == lap_exp.c.lap_id)
        .join(lap_sequence, lap_sequence.c.seq_id == lap_run.c.seq_id)
        .where(lap_sequence.c.name == sequence)
        .group_by(lap_exp.c.lap_id, lap_exp.c.data_state)
    )
    counts: dict[int, dict[str, int]] = {}
    for lap_id, state, number in connection.execute(query):
        counts.setdefault(lap_id, {})[state] = number
    return counts


def wake_cleanup(connection: Connection, sequence: str, ref: PartitionRef) -> list[int]:
    """Let cleanup look at the runs of a partition again that has files, where it is through with all of them.

    As when it was made for a run that was cancelled meanwhile, or came back. Returns the runs.
    """
    kind = PRODUCTS[ref[0]].partitions
    keys = dict(zip(KEY_PARTS[kind], ref[1].split(JOIN), strict=True)) if PRODUCTS[ref[0]].intermediate else {}
    columns = {"cell": lap_run.c.projection_cell, "band": lap_run.c.filter}
    here = [columns[name] == value for name, value in keys.items() if name in columns]
    here += [of_exposure(keys["exposure"])] if "exposure" in keys else []
    rows = read_runs(connection, sequence, conditions=here) if here else []
    if not rows or not all(row.cleaned for row in rows):
        return []
    woken = [row.lap_id for row in rows]
    connection.execute(sa.update(lap_run).where(lap_run.c.lap_id.in_(woken)).values(cleaned=False))
    return woken


def of_exposure(name: str) -> sa.ColumnElement[bool]:
    """The condition that a run has an exposure as a member, dropped or not."""
    return lap_run.c.lap_id.in_(sa.select(lap_exp.c.lap_id).where(lap_exp.c.exp_id == name))


def read_defined(connection: Connection) -> frozenset[tuple[str, str, str, str]]:
    """(sequence, tessellation, cell, band) of all runs."""
    query = (
        sa.select(lap_sequence.c.name, tessellation.c.name, lap_run.c.projection_cell, lap_run.c.filter)
        .join(lap_sequence, lap_sequence.c.seq_id == lap_run.c.seq_id)
        .join(tessellation, tessellation.c.tess_id == lap_run.c.tess_id)
    )
    return frozenset((row[0], row[1], row[2], row[3]) for row in connection.execute(query))


def decode_neighbours(text: str) -> tuple[str, ...]:
    """The cells in a column `neighbours` as text."""
    return _NO_CELLS if text == "[]" else tuple(json.loads(text))
