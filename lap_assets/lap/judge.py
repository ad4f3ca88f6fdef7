"""One look at every partition: does it need nothing, is there work on it now, or what does it wait for?

The rules that hold for every product, whatever the mode: made when missing, when a failed attempt may be repeated,
when settings or inputs have changed, and only once everything it is made from has ended, masters certified; what was
cleaned comes back when something that is made needs it. Which partitions are looked at, and in which order, is up to
the modes.
"""

from collections.abc import Collection, Mapping

from lap_assets.lap.inputs import close_upstream, hash_contents
from lap_assets.model.associations import BUILT, VIRTUAL
from lap_assets.model.decisions import CHIP_MODE, DROP, MAKE, MONITOR_MODE, RECREATE, Action, Snapshot
from lap_assets.model.products import MASTERS, PRODUCTS
from lap_assets.model.states import DONE, ENDED, FAILED, GONE, INVALIDATED, PartitionState
from lap_assets.model.survey import PartitionRef, Run, Survey

MAX_ATTEMPTS = 2
# made once per run and kept, so that a late exposure does not invalidate finished warps (architecture, section 1)
FROZEN = frozenset({"joint_solutions"})
# what `lap_science --chip_mode` queues; all that follows is monitor mode's
CHIP_PRODUCTS = frozenset({*MASTERS.values(), "chips", "solutions"})
BUSY = "is being made by"
FILED = GONE | {DONE}  # there are, or were, files
_ORDER = {name: number for number, name in enumerate(PRODUCTS)}


class Judge:
    """Looks at partitions of one snapshot, each once, inputs before what is made from them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.survey, self.states = snapshot.survey, snapshot.states
        self.settled: set[PartitionRef] = set()
        self.actions: dict[PartitionRef, Action] = {}
        self.waiting: dict[PartitionRef, str | list[PartitionRef]] = {}
        self.lost: dict[PartitionRef, str] = {}  # needed, but cleaned and not to be had again; why
        self._wanted = None if snapshot.targets is None else close_upstream(self.survey, snapshot.targets)

    def visit(self, ref: PartitionRef, run: Run | None = None) -> bool:
        """Whether a partition needs nothing; what it needs, or waits for, is noted."""
        if ref in self.settled:
            return True
        if ref in self.actions or ref in self.waiting or (self._wanted is not None and ref not in self._wanted):
            return False
        upstream = self.survey.upstream(*ref)
        missing = [up for up in upstream if up not in self.settled]
        if missing:
            self.waiting[ref] = missing
            return False
        kind, reason = self._find_need(ref, upstream)
        held = find_held(self.survey, self.states, ref) if kind else ""
        if held:
            self.waiting[ref] = held
            return False
        if not kind:
            self.settled.add(ref)
            return True
        self.request(ref, reason, run, kind)
        return False

    def trust(self, ref: PartitionRef) -> bool:
        """Take a partition as it is: settled if it ended, whatever it was made from."""
        if self.ended(ref):
            self.settled.add(ref)
        return ref in self.settled

    def ended(self, ref: PartitionRef) -> bool:
        """Whether a partition ended, with or without anything usable."""
        state = self.states.get(ref)
        return state is not None and state.state in ENDED

    def is_current(self, ref: PartitionRef) -> bool:
        """Whether a partition ended and nothing it was made from, or with, has changed since."""
        return not self._find_need(ref, self.survey.upstream(*ref))[0]

    def wait(self, ref: PartitionRef, reason: str) -> None:
        """Note that a partition waits for something that is no partition."""
        if ref not in self.settled and (self._wanted is None or ref in self._wanted):
            self.waiting.setdefault(ref, reason)

    def request(self, ref: PartitionRef, reason: str, run: Run | None = None, kind: str = MAKE) -> None:
        """Ask for work on a partition, or first for what it is made from where that was cleaned."""
        if ref in self.snapshot.busy:
            self.waiting[ref] = f"{BUSY} {self.snapshot.busy[ref]}"
            return
        gone = self._find_gone(ref) if kind in (MAKE, RECREATE) else []
        for up in gone:
            if up not in self.actions and not isinstance(self.waiting.get(up), str):
                self._bring_back(up, ref, run)
        lost = [up for up in gone if up in self.lost]
        if lost:
            self.waiting[ref] = f"{lost[0][0]} {lost[0][1]} was {self.lost[lost[0]]}"
            if kind == RECREATE:
                self.lost[ref] = f"cleaned and not re-created, for {self.waiting[ref]}"
            return
        if gone:
            up = gone[0]
            self.waiting[ref] = f"waits for {up[0]} {up[1]} to be re-created ({len(gone)} cleaned inputs)"
            return
        mode = CHIP_MODE if ref[0] in CHIP_PRODUCTS else MONITOR_MODE
        lap_id, priority = (run.lap_id, run.priority) if run else (0, 0)
        self.actions[ref] = Action(*ref, kind, reason, lap_id, mode, priority)

    def give_up(self, ref: PartitionRef, run: Run | None = None) -> bool:
        """Drop what was to be made from something that is not to be had again; whether it is such a one."""
        if not self.lost or ref in self.lost or ref not in self.waiting:
            return False
        hopeless = any(up in self.lost for up in self.survey.reads(*ref))
        if hopeless:
            self.request(ref, str(self.waiting.pop(ref)), run, DROP)
        return hopeless

    def _bring_back(self, ref: PartitionRef, needs: PartitionRef, run: Run | None) -> None:
        """Ask for a cleaned partition to be made again, unless that was tried in vain."""
        if is_lost(self.states[ref]):
            self.lost[ref] = f"cleaned and not re-created: {self.states[ref].reason}"
            self.waiting[ref] = self.lost[ref]
        else:
            self.request(ref, f"{needs[0]} {needs[1]} needs it", run, RECREATE)

    def _find_gone(self, ref: PartitionRef) -> list[PartitionRef]:
        """What a partition is made from whose files were cleaned."""
        found = []
        for up in self.survey.reads(*ref):
            state = self.states.get(up)
            if state is not None and state.state in GONE:
                found.append(up)
        return found

    def _find_need(self, ref: PartitionRef, upstream: tuple[PartitionRef, ...]) -> tuple[str, str]:
        """(kind of action, why) for a partition whose inputs have all ended; empty where it needs nothing."""
        product = ref[0]
        now = self.states.get(ref)
        if now is None:
            return MAKE, "missing"
        if now.state not in ENDED:
            if now.state == FAILED and now.attempts >= MAX_ATTEMPTS:
                return DROP, now.reason
            return MAKE, f"{now.state}: {now.reason}" if now.reason else now.state
        if now.reason.startswith(INVALIDATED):
            return MAKE, now.reason
        if product in MASTERS.values() and self.survey.calibrations[ref[1]].state == VIRTUAL:
            return MAKE, "made, and not judged yet"  # what is there stays as it is
        if now.config_sha256 != self.snapshot.configs[product]:
            return MAKE, "settings or code changed"
        if product not in FROZEN and now.inputs_sha256 != hash_contents(self.survey, self.states, ref, upstream):
            return MAKE, "inputs changed"
        return "", ""

    def sort_actions(self) -> tuple[Action, ...]:
        """The actions, those of high priority first, then in the order of the chain."""
        places = {
            product: {key: place for place, key in enumerate(self.survey.partitions(product))}
            for product in {product for product, _ in self.actions}
        }
        return tuple(
            sorted(
                self.actions.values(),
                key=lambda one: (-one.priority, _ORDER[one.product], places[one.product].get(one.partition, 0)),
            )
        )

    def describe_waiting(self) -> dict[PartitionRef, str]:
        """What waits for what, one line each."""
        return {
            ref: reason if isinstance(reason, str) else describe_wait(reason) for ref, reason in self.waiting.items()
        }


def find_held(survey: Survey, states: Mapping[PartitionRef, PartitionState], ref: PartitionRef) -> str:
    """What of the masters that a partition is to be made with has to be certified first; empty: nothing (PHX-02).

    A master of which nothing could be made holds nothing up: what needs it ends with that reason.
    """
    upstream = survey.upstream(*ref)
    for up in upstream:
        one = survey.calibrations.get(up[1]) if up[0] in MASTERS.values() else None
        state = states.get(up)
        if one is not None and one.state == BUILT and state is not None and state.state in FILED:
            return f"waits for certification of {one.kind} {one.key}" + (f": {one.reason}" if one.reason else "")
    if ref[0] == "chips" and survey.withdrawn:
        return find_withdrawn(survey, ref[1], {up[0] for up in upstream})
    return ""


def find_withdrawn(survey: Survey, exposure: str, have: Collection[str]) -> str:
    """Of which kind all masters that an exposure could have were rejected; empty: of none.

    It waits for others: nothing is wrong with the exposure itself.
    """
    one = survey.exposures[exposure]
    for kind, product in MASTERS.items():
        lacks = survey.find_lacks(one, set(MASTERS) - {kind}) if product not in have else ()
        if lacks and survey.find_withdrawn(one, kind):
            return f"waits: {lacks[0]}"
    return ""


def is_lost(state: PartitionState) -> bool:
    """Whether a partition was cleaned and could not be made again, however often that was tried.

    It stays cleaned, so that what was made from it before stays as it is.
    """
    return state.state in GONE and state.attempts >= MAX_ATTEMPTS


def describe_wait(missing: list[PartitionRef]) -> str:
    """One line: what a partition waits for."""
    product, partition = missing[0]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"waits for {product} {partition}{more}"
