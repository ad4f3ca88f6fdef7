"""What becomes of runs and their members after they were defined: steps decided by `lap/`, and an operator's say.

A step that no longer fits (its run went on meanwhile, its member was dropped) changes nothing, so that a tick repeated,
or decided on an older state, does no harm. Each function works inside a transaction it is given.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lap_assets.errors import BadInput, NotFound
from lap_assets.ledger.leases import raise_number, take_number
from lap_assets.ledger.tables import DATA_STATES, RUN_STATES, control, lap_exp, lap_run, lap_sequence
from lap_assets.model.decisions import (
    ASSIGN,
    CLEANED_RUN,
    DATA_STATE,
    DROP_MEMBER,
    FAULT,
    FAULTS,
    PAIR,
    PRIVATE,
    RUN_STATE,
    SETTLE,
    Step,
)

CANCELLED, NOTHING_LEFT = 1, 2
SASS = "final_sass_id"
_DRAINING = "draining"
_MANY = 500
_RUN = ("state", "fault", "fault_reason", "settled", "cleaned", "final_sass_id")
_MEMBER = ("chip_id", "pair_id", "private", "pairwise", "active", "data_state", "reason")


@dataclass
class _OpenRun:
    """A run under change: its row, its members' rows, and which of them have changed."""

    sequence: str
    row: dict[str, Any]
    members: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: bool = False
    changed_members: set[str] = field(default_factory=set)

    def set_run(self, **values: Any) -> bool:
        """Change the run; whether anything is new."""
        if all(self.row[name] == value for name, value in values.items()):
            return False
        self.row.update(values)
        self.changed = True
        return True

    def set_member(self, exposure: str, **values: Any) -> bool:
        """Change a member; whether anything is new. Raises `NotFound` for none."""
        member = self.find(exposure)
        if all(member[name] == value for name, value in values.items()):
            return False
        member.update(values)
        self.changed_members.add(exposure)
        return True

    def find(self, exposure: str) -> dict[str, Any]:
        """Row of a member; raises `NotFound`."""
        if exposure not in self.members:
            raise NotFound(f"exposure {exposure!r} is no member of run {self.row['lap_id']}")
        return self.members[exposure]

    def is_dropped(self, exposure: str) -> bool:
        """Whether a member is never to be used again (LAP-24)."""
        return self.find(exposure)["data_state"] == "drop"

    def part(self, exposure: str, but: str = "") -> bool:
        """Whoever has this exposure for a companion, except `but`, becomes private (LAP-24); whether there was any."""
        own = {self.find(exposure)["chip_id"], f"{self.sequence}/{exposure}"}
        mates = [one for one, row in self.members.items() if row["pair_id"] in own and one != but]
        for mate in mates:
            self.set_member(mate, pair_id=None, pairwise=False, private=True)
        return bool(mates)

    def has_late(self) -> bool:
        """Whether a member came after the others were seen by chip mode, or dropped."""
        alive = [one for one in self.members.values() if one["data_state"] != "drop"]
        seen = [one for one in alive if one["chip_id"] and (one["private"] or one["pairwise"])]
        return len(seen) < len(alive) and bool(seen or len(alive) < len(self.members))

    def release(self) -> None:
        """The run is over: it uses none of its exposures any more (LAP-32)."""
        for exposure in self.members:
            self.set_member(exposure, active=False)


def apply_steps(
    connection: Connection, steps: Iterable[Step], numbers: Mapping[int, int] | None = None
) -> list[dict[str, Any]]:
    """Carry out steps in their order; returns those that changed anything lasting, in the journal's form.

    Parameters
    ----------
    numbers : mapping of lap_id to final_sass_id, optional
        Given when a journal is replayed; otherwise taken from a counter.

    Raises
    ------
    BadInput, NotFound
        A step that cannot be understood, or for a run or member there is not; nothing is written then.
    """
    todo = list(steps)
    runs = _read_open(connection, {step.lap_id for step in todo})
    done = []
    for step in todo:
        if step.kind not in _HANDLERS:
            raise BadInput(f"step {step.kind!r} of run {step.lap_id} is none the ledger carries out")
        if step.lap_id not in runs:
            raise NotFound(f"no run {step.lap_id} in the ledger")
        run = runs[step.lap_id]
        if _HANDLERS[step.kind](run, step):
            entry = {name: value for name, value in asdict(step).items() if value not in ("", None) and name != "mode"}
            if step.kind == RUN_STATE and step.value == "full":
                number = (numbers or {}).get(step.lap_id) or take_number(connection, SASS)
                raise_number(connection, SASS, number)
                run.set_run(final_sass_id=number)
                entry[SASS] = number
            done.append(entry)
    _write_open(connection, runs.values())
    return done


def restore_steps(connection: Connection, entries: Iterable[Mapping[str, Any]]) -> None:
    """Carry out the steps of a journal entry."""
    given = [dict(entry) for entry in entries]
    numbers = {values["lap_id"]: values.pop(SASS) for values in given if SASS in values}
    apply_steps(connection, [Step(**values) for values in given], numbers)


def _assign(run: _OpenRun, step: Step) -> bool:
    if not step.value:
        raise BadInput(f"run {run.row['lap_id']}: no chip_id given for {step.exposure}")
    if step.value.rpartition("/")[2] != step.exposure:
        raise BadInput(f"run {run.row['lap_id']}: chip_id {step.value!r} is not one of exposure {step.exposure}")
    return run.find(step.exposure)["chip_id"] is None and run.set_member(step.exposure, chip_id=step.value)


def _pair(run: _OpenRun, step: Step) -> bool:
    both = (step.exposure, step.value)
    if step.exposure == step.value:
        raise BadInput(f"run {run.row['lap_id']}: exposure {step.value} cannot be its own companion")
    if any(run.is_dropped(one) for one in both):
        return False
    changed = run.part(step.exposure, step.value) | run.part(step.value, step.exposure)
    for one, other in (both, both[::-1]):
        chip_id = run.find(other)["chip_id"] or f"{run.sequence}/{other}"
        changed |= run.set_member(one, pair_id=chip_id, pairwise=True, private=False)
    return changed


def _private(run: _OpenRun, step: Step) -> bool:
    if run.is_dropped(step.exposure):
        return False
    changed = run.part(step.exposure)
    return run.set_member(step.exposure, pair_id=None, pairwise=False, private=True) or changed


def _drop_member(run: _OpenRun, step: Step) -> bool:
    if run.is_dropped(step.exposure):
        return False
    run.part(step.exposure)
    values = {"data_state": "drop", "active": False, "reason": step.reason}
    return run.set_member(step.exposure, pair_id=None, pairwise=False, private=False, **values)


def _data_state(run: _OpenRun, step: Step) -> bool:
    if step.value not in DATA_STATES or step.value == "drop":
        raise BadInput(f"data state {step.value!r} is none of {', '.join(DATA_STATES[1:])}")
    return not run.is_dropped(step.exposure) and run.set_member(step.exposure, data_state=step.value)


def _run_state(run: _OpenRun, step: Step) -> bool:
    if step.value not in ("run", "full"):
        raise BadInput(f"run {run.row['lap_id']}: no step leads to state {step.value!r}, only to run and full")
    if run.row["fault"] or RUN_STATES.index(step.value) <= RUN_STATES.index(run.row["state"]):
        return False
    if step.value == "full":
        if run.has_late():
            return False  # since this was decided
        run.release()
    return run.set_run(state=step.value)


def _settle(run: _OpenRun, _step: Step) -> bool:
    return run.row["state"] == "full" and run.set_run(settled=True)


def _cleaned_run(run: _OpenRun, _step: Step) -> bool:
    return bool(run.row["settled"] or run.row["fault"]) and run.set_run(cleaned=True)


def _fault(run: _OpenRun, step: Step) -> bool:
    number = int(step.value) if step.value.isdecimal() else 0
    if number not in FAULTS or number == 0:
        raise BadInput(f"fault {step.value!r} of run {run.row['lap_id']} is none of {', '.join(map(str, FAULTS))}")
    if run.row["fault"] or run.row["state"] == "full":
        return False
    if number == NOTHING_LEFT and not all(map(run.is_dropped, run.members)):
        return False  # an exposure came since this was decided
    run.release()
    return run.set_run(fault=number, fault_reason=step.reason)


_HANDLERS: dict[str, Callable[[_OpenRun, Step], bool]] = {
    ASSIGN: _assign,
    PAIR: _pair,
    PRIVATE: _private,
    DROP_MEMBER: _drop_member,
    DATA_STATE: _data_state,
    RUN_STATE: _run_state,
    SETTLE: _settle,
    CLEANED_RUN: _cleaned_run,
    FAULT: _fault,
}


def _read_open(connection: Connection, lap_ids: Iterable[int]) -> dict[int, _OpenRun]:
    """Runs with their members, locked against other writers until the transaction ends."""
    wanted, runs = sorted(set(lap_ids)), {}
    for start in range(0, len(wanted), _MANY):
        batch = wanted[start : start + _MANY]
        query = (
            sa.select(lap_run, lap_sequence.c.name.label("sequence"))
            .join(lap_sequence, lap_sequence.c.seq_id == lap_run.c.seq_id)
            .where(lap_run.c.lap_id.in_(batch))
            .order_by(lap_run.c.lap_id)
            .with_for_update(of=lap_run)
        )
        for row in connection.execute(query).mappings():
            runs[row["lap_id"]] = _OpenRun(row["sequence"], {name: row[name] for name in ("lap_id", *_RUN)})
        columns = [lap_exp.c[name] for name in ("lap_id", "exp_id", *_MEMBER)]
        rows = sa.select(*columns).where(lap_exp.c.lap_id.in_(batch)).order_by(lap_exp.c.lap_id, lap_exp.c.exp_id)
        for lap_id, exposure, *values in connection.execute(rows):
            runs[lap_id].members[exposure] = dict(zip(_MEMBER, values, strict=True))
    return runs


def _write_open(connection: Connection, runs: Iterable[_OpenRun]) -> None:
    heads = [run.row | {"b_lap_id": run.row["lap_id"]} for run in runs if run.changed]
    members = [
        run.members[exposure] | {"b_lap_id": run.row["lap_id"], "b_exp_id": exposure}
        for run in runs
        for exposure in sorted(run.changed_members)
    ]
    if heads:
        statement = sa.update(lap_run).where(lap_run.c.lap_id == sa.bindparam("b_lap_id"))
        connection.execute(statement.values({name: sa.bindparam(name) for name in _RUN}), heads)
    if members:
        here = (lap_exp.c.lap_id == sa.bindparam("b_lap_id"), lap_exp.c.exp_id == sa.bindparam("b_exp_id"))
        statement = sa.update(lap_exp).where(*here).values({name: sa.bindparam(name) for name in _MEMBER})
        connection.execute(statement, members)


# -- an operator's say ----------------------------------------------------------------------------------------------


def set_run_values(connection: Connection, lap_id: int, **values: Any) -> None:
    """Set `priority` or `paused` of a run; raises `NotFound`."""
    if not connection.execute(sa.update(lap_run).where(lap_run.c.lap_id == lap_id).values(values)).rowcount:
        raise NotFound(f"no run {lap_id} in the ledger")


def retire_runs(connection: Connection, collection: str, lap_ids: Iterable[int]) -> list[int]:
    """Take cleaned runs out of the partition sets; returns those that were not yet. Raises `BadInput`, `NotFound`."""
    wanted = sorted(set(lap_ids))
    query = (
        sa.select(lap_run.c.lap_id, lap_run.c.cleaned, lap_run.c.retired)
        .join(lap_sequence, lap_sequence.c.seq_id == lap_run.c.seq_id)
        .where(lap_sequence.c.name == collection)
    )
    known = {row.lap_id: row for row in connection.execute(query)}
    for lap_id in wanted:
        if lap_id not in known:
            raise NotFound(f"no run {lap_id} in sequence {collection!r}")
        if not known[lap_id].cleaned:
            raise BadInput(f"run {lap_id} is not cleaned yet: only a cleaned run is retired (lap clean)")
    new = [lap_id for lap_id in wanted if not known[lap_id].retired]
    for start in range(0, len(new), _MANY):
        chosen = lap_run.c.lap_id.in_(new[start : start + _MANY])
        connection.execute(sa.update(lap_run).where(chosen).values(retired=True))
    return new


def write_draining(connection: Connection, draining: bool) -> bool:
    """Set whether no new run begins; whether that is new."""
    if read_draining(connection) == draining:
        return False
    connection.execute(sa.delete(control).where(control.c.name == _DRAINING))
    connection.execute(sa.insert(control).values(name=_DRAINING, value="yes" if draining else "no"))
    return True


def read_draining(connection: Connection) -> bool:
    """Whether no new run begins."""
    value = connection.execute(sa.select(control.c.value).where(control.c.name == _DRAINING)).scalar_one_or_none()
    return value == "yes"
