"""What `laptool` and `lap run list` print: rows of sequences, runs and exposures with their columns (LAP-01, 02, 07).

Each function returns a `Listing`; how it is written (metadata format, JSON, a table) is the command's matter.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lap_assets.errors import BadInput
from lap_assets.lap.metadata_format import format_rows, to_json
from lap_assets.ledger.records import MemberRow, RunRow, SequenceRow
from lap_assets.model.decisions import Snapshot
from lap_assets.model.ids import join_key
from lap_assets.model.states import DONE, ENDED, FAILED
from lap_assets.operations.workspace import Workspace

SEQUENCE = (("seq_id", "S64"), ("name", "STR"), ("description", "STR"))
RUN = (
    ("seq_id", "S64"),
    ("lap_id", "S64"),
    ("tess_id", "S64"),
    ("projection_cell", "STR"),
    ("filter", "STR"),
    ("state", "STR"),
    ("registered", "STR"),  # UTC
    ("fault", "S32"),
    ("label", "STR"),
    ("quick_sass_id", "S64"),
    ("final_sass_id", "S64"),
    ("dist_group", "STR"),
)
EXPOSURE = (
    ("lap_id", "S64"),
    ("exp_id", "STR"),
    ("chip_id", "STR"),
    ("pair_id", "STR"),
    ("private", "BOOL"),
    ("pairwise", "BOOL"),
    ("active", "BOOL"),
    ("data_state", "STR"),
)
PENDING = (
    *EXPOSURE,
    ("chip_state", "STR"),
    ("camera", "STR"),
    ("filter", "STR"),
    ("obs_mode", "STR"),
    ("object", "STR"),
    ("comment", "STR"),
    ("night", "STR"),
    ("mjd", "F64"),
    ("ra", "F64"),
    ("decl", "F64"),
    ("exp_time", "F32"),
    ("airmass", "F32"),
    ("bias", "STR"),
    ("flat", "STR"),
)
STAGES = {"chip": "chips", "camera": "solutions", "warp": "warps", "diff": "diffs", "destreak": "streak_masks"}
STATE_COLUMNS = ("chip_state", "camera_state", "fake_state", "warp_state", "diff_state", "destreak_state")
GAUGED = (*EXPOSURE, *((name, "STR") for name in STATE_COLUMNS))
NO_STAGE = "none"  # this platform has no fake stage
STACK = (
    ("lap_id", "S64"),
    ("skycell_id", "STR"),
    ("inputs", "S32"),  # usable warps
    ("defined_first", "BOOL"),
    ("have_first", "BOOL"),
    ("first_state", "STR"),
    ("defined_final", "BOOL"),
    ("have_final", "BOOL"),
    ("final_state", "STR"),
)
INACTIVE = (
    ("seq_id", "S64"),
    ("exp_id", "STR"),
    ("chip_id", "STR"),
    ("runs", "S32"),
    ("active", "S32"),
    ("in_use", "BOOL"),
)
NEW = "new"


@dataclass(frozen=True)
class Listing:
    """Rows of one table; `columns` are (name, type) in the order they are printed."""

    name: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[dict[str, Any], ...]

    def as_metadata(self) -> str:
        """In the metadata format (LAP-09)."""
        return format_rows(self.name, self.columns, self.rows)

    def as_json(self) -> str:
        """For machines: a list of objects."""
        rows = [{column: to_json(row[column]) for column, _ in self.columns} for row in self.rows]
        return json.dumps(rows, indent=1, allow_nan=False) + "\n"


# ---- sequences and runs


def list_sequences(rows: Iterable[SequenceRow]) -> Listing:
    """Sequences (LAP-09)."""
    return Listing("lapSequence", SEQUENCE, tuple({c: getattr(row, c) for c, _ in SEQUENCE} for row in rows))


def list_runs(rows: Iterable[RunRow]) -> Listing:
    """Runs (LAP-02)."""
    return Listing("lapRun", RUN, tuple(describe_run(row) for row in rows))


def describe_run(row: RunRow) -> dict[str, Any]:
    """A run by the names of its columns; `quick_sass_id` is never set (LAP-04)."""
    registered = datetime.fromtimestamp(row.registered, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    values = {"projection_cell": row.cell, "filter": row.band, "registered": registered, "quick_sass_id": None}
    return {column: values[column] if column in values else getattr(row, column) for column, _ in RUN}


def select_runs(
    space: Workspace, sequence: str | None = None, state: str | None = None, cell: str | None = None,
    band: str | None = None, label: str | None = None,
) -> list[RunRow]:  # fmt: skip
    """Runs in order of their numbers that match what is given (LAP-14); a cell also without its tessellation."""
    return [
        row
        for row in space.ledger.runs(sequence, state)
        if (cell is None or cell.lower() in (row.cell.lower(), row.cell.removeprefix(f"{row.tessellation}.").lower()))
        and (band is None or band == row.band)
        and (label is None or label == row.label)
    ]


def find_run(space: Workspace, lap_id: int) -> RunRow:
    """The run of a number; raises `BadInput`."""
    rows = space.ledger.runs(lap_ids=[lap_id])
    if not rows:
        raise BadInput(f"there is no run {lap_id}; `lap run list` shows what there is")
    return rows[0]


# ---- exposures of a run (LAP-15)


def list_pending(space: Workspace, lap_id: int) -> Listing:
    """Exposures in use by a run whose chips are not there, with what is needed to make them (LAP-15)."""
    _, picture = picture_run(space, lap_id)
    rows = []
    for member in space.ledger.members(lap_id):
        state = describe_state(picture, "chips", member.exposure)
        if not member.active or state == DONE:
            continue
        one = picture.survey.exposures[member.exposure]
        masters = dict(picture.survey.associations.get(one.id, ()))
        rows.append(
            describe_member(member)
            | {"chip_state": state, "camera": one.camera, "filter": one.filter, "obs_mode": one.obs_mode}
            | {"object": one.object, "comment": one.comment, "night": one.night, "mjd": one.mjd}
            | {"ra": one.ra_deg, "decl": one.dec_deg, "exp_time": one.exptime_s, "airmass": one.airmass}
            | {"bias": masters.get("master_biases"), "flat": masters.get("master_flats")}
        )
    return Listing("lapExp", PENDING, tuple(rows))


def list_exposures(space: Workspace, lap_id: int) -> Listing:
    """Exposures of a run with their state at every stage (LAP-15, LAP-23)."""
    run, picture = picture_run(space, lap_id)
    rows = []
    for member in space.ledger.members(lap_id):
        states = {"fake_state": NO_STAGE}
        for stage, product in STAGES.items():
            whole = product in ("chips", "solutions")
            partition = member.exposure if whole else join_key(member.exposure, run.cell)
            states[f"{stage}_state"] = describe_state(picture, product, partition)
        rows.append(describe_member(member) | states)
    return Listing("lapExp", GAUGED, tuple(rows))


def describe_member(row: MemberRow) -> dict[str, Any]:
    """A member of a run by the names of its columns."""
    return {column: row.exposure if column == "exp_id" else getattr(row, column) for column, _ in EXPOSURE}


def describe_state(picture: Snapshot, product: str, partition: str) -> str:
    """The state of a partition; `run` while somebody makes it, `new` before anybody did."""
    ref = (product, partition)
    if ref in picture.busy:
        return "run"
    return picture.states[ref].state if ref in picture.states else NEW


def picture_run(space: Workspace, lap_id: int) -> tuple[RunRow, Snapshot]:
    """A run and the snapshot of it alone."""
    run = find_run(space, lap_id)
    return run, space.ledger.snapshot(run.sequence, scope="all", lap_ids=[lap_id])


# ---- stacks of a run (LAP-26)


def list_stacks(space: Workspace, lap_id: int) -> Listing:
    """Skycells of a run, and for both passes whether a stack is defined and whether it is had (LAP-26).

    Defined: a member has a warp there, or the stack was attempted. Had: it completed, or was attempted and faulted.
    """
    run = find_run(space, lap_id)
    inputs: dict[str, int] = {}
    for member in space.ledger.members(lap_id):
        if member.data_state != "drop":
            for unit in space.ledger.units(run.sequence, "warps", join_key(member.exposure, run.cell)):
                if unit.state in ENDED:
                    usable = unit.state not in ("no_work", "unprocessable", "dropped")
                    inputs[unit.data_id.unit] = inputs.get(unit.data_id.unit, 0) + usable
    here = join_key(run.cell, run.band)
    first, final = (
        {unit.data_id.unit: unit.state for unit in space.ledger.units(run.sequence, product, here)}
        for product in ("stacks", "final_stacks")
    )
    rows = []
    for skycell in sorted({*inputs, *first, *final}):
        row: dict[str, Any] = {"lap_id": lap_id, "skycell_id": skycell, "inputs": inputs.get(skycell, 0)}
        for name, states in (("first", first), ("final", final)):
            state = states.get(skycell, NEW)
            row[f"defined_{name}"] = state != NEW or inputs.get(skycell, 0) > 0
            row[f"have_{name}"] = has_stack(state)
            row[f"{name}_state"] = state
        rows.append(row)
    return Listing("lapStack", STACK, tuple(rows))


def has_stack(state: str) -> bool:
    """LAP-26: completed, or attempted and faulted."""
    return state in ENDED or state == FAILED


# ---- exposures of all runs


def list_inactive(space: Workspace, sequences: Sequence[SequenceRow]) -> Listing:
    """Every exposure of these sequences, with how many runs have it active (LAP-15)."""
    rows = []
    for sequence in sequences:
        counts: dict[str, list[Any]] = {}
        for run in space.ledger.survey(sequence.name, lean=True).runs:
            for one in run.roster:
                entry = counts.setdefault(one.exposure, [None, 0, 0])
                entry[0] = one.chip_id or entry[0]
                entry[1] += 1
                entry[2] += one.active
        rows += [
            {"seq_id": sequence.seq_id, "exp_id": exposure, "chip_id": chip_id, "runs": runs, "active": active}
            | {"in_use": active > 0}
            for exposure, (chip_id, runs, active) in sorted(counts.items())
        ]
    return Listing("lapExp", INACTIVE, tuple(rows))
