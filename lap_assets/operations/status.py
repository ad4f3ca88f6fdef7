"""How the runs of a collection stand, one row per run: exposures, stacks, faults, next step and why it waits.

The view of LAP-23, LAP-25 and LAP-26 that `lap status`, `lap run list` and the asset `lap_status` share. What waits for
what is not found out here: it is what the decision itself says. One single product is `why.py`'s.
"""

import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lap_assets.lap.decide import decide
from lap_assets.ledger.records import RunRow
from lap_assets.model.decisions import FAULTS, Action, Decision, Snapshot
from lap_assets.model.ids import JOIN, join_key
from lap_assets.model.products import CALIBRATIONS, CELL_BANDS, CELLS, EXPOSURES, PRODUCTS
from lap_assets.model.states import CORRUPT, DROPPED, ENDED, FAILED, UNPROCESSABLE
from lap_assets.model.survey import PartitionRef, Run
from lap_assets.operations.clean import explain_kept, look
from lap_assets.operations.drive import take_snapshot
from lap_assets.operations.workspace import Workspace

POSTPONED = "postponed"
FAULTY = frozenset({FAILED, DROPPED, UNPROCESSABLE, CORRUPT})
HAD = ENDED | {FAILED}  # LAP-26: completed, or attempted and faulted


@dataclass(frozen=True)
class RunStatus:
    """How one run stands.

    Attributes
    ----------
    state : str
        new, run, full, and beyond LAP-03 what became of it since: settled, cleaned; or paused, or its fault.
    exposures : mapping of str to int
        Members by data_state (LAP-25).
    stacks_defined, stacks_have, final_defined, final_have : int
        Skycells of the first and of the second pass (LAP-26); 0 before the pass began.
    faults : tuple of str
        What failed for good or may be tried again, one line each.
    postponed : tuple of str
        Differences left to a later run (LAP-28), one line each.
    busy : tuple of str
        What is being made now, and by whom.
    next, waits : str
        What can be done now, and why nothing can.
    over : bool
        Nothing is left to be done for it, and nothing to be cleaned.
    """

    lap_id: int
    sequence: str
    cell: str
    band: str
    state: str
    label: str = ""
    dist_group: str = ""
    priority: int = 0
    exposures: Mapping[str, int] = field(default_factory=dict)
    stacks_defined: int = 0
    stacks_have: int = 0
    final_defined: int = 0
    final_have: int = 0
    faults: tuple[str, ...] = ()
    postponed: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    next: str = ""
    waits: str = ""
    over: bool = False


def summarize_runs(space: Workspace, collection: str, cleaning: bool = True) -> list[RunStatus]:
    """One row per run of a collection, in order of their numbers.

    Parameters
    ----------
    cleaning : bool
        Also say of runs that are over what can be cleaned of them, and what is kept why; that looks at files.
    """
    rows = space.ledger.runs(collection)
    snapshot = take_snapshot(space, collection)
    view = View(snapshot, decide(snapshot))
    counts = space.ledger.unit_counts(collection, ("stacks", "final_stacks"))
    members = space.ledger.count_members(collection)
    over = [row for row in rows if (row.fault or row.settled) and not row.cleaned]
    cleanup = describe_cleanup(space, collection, over) if cleaning and over else {}
    found = {run.lap_id: run for run in snapshot.survey.runs if run.roster and not run.settled and not run.fault}
    return [
        summarize_run(
            row,
            members.get(row.lap_id, {}),
            counts,
            view.describe(found[row.lap_id]) if row.lap_id in found else cleanup.get(row.lap_id, {}),
        )
        for row in rows
    ]


def summarize_run(
    row: RunRow,
    exposures: Mapping[str, int],
    counts: Mapping[PartitionRef, Mapping[str, int]],
    details: Mapping[str, Any],
) -> RunStatus:
    """The row of one run; `counts` are units by state of its stacks, `details` the fields that a decision tells."""
    here = join_key(row.cell, row.band)
    first, final = (counts.get((product, here), {}) for product in ("stacks", "final_stacks"))
    values = dict(details)
    if row.fault:
        values["faults"] = (f"run: {FAULTS[row.fault]}: {row.fault_reason}", *values.get("faults", ()))
    return RunStatus(
        row.lap_id,
        row.sequence,
        row.cell,
        row.band,
        name_state(row),
        row.label,
        row.dist_group,
        row.priority,
        dict(exposures),
        sum(first.values()),
        sum(number for state, number in first.items() if state in HAD),
        sum(final.values()),
        sum(number for state, number in final.items() if state in HAD),
        over=row.cleaned,
        **values,
    )


def name_state(row: RunRow) -> str:
    """The state of a run in one word, and what became of it since."""
    if row.fault:
        return FAULTS[row.fault]
    if row.state == "full":
        later = "cleaned" if row.cleaned else "settled" if row.settled else ""
        return f"full, {later}" if later else "full"
    return f"{row.state}, paused" if row.paused else row.state


# ---- runs under way


class View:
    """A snapshot and its decision, sorted by run."""

    def __init__(self, snapshot: Snapshot, decision: Decision) -> None:
        self.snapshot, self.decision = snapshot, decision
        self.actions: dict[PartitionRef, Action] = {(one.product, one.partition): one for one in decision.actions}

    def describe(self, run: Run) -> dict[str, Any]:
        """The fields of `RunStatus` that a decision tells."""
        refs = list(list_refs(self.snapshot, run))
        return {
            "faults": tuple(self._list_faults(run, refs)),
            "postponed": tuple(self._list_postponed(refs)),
            "busy": tuple(f"{ref[0]} {ref[1]}: {self.snapshot.busy[ref]}" for ref in refs if ref in self.snapshot.busy),
            "next": self._describe_next(run, refs),
            "waits": self._describe_wait(run, refs),
        }

    def _list_faults(self, run: Run, refs: Iterable[PartitionRef]) -> Iterator[str]:
        for one in run.roster:
            if one.data_state == "drop":
                yield f"exposure {one.exposure}: dropped: {one.reason}"
        for ref in refs:
            state = self.snapshot.states.get(ref)
            if state is not None and state.state in FAULTY and not state.reason.startswith(POSTPONED):
                yield f"{ref[0]} {ref[1]}: {state.state}: {state.reason}"

    def _list_postponed(self, refs: Iterable[PartitionRef]) -> Iterator[str]:
        for ref in refs:
            state = self.snapshot.states.get(ref)
            if state is not None and state.state == DROPPED and state.reason.startswith(POSTPONED):
                yield f"{ref[0]} {ref[1]}: {state.reason}"

    def _describe_next(self, run: Run, refs: list[PartitionRef]) -> str:
        if run.paused or (run.state == "new" and self.snapshot.draining):
            return ""
        if run.state == "new":
            return "begin"
        possible = [ref for ref in refs if ref in self.actions]
        if not possible:
            return ""
        product, kind = possible[0][0], self.actions[possible[0]].kind
        number = sum(ref[0] == product and self.actions[ref].kind == kind for ref in possible)
        return f"{kind} {product}: {number} of {sum(ref[0] == product for ref in refs)}"

    def _describe_wait(self, run: Run, refs: list[PartitionRef]) -> str:
        if run.paused:
            return "paused: lap resume lets it go on"
        if run.state == "new":
            return "draining: lap undrain lets runs begin" if self.snapshot.draining else ""
        if any(ref in self.actions for ref in refs):
            return ""
        waiting = next((ref for ref in refs if ref in self.decision.waiting), None)
        return f"{waiting[0]} {waiting[1]} {self.decision.waiting[waiting]}" if waiting else ""


def list_refs(snapshot: Snapshot, run: Run) -> Iterator[PartitionRef]:
    """All partitions made for a run, in the order of the chain; masters once."""
    kept = [one.exposure for one in run.roster if one.data_state != "drop"]
    masters = {ref for name in kept for ref in snapshot.survey.associations.get(name, ())}
    for product, row in PRODUCTS.items():
        if row.partitions == CALIBRATIONS:
            yield from sorted(ref for ref in masters if ref[0] == product)
        elif row.partitions in (CELL_BANDS, CELLS):
            yield product, f"{run.cell}{JOIN}{run.band}" if row.partitions == CELL_BANDS else run.cell
        else:
            yield from ((product, name if row.partitions == EXPOSURES else f"{name}{JOIN}{run.cell}") for name in kept)


# ---- runs that are over


def describe_cleanup(space: Workspace, collection: str, rows: Collection[RunRow]) -> dict[int, dict[str, Any]]:
    """For runs that are over and not cleaned, by number: what can be cleaned, and what is kept why."""
    snapshot = look(space, collection)
    decision = decide(snapshot, ["cleanup"])
    numbers = Counter(action.lap_id for action in decision.actions)
    kept = explain_kept(snapshot)
    known = {run.lap_id: run for run in snapshot.survey.runs}
    described = {}
    for row in rows:
        names = [f"run {row.lap_id}"]
        names += [f"exposure {name}" for name in (known[row.lap_id].everyone if row.lap_id in known else ())]
        reasons = [f"keeps {name}: {kept[name]}" for name in names if name in kept]
        described[row.lap_id] = {
            "next": f"clean {numbers[row.lap_id]} partitions" if numbers[row.lap_id] else "",
            "waits": reasons[0] + (f" and {len(reasons) - 1} more" if len(reasons) > 1 else "") if reasons else "",
        }
    return described


# ---- for terminals and machines


def measure_space(space: Workspace) -> int:
    """Bytes free on the disk of a repository."""
    return shutil.disk_usage(space.root).free


def make_document(space: Workspace, statuses: Iterable[RunStatus]) -> dict[str, Any]:
    """The status for machines."""
    return {
        "free_bytes": measure_space(space),
        "draining": space.ledger.draining(),
        "runs": [asdict(one) for one in statuses],
    }


def describe_exposures(status: RunStatus) -> str:
    """`3 full, 1 to_diff`."""
    return ", ".join(f"{number} {state}" for state, number in sorted(status.exposures.items()))
