"""Settling files, ledger and Dagster: files are the truth about pixels, the ledger follows them, and Dagster is told.

Nothing is made or cleaned here and no file is changed: what the ledger learns makes the next run do what is missing.
Partitions that somebody is at (a lease, an unfinished run or a backfill of Dagster) are left alone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lap_assets.defs.instance import (
    Instance,
    describe_files,
    describe_gone,
    describe_made,
    find_work,
    read_marks,
    read_materialized,
    tell,
)
from lap_assets.defs.run import open_instance
from lap_assets.errors import IntegrityError
from lap_assets.ledger.rebuild import confirm, restore_state
from lap_assets.ledger.records import ManifestRow, UnitRow
from lap_assets.model.ids import DataId
from lap_assets.model.products import CALIBRATION_COLLECTION, PRODUCTS, home_of
from lap_assets.model.states import CLEANED, CORRUPT, DONE, ENDED, GONE, GOTO_CLEANED, RESULTS, PartitionState
from lap_assets.model.survey import PartitionRef, Survey
from lap_assets.operations.work import hold_leases
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.engine import PartitionReport, combine_states
from lap_assets.pipeline.task import UnitReport
from lap_assets.store.manifest import Manifest

FILED = frozenset({DONE, *GONE})  # units that have files, or had
BY = "lap reconcile"
# what is done about a difference
RECORD, FORGET, MARK = "record", "forget", "mark"  # in the ledger
REPORT, WITHDRAW, CONFIRM = "report", "withdraw", "confirm"  # in Dagster
WITHDRAWN = frozenset({"", CORRUPT, CLEANED})  # states of the ledger in which files are not there
CLAIM = "launch/"  # before the key of a partition: somebody is about to make it


@dataclass(frozen=True, order=True)
class Difference:
    """One partition on which two of the three disagree.

    Attributes
    ----------
    found : str
        What is the matter.
    kind : str
        What is done about it: `record`, `forget` or `mark` in the ledger, `report`, `withdraw` or `confirm` in Dagster.
    cure : str
        The same, for people.
    state : str
        State of the partition in the ledger afterwards; of Dagster's differences: now. Empty: it has none.
    """

    collection: str
    product: str
    partition: str
    found: str
    kind: str
    cure: str
    state: str = ""

    @property
    def ref(self) -> PartitionRef:
        return self.product, self.partition


@dataclass
class Reconciliation:
    """Differences found, those settled, and partitions left alone because somebody is at them, with who."""

    differences: list[Difference] = field(default_factory=list)
    settled: int = 0
    busy: dict[PartitionRef, str] = field(default_factory=dict)


@dataclass
class Picture:
    """One collection, or the masters, as ledger and store have it.

    Attributes
    ----------
    states : mapping of (product, partition) to PartitionState
    rows : mapping of (product, partition) to units by data id, of the ledger
    facts : mapping of (product, partition) to manifests by data id, of the store: those whose files are there, or were
        cleaned
    """

    collection: str
    survey: Survey
    states: dict[PartitionRef, PartitionState]
    rows: Mapping[PartitionRef, dict[DataId, UnitRow]]
    facts: Mapping[PartitionRef, dict[DataId, Manifest]]

    def find_differences(self) -> Iterator[Difference]:
        """Where ledger and store disagree, in the order of the chain."""
        refs = self.states.keys() | {ref for ref, found in self.facts.items() if found}
        order = {name: number for number, name in enumerate(PRODUCTS)}
        for ref in sorted(refs, key=lambda ref: (order[ref[0]], ref[1])):
            difference = self.compare(ref)
            if difference is not None:
                yield difference

    def compare(self, ref: PartitionRef) -> Difference | None:
        """How ledger and store disagree about a partition; None if they do not."""
        state, rows, facts = self.states.get(ref), self.rows.get(ref, {}), self.facts.get(ref, {})
        if state is None:
            return self._differ(ref, f"{len(facts)} units, unknown to the ledger", RECORD) if facts else None
        lost = sorted(unit for unit, row in rows.items() if row.state in ENDED and unit not in facts)
        if lost:
            text = f"{state.state} in the ledger, but {len(lost)} of {len(rows)} units are gone, first {lost[0]}"
            return self._differ(ref, text, FORGET)
        other = sorted(unit for unit, one in facts.items() if unit not in rows or not agree(rows[unit], one))
        if other:
            text = f"{len(other)} of {len(facts)} units are not as the ledger has them, first {other[0]}"
            return self._differ(ref, text, RECORD)
        now = self._describe_files(ref)
        if now and state.state in FILED - {GOTO_CLEANED} and state.state != now:
            return self._differ(ref, f"{state.state} in the ledger, {now} in the store", MARK, now)
        return None

    def _differ(self, ref: PartitionRef, found: str, kind: str, state: str = "") -> Difference:
        state = state or (CORRUPT if kind == FORGET else self.judge_files(ref).state)
        cure = {FORGET: f"{state}: the next run makes it again", MARK: state}.get(kind, f"{state}, as in the store")
        return Difference(self.collection, *ref, found, kind, f"ledger: {cure}", state)

    def _describe_files(self, ref: PartitionRef) -> str:
        """State of the files of a partition: done, cleaned, or between the two; empty where there never were any."""
        states = {one.state for one in self.facts.get(ref, {}).values() if one.state in FILED}
        return states.pop() if len(states) == 1 else GOTO_CLEANED if states else ""

    def judge_files(self, ref: PartitionRef) -> PartitionState:
        """What the manifests alone say of a partition; its inputs are left open, so that a run looks at it again."""
        units = tuple(report_unit(one, DONE) for _, one in sorted(self.facts.get(ref, {}).items()))
        state = combine_states([one.state for one in units])
        reason = "" if state == DONE else next(one.reason for one in units if one.state == state)
        configs = {f"{one.config_sha256[:24]}.{one.code}" for one in self.facts.get(ref, {}).values()}
        return PartitionState(
            self._describe_files(ref) if state == DONE else state,
            content_sha256=PartitionReport(*ref, state, units).content,
            config_sha256=configs.pop() if len(configs) == 1 else "",
            reason=reason,
        )


def agree(row: UnitRow, manifest: Manifest) -> bool:
    """Whether the ledger has a unit as its manifest does; whether its files were cleaned is compared by partition.

    Of a unit that failed the store has what an earlier attempt made, if anything.
    """
    if row.state in FILED and manifest.state in FILED:
        return row.content == manifest.content_sha256
    return row.state == manifest.state or row.state not in ENDED


def report_unit(manifest: Manifest, state: str = "") -> UnitReport:
    """What an engine would have reported of a unit; `state` stands for that of units with files, where it is given."""
    return UnitReport(
        manifest.data_id,
        state if state and manifest.state in FILED else manifest.state,
        manifest.content_sha256,
        reason=manifest.reason,
        seconds=manifest.seconds,
        bytes=manifest.bytes,
        metrics=manifest.metrics,
        recipe=manifest.recipe,
    )


def report_row(row: UnitRow) -> UnitReport:
    """The same of a unit without a manifest, as far as the ledger knows."""
    return UnitReport(row.data_id, row.state, row.content, reason=row.reason, seconds=row.seconds, bytes=row.bytes)


def describe_manifest(one: Manifest) -> ManifestRow:
    """What the ledger wants to know of a manifest to believe the journal."""
    return ManifestRow(one.data_id, one.state, one.content_sha256, one.bytes, one.reason, one.seconds, one.run_id)


def read_facts(space: Workspace, units: Iterable[DataId]) -> Iterator[Manifest]:
    """The manifests of units that are true: what they say is on disk, or was removed on purpose."""
    for data_id in units:
        try:
            manifest = space.repo.manifest(data_id)
        except IntegrityError:
            continue  # `lap fsck` names it
        if manifest is not None and (manifest.state == CLEANED or space.repo.has_files(data_id)):
            yield manifest


class Reconciler:
    """Compares, and settles if asked to, one repository.

    Parameters
    ----------
    collections : tuple of str
        Those to look at; the masters are looked at with the first.
    begin : callable
        Told what is looked at now, for progress.
    """

    def __init__(
        self, space: Workspace, collections: tuple[str, ...], begin: Callable[[str], None] = lambda what: None
    ) -> None:
        self.space, self.collections, self.begin = space, collections, begin
        self.outcome = Reconciliation()

    def run(self, apply: bool) -> Reconciliation:
        """Find all differences; with `apply` settle them, first in the ledger, then in Dagster."""
        homes = [(CALIBRATION_COLLECTION, self.collections[0]), *((name, name) for name in self.collections)]
        with open_instance(self.space.root) as instance:
            for home, collection in homes:
                self.begin(f"{home}: store and ledger")
                picture = self.take_picture(home, collection)
                busy = self.find_busy(instance, picture)
                self.settle_ledger(picture, busy, apply)
                self.begin(f"{home}: ledger and Dagster")
                if apply:
                    picture = self.take_picture(home, collection)
                    busy = self.find_busy(instance, picture)
                self.settle_dagster(instance, picture, busy, apply)
        return self.outcome

    def take_picture(self, home: str, collection: str) -> Picture:
        """What ledger and store say of a collection, or of the masters that `collection` uses."""
        states = self.space.ledger.partition_states(collection)
        own = {ref: one for ref, one in states.items() if home_of(collection, ref[0]) == home}
        rows: dict[PartitionRef, dict[DataId, UnitRow]] = defaultdict(dict)
        for row in self.space.ledger.units(home):
            if row.data_id.collection == home:  # masters come with every collection
                rows[row.data_id.product, row.data_id.partition][row.data_id] = row
        facts: dict[PartitionRef, dict[DataId, Manifest]] = defaultdict(dict)
        for manifest in read_facts(self.space, self.space.repo.all_units(home)):
            facts[manifest.data_id.product, manifest.data_id.partition][manifest.data_id] = manifest
        return Picture(home, self.space.survey(collection), own, rows, facts)

    def look_again(self, picture: Picture, ref: PartitionRef) -> Picture:
        """One partition as it is now."""
        rows = {row.data_id: row for row in self.space.ledger.units(picture.collection, *ref)}
        units = self.space.repo.units(picture.collection, *ref)
        facts = {one.data_id: one for one in read_facts(self.space, units)}
        return Picture(picture.collection, picture.survey, picture.states, {ref: rows}, {ref: facts})

    def find_busy(self, instance: Instance, picture: Picture) -> set[PartitionRef]:
        """Partitions of a picture that somebody is at."""
        work = find_work(instance, picture.survey)
        busy = {
            ref: who for ref, who in work.items() if home_of(picture.survey.collection, ref[0]) == picture.collection
        }
        for lease in self.space.ledger.leases():
            home, *ref = lease.key.removeprefix(CLAIM).split("/")
            if home == picture.collection and len(ref) == 2:
                busy[ref[0], ref[1]] = lease.owner
        self.outcome.busy |= busy
        return set(busy)

    # ---- in the ledger

    def settle_ledger(self, picture: Picture, busy: set[PartitionRef], apply: bool) -> None:
        """Where store and ledger disagree, the ledger follows; without `apply` only in the picture."""
        for difference in [one for one in picture.find_differences() if one.ref not in busy]:
            self.outcome.differences.append(difference)
            if apply:
                self.outcome.settled += self._settle(picture, difference.ref)
            else:
                before = picture.states.get(difference.ref, PartitionState(""))
                picture.states[difference.ref] = replace(before, state=difference.state)

    def _settle(self, picture: Picture, ref: PartitionRef) -> bool:
        """Settle one partition with its lease held; whether that was still to do."""
        collection, (product, partition) = picture.survey.collection, ref
        refused: dict[str, str] = {}
        with hold_leases(self.space, collection, product, [partition], refused):
            if refused:  # somebody took it meanwhile, and will record it
                self.outcome.busy[ref] = refused[partition]
                return False
            now = self.look_again(picture, ref)
            difference = now.compare(ref)
            if difference is None:
                return False
            if difference.kind == MARK:
                self.space.ledger.mark(collection, [ref], difference.state, f"found so by {BY}")
            else:
                self._record(now, difference)
            return True

    def _record(self, picture: Picture, difference: Difference) -> None:
        """Write a partition into the ledger as its manifests and, where these confirm it, the journal have it."""
        ref = difference.ref
        rows, facts = picture.rows[ref], picture.facts[ref]
        units = {unit: report_unit(one) for unit, one in facts.items()}
        entry = self.endings.get((picture.collection, *ref))
        told = confirm(entry, {one.data_id: describe_manifest(one) for one in facts.values()}) if entry else None
        if difference.kind == FORGET:
            state = replace(picture.states[ref], state=CORRUPT, reason=difference.found)
            units |= {unit: report_row(row) for unit, row in rows.items() if row.state not in ENDED}
        elif told is not None and {row.data_id for row in told} >= facts.keys():
            state, units = restore_state(entry, told), {row.data_id: report_row(row) for row in told}
        else:
            state = picture.judge_files(ref)
        runs = {one.run_id for one in facts.values()}
        self.space.ledger.record_partition(
            picture.survey.collection,
            *ref,
            state.state,
            inputs_sha256=state.inputs_sha256,
            content_sha256=state.content_sha256,
            config_sha256=state.config_sha256,
            attempts=state.attempts,
            reason=state.reason,
            unit_reports=units.values(),
            run_id=runs.pop() if len(runs) == 1 else "",
        )

    @cached_property
    def endings(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        """How each partition ended last, as the journal has it."""
        found = (entry for entry in self.space.repo.read_journal() if entry["kind"] == "partition")
        return {(entry["collection"], entry["product"], entry["partition"]): entry for entry in found}

    # ---- in Dagster

    def settle_dagster(self, instance: Instance, picture: Picture, busy: set[PartitionRef], apply: bool) -> None:
        """Where ledger and Dagster disagree, Dagster is told."""
        found = [one for one in compare_dagster(instance, picture) if one.ref not in busy]
        self.outcome.differences += found
        if apply and found:
            tell(instance, [self._describe(picture, one) for one in found], "lap_reconcile")
            self.outcome.settled += len(found)

    def _describe(self, picture: Picture, difference: Difference) -> list:
        """What Dagster is told of a partition."""
        collection, ref = picture.survey.collection, difference.ref
        if difference.kind == WITHDRAW:
            return describe_gone(collection, *ref, difference.state or "unknown", difference.found)
        state, facts = picture.states[ref], picture.facts.get(ref, {})
        units = [
            report_unit(facts[unit]) if unit in facts else report_row(row)
            for unit, row in sorted(picture.rows.get(ref, {}).items())
        ]
        report = PartitionReport(*ref, state.state, tuple(units), reason=state.reason)
        if difference.kind == CONFIRM:
            return describe_files(self.space.repo, collection, report)
        return describe_made(self.space.repo, collection, report, state.content_sha256, BY)


def compare_dagster(instance: Instance, picture: Picture) -> Iterator[Difference]:
    """Where ledger and Dagster disagree, in the order of the chain."""
    collection = picture.survey.collection
    products = [name for name in PRODUCTS if home_of(collection, name) == picture.collection]
    marks = read_marks(instance, collection, products)
    for product in products:
        keys = dict.fromkeys(picture.survey.partitions(product))
        made = read_materialized(instance, collection, product)
        for partition in keys | dict.fromkeys(sorted(made)):
            known = picture.states.get((product, partition))
            state, passed = known.state if known else "", marks.get((product, partition))
            place = (picture.collection, product, partition)
            if state in RESULTS and partition not in made and partition in keys:
                yield Difference(*place, f"{state}, not made in Dagster", REPORT, "Dagster: materialization", state)
            elif state in RESULTS and partition in made and passed is False:
                yield Difference(*place, f"{state}, marked as gone in Dagster", CONFIRM, "Dagster: check passes", state)
            elif state in WITHDRAWN and partition in made and passed is not False:
                found = f"made in Dagster, {state or 'unknown'} in the ledger"
                yield Difference(*place, found, WITHDRAW, "Dagster: observation, failed check (a warning)", state)


def reconcile(
    space: Workspace,
    collection: str | None = None,
    apply: bool = False,
    begin: Callable[[str], None] = lambda what: None,
) -> Reconciliation:
    """Find where files, ledger and Dagster disagree, and with `apply` settle it; a second time finds nothing.

    Parameters
    ----------
    collection : str, optional
        Only this one, and the masters; default: all open collections.
    """
    return Reconciler(space, (collection,) if collection else space.collections(), begin).run(apply)
