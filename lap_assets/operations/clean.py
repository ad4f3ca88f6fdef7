"""Cleaning a collection: what nothing needs any more loses its files (LAP-33), and what stays, stays for a reason.

What may go is decided in `lap/cleanup_mode.py`; here are the facts that only files, clocks and the disk can tell
(raw files that are gone, the grace period, the disk budget), and the carrying out, with leases held and the books
kept. Bytes of one unit are `store/cleaning.py`'s.
"""

import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from lap_assets.errors import IntegrityError, NotFound
from lap_assets.lap.cleanup_mode import find_unneeded, is_over
from lap_assets.lap.decide import decide
from lap_assets.ledger.records import RunRow
from lap_assets.model.decisions import CLEANUP_MODE, Action, Snapshot
from lap_assets.model.ids import JOIN, DataId
from lap_assets.model.products import CALIBRATION_COLLECTION
from lap_assets.model.states import CLEANED, DONE, GOTO_CLEANED
from lap_assets.model.survey import PartitionRef, Survey
from lap_assets.operations.work import hold_leases, recreate_partitions
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.engine import PartitionReport

BATCH = 200  # partitions of one product cleaned between two looks at what may be cleaned
HOUR = 3600.0


@dataclass(frozen=True)
class CleanedPartition:
    """One partition that lost its files, why, and the bytes that are free now."""

    product: str
    partition: str
    bytes: int
    reason: str = ""
    lap_id: int = 0


@dataclass
class CleanReport:
    """What a cleaning did.

    Attributes
    ----------
    partitions : list of CleanedPartition
    kept : dict of str to str
        What stays although its run is over, and why.
    runs : list of int
        Runs of which nothing is left to be cleaned.
    free_bytes : int
        On the disk of the store, afterwards.
    """

    partitions: list[CleanedPartition] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    runs: list[int] = field(default_factory=list)
    free_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Bytes freed."""
        return sum(one.bytes for one in self.partitions)


# ---- carrying it out


def clean_collection(
    space: Workspace,
    collection: str,
    tell: Callable[[CleanedPartition], None] = lambda one: None,
    owner: str = "",
    lap_ids: Collection[int] | None = None,
) -> CleanReport:
    """Clean all that may be; killed anywhere, the next cleaning goes on.

    Parameters
    ----------
    tell : callable
        Called with each partition as it is cleaned.
    owner : str
        Whose claims on partitions are our own, as `launch:7`; others' are left alone.
    lap_ids : collection of int, optional
        Only what was made for these runs.
    """
    report, refused = CleanReport(), set()
    while True:
        snapshot = look(space, collection, owner, lap_ids)
        decision = decide(snapshot, [CLEANUP_MODE])
        space.ledger.apply(decision.steps)
        report.runs += [step.lap_id for step in decision.steps]
        todo = [one for one in decision.actions if (one.product, one.partition) not in refused]
        if not todo:
            report.kept = explain_kept(snapshot) | report.kept
            report.free_bytes = shutil.disk_usage(space.root).free
            return report
        for product, group in groupby(sorted(todo)[:BATCH], key=lambda one: one.product):
            refused |= clean_partitions(space, collection, product, list(group), report, tell)


def clean_partitions(
    space: Workspace,
    collection: str,
    product: str,
    actions: list[Action],
    report: CleanReport,
    tell: Callable[[CleanedPartition], None],
) -> set[PartitionRef]:
    """Clean partitions of one product; returns those that could not be, with the reason in the report."""
    held: dict[str, str] = {}
    done: list[CleanedPartition] = []
    with hold_leases(space, collection, product, [one.partition for one in actions], held) as fences:
        # a run may have been defined since it was decided: from here on nobody begins to make anything of these
        still = decide(replace(look(space, collection), busy={}), [CLEANUP_MODE]).actions
        wanted = {(one.product, one.partition) for one in still}
        chosen = [one for one in actions if one.partition in fences and (product, one.partition) in wanted]
        space.ledger.mark(collection, [(product, one.partition) for one in chosen], GOTO_CLEANED, "nothing needs it")
        for one in chosen:
            try:
                freed = clean_units(space, collection, one, fences[one.partition])
            except IntegrityError as error:
                held[one.partition] = str(error)
                continue
            done.append(CleanedPartition(product, one.partition, freed, one.reason, one.lap_id))
        for reason, group in groupby(done, key=lambda one: one.reason):
            space.ledger.mark(collection, [(product, one.partition) for one in group], CLEANED, reason)
    for one in done:
        report.partitions.append(one)
        tell(one)
    report.kept |= {f"{product} {partition}": reason for partition, reason in held.items()}
    return {(product, one.partition) for one in actions} - {(product, one.partition) for one in done}


def clean_units(space: Workspace, collection: str, action: Action, fence: int) -> int:
    """Remove the files of every unit of a partition; returns the bytes freed."""
    units = space.repo.units(collection, action.product, action.partition)
    return sum(space.repo.clean(unit, action.reason, fence) for unit in units)


def look(space: Workspace, collection: str, owner: str = "", lap_ids: Collection[int] | None = None) -> Snapshot:
    """The runs that are over and not cleaned yet, without the claims of `owner`."""
    from lap_assets.operations.drive import take_snapshot  # which asks this module what is kept

    snapshot = take_snapshot(space, collection, "uncleaned", lap_ids)
    return replace(snapshot, busy={ref: who for ref, who in snapshot.busy.items() if who != owner})


def plan_cleaning(space: Workspace, collection: str, lap_ids: Collection[int] | None = None) -> CleanReport:
    """What `clean_collection` would do now; bytes are those of the files, shared with others or not."""
    snapshot = look(space, collection, "", lap_ids)
    actions = decide(snapshot, [CLEANUP_MODE]).actions
    sizes = measure_actions(space, collection, actions)
    going = [
        CleanedPartition(one.product, one.partition, sizes[one.product, one.partition], one.reason, one.lap_id)
        for one in sorted(actions)
    ]
    return CleanReport(going, explain_kept(snapshot), [], shutil.disk_usage(space.root).free)


def measure_actions(space: Workspace, collection: str, actions: Iterable[Action]) -> dict[PartitionRef, int]:
    """Bytes of the files each action would remove."""
    sizes = {}
    for one in actions:
        units = space.ledger.units(collection, one.product, one.partition)
        sizes[one.product, one.partition] = sum(unit.bytes for unit in units if unit.state in (DONE, GOTO_CLEANED))
    return sizes


# ---- taking it back


def recreate_units(space: Workspace, data_ids: Iterable[str]) -> Iterator[PartitionReport]:
    """Re-create the partitions that hold these units, each once.

    Raises
    ------
    BadInput
        What is no data id.
    NotFound
        A partition that its collection does not have.
    """
    wanted = dict.fromkeys((d.collection, d.product, d.partition) for d in map(DataId.parse, data_ids))
    for collection, product, partition in wanted:
        survey = space.survey(collection)
        if partition not in survey.partitions(product):
            raise NotFound(
                f"no {product} {partition} in collection {collection}; `lap ls {product}` lists what is there"
            )
        yield from recreate_partitions(space, survey, product, [partition])


# ---- what stays


def explain_kept(snapshot: Snapshot) -> dict[str, str]:
    """Of runs that are over: what stays nevertheless, and why."""
    kept: dict[str, str] = {}
    for run in snapshot.survey.runs:
        if not is_over(run) or run.cleaned:
            continue
        if run.lap_id in snapshot.kept:
            kept[f"run {run.lap_id}"] = "it is complete for less than lap.keep_hours"
            continue
        for name in run.everyone:
            if name in snapshot.in_use:
                kept[f"exposure {name}"] = "another run that is not over uses it"
            elif name in snapshot.unavailable:
                kept[f"exposure {name}"] = "its raw files or its masters are gone, so nothing of it could be made again"
    for ref, who in snapshot.busy.items():
        kept[f"{ref[0]} {ref[1]}"] = f"it is being worked on by {who}"
    return kept


def find_unavailable(space: Workspace, survey: Survey, exposures: Iterable[str]) -> frozenset[str]:
    """Exposures whose raw or calibrated files, or whose masters, are not there any more.

    Looked up, not read: whether the bytes are still the same shows when they are used.
    """
    wanted = sorted(exposures)
    files = space.ledger.files(wanted)
    folders: dict[Path, frozenset[str]] = {}
    masters: dict[PartitionRef, bool] = {}

    def has_masters(name: str) -> bool:
        for ref in survey.associations.get(name, ()):
            if ref not in masters:
                masters[ref] = has_master(space, *ref)
        return all(masters[ref] for ref in survey.associations.get(name, ()))

    def has_files(name: str) -> bool:
        return name in files and all(is_there(Path(path), folders) for path in files[name])

    return frozenset(name for name in wanted if not (has_files(name) and has_masters(name)))


def is_there(path: Path, folders: dict[Path, frozenset[str]]) -> bool:
    """Whether a file exists; folders are listed once, since a survey's files share few."""
    if path.parent not in folders:
        try:
            folders[path.parent] = frozenset(one.name for one in path.parent.iterdir())
        except OSError:
            folders[path.parent] = frozenset()
    return path.name in folders[path.parent] and path.is_file()


def has_master(space: Workspace, product: str, key: str) -> bool:
    """Whether a master calibration is there with all its files."""
    units = space.repo.units(CALIBRATION_COLLECTION, product, key)
    return bool(units) and all(space.repo.has_files(unit) for unit in units)


def choose_kept(space: Workspace, collection: str, now: float | None = None) -> frozenset[int]:
    """Runs that are over and whose intermediates stay for now.

    Each is kept for `lap.keep_hours` after it was complete. Where the store is larger than `lap.max_bytes` that is over
    at once, for the oldest runs first, until what they hold suffices.
    """
    chosen = space.settings.lap
    if not chosen.keep_hours:
        return frozenset()
    runs = [run for run in space.ledger.runs(collection) if (run.settled or run.fault) and not run.cleaned]
    ended = {run.lap_id: find_end(space, run) for run in runs}
    since = (time.time() if now is None else now) - chosen.keep_hours * HOUR
    surplus = space.ledger.stored_bytes() - chosen.max_bytes if chosen.max_bytes else 0
    return keep_newest(ended, since, surplus, measure_runs(space, collection, runs) if surplus > 0 else {})


def keep_newest(ended: Mapping[int, float], since: float, surplus: int, sizes: Mapping[int, int]) -> frozenset[int]:
    """Runs that ended after `since`, without as many of the oldest as it takes to free `surplus` bytes."""
    oldest_first = sorted(ended, key=lambda lap_id: (ended[lap_id], lap_id))
    kept = [lap_id for lap_id in oldest_first if ended[lap_id] > since]
    surplus -= sum(sizes.get(lap_id, 0) for lap_id in oldest_first if ended[lap_id] <= since)
    while surplus > 0 and kept:
        surplus -= sizes.get(kept.pop(0), 0)
    return frozenset(kept)


def find_end(space: Workspace, run: RunRow) -> float:
    """When a run was complete, seconds since 1970: when the last of its final stacks was made; 0 if none was."""
    units = space.ledger.units(run.sequence, "final_stacks", f"{run.cell}{JOIN}{run.band}")
    return max((unit.updated for unit in units), default=0.0)


def measure_runs(space: Workspace, collection: str, runs: Iterable[RunRow]) -> dict[int, int]:
    """Bytes that cleaning each run would free; what several hold counts for the first."""
    snapshot = space.ledger.snapshot(collection, "uncleaned")
    known = {run.lap_id: run for run in snapshot.survey.runs}
    counted: set[PartitionRef] = set()
    sizes = {}
    for row in runs:
        refs = [ref for ref, _ in find_unneeded(snapshot, known[row.lap_id])] if row.lap_id in known else []
        actions = [Action(*ref) for ref in refs if ref not in counted]
        counted.update(refs)
        sizes[row.lap_id] = sum(measure_actions(space, collection, actions).values())
    return sizes
