"""A survey on the real ledger, and whatever may befall it: the state machine of issue 3, proof 2.

It defines, ingests, decides and carries out, with faults, crashes, stale and repeated ticks in any order; what is
promised (`promises.py`) is looked at after each step. At its end all faults cease, and everything must come to rest.
"""

import functools
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from lap_assets.errors import BadInput, Conflict
from lap_assets.lap.decide import decide
from lap_assets.lap.queue_file import RunRequest
from lap_assets.model.decisions import (
    CHIP_MODE,
    CLEAN,
    CLEANUP_MODE,
    DEFINE,
    DROP_MEMBER,
    MAKE,
    MODES,
    MONITOR_MODE,
    QUEUE_MODE,
    Action,
    Decision,
)
from lap_assets.model.ids import JOIN
from lap_assets.model.regions import Cone
from lap_assets.model.states import CLEANED, ENDED, GOTO_CLEANED, NO_WORK, UNPROCESSABLE
from lap_assets.operations.clean import CleanedPartition, clean_collection
from lap_assets.operations.define import append_queue, define_area
from lap_assets.operations.drive import advance, apply_steps, take_snapshot
from lap_assets_tests.properties import promises
from lap_assets_tests.properties.stand_in import (
    BANDS,
    CELLS,
    PLACES,
    SEQUENCES,
    SKY,
    Batch,
    Clock,
    StandIn,
    TimedSpace,
    make_exposure,
)

MAX_EXPOSURES = 12
DRIVEN = (CHIP_MODE, MONITOR_MODE)
ROUNDS = 400
FALLIBLE = (
    "chips", "solutions", "joint_solutions", "warps", "stacks", "diffs", "streak_masks", "final_stacks",
    "object_catalogs", "transients",
)  # fmt: skip

sequences = st.sampled_from(SEQUENCES)
numbers = st.integers(0, 30)
mode_sets = st.sampled_from([MODES, MODES, DRIVEN, (CHIP_MODE,), (MONITOR_MODE,), (QUEUE_MODE,)])


def step(**strategies: st.SearchStrategy) -> Callable:
    """A rule; what it broke off in the middle of is not carried to its end."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(self: "Scheduling", **values: object) -> None:
            self.sound = False
            function(self, **values)

        return rule(**strategies)(run)

    return decorate


class Scheduling(RuleBasedStateMachine):
    """A repository, its ledger, and everybody who acts on it.

    Parameters
    ----------
    place : callable
        Makes a new repository (`stand_in.create_repository`) and returns its folder.
    reached : Counter, optional
        Counts the kinds of steps and actions that were carried out.
    """

    def __init__(self, place: Callable[[], Path], reached: Counter | None = None) -> None:
        super().__init__()
        self.reached = Counter() if reached is None else reached
        self.root = place()
        self.clock = Clock()
        self.space = TimedSpace(self.root, TimedSpace.open(self.root).settings, clock=self.clock)
        self.other = self.space.open_again()
        self.reader = promises.Reader(self.space.ledger_url)
        self.stand_in = StandIn()
        self.exposures: list[str] = []
        self.lost: set[str] = set()
        self.batches: list[Batch] = []
        self.held: list[tuple[str, Decision]] = []
        self.dropped: set[tuple[int, str]] = set()
        self.sound = False

    def teardown(self) -> None:
        try:
            if self.sound:
                self.come_to_rest()
        finally:
            self.reader.close()
            self.other.close()
            self.space.ledger.close()
            shutil.rmtree(self.root, ignore_errors=True)

    # ---- what there is to process

    @initialize(modes=st.sampled_from([(), DRIVEN, MODES]))
    def begin(self, modes: tuple[str, ...] = ()) -> None:
        """One run of the first cell: defined, made to the end, or cleaned, too."""
        for place, band, night, visit in (("ab", "g", 0, 1), ("ab", "g", 0, 2), ("a", "g", 1, 0), ("bc", "g", 1, 0),
                                          ("ab", "r", 0, 1)):  # fmt: skip
            self.add(place, band, night, visit)
        self.space.ledger.define_runs("main", SKY, cells=CELLS[:1], bands=["g"])
        self.drive_to_rest("main", modes)

    def add(self, place: str, band: str, night: int, visit: int) -> None:
        one = make_exposure(self.root, len(self.exposures), place, band, night, visit)
        self.space.ledger.add_exposures([one])
        self.exposures.append(one.id)

    @precondition(lambda self: len(self.exposures) < MAX_EXPOSURES)
    @step(place=st.sampled_from(sorted(PLACES)), band=st.sampled_from(BANDS), night=st.integers(0, 1),
          visit=st.integers(0, 2), sequence=sequences, complete=st.booleans())  # fmt: skip
    def ingest(self, place, band, night, visit, sequence, complete):
        self.add(place, band, night, visit)
        if complete:
            known = {run.cell for run in self.space.ledger.runs(sequence)}
            self.space.ledger.define_runs(sequence, SKY, cells=sorted(known))

    @step(sequence=sequences, place=st.sampled_from(sorted(PLACES)), radius=st.sampled_from([0.5, 3.0]),
          bands=st.sampled_from([None, ("g",), ("r",)]))  # fmt: skip
    def define_large_area(self, sequence, place, radius, bands):
        define_area(self.space, sequence, Cone(PLACES[place], 2.0, radius), SKY, bands)

    @step(sequence=sequences, cell=st.sampled_from(CELLS), band=st.sampled_from(BANDS))
    def define_one(self, sequence, cell, band):
        known = {(run.cell, run.band) for run in self.space.ledger.runs(sequence)}
        try:
            self.space.ledger.define_run(sequence, SKY, cell, band)
        except Conflict:
            assert (cell, band) in known
        except BadInput as error:
            assert "no exposure" in str(error)

    @step(sequence=sequences, cell=st.sampled_from(CELLS), band=st.sampled_from(BANDS))
    def enqueue(self, sequence, cell, band):
        append_queue(self.space, [RunRequest(sequence, cell, band, SKY)])

    # ---- what goes wrong

    @step(number=numbers)
    def spoil_exposure(self, number):
        """For good: the data are at fault, in whatever sequence."""
        ref = ("chips", self.exposures[number % len(self.exposures)])
        if not any(self.stand_in.find(sequence, ref) for sequence in SEQUENCES):
            self.stand_in.verdicts[ref] = UNPROCESSABLE

    @step(sequence=sequences, product=st.sampled_from(["warps", "stacks", "diffs", "final_stacks"]), number=numbers,
          verdict=st.sampled_from([NO_WORK, UNPROCESSABLE]))  # fmt: skip
    def spoil_partition(self, sequence, product, number, verdict):
        keys = self.space.ledger.survey(sequence).partitions(product)
        if keys:
            ref = (product, keys[number % len(keys)])
            if not any(self.stand_in.find(one, ref) for one in SEQUENCES):
                self.stand_in.verdicts[ref] = verdict

    @step(sequence=sequences, number=st.integers(0, 200), times=st.integers(1, 5))
    def fail(self, sequence, number, times):
        """The next attempts at something fail; beyond two it is given up."""
        survey = self.space.ledger.survey(sequence)
        refs = [(product, key) for product in FALLIBLE for key in survey.partitions(product)]
        if refs:
            self.stand_in.failures[sequence, refs[number % len(refs)]] += times

    @step(sequence=sequences, number=numbers)
    def fail_pair_member(self, sequence, number):
        runs = self.space.ledger.runs(sequence)
        paired = [(run, one) for run in runs for one in self.space.ledger.members(run.lap_id) if one.pairwise]
        if paired:
            run, one = paired[number % len(paired)]
            self.stand_in.failures[sequence, ("warps", f"{one.exposure}{JOIN}{run.cell}")] += 2

    @step(number=numbers)
    def lose_raw_file(self, number):
        """What is made from it is never cleaned."""
        name = self.exposures[number % len(self.exposures)]
        (self.root / f"{name}.fits").unlink(missing_ok=True)
        self.lost.add(name)

    # ---- ticks

    def decide(self, sequence, modes, lap_ids=None, revisit=False, twice=False) -> Decision:
        """As `advance` does it; with a look at each decision on the way."""
        before = self.reader.read().of(self.find_other(sequence))
        asked: Counter = Counter()
        others = [mode for mode in modes if mode != CLEANUP_MODE]
        refused: set[str] = set()
        for _ in range(50):
            snapshot = take_snapshot(self.space, sequence, "all" if revisit else "open", lap_ids)
            queue = tuple(entry for entry in snapshot.queue if str(entry.line) not in refused)
            snapshot = replace(snapshot, revisit=revisit, queue=queue)
            decision = decide(snapshot, others)
            assert decision == decide(snapshot, others)
            if CLEANUP_MODE in modes and not decision.steps:
                unneeded = decide(take_snapshot(self.space, sequence, "uncleaned", lap_ids), [CLEANUP_MODE])
                decision = replace(decision, steps=unneeded.steps, actions=decision.actions + unneeded.actions)
            if not decision.steps:
                break
            asked.update(decision.steps)
            assert max(asked.values()) == 1, f"asked for again: {asked.most_common(1)}"
            n_active = self.count_active()
            refused |= self.apply(decision, twice)
            if any(one.kind == DEFINE for one in decision.steps):
                assert self.count_active() <= max(n_active, self.space.settings.lap.max_active)
        else:
            raise AssertionError(f"never comes to rest: {decision.steps}")
        if twice:
            assert advance(self.space, sequence, modes, lap_ids, revisit=revisit) == decision
        after = self.reader.read().of(self.find_other(sequence))
        assert before[2] == after[2] and (QUEUE_MODE in modes or before == after), "the other sequence was touched"
        return decision

    def apply(self, decision: Decision, twice: bool = False) -> set[str]:
        """Write steps; `twice`: a second process has decided the same and writes them, too."""
        refused = apply_steps(self.space, decision.steps, lambda problem: None)
        self.reached.update(one.kind for one in decision.steps)
        if twice:
            self.other.apply([one for one in decision.steps if one.kind != DEFINE])
            refused |= apply_steps(self.space, decision.steps, lambda problem: None)
        self.dropped |= {(one.lap_id, one.exposure) for one in decision.steps if one.kind == DROP_MEMBER}
        return refused

    def count_active(self) -> int:
        runs = self.reader.read().runs
        return sum(run["state"] != "full" and not run["fault"] and not run["paused"] for run in runs)

    def find_other(self, sequence: str) -> str:
        return SEQUENCES[1 - SEQUENCES.index(sequence)]

    def carry_out(self, sequence: str, actions: tuple[Action, ...], fresh: bool = True) -> int:
        """Do what a decision asks for; of a fresh one each action must be possible."""
        work = [one for one in actions if one.kind != CLEAN]
        self.reached.update(one.kind for one in actions)
        if fresh:
            self.check_actions(sequence, work)
        count = self.stand_in.carry_out(self.space, sequence, work, fresh)
        return count + (self.clean_up(sequence) if len(work) < len(actions) else 0)

    def check_actions(self, sequence: str, actions: list[Action]) -> None:
        """LAP-24, LAP-27, LAP-28, from the rows alone."""
        rows = self.reader.read()
        runs = {(run["projection_cell"], run["filter"]): run for run in rows.runs if run["sequence"] == sequence}
        ended = {ref for (home, ref), row in rows.states.items() if home == sequence and row["state"] in ENDED}
        for one in actions:
            if one.product not in ("warps", "diffs", "streak_masks") or one.kind != MAKE:
                continue
            exposure, cell = one.partition.split(JOIN)
            run = runs[cell, exposure.split("-")[2]]
            members = rows.members[run["lap_id"]]
            row = members[exposure]
            assert row["data_state"] != "drop", (one, row)
            if one.product == "diffs":
                assert row["private"] or row["pairwise"], (one, row)
                alive = [name for name, other in members.items() if other["data_state"] != "drop"]
                assert all(("warps", f"{name}{JOIN}{cell}") in ended for name in alive), one
                for other in promises.read_list(row["neighbours"]) if row["private"] else ():
                    near = runs[other, run["filter"]]
                    assert near["fault"] or ("stacks", f"{other}{JOIN}{near['filter']}") in ended, (one, row, near)

    @step(sequence=sequences, modes=mode_sets, share=st.integers(0, 4), twice=st.booleans())
    def tick(self, sequence, modes, share, twice):
        decision = self.decide(sequence, modes, twice=twice)
        actions = decision.actions[: 1 + len(decision.actions) * share // 4]
        self.carry_out(sequence, actions)

    @step(sequence=sequences, number=numbers, modes=mode_sets)
    def follow_one_run(self, sequence, number, modes):
        """`lap run --lap-id N`."""
        runs = self.space.ledger.runs(sequence)
        if runs:
            lap_ids = [runs[number % len(runs)].lap_id]
            self.carry_out(sequence, self.decide(sequence, modes, lap_ids).actions)

    @step(sequence=sequences, modes=st.sampled_from([DRIVEN, MODES, MODES]), revisit=st.booleans())
    def drive(self, sequence, modes, revisit):
        """Until nothing is left to do (`lap run`, with `revisit`)."""
        if revisit:
            self.space.ledger.forget_attempts(sequence)
        self.drive_to_rest(sequence, modes, revisit)

    def drive_to_rest(self, sequence: str, modes: tuple[str, ...], revisit: bool = False) -> int:
        """Returns how much was done."""
        first, done = tuple(one for one in modes if one != CLEANUP_MODE), 0
        for _ in range(ROUNDS):
            decision = self.decide(sequence, first, revisit=revisit)
            count = self.carry_out(sequence, decision.actions)
            if not count and CLEANUP_MODE in modes:
                count = self.carry_out(sequence, self.decide(sequence, modes).actions)
            if not count:
                return done
            done += count
        raise AssertionError(f"never comes to rest: {decision.actions[:3]}")

    @step(sequence=sequences, modes=mode_sets)
    def look(self, sequence, modes):
        """A tick that takes its time: what it decides is done later, whatever has happened since."""
        snapshot = take_snapshot(self.space, sequence)
        self.held.append((sequence, decide(snapshot, [one for one in modes if one != CLEANUP_MODE])))

    @precondition(lambda self: self.held)
    @step(number=numbers)
    def act_late(self, number):
        sequence, decision = self.held.pop(number % len(self.held))
        self.apply(decision)
        self.carry_out(sequence, decision.actions, fresh=False)

    # ---- workers that take their time, or die

    @step(sequence=sequences, modes=mode_sets, share=st.integers(1, 4))
    def begin_work(self, sequence, modes, share):
        work = [one for one in self.decide(sequence, modes).actions if one.kind != CLEAN]
        self.check_actions(sequence, work)
        begun = self.stand_in.begin(self.space, sequence, work[: 1 + len(work) * share // 4])
        self.batches += [batch for batch in begun if batch.actions]

    @precondition(lambda self: self.batches)
    @step(number=numbers, count=st.integers(1, 3))
    def go_on_working(self, number, count):
        batch = self.batches[number % len(self.batches)]
        self.stand_in.finish(self.space, batch, count)
        self.batches = [one for one in self.batches if one.actions]

    @precondition(lambda self: self.batches)
    @step(number=numbers)
    def kill_worker(self, number):
        """What it recorded stays, its leases expire by themselves."""
        self.batches.pop(number % len(self.batches))

    @step(seconds=st.sampled_from([20.0, 61.0]))
    def wait(self, seconds):
        self.clock.time += seconds

    # ---- cleaning

    @step(sequence=sequences)
    def clean(self, sequence):
        self.clean_up(sequence)

    def clean_up(self, sequence: str) -> int:
        """Clean with the real thing; nothing that is needed may go."""
        rows = self.reader.read()
        needed = promises.list_needed(self.space, sequence, rows)
        over = {run["lap_id"] for run in rows.runs if promises.is_over(run)}
        read = {
            up for batch in self.batches if batch.collection == sequence for up in batch.reads
            if any(one.owner == batch.owner for one in self.space.ledger.leases())
            and not all(one.lap_id in over for one in batch.actions)
        }  # fmt: skip

        def tell(one: CleanedPartition) -> None:
            ref = (one.product, one.partition)
            assert ref not in needed, f"{ref} was cleaned, needed for {needed[ref]}"
            assert ref not in read, f"{ref} was cleaned while it was read"
            assert not self.lost & {one.partition.split(JOIN)[0]}, one
            self.stand_in.find(sequence, ref).files = False

        report = clean_collection(self.space, sequence, tell)
        return len(report.partitions)

    @step(sequence=sequences, count=st.integers(1, 4))
    def die_cleaning(self, sequence, count):
        """Killed between the mark, the files and the second mark."""
        needed = promises.list_needed(self.space, sequence, self.reader.read())
        refs = [(one.product, one.partition) for one in self.decide(sequence, [CLEANUP_MODE]).actions][:count]
        assert not set(refs) & set(needed)
        self.space.ledger.mark(sequence, refs, GOTO_CLEANED, "nothing needs it")
        for ref in refs[::2]:
            self.stand_in.find(sequence, ref).files = False
        self.space.ledger.mark(sequence, refs[::4], CLEANED, "nothing needs it")

    # ---- the operator

    @step(
        sequence=sequences,
        number=numbers,
        what=st.sampled_from(["pause", "resume", "cancel", "reopen", "urge", "retire"]),
    )
    def control(self, sequence, number, what):
        runs = self.space.ledger.runs(sequence)
        if not runs:
            return
        run, ledger = runs[number % len(runs)], self.space.ledger
        if what in ("pause", "resume"):
            ledger.pause(run.lap_id, what == "pause")
        elif what == "cancel":
            ledger.cancel(run.lap_id, "by hand")
        elif what == "reopen" and (run.fault or run.settled):
            ledger.reopen(run.lap_id, "by hand")
        elif what == "urge":
            ledger.set_priority(run.lap_id, number)
        elif what == "retire" and run.cleaned:
            ledger.retire(sequence, [run.lap_id])

    @step(draining=st.booleans())
    def drain(self, draining):
        self.space.ledger.set_draining(draining)

    # ---- what must hold

    @invariant()
    def holds(self):
        rows = self.reader.read()
        promises.check_runs(rows)
        promises.check_pairs(rows)
        promises.check_made(self.stand_in)
        promises.check_records(rows, self.stand_in)
        now = {(lap_id, name) for lap_id, roster in rows.members.items()
               for name, one in roster.items() if one["data_state"] == "drop"}  # fmt: skip
        assert self.dropped <= now, f"drop is final: {self.dropped - now}"
        self.dropped |= now
        self.sound = True

    def come_to_rest(self) -> None:
        """No further faults, nobody pauses: everything ends."""
        self.stand_in.failures.clear()
        self.batches.clear()
        self.clock.time += 100.0
        self.space.ledger.set_draining(False)
        for run in self.space.ledger.runs():
            self.space.ledger.pause(run.lap_id, False)
        for _ in range(ROUNDS):
            count, n_runs = 0, len(self.reader.read().runs)
            for sequence in SEQUENCES:
                count += self.drive_to_rest(sequence, MODES)
                self.holds()
            rows = self.reader.read()
            if not count and len(rows.runs) == n_runs:
                break
        else:
            raise AssertionError("never comes to rest")
        for run in rows.runs:
            waiting = self.decide(run["sequence"], MODES).waiting if not promises.is_over(run) else ""
            assert run["fault"] or (run["state"] == "full" and run["settled"]), (run, waiting)
        promises.check_clean(rows, self.stand_in, self.lost)
