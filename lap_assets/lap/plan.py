"""The plan before a run: every unit that would be made, why, and what is missing for it, with its reason (LV-04).

Pure, from the ledger's picture and what somebody found to be lacking (files that are gone, masters there are none of):
nothing is opened. What a later stage turns out to be unable to do is not foreseen here.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain

from lap_assets.lap.inputs import close_upstream, hash_contents
from lap_assets.lap.judge import FROZEN
from lap_assets.model.decisions import Snapshot
from lap_assets.model.ids import JOIN
from lap_assets.model.products import CALIBRATIONS, CELL_BANDS, CELLS, EXPOSURE_CELLS, EXPOSURES, PRODUCTS
from lap_assets.model.states import ENDED, GONE
from lap_assets.model.survey import PartitionRef, Survey

SKYCELL = "skycell"
Units = tuple[str, ...]


@dataclass(frozen=True)
class Lacks:
    """What is missing and is no partition, with its reason.

    Attributes
    ----------
    all : mapping of (product, partition) to str
        Why nothing can come of it.
    some : mapping of (product, partition) to tuple of str
        Single inputs that are not there; it is made of the rest.
    """

    all: Mapping[PartitionRef, str] = field(default_factory=dict)
    some: Mapping[PartitionRef, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanRow:
    """One partition that would be made.

    Attributes
    ----------
    units : tuple of str
        Chips or skycells of it; one empty name where the partition is the unit.
    reason : str
        Why it is made.
    problem : str
        What stands in its own way; empty: nothing.
    missing : tuple of str
        Inputs that will not be there, each with its reason.
    lost : bool
        Nothing can come of it.
    """

    product: str
    partition: str
    units: Units
    reason: str
    problem: str = ""
    missing: tuple[str, ...] = ()
    lost: bool = False


@dataclass(frozen=True)
class Plan:
    """What would be made, in the order of the chain."""

    rows: tuple[PlanRow, ...] = ()

    def count(self) -> dict[str, tuple[int, int, int, int]]:
        """(partitions, units, partitions with something missing, partitions lost) by product."""
        counts: dict[str, list[int]] = {}
        for row in self.rows:
            now = counts.setdefault(row.product, [0, 0, 0, 0])
            for place, value in enumerate((1, len(row.units), bool(row.missing or row.problem), row.lost)):
                now[place] += value
        return {product: tuple(values) for product, values in counts.items()}

    @property
    def n_units(self) -> int:
        """Units of the partitions that something can come of."""
        return sum(len(row.units) for row in self.rows if not row.lost)


@dataclass
class _Planner:
    """Looks at partitions in the order of the chain.

    Attributes
    ----------
    units : callable
        Names of the units of a partition that no other partition tells.
    least : mapping of product to int
        Inputs that a skycell of it needs.
    """

    snapshot: Snapshot
    lacks: Lacks
    units: Callable[[PartitionRef], Units]
    least: Mapping[str, int]
    rows: dict[PartitionRef, PlanRow] = field(default_factory=dict)
    recreated: dict[PartitionRef, PlanRow] = field(default_factory=dict)
    causes: dict[PartitionRef, str] = field(default_factory=dict)  # why it is lost, at its root
    known_units: dict[PartitionRef, Units] = field(default_factory=dict)

    def look(self, ref: PartitionRef) -> None:
        """Add a partition to the plan unless it is there as it would be made now."""
        reason = self.find_reason(ref, self.snapshot.survey.upstream(*ref))
        if reason:
            self.rows[ref] = self.foresee(ref, reason)

    def foresee(self, ref: PartitionRef, reason: str) -> PlanRow:
        """What will become of a partition, after what is cleaned and has to come back for it (LAP-18)."""
        upstream = self.snapshot.survey.upstream(*ref)
        for up in upstream:
            state = self.snapshot.states.get(up)
            if state is not None and state.state in GONE and up not in self.rows and up not in self.recreated:
                self.recreated[up] = self.foresee(up, f"cleaned, and {ref[0]} {ref[1]} needs it")
        lost = [up for up in upstream if up in self.causes]
        problem = self.lacks.all.get(ref, "")
        if problem or (lost and self.needs_all(ref, len(upstream) - len(lost))):
            self.causes[ref] = problem or self.causes[lost[0]]
        missing = (*(f"{up[0]} {up[1]}: {self.causes[up]}" for up in lost), *self.lacks.some.get(ref, ()))
        units = self.find_units(ref)
        if ref not in self.causes:
            problem = self.find_shortage(ref, units)
        return PlanRow(*ref, units, reason, problem, missing, ref in self.causes)

    def find_units(self, ref: PartitionRef) -> Units:
        """The units of a partition: a skycell where what it is made from has it."""
        if ref not in self.known_units:
            inputs = self.find_layers(ref)
            same = [up for up in inputs if up[1] == ref[1]]  # those of the partition's own exposure or band
            if same:
                found = self.find_units(same[0])
            elif inputs and PRODUCTS[ref[0]].partitions in (CELL_BANDS, CELLS):
                found = tuple(sorted(set(chain.from_iterable(map(self.find_units, inputs)))))
            else:
                found = self.units(ref)
            self.known_units[ref] = found
        return self.known_units[ref]

    def find_layers(self, ref: PartitionRef) -> list[PartitionRef]:
        """What a partition is made from skycell by skycell, without what is lost."""
        if PRODUCTS[ref[0]].unit != SKYCELL:
            return []
        upstream = self.snapshot.survey.upstream(*ref)
        return [up for up in upstream if PRODUCTS[up[0]].unit == SKYCELL and up not in self.causes]

    def find_shortage(self, ref: PartitionRef, units: Units) -> str:
        """Where there are too few inputs: it ends as no work, which keeps nothing waiting (LAP-29)."""
        least = self.least.get(ref[0], 0)
        if not least:
            return ""
        inputs = self.find_layers(ref)
        if len(inputs) < least:
            return f"{len(inputs)} inputs, {least} needed"
        have = Counter(chain.from_iterable(map(self.find_units, inputs)))
        short = sum(have[unit] < least for unit in units)
        return f"{short} of {len(units)} skycells have fewer than {least} inputs" if short else ""

    def needs_all(self, ref: PartitionRef, rest: int) -> bool:
        """Whether one lost input is enough: of exposures it is; stacks and catalogues are made of what there is."""
        return rest == 0 or PRODUCTS[ref[0]].partitions in (EXPOSURES, EXPOSURE_CELLS, CALIBRATIONS)

    def find_reason(self, ref: PartitionRef, upstream: tuple[PartitionRef, ...]) -> str:
        state = self.snapshot.states.get(ref)
        if state is None:
            return "missing"
        if state.state not in ENDED:
            return f"{state.state}: {state.reason}" if state.reason else state.state
        if state.config_sha256 != self.snapshot.configs[ref[0]]:
            return "settings or code changed"
        if ref[0] in FROZEN:
            return ""
        first = next((up for up in upstream if up in self.rows), None)
        if first:
            return f"{first[0]} {first[1]} is made again"
        changed = state.inputs_sha256 != hash_contents(self.snapshot.survey, self.snapshot.states, ref, upstream)
        return "inputs changed" if changed else ""


def list_followed(survey: Survey, product: str) -> list[str]:
    """The partitions of a product that something may be done for: of runs that go on, without dropped members."""
    kind, everything = PRODUCTS[product].partitions, survey.partitions(product)
    if kind == CALIBRATIONS or not survey.runs:
        return list(everything)
    followed: set[str] = set()
    for run in survey.runs:
        if not run.fault and not run.paused:
            pairs = (f"{name}{JOIN}{run.cell}" for name in run.members)
            keys = {EXPOSURES: run.members, EXPOSURE_CELLS: pairs, CELL_BANDS: (f"{run.cell}{JOIN}{run.band}",)}
            followed.update(keys.get(kind, (run.cell,)))
    return [key for key in everything if key in followed]


def plan_work(
    snapshot: Snapshot,
    lacks: Lacks,
    units: Callable[[PartitionRef], Units],
    min_inputs: int = 0,
    products: Collection[str] = tuple(PRODUCTS),
) -> Plan:
    """All that would be made, from the first master to the last map.

    Parameters
    ----------
    snapshot : Snapshot
        With the runs to plan for; `targets` limits the plan to these and what they are made from.
    lacks : Lacks
        What is missing that is no partition.
    units : callable
        Names of the units of a partition, as far as not what it is made from tells them.
    min_inputs : int
        Of each skycell of the first-pass stacks.
    """
    wanted = None if snapshot.targets is None else close_upstream(snapshot.survey, snapshot.targets)
    planner = _Planner(snapshot, lacks, units, {"stacks": min_inputs})
    for product in PRODUCTS:
        if product in products:
            for partition in list_followed(snapshot.survey, product):
                if wanted is None or (product, partition) in wanted:
                    planner.look((product, partition))
    order = {product: place for place, product in enumerate(PRODUCTS)}
    rows = (planner.recreated | planner.rows).values()
    return Plan(tuple(sorted(rows, key=lambda row: order[row.product])))
