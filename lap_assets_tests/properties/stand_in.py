"""A survey without pixels: exposures, a repository with a clock, and a stand-in that carries out what is decided.

The ledger, the decisions and the recording are the real ones; only making, dropping and cleaning a partition is an
entry in a dictionary that stands for the store. Its contents are a function of its inputs, so that whatever is made
again can be compared with what it was. What must hold of it is asserted by `scheduling.py`, and here as it happens.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path

from lap_assets.ledger.ledger import Ledger
from lap_assets.model.associations import BUILT, CERTIFIED
from lap_assets.model.decisions import DROP, MAKE, RECREATE, Action
from lap_assets.model.ids import DataId
from lap_assets.model.products import MASTERS, home_of
from lap_assets.model.quality import Verdict
from lap_assets.model.states import CLEANED, DONE, DROPPED, ENDED, FAILED, GONE, NO_WORK, PartitionState
from lap_assets.model.survey import ChipFile, Exposure, PartitionRef, Survey
from lap_assets.operations.work import LEASE_SECONDS, record
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.engine import PartitionReport
from lap_assets.pipeline.task import UnitReport

SKY = "rings.v3"
CELLS = ("rings.v3.1359", "rings.v3.1360", "rings.v3.1361")  # side by side, they meet at RA 150 and 154
PLACES = {"a": 148.0, "ab": 150.0, "b": 152.0, "bc": 154.0, "c": 156.0}
BANDS, SEQUENCES = ("g", "r"), ("main", "wide")
LEAST_INPUTS = {"stacks": 2, "diffs": 2}  # of a difference: its warp, and one to subtract
# what is not made without all of its inputs; the others are made from what there is
NEEDS_ALL = frozenset({"solutions", "warps", "streak_masks"})


@dataclass
class Clock:
    """A clock that stands still until told."""

    time: float = 1e9

    def __call__(self) -> float:
        return self.time


@dataclass(frozen=True)
class TimedSpace(Workspace):
    """A repository whose ledger goes by the clock of a test."""

    clock: Clock = field(default_factory=Clock)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger.open(self.ledger_url, clock=self.clock)

    def open_again(self) -> Ledger:
        """A second connection to the same ledger, as another process has it."""
        return Ledger.open(self.ledger_url, clock=self.clock)


def create_repository(root: Path, url: str = "") -> None:
    """An empty repository: the sky, and two sequences."""
    lap = {"lap": {"max_active": 2}}
    space = Workspace.create(root, lap | ({"ledger_url": url} if url else {}))
    space.ledger.add_tessellation({"kind": "rings", "name": SKY})
    for name in SEQUENCES:
        space.ledger.define_sequence(name)
    space.ledger.close()


def make_exposure(folder: Path, number: int, place: str, band: str, night: int, visit: int) -> Exposure:
    """An exposure of one chip, with a file that is there but never read; `visit` 0: no companion."""
    id_ = f"cam-{place}-{band}-{number}"
    path = folder / f"{id_}.fits"
    path.touch()
    ra, dec, h = PLACES[place], 2.0, 0.1
    corners = ((ra - h, dec - h), (ra + h, dec - h), (ra + h, dec + h), (ra - h, dec + h))
    chip = ChipFile("c0", str(path), "c0", corners, f"{number:064d}")
    comment = f"visit {visit} of 2" if visit else ""
    return Exposure(
        id_, "nocam", band, band, f"2026-01-0{night + 1}", 61000.0 + night + 0.01 * number, 60.0, ra, dec,
        object=place, comment=comment, chips=(chip,),
    )  # fmt: skip


def hash_text(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


@dataclass
class Made:
    """What the store has of a partition: as its manifest says, and whether its files are there."""

    state: str
    recipe: str
    content: str
    pins: dict[PartitionRef, str]
    files: bool = True


@dataclass
class Batch:
    """Partitions of one product that a worker holds: their leases, and what it read when it began."""

    collection: str
    product: str
    kind: str
    actions: list[Action]
    owner: str
    survey: Survey
    states: dict[PartitionRef, PartitionState]

    @property
    def reads(self) -> set[PartitionRef]:
        """What is being read."""
        return {up for one in self.actions for up in self.survey.reads(self.product, one.partition)}


@dataclass
class StandIn:
    """Carries actions out.

    Attributes
    ----------
    store : dict
        What there is, by collection (home) and partition.
    verdicts : dict
        What the making of a partition ends with, of all collections; missing: done, if its inputs allow it.
    failures : dict
        How many more attempts at a partition of a collection fail.
    made : Counter
        How often each partition was made to an end; re-creation is another thing.
    """

    store: dict[tuple[str, PartitionRef], Made] = field(default_factory=dict)
    verdicts: dict[PartitionRef, str] = field(default_factory=dict)
    failures: Counter = field(default_factory=Counter)
    made: Counter = field(default_factory=Counter)
    workers: int = 0

    def find(self, collection: str, ref: PartitionRef) -> Made | None:
        return self.store.get((home_of(collection, ref[0]), ref))

    # ---- as a worker does: leases, work, a record for each partition

    def carry_out(self, space: TimedSpace, collection: str, actions: Sequence[Action], fresh: bool = True) -> int:
        """Do all of them, product by product; returns how many were recorded."""
        count = 0
        for batch in self.begin(space, collection, actions):
            count += self.finish(space, batch, fresh=fresh)
        return count

    def begin(self, space: TimedSpace, collection: str, actions: Sequence[Action]) -> Iterator[Batch]:
        """Take the leases of what nobody else holds, product by product."""
        for (product, kind), group in groupby(actions, key=lambda one: (one.product, one.kind)):
            self.workers += 1
            owner = f"worker:{self.workers}"
            wanted = {f"{home_of(collection, product)}/{product}/{one.partition}": one for one in group}
            survey = space.survey(collection)
            taken = space.ledger.claim(wanted, owner, LEASE_SECONDS)
            states = space.ledger.partition_states(collection)
            yield Batch(collection, product, kind, [wanted[key] for key in taken], owner, survey, states)

    def finish(self, space: TimedSpace, batch: Batch, count: int | None = None, fresh: bool = False) -> int:
        """Work on the partitions of a batch, or the first `count`; what lost its lease is not recorded."""
        if space.ledger.extend(batch.owner, LEASE_SECONDS) < len(batch.actions):
            batch.actions.clear()
        recorded = 0
        for one in batch.actions[:count]:
            report = self.work(batch, one, fresh)
            if report is not None:
                record(space, batch.survey, report, batch.states, f"run-{self.workers}", batch.kind == RECREATE)
                recorded += 1
        del batch.actions[: len(batch.actions) if count is None else count]
        space.ledger.release_owner(batch.owner)
        home = home_of(batch.collection, batch.product)
        rest = [f"{home}/{batch.product}/{one.partition}" for one in batch.actions]
        space.ledger.claim(rest, batch.owner, LEASE_SECONDS)
        return recorded

    # ---- what becomes of one partition

    def work(self, batch: Batch, action: Action, fresh: bool) -> PartitionReport | None:
        """What the engine would report; None where it would find that inputs are not there yet."""
        ref = (batch.product, action.partition)
        upstream = batch.survey.upstream(*ref)
        known = {up: batch.states[up].state for up in upstream if up in batch.states}
        ready = all(known.get(up) in ENDED for up in upstream)
        assert not fresh or action.partition in batch.survey.partitions(batch.product), f"{action}: no such partition"
        if batch.kind != DROP and fresh:
            assert ready, f"{action} before its inputs have ended: {known}"
        before = self.find(batch.collection, ref)
        if batch.kind == DROP:
            return self._drop(batch, ref, action.reason, before)
        if not ready:
            return None
        if batch.kind == RECREATE and before is not None:
            return self._make_again(batch, ref, before, fresh)
        assert batch.kind in (MAKE, RECREATE), action
        return self._make(batch, ref, before, fresh)

    def _make(self, batch: Batch, ref: PartitionRef, before: Made | None, fresh: bool) -> PartitionReport | None:
        pins = self._pin(batch, ref)
        recipe = hash_text(ref, batch.survey.outside_facts(*ref), sorted(pins.items()))
        if before is not None and before.recipe == recipe and before.state != DROPPED:
            return self._report(batch, ref, DONE if before.files else CLEANED, before) if before.state == DONE else (
                self._report(batch, ref, before.state, before)
            )  # fmt: skip
        missing = [up for up in pins if not self._has_files(batch.collection, up, pins[up])]
        if missing:
            assert not fresh, f"{ref} is to be made from what has no files: {missing}"
            return None
        if self._fails(batch.collection, ref):
            return PartitionReport(*ref, FAILED, (), reason="a fault")
        made = self._end(batch, ref, self.judge(batch, ref, pins), recipe, pins)
        self.made[batch.collection, ref] += 1
        return self._report(batch, ref, made.state, made)

    def _make_again(self, batch: Batch, ref: PartitionRef, before: Made, fresh: bool) -> PartitionReport | None:
        if before.files:
            return self._report(batch, ref, before.state, before)
        missing = [up for up, content in before.pins.items() if not self._has_files(batch.collection, up, content)]
        if missing and fresh:
            # what is read no more the engine brings back by itself: the warp of a member that was dropped since
            assert not set(missing) & set(batch.survey.reads(*ref)), f"{ref} is to be re-created without {missing}"
        if missing and not fresh:
            return None
        if self._fails(batch.collection, ref):
            return PartitionReport(*ref, FAILED, (), reason="a fault")
        before.files = True
        return self._report(batch, ref, before.state, before)

    def _drop(self, batch: Batch, ref: PartitionRef, reason: str, before: Made | None) -> PartitionReport:
        pins = self._pin(batch, ref)
        recipe = hash_text(ref, batch.survey.outside_facts(*ref), sorted(pins.items()))
        gone = ref in batch.states and batch.states[ref].state in GONE
        if before is not None and before.recipe == recipe and before.state != DROPPED and before.files and not gone:
            return self._report(batch, ref, before.state, before)
        made = self._end(batch, ref, DROPPED, recipe, pins)
        return replace(self._report(batch, ref, DROPPED, made), reason=reason)

    def judge(self, batch: Batch, ref: PartitionRef, pins: dict[PartitionRef, str]) -> str:
        """What the making of a partition ends with."""
        inputs = batch.survey.reads(*ref)
        needed = [up for up in inputs if ref[0] in NEEDS_ALL and up[0] != "joint_solutions"]
        if ref[0] == "diffs":
            needed = list(inputs[:1])
        if not all(up in pins for up in needed) or len(pins) < LEAST_INPUTS.get(ref[0], bool(inputs)):
            return NO_WORK
        return self.verdicts.get(ref, DONE)

    def _pin(self, batch: Batch, ref: PartitionRef) -> dict[PartitionRef, str]:
        """The usable inputs of a partition, by content."""
        return {
            up: batch.states[up].content_sha256
            for up in batch.survey.reads(*ref)
            if up in batch.states and batch.states[up].state in GONE | {DONE}
        }

    def _has_files(self, collection: str, ref: PartitionRef, content: str) -> bool:
        there = self.find(collection, ref)
        return there is not None and there.files and there.content == content

    def _fails(self, collection: str, ref: PartitionRef) -> bool:
        if not self.failures[collection, ref]:
            return False
        self.failures[collection, ref] -= 1
        return True

    def _end(self, batch: Batch, ref: PartitionRef, state: str, recipe: str, pins: dict[PartitionRef, str]) -> Made:
        made = Made(state, recipe, "", pins)
        made.content = self._report(batch, ref, state, made).content
        self.store[home_of(batch.collection, ref[0]), ref] = made
        return made

    def _report(self, batch: Batch, ref: PartitionRef, state: str, made: Made) -> PartitionReport:
        data_id = DataId(home_of(batch.collection, ref[0]), *ref)
        content = hash_text(ref, made.recipe) if made.state == DONE else ""
        unit = UnitReport(data_id, state, content, recipe=made.recipe, bytes=100)
        reason = "" if made.state == DONE else f"it is {made.state}"
        report = PartitionReport(*ref, state, (unit,), reason=reason)
        if ref[0] not in MASTERS.values():
            return report
        return replace(report, verdict=Verdict(CERTIFIED if made.state == DONE else BUILT, reason, report.content))
