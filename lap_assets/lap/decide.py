"""What to do next: `decide(snapshot) -> [Action]`, pure, for every product from master calibrations to mass maps.

The rules are few: a partition is made when it is missing, when what it was made from has changed, when its settings
have changed, or when a failed attempt may be repeated, and only once everything it is made from has ended with a
result. A fault that outlasted its attempts is dropped, so that one exposure never keeps its cell waiting. Nothing here
reads a file, a clock or a database.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from lap_assets.model.products import PRODUCTS
from lap_assets.model.states import FAILED, RESULTS, PartitionState
from lap_assets.model.survey import PartitionRef, Survey

MAKE, DROP = "make", "drop"
MAX_ATTEMPTS = 2
# made once per run and kept, so that a late exposure does not invalidate finished warps (architecture, section 1)
FROZEN = frozenset({"joint_solutions"})


@dataclass(frozen=True)
class Snapshot:
    """All that a decision depends on.

    Attributes
    ----------
    survey : Survey
    states : mapping of (product, partition) to PartitionState
    configs : mapping of product to hash of its settings and code number now in force
    targets : collection of (product, partition), or None for everything there is
    """

    survey: Survey
    states: Mapping[PartitionRef, PartitionState]
    configs: Mapping[str, str]
    targets: Collection[PartitionRef] | None = None


@dataclass(frozen=True, order=True)
class Action:
    """Do `kind` ("make" or "drop") to one partition, because of `reason`."""

    product: str
    partition: str
    kind: str = MAKE
    reason: str = ""


@dataclass(frozen=True)
class Decision:
    """The actions possible now, in the order of the chain, and what waits for what."""

    actions: tuple[Action, ...]
    waiting: Mapping[PartitionRef, str] = field(default_factory=dict)
    settled: frozenset[PartitionRef] = frozenset()


def decide(snapshot: Snapshot) -> Decision:
    """The actions that can be taken now.

    Idempotent: it depends on the snapshot alone, and once its actions are carried out and recorded it does not
    ask for them again.
    """
    actions: list[Action] = []
    waiting: dict[PartitionRef, str] = {}
    settled: set[PartitionRef] = set()
    wanted = None if snapshot.targets is None else close_upstream(snapshot.survey, snapshot.targets)
    for product in PRODUCTS:
        for partition in snapshot.survey.partitions(product):
            ref = (product, partition)
            if wanted is not None and ref not in wanted:
                continue
            upstream = snapshot.survey.upstream(product, partition)
            missing = [one for one in upstream if one not in settled]
            if missing:
                waiting[ref] = describe_wait(missing)
                continue
            action = judge(snapshot, ref)
            if action is None:
                settled.add(ref)
            else:
                actions.append(action)
    return Decision(tuple(actions), waiting, frozenset(settled))


def judge(snapshot: Snapshot, ref: PartitionRef) -> Action | None:
    """What a partition needs whose inputs have all ended; None where nothing."""
    product, partition = ref
    now = snapshot.states.get(ref)
    if now is None:
        return Action(product, partition, MAKE, "missing")
    if now.state == FAILED and now.attempts >= MAX_ATTEMPTS:
        return Action(product, partition, DROP, now.reason)
    if now.state not in RESULTS:
        return Action(product, partition, MAKE, f"{now.state}: {now.reason}" if now.reason else now.state)
    if now.config_sha256 != snapshot.configs[product]:
        return Action(product, partition, MAKE, "settings or code changed")
    if product not in FROZEN and now.inputs_sha256 != hash_inputs(snapshot.survey, snapshot.states, ref):
        return Action(product, partition, MAKE, "inputs changed")
    return None


def hash_inputs(survey: Survey, states: Mapping[PartitionRef, PartitionState], ref: PartitionRef) -> str:
    """Hash over what a partition is made from: the upstream partitions by content, and what lies outside the store."""
    contents = [[*up, states[up].content_sha256 if up in states else ""] for up in survey.upstream(*ref)]
    contents += survey.outside_facts(*ref)
    return hashlib.sha256(json.dumps(contents, separators=(",", ":")).encode()).hexdigest()


def close_upstream(survey: Survey, targets: Iterable[PartitionRef]) -> set[PartitionRef]:
    """The targets and everything they are made from, all the way up."""
    closed: set[PartitionRef] = set()
    open_ = list(targets)
    while open_:
        ref = open_.pop()
        if ref not in closed:
            closed.add(ref)
            open_.extend(survey.upstream(*ref))
    return closed


def describe_wait(missing: list[PartitionRef]) -> str:
    """One line: what a partition waits for."""
    product, partition = missing[0]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"waits for {product} {partition}{more}"
