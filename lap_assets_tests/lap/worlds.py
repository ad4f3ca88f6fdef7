"""A ledger without a database: what steps and actions make of a snapshot, for tests of the decisions alone."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from lap_assets.lap.decide import decide
from lap_assets.lap.inputs import hash_inputs
from lap_assets.lap.judge import MAX_ATTEMPTS
from lap_assets.ledger.survey import associate, split_sets
from lap_assets.model import decisions as words
from lap_assets.model.associations import BUILT, CERTIFIED
from lap_assets.model.decisions import Action, Decision, QueueEntry, Snapshot, Step
from lap_assets.model.products import MASTERS, PRODUCTS
from lap_assets.model.states import CLEANED, DONE, DROPPED, FAILED, NO_WORK, RESULTS, PartitionState
from lap_assets.model.survey import CalibrationSet, Exposure, Member, PartitionRef, Run, Survey

CONFIGS = dict.fromkeys(PRODUCTS, "config")
NIGHTS = ("2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04")


def make_exposure(band: str, number: int, visits: int = 2) -> Exposure:
    """Exposure `number` of a band: `visits` in each night, of one object."""
    night, visit = divmod(number, visits)
    mjd = 60000.0 + night + 0.01 * visit
    comment = f"visit {visit + 1} of {visits}"
    return Exposure(
        f"cam-{band}{number}", "cam", band, band, NIGHTS[night], mjd, 30.0, 10.0, 0.0, object="field", comment=comment,
        files_sha256=f"{band}{number}",
    )  # fmt: skip


def make_survey(
    n: int = 6, bands: str = "gr", cells: tuple[str, ...] = ("sky.0",), visits: int = 2, state: str = "new"
) -> Survey:
    """Every exposure overlaps every cell; one run per cell and band, in that order."""
    exposures = {one.id: one for band in bands for one in (make_exposure(band, i, visits) for i in range(n))}
    runs = []
    for cell in cells:
        others = tuple(one for one in cells if one != cell)
        for band in bands:
            names = tuple(name for name, one in exposures.items() if one.band == band)
            roster = tuple(Member(name, neighbours=others) for name in names)
            runs.append(Run(len(runs) + 1, cell, band, names, state, roster))
    bias = CalibrationSet("cam|bias|all|2026-01-01", "cam", "bias", "all", "2026-01-01")
    flats = [CalibrationSet(f"cam|flat|{b}|2026-01-01", "cam", "flat", b, "2026-01-01") for b in bands]
    masters = {
        name: (("master_biases", bias.key), ("master_flats", f"cam|flat|{one.band}|2026-01-01"))
        for name, one in exposures.items()
    }
    return Survey(
        "main", exposures, dict.fromkeys(cells), tuple(runs), {one.key: one for one in (bias, *flats)}, masters
    )


class World:
    """A snapshot that lives: steps change its runs, actions its states.

    Parameters
    ----------
    outcome : callable
        State a partition ends with when it is made; default: always done.

    Attributes
    ----------
    held : dict of calibration key to str
        Masters that the rule does not certify, and why.
    """

    def __init__(
        self, survey: Survey, outcome: Callable[[PartitionRef], str] = lambda ref: DONE, **facts: object
    ) -> None:
        self.snapshot = Snapshot(survey, {}, CONFIGS, **facts)
        self.outcome = outcome
        self.made: list[Action] = []
        self.steps: list[Step] = []
        self.version = 0
        self.held: dict[str, str] = {}

    @property
    def survey(self) -> Survey:
        return self.snapshot.survey

    @property
    def states(self) -> dict[PartitionRef, PartitionState]:
        return dict(self.snapshot.states)

    def run(self, lap_id: int) -> Run:
        return next(one for one in self.survey.runs if one.lap_id == lap_id)

    def decide(self, *modes: str) -> Decision:
        return decide(self.snapshot, modes or words.MODES)

    def change(self, **facts: object) -> None:
        self.snapshot = replace(self.snapshot, **facts)

    # -- steps

    def apply(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self.steps.append(step)
            if step.kind == words.DEFINE:
                self.launch(next(one for one in self.snapshot.queue if str(one.line) == step.value))
            else:
                self.replace_run(change_run(self.run(step.lap_id), step, self.survey.collection))
        active = [run for run in self.survey.runs if run.state in ("new", "run") and not run.fault and not run.paused]
        in_use = {one.exposure for run in self.survey.runs for one in run.roster if one.active}
        self.change(n_active=len(active), in_use=frozenset(in_use))

    def replace_run(self, run: Run) -> None:
        runs = tuple(run if one.lap_id == run.lap_id else one for one in self.survey.runs)
        self.change(survey=replace(self.survey, runs=runs))

    def launch(self, entry: QueueEntry) -> None:
        names = tuple(name for name, one in self.survey.exposures.items() if one.band == entry.band)
        run = Run(len(self.survey.runs) + 1, entry.cell, entry.band, names, "new", tuple(Member(n) for n in names))
        queue = tuple(one for one in self.snapshot.queue if one != entry)
        self.change(survey=replace(self.survey, runs=(*self.survey.runs, run)), queue=queue)

    # -- actions

    def carry_out(self, actions: Iterable[Action], outcome: Callable[[PartitionRef], str] | None = None) -> None:
        states = self.states
        for action in actions:
            ref = (action.product, action.partition)
            self.made.append(action)
            states[ref] = self.end(action, states, outcome or self.outcome)
            if ref[0] in MASTERS.values() and states[ref].state in RESULTS:
                reason = self.held.get(ref[1], "" if states[ref].state == DONE else states[ref].reason)
                self.judge(ref[1], BUILT if reason else CERTIFIED, reason)
        self.change(states=states)

    def judge(self, key: str, state: str, reason: str = "") -> None:
        """Give a calibration set a state; a rejected one is used by nothing."""
        one = replace(self.survey.calibrations[key], state=state, reason=reason)
        rest = {name: each for name, each in self.survey.calibrations.items() if name != key}
        usable, withdrawn = split_sets(dict(sorted((rest | dict(self.survey.withdrawn) | {key: one}).items())))
        chosen = associate(self.survey.exposures.values(), usable)
        self.change(survey=replace(self.survey, calibrations=usable, withdrawn=withdrawn, associations=chosen))

    def end(self, action: Action, states: dict, outcome: Callable[[PartitionRef], str]) -> PartitionState:
        ref = (action.product, action.partition)
        before = states.get(ref)
        if action.kind == words.CLEAN:
            return replace(before, state=CLEANED)
        if action.kind == words.RECREATE:
            return replace(before, state=DONE)
        inputs = hash_inputs(self.survey, states, ref)
        if action.kind == words.DROP:
            return PartitionState(DROPPED, inputs, f"dropped {ref}", "config", 0, action.reason)
        state = outcome(ref)
        attempts = (before.attempts if before else 0) + 1 if state == FAILED else 0
        content = f"{ref} {inputs} {state} {self.version}" if state in RESULTS else ""
        return PartitionState(state, inputs, content, "config", attempts, "" if state == DONE else f"it was {state}")

    def drive(self, *modes: str, limit: int = 300) -> "World":
        """Do what is decided until nothing is; raises where it never comes to rest."""
        for _ in range(limit):
            decision = self.decide(*modes)
            if decision.steps:
                self.apply(decision.steps)
            elif decision.actions:
                self.carry_out(decision.actions)
            else:
                return self
        raise AssertionError(f"never comes to rest: {decision.steps[:3]} {decision.actions[:3]}")


def change_run(run: Run, step: Step, collection: str) -> Run:
    """A run after a step, as the ledger would have it."""
    if step.kind == words.RUN_STATE:
        active = step.value != "full"
        return replace(run, state=step.value, roster=tuple(replace(m, active=m.active and active) for m in run.roster))
    if step.kind in (words.SETTLE, words.CLEANED_RUN):
        return replace(run, **{"settled" if step.kind == words.SETTLE else "cleaned": True})
    if step.kind == words.FAULT:
        return replace(run, fault=int(step.value), roster=tuple(replace(m, active=False) for m in run.roster))
    roster = {one.exposure: one for one in run.roster}
    for name, values in member_changes(step):
        roster[name] = replace(roster[name], **values)
    used = tuple(name for name in run.members if roster[name].data_state != "drop")
    return replace(run, members=used, roster=tuple(roster.values()))


def member_changes(step: Step) -> list[tuple[str, dict[str, object]]]:
    one = step.exposure
    return {
        words.ASSIGN: [(one, {"chip_id": step.value})],
        words.PAIR: [
            (one, {"pair": step.value, "pairwise": True, "private": False}),
            (step.value, {"pair": one, "pairwise": True, "private": False}),
        ],
        words.PRIVATE: [(one, {"pair": "", "pairwise": False, "private": True})],
        words.DROP_MEMBER: [(one, {"data_state": "drop", "active": False, "reason": step.reason})],
        words.DATA_STATE: [(one, {"data_state": step.value})],
    }[step.kind]


def outcomes(**states: str) -> Callable[[PartitionRef], str]:
    """Done, but for the partitions named `product__partition` (their `-`, `|` and `.` written as `_`)."""

    def outcome(ref: PartitionRef) -> str:
        key = f"{ref[0]}__{ref[1]}".translate(str.maketrans("-|.", "___"))
        return states.get(key, DONE)

    return outcome


__all__ = ["CONFIGS", "MAX_ATTEMPTS", "NO_WORK", "World", "make_exposure", "make_survey", "outcomes"]
