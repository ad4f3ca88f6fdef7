"""From the actions of a decision to requests of Dagster runs: several partitions, and several products, in one run.

A run costs seconds to start. So a stretch of partitions goes into one run, and with it what follows from nothing but
them (solutions after chips, streak masks after differences, everything of a cell after its catalogue). Claims are
taken first (`operations/launches.py`): what somebody else is at is not requested.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    MAX_RETRIES_TAG,
    PRIORITY_TAG,
)

from lap_assets.defs.jobs import Loaded
from lap_assets.lap.judge import describe_wait
from lap_assets.ledger.ledger import Ledger
from lap_assets.model.decisions import DROP, MAKE, RECREATE, Action, Decision
from lap_assets.model.products import PRODUCTS, home_of
from lap_assets.model.states import FAILED
from lap_assets.model.survey import PartitionRef
from lap_assets.operations.launches import LOST_AGAIN, name_owner, take_claims

LAUNCH_TAG, COLLECTION_TAG, LAP_ID_TAG = "lap/launch", "lap/collection", "lap/lap_id"
KIND_TAG, REASON_TAG, COUNT_TAG = "lap/kind", "lap/reason", "lap/partitions"
RANGE_TAGS = (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
MAX_REASON = 500
WAITS = "waits for"  # how `lap/judge.py` says that something is to be made first


@dataclass(frozen=True)
class Launch:
    """One run to be: `kind` is done to the `partitions`, a stretch of their set, of the first of the products.

    The others follow from it, and are made.
    """

    products: tuple[str, ...]
    partitions: tuple[str, ...]
    kind: str = MAKE
    reason: str = ""
    lap_id: int = 0
    priority: int = 0

    @property
    def refs(self) -> list[PartitionRef]:
        """All that it makes."""
        return [(product, key) for product in self.products for key in self.partitions]


def plan_launches(
    decision: Decision, loaded: Loaded, per_run: int, hasty: bool = False
) -> tuple[list[Launch], list[PartitionRef]]:
    """The runs that carry out the actions of a decision, in their order; and partitions newer than the definitions.

    Parameters
    ----------
    per_run : int
        At most so many partitions in one run.
    hasty : bool
        Do not wait for the definitions where a partition is known and only its run is not.
    """
    launches: list[Launch] = []
    fresh = [one for one in decision.actions if not (loaded.knows(one) and loaded.knows_run(one))]
    new = [(one.product, one.partition) for one in fresh]
    known = [one for one in decision.actions if loaded.knows(one) and (hasty or loaded.knows_run(one))]
    grouped: dict[tuple, list[Action]] = {}
    for one in known:
        if one.kind in (MAKE, RECREATE, DROP):
            # a reason goes with a run only where it matters: what is dropped is published with it
            why = one.reason[:MAX_REASON] if one.kind == DROP else ""
            grouped.setdefault((one.product, one.kind, one.priority, why), []).append(one)
    for (product, kind, priority, why), actions in grouped.items():
        for stretch in split_stretches(actions, loaded.places[product], per_run):
            keys = tuple(one.partition for one in stretch)
            products = find_followers(decision, product, keys) if kind != RECREATE else (product,)
            launches.append(Launch(products, keys, kind, why, min(one.lap_id for one in stretch), priority))
    return join_launches(launches), new


def hold_partial(
    launches: Sequence[Launch], decision: Decision, at_work: Collection[int], per_run: int
) -> list[Launch]:
    """The launches without those that are better made together with what follows in a moment.

    A LAP run at work makes what others of the same product wait for: what is possible already can wait for them.
    """
    to_come = {product for (product, _), reason in decision.waiting.items() if reason.startswith(WAITS)}
    return [
        one
        for one in launches
        if one.kind != MAKE
        or one.lap_id not in at_work
        or one.products[0] not in to_come
        or len(one.partitions) >= per_run
    ]


def split_stretches(actions: Sequence[Action], places: Mapping[str, int], per_run: int) -> Iterator[list[Action]]:
    """Actions whose partitions stand side by side, at most `per_run` of them; one alone that lost its run twice."""
    ordered = sorted(actions, key=lambda one: places[one.partition])
    number = 0
    keys: list[tuple[int, int]] = []
    for i, one in enumerate(ordered):
        lonely = one.reason.startswith(f"{FAILED}: {LOST_AGAIN}")
        beside = i and places[one.partition] == places[ordered[i - 1].partition] + 1
        number += lonely or not beside
        keys.append((number, i))
        number += lonely
    for _, stretch in groupby(zip(keys, ordered, strict=True), key=lambda pair: pair[0][0]):
        found = [one for _, one in stretch]
        for start in range(0, len(found), per_run):
            yield found[start : start + per_run]


def find_followers(decision: Decision, product: str, keys: Collection[str]) -> tuple[str, ...]:
    """The product and those of its partition set that wait, for each of these keys, for nothing else."""
    chosen = [product]
    for other, row in PRODUCTS.items():
        if other in chosen or row.partitions != PRODUCTS[product].partitions:
            continue
        needed = [name for name in row.inputs if name in chosen]
        if needed and all(
            decision.waiting.get((other, key)) == describe_wait([(name, key) for name in needed]) for key in keys
        ):
            chosen.append(other)
    return tuple(chosen)


def join_launches(launches: Sequence[Launch]) -> list[Launch]:
    """Launches that make the same partitions of different products, in one run."""
    joined: dict[tuple, Launch] = {}
    for one in launches:
        key = (PRODUCTS[one.products[0]].partitions, one.partitions, one.kind, one.reason, one.priority)
        key += (one.products,) if one.kind != MAKE else ()
        before = joined.get(key)
        products = tuple(name for name in PRODUCTS if name in one.products + (before.products if before else ()))
        joined[key] = Launch(products, *key[1:4], min(one.lap_id, before.lap_id if before else one.lap_id), key[4])
    return list(joined.values())


def claim_launches(
    ledger: Ledger, loaded: Loaded, launches: Sequence[Launch], room: int, numbers: list[int]
) -> Iterator[dg.RunRequest]:
    """Requests of the launches that could be claimed, at most `room`; their numbers are added to `numbers`."""
    for one in launches[:room]:
        number = take_claims(ledger, loaded.collection, one.refs)
        if number:
            numbers.append(number)
            yield request_run(number, loaded, one)


def request_run(number: int, loaded: Loaded, launch: Launch) -> dg.RunRequest:
    """The request of one run; its key is the number of its launch."""
    first = launch.products[0]
    tags = tag_launch(number, loaded.collection, launch.lap_id, launch.priority) | {
        ASSET_PARTITION_RANGE_START_TAG: launch.partitions[0],
        ASSET_PARTITION_RANGE_END_TAG: launch.partitions[-1],
        KIND_TAG: launch.kind,
        COUNT_TAG: str(len(launch.partitions)),
    }
    if launch.reason:
        tags[REASON_TAG] = launch.reason
    return dg.RunRequest(
        run_key=f"launch-{number}",
        job_name=loaded.jobs[first],
        asset_selection=[dg.AssetKey([home_of(loaded.collection, name), name]) for name in launch.products],
        tags=tags,
    )


def tag_launch(number: int, collection: str, lap_id: int = 0, priority: int = 0) -> dict[str, str]:
    """Tags of every run that a sensor requests. Dagster does not repeat it: what is not made is decided anew."""
    return {
        LAUNCH_TAG: str(number),
        COLLECTION_TAG: collection,
        LAP_ID_TAG: str(lap_id),
        PRIORITY_TAG: str(priority),
        MAX_RETRIES_TAG: "0",
    }


def read_launch(tags: Mapping[str, str], assets: Collection[dg.AssetKey], loaded: Loaded) -> list[PartitionRef]:
    """The partitions that a run was requested to make, as far as they are known now."""
    places = loaded.places[min(assets).path[-1]] if assets else {}
    first, last = (places.get(tags.get(name, "")) for name in RANGE_TAGS)
    if first is None or last is None:
        return []
    keys = [key for key, place in places.items() if first <= place <= last]
    return [(key.path[-1], partition) for key in sorted(assets) for partition in keys]


def find_owner(run: dg.DagsterRun) -> str:
    """Owner of the leases of a run: its launch, or itself where nobody claimed anything for it."""
    number = run.tags.get(LAUNCH_TAG)
    return name_owner(number) if number else f"run:{run.run_id}"
